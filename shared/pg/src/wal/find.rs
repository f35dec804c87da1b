//! Where recovery stops: PostgreSQL's own rule.
//!
//! Source: `recoveryStopsBefore` and `recoveryStopsAfter` in `src/backend/access/transam/xlogrecovery.c` (`xlog.c` in 13
//! and 14). A record is looked at before it is replayed and after. Commit times are not monotone, so only reading the
//! records in order tells where a time target stops.

use std::collections::{BTreeMap, BTreeSet};

use walpoint_base::target::FullXid;
use walpoint_base::{Lsn, PgTimestamp, RecoveryTarget, SegmentName};

use super::database_drops::{DatabaseDrop, DatabaseDrops};
use super::error::WalError;
use super::kind::{RecordKind, RelationLock};
use super::reader::RecordReader;
use super::record::WalRecord;
use super::walk::SegmentEnd;

/// A recovery target with everything that decides where it stops.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetRule {
    /// The target.
    pub target: RecoveryTarget,
    /// `recovery_target_inclusive`; counts for times, LSNs and xids.
    pub inclusive: bool,
    /// Where the base backup is consistent (its stop LSN); counts for [`RecoveryTarget::Immediate`].
    pub consistent: Lsn,
}

impl TargetRule {
    /// Whether recovery stops before it replays this record.
    pub fn stops_before(&self, record: &WalRecord) -> bool {
        let end = record.kind.transaction_end();
        match (&self.target, self.inclusive, end) {
            (RecoveryTarget::Lsn(lsn), false, _) => record.start >= *lsn,
            (target, false, Some(end)) if xid_of(target).is_some() => xid_of(target) == Some(end.xid),
            // Several transactions may share a time: inclusive stops behind the last of them, exclusive before the first.
            (RecoveryTarget::Time(time), true, Some(end)) => end.time > *time,
            (RecoveryTarget::Time(time), false, Some(end)) => end.time >= *time,
            _ => false,
        }
    }

    /// Whether recovery stops once it has replayed this record.
    pub fn stops_after(&self, record: &WalRecord) -> bool {
        match (&self.target, &record.kind) {
            (RecoveryTarget::Name(wanted), RecordKind::RestorePoint { name, .. }) => name == wanted,
            (RecoveryTarget::Lsn(lsn), _) => self.inclusive && record.start >= *lsn,
            (target, kind) if xid_of(target).is_some() => {
                self.inclusive && kind.transaction_end().map(|end| end.xid) == xid_of(target)
            }
            (RecoveryTarget::Immediate, _) => record.next >= self.consistent,
            _ => false,
        }
    }
}

/// The transaction that a target names, as WAL records name it.
fn xid_of(target: &RecoveryTarget) -> Option<u32> {
    match target {
        RecoveryTarget::Xid(xid) => Some(*xid),
        RecoveryTarget::FullXid(full) => Some(FullXid(*full).xid()),
        _ => None,
    }
}

/// Where recovery stops.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetStop {
    /// The record that decides.
    pub record: WalRecord,
    /// Whether that record is still replayed.
    pub replayed: bool,
    /// What a paused recovery does not let anybody read there. Only what was locked in the segments that the search read.
    pub locks: HeldLocks,
}

/// Locks of transactions that have not ended. A hot standby holds them until recovery goes on, or ends.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HeldLocks {
    /// By transaction, then by database and relation.
    held: BTreeMap<u32, BTreeMap<(u32, u32), Taken>>,
    /// Prepared transactions that have not ended, those within them too: each leads to the one that was prepared.
    prepared: BTreeMap<u32, PreparedXact>,
    /// Transactions that ended and had locked something, those within them too.
    ended: BTreeSet<u32>,
    last_end: Option<Lsn>,
    /// Where the record starts that locked something while nothing was locked, if it is the lock's own; prepared transactions aside.
    locked_at: Option<Lsn>,
    last_removal: Option<Removal>,
    drops: DatabaseDrops,
}

/// A transaction that was committed, and removed a database, or had locked relations for itself and removed files of relations, as DROP
/// and TRUNCATE do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Removal {
    /// The transaction.
    pub xid: u32,
    /// When it was committed.
    pub time: PgTimestamp,
    /// Where the record of its commit starts.
    pub lsn: Lsn,
    /// The last position before that at which nothing was locked; before the removal of a database, the last one at which it was whole.
    pub unlocked: Option<Unlocked>,
    /// The OID of the database, if it removed one.
    pub database: Option<u32>,
}

/// A position at which nothing was locked but by prepared transactions, and behind which something is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unlocked {
    /// Where the record starts that locks something.
    pub lsn: Lsn,
    /// Whether no transaction ended since.
    pub same_transactions: bool,
}

/// A transaction that was prepared and has not ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PreparedXact {
    /// The transaction.
    pub xid: u32,
    /// What `COMMIT PREPARED` calls it.
    pub gid: String,
    /// The transactions within it.
    pub subtransactions: Vec<u32>,
}

/// When a lock was taken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Taken {
    /// Before this record, which repeats what is locked: checkpoints do.
    Before(Lsn),
    /// By this record.
    At(Lsn),
}

impl HeldLocks {
    /// All of them: first those taken at a time that is not known, then the others in the order in which they were taken.
    pub fn all(&self) -> Vec<(Taken, RelationLock)> {
        let locks = self.held.iter().flat_map(|(&xid, relations)| {
            relations
                .iter()
                .map(move |(&(database, relation), &taken)| (taken, RelationLock { xid, database, relation }))
        });
        let mut all: Vec<_> = locks.collect();
        all.sort_by_key(|(taken, _)| *taken);
        all
    }

    /// Where nothing was locked yet, if something is now.
    pub fn unlocked(&self) -> Option<Unlocked> {
        self.locked_at.filter(|_| self.is_locked()).map(|lsn| self.before(lsn))
    }

    /// Whether a transaction that was not prepared holds a lock.
    fn is_locked(&self) -> bool {
        self.held.keys().any(|xid| !self.is_prepared(*xid))
    }

    /// Removals of databases that have begun and not ended, each with the last position at which the database was whole.
    pub fn drops(&self) -> impl Iterator<Item = (DatabaseDrop, Unlocked)> {
        self.drops.open().map(|drop| (drop, self.before(drop.begins)))
    }

    fn before(&self, lsn: Lsn) -> Unlocked {
        Unlocked { lsn, same_transactions: self.last_end < Some(lsn) }
    }

    /// The last transaction that removed a database, or files of relations.
    pub fn last_removal(&self) -> Option<Removal> {
        self.last_removal
    }

    /// The prepared transactions that have not ended, of those prepared in what was read.
    pub fn prepared(&self) -> impl Iterator<Item = &PreparedXact> {
        self.prepared.values()
    }

    fn is_prepared(&self, xid: u32) -> bool {
        self.prepared.contains_key(&xid) || self.prepared.values().any(|p| p.subtransactions.contains(&xid))
    }

    fn replay(&mut self, record: &WalRecord) {
        self.drops.replay(record);
        match &record.kind {
            RecordKind::Locks(locks) => {
                // A checkpoint may repeat the lock of a transaction whose end it comes behind, as PostgreSQL's standbys know.
                let is_held =
                    |lock: &&RelationLock| record.xid == lock.xid || !self.ended.contains(&lock.xid);
                let locks: Vec<&RelationLock> = locks.iter().filter(is_held).collect();
                if !self.is_locked() && !locks.is_empty() {
                    let own = locks.iter().all(|lock| lock.xid == record.xid);
                    self.locked_at = own.then_some(record.start);
                }
                for &RelationLock { xid, database, relation } in locks {
                    // Whoever takes a lock says so itself; a checkpoint, or pg_log_standby_snapshot(), repeats others'.
                    let taken = if record.xid == xid { Taken::At } else { Taken::Before };
                    let of_transaction = self.held.entry(xid).or_default();
                    of_transaction.entry((database, relation)).or_insert(taken(record.start));
                }
            }
            RecordKind::Prepare { xid, gid, subtransactions, .. } => {
                let (xid, gid, subtransactions) = (*xid, gid.clone(), subtransactions.clone());
                self.prepared.insert(xid, PreparedXact { xid, gid, subtransactions });
            }
            RecordKind::Commit(end) | RecordKind::Abort(end) => {
                let unlocked = self.unlocked();
                let mut locked = false;
                for xid in end.subtransactions.iter().chain([&end.xid]) {
                    locked |= self.held.remove(xid).is_some();
                }
                if locked {
                    self.ended.extend(end.subtransactions.iter().chain([&end.xid]));
                }
                let dropped = self.drops.ends(end.xid);
                if (locked && end.removes || dropped.is_some())
                    && matches!(record.kind, RecordKind::Commit(_))
                {
                    let (xid, time, lsn) = (end.xid, end.time, record.start);
                    let unlocked = dropped.map_or(unlocked, |dropped| Some(self.before(dropped.begins)));
                    let database = dropped.and_then(|dropped| dropped.database);
                    self.last_removal = Some(Removal { xid, time, lsn, unlocked, database });
                }
                self.prepared.remove(&end.xid);
                self.last_end = Some(record.start);
            }
            // Only prepared transactions survive their server.
            RecordKind::CheckpointShutdown(_) => {
                let mut held = std::mem::take(&mut self.held);
                held.retain(|xid, _| self.is_prepared(*xid));
                self.held = held;
            }
            _ => {}
        }
    }
}

impl TargetStop {
    /// The position up to which WAL is replayed.
    pub fn end(&self) -> Lsn {
        if self.replayed { self.record.next } else { self.record.start }
    }
}

/// How far a search that has not found its stop came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SearchProgress {
    /// Where the last record that was looked at starts.
    pub last_record: Option<Lsn>,
    /// The time of the last commit or abort that would be replayed.
    pub last_time: Option<PgTimestamp>,
    /// Where the WAL ended early, if it did: no later segment can follow.
    pub ended: Option<Lsn>,
    /// The next transaction's id by the last checkpoint that was looked at.
    pub next_xid: Option<FullXid>,
}

/// Looks for the stop in one segment after the other.
///
/// The end of a transaction may begin in one segment and end in the next: the decision then falls in the next, so a
/// search that was narrowed to a segment needs the one after it too.
#[derive(Debug)]
pub struct StopFinder {
    rule: TargetRule,
    from: Lsn,
    reader: RecordReader,
    progress: SearchProgress,
    locks: HeldLocks,
}

impl StopFinder {
    /// A search that looks at records from `from` (the backup's redo position) on.
    pub fn new(rule: TargetRule, from: Lsn) -> Self {
        let (progress, locks) = (SearchProgress::default(), HeldLocks::default());
        Self { rule, from, reader: RecordReader::new(), progress, locks }
    }

    /// Reads the next segment. The stop, if it is in it.
    pub fn segment(&mut self, name: SegmentName, content: &[u8]) -> Result<Option<TargetStop>, WalError> {
        let mut records = self.reader.segment(name, content)?;
        for record in records.by_ref() {
            let record = record?;
            if let RecordKind::CheckpointOnline(checkpoint) | RecordKind::CheckpointShutdown(checkpoint) =
                &record.kind
            {
                self.progress.next_xid = Some(checkpoint.next_xid);
            }
            if record.start < self.from {
                self.locks.replay(&record);
                continue;
            }
            if self.rule.stops_before(&record) {
                let locks = std::mem::take(&mut self.locks);
                return Ok(Some(TargetStop { record, replayed: false, locks }));
            }
            self.locks.replay(&record);
            self.progress.last_record = Some(record.start);
            if let Some(end) = record.kind.transaction_end() {
                self.progress.last_time = Some(end.time);
            }
            if self.rule.stops_after(&record) {
                let locks = std::mem::take(&mut self.locks);
                return Ok(Some(TargetStop { record, replayed: true, locks }));
            }
        }
        if let Some(SegmentEnd::Ended(at)) = records.outcome() {
            self.progress.ended = Some(at);
        }
        Ok(None)
    }

    /// How far it came.
    pub fn progress(&self) -> SearchProgress {
        self.progress
    }

    /// Whether a record that starts in the segments read so far goes on in the next one, and may decide there.
    pub fn continues(&self) -> bool {
        self.reader.continues()
    }
}

/// Looks for the last transaction that removed relations, in one segment after the other.
#[derive(Debug)]
pub struct RemovalFinder {
    before: Lsn,
    reader: RecordReader,
    locks: HeldLocks,
}

impl RemovalFinder {
    /// A search that looks at records that start before a position.
    pub fn new(before: Lsn) -> Self {
        Self { before, reader: RecordReader::new(), locks: HeldLocks::default() }
    }

    /// Reads the next segment.
    pub fn segment(&mut self, name: SegmentName, content: &[u8]) -> Result<(), WalError> {
        for record in self.reader.segment(name, content)? {
            let record = record?;
            if record.start >= self.before {
                break;
            }
            self.locks.replay(&record);
        }
        Ok(())
    }

    /// The last one so far.
    pub fn last(&self) -> Option<Removal> {
        self.locks.last_removal
    }
}

/// Looks for the stop in consecutive segments, up to the first one that ends early.
pub fn find<C: AsRef<[u8]>>(
    rule: TargetRule,
    from: Lsn,
    segments: impl IntoIterator<Item = (SegmentName, C)>,
) -> Result<Option<TargetStop>, WalError> {
    let mut finder = StopFinder::new(rule, from);
    for (name, content) in segments {
        let stop = finder.segment(name, content.as_ref())?;
        if stop.is_some() || finder.progress.ended.is_some() {
            return Ok(stop);
        }
    }
    Ok(None)
}
