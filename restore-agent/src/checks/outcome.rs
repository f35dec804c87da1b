//! What became of a check, also as documents have it.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

/// What became of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It passed; what it found, if that is worth telling.
    Passed(Option<String>),
    /// It failed; why.
    Failed(String),
    /// It could not be made here; why.
    Skipped(String),
}

/// A check with its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckResult {
    pub(crate) kind: CheckKind,
    pub(crate) name: String,
    pub(crate) database: Option<String>,
    pub(crate) outcome: Outcome,
    pub(crate) took: Duration,
}

impl CheckResult {
    /// Whether it failed.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed(_))
    }
}

/// What a check looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CheckKind {
    /// Whether recovery reached the target.
    Recovery,
    /// `pg_amcheck`.
    Amcheck,
    /// Whether the largest tables can be read.
    Tables,
    /// Whether the server ran until it was stopped, and shut down in order. Only if it did not.
    Server,
    /// The checksums of all data pages.
    PageChecksums,
    /// An extraction whose output was thrown away. Only in a scenario for that.
    Extraction,
    /// The answer of a query.
    Query,
    /// A command.
    Command,
}

/// A check.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Check")]
pub(crate) struct CheckDocument {
    /// What it looks at.
    pub(crate) kind: CheckKind,
    /// What it is called.
    pub(crate) name: String,
    /// The database of a query. Absent if it is the first one that takes sessions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) database: Option<String>,
    /// What became of it.
    pub(crate) result: CheckOutcome,
    /// What it found, or why it failed or was skipped. Absent if there is nothing to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    /// How long it took.
    pub(crate) seconds: f64,
}

/// What became of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CheckOutcome {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It could not be made here.
    Skipped,
}

impl CheckDocument {
    /// Of a check that was made.
    pub(crate) fn of(check: &CheckResult) -> Self {
        let (result, message) = match &check.outcome {
            Outcome::Passed(message) => (CheckOutcome::Passed, message.clone()),
            Outcome::Failed(why) => (CheckOutcome::Failed, Some(why.clone())),
            Outcome::Skipped(why) => (CheckOutcome::Skipped, Some(why.clone())),
        };
        Self {
            kind: check.kind,
            name: check.name.clone(),
            database: check.database.clone(),
            result,
            message,
            seconds: check.took.as_secs_f64(),
        }
    }
}
