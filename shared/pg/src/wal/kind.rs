//! What records mean: the ends of transactions and the few records of WAL itself that decide where recovery stops and
//! what an archive holds.
//!
//! Sources: `src/include/catalog/pg_control.h`, `src/include/access/xlog_internal.h`, `src/include/storage/standbydefs.h`.
//! Layouts are those of 13 to 19; where they differ the code says so.
//!
//! A record of these kinds whose body does not make sense counts as [`RecordKind::Other`]: its CRC says that PostgreSQL
//! wrote it so, and to refuse it would only fill `pg_wal`.

use walpoint_base::facts::SegmentMarks;
use walpoint_base::target::FullXid;
use walpoint_base::{Lsn, PgMajor, PgTimestamp, TimelineId};

use super::record::{RecordHeader, Rmgr, main_data};
use super::shared_tuple::{self, SharedTuple, TupleChange};
use super::transaction::{ABORT, ABORT_PREPARED, COMMIT, COMMIT_PREPARED, PREPARE, XACT_OP, xact};
use crate::bytes;

/// What a record means for recovery targets and archives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecordKind {
    /// A transaction was committed.
    Commit(TransactionEnd),
    /// A transaction was rolled back.
    Abort(TransactionEnd),
    /// A transaction was prepared; it has not ended.
    Prepare {
        /// The transaction.
        xid: u32,
        /// When.
        time: PgTimestamp,
        /// What `COMMIT PREPARED` calls it; empty if that cannot be read.
        gid: String,
        /// The transactions within it.
        subtransactions: Vec<u32>,
    },
    /// `pg_create_restore_point`.
    RestorePoint {
        /// Its name.
        name: String,
        /// When.
        time: PgTimestamp,
    },
    /// The rest of the segment is empty.
    Switch,
    /// A checkpoint of a server that is shutting down, or that just ended recovery.
    CheckpointShutdown(Checkpoint),
    /// A checkpoint of a running server.
    CheckpointOnline(Checkpoint),
    /// Where a checkpoint of a running server began (from 17).
    CheckpointRedo,
    /// The first record of a new timeline after a promotion without a checkpoint.
    EndOfRecovery {
        /// When.
        time: PgTimestamp,
        /// The new timeline.
        timeline: Option<TimelineId>,
        /// The timeline that was left.
        previous: Option<TimelineId>,
    },
    /// A base backup ended.
    BackupEnd {
        /// Where it started.
        start: Lsn,
    },
    /// Settings changed that a standby must follow.
    ParameterChange(ParameterChange),
    /// The first record after one that was never completed.
    OverwriteContrecord {
        /// Where the broken record starts.
        overwritten: Lsn,
        /// When.
        time: PgTimestamp,
    },
    /// `CREATE TABLESPACE`. Replay uses this location on the machine where it runs.
    TablespaceCreate {
        /// Its OID.
        oid: u32,
        /// Its location, as bytes; empty if it is in place, below `pg_tblspc`.
        location: Vec<u8>,
    },
    /// The directory of a database was copied, file by file: `CREATE DATABASE` before 15 or with `STRATEGY = FILE_COPY`, and
    /// `ALTER DATABASE … SET TABLESPACE`. Replay copies what is there then.
    DatabaseCopy(DatabaseCopy),
    /// The directories of a database were removed, all of them or one that it was copied from.
    DatabaseDrop {
        /// Its OID.
        database: u32,
    },
    /// A tuple of a catalog that all databases share was changed in place, or deleted.
    SharedTuple(SharedTuple, TupleChange),
    /// Transactions hold locks that a hot standby has to hold for them.
    Locks(Vec<RelationLock>),
    /// Any other.
    Other,
}

/// What of a database lies in one tablespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DatabaseDirectory {
    /// The OID of the tablespace.
    pub tablespace: u32,
    /// The OID of the database.
    pub database: u32,
}

/// A directory that was made as the copy of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DatabaseCopy {
    /// The copy.
    pub to: DatabaseDirectory,
    /// What was copied.
    pub from: DatabaseDirectory,
}

/// A relation that nobody else may read until a transaction ends (`ACCESS EXCLUSIVE`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelationLock {
    /// The transaction, or one within it.
    pub xid: u32,
    /// The OID of the relation's database; 0 of one that all share.
    pub database: u32,
    /// The OID of the relation.
    pub relation: u32,
}

/// The end of a transaction, prepared or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TransactionEnd {
    /// The transaction that ends: of a prepared one, its own, not that of the session that ended it.
    pub xid: u32,
    /// When.
    pub time: PgTimestamp,
    /// Whether it was ended by `COMMIT PREPARED` or `ROLLBACK PREPARED`.
    pub prepared: bool,
    /// The transactions within it that end with it; none are told if they are very many.
    pub subtransactions: Vec<u32>,
    /// Whether it removes files of relations.
    pub removes: bool,
}

/// A checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    /// Where recovery from it starts.
    pub redo: Lsn,
    /// The timeline; `None` if the record names none that there can be.
    pub timeline: Option<TimelineId>,
    /// The timeline before, different only in the first checkpoint after a promotion.
    pub previous_timeline: Option<TimelineId>,
    /// The id of the next transaction.
    pub next_xid: FullXid,
}

/// Settings of the server that wrote the WAL; a hot standby needs at least as much.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ParameterChange {
    /// `max_connections`.
    pub max_connections: i32,
    /// `max_worker_processes`.
    pub max_worker_processes: i32,
    /// `max_wal_senders`.
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: i32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: i32,
    /// `wal_level`: 0 minimal, 1 replica, 2 logical.
    pub wal_level: i32,
}

impl RecordKind {
    /// The end of a transaction that this is.
    pub fn transaction_end(&self) -> Option<&TransactionEnd> {
        match self {
            Self::Commit(end) | Self::Abort(end) => Some(end),
            _ => None,
        }
    }

    /// Decodes a complete record.
    pub(super) fn decode(header: &RecordHeader, body: &[u8], major: PgMajor) -> Self {
        let kind = match header.rmgr {
            Rmgr::XACT => main_data(body).and_then(|data| xact(header, data, major)),
            // A switch has no data at all.
            Rmgr::XLOG if header.info & RMGR_INFO == XLOG_SWITCH => Some(Self::Switch),
            Rmgr::XLOG => main_data(body).and_then(|data| xlog(header, data, major)),
            Rmgr::TBLSPC => main_data(body).and_then(|data| tablespace(header, data)),
            Rmgr::DBASE => main_data(body).and_then(|data| database(header, data, major)),
            Rmgr::STANDBY => main_data(body).and_then(|data| standby(header, data)),
            Rmgr::HEAP => shared_tuple::decode(header, body, major),
            _ => None,
        };
        kind.unwrap_or(Self::Other)
    }

    /// Whether the body of such a record is of interest at all.
    pub(super) fn is_decoded(header: &RecordHeader) -> bool {
        match header.rmgr {
            Rmgr::XACT => true,
            Rmgr::TBLSPC => header.info & RMGR_INFO == TBLSPC_CREATE && header.total <= MAX_TABLESPACE,
            Rmgr::DBASE => header.total <= MAX_DATABASE,
            Rmgr::STANDBY => header.info & RMGR_INFO == STANDBY_LOCK && header.total <= MAX_LOCKS,
            Rmgr::HEAP => shared_tuple::may_be(header),
            // Page images are the bulk of this resource manager's records.
            Rmgr::XLOG => !matches!(header.info & RMGR_INFO, XLOG_FPI | XLOG_FPI_FOR_HINT),
            _ => false,
        }
    }

    /// Whether a record with this header ends or prepares a transaction, or is a restore point: whether an index of times,
    /// xids and names needs to know it.
    pub(super) fn is_indexed(header: &RecordHeader) -> bool {
        match header.rmgr {
            Rmgr::XACT => {
                matches!(header.info & XACT_OP, COMMIT | PREPARE | ABORT | COMMIT_PREPARED | ABORT_PREPARED)
            }
            Rmgr::XLOG => header.info & RMGR_INFO == XLOG_RESTORE_POINT,
            _ => false,
        }
    }

    /// What a record with this header may be that a restore has to know of. Its body is not known.
    pub(super) fn may_mark(header: &RecordHeader) -> SegmentMarks {
        let operation = header.info & RMGR_INFO;
        let parameters = header.rmgr == Rmgr::XLOG && operation == XLOG_PARAMETER_CHANGE;
        SegmentMarks {
            tablespace: header.rmgr == Rmgr::TBLSPC && operation == TBLSPC_CREATE,
            parameters,
            minimal: parameters,
            database_copy: header.rmgr == Rmgr::DBASE && operation == DBASE_COPY,
        }
    }
}

/// The part of `xl_info` that belongs to the resource manager: `~XLR_INFO_MASK`.
const RMGR_INFO: u8 = 0xF0;

pub(super) const XLOG_CHECKPOINT_SHUTDOWN: u8 = 0x00;
pub(super) const XLOG_CHECKPOINT_ONLINE: u8 = 0x10;
pub(super) const XLOG_SWITCH: u8 = 0x40;
const XLOG_BACKUP_END: u8 = 0x50;
const XLOG_PARAMETER_CHANGE: u8 = 0x60;
const XLOG_RESTORE_POINT: u8 = 0x70;
const XLOG_END_OF_RECOVERY: u8 = 0x90;
const XLOG_FPI_FOR_HINT: u8 = 0xA0;
const XLOG_FPI: u8 = 0xB0;
const XLOG_OVERWRITE_CONTRECORD: u8 = 0xD0;
const XLOG_CHECKPOINT_REDO: u8 = 0xE0;

/// `MAXFNAMELEN`: the field of a restore point's name, its final zero byte included.
const NAME_FIELD: usize = 64;

/// The name of a restore point, which is in the encoding of the database that it was created in. Bytes that are no UTF-8 become replacement
/// characters, by which a name is known to be none that recovery could be given. It is not longer than PostgreSQL's names are.
fn point_name(bytes: &[u8]) -> String {
    let name = String::from_utf8_lossy(bytes);
    if name.len() < NAME_FIELD {
        return name.into_owned();
    }
    let mark = char::REPLACEMENT_CHARACTER;
    let mut shortened = String::new();
    for c in name.chars() {
        if shortened.len() + c.len_utf8() + mark.len_utf8() >= NAME_FIELD {
            break;
        }
        shortened.push(c);
    }
    shortened.push(mark);
    shortened
}

/// Where a `CheckPoint` has its next transaction. What follows is as far behind it in all versions up to the oldest xid;
/// 19 put the state of logical decoding before it.
pub(super) fn next_xid_in_checkpoint(major: PgMajor) -> usize {
    if major.get() >= 19 { 32 } else { 24 }
}

fn xlog(header: &RecordHeader, data: &[u8], major: PgMajor) -> Option<RecordKind> {
    let lsn = |at| bytes::u64(data, at).map(Lsn);
    let time = |at| bytes::i64(data, at).map(PgTimestamp);
    let checkpoint = || {
        let timeline_at = |at| bytes::u32(data, at).map(TimelineId::new);
        let (timeline, previous_timeline) = (timeline_at(8)?, timeline_at(12)?);
        let next_xid = FullXid(bytes::u64(data, next_xid_in_checkpoint(major))?);
        Some(Checkpoint { redo: lsn(0)?, timeline, previous_timeline, next_xid })
    };
    Some(match header.info & RMGR_INFO {
        XLOG_CHECKPOINT_SHUTDOWN => RecordKind::CheckpointShutdown(checkpoint()?),
        XLOG_CHECKPOINT_ONLINE => RecordKind::CheckpointOnline(checkpoint()?),
        XLOG_CHECKPOINT_REDO => RecordKind::CheckpointRedo,
        XLOG_RESTORE_POINT => {
            let field = data.get(8..8 + NAME_FIELD)?;
            let name = field.split(|&b| b == 0).next().unwrap_or_default();
            RecordKind::RestorePoint { name: point_name(name), time: time(0)? }
        }
        XLOG_END_OF_RECOVERY => RecordKind::EndOfRecovery {
            time: time(0)?,
            timeline: TimelineId::new(bytes::u32(data, 8)?),
            previous: TimelineId::new(bytes::u32(data, 12)?),
        },
        XLOG_BACKUP_END => RecordKind::BackupEnd { start: lsn(0)? },
        XLOG_PARAMETER_CHANGE => RecordKind::ParameterChange(ParameterChange {
            max_connections: bytes::i32(data, 0)?,
            max_worker_processes: bytes::i32(data, 4)?,
            max_wal_senders: bytes::i32(data, 8)?,
            max_prepared_transactions: bytes::i32(data, 12)?,
            max_locks_per_transaction: bytes::i32(data, 16)?,
            wal_level: bytes::i32(data, 20)?,
        }),
        XLOG_OVERWRITE_CONTRECORD => RecordKind::OverwriteContrecord { overwritten: lsn(0)?, time: time(8)? },
        _ => return None,
    })
}

/// `XLOG_TBLSPC_CREATE`.
const TBLSPC_CREATE: u8 = 0x00;

/// A location is shorter than `MAXPGPATH`, 1,024 bytes.
const MAX_TABLESPACE: u32 = 1 << 12;

/// `xl_tblspc_create_rec`: the OID, then the location, a string.
fn tablespace(header: &RecordHeader, data: &[u8]) -> Option<RecordKind> {
    if header.info & RMGR_INFO != TBLSPC_CREATE {
        return None;
    }
    let location = data.get(4..)?.split(|&b| b == 0).next().unwrap_or_default().to_vec();
    Some(RecordKind::TablespaceCreate { oid: bytes::u32(data, 0)?, location })
}

/// `XLOG_DBASE_CREATE_FILE_COPY`; before 15 `XLOG_DBASE_CREATE`.
const DBASE_COPY: u8 = 0x00;

/// A database that is dropped is named with each of its tablespaces.
const MAX_DATABASE: u32 = 1 << 20;

/// `XLOG_DBASE_DROP`: 15 put another way to create a database before it.
fn dbase_drop(major: PgMajor) -> u8 {
    if major.get() >= 15 { 0x20 } else { 0x10 }
}

/// `xl_dbase_create_file_copy_rec`, `xl_dbase_drop_rec`.
fn database(header: &RecordHeader, data: &[u8], major: PgMajor) -> Option<RecordKind> {
    let directory = |at| {
        let (database, tablespace) = (bytes::u32(data, at)?, bytes::u32(data, at + 4)?);
        Some(DatabaseDirectory { tablespace, database })
    };
    match header.info & RMGR_INFO {
        DBASE_COPY => Some(RecordKind::DatabaseCopy(DatabaseCopy { to: directory(0)?, from: directory(8)? })),
        info if info == dbase_drop(major) => {
            Some(RecordKind::DatabaseDrop { database: bytes::u32(data, 0)? })
        }
        _ => None,
    }
}

/// `XLOG_STANDBY_LOCK`.
const STANDBY_LOCK: u8 = 0x00;

/// A record of more locks than fit into this is passed over: they are for a note to a person, and nobody's memory.
const MAX_LOCKS: u32 = 1 << 20;

/// `xl_standby_locks`: how many, then for each the transaction, the database and the relation.
fn standby(header: &RecordHeader, data: &[u8]) -> Option<RecordKind> {
    if header.info & RMGR_INFO != STANDBY_LOCK {
        return None;
    }
    let count = usize::try_from(bytes::u32(data, 0)?).ok()?;
    let locks = data.get(4..)?.get(..count.checked_mul(12)?)?;
    let lock = |lock: &[u8]| {
        let (xid, database) = (bytes::u32(lock, 0)?, bytes::u32(lock, 4)?);
        Some(RelationLock { xid, database, relation: bytes::u32(lock, 8)? })
    };
    locks.chunks_exact(12).map(lock).collect::<Option<Vec<_>>>().map(RecordKind::Locks)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixtures::{header, with_prefix, words};
    use super::*;

    #[test]
    fn locks_are_read_and_what_makes_no_sense_is_not() {
        let decode = |info, data: &[u32]| {
            let body = with_prefix(&words(data));
            RecordKind::decode(&header(Rmgr::STANDBY, info, 740), &body, PgMajor::new(17).unwrap())
        };
        let lock = |xid, relation| RelationLock { xid, database: 5, relation };
        let locks = RecordKind::Locks(vec![lock(740, 16384), lock(739, 16387)]);
        assert_eq!(decode(0x00, &[2, 740, 5, 16384, 739, 5, 16387]), locks);
        assert_eq!(decode(0x00, &[2, 740, 5, 16384]), RecordKind::Other, "fewer than it says");
        assert_eq!(decode(0x10, &[0, 740, 5, 16384]), RecordKind::Other, "running transactions");
    }

    #[test]
    fn a_name_that_is_no_utf8_is_marked_and_fits() {
        assert_eq!(point_name("Änderung".as_bytes()), "Änderung");
        assert_eq!(point_name(&[b'n'; 63]), "n".repeat(63));
        assert_eq!(point_name(b"vor-\xC4nderung"), "vor-\u{FFFD}nderung");
        let long = point_name(&[[b'n'; 62].as_slice(), b"\xC4"].concat());
        assert_eq!(long, format!("{}\u{FFFD}", "n".repeat(60)));
        let all = point_name(&[0xC4; 63]);
        assert!(all.len() <= 63 && all.chars().all(|c| c == char::REPLACEMENT_CHARACTER), "{all}");
    }

    proptest! {
        #[test]
        fn any_body_has_a_kind(
            rmgr in prop::sample::select(vec![0u8, 1, 4, 5, 8]),
            info: u8,
            xid: u32,
            data: Vec<u8>,
            raw: Vec<u8>,
            major in 13u32..=19,
        ) {
            let (header, major) = (header(Rmgr(rmgr), info, xid), PgMajor::new(major).unwrap());
            for body in [with_prefix(&data), raw] {
                let _kind = RecordKind::decode(&header, &body, major);
            }
        }
    }
}
