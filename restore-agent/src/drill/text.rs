//! What a drill found, for a person at a terminal.

use walpoint_runtime::human;

use super::document::{DrillReport, DrillResult, span};
use crate::checks::{CheckOutcome, quoted};

/// Tables that the text lists; the document has more.
const TABLES: usize = 10;

/// The report.
pub(super) fn report(report: &DrillReport) -> String {
    let mut text = format!(
        "drill{} of cluster {} {}: backup {}, recovered to {} on timeline {}\n",
        report.scenario.as_ref().map_or(String::new(), |scenario| format!(" \"{scenario}\"")),
        report.moment.cluster,
        match report.result {
            DrillResult::Passed => "passed",
            DrillResult::Failed => "FAILED",
        },
        report.moment.backup,
        report.moment.target,
        report.moment.timeline,
    );
    text.push_str(&format!(
        "restored {} in {} into PostgreSQL {}, recovered to {} in {}\n",
        human::size(report.restored_bytes),
        human::span(span(report.restore_seconds)),
        report.server_version,
        report.moment.replayed_lsn,
        human::span(span(report.recovery_seconds)),
    ));
    text.push_str(&measured("recovery time", report.rto_seconds, report.rto_target_seconds));
    text.push_str(&measured("recovery point", report.rpo_seconds, report.rpo_target_seconds));
    text.push_str("checks:\n");
    for check in &report.checks {
        let result = match check.result {
            CheckOutcome::Passed => "passed ",
            CheckOutcome::Failed => "FAILED ",
            CheckOutcome::Skipped => "skipped",
        };
        let message =
            check.message.as_ref().map_or(String::new(), |message| format!(": {}", quoted(message)));
        let took = human::span(span(check.seconds));
        text.push_str(&format!("  {result}  {}{message} ({took})\n", check.name));
    }
    for missed in &report.missed {
        text.push_str(&format!("  FAILED   {missed}\n"));
    }
    if !report.tables.is_empty() {
        text.push_str("largest tables:\n");
    }
    for table in report.tables.iter().take(TABLES) {
        let about = if table.counted { "" } else { "about " };
        text.push_str(&format!(
            "  {:>10}  {about}{}  {}\n",
            human::size(table.total_bytes),
            human::count(table.row_count, "row"),
            quoted(&format!("{}: {}.{}", table.database, table.schema, table.table)),
        ));
    }
    for note in &report.notes {
        text.push_str(&format!("{}\n", human::hanging("note: ", note)));
    }
    if let Some(command) = &report.start_command {
        text.push_str(&format!("start it again: {command}\n"));
    }
    text
}

/// A measured span with its target.
fn measured(what: &str, seconds: Option<f64>, target: Option<f64>) -> String {
    let value = seconds.map_or_else(|| "unknown".to_owned(), |seconds| human::span(span(seconds)));
    let target = target.map_or(String::new(), |target| format!(" (target: {})", human::span(span(target))));
    format!("{what}: {value}{target}\n")
}
