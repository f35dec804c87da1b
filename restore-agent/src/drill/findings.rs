//! What a drill looks at on the instance, and after its server has stopped.

use std::time::Instant;

use anyhow::Context;
use walpoint_runtime::exit::Failure;
use walpoint_runtime::human;

use super::options::{Extraction, Skipped};
use super::tables::Table;
use super::{Drill, amcheck, pages};
use crate::checks::{self, CheckKind, CheckResult, Outcome};
use crate::scratch::{OpenMoment, ScratchRestore};
use crate::server::{Instance, Reached};

/// What was found on the instance.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) checks: Vec<CheckResult>,
    pub(super) tables: Vec<Table>,
    /// The size of what was extracted, if that is known.
    pub(super) extracted: Option<u64>,
    pub(super) notes: Vec<String>,
}

impl Drill<'_> {
    /// Stops the server, and makes the checks for which it has to be stopped.
    pub(super) async fn stop(
        &self,
        scratch: &mut ScratchRestore<'_>,
        instance: &Instance,
    ) -> Result<Vec<CheckResult>, Failure> {
        let mut checks = Vec::new();
        let began = Instant::now();
        let is_verified = self.args.makes(Skipped::PageChecksums);
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
    pub(super) async fn look_into(&self, instance: &Instance, scratch: &mut ScratchRestore<'_>) -> Findings {
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
        if let Some(extraction) = &self.args.extraction {
            self.extract(extraction, instance, scratch, &mut findings).await;
        }
        if let Some(programs) = scratch.programs().filter(|_| self.args.makes(Skipped::Amcheck)) {
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
        findings.checks.extend(checks::run_all(&self.checks, instance, scratch.user()).await);
        findings
    }

    /// Extracts, and measures what comes out of it.
    async fn extract(
        &self,
        extraction: &Extraction,
        instance: &Instance,
        scratch: &mut ScratchRestore<'_>,
        findings: &mut Findings,
    ) {
        let began = Instant::now();
        let outcome = match extraction.rehearsal.run(self.common, scratch, instance).await {
            Err(error) => Outcome::Failed(walpoint_words::format_chain(&error)),
            Ok((size, warnings)) => {
                findings.extracted = Some(size);
                findings.notes.extend(warnings);
                judged(size, extraction.least)
            }
        };
        findings.checks.push(CheckResult {
            kind: CheckKind::Extraction,
            name: "the extraction is complete".to_owned(),
            database: Some(extraction.rehearsal.database.clone()),
            outcome,
            took: began.elapsed(),
        });
    }
}

/// Whether what was extracted is as large as it has to be.
fn judged(size: u64, least: u64) -> Outcome {
    match (size, size >= least) {
        (0, _) => Outcome::Failed("it is empty".to_owned()),
        (_, true) => Outcome::Passed(Some(human::size(size))),
        (_, false) => Outcome::Failed(format!(
            "it has {}, less than output_min, {}",
            human::size(size),
            human::size(least)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extraction_has_to_be_as_large_as_configured() {
        assert_eq!(judged(2048, 1), Outcome::Passed(Some("2.0 KiB".into())));
        assert_eq!(judged(1024, 1024), Outcome::Passed(Some("1.0 KiB".into())));
        let small = "it has 1.0 KiB, less than output_min, 1.0 MiB";
        assert_eq!(judged(1024, 1 << 20), Outcome::Failed(small.into()));
        assert_eq!(judged(0, 1), Outcome::Failed("it is empty".into()));
    }
}
