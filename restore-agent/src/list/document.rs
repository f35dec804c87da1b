//! What `list --json` prints; `docs/json.md` describes it.

use jiff::Timestamp;
use serde::Serialize;
use walpoint_base::ClusterName;
use walpoint_repo::catalog::RestorePointStatus;
use walpoint_repo::catalog::status::{
    BackupStatus, ClusterStatus, DamagedLineageStatus, LineageStatus, WindowStatus,
};

use super::Sections;
use super::options::PlanOptions;
use super::read::Listed;

/// The answer.
#[derive(Debug, Serialize)]
pub(super) struct ListDocument<'a> {
    taken: Timestamp,
    cluster: String,
    repositories: Vec<RepositoryDocument<'a>>,
    /// The words of the command line that plans a restore to the end of the archive.
    plan: Vec<String>,
}

/// A repository. What it holds is absent where it could not be read, or where something else was asked for.
#[derive(Debug, Serialize)]
struct RepositoryDocument<'a> {
    repository: &'a str,
    store: &'a str,
    /// Why it could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lineages: Option<Vec<LineageDocument<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    damaged_lineages: Option<&'a [DamagedLineageStatus]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backups: Option<Vec<&'a BackupStatus>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    restore_points: Option<Vec<RestorePointDocument<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    windows: Option<Vec<WindowDocument<'a>>>,
}

/// A lineage.
#[derive(Debug, Serialize)]
struct LineageDocument<'a> {
    lineage: &'a str,
    postgresql: u8,
    /// Restore points that can be recovered to and are not listed.
    older_restore_points: usize,
    /// What could not be read.
    problems: &'a [String],
}

/// A restore point.
#[derive(Debug, Serialize)]
struct RestorePointDocument<'a> {
    lineage: &'a str,
    #[serde(flatten)]
    point: &'a RestorePointStatus,
    /// How many others have its name.
    same_name: usize,
    /// The options of `plan` that recover to it.
    options: Vec<String>,
}

/// A window.
#[derive(Debug, Serialize)]
struct WindowDocument<'a> {
    lineage: &'a str,
    timeline: u32,
    #[serde(flatten)]
    window: &'a WindowStatus,
    /// The options of `plan`, to which a time or a position in the window is added.
    options: Vec<String>,
}

impl<'a> ListDocument<'a> {
    /// Of what was listed.
    pub(super) fn new(
        cluster: &ClusterName,
        taken: Timestamp,
        listed: &'a [Listed],
        options: &PlanOptions,
        sections: Sections,
    ) -> Self {
        let repositories = listed.iter().map(|one| RepositoryDocument::of(one, options, sections)).collect();
        Self { taken, cluster: cluster.to_string(), repositories, plan: options.plan() }
    }
}

impl<'a> RepositoryDocument<'a> {
    fn of(listed: &'a Listed, options: &PlanOptions, sections: Sections) -> Self {
        let status = listed.contents.as_ref().ok().map(|contents| &contents.status);
        let wanted = |is: bool| status.filter(|_| is);
        Self {
            repository: &listed.repository,
            store: &listed.store,
            problem: listed.contents.as_ref().err().map(String::as_str),
            lineages: status.map(|status| status.lineages.iter().map(LineageDocument::of).collect()),
            damaged_lineages: status
                .map(|status| &status.damaged_lineages[..])
                .filter(|damaged| !damaged.is_empty()),
            backups: wanted(sections.backups).map(|status| usable(status).collect()),
            restore_points: wanted(sections.restore_points).map(|status| points(status, options)),
            windows: wanted(sections.windows).map(|status| windows(status, options)),
        }
    }
}

/// All backups but those that were aborted.
fn usable(status: &ClusterStatus) -> impl Iterator<Item = &BackupStatus> {
    status.backups.iter().filter(|backup| ["finished", "unfinished"].contains(&backup.state))
}

fn points<'a>(status: &'a ClusterStatus, options: &PlanOptions) -> Vec<RestorePointDocument<'a>> {
    let of = |lineage: &'a LineageStatus| {
        lineage.restore_points.iter().map(|point| RestorePointDocument {
            lineage: &lineage.lineage,
            point,
            same_name: point.same_name,
            options: options.to_point(lineage, point),
        })
    };
    status.lineages.iter().flat_map(of).collect()
}

fn windows<'a>(status: &'a ClusterStatus, options: &PlanOptions) -> Vec<WindowDocument<'a>> {
    let mut windows = Vec::new();
    for lineage in &status.lineages {
        for timeline in &lineage.timelines {
            windows.extend(timeline.windows.iter().map(|window| WindowDocument {
                lineage: &lineage.lineage,
                timeline: timeline.timeline,
                window,
                options: options.on_timeline(lineage, timeline.timeline),
            }));
        }
    }
    windows
}

impl<'a> LineageDocument<'a> {
    fn of(status: &'a LineageStatus) -> Self {
        Self {
            lineage: &status.lineage,
            postgresql: status.postgresql,
            older_restore_points: status.older_restore_points,
            problems: &status.problems,
        }
    }
}
