//! What a backup puts on record as evidence, in each of its repositories.

use std::time::Duration;

use futures_util::future::join_all;
use walpoint_repo::evidence::{Draft, Kind, Outcome};
use walpoint_runtime::args::Selection;
use walpoint_runtime::exit::{Failure, USAGE};
use walpoint_runtime::human;
use walpoint_storage::store::StoreSettings;
use walpoint_words::recording;

use super::preflight::Chosen;
use super::report::BackupReport;
use crate::evidence::draft;

/// Records a backup that was made: where there is a copy, and that there is none elsewhere.
pub(super) async fn made(selection: &Selection<StoreSettings>, chosen: &Chosen, report: &BackupReport) {
    let of_copy = copy(report);
    let issues = report.failed.iter().cloned();
    let of_none =
        Draft { seconds: Some(report.seconds), ..draft(Kind::Backup, Outcome::Failed).with_issues(issues) };
    let has_copy = |name: &str| report.repositories.iter().any(|copy| copy.repository == name);
    record(selection, chosen, |name| if has_copy(name) { &of_copy } else { &of_none }).await;
}

/// Records in all repositories at once: one that does not answer is not waited for longer than another.
async fn record<'a>(selection: &Selection<StoreSettings>, chosen: &Chosen, said: impl Fn(&str) -> &'a Draft) {
    let said = &said;
    let chosen_ones = selection.repositories.iter().filter(|(name, _)| chosen.names.contains(name));
    let records = chosen_ones.map(|(name, settings)| async move {
        match chosen.opened.iter().find(|opened| opened.name() == name) {
            Some(opened) => recording::append(opened, selection, said(name)).await,
            None => recording::append_opening((name, settings), selection, said(name)).await,
        }
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
    if failure.status == USAGE {
        return;
    }
    let draft = draft(Kind::Backup, Outcome::Failed).with_issues([failure.to_string()]);
    let said = Draft { seconds: Some(after.as_secs_f64()), ..draft };
    record(selection, chosen, |_| &said).await;
}
