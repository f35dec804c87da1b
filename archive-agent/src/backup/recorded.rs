//! What a backup puts on record as evidence, in each of its repositories.

use std::time::Duration;

use futures_util::future::join_all;
use walpoint_repo::evidence::{Draft, Kind, Outcome};
use walpoint_runtime::args::Selection;
use walpoint_runtime::exit::{Failure, USAGE};
use walpoint_runtime::human;
use walpoint_storage::store::StoreSettings;

use super::report::BackupReport;
use crate::evidence::automatic::{append_if_known, draft};

/// Records a backup that was made: where there is a copy, and that there is none elsewhere.
pub(super) async fn made(selection: &Selection<StoreSettings>, names: &[String], report: &BackupReport) {
    let of_copy = copy(report);
    let issues = report.failed.iter().cloned();
    let of_none =
        Draft { seconds: Some(report.seconds), ..draft(Kind::Backup, Outcome::Failed).with_issues(issues) };
    let has_copy = |name: &str| report.repositories.iter().any(|copy| copy.repository == name);
    record(selection, names, |name| if has_copy(name) { &of_copy } else { &of_none }).await;
}

/// Records in all repositories at once: one that does not answer is not waited for longer than another.
async fn record<'a>(
    selection: &Selection<StoreSettings>,
    names: &[String],
    said: impl Fn(&str) -> &'a Draft,
) {
    let repositories = selection.repositories.iter().filter(|(name, _)| names.contains(name));
    let records = repositories
        .map(|(name, settings)| append_if_known((name, settings), &selection.cluster, said(name)));
    join_all(records).await;
}

/// What is recorded beside a copy.
fn copy(report: &BackupReport) -> Draft {
    let damaged = Some(report.damaged_page_count).filter(|count| *count > 0);
    let damaged = damaged.map(|count| format!("{} damaged", human::count(count, "page")));
    let issues: Vec<String> = damaged.into_iter().chain(report.failed.iter().cloned()).collect();
    let outcome = if issues.is_empty() { Outcome::Success } else { Outcome::Partial };
    let label = Some(&report.label).filter(|label| !label.is_empty());
    Draft {
        seconds: Some(report.seconds),
        scenario: label.map(|label| format!("label \"{label}\"")),
        note: Some(format!(
            "{} of files, from {} on timeline {} to {} on timeline {}",
            human::size(report.file_bytes),
            report.start_lsn,
            report.start_timeline,
            report.stop_lsn,
            report.stop_timeline
        )),
        ..draft(Kind::Backup, outcome).about([report.backup]).with_issues(issues)
    }
}

/// Records that there is no backup, unless nothing was attempted.
pub(super) async fn failed(
    selection: &Selection<StoreSettings>,
    names: &[String],
    failure: &Failure,
    after: Duration,
) {
    if failure.status == USAGE {
        return;
    }
    let draft = draft(Kind::Backup, Outcome::Failed).with_issues([failure.to_string()]);
    let said = Draft { seconds: Some(after.as_secs_f64()), ..draft };
    record(selection, names, |_| &said).await;
}
