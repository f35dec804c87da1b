//! `BASE_BACKUP`: a base backup through the replication protocol, from PostgreSQL 13 to 19.
//!
//! | module | owns |
//! |---|---|
//! | `command` | the command in the dialects of 13, 14 and of 15 to 18 |
//! | `stream` | [`BaseBackup`]: the session, and what it sends |
//! | `order` | [`StreamPart`]: what has to come after what |
//! | `framing` | the messages inside the one stream of 15 and later |
//! | `tar` | [`Tar`]: the entries of an archive, from pieces of any size |
//! | `extension` | what a pax or GNU entry says about the next one |
//! | `unpack` | [`Unpacker`]: archives as directories, links and files of the cluster |
//! | `ledger` | [`ReceivedFiles`]: what was received, to be compared with the manifest |
//! | `manifest` | the server's list of what it sent, with checksums |
//! | `notice` | which page the server complains about |
//!
//! What always holds: every byte between the first result and the last was accounted for, each file has the size and the
//! checksum that the server's manifest gives it, and the manifest its own. Everything is bounded, whatever the server
//! sends: no message, header, path or line is held beyond a limit. A session that ends early is an error, never a backup.

mod command;
mod error;
mod extension;
mod framing;
mod ledger;
mod manifest;
mod notice;
mod order;
mod stream;
mod tar;
mod unpack;

pub use self::command::BaseBackupCommand;
pub use self::error::BaseBackupError;
pub use self::ledger::{Received, ReceivedFiles};
pub use self::manifest::{ManifestFile, ServerManifest, check};
pub use self::notice::ReportedPage;
pub use self::order::{Space, Start, StreamArchive, StreamEnd, StreamPart};
pub use self::stream::BaseBackup;
pub use self::tar::{EntryKind, Item, Status, Tar, TarEntry};
pub use self::unpack::{Event, Unpacked, Unpacker};
