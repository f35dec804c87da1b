//! `DROP DATABASE`, most of which no transaction undoes: it first marks the database as invalid, in place, then deletes its tuple, and
//! then removes its files, each before its commit. Recovery that stops between leaves a database that cannot be opened.
//!
//! Source: `dropdb` in `src/backend/commands/dbcommands.c`. Minor releases before 13.12, 14.9 and 15.4 do not mark it. `ALTER DATABASE
//! … SET TABLESPACE` removes files, too, and deletes no tuple.

use std::collections::BTreeMap;

use walpoint_base::Lsn;

use super::kind::RecordKind;
use super::record::WalRecord;
use super::shared_tuple::{SharedTuple, TupleChange};

/// Tuples that were changed in place and are remembered: those of this many databases.
const REMEMBERED: usize = 4096;

/// A database whose removal has begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DatabaseDrop {
    /// The transaction.
    pub xid: u32,
    /// The OID of the database, once its files are removed.
    pub database: Option<u32>,
    /// The first record that is not undone where the transaction does not end.
    pub begins: Lsn,
}

/// The removals that have begun and not ended, in what was read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct DatabaseDrops {
    /// Where a tuple was changed in place last.
    in_place: BTreeMap<SharedTuple, Lsn>,
    /// By transaction, those that deleted tuples: where they changed one of these in place before, and whose files they removed.
    deleting: BTreeMap<u32, (Option<Lsn>, Option<DatabaseDrop>)>,
}

impl DatabaseDrops {
    /// Takes the next record; ends of transactions are for [`ends`](Self::ends).
    pub(super) fn replay(&mut self, record: &WalRecord) {
        let xid = record.xid;
        match record.kind {
            RecordKind::SharedTuple(tuple, TupleChange::InPlace) => {
                if self.in_place.len() >= REMEMBERED {
                    self.in_place.clear();
                }
                self.in_place.insert(tuple, record.start);
            }
            RecordKind::SharedTuple(tuple, TupleChange::Deleted) => {
                let marked = self.in_place.remove(&tuple);
                let (begins, drop) = self.deleting.entry(xid).or_default();
                if let Some(marked) = marked {
                    *begins = Some(marked);
                    *drop = Some(DatabaseDrop { xid, database: None, begins: marked });
                }
            }
            RecordKind::DatabaseDrop { database } => {
                if let Some((begins, drop)) = self.deleting.get_mut(&xid) {
                    let begins = begins.unwrap_or(record.start);
                    *drop = Some(DatabaseDrop { xid, database: Some(database), begins });
                }
            }
            // Nothing that had not ended does.
            RecordKind::CheckpointShutdown(_) => self.deleting.clear(),
            _ => {}
        }
    }

    /// A transaction ended; the removal that ended with it.
    pub(super) fn ends(&mut self, xid: u32) -> Option<DatabaseDrop> {
        self.deleting.remove(&xid)?.1
    }

    /// Those that have not ended.
    pub(super) fn open(&self) -> impl Iterator<Item = DatabaseDrop> {
        self.deleting.values().filter_map(|(_, drop)| *drop)
    }
}
