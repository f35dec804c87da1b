//! What a restore puts on record as evidence, in the repository from which the files came.

use walpoint_repo::evidence::{Draft, Kind, Outcome};
use walpoint_runtime::args::CommonArgs;
use walpoint_storage::store::StoreSettings;
use walpoint_words::{format_chain, recording};

use super::RestoreArgs;
use super::report::RestoreReport;
use crate::plan::Planned;

/// Records how an attempt ended. What was refused before anything was written is none.
pub(super) async fn ended(
    common: &CommonArgs,
    args: &RestoreArgs,
    planned: &Planned,
    restored: &anyhow::Result<RestoreReport>,
) {
    let outcome = if restored.is_ok() { Outcome::Success } else { Outcome::Failed };
    let said = Draft {
        lineage: Some(planned.lineage.id),
        target: Some(planned.plan.target.to_string()),
        seconds: restored.as_ref().ok().map(RestoreReport::seconds),
        ..crate::evidence(Kind::Restore, outcome)
    };
    let place = match restored {
        Ok(report) => report.place(),
        Err(_) => args.pgdata.display().to_string(),
    };
    let issue = restored.as_ref().err().map(format_chain);
    let said = said.about([planned.plan.backup.id]).with_scenario(scenario(args)).with_note(&place);
    // It was selected a moment ago.
    let Ok(selection) = common.select_to_read::<StoreSettings>() else { return };
    recording::append(&planned.files_from, &selection, &said.with_issues(issue)).await;
}

fn scenario(args: &RestoreArgs) -> &'static str {
    match (args.delta, args.replace) {
        (true, _) => "repair of a data directory",
        (false, true) => "replacement of a data directory",
        (false, false) => "a new data directory",
    }
}
