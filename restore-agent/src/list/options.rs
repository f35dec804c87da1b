//! The options of `plan` that lead to what is listed.

use std::collections::{BTreeMap, BTreeSet};

use walpoint_base::facts::is_exact_name;
use walpoint_base::{LineageId, TimelineId};
use walpoint_repo::catalog::RestorePointStatus;
use walpoint_repo::catalog::status::LineageStatus;
use walpoint_runtime::args::CommonArgs;

use super::read::Listed;

/// What every plan of the cluster needs.
#[derive(Debug, Clone, Default)]
pub(super) struct PlanOptions {
    /// The options that select the cluster and its repositories, as they were given.
    pub(super) selection: Vec<String>,
    /// Whether the cluster has several lineages in these repositories.
    pub(super) several_lineages: bool,
    /// The timelines of each lineage in any of these repositories: a plan reads all of them.
    timelines: BTreeMap<LineageId, BTreeSet<TimelineId>>,
}

impl PlanOptions {
    /// For a plan in the repositories that were listed.
    pub(super) fn of(common: &CommonArgs, listed: &[Listed]) -> Self {
        let mut selection = Vec::new();
        let mut option = |name: &str, value: String| selection.extend([name.to_owned(), value]);
        if let Some(config) = common.given_config() {
            // The command line is run elsewhere.
            let config = std::path::absolute(config).unwrap_or_else(|_| config.to_owned());
            option("--config", config.display().to_string());
        }
        common.repo.iter().for_each(|repo| option("--repo", repo.to_string()));
        if let Some(cluster) = &common.cluster {
            option("--cluster", cluster.to_string());
        }
        let known = listed.iter().filter_map(|repository| repository.contents.as_ref().ok());
        let readable = known.clone().flat_map(|one| one.status.lineages.iter().map(|l| l.lineage));
        let damaged = known.clone().flat_map(|one| one.status.damaged_lineages.iter().map(|l| l.lineage));
        let lineages: BTreeSet<LineageId> = readable.chain(damaged).collect();
        let mut timelines: BTreeMap<LineageId, BTreeSet<TimelineId>> = BTreeMap::new();
        for lineage in known.flat_map(|one| &one.status.lineages) {
            let its = timelines.entry(lineage.lineage).or_default();
            its.extend(lineage.timelines.iter().map(|timeline| timeline.timeline));
        }
        Self { selection, several_lineages: lineages.len() > 1, timelines }
    }

    /// The words of the command line that plans a restore to the end of the archive.
    pub(super) fn plan(&self) -> Vec<String> {
        let command = ["restore-agent", "plan"].map(str::to_owned);
        command.into_iter().chain(self.selection.iter().cloned()).collect()
    }

    /// What chooses a timeline of a lineage, where there are several.
    pub(super) fn on_timeline(&self, lineage: &LineageStatus, timeline: TimelineId) -> Vec<String> {
        let mut options = Vec::new();
        if self.several_lineages {
            options.extend(["--lineage".to_owned(), lineage.lineage.to_string()]);
        }
        if self.timelines.get(&lineage.lineage).is_some_and(|timelines| timelines.len() > 1) {
            options.extend(["--target-timeline".to_owned(), timeline.to_string()]);
        }
        options
    }

    /// What recovers to a restore point: its position, where its name means several, cannot be typed or is no UTF-8.
    pub(super) fn to_point(&self, lineage: &LineageStatus, point: &RestorePointStatus) -> Vec<String> {
        let mut options = self.on_timeline(lineage, point.timeline);
        let name = &point.name;
        if point.same_name > 0 || !is_exact_name(name) || name.chars().any(char::is_control) {
            options.extend(["--target-lsn".to_owned(), point.lsn.to_string()]);
        } else if name.starts_with('-') {
            options.push(format!("--target-name={name}"));
        } else {
            options.extend(["--target-name".to_owned(), name.clone()]);
        }
        options
    }
}
