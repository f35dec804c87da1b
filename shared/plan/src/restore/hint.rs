//! What helps where a target cannot be reached, as facts. The programs put them into words: they know what their options are called.

use walpoint_base::{BackupId, LineageId, Lsn, SegmentName, TimelineId};

use super::facts::{NamedPoint, Unusable};
use super::removal::RemovedBefore;
use super::unreachable::Why;

/// One thing to do, or to look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hint {
    /// A transaction before the end of the archive removed relations.
    RemovedBefore(RemovedBefore),
    /// These are the timelines.
    KnownTimelines(Vec<TimelineId>),
    /// These are the cluster's lineages.
    KnownLineages(Vec<LineageId>),
    /// The repository in this store may be another one than was meant, or the cluster's name be mistyped.
    CheckCluster {
        /// The store.
        store: String,
    },
    /// What says of which lineages everything is has to be put back.
    PutLineagesBack,
    /// A backup cannot be used.
    UnusableBackup {
        /// The backup.
        backup: BackupId,
        /// Why.
        why: Unusable,
    },
    /// This backup can be restored, if its end is meant.
    NameBackup(BackupId),
    /// A backup has to be taken: WAL alone cannot be restored.
    TakeBackup,
    /// A backup of the server that archives into this lineage has to be taken.
    TakeBackupOf(LineageId),
    /// A missing segment was in the archive once.
    WasStored(SegmentName),
    /// A missing segment is stored, and was found damaged there.
    FoundDamaged(SegmentName),
    /// The missing files may be left elsewhere, and be archived from there.
    ArchiveMissing,
    /// No repository that was read has the missing files.
    MissingEverywhere,
    /// What came after `wal_level = minimal` needs a backup taken after it.
    BackupAfterMinimal,
    /// It may lie behind the position where the server was set to `wal_level = minimal`.
    MaybeBehindMinimal(Lsn),
    /// It may be in the WAL that is missing.
    MaybeInMissing,
    /// A whole segment would decide between incomplete copies that contradict each other.
    DecideCopies(SegmentName),
    /// The whole segment may be left elsewhere, and be archived from there.
    ArchiveWhole,
    /// Another incomplete copy than the damaged one may be archived; what lies before it needs a target.
    ArchiveAnotherCopy,
    /// Another incomplete copy may be archived; what lies before this position can be recovered with a target.
    AnotherCopyOrBefore(Lsn),
    /// Recovery to the end of the incomplete copy has to be allowed.
    AllowCopy,
    /// Recovery to the end of the timeline has to be allowed: its last segment is built.
    AllowBuilt,
    /// The first segment of a younger timeline may be left where its server was, and hold more.
    ArchiveFirst {
        /// The younger timeline.
        timeline: TimelineId,
        /// Its first segment.
        first: SegmentName,
    },
    /// What the server has written since need not be lost.
    ArchiveRest,
    /// Two servers claim a timeline; this one is taken by its number.
    ClaimedTwice {
        /// The timeline that can be taken.
        instead: TimelineId,
    },
    /// The backups that led to a timeline are gone.
    LostBackups(TimelineId),
    /// The history of a timeline may be left elsewhere, and be archived from there.
    ArchiveHistory(TimelineId),
    /// A server of its own can be restored, and only a standby cannot.
    WithoutStandby,
    /// A timeline can be left out.
    Without {
        /// The one that is left out.
        timeline: TimelineId,
        /// The one that is recovered.
        instead: TimelineId,
    },
    /// The target's time occurred twice; this backup leads to the second one.
    SecondTime(BackupId),
    /// The target's time lies ahead of this machine's clock.
    AheadOfClock,
    /// No later transaction proves that the target's time is over, so PostgreSQL would refuse it.
    TimeNotOver,
    /// Without a target everything that is there is recovered.
    LeaveTargetOut,
    /// One of several restore points of the name.
    PointAt(NamedPoint),
    /// So many more of that name are older.
    OlderPoints(usize),
    /// The epoch of a transaction comes from the checkpoint before it, and the number may be another one's.
    CheckEpoch,
    /// A restore point of the name lies on another timeline.
    PointOn {
        /// The timeline.
        timeline: TimelineId,
        /// Where.
        lsn: Lsn,
    },
    /// The restore point was made here.
    PointMade {
        /// The timeline.
        timeline: TimelineId,
        /// Where.
        lsn: Lsn,
    },
    /// These are the names of restore points, the newest first.
    KnownPoints(Vec<String>),
    /// A list of restore points that cannot be read may have held the name.
    DamagedPoints(String),
    /// Another timeline has the target's moment.
    OtherTimeline(TimelineId),
    /// Another lineage may be meant, from which the target cannot be recovered.
    MayBeMeant {
        /// The lineage.
        lineage: LineageId,
        /// Why it cannot.
        why: Why,
    },
    /// Which lineage is meant has to be said.
    ChooseLineage,
    /// Which server the restored one is has to be said, by its lineage.
    ChooseServer,
    /// The lineage is the one that a data directory is bound to; another one has to be named.
    BoundLineage {
        /// The file that says so.
        by: String,
        /// The lineage.
        lineage: LineageId,
    },
    /// An older lineage can be restored, which has nothing of the newer one.
    OlderLineage {
        /// The older one.
        older: LineageId,
        /// The newer one.
        newest: LineageId,
    },
    /// The facts of a lineage are damaged, and it is unknown whether it has the target.
    DamagedLineage {
        /// The lineage.
        lineage: LineageId,
        /// What is wrong with its facts.
        what: String,
    },
    /// A lineage can be restored, whatever one has whose facts are damaged.
    BesideDamaged {
        /// The one that can be restored.
        lineage: LineageId,
        /// The damaged one.
        damaged: LineageId,
    },
    /// The facts of a lineage, which are damaged, have to be put back.
    PutLineageBack(LineageId),
    /// What lies before this position can be recovered.
    EarlierThan(Lsn),
    /// What lies behind a gap can be recovered from a backup that begins there.
    BackupBehind,
    /// Every place where segments do not continue each other can be listed.
    ListBroken,
    /// Another repository lags behind the one that refuses, and would recover to there.
    LagsBehind {
        /// The repository that has a younger timeline or lineage.
        ahead: String,
        /// The one that lags behind.
        behind: String,
        /// Where recovery from that would end.
        until: Lsn,
        /// On which timeline.
        timeline: TimelineId,
        /// In which lineage.
        lineage: LineageId,
    },
}
