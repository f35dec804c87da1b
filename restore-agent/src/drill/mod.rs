//! The command `drill`: proves that the cluster restores, by restoring it.
//!
//! | module | owns |
//! |---|---|
//! | [`options`] | the command line, alone and over a scenario of the configuration |
//! | [`scenarios`], [`last`] | the drills in the configuration, all of them in turn, and how the last run of each ended |
//! | [`findings`], [`amcheck`], [`pages`] | the checks that every drill makes; those that a person asks for are [`crate::checks`] |
//! | [`tables`] | the largest tables and their rows |
//! | [`measure`] | recovery time and recovery point against their targets |
//! | [`document`], [`text`], [`html`] | what was found, as JSON, for a person, and as a page |
//! | [`recorded`] | what is put on record as evidence |
//!
//! The copy itself is a scratch instance ([`crate::scratch`]). What always holds: it is stopped and removed whatever comes of the
//! drill, unless a person asked to keep it. A kill leaves it to the next drill in the same place. To a repository, nothing
//! is written but the record. A page of an earlier drill does not outlive one that could not be made. Drills never run at the same time: each
//! of several begins when the copy of the one before it is gone.

mod amcheck;
mod document;
mod findings;
mod html;
mod last;
mod measure;
mod options;
mod pages;
mod recorded;
mod scenarios;
mod tables;
mod text;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use walpoint_base::{PgTimestamp, RecoveryTarget, durable};
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::exit::{FINDINGS, Failure};
use walpoint_runtime::{output, shutdown};
use walpoint_storage::store::StoreSettings;

use self::document::{DrillDocument, DrillReport, DrillResult, TableDocument};
use self::findings::Findings;
use self::measure::Measured;
pub(crate) use self::options::DrillArgs;
use self::options::Skipped;
use crate::checks::{self, Check, CheckDocument, CheckKind, CheckResult};
use crate::list;
use crate::plan::{self, CommandLine, Planned};
use crate::scratch::{Moment, OpenMoment, ScratchRequest, ScratchRestore};
use crate::server::Instance;

/// A drill that is to be made.
struct Order<'a> {
    common: &'a CommonArgs,
    args: &'a DrillArgs,
    /// Whether it is the whole command: what it finds is the document that is printed.
    is_alone: bool,
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
    if args.list_scenarios {
        return scenarios::list(common).await;
    }
    let interrupted = shutdown::on_signal()?;
    if args.all_scenarios {
        return scenarios::all(common, args, &interrupted).await;
    }
    let merged = match &args.scenario {
        Some(name) => scenarios::named(common, args, name),
        None => Ok(args.clone()),
    };
    let args = match merged {
        Ok(merged) => merged,
        Err(failure) => {
            Order { common, args, is_alone: true }.write_not_run(Timestamp::now(), &failure);
            return Err(failure);
        }
    };
    let order = Order { common, args: &args, is_alone: true };
    let Drilled { closed, result, .. } = order.make(&interrupted).await?;
    ended(result, closed)
}

/// What became of a drill that was made.
struct Drilled {
    /// Whether the copy was removed, or kept as it was asked for.
    closed: anyhow::Result<()>,
    /// What the drill itself ends with.
    result: Result<(), Failure>,
    /// What it found.
    report: DrillReport,
}

/// What a drill ends with: its own failure says more than what became of the copy.
fn ended(result: Result<(), Failure>, closed: anyhow::Result<()>) -> Result<(), Failure> {
    result.and_then(|()| Ok(closed.context("the drill was made, and its copy could not be removed")?))
}

impl Order<'_> {
    /// Makes the drill. An error: it could not be made, as its page says, too.
    async fn make(&self, interrupted: &CancellationToken) -> Result<Drilled, Failure> {
        let started = Timestamp::now();
        let made = Box::pin(self.prepare_and_run(started, interrupted)).await;
        if let Err(failure) = &made {
            self.write_not_run(started, failure);
        }
        made
    }

    /// Writes the page of a drill that could not be made.
    fn write_not_run(&self, started: Timestamp, failure: &Failure) {
        let Some(file) = &self.args.report else { return };
        let selection: Option<Selection<StoreSettings>> = self.common.select_to_read().ok();
        let cluster = selection.map(|selection| selection.cluster);
        let why = walpoint_words::format_chain(&failure.error);
        if let Err(error) = write_page(file, &html::not_run(cluster.as_ref(), started, &why)) {
            tracing::warn!("{}", walpoint_words::format_chain(&error));
        }
    }

    async fn prepare_and_run(
        &self,
        started: Timestamp,
        interrupted: &CancellationToken,
    ) -> Result<Drilled, Failure> {
        let Self { common, args, is_alone } = *self;
        let began = Instant::now();
        // A target that cannot be read is a mistake on the command line, and no drill.
        let request = args.scratch.request(&args.target, started)?;
        let request = ScratchRequest { role: args.role.clone(), keep: args.keep, ..request };
        let target = request.request.target.to_string();
        let mut scratch = ScratchRestore::new(common, request);
        let (checks, planned) = match self.prepare(&scratch, interrupted).await {
            Ok(prepared) => prepared,
            Err(failure) => {
                if !interrupted.is_cancelled() {
                    recorded::not_run((common, args), &target, &failure, began.elapsed()).await;
                }
                return Err(failure);
            }
        };
        let drill = Drill { common, args, checks, began, started };
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
                let printed = drill.print(&report, is_alone);
                recorded::drilled((common, args), &subject, &report).await;
                let result = verdict(&report, printed);
                Ok(Drilled { closed: closed.map(drop), result, report })
            }
            Err(failure) => {
                if let Ok(Some(kept)) = &closed {
                    tracing::warn!("\"{}\" was kept", kept.directory.display());
                }
                if !interrupted.is_cancelled() {
                    recorded::failed((common, args), &subject, &failure, drill.began.elapsed()).await;
                }
                Err(failure)
            }
        }
    }

    /// Reads what is to be checked, and plans.
    async fn prepare(
        &self,
        scratch: &ScratchRestore<'_>,
        interrupted: &CancellationToken,
    ) -> Result<(Vec<Check>, Planned), Failure> {
        let Self { common, args, is_alone } = *self;
        let mut checks: Vec<Check> = args.queries.iter().map(|sql| Check::of_query(sql)).collect();
        if let Some(file) = &args.checks {
            checks.extend(checks::read("--checks", file).map_err(Failure::usage)?);
        }
        let planned = tokio::select! {
            planned = scratch.plan() => planned,
            () = interrupted.cancelled() => return Err(stopped()),
        };
        match planned {
            Ok(planned) => Ok((checks, planned)),
            // Of several drills, one document is printed.
            Err(no_plan) if common.json && !is_alone => Err(no_plan.failure()),
            Err(no_plan) => Err(plan::refused(common, no_plan)),
        }
    }
}

fn stopped() -> Failure {
    anyhow!("the drill was interrupted").into()
}

/// What a drill ends with. A report that could not be printed or written changes nothing of what was found.
fn verdict(report: &DrillReport, printed: Result<(), Failure>) -> Result<(), Failure> {
    if report.result == DrillResult::Passed {
        return printed.map_err(unreported);
    }
    if let Err(failure) = printed {
        tracing::warn!("{}", walpoint_words::format_chain(&failure.error));
    }
    let error = anyhow!(failed_by(report.failed(), report.missed.len()));
    Err(Failure { status: FINDINGS, error })
}

/// What a drill ends with that passed, as its record says, and whose report is nowhere.
fn unreported(Failure { status, error }: Failure) -> Failure {
    Failure {
        status,
        error: error.context("the drill passed, and its report could not be printed or written"),
    }
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
        if let Some(extraction) = &self.args.extraction {
            extraction.rehearsal.prove(self.common, scratch, &planned).await?;
        }
        let selection: Selection<StoreSettings> = self.common.select_to_read()?;
        let (lineage, timeline) = (planned.lineage.clone(), planned.plan.timeline);
        // Now: what is archived while the copy recovers could not have been recovered at the start.
        let known = list::newest_commit(&selection, &lineage, timeline);
        let (opened, known) = tokio::join!(scratch.open(planned), known);
        let instance = opened?;
        let checking = Instant::now();
        let mut findings = self.look_into(&instance, scratch).await;
        let listing = Instant::now();
        if self.args.makes(Skipped::Tables) {
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
        self.report(scratch, &instance, findings, (ended, took), known.map(PgTimestamp::to_time))
    }

    /// The report. `ended`: how long everything to the last check took; `took`: the checks alone. `known`: the newest commit that the
    /// archive had at the start.
    fn report(
        &self,
        scratch: &ScratchRestore<'_>,
        instance: &Instance,
        findings: Findings,
        (ended, took): (Duration, Duration),
        known: Option<Timestamp>,
    ) -> Result<DrillReport, Failure> {
        let restored = scratch.restored().context("nothing was restored")?;
        let planned = &restored.planned;
        let replayed =
            instance.position.last_commit.filter(|_| planned.plan.target == RecoveryTarget::Latest);
        let backup = planned.plan.backup.latest_commit.map(PgTimestamp::to_time);
        let newest = measure::newest_commit(known, replayed, backup, self.started);
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
        notes.extend(self.args.changed());
        Ok(DrillReport {
            result: if has_failed || !missed.is_empty() { DrillResult::Failed } else { DrillResult::Passed },
            scenario: self.args.scenario.clone(),
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
            output_bytes: findings.extracted,
            tables: findings.tables.iter().map(TableDocument::of).collect(),
            notes,
            directory: None,
            start_command: None,
        })
    }

    /// Prints the report, and writes the page. Of several drills, the JSON is printed when all were made.
    fn print(&self, report: &DrillReport, is_alone: bool) -> Result<(), Failure> {
        // The page is written also where nothing can be printed.
        let written = self.args.report.as_ref().map_or(Ok(()), |file| write_page(file, &html::page(report)));
        match (self.common.json, is_alone) {
            (true, true) => output::json(&DrillDocument::Drilled(report))?,
            (true, false) => {}
            (false, _) => output::text(&text::report(report))?,
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

    #[test]
    fn a_report_that_cannot_be_written_does_not_hide_that_the_drill_passed() {
        let written = write_page(Path::new("/dev/null/report.html"), "");
        let failure = unreported(written.unwrap_err().into());
        let text = failure.to_string();
        assert!(text.starts_with("the drill passed, and its report could not be"), "{text}");
        assert!(text.contains("could not write --report /dev/null/report.html"), "{text}");
        assert_ne!(failure.status, FINDINGS);
    }
}
