//! What a backup puts on record as evidence, in each of its repositories.

use std::time::Duration;

use futures_util::future::join_all;
use walpoint_base::ClusterName;
use walpoint_repo::Repository;
use walpoint_repo::evidence::{Draft, Kind, Outcome};
use walpoint_runtime::args::Selection;
use walpoint_runtime::exit::{Failure, USAGE};
use walpoint_runtime::human;
use walpoint_storage::store::StoreSettings;
use walpoint_words::recording;

use super::preflight::Chosen;
use super::report::BackupReport;
use crate::evidence::draft;
use crate::foreign::{self, LocalCluster};

/// Records a backup that was made: where there is a copy, and that there is none elsewhere. In all repositories at once, so that one that
/// does not answer is not waited for longer than another.
pub(super) async fn made(selection: &Selection<StoreSettings>, chosen: &Chosen, report: &BackupReport) {
    let of_copy = &copy(report);
    let issues = report.failed.iter().cloned();
    let of_none =
        &Draft { seconds: Some(report.seconds), ..draft(Kind::Backup, Outcome::Failed).with_issues(issues) };
    let has_copy = |name: &str| report.repositories.iter().any(|copy| copy.repository == name);
    let opened = chosen.opened.iter().filter(|opened| chosen.names.iter().any(|name| name == opened.name()));
    let records = opened.map(|opened| {
        let said = if has_copy(opened.name()) { of_copy } else { of_none };
        recording::append(opened, selection, said)
    });
    join_all(records).await;
}

/// What is recorded beside a copy.
fn copy(report: &BackupReport) -> Draft {
    let damaged = Some(report.damaged_page_count).filter(|count| *count > 0);
    let damaged = damaged.map(|count| format!("{} damaged", human::count(count, "page")));
    let issues: Vec<String> = damaged.into_iter().chain(report.failed.iter().cloned()).collect();
    let outcome = if issues.is_empty() { Outcome::Success } else { Outcome::Partial };
    let said = draft(Kind::Backup, outcome).about([report.backup]).with_issues(issues);
    let said = match report.label.as_str() {
        "" => said,
        label => said.with_scenario(&format!("label \"{label}\"")),
    };
    Draft {
        seconds: Some(report.seconds),
        note: Some(format!(
            "{} of files, from {} on timeline {} to {} on timeline {}",
            human::size(report.file_bytes),
            report.start_lsn,
            report.start_timeline,
            report.stop_lsn,
            report.stop_timeline
        )),
        ..said
    }
}

/// Records that there is no backup, unless nothing was attempted.
pub(super) async fn failed(
    selection: &Selection<StoreSettings>,
    chosen: &Chosen,
    failure: &Failure,
    after: Duration,
) {
    if failure.status == USAGE || !selection.settings.evidence {
        return;
    }
    let said = draft(Kind::Backup, Outcome::Failed).with_issues([failure.to_string()]);
    let said = &Draft { seconds: Some(after.as_secs_f64()), ..said };
    let own = &LocalCluster::of(selection).await;
    let chosen_ones = selection.repositories.iter().filter(|(name, _)| chosen.names.contains(name));
    let records = chosen_ones.map(|(name, settings)| async move {
        let opened = chosen.opened.iter().find(|opened| opened.name() == name);
        let usable = usable((name, settings), opened, (&selection.cluster, own));
        // What is wrong with one that is none is what the backup failed by.
        if let Ok(Some(repository)) = tokio::time::timeout(recording::PATIENCE, usable).await {
            recording::append(&repository, selection, said).await;
        }
    });
    join_all(records).await;
}

/// The repository, if it can be opened and does not hold another cluster under this name: that one's evidence is not ours to continue.
async fn usable(
    (name, settings): (&str, &StoreSettings),
    opened: Option<&Repository>,
    (cluster, own): (&ClusterName, &LocalCluster),
) -> Option<Repository> {
    let repository = match opened {
        Some(opened) => opened.clone(),
        None => Repository::open(name, &settings.impatient()).await.ok()?,
    };
    foreign::refuse(&repository, cluster, own).await.ok()?;
    Some(repository)
}
