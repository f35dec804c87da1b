//! Walpoint's vocabulary: what every other part agrees on and nothing that only one of them needs.
//!
//! | module | owns |
//! |---|---|
//! | [`lsn`] | positions in WAL, printed as PostgreSQL prints them |
//! | [`segment`] | segment sizes, numbers and the names of files in `pg_wal` |
//! | [`timeline`] | timeline ids, `.history` files, the path of a timeline |
//! | [`ids`] | system identifiers, major versions, names of clusters, lineages and backups |
//! | [`clock`] | PostgreSQL's timestamps |
//! | [`target`] | recovery targets, as a person writes them and as PostgreSQL wants them |
//! | [`diagnostic`] | messages with details and hints |
//! | [`facts`] | what a decoded segment says about itself |
//! | [`chain`] | whether one segment continues another |
//! | [`crossing`] | what two segments know together of the record between them |
//! | [`durable`] | files that survive a power cut |
//! | [`mask`] | addresses in messages, without the secrets that somebody wrote into them |
//! | [`mounts`] | on which mount a path lies, though its filesystem hangs |
//! | [`nearest`] | the known word that was meant by one that is not known |
//! | [`place`] | the data directory around a file that PostgreSQL wants |
//! | [`scenario`] | the names of configured drills |
//! | [`span`] | spans of time, as a person writes them |
//! | [`secret`] | passwords and keys: where they come from, never where they show |
//! | [`small_file`] | secrets and certificates in files, on filesystems that may hang |
//! | [`table`] | settings that come from a table of the configuration |
//! | [`tablespace`] | what lies where replay creates tablespaces |
//! | [`json`] | how all that appears in the JSON that commands print |
//! | [`socket`] | the messages between the thin clients and their servers |
//! | [`user`] | users of this machine, and the commands that a person types about them |
//!
//! Without the features `time`, `secret` and `json` nothing is linked into a thin client but the standard library and, for system calls
//! that it does not offer, `rustix`.

#[cfg(feature = "time")]
mod abbreviation;
pub mod archived;
pub mod chain;
pub mod clock;
pub mod crossing;
pub mod diagnostic;
pub mod dropped;
pub mod durable;
pub mod facts;
pub mod filesystem;
pub mod ids;
#[cfg(feature = "json")]
pub mod json;
pub mod lsn;
pub mod mask;
pub mod mounts;
pub mod nearest;
pub mod owned;
pub mod place;
pub mod scenario;
#[cfg(feature = "secret")]
pub mod secret;
pub mod segment;
#[cfg(feature = "secret")]
pub mod small_file;
pub mod socket;
#[cfg(feature = "time")]
pub mod span;
pub mod table;
pub mod tablespace;
#[cfg(feature = "time")]
pub mod target;
pub mod timeline;
pub mod user;

pub use clock::PgTimestamp;
pub use diagnostic::Diagnostic;
pub use facts::SegmentFacts;
pub use ids::{BackupId, ClusterName, LineageId, PgMajor, SlotName, SystemId};
pub use lsn::Lsn;
pub use place::{RECOVERY_ORIGIN, Recovery, WalDirectory};
pub use scenario::ScenarioName;
#[cfg(feature = "secret")]
pub use secret::{Secret, SecretError, SecretSource};
pub use segment::{SegmentName, SegmentNo, SegmentSize, WalFileName};
pub use tablespace::CreatedTablespace;
#[cfg(feature = "time")]
pub use target::{RecoveryTarget, TargetTimeline};
pub use timeline::{TimelineHistory, TimelineId};

/// A text that is not what its type asks for: what was expected, and the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not {expected}: {text:?}")]
pub struct ParseError {
    /// What the text should have been, in words that fit after "not".
    pub expected: &'static str,
    /// The text as it was given, cut to 200 characters.
    pub text: String,
}

impl ParseError {
    /// An error about `text`.
    pub fn new(expected: &'static str, text: &str) -> Self {
        Self { expected, text: text.chars().take(200).collect() }
    }
}
