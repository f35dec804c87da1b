//! What `list --json` prints.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{ClusterName, Diagnostic, LineageId, PgMajor, TimelineId};
use walpoint_repo::backup::BackupStage;
use walpoint_repo::catalog::RestorePointStatus;
use walpoint_repo::catalog::status::{
    BackupStatus, ClusterStatus, DamagedLineageStatus, LineageStatus, WindowStatus,
};

use super::Sections;
use super::options::PlanOptions;
use super::read::{Listed, Unlisted};

/// What `restore-agent list --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ListDocument<'a> {
    /// When the listing was taken.
    time: Timestamp,
    /// The cluster.
    cluster: &'a ClusterName,
    /// The cluster's repositories, in the order of the configuration.
    repositories: Vec<RepositoryDocument<'a>>,
    /// The words of the command that plans a restore to the end of the archive.
    plan_command: Vec<String>,
}

walpoint_runtime::document!(ListDocument<'_>, "restore-agent list");

/// A repository. What it holds is absent if it could not be read, or if only other things are listed.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Repository")]
struct RepositoryDocument<'a> {
    /// Its name in the configuration.
    repository: &'a str,
    /// Its URL.
    url: &'a str,
    /// Why it could not be read. Absent if it could.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Option<Diagnostic>")]
    error: Option<&'a str>,
    /// The cluster's lineages, oldest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    lineages: Option<Vec<LineageDocument<'a>>>,
    /// Lineages whose description is damaged. Nothing else is known of them. Absent if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    damaged_lineages: Option<&'a [DamagedLineageStatus]>,
    /// The backups of all lineages that were not aborted, oldest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    backups: Option<Vec<&'a BackupStatus>>,
    /// Restore points that can be recovered to, by lineage, oldest first: the newest 20 of each lineage, or all if only they are listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    restore_points: Option<Vec<RestorePointDocument<'a>>>,
    /// What can be recovered, by lineage and timeline, oldest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    windows: Option<Vec<WindowDocument<'a>>>,
}

/// A lineage.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Lineage")]
struct LineageDocument<'a> {
    /// The lineage.
    lineage: LineageId,
    /// PostgreSQL's major version.
    postgresql_major: PgMajor,
    /// The number of restore points that can be recovered to and are not listed.
    older_restore_point_count: usize,
    /// What could not be read.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    errors: &'a [String],
}

/// A restore point that can be recovered to.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "RestorePoint")]
struct RestorePointDocument<'a> {
    /// The lineage in whose WAL it is.
    lineage: LineageId,
    /// What is known of it.
    #[serde(flatten)]
    point: &'a RestorePointStatus,
    /// The number of other restore points with its name that can be recovered to.
    same_name_count: usize,
    /// The options of `restore-agent plan` that recover to it.
    options: Vec<String>,
}

/// A range in which every moment can be recovered.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Window")]
struct WindowDocument<'a> {
    /// The lineage.
    lineage: LineageId,
    /// The timeline.
    timeline: TimelineId,
    /// Where it begins and ends.
    #[serde(flatten)]
    window: &'a WindowStatus,
    /// The options of `restore-agent plan`, to which a target in the window is added.
    options: Vec<String>,
}

impl<'a> ListDocument<'a> {
    /// Of what was listed.
    pub(super) fn new(
        cluster: &'a ClusterName,
        time: Timestamp,
        listed: &'a [Listed],
        options: &PlanOptions,
        sections: Sections,
    ) -> Self {
        let repositories = listed.iter().map(|one| RepositoryDocument::of(one, options, sections)).collect();
        Self { time, cluster, repositories, plan_command: options.plan() }
    }
}

impl<'a> RepositoryDocument<'a> {
    fn of(listed: &'a Listed, options: &PlanOptions, sections: Sections) -> Self {
        let status = listed.contents.as_ref().ok().map(|contents| &contents.status);
        let wanted = |is: bool| status.filter(|_| is);
        Self {
            repository: &listed.repository,
            url: &listed.url,
            error: listed.contents.as_ref().err().map(Unlisted::why),
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
    status.backups.iter().filter(|backup| backup.state != BackupStage::Aborted)
}

fn points<'a>(status: &'a ClusterStatus, options: &PlanOptions) -> Vec<RestorePointDocument<'a>> {
    let of = |lineage: &'a LineageStatus| {
        lineage.restore_points.iter().map(|point| RestorePointDocument {
            lineage: lineage.lineage,
            point,
            same_name_count: point.same_name,
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
                lineage: lineage.lineage,
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
            lineage: status.lineage,
            postgresql_major: status.postgresql_major,
            older_restore_point_count: status.older_restore_points,
            errors: &status.errors,
        }
    }
}
