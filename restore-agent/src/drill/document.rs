//! What a drill found, as a document.

use std::time::Duration;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{Diagnostic, ScenarioName};

use super::last::ScenarioList;
use super::scenarios::DrillsReport;
use super::tables::Table;
use crate::checks::{CheckDocument, CheckOutcome};
use crate::plan::PlanReport;
use crate::scratch::{Kept, Moment};

/// What `restore-agent drill --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum DrillDocument<'a> {
    /// What was found.
    Drilled(&'a DrillReport),
    /// With `--all-scenarios`: what every drill found.
    Several(&'a DrillsReport),
    /// With `--list-scenarios`: the drills of the configuration.
    Scenarios(&'a ScenarioList),
    /// If the target cannot be reached, why.
    #[expect(dead_code, reason = "the function that prints it for plan prints it here too")]
    Plan(PlanReport),
}

walpoint_runtime::document!(DrillDocument<'_>, "restore-agent drill");

/// What was found.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Drill")]
pub(super) struct DrillReport {
    /// The outcome.
    pub(super) result: DrillResult,
    /// The scenario of the configuration by which the drill was made. Absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) scenario: Option<ScenarioName>,
    /// From what it was restored, and where it ended.
    #[serde(flatten)]
    pub(super) moment: Moment,
    /// The version of the server that recovered.
    pub(super) server_version: String,
    /// When the drill started.
    pub(super) start_time: Timestamp,
    /// When its last check ended.
    pub(super) end_time: Timestamp,
    /// The number of files that were restored.
    pub(super) file_count: u64,
    /// The size of what was restored.
    pub(super) restored_bytes: u64,
    /// How long planning took, with everything else before the restore.
    pub(super) plan_seconds: f64,
    /// How long it took to write the files.
    pub(super) restore_seconds: f64,
    /// How long it took from the start of the server to the target.
    pub(super) recovery_seconds: f64,
    /// How long the checks took.
    pub(super) check_seconds: f64,
    /// The recovery time: from the start of the drill until the last check had passed. Absent if one failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rto_seconds: Option<f64>,
    /// The target of the recovery time. Absent if none was set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rto_target_seconds: Option<f64>,
    /// The recovery point: from the newest commit that could be recovered then to the start of the drill. Absent if that commit is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rpo_seconds: Option<f64>,
    /// The target of the recovery point. Absent if none was set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rpo_target_seconds: Option<f64>,
    /// The newest commit that could be recovered when the drill started. Absent if it is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) newest_commit_time: Option<Timestamp>,
    /// The checks, in the order in which they were made.
    pub(super) checks: Vec<CheckDocument>,
    /// Targets that were missed, one sentence each. Absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) missed: Vec<String>,
    /// The size of what was extracted. Absent unless the drill is of an extraction that could be made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) output_bytes: Option<u64>,
    /// The largest tables of all databases, largest first.
    pub(super) tables: Vec<TableDocument>,
    /// Notes for the operator, one sentence each.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    pub(super) notes: Vec<String>,
    /// The scratch directory, if it was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) directory: Option<String>,
    /// The command that starts the kept server again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) start_command: Option<String>,
}

/// The outcome of a drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum DrillResult {
    /// Every check passed, and no target was missed.
    Passed,
    /// A check failed, or a target was missed.
    Failed,
}

/// A table.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Table")]
pub(super) struct TableDocument {
    /// The database.
    pub(super) database: String,
    /// The schema.
    pub(super) schema: String,
    /// The table.
    pub(super) table: String,
    /// Its size, with its indexes and what is stored out of line.
    pub(super) total_bytes: u64,
    /// The number of its rows.
    pub(super) row_count: u64,
    /// Whether the rows were counted; else the number is the planner's estimate.
    pub(super) counted: bool,
}

impl TableDocument {
    /// Of a table.
    pub(super) fn of(table: &Table) -> Self {
        Self {
            database: table.database.clone(),
            schema: table.schema.clone(),
            table: table.name.clone(),
            total_bytes: table.bytes,
            row_count: table.rows,
            counted: table.is_counted,
        }
    }
}

impl DrillReport {
    /// How many checks failed.
    pub(super) fn failed(&self) -> usize {
        self.checks.iter().filter(|check| check.result == CheckOutcome::Failed).count()
    }

    /// Adds what was kept.
    pub(super) fn keep(&mut self, kept: &Kept) {
        self.directory = Some(kept.directory.display().to_string());
        self.start_command.clone_from(&kept.start_command);
        self.notes.push(format!(
            "the scratch directory was kept; its server listens only on the socket in {}\nHINT: Delete {} when you no longer need \
             it.",
            kept.socket_directory.display(),
            kept.directory.display()
        ));
    }
}

/// A span from seconds.
pub(super) fn span(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default()
}
