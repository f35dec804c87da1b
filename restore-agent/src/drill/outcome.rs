//! What became of a check.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

/// What became of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It passed; what it found, if that is worth telling.
    Passed(Option<String>),
    /// It failed; why.
    Failed(String),
    /// It could not be made here; why.
    Skipped(String),
}

/// A check with its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CheckResult {
    pub(super) kind: CheckKind,
    pub(super) name: String,
    pub(super) database: Option<String>,
    pub(super) outcome: Outcome,
    pub(super) took: Duration,
}

impl CheckResult {
    /// Whether the drill fails by it.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed(_))
    }
}

/// What a check looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum CheckKind {
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
