//! The command `drill`: proves that the cluster restores, by restoring it.
//!
//! | module | owns |
//! |---|---|
//! | [`check_file`], [`expectation`] | the checks that a person asks for, and whether an answer is what they expect |
//! | [`run_check`], [`amcheck`], [`pages`] | making them, and those that every drill makes |
//! | [`outcome`] | what became of a check |
//! | [`tables`] | the largest tables and their rows |
//! | [`measure`] | recovery time and recovery point against their targets |
//! | [`document`], [`text`], [`html`] | what was found, as JSON, for a person, and as a page |
//! | [`recorded`] | what is put on record as evidence |
//!
//! The copy itself is a scratch instance ([`crate::scratch`]). What always holds: it is stopped and removed whatever comes of the
//! drill, unless a person asked to keep it. A kill leaves it to the next drill in the same place. To a repository, nothing
//! is written but the record. A page of an earlier drill does not outlive one that could not be made.

mod amcheck;
mod check_file;
mod document;
mod expectation;
mod html;
mod measure;
mod outcome;
mod pages;
mod recorded;
mod run_check;
mod tables;
mod text;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use walpoint_base::durable;
use walpoint_runtime::args::{self, CommonArgs, Selection};
use walpoint_runtime::exit::{FINDINGS, Failure};
use walpoint_runtime::{help, output, shutdown};
use walpoint_storage::store::StoreSettings;

use self::check_file::{Check, Subject};
use self::document::{CheckDocument, DrillDocument, DrillReport, DrillResult, TableDocument};
use self::measure::Measured;
use self::outcome::{CheckKind, CheckResult, Outcome};
use self::tables::Table;
use crate::list;
use crate::plan::{self, CommandLine, Planned};
use crate::scratch::{
    Instance, Moment, OpenMoment, Reached, SCRATCH, ScratchArgs, ScratchRequest, ScratchRestore,
};
use crate::target::TargetArgs;

/// The heading of the options about what is checked.
const CHECKS: &str = "Checks";
/// No heading.
const NONE: Option<&str> = None;

const EXAMPLES: &[(&str, &str)] = &[
    ("Test that everything in the archive can be recovered", "restore-agent drill"),
    (
        "Check the data, and how long a recovery takes and what it loses",
        "restore-agent drill --rto 1h --rpo 5m \\\n          --check \"select count(*) > 1000 from public.orders\"",
    ),
    (
        "Run a file of checks on yesterday's data, and write a page about it",
        "restore-agent drill --target-time \"1 day ago\" \\\n          --checks /etc/walpoint/checks.toml --report /var/www/drill.html",
    ),
    ("Keep the copy to look into it", "restore-agent drill --keep --directory /srv/drill"),
];

/// Options of `drill`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct DrillArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    scratch: ScratchArgs,
    /// Run --check and --checks with the rights of this role [default: the superuser's].
    #[arg(long, value_name = "ROLE", help_heading = SCRATCH)]
    role: Option<String>,
    /// Keep the scratch directory, with its server stopped, and print how to start it.
    #[arg(long, help_heading = SCRATCH)]
    keep: bool,
    /// Require that this query answers true. Can be repeated.
    #[arg(long = "check", value_name = "SQL", help_heading = CHECKS)]
    queries: Vec<String>,
    /// Run the checks in this file (TOML).
    #[arg(long, value_name = "FILE", help_heading = CHECKS)]
    checks: Option<PathBuf>,
    /// Leave out a check that every drill makes. Can be repeated.
    #[arg(long, value_name = "CHECK", help_heading = CHECKS)]
    skip: Vec<Skipped>,
    /// Fail if it takes longer than this until the last check has passed (recovery time).
    #[arg(long, value_name = "SPAN", value_parser = args::span, help_heading = CHECKS)]
    rto: Option<Duration>,
    /// Fail if the newest commit that can be recovered is older than this (recovery point).
    #[arg(long, value_name = "SPAN", value_parser = args::span, help_heading = CHECKS)]
    rpo: Option<Duration>,
    /// Write a report to this file, as an HTML page.
    #[arg(long, value_name = "FILE", help_heading = NONE)]
    report: Option<PathBuf>,
}

/// What every drill looks at unless it is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Skipped {
    /// Structure of tables and indexes, with pg_amcheck.
    Amcheck,
    /// Checksums of all data pages.
    PageChecksums,
    /// Sizes and rows of the largest tables.
    Tables,
}

/// What was found on the instance.
#[derive(Debug, Default)]
struct Findings {
    checks: Vec<CheckResult>,
    tables: Vec<Table>,
    notes: Vec<String>,
}

/// A drill under way.
struct Drill<'a> {
    common: &'a CommonArgs,
    args: &'a DrillArgs,
    checks: Vec<Check>,
    began: Instant,
    started: Timestamp,
}

/// Runs the command.
pub(crate) async fn run(common: &CommonArgs, args: &DrillArgs) -> Result<(), Failure> {
    let (began, started) = (Instant::now(), Timestamp::now());
    let failure = match prepare_and_run(common, args, (began, started)).await {
        Ok(Drilled { closed, result }) => return ended(result, closed),
        Err(failure) => failure,
    };
    if let Some(file) = &args.report {
        let selection: Option<Selection<StoreSettings>> = common.select_to_read().ok();
        let cluster = selection.map(|selection| selection.cluster);
        let why = walpoint_words::format_chain(&failure.error);
        if let Err(error) = write_page(file, &html::not_run(cluster.as_ref(), started, &why)) {
            tracing::warn!("{}", walpoint_words::format_chain(&error));
        }
    }
    Err(failure)
}

/// What became of a drill that was made.
struct Drilled {
    /// Whether the copy was removed, or kept as it was asked for.
    closed: anyhow::Result<()>,
    /// What the drill itself ends with.
    result: Result<(), Failure>,
}

/// What a drill ends with: its own failure says more than what became of the copy.
fn ended(result: Result<(), Failure>, closed: anyhow::Result<()>) -> Result<(), Failure> {
    result.and_then(|()| Ok(closed.context("the drill was made, and its copy could not be removed")?))
}

/// Makes the drill. An error: it could not be made.
async fn prepare_and_run(
    common: &CommonArgs,
    args: &DrillArgs,
    (began, started): (Instant, Timestamp),
) -> Result<Drilled, Failure> {
    let mut checks: Vec<Check> = args.queries.iter().map(|sql| Check::of_query(sql)).collect();
    if let Some(file) = &args.checks {
        checks.extend(check_file::read(file).map_err(Failure::usage)?);
    }
    let drill = Drill { common, args, checks, began, started };
    let request = args.scratch.request(&args.target, started)?;
    let request = ScratchRequest { role: args.role.clone(), keep: args.keep, ..request };
    let interrupted = shutdown::on_signal()?;
    let mut scratch = ScratchRestore::new(common, request);
    let stopped = || Failure::from(anyhow!("the drill was interrupted"));
    let planned = tokio::select! {
        planned = scratch.plan() => planned,
        () = interrupted.cancelled() => return Err(stopped()),
    };
    let planned = match planned {
        Ok(planned) => planned,
        Err(no_plan) => return Err(plan::refused(common, no_plan)),
    };
    let mut subject = planned.clone();
    let drilled = tokio::select! {
        drilled = drill.carry_out(&mut scratch, planned) => drilled,
        () = interrupted.cancelled() => Err(stopped()),
    };
    let closed = scratch.close().await;
    if let Err(left) = &closed {
        tracing::warn!("{}", walpoint_words::format_chain(left));
    }
    // It may be another backup than the planned one, if that is damaged.
    if let Some(restored) = scratch.restored() {
        subject = restored.planned.clone();
    }
    match drilled {
        Ok(mut report) => {
            if let Ok(Some(kept)) = &closed {
                report.keep(kept);
            }
            let printed = drill.print(&report);
            recorded::drilled(common, &subject, &report).await;
            Ok(Drilled { closed: closed.map(drop), result: verdict(&report, printed) })
        }
        Err(failure) => {
            if let Ok(Some(kept)) = &closed {
                tracing::warn!("\"{}\" was kept", kept.directory.display());
            }
            if !interrupted.is_cancelled() {
                recorded::failed(common, &subject, &failure, began.elapsed()).await;
            }
            Err(failure)
        }
    }
}

/// What a drill ends with. A report that could not be printed or written changes nothing of what was found.
fn verdict(report: &DrillReport, printed: Result<(), Failure>) -> Result<(), Failure> {
    if report.result == DrillResult::Passed {
        return printed;
    }
    if let Err(failure) = printed {
        tracing::warn!("{}", walpoint_words::format_chain(&failure.error));
    }
    let error = anyhow!(failed_by(report.failed(), report.missed.len()));
    Err(Failure { status: FINDINGS, error })
}

fn write_page(file: &Path, page: &str) -> anyhow::Result<()> {
    durable::replace(file, page.as_bytes(), 0o644)
        .with_context(|| format!("could not write --report {}", file.display()))
}

/// By what a drill failed.
fn failed_by(failed: usize, missed: usize) -> String {
    let count = |count: usize, one: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        _ => Some(format!("{count} {one}s")),
    };
    let parts = [
        count(failed, "check").map(|checks| format!("{checks} failed")),
        count(missed, "target").map(|targets| format!("{targets} missed")),
    ];
    format!("the drill failed: {}", parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

impl Drill<'_> {
    /// Opens the copy, checks it, and stops it.
    async fn carry_out(
        &self,
        scratch: &mut ScratchRestore<'_>,
        planned: Planned,
    ) -> Result<DrillReport, Failure> {
        let instance = scratch.open(planned).await?;
        let checking = Instant::now();
        let mut findings = self.look_into(&instance, scratch).await;
        let listing = Instant::now();
        if !self.args.skip.contains(&Skipped::Tables) {
            let largest = tables::largest(&instance).await;
            findings.checks.push(CheckResult {
                kind: CheckKind::Tables,
                name: "the largest tables can be read".to_owned(),
                database: None,
                outcome: largest.outcome(),
                took: listing.elapsed(),
            });
            findings.tables = largest.tables;
            findings.notes.extend(largest.notes);
        }
        // How many rows are counted depends on a limit of time, so it is no part of the recovery time.
        let listed = listing.elapsed();
        findings.checks.extend(self.stop(scratch, &instance).await?);
        let ended = self.began.elapsed().saturating_sub(listed);
        let took = checking.elapsed().saturating_sub(listed);
        self.report(scratch, &instance, findings, (ended, took)).await
    }

    /// Stops the server, and makes the checks for which it has to be stopped.
    async fn stop(
        &self,
        scratch: &mut ScratchRestore<'_>,
        instance: &Instance,
    ) -> Result<Vec<CheckResult>, Failure> {
        let mut checks = Vec::new();
        let began = Instant::now();
        let is_verified = !self.args.skip.contains(&Skipped::PageChecksums);
        let is_paused = instance.position.is_in_recovery;
        // What a server in recovery did not write is in its files as the backup read it, perhaps torn.
        let promoted = match is_verified && is_paused && !self.args.keep {
            true => instance.promote().await,
            false => Ok(()),
        };
        scratch.stop().await?;
        let shut_down = scratch.require_shut_down();
        if let Err(error) = &shut_down {
            checks.push(CheckResult {
                kind: CheckKind::Server,
                name: "the server ran until it was shut down".to_owned(),
                database: None,
                outcome: Outcome::Failed(walpoint_words::format_chain(error)),
                took: began.elapsed(),
            });
        }
        if is_verified {
            let outcome = match (shut_down, promoted) {
                (Err(_), _) => Outcome::Failed(
                    "not verified, because the server has not shut down in order and written all pages".to_owned(),
                ),
                (_, Err(error)) => Outcome::Failed(walpoint_words::format_chain(&error)),
                _ if is_paused && self.args.keep => Outcome::Skipped(
                    "--keep leaves the copy paused at the target, and a server in recovery does not write all pages"
                        .to_owned(),
                ),
                _ => pages::outcome(scratch.pgdata().context("nothing was restored")?).await?,
            };
            checks.push(CheckResult {
                kind: CheckKind::PageChecksums,
                name: "page checksums are right".to_owned(),
                database: None,
                outcome,
                took: began.elapsed(),
            });
        }
        Ok(checks)
    }

    /// Makes the checks that need the server.
    async fn look_into(&self, instance: &Instance, scratch: &ScratchRestore<'_>) -> Findings {
        let mut findings = Findings::default();
        let outcome = match &instance.reached {
            Reached::Target if instance.position.is_in_recovery => {
                Outcome::Passed(Some("paused there".into()))
            }
            Reached::Target => Outcome::Passed(None),
            Reached::Elsewhere(where_it_ended) => Outcome::Failed(where_it_ended.clone()),
        };
        findings.checks.push(CheckResult {
            kind: CheckKind::Recovery,
            name: "recovery reached the target".to_owned(),
            database: None,
            outcome,
            took: scratch.spans().recovery,
        });
        if let Some(programs) = scratch.programs().filter(|_| !self.args.skip.contains(&Skipped::Amcheck)) {
            let began = Instant::now();
            let outcome = amcheck::run(instance, programs, scratch.user()).await;
            findings.checks.push(CheckResult {
                kind: CheckKind::Amcheck,
                name: "tables and indexes are sound (pg_amcheck)".to_owned(),
                database: None,
                outcome,
                took: began.elapsed(),
            });
        }
        for check in &self.checks {
            let began = Instant::now();
            let outcome = match run_check::run(check, instance, scratch.user()).await {
                Ok(()) => Outcome::Passed(None),
                Err(error) => Outcome::Failed(walpoint_words::format_chain(&error)),
            };
            let (kind, database) = match &check.subject {
                Subject::Query { database, .. } => (CheckKind::Query, database.clone()),
                Subject::Command(_) => (CheckKind::Command, None),
            };
            let (name, took) = (check.name.clone(), began.elapsed());
            findings.checks.push(CheckResult { kind, name, database, outcome, took });
        }
        findings
    }

    /// The report. `ended`: how long everything to the last check took; `took`: the checks alone.
    async fn report(
        &self,
        scratch: &ScratchRestore<'_>,
        instance: &Instance,
        findings: Findings,
        (ended, took): (Duration, Duration),
    ) -> Result<DrillReport, Failure> {
        let restored = scratch.restored().context("nothing was restored")?;
        let planned = &restored.planned;
        let selection: Selection<StoreSettings> = self.common.select_to_read()?;
        let known = list::newest_commit(&selection, planned.lineage.id, planned.plan.timeline).await;
        let newest = measure::newest_commit(planned, instance, known);
        let has_failed = findings.checks.iter().any(CheckResult::has_failed);
        let measured = Measured {
            rto: (!has_failed).then_some(ended),
            rpo: newest.map(|newest| measure::since(newest, self.started)),
        };
        let missed = measured.missed(self.args.rto, self.args.rpo, has_failed);
        let spans = scratch.spans();
        let before = ended.saturating_sub(took).saturating_sub(spans.restore).saturating_sub(spans.recovery);
        let mut notes = planned.notes(&CommandLine::given());
        notes.extend(scratch.notes().iter().cloned());
        notes.extend(findings.notes);
        Ok(DrillReport {
            result: if has_failed || !missed.is_empty() { DrillResult::Failed } else { DrillResult::Passed },
            moment: Moment::of(planned, instance),
            server_version: scratch.programs().map(|programs| programs.version.clone()).unwrap_or_default(),
            start_time: self.started,
            end_time: Timestamp::now(),
            file_count: restored.file_count,
            restored_bytes: restored.written_bytes,
            plan_seconds: before.as_secs_f64(),
            restore_seconds: spans.restore.as_secs_f64(),
            recovery_seconds: spans.recovery.as_secs_f64(),
            check_seconds: took.as_secs_f64(),
            rto_seconds: measured.rto.map(|rto| rto.as_secs_f64()),
            rto_target_seconds: self.args.rto.map(|rto| rto.as_secs_f64()),
            rpo_seconds: measured.rpo.map(|rpo| rpo.as_secs_f64()),
            rpo_target_seconds: self.args.rpo.map(|rpo| rpo.as_secs_f64()),
            newest_commit_time: newest,
            checks: findings.checks.iter().map(CheckDocument::of).collect(),
            missed,
            tables: findings.tables.iter().map(TableDocument::of).collect(),
            notes,
            directory: None,
            start_command: None,
        })
    }

    /// Prints the report, and writes the page.
    fn print(&self, report: &DrillReport) -> Result<(), Failure> {
        // The page is written also where nothing can be printed.
        let written = self.args.report.as_ref().map_or(Ok(()), |file| write_page(file, &html::page(report)));
        match self.common.json {
            true => output::json(&DrillDocument::Drilled(report))?,
            false => output::text(&text::report(report))?,
        }
        Ok(written?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_drill_found_counts_before_what_became_of_its_copy() {
        let found = || Err(Failure { status: FINDINGS, error: anyhow!("the drill failed: 1 check failed") });
        let left = || Err(anyhow!("could not remove the scratch directory"));
        assert_eq!(ended(found(), left()).unwrap_err().status, FINDINGS);
        assert_eq!(ended(found(), Ok(())).unwrap_err().status, FINDINGS);
        let failure = ended(Ok(()), left()).unwrap_err();
        assert_ne!(failure.status, FINDINGS);
        assert!(format!("{:#}", failure.error).contains("could not remove"), "{:#}", failure.error);
        assert!(ended(Ok(()), Ok(())).is_ok());
    }
}
