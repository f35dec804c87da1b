//! `evidence verify`: whether the chain is what was written.

use std::fmt::Write as _;

use anyhow::anyhow;
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::diagnostic::shown;
use walpoint_base::{ClusterName, Diagnostic};
use walpoint_repo::evidence::{ChainReport, Fault, FaultKind, Head};
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::exit::{FINDINGS, Failure};
use walpoint_runtime::progress::ByteProgress;
use walpoint_runtime::{help, human, output};
use walpoint_storage::store::StoreSettings;
use walpoint_words::format_chain;

const EXAMPLES: &[(&str, &str)] = &[
    ("Verify the evidence in every repository of the cluster", "archive-agent evidence verify"),
    (
        "Also check that no record was removed at the end since a head was noted",
        "archive-agent evidence verify --repo main \\\n--head \"$(tail -n 1 /mnt/audit/walpoint-heads)\"",
    ),
];

/// Options of `evidence verify`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct VerifyEvidenceArgs {
    /// Check that the chain still holds this record, as evidence head printed it (HASH:NUMBER). Can be repeated.
    #[arg(long, value_name = "HEAD")]
    head: Vec<Head>,
}

/// What `archive-agent evidence verify --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct EvidenceVerifyDocument {
    /// The cluster.
    cluster: ClusterName,
    /// What was found in each repository.
    repositories: Vec<VerifiedChain>,
    /// Repositories that could not be verified, with the reason.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    failed: Vec<String>,
}

walpoint_runtime::document!(EvidenceVerifyDocument, "archive-agent evidence verify");

/// The chain of one repository.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct VerifiedChain {
    /// The repository's name in the configuration.
    repository: String,
    /// The number of records that are there.
    record_count: u64,
    /// The hash and the number of the last record, as `verify --head` takes them. Absent if there is none, or it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<String>,
    /// What is wrong, by number.
    faults: Vec<FaultDocument>,
}

/// What is wrong with a chain.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "EvidenceFault")]
struct FaultDocument {
    /// What it is.
    kind: FaultKind,
    /// The first record that it is about.
    first_number: u64,
    /// The last record that it is about.
    last_number: u64,
    /// What is wrong.
    message: String,
}

/// Runs the command.
pub(super) async fn run(
    common: &CommonArgs,
    selection: &Selection<StoreSettings>,
    args: &VerifyEvidenceArgs,
) -> Result<(), Failure> {
    if !args.head.is_empty() {
        super::the_repository(selection, "--head")?;
    }
    let mut document = EvidenceVerifyDocument {
        cluster: selection.cluster.clone(),
        repositories: Vec::new(),
        failed: Vec::new(),
    };
    for (name, settings) in &selection.repositories {
        let what = format!("verifying the evidence in repository {name}");
        let waiting = ByteProgress::waiting(&what, common.show_progress());
        let verified =
            async { anyhow::Ok(super::open(selection, (name, settings)).await?.verify(&args.head).await?) };
        let verified = verified.await;
        waiting.end();
        match verified {
            Ok(report) => document.repositories.push(VerifiedChain::of(name, &report)),
            Err(error) => document.failed.push(format!("repository {name}: {}", format_chain(&error))),
        }
    }
    if common.json {
        output::json(&document)?;
    } else {
        let cluster = &selection.cluster;
        output::text(&document.repositories.iter().map(|one| one.text(cluster)).collect::<String>())?;
    }
    let found = document.repositories.iter().map(|one| one.faults.len() as u64).sum();
    match document.failed.is_empty() {
        true => no_faults(found, "evidence verify"),
        false => Err(Diagnostic::gather("evidence verify could not finish", &document.failed).into()),
    }
}

/// Fails as a command does that has found problems.
pub(super) fn no_faults(found: u64, command: &str) -> Result<(), Failure> {
    match found {
        0 => Ok(()),
        found => Err(Failure {
            status: FINDINGS,
            error: anyhow!("{command} found {}", human::count(found, "problem")),
        }),
    }
}

impl VerifiedChain {
    /// Of what was found.
    pub(super) fn of(repository: &str, report: &ChainReport) -> Self {
        let fault = |fault: &Fault| FaultDocument {
            kind: fault.kind,
            first_number: fault.first,
            last_number: fault.last,
            message: message(fault),
        };
        Self {
            repository: repository.to_owned(),
            record_count: report.records,
            head: report.head.map(|head| head.to_string()),
            faults: report.faults.iter().map(fault).collect(),
        }
    }

    fn text(&self, cluster: &ClusterName) -> String {
        let mut text = format!("Evidence of cluster {cluster} in {}\n", self.repository);
        let problems = match self.faults.len() as u64 {
            0 => "no problems found".to_owned(),
            found => human::count(found, "problem"),
        };
        // Writing to a String cannot fail.
        writeln!(text, "  {}, {problems}", human::count(self.record_count, "record")).ok();
        if let Some(head) = &self.head {
            writeln!(text, "  head {head}").ok();
        }
        for fault in &self.faults {
            writeln!(text, "{}", human::hanging("  problem: ", &fault.message)).ok();
        }
        text
    }
}

/// A fault in a sentence without its full stop.
pub(super) fn message(Fault { kind, first, last, what }: &Fault) -> String {
    let records = match first == last {
        true => format!("record {first}"),
        false => format!("records {first} to {last}"),
    };
    let what = shown(what);
    match kind {
        FaultKind::Missing | FaultKind::Cut => format!("{records}: {what}"),
        FaultKind::Damaged => format!("{records} is damaged: {what}"),
        FaultKind::Misplaced => format!("{records} is out of place: {what}"),
        FaultKind::Broken => format!("the chain is broken at record {last}: {what}"),
        FaultKind::Changed => format!("{records} was changed: {what}"),
    }
}
