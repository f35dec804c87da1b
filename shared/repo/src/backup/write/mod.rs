//! Writing a backup: streams fill packs and the file table, the writer ends it, the draft publishes it.
//!
//! What always holds: an intent is there before anything else, and a manifest only after every pack it names was found
//! with its size. A crash in the middle leaves an intent and packs that nothing names; `expire` removes them.

mod pack_stream;
mod publish;
mod sink;
mod table;
mod writer;

use std::sync::{Arc, Mutex};

pub use self::pack_stream::{FileSummary, FileWriter, PackStream};
pub use self::publish::{Draft, WalStored};
pub use self::sink::PackLimits;
use self::sink::PackSink;
use self::table::TableWriter;
pub use self::writer::{BackupWriter, WriteOptions};
use super::geometry::BlockSize;
use super::hash::Hashing;
use super::parent::Parents;

/// What the streams of one backup share.
#[derive(Debug)]
struct Shared {
    hashing: Hashing,
    block_size: BlockSize,
    /// What it builds on, and every backup that blocks may be in; the first of these is the one that is written.
    parents: Parents,
    sink: Arc<PackSink>,
    /// `None` once the backup is finished.
    table: Mutex<Option<TableWriter>>,
}
