//! What became of the restored server, as a document.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{Diagnostic, Lsn, TimelineId};

use crate::checks::CheckDocument;

/// The restored server, and what was found on it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Started")]
pub(in crate::restore) struct StartedDocument {
    /// What it does.
    pub(super) state: ServerState,
    /// Its process. Absent if it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pid: Option<u32>,
    /// The directory of its socket, or the host. Absent if it has not said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) host: Option<String>,
    /// Its port. Absent if it has not said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) port: Option<u16>,
    /// Its log.
    pub(super) log: String,
    /// The end of the last record that was replayed; if the server takes no sessions, at least this was. Absent if it is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) replayed_lsn: Option<Lsn>,
    /// The timeline that it is on. Absent if it has not arrived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timeline: Option<TimelineId>,
    /// The time of the last transaction that was replayed. Absent if none was, or it is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_commit_time: Option<Timestamp>,
    /// How long it was watched, from its start.
    pub(super) recovery_seconds: f64,
    /// The checks, in the order in which they were made.
    pub(super) checks: Vec<CheckDocument>,
    /// Whether the checks say that this is the right moment. Absent if there were none, they were not made, or the server has ended since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) verdict: Option<Verdict>,
    /// What is wrong with it.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    pub(super) problems: Vec<String>,
    /// The command that ends recovery where it is paused. Absent if it is not paused at the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resume_command: Option<String>,
    /// The command that stops the server.
    pub(super) stop_command: String,
    /// The command that restores another moment in its place, once it is stopped, but for the target.
    pub(super) retry_command: String,
}

impl StartedDocument {
    /// How long it was watched.
    pub(in crate::restore) fn seconds(&self) -> f64 {
        self.recovery_seconds
    }
}

/// What a restored server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ServerState {
    /// Recovery is paused.
    Paused,
    /// Recovery has ended, and it accepts writes.
    Promoted,
    /// It is a standby, and consistent.
    Standby,
    /// It recovers, as far as is known.
    Recovering,
    /// It has ended.
    Ended,
}

/// Whether a moment is the right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    /// Every check passed.
    Right,
    /// A check failed.
    NotRight,
}
