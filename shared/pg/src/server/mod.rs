//! What Walpoint asks of a server, as typed calls that work the same on PostgreSQL 13 to 19.
//!
//! | type | for |
//! |---|---|
//! | [`Server`] | an ordinary session: identity, settings, tablespaces, restore points, the archiver's counters |
//! | [`BackupSession`] | a base backup by the low-level interface |
//! | [`Walsender`] | replication commands, slots among them |
//! | [`least_privilege_sql`] | the role that may do all this and nothing else |
//!
//! [`Server::export_snapshots`] proves on which data directory a session's server runs, [`Server::confirms`] that two sessions are
//! on one server.
//!
//! A right that is missing comes back as [`ServerError::Rights`] with the statement that gives it.

mod backup;
mod error;
mod identity;
mod replication;
mod role;
mod same;
mod session;
mod slot;
mod snapshot;
mod synchronous;
mod tablespaces;
mod wal;

pub use self::backup::{BackupSession, BackupStart, BackupStop, LastCheckpoint};
pub use self::error::ServerError;
pub(crate) use self::error::explain;
pub use self::identity::{ArchiveSettings, ConfigFiles, ServerIdentity};
pub use self::replication::{SystemIdentity, Walsender};
pub use self::role::{Right, least_privilege_sql};
pub use self::same::SessionName;
pub use self::session::Server;
pub use self::slot::{SlotPosition, SlotState};
pub use self::snapshot::{ExportedSnapshots, SNAPSHOTS};
pub use self::synchronous::CommitException;
pub use self::tablespaces::{DEFAULT_TABLESPACE, ServerTablespace, TablespaceDirectory};
pub use self::wal::{ArchiverStats, Receiver, ReplayState};
