//! What a drill puts on record as evidence: in the repository from which the files came, or where none came, in all that can be opened.

use std::time::Duration;

use futures_util::future::join_all;
use walpoint_repo::evidence::{Draft, Kind, Objective, Outcome};
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::Failure;
use walpoint_runtime::human;
use walpoint_storage::store::StoreSettings;
use walpoint_words::{format_chain, recording};

use super::DrillArgs;
use super::document::DrillReport;
use crate::checks::CheckOutcome;
use crate::plan::Planned;

/// What was rehearsed.
const CHECKS: &str = "restore, recovery and checks in a scratch directory";
const EXTRACTION: &str = "restore, recovery and an extraction in a scratch directory";

/// The options of a drill.
type Options<'a> = (&'a CommonArgs, &'a DrillArgs);

/// Records what was found.
pub(super) async fn drilled(options: Options<'_>, planned: &Planned, report: &DrillReport) {
    record(options, planned, said(report)).await;
}

/// Records that it could not be finished.
pub(super) async fn failed(options: Options<'_>, planned: &Planned, failure: &Failure, after: Duration) {
    let said = crate::evidence(Kind::Drill, Outcome::Failed).with_issues([format_chain(&failure.error)]);
    record(options, planned, Draft { seconds: Some(after.as_secs_f64()), ..said }).await;
}

/// Records that it could not run, because there is no plan or nothing says what to check. Only what was asked for is known.
pub(super) async fn not_run((common, args): Options<'_>, target: &str, failure: &Failure, after: Duration) {
    let Ok(selection) = common.select_to_read::<StoreSettings>() else { return };
    let said = crate::evidence(Kind::Drill, Outcome::Failed).with_issues([format_chain(&failure.error)]);
    let said = Draft { seconds: Some(after.as_secs_f64()), target: Some(target.to_owned()), ..said };
    let said = rehearsed(args, said);
    let repositories = selection.repositories.iter();
    let records =
        repositories.map(|(name, settings)| recording::append_in((name, settings), &selection, &said));
    join_all(records).await;
}

async fn record((common, args): Options<'_>, planned: &Planned, said: Draft) {
    let said = Draft {
        lineage: Some(planned.lineage.id),
        target: Some(planned.plan.target.to_string()),
        ..rehearsed(args, said).about([planned.plan.backup.id])
    };
    // It was selected a moment ago.
    let Ok(selection) = common.select_to_read::<StoreSettings>() else { return };
    recording::append(&planned.files_from, &selection, &said).await;
}

/// Says what was rehearsed, and by which scenario. A run that the command line changed is no run of the scenario: only the words have its name.
fn rehearsed(args: &DrillArgs, said: Draft) -> Draft {
    let what = if args.extraction.is_some() { EXTRACTION } else { CHECKS };
    match (&args.scenario, &args.changed_by[..]) {
        (None, _) => said.with_scenario(what),
        (Some(name), []) => Draft { scenario_name: Some(name.to_string()), ..said.with_scenario(what) },
        (Some(name), options) => {
            said.with_scenario(&format!("{what}; scenario {name}, changed by {}", options.join(", ")))
        }
    }
}

/// What the report says. Only missed targets leave a part: the copy was sound.
fn said(report: &DrillReport) -> Draft {
    let outcome = match (report.failed(), report.missed.is_empty()) {
        (0, true) => Outcome::Success,
        (0, false) => Outcome::Partial,
        _ => Outcome::Failed,
    };
    let of = |result| report.checks.iter().filter(move |check| check.result == result);
    let failed = of(CheckOutcome::Failed)
        .map(|check| format!("{}: {}", check.name, check.message.as_deref().unwrap_or("failed")));
    let objective = |target, measured: Option<f64>| measured.map(|measured| Objective::of(target, measured));
    let took = report.end_time.duration_since(report.start_time).as_secs_f64();
    let said = Draft {
        seconds: Some(took.max(0.0)),
        rto: objective(report.rto_target_seconds, report.rto_seconds),
        rpo: objective(report.rpo_target_seconds, report.rpo_seconds),
        ..crate::evidence(Kind::Drill, outcome)
    };
    let note = format!(
        "{} passed, {} failed, {} skipped; replayed to {} by PostgreSQL {}",
        human::count(of(CheckOutcome::Passed).count() as u64, "check"),
        report.failed(),
        of(CheckOutcome::Skipped).count(),
        report.moment.replayed_lsn,
        report.server_version
    );
    said.with_note(&note).with_issues(failed.chain(report.missed.iter().cloned()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: DrillArgs,
    }

    #[test]
    fn a_run_that_the_command_line_changed_is_none_of_the_scenario() {
        let said = |line: &[&str], scenario: Option<&str>| {
            let mut args = Line::try_parse_from([&["drill"], line].concat()).unwrap().args;
            if let Some(text) = scenario {
                args = args.over(&"nightly".parse().unwrap(), &toml::from_str(text).unwrap());
            }
            let said = rehearsed(&args, crate::evidence(Kind::Drill, Outcome::Success));
            (said.scenario_name, said.scenario.unwrap())
        };
        let (pitr, extract) = ("kind = \"pitr\"", "kind = \"extract\"\ndatabase = \"shop\"");
        let nightly = Some("nightly".to_owned());
        assert_eq!(said(&["--rto", "1h"], None), (None, CHECKS.to_owned()));
        assert_eq!(said(&["--report", "r"], Some(pitr)), (nightly.clone(), CHECKS.to_owned()));
        assert_eq!(said(&[], Some(extract)), (nightly, EXTRACTION.to_owned()));
        let line = ["--target-immediate", "--skip", "amcheck", "--rto", "100h"];
        let changed = format!("{CHECKS}; scenario nightly, changed by --target-immediate, --skip, --rto");
        assert_eq!(said(&line, Some(pitr)), (None, changed));
    }
}
