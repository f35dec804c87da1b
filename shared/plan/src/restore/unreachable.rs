//! Why a target cannot be reached, and what can be reached instead, as facts: the programs put them into words.

use jiff::Timestamp;
use walpoint_base::chain::ChainFault;
use walpoint_base::target::FullXid;
use walpoint_base::{
    BackupId, LineageId, Lsn, PgTimestamp, RecoveryTarget, SegmentName, SegmentNo, SegmentSize,
    TargetTimeline, TimelineHistory, TimelineId,
};

use super::facts::{Doubt, NamedPoint, Unusable};
use super::hint::Hint;
use super::path::SegmentRange;
use super::restore_plan::RestorePlan;

/// A refusal: nothing was touched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unreachable {
    /// What was asked for.
    pub target: RecoveryTarget,
    /// On which timeline.
    pub timeline: TargetTimeline,
    /// The lineage of which that is said, if it is said of one.
    pub lineage: Option<InLineage>,
    /// Why it cannot be.
    pub why: Why,
    /// WAL that would have to be there, under the names that recovery asks for.
    pub missing: Vec<SegmentRange>,
    /// The nearest moments that can be reached, earlier ones first.
    pub nearest: Vec<Moment>,
    /// What to do or to look at.
    pub hints: Vec<Hint>,
    /// The size of the lineage's segments, for the names of those missing.
    pub segment_size: SegmentSize,
    /// The youngest timeline that the repository has something of in that lineage.
    pub youngest: Option<Youngest>,
}

impl Unreachable {
    /// Refuses a plan that ends in an incomplete copy, because of what another repository has of that segment.
    pub fn of_end(
        plan: &RestorePlan,
        timeline: TargetTimeline,
        lineage: InLineage,
        size: SegmentSize,
        doubt: DoubtfulEnd,
    ) -> Self {
        let segment = plan.fork.and_then(|fork| fork.source_name().segment());
        let segment =
            segment.unwrap_or_else(|| SegmentNo::before(plan.until, size).name(plan.timeline, size));
        let start = segment.number(size).map(|number| number.start(size)).unwrap_or_default();
        let (why, hints) = match doubt {
            DoubtfulEnd::Damaged(damaged) => (
                Why::EndsIncomplete { segment, until: plan.until, damaged: Some(damaged) },
                vec![Hint::ArchiveWhole, Hint::AnotherCopyOrBefore(start)],
            ),
            DoubtfulEnd::Contradicting(copies) => {
                (Why::ContradictingCopies { segment, copies }, vec![Hint::DecideCopies(segment)])
            }
        };
        Self {
            target: plan.target.clone(),
            timeline,
            lineage: Some(lineage),
            why,
            missing: Vec::new(),
            nearest: Vec::new(),
            hints,
            segment_size: size,
            youngest: None,
        }
    }
}

/// Why the incomplete copy that a plan ends in is not known to be that end, by what another repository has of that segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DoubtfulEnd {
    /// What is damaged there may hold more.
    Damaged(String),
    /// The copies that all have together contradict each other: which ones.
    Contradicting(Vec<String>),
}

/// The lineage of which a refusal is said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InLineage {
    /// Which one.
    pub id: LineageId,
    /// When it was created.
    pub created: Timestamp,
}

/// The youngest timeline of a lineage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Youngest {
    /// The timeline.
    pub timeline: TimelineId,
    /// Where it comes from, if that is known.
    pub history: Option<TimelineHistory>,
}

/// Why a target cannot be reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Why {
    /// The repository has no cluster of that name.
    NoCluster(String),
    /// The repository has WAL or backups of a cluster, and not what says of which lineages they are.
    LostLineages {
        /// The cluster.
        cluster: String,
        /// The lineages of which WAL is stored.
        stored: Vec<LineageId>,
    },
    /// There is no such lineage.
    UnknownLineage(LineageId),
    /// Several servers went on from one lineage, and each of them has what was asked for: another content for each.
    SeveralLineages(Vec<LineageMoment>),
    /// The restored server archives, and several servers have the target in common: nothing says into whose lineage.
    SharedByLineages(Vec<SharingLineage>),
    /// The newest lineage has WAL and no usable backup, so only an older one could be restored.
    NewestWithoutBackup {
        /// Where the WAL of the newest one ends.
        newest: Box<LineageMoment>,
        /// The older one.
        older: LineageId,
    },
    /// The facts of a lineage are damaged, and it may be the one that is meant.
    DamagedLineage {
        /// That one.
        lineage: LineageId,
        /// What is wrong with its facts.
        what: String,
        /// The lineage that would be taken.
        instead: LineageId,
    },
    /// The cluster has no usable backup at all.
    NoBackup,
    /// No usable backup lies on the path to the timeline.
    NoBackupOnPath {
        /// The timeline.
        timeline: TimelineId,
    },
    /// Every backup on the path ends after the target.
    BeforeFirstBackup {
        /// The timeline whose path was looked at.
        timeline: TimelineId,
    },
    /// The newest backup that ends before the target already holds a transaction that ended after it by its commit time, and no
    /// older one can be used.
    ClockSetBack {
        /// The backup.
        backup: BackupId,
        /// The commit time.
        time: PgTimestamp,
    },
    /// The end of the newest backup was asked for, and that one cannot be read: it ended at another moment than those that can.
    NewestUnreadable {
        /// The newest one.
        backup: BackupId,
        /// Why it cannot be used.
        why: Unusable,
        /// The newest one that can be used.
        older: BackupId,
    },
    /// There is no such backup.
    UnknownBackup(BackupId),
    /// The chosen backup cannot be used at all.
    UnusableBackup(BackupId, Unusable),
    /// The chosen backup ends after the target, or recovery from it stops before it is consistent.
    BackupTooLate(BackupId),
    /// The chosen backup does not lie on the path to the timeline.
    BackupNotOnPath(BackupId, TimelineId),
    /// There is no such timeline.
    UnknownTimeline(TimelineId),
    /// WAL between the backup and the target is not there.
    MissingWal {
        /// The backup that recovery would start from.
        backup: BackupId,
    },
    /// The server was set to `wal_level = minimal` between the backup and the target.
    MinimalWal {
        /// The backup that recovery would start from.
        backup: BackupId,
        /// Where the record starts that recovery cannot pass.
        at: Lsn,
    },
    /// The archive ends before the target.
    AfterEnd {
        /// The backup that recovery would start from.
        backup: BackupId,
        /// Every byte before this is there.
        until: Lsn,
        /// The latest transaction's end known in it.
        latest: Option<PgTimestamp>,
    },
    /// A segment does not continue the one before it.
    BrokenChain {
        /// The backup that recovery would start from.
        backup: BackupId,
        /// The segment.
        segment: SegmentName,
        /// What is wrong with it.
        fault: ChainFault,
        /// Whether the archiver put on record that one server wrote both.
        recorded: bool,
    },
    /// The timeline's last bytes, up to where a younger one left it, are in no whole segment of its own.
    EndsInFork {
        /// The timeline.
        timeline: TimelineId,
        /// Where its bytes end.
        until: Lsn,
    },
    /// Of the timeline's last segment there are only incomplete copies, and they contradict each other.
    ContradictingCopies {
        /// The segment.
        segment: SegmentName,
        /// Their objects.
        copies: Vec<String>,
    },
    /// Of the timeline's last segment there is only an incomplete copy.
    EndsIncomplete {
        /// The segment.
        segment: SegmentName,
        /// Where the last complete record in the copy ends; where what is there ends, if it is damaged.
        until: Lsn,
        /// What is wrong with the copy, if it cannot be read.
        damaged: Option<String>,
    },
    /// "Latest" would mean an older timeline, because nobody knows where a younger one comes from.
    DoubtfulTimeline {
        /// The younger one.
        timeline: TimelineId,
        /// What is wrong with it.
        doubt: Doubt,
        /// The timeline that would be taken.
        instead: TimelineId,
    },
    /// The history of the timeline on which recovery would end is not to be had, and recovery from this backup, or a standby, needs it.
    NoHistory(TimelineId),
    /// No commit or abort of the transaction is in any WAL that a backup on the path can replay.
    XidNotFound,
    /// Only transactions of the same number but of other epochs ended in WAL that a backup on the path can replay: these.
    XidOfOtherEpoch(Vec<FullXid>),
    /// No restore point of the name is in any WAL that a backup on the path can replay.
    NameNotFound,
    /// Several restore points of the name can be reached, these, by position.
    SeveralPoints(Vec<NamedPoint>),
    /// These restore points have names that are no UTF-8: what was given stands for them, and PostgreSQL would find none by it.
    NameNotUtf8(Vec<NamedPoint>),
}

/// Where recovery would end in one of several lineages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LineageMoment {
    /// The lineage.
    pub lineage: LineageId,
    /// The one that it was split off from, if it was.
    pub parent: Option<LineageId>,
    /// When it was created.
    pub created: Timestamp,
    /// The timeline on which recovery would end.
    pub timeline: TimelineId,
    /// All WAL before this would be replayed.
    pub until: Lsn,
    /// The time of the record that would end recovery, if one would.
    pub time: Option<PgTimestamp>,
}

/// One of several lineages that have a target in common.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SharingLineage {
    /// The lineage.
    pub lineage: LineageId,
    /// The one that it was split off from, if it was.
    pub parent: Option<LineageId>,
    /// When it was created.
    pub created: Timestamp,
    /// Where its WAL ends, if it has any.
    pub newest: Option<LineageMoment>,
}

/// A moment that can be reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moment {
    /// Whether it lies before what was asked for.
    pub earlier: bool,
    /// The timeline on whose path it lies.
    pub timeline: TimelineId,
    /// The position.
    pub lsn: Lsn,
    /// The time there, if known.
    pub time: Option<PgTimestamp>,
    /// The lineage, where the timeline alone does not lead there.
    pub lineage: Option<LineageId>,
    /// What recovery on the timeline has to be asked for.
    pub target: MomentTarget,
}

/// What leads to a moment on its timeline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MomentTarget {
    /// No target: it is the end of the archive.
    End,
    /// The record that starts here.
    Record(Lsn),
    /// The position from which this backup is consistent.
    Consistent(BackupId),
}
