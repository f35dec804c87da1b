//! The write-ahead log: pages, records, segments.
//!
//! | module | owns |
//! |---|---|
//! | `page` | headers of pages, the magic number of each version |
//! | `record` | headers of records, their check, where their main data lies |
//! | `blocks` | which blocks a record refers to, and where the main data of such a record lies |
//! | `kind` | what the records mean that decide about recovery targets and archives |
//! | `transaction` | the bodies of the records that end or prepare a transaction |
//! | `checkpoint` | a checkpoint's record, where a label says it starts |
//! | `segment` | what a segment is, and which pages belong to it |
//! | `pending` | a record that is put together from several pages |
//! | `edges` | what the beginning and the end of a segment say about its neighbors |
//! | `walk` | the walk over the records of a segment; where WAL ends and where it is damaged |
//! | [`Inspector`] | one segment's facts, and whether it may be archived |
//! | [`RecordReader`] | records over consecutive segments |
//! | [`DatabaseCopies`] | databases that were copied file by file, and what changed their sources afterwards |
//! | `shared_tuple` | tuples of shared catalogs that a record deletes, or changes in place |
//! | `database_drops` | `DROP DATABASE`, which is not undone where its transaction does not end |
//! | `damaged` | whether a damaged file is a copy of a sound one |
//! | `same` | whether two files hold the same records |
//! | `touched` | which directories of databases a record changes |
//! | [`events`] | what happened: transactions with what they changed, and what happened to the server |
//! | [`find`](mod@find) | where recovery stops |
//!
//! All of it is total: any bytes give facts or an error, and nothing is allocated that was not read.

mod blocks;
mod checkpoint;
mod damaged;
mod database_copies;
mod database_drops;
mod edges;
#[cfg(test)]
mod edges_tests;
mod error;
pub mod events;
pub mod find;
#[cfg(test)]
mod fixtures;
mod inspect;
mod kind;
mod page;
mod pending;
mod reader;
mod record;
mod same;
mod segment;
mod shared_tuple;
#[cfg(test)]
mod tests;
mod touched;
mod transaction;
mod walk;

pub use checkpoint::{checkpoint_at, checkpoint_window};
pub use damaged::{DamagedComparison, DamagedRecords};
pub use database_copies::{DatabaseCopies, FoundCopy};
pub use database_drops::DatabaseDrop;
pub use error::{Differs, WalError, WalIdentity};
pub use inspect::{Inspector, inspect, inspect_on_path};
pub use kind::{
    Checkpoint, DatabaseCopy, DatabaseDirectory, ParameterChange, RecordKind, RelationLock, TransactionEnd,
};
pub use page::{LONG_HEADER, LongHeader, PageHeader, SHORT_HEADER, magic_of_major, major_of_magic};
pub use reader::{RecordReader, SegmentRecords};
pub use record::{RECORD_HEADER, RecordHeader, Rmgr, WalRecord};
pub use same::same_records;
pub use shared_tuple::{SharedTuple, TupleChange};
pub use walk::SegmentEnd;
