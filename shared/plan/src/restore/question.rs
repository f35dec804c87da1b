//! What planners ask for, and the answers.

use walpoint_base::facts::PointRef;
use walpoint_base::{BackupId, Lsn, PgTimestamp, SegmentName, SegmentNo, TimelineId};

use super::facts::BackupState;
use super::removal::{Removal, RemovalQuestion};
use super::stop::{Stop, StopRule};
use crate::runs::Runs;

/// What a planner needs to know before it can go on.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Question {
    /// Which segments of a timeline are there?
    Wal(TimelineId),
    /// What about this backup?
    Backup(BackupId),
    /// Where does recovery stop?
    Stop(StopQuestion),
    /// What lies in a range of WAL?
    Extent(ExtentQuestion),
    /// Did a transaction end before a position that stops recovery to a time?
    Passed(PassedQuestion),
    /// Which transaction was the last one that removed relations?
    Removal(RemovalQuestion),
    /// Where on the path to a timeline was the server set to `wal_level = minimal`?
    Minimal(TimelineId),
    /// Where on the path to a timeline does a segment not continue the one before it?
    Breaks(TimelineId),
    /// Where does a timeline begin of which no history tells where it comes from, if its WAL is proven to continue what lies before
    /// it on the path to another one?
    Begin {
        /// The timeline.
        of: TimelineId,
        /// The other one.
        on: TimelineId,
    },
    /// Which restore points are there?
    Points,
    /// How far does an incomplete copy of this segment, a `.partial` file, one that ended early or slices, hold complete
    /// records?
    Partial(SegmentName),
    /// Which restore points of this name are there, and when were they made?
    PointsNamed(String),
}

/// A restore point of a name that was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedPoint {
    /// The timeline it was made on.
    pub timeline: TimelineId,
    /// Where its record starts.
    pub lsn: Lsn,
    /// When it was made, if that can be read.
    pub time: Option<PgTimestamp>,
}

/// Where does recovery along the path to `path` stop, when it replays from `from` and all WAL before `until` is there?
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct StopQuestion {
    /// The timeline whose path is followed.
    pub path: TimelineId,
    /// What stops it.
    pub rule: StopRule,
    /// The first record is searched for here.
    pub from: Lsn,
    /// Records that end after this are not there.
    pub until: Lsn,
}

/// What lies on the path to `path` from segment `first` to position `until`?
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ExtentQuestion {
    /// The timeline whose path is followed.
    pub path: TimelineId,
    /// The first segment that counts.
    pub first: SegmentNo,
    /// Where the WAL that is there ends.
    pub until: Lsn,
}

/// Is there, in all WAL of the path to `path` that lies before a position, a transaction's end that stops recovery by a rule? A
/// backup that starts there holds it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PassedQuestion {
    /// The timeline whose path is followed.
    pub path: TimelineId,
    /// What stops recovery: a time.
    pub rule: StopRule,
    /// Records that end after this do not count.
    pub before: Lsn,
}

/// What the index says about a range of WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Extent {
    /// Where the last record known to be complete starts, if that is known: the last `recovery_target_lsn` that works.
    pub last_record: Option<Lsn>,
    /// The latest time of a transaction's end in it: the last moment that a target time can lie before.
    pub latest: Option<PgTimestamp>,
}

/// An answer to a [`Question`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// To [`Question::Wal`].
    Wal(Runs),
    /// To [`Question::Backup`].
    Backup(BackupState),
    /// To [`Question::Stop`]: nothing if all that is there is replayed without stopping.
    Stop(Option<Stop>),
    /// To [`Question::Extent`].
    Extent(Extent),
    /// To [`Question::Passed`]: the commit time of such a transaction.
    Passed(Option<PgTimestamp>),
    /// To [`Question::Removal`].
    Removal(Option<Removal>),
    /// To [`Question::Minimal`]: where the records start, in order.
    Minimal(Vec<Lsn>),
    /// To [`Question::Breaks`]: where the segments start, in order.
    Breaks(Vec<Lsn>),
    /// To [`Question::Begin`]: the timeline was left behind this position, or at it. `None` if that is not proven.
    Begin(Option<Lsn>),
    /// To [`Question::Points`].
    Points(Vec<PointRef>),
    /// To [`Question::Partial`]: where the last complete record in it ends, at least the segment's begin; `None` if there is no
    /// copy, or no record is complete in it.
    Partial(Option<Lsn>),
    /// To [`Question::Partial`] as well: a copy that may hold more than this cannot be read; why.
    DamagedPartial(Option<Lsn>, String),
    /// To [`Question::PointsNamed`], by position.
    PointsNamed(Vec<NamedPoint>),
}
