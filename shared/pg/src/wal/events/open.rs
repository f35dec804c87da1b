//! The transactions that have not ended: what each changed so far.
//!
//! Each transaction within another one has its own counts until the end of the outer one names it: it may be rolled back alone. What
//! exceeds [`ENTRIES`] is not counted, and the ends that it may belong to say so.
//!
//! Whether all of a transaction was read is decided by ids: one that is not lower than the next id at some record began behind that
//! record. The first record that tells the next id decides; a gap begins anew.

use std::collections::{BTreeMap, BTreeSet};

use walpoint_base::{Lsn, PgMajor};

use super::super::database_drops::DatabaseDrops;
use super::super::kind::{Checkpoint, RecordKind, RelationLock, TransactionEnd};
use super::super::record::WalRecord;
use super::change::{self, Change, EndLists, PG_CLASS, RowPlace, RowPlaces};
use super::event::{ObjectChange, RelationFile, RowCounts, TransactionEvent, WalEvent};

/// Open transactions, files with counts, created files and the like that are remembered, taken together: about 15 MiB.
pub const ENTRIES: usize = 100_000;

/// Databases whose `pg_class` is remembered to be in another file than at first, and created files whose transaction is not known yet.
const REMEMBERED: usize = 4096;

/// What one transaction changed.
#[derive(Debug)]
struct Open {
    /// Its first record.
    first: Lsn,
    prepared: bool,
    at_least: bool,
    rows: Vec<(RelationFile, RowCounts)>,
    created: Vec<RelationFile>,
    objects: Vec<ObjectChange>,
    class: ClassRows,
}

/// What a transaction does to rows of `pg_class`. One that it inserted itself, as a rewrite does for the new file of a relation, does not
/// count when it is updated or deleted.
#[derive(Debug, Default)]
struct ClassRows {
    own: BTreeSet<RowPlace>,
    updated: u64,
    deleted: u64,
}

impl ClassRows {
    fn change(&mut self, RowPlaces { old, new }: RowPlaces) {
        let own = old.is_none_or(|old| self.own.remove(&old));
        match new {
            Some(new) if own => {
                self.own.insert(new);
            }
            Some(_) => self.updated += 1,
            None if !own => self.deleted += 1,
            None => {}
        }
    }

    fn absorb(&mut self, within: Self) {
        self.own.extend(within.own);
        self.updated += within.updated;
        self.deleted += within.deleted;
    }
}

impl Open {
    fn new(first: Lsn) -> Self {
        Self {
            first,
            prepared: false,
            at_least: false,
            rows: Vec::new(),
            created: Vec::new(),
            objects: Vec::new(),
            class: ClassRows::default(),
        }
    }

    fn entries(&self) -> usize {
        1 + self.rows.len() + self.created.len() + self.objects.len() + self.class.own.len()
    }

    fn is_empty(&self) -> bool {
        self.entries() == 1
    }

    /// The counts of a file; `None` if there are none yet and there may be no more.
    fn rows_of(&mut self, file: RelationFile, room: bool) -> Option<&mut RowCounts> {
        let at = match self.rows.binary_search_by_key(&file, |(file, _)| *file) {
            Ok(at) => at,
            Err(at) if room => {
                self.rows.insert(at, (file, RowCounts::default()));
                at
            }
            Err(_) => return None,
        };
        self.rows.get_mut(at).map(|(_, rows)| rows)
    }

    /// Takes over what a transaction within it changed.
    fn absorb(&mut self, within: Self) {
        self.first = self.first.min(within.first);
        self.at_least |= within.at_least;
        for (file, rows) in within.rows {
            if let Some(own) = self.rows_of(file, true) {
                own.add(rows);
            }
        }
        self.created.extend(within.created);
        self.objects.extend(within.objects);
        self.class.absorb(within.class);
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tally {
    open: BTreeMap<u32, Open>,
    /// What is remembered in all.
    entries: usize,
    /// The lowest and the highest transaction that was not counted because there were too many.
    uncounted: Option<(u32, u32)>,
    /// Transactions from this one on began behind what was read first.
    complete_from: Option<u32>,
    /// Which file `pg_class` is, by database, where that was changed.
    class_files: BTreeMap<u32, u32>,
    /// Created files whose record names no transaction, by database and number.
    unattributed: BTreeMap<(u32, u32), (RelationFile, Lsn)>,
    unattributed_files: u64,
    without_end: u64,
    drops: DatabaseDrops,
}

impl Tally {
    pub(super) fn without_end(&self) -> u64 {
        let open = self.open.values().filter(|open| !open.is_empty()).count();
        self.without_end.saturating_add(u64::try_from(open).unwrap_or(u64::MAX))
    }

    pub(super) fn unattributed_files(&self) -> u64 {
        let open = u64::try_from(self.unattributed.len()).unwrap_or(u64::MAX);
        self.unattributed_files.saturating_add(open)
    }

    /// What follows does not continue what was read.
    pub(super) fn gap(&mut self) {
        self.complete_from = None;
        self.forget_files();
        // A transaction that was open at the gap is lower than any id that a record behind it gives.
        self.open.values_mut().for_each(|open| open.at_least = true);
        self.drops = DatabaseDrops::default();
    }

    /// Takes the next record; what it shows is added to `found`. `body`: if it was kept.
    pub(super) fn record(
        &mut self,
        record: &WalRecord,
        body: Option<&[u8]>,
        major: PgMajor,
        found: &mut Vec<WalEvent>,
    ) {
        self.drops.replay(record);
        let lsn = record.start;
        match &record.kind {
            RecordKind::Commit(end) => self.end(record, end, true, body, found),
            RecordKind::Abort(end) => self.end(record, end, false, body, found),
            RecordKind::Prepare { xid, time, gid, subtransactions } => {
                self.prepare(*xid, lsn, subtransactions);
                found.push(WalEvent::Prepared { xid: *xid, gid: gid.clone(), time: *time, lsn });
            }
            RecordKind::RestorePoint { name, time } => {
                found.push(WalEvent::RestorePoint { name: name.clone(), time: *time, lsn });
            }
            RecordKind::Switch => found.push(WalEvent::Switch { lsn }),
            RecordKind::CheckpointShutdown(checkpoint) => {
                found.extend(stopped(lsn, checkpoint));
                self.nothing_runs();
                self.know_next(low(checkpoint));
            }
            RecordKind::EndOfRecovery { time, timeline: Some(timeline), previous: Some(previous) } => {
                let (time, timeline, previous) = (Some(*time), *timeline, *previous);
                found.push(WalEvent::Promotion { lsn, time, timeline, previous });
                self.nothing_runs();
            }
            RecordKind::Locks(locks) => self.locked(locks, lsn),
            _ => {
                let change = body.and_then(|body| change::decode(record.rmgr, record.info, body, major));
                match change.map(|change| change.without_transaction(record.xid)) {
                    Some(Ok(change)) => found.push(WalEvent::Object { lsn, change }),
                    Some(Err(change)) => self.change(record.xid, lsn, change),
                    None => {}
                }
            }
        }
    }

    fn change(&mut self, xid: u32, lsn: Lsn, change: Change) {
        match change {
            Change::Rows(file, rows, places) => self.rows(xid, lsn, (file, rows), places),
            Change::InsertUndone(file) => {
                let rows = self.open.get_mut(&xid).and_then(|open| open.rows_of(file, false));
                if let Some(rows) = rows {
                    rows.inserted = rows.inserted.saturating_sub(1);
                }
            }
            Change::FileCreated(file) if xid == 0 => {
                if self.unattributed.len() >= REMEMBERED {
                    self.forget_files();
                }
                self.unattributed.insert((file.database, file.number), (file, lsn));
            }
            Change::FileCreated(file) => {
                self.add(xid, lsn, |open| open.created.push(file));
            }
            Change::Object(object) => {
                // Of a database each tablespace has a record.
                self.add(xid, lsn, |open| open.objects.push(object));
            }
            Change::DatabaseFilesRemoved(database) => {
                let object = ObjectChange::DatabaseFilesRemoved(database);
                self.add(xid, lsn, |open| open.objects.push(object));
            }
            Change::ClassFile { database, number } => {
                if self.class_files.len() < REMEMBERED || self.class_files.contains_key(&database) {
                    self.class_files.insert(database, number);
                }
            }
            Change::Running { next_xid, oldest } => {
                self.know_next(next_xid);
                self.forget_before(oldest);
            }
        }
    }

    fn rows(&mut self, xid: u32, lsn: Lsn, (file, rows): (RelationFile, RowCounts), places: RowPlaces) {
        let is_class = self.class_files.get(&file.database).copied().unwrap_or(PG_CLASS) == file.number;
        let room = self.entries < ENTRIES;
        let Some(open) = self.open_of(xid, lsn) else { return };
        let before = open.entries();
        match open.rows_of(file, room) {
            Some(counts) => counts.add(rows),
            None => open.at_least = true,
        }
        match is_class {
            true if room => open.class.change(places),
            true => open.at_least = true,
            false => {}
        }
        let after = open.entries();
        self.entries = (self.entries + after).saturating_sub(before);
    }

    fn add(&mut self, xid: u32, lsn: Lsn, push: impl FnOnce(&mut Open)) {
        let room = self.entries < ENTRIES;
        let Some(open) = self.open_of(xid, lsn) else { return };
        if room {
            push(open);
            self.entries += 1;
        } else {
            open.at_least = true;
        }
    }

    /// What a transaction changed so far; nothing if there is no room for another one.
    fn open_of(&mut self, xid: u32, lsn: Lsn) -> Option<&mut Open> {
        if !self.open.contains_key(&xid) {
            if self.entries >= ENTRIES {
                let (low, high) = self.uncounted.unwrap_or((xid, xid));
                let low = if precedes(xid, low) { xid } else { low };
                let high = if precedes(high, xid) { xid } else { high };
                self.uncounted = Some((low, high));
                return None;
            }
            self.entries += 1;
        }
        Some(self.open.entry(xid).or_insert_with(|| Open::new(lsn)))
    }

    /// A new relation is locked by who creates it, and its first file has its own number.
    fn locked(&mut self, locks: &[RelationLock], lsn: Lsn) {
        for lock in locks {
            if let Some((file, created)) = self.unattributed.remove(&(lock.database, lock.relation)) {
                self.add(lock.xid, created.min(lsn), |open| open.created.push(file));
            }
        }
    }

    fn prepare(&mut self, xid: u32, lsn: Lsn, subtransactions: &[u32]) {
        let mut whole = self.take(xid).unwrap_or_else(|| Open::new(lsn));
        for within in subtransactions {
            if let Some(within) = self.take(*within) {
                whole.absorb(within);
            }
        }
        whole.prepared = true;
        self.entries += whole.entries();
        self.open.insert(xid, whole);
    }

    fn take(&mut self, xid: u32) -> Option<Open> {
        let open = self.open.remove(&xid)?;
        self.entries = self.entries.saturating_sub(open.entries());
        Some(open)
    }

    fn end(
        &mut self,
        record: &WalRecord,
        end: &TransactionEnd,
        committed: bool,
        body: Option<&[u8]>,
        found: &mut Vec<WalEvent>,
    ) {
        let xid = end.xid;
        let lists = EndLists::read(record.info, body.unwrap_or_default());
        let mut whole = self.take(xid).unwrap_or_else(|| Open::new(record.start));
        let mut at_least = self.may_be_incomplete(xid);
        let mut count = 0u64;
        for within in lists.subtransactions() {
            count += 1;
            at_least |= self.is_uncounted(within);
            let _of_its_own = self.drops.ends(within);
            if let Some(within) = self.take(within) {
                whole.absorb(within);
            }
        }
        let drop = self.drops.ends(xid);
        let dropped = drop.and_then(|drop| drop.database);
        let mut objects = whole.objects;
        for object in &mut objects {
            if let ObjectChange::DatabaseFilesRemoved(database) = *object
                && dropped == Some(database)
            {
                *object = ObjectChange::DatabaseDropped(database);
            }
        }
        objects.sort_unstable();
        objects.dedup();
        // What a transaction creates is removed with it where it is aborted, and nothing else is.
        let removed = if committed { lists.relations().collect() } else { Vec::new() };
        // The files of a new database are the database.
        let mut created = whole.created;
        created.retain(|file| !objects.contains(&ObjectChange::DatabaseCreated(file.database)));
        found.push(WalEvent::Transaction(Box::new(TransactionEvent {
            xid,
            committed,
            prepared: end.prepared,
            time: end.time,
            lsn: record.start,
            next: record.next,
            first: whole.first,
            irrevocable: drop.filter(|drop| drop.database.is_some()).map(|drop| drop.begins),
            at_least: at_least || whole.at_least,
            subtransactions: count,
            rows: whole.rows.into_iter().filter(|(_, rows)| !rows.is_empty()).collect(),
            created,
            removed,
            relations_updated: whole.class.updated,
            relations_deleted: whole.class.deleted,
            objects,
        })));
    }

    /// Whether a transaction may have changed something before what was read, or something that was not counted.
    fn may_be_incomplete(&self, xid: u32) -> bool {
        self.complete_from.is_none_or(|from| precedes(xid, from)) || self.is_uncounted(xid)
    }

    fn is_uncounted(&self, xid: u32) -> bool {
        self.uncounted.is_some_and(|(low, high)| !precedes(xid, low) && !precedes(high, xid))
    }

    fn know_next(&mut self, next_xid: u32) {
        self.complete_from.get_or_insert(next_xid);
    }

    /// The server was stopped, or crashed: only what was prepared goes on.
    fn nothing_runs(&mut self) {
        self.forget_where(|_, open| !open.prepared);
        self.forget_files();
    }

    /// All that was before the oldest running one has ended.
    fn forget_before(&mut self, oldest: u32) {
        let lowest = self.open.keys().next().is_some_and(|xid| precedes(*xid, oldest));
        let highest = self.open.keys().next_back().is_some_and(|xid| precedes(*xid, oldest));
        if lowest || highest {
            self.forget_where(|xid, open| !open.prepared && precedes(xid, oldest));
        }
    }

    fn forget_where(&mut self, ended: impl Fn(u32, &Open) -> bool) {
        let (mut entries, mut without_end) = (0, 0);
        self.open.retain(|xid, open| {
            let keep = !ended(*xid, open);
            if !keep {
                entries += open.entries();
                without_end += u64::from(!open.is_empty());
            }
            keep
        });
        self.entries = self.entries.saturating_sub(entries);
        self.without_end = self.without_end.saturating_add(without_end);
    }

    fn forget_files(&mut self) {
        self.unattributed_files = self.unattributed_files();
        self.unattributed.clear();
    }
}

/// Whether a transaction's id was given out before another's: `TransactionIdPrecedes`.
fn precedes(one: u32, other: u32) -> bool {
    one.wrapping_sub(other).cast_signed() < 0
}

/// The next transaction's id without its epoch.
fn low(checkpoint: &Checkpoint) -> u32 {
    checkpoint.next_xid.xid()
}

/// A checkpoint while nothing runs: the end of a recovery that began a timeline, or a shutdown.
fn stopped(lsn: Lsn, checkpoint: &Checkpoint) -> Option<WalEvent> {
    match (checkpoint.timeline, checkpoint.previous_timeline) {
        (Some(timeline), Some(previous)) if timeline != previous => {
            Some(WalEvent::Promotion { lsn, time: None, timeline, previous })
        }
        _ => Some(WalEvent::Shutdown { lsn }),
    }
}
