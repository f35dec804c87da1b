//! What is found.

use std::collections::BTreeSet;

use walpoint_base::{Lsn, PgTimestamp, TimelineId};

/// A file of a relation, its forks and further segments included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RelationFile {
    /// The OID of the tablespace.
    pub tablespace: u32,
    /// The OID of the database; 0 of a catalog that all share.
    pub database: u32,
    /// The number of the file: `pg_class.relfilenode`, not the OID of the relation.
    pub number: u32,
}

/// How many rows were changed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct RowCounts {
    /// Rows that were inserted.
    pub inserted: u64,
    /// Rows that were updated.
    pub updated: u64,
    /// Rows that were deleted.
    pub deleted: u64,
}

impl RowCounts {
    /// All of them.
    pub fn total(self) -> u64 {
        self.inserted.saturating_add(self.updated).saturating_add(self.deleted)
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Adds others.
    pub fn add(&mut self, other: Self) {
        self.inserted = self.inserted.saturating_add(other.inserted);
        self.updated = self.updated.saturating_add(other.updated);
        self.deleted = self.deleted.saturating_add(other.deleted);
    }
}

/// What happened to a database or a tablespace.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ObjectChange {
    /// A database was created.
    DatabaseCreated(u32),
    /// The files of a database were copied to another tablespace.
    DatabaseCopied(u32),
    /// A database was dropped: its row of `pg_database` was deleted, and its files were removed.
    DatabaseDropped(u32),
    /// Files of a database were removed, and no row of `pg_database` was deleted: they were left behind by a move to another
    /// tablespace, or by a creation that failed.
    DatabaseFilesRemoved(u32),
    /// A tablespace was created.
    TablespaceCreated(u32),
    /// A tablespace was dropped.
    TablespaceDropped(u32),
}

/// What it means that a transaction removed files of relations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileRemoval {
    /// The relations were dropped: rows of `pg_class` were deleted, and no file was created that could replace one.
    Dropped,
    /// The relations are still there with other files: rows of `pg_class` were updated, none deleted, and files were created.
    Replaced,
    /// It did both, or not all of the transaction was read, or it is not known which file is `pg_class`.
    Unclear,
}

/// The end of a transaction and what it changed. What it rolled back to a savepoint is not in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TransactionEvent {
    /// The transaction. One that was aborted may be one within another: a rollback to a savepoint looks no different.
    pub xid: u32,
    /// Whether it was committed.
    pub committed: bool,
    /// Whether it had been prepared.
    pub prepared: bool,
    /// When it ended.
    pub time: PgTimestamp,
    /// Where the record of its end starts.
    pub lsn: Lsn,
    /// Where the next record may start.
    pub next: Lsn,
    /// Where its first record starts that was read; that of its end, if there is no other.
    pub first: Lsn,
    /// The first record from which on what it did stays done, though it is not committed: of `DROP DATABASE`.
    pub irrevocable: Option<Lsn>,
    /// Whether it may have changed more than was read: it began before that, or in a gap, or there were too many open
    /// transactions to count all.
    pub at_least: bool,
    /// How many transactions within it were committed with it.
    pub subtransactions: u64,
    /// Rows by file, sorted by that.
    pub rows: Vec<(RelationFile, RowCounts)>,
    /// Files that it created.
    pub created: Vec<RelationFile>,
    /// Files that it removed when it was committed.
    pub removed: Vec<RelationFile>,
    /// Rows of `pg_class` that were there before and that it updated; none if it is not known which file that is.
    pub relations_updated: u64,
    /// Rows of `pg_class` that were there before and that it deleted.
    pub relations_deleted: u64,
    /// Databases and tablespaces.
    pub objects: Vec<ObjectChange>,
}

impl TransactionEvent {
    /// Rows of all files.
    pub fn total(&self) -> RowCounts {
        self.rows.iter().fold(RowCounts::default(), |mut all, (_, rows)| {
            all.add(*rows);
            all
        })
    }

    /// Whether it changed anything that is counted.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.created.is_empty() && self.removed.is_empty() && self.objects.is_empty()
    }

    /// What it means that it removed files; `None` if it removed none that were there before.
    pub fn removal(&self) -> Option<FileRemoval> {
        let of = |files: &[RelationFile]| files.iter().copied().collect::<BTreeSet<RelationFile>>();
        let (created, removed) = (of(&self.created), of(&self.removed));
        if removed.is_subset(&created) {
            return None;
        }
        let keeps_none = created.is_subset(&removed);
        Some(match (self.at_least, self.relations_deleted > 0, keeps_none) {
            (false, true, true) => FileRemoval::Dropped,
            (false, false, false) if self.relations_updated > 0 => FileRemoval::Replaced,
            _ => FileRemoval::Unclear,
        })
    }
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WalEvent {
    /// A transaction ended.
    Transaction(Box<TransactionEvent>),
    /// A transaction was prepared: it has not ended.
    Prepared {
        /// The transaction.
        xid: u32,
        /// What `COMMIT PREPARED` calls it.
        gid: String,
        /// When.
        time: PgTimestamp,
        /// Where the record starts.
        lsn: Lsn,
    },
    /// A restore point was created.
    RestorePoint {
        /// Its name.
        name: String,
        /// When.
        time: PgTimestamp,
        /// Where the record starts.
        lsn: Lsn,
    },
    /// Something happened to a database or a tablespace, and no transaction did it.
    Object {
        /// Where the record starts.
        lsn: Lsn,
        /// What.
        change: ObjectChange,
    },
    /// A segment was ended early.
    Switch {
        /// Where the record starts.
        lsn: Lsn,
    },
    /// The server was shut down, or recovered from a crash: nothing was running.
    Shutdown {
        /// Where the record of the checkpoint starts.
        lsn: Lsn,
    },
    /// A recovery ended, and a timeline began.
    Promotion {
        /// Where its first record starts.
        lsn: Lsn,
        /// When, if that is on record.
        time: Option<PgTimestamp>,
        /// The timeline that began.
        timeline: TimelineId,
        /// The timeline that was left.
        previous: TimelineId,
    },
}
