//! `evidence summary`.

use std::fmt::Write as _;

use clap::Args;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{ClusterName, Diagnostic};
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::{help, human, output};
use walpoint_storage::store::StoreSettings;

use super::period::{Period, PeriodArgs};
use super::read::{self, LeftOut};
use super::tally::{EvidenceSummary, ObjectiveCounts, Tally};

const EXAMPLES: &[(&str, &str)] = &[
    ("Summarize all records", "archive-agent evidence summary"),
    ("Summarize one quarter", "archive-agent evidence summary --from 2026-10-01 --to 2026-12-31"),
];

/// How many backups of a sort the text names.
const NAMED: usize = 10;

/// Options of `evidence summary`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct SummaryArgs {
    #[command(flatten)]
    period: PeriodArgs,
}

/// What `archive-agent evidence summary --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct EvidenceSummaryDocument {
    /// The cluster.
    cluster: ClusterName,
    /// The beginning of the period. Absent if it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    from_time: Option<Timestamp>,
    /// The end of the period. Absent if it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    to_time: Option<Timestamp>,
    /// The summary of each repository.
    repositories: Vec<RepositorySummary>,
}

walpoint_runtime::document!(EvidenceSummaryDocument, "archive-agent evidence summary");

/// The summary of one repository.
#[derive(Debug, Serialize, JsonSchema)]
struct RepositorySummary {
    /// The repository's name in the configuration.
    repository: String,
    #[serde(flatten)]
    summary: EvidenceSummary,
    /// Records that cannot be read, and are not counted: messages.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    unreadable: Vec<String>,
}

/// Runs the command.
pub(super) async fn run(
    common: &CommonArgs,
    selection: &Selection<StoreSettings>,
    args: &SummaryArgs,
) -> Result<(), Failure> {
    let period = args.period.period(Timestamp::now())?;
    let mut document = EvidenceSummaryDocument {
        cluster: selection.cluster.clone(),
        from_time: period.from,
        to_time: period.to,
        repositories: Vec::new(),
    };
    let mut left_out = LeftOut::default();
    for (name, settings) in &selection.repositories {
        match summary(selection, (name, settings), period).await {
            Ok(summary) => document.repositories.push(summary),
            Err(error) => left_out.repository(name, &error),
        }
    }
    if common.json {
        output::json(&document)?;
    } else {
        let texts = document.repositories.iter().map(|one| {
            let heading = format!("Evidence of cluster {} in {}\n", selection.cluster, one.repository);
            heading + &text(&one.summary)
        });
        output::text(&texts.collect::<String>())?;
    }
    document.repositories.iter().for_each(|one| left_out.records(&one.repository, &one.unreadable));
    left_out.end()
}

async fn summary(
    selection: &Selection<StoreSettings>,
    (name, settings): (&str, &StoreSettings),
    period: Period,
) -> anyhow::Result<RepositorySummary> {
    let mut tally = Tally::of(period);
    let unreadable = read::records(selection, (name, settings), |read| tally.add(&read.record)).await?;
    Ok(RepositorySummary { repository: name.to_owned(), summary: tally.summary(), unreadable })
}

/// A summary for a person.
pub(super) fn text(summary: &EvidenceSummary) -> String {
    let mut text = format!("  {}\n", human::count(summary.record_count, "record"));
    // Writing to a String cannot fail.
    for kind in &summary.kinds {
        writeln!(
            text,
            "  {:<20}  {:>6}  {:>3}% succeeded  ({} partial, {} failed)",
            kind.kind.name(),
            kind.record_count,
            kind.success_percent(),
            kind.partial_count,
            kind.failed_count
        )
        .ok();
    }
    for (name, counts) in [("RTO", summary.rto), ("RPO", summary.rpo)] {
        if counts.measured_count > 0 {
            writeln!(text, "  {name}: {}", objective(counts)).ok();
        }
    }
    writeln!(text, "  proven: {}", human::count(summary.proven_backups.len() as u64, "backup")).ok();
    for one in summary.proven_backups.iter().rev().take(NAMED) {
        let (kind, number, time) = (one.kind.name(), one.number, human::time(one.time));
        writeln!(text, "    {}  {kind}, record {number} at {time}", one.backup).ok();
    }
    writeln!(text, "  not proven: {}", human::count(summary.unproven_backups.len() as u64, "backup")).ok();
    for backup in summary.unproven_backups.iter().rev().take(NAMED) {
        writeln!(text, "    {backup}").ok();
    }
    text
}

/// Measurements against objectives, in words.
pub(super) fn objective(counts: ObjectiveCounts) -> String {
    let ObjectiveCounts { measured_count, target_count, met_count } = counts;
    let measured = human::count(measured_count, "measurement");
    match target_count {
        0 => format!("{measured}, none with an objective"),
        _ => format!("{measured}, {met_count} of {} met", human::count(target_count, "objective")),
    }
}
