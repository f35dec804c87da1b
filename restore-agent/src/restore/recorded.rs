//! What a restore puts on record as evidence, in the repository from which the files came.

use walpoint_repo::evidence::{Draft, Kind, Outcome};
use walpoint_runtime::args::CommonArgs;
use walpoint_storage::store::StoreSettings;
use walpoint_words::{format_chain, recording};

use super::RestoreArgs;
use super::report::RestoreReport;
use super::started::Started;
use crate::plan::Planned;

/// Records how an attempt ended. What was refused before anything was written is none.
pub(super) async fn ended(
    common: &CommonArgs,
    args: &RestoreArgs,
    planned: &Planned,
    restored: &anyhow::Result<RestoreReport>,
) {
    let draft = match restored {
        Ok(report) => {
            let said = draft(planned, Outcome::Success).with_note(&report.place());
            Draft { seconds: Some(report.seconds()), ..said }
        }
        Err(error) => draft(planned, Outcome::Failed)
            .with_note(&args.pgdata.display().to_string())
            .with_issues([format_chain(error)]),
    };
    append(common, planned, &draft.with_scenario(scenario(args))).await;
}

/// Records what became of the server of a restore that is on record, where there is more to say: checks were made, or it has not arrived.
/// Then it is a part: the cluster was restored.
pub(super) async fn started(
    common: &CommonArgs,
    planned: &Planned,
    report: &RestoreReport,
    started: &anyhow::Result<Started>,
) {
    let draft = match started {
        Ok(started) if !started.is_notable() => return,
        Ok(started) => {
            let outcome = if started.failure.is_some() { Outcome::Partial } else { Outcome::Success };
            let note = format!("{}; {}", report.place(), started.summary());
            let said = draft(planned, outcome).with_note(&note).with_issues(started.issues());
            Draft { seconds: Some(started.document.seconds()), ..said }
        }
        Err(error) => {
            draft(planned, Outcome::Partial).with_note(&report.place()).with_issues([format_chain(error)])
        }
    };
    append(common, planned, &draft.with_scenario("the server of a restore")).await;
}

fn draft(planned: &Planned, outcome: Outcome) -> Draft {
    let said = Draft {
        lineage: Some(planned.lineage.id),
        target: Some(planned.plan.target.to_string()),
        ..crate::evidence(Kind::Restore, outcome)
    };
    said.about([planned.plan.backup.id])
}

async fn append(common: &CommonArgs, planned: &Planned, draft: &Draft) {
    // It was selected a moment ago.
    let Ok(selection) = common.select_to_read::<StoreSettings>() else { return };
    recording::append(&planned.files_from, &selection, draft).await;
}

fn scenario(args: &RestoreArgs) -> &'static str {
    match (args.delta, args.replace) {
        (true, _) => "repair of a data directory",
        (false, true) => "replacement of a data directory",
        (false, false) => "a new data directory",
    }
}
