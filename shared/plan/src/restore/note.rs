//! What a person should know of a plan before it is carried out, as facts: what it leaves out, what is built for it, and what else
//! may have been meant. The programs put them into words.

use jiff::Timestamp;
use walpoint_base::target::FullXid;
use walpoint_base::{BackupId, LineageId, Lsn, PgTimestamp, SegmentName, TimelineId};

use super::facts::{Abandoned, NamedPoint};
use super::removal::{RemovedBefore, UnlockedPosition};
use super::restore_plan::{ForkSegment, Unfollowed};
use super::stop::PreparedTransaction;
use super::unreachable::{LineageMoment, Why};

/// One thing to know of a plan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    /// So many pages had wrong checksums when the backup was taken; they are restored as they were.
    DamagedPages(u64),
    /// Recovery ends where a timeline was forked from this one, because nothing of it is in the archive yet.
    Unfollowed {
        /// The timeline that recovery ends on.
        on: TimelineId,
        /// The one that it would follow.
        next: Unfollowed,
    },
    /// The timeline has no whole segment in the archive yet.
    NoWholeSegment(TimelineId),
    /// Of a segment that is in the archive, recovery gets what lies before the cut, where its timeline was left.
    PartHandedOut(ForkSegment),
    /// The last segment of a timeline is built from an incomplete copy, up to the end of its last record.
    LastSegmentBuilt(ForkSegment),
    /// A segment that is not in the archive is built up to the cut, where its timeline was left.
    ForkBuilt(ForkSegment),
    /// A younger timeline has more of this one than recovery replays, up to there.
    MoreUntil {
        /// The timeline.
        timeline: TimelineId,
        /// Where it was left.
        cut: Lsn,
    },
    /// Another timeline has the target's moment, too.
    AlsoOn(TimelineId),
    /// The transaction was given without its epoch and is taken for the newest of that number.
    EpochChosen(FullXid),
    /// A timeline is not taken for the latest, because a person says that it was abandoned.
    NotTheLatest {
        /// The timeline.
        timeline: TimelineId,
        /// Who says so.
        record: Abandoned,
    },
    /// Another timeline has a restore point of the name asked for, too.
    PointAlsoOn(NamedPoint),
    /// A list of restore points that cannot be read may hold the name once more.
    DamagedPoints {
        /// The name.
        name: String,
        /// What is wrong with which list.
        damaged: String,
    },
    /// The restore point is reached by its position: recovery would come by another one of that name before.
    PointByPosition {
        /// Its name.
        name: String,
        /// Its position.
        lsn: Lsn,
    },
    /// A transaction that has not ended at the target keeps relations locked while recovery is paused.
    Locked(Locked),
    /// A database is lost at the target: its removal has begun.
    Dropped(Dropped),
    /// Prepared transactions are open at the target, and stay open.
    Prepared {
        /// The transactions.
        open: Vec<PreparedTransaction>,
        /// The OIDs of relations that they are known to lock.
        relations: Vec<u32>,
    },
    /// The backup that was asked for holds a transaction that ended after the target.
    HoldsLaterCommit {
        /// The backup.
        backup: BackupId,
        /// The transaction's commit time.
        time: PgTimestamp,
    },
    /// A newer backup was not chosen: it holds a transaction that ended after the target.
    NewerHoldsLaterCommit {
        /// The backup.
        backup: BackupId,
        /// The transaction's commit time.
        time: PgTimestamp,
    },
    /// A newer backup was not chosen: it is damaged.
    NewerDamaged {
        /// The backup.
        backup: BackupId,
        /// What is known to be wrong with it.
        damage: DamageNote,
    },
    /// It is not known where a younger timeline than this one comes from; both have the same WAL up to a position behind the target.
    SameUntil {
        /// The timeline.
        timeline: TimelineId,
        /// The position.
        common: Lsn,
    },
    /// A transaction before the target removed relations, or a database.
    RemovedBefore(RemovedBefore),
    /// A standby is told the number of its timeline, which it would not find by itself, and follows no later one.
    StandbyStays(TimelineId),
    /// The history of the timeline that recovery stays on is damaged or lost.
    HistoryLost(TimelineId),
    /// A timeline was written to after another one had left it, and "latest" follows the other one.
    WentOn(WentOn),
    /// A newer lineage has no complete backup, so an older one is restored.
    NewerWithoutBackup {
        /// Where the WAL of the newer one ends.
        newest: LineageMoment,
        /// The one that is restored.
        older: LineageId,
    },
    /// An older lineage was in use after the plan's was registered, and cannot have the target.
    OlderInUse {
        /// The older one.
        older: LineageId,
        /// The plan's.
        lineage: LineageId,
        /// Why the target cannot be reached there.
        why: Why,
    },
    /// The plan's lineage was split off from one that does not have the target.
    SplitOff {
        /// The plan's.
        lineage: LineageId,
        /// The other one.
        parent: LineageId,
    },
    /// Lineages that were split off behind the target have the same there.
    AlsoInLineages {
        /// The plan's.
        lineage: LineageId,
        /// The others.
        others: Vec<LineageId>,
    },
    /// The facts of another lineage are damaged, and it is unknown whether it has the target.
    DamagedLineage {
        /// The other one.
        lineage: LineageId,
        /// What is wrong with its facts.
        what: String,
    },
}

/// What keeps relations locked at the target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Locked {
    /// The transaction.
    pub xid: u32,
    /// The OIDs of the relations, each once.
    pub relations: Vec<u32>,
    /// Where nothing was locked yet, if recovery can stop there.
    pub before: Option<UnlockedPosition>,
    /// The lineage, where it has to be named to get there.
    pub lineage: Option<LineageId>,
    /// Whether the transaction may have been prepared before what was read.
    pub perhaps_prepared: bool,
}

/// A database that cannot be opened after recovery: a transaction that has not ended at the target removes it, and most of that is not
/// undone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dropped {
    /// The transaction.
    pub xid: u32,
    /// The OID of the database, if its files are removed there.
    pub database: Option<u32>,
    /// Where it was whole, if recovery can stop there.
    pub before: Option<UnlockedPosition>,
    /// The lineage, where it has to be named to get there.
    pub lineage: Option<LineageId>,
}

/// What is known to be wrong with a backup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DamageNote {
    /// So many of its pages had wrong checksums when it was taken.
    Pages(u64),
    /// So many of the packs that it uses were found damaged or missing.
    Packs(u64),
    /// So many of the WAL segments that make it consistent were found damaged.
    Segments(u64),
    /// Its manifest was found damaged.
    Manifest,
}

/// A timeline that was written to after another one had left it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WentOn {
    /// The timeline.
    pub timeline: TimelineId,
    /// The one that left it.
    pub left_by: TimelineId,
    /// Where.
    pub left: Lsn,
    /// Its last segment.
    pub last: SegmentName,
    /// The latest of its transactions.
    pub at: Timestamp,
}
