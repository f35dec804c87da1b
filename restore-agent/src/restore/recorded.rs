//! What a restore puts on record as evidence, in the repository from which the files came.

use walpoint_repo::evidence::{Draft, Kind, Outcome};
use walpoint_runtime::args::CommonArgs;
use walpoint_storage::store::StoreSettings;
use walpoint_words::{format_chain, recording};

use super::RestoreArgs;
use super::report::RestoreReport;
use super::started::{self, Started};
use crate::plan::Planned;

/// What came of a restore, and of its server, if that was to be started.
type Came<'a> = (&'a anyhow::Result<RestoreReport>, Option<&'a anyhow::Result<Started>>);

/// Records how an attempt ended. What was refused before anything was written is none. A server that did not arrive, or failed a check,
/// leaves a part: the cluster was restored.
pub(super) async fn ended(
    common: &CommonArgs,
    args: &RestoreArgs,
    planned: &Planned,
    (restored, started): Came<'_>,
) {
    let outcome = match (restored, started) {
        (Err(_), _) => Outcome::Failed,
        (Ok(_), Some(Err(_) | Ok(Started { failure: Some(_), .. }))) => Outcome::Partial,
        (Ok(_), None | Some(Ok(_))) => Outcome::Success,
    };
    let server = started.and_then(|started| started.as_ref().ok());
    let said = Draft {
        lineage: Some(planned.lineage.id),
        target: Some(planned.plan.target.to_string()),
        seconds: restored.as_ref().ok().map(|report| started::seconds(report.seconds(), server)),
        ..crate::evidence(Kind::Restore, outcome)
    };
    let place = match restored {
        Ok(report) => report.place(),
        Err(_) => args.pgdata.display().to_string(),
    };
    let place = server.map_or_else(|| place.clone(), |server| format!("{place}; {}", server.summary()));
    let mut issues: Vec<String> = server.map(Started::issues).unwrap_or_default();
    let not_started = started.and_then(|started| started.as_ref().err());
    issues.extend(restored.as_ref().err().or(not_started).map(format_chain));
    let said = said.about([planned.plan.backup.id]).with_scenario(scenario(args)).with_note(&place);
    // It was selected a moment ago.
    let Ok(selection) = common.select_to_read::<StoreSettings>() else { return };
    recording::append(&planned.files_from, &selection, &said.with_issues(issues)).await;
}

fn scenario(args: &RestoreArgs) -> &'static str {
    match (args.delta, args.replace) {
        (true, _) => "repair of a data directory",
        (false, true) => "replacement of a data directory",
        (false, false) => "a new data directory",
    }
}
