//! A restore that was proven possible: what to fetch, what to replay, what to write into the settings.

use walpoint_base::{LineageId, Lsn, RecoveryTarget, SegmentName, TimelineId, WalFileName};

use super::estimate::Estimate;
use super::facts::BackupFacts;
use super::note::Note;
use super::path::SegmentRange;
use super::settings::{RecoverySetting, Signal};
use super::stop::{Stop, StopRule};

/// What a restore will do. Every file in it was in the repository when the facts were gathered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestorePlan {
    /// The lineage that backup and WAL belong to.
    pub lineage: LineageId,
    /// What was asked for.
    pub target: RecoveryTarget,
    /// Whether what lies exactly at the target is part of the result.
    pub inclusive: bool,
    /// The backup to start from: the newest that ends before the target on the path to it.
    pub backup: BackupFacts,
    /// The path to the target, oldest timeline first.
    pub path: Vec<PathStep>,
    /// The timeline that recovery follows (`recovery_target_timeline`): the one that the last byte it replays belongs to.
    /// PostgreSQL makes it the parent of the next timeline.
    pub timeline: TimelineId,
    /// The timeline that the path leads to, whether recovery can follow it or not. Where the latest moment of that was asked for, WAL of
    /// it that lies further than the plan leads is what was meant.
    pub leaf: TimelineId,
    /// The record at which recovery stops; `None` for `immediate` and the latest moment.
    pub stop: Option<Stop>,
    /// All WAL before this position is needed. For the latest moment this is where the archive ends.
    pub until: Lsn,
    /// The segments that recovery reads, in order, under the names by which the repository has them: the names by which
    /// recovery asks, but for that of [`Self::fork`].
    pub wal: Vec<SegmentRange>,
    /// The segment that no repository has under the name by which recovery asks for it, and of what it is built.
    pub fork: Option<ForkSegment>,
    /// The timeline that the path leads to and recovery cannot follow, because nothing of it is in the archive yet.
    pub unfollowed: Option<Unfollowed>,
    /// Where the latest moment was asked for, on whichever timeline that is, by a server of its own: the youngest timeline that
    /// was known. A younger one has what was meant.
    pub youngest: Option<TimelineId>,
    /// Timelines whose histories are damaged or missing, the plan's own or younger ones: what was asked for does without them, so
    /// recovery must not depend on those histories.
    pub without: Vec<TimelineId>,
    /// The history files that it reads.
    pub histories: Vec<TimelineId>,
    /// Which signal file is made.
    pub signal: Signal,
    /// The recovery settings but `restore_command`, in the order in which they are to be written.
    pub settings: Vec<RecoverySetting>,
    /// How much and how long, about.
    pub estimate: Estimate,
    /// What a person should know before going on.
    pub notes: Vec<Note>,
}

/// A segment that a timeline left in the middle, or that a dead primary did not finish, rebuilt for a recovery that ends on that
/// timeline. It was never archived whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ForkSegment {
    /// Its name, by which recovery asks for it.
    pub name: SegmentName,
    /// Where the timeline was left, or its last record ends: what lies behind is zero.
    pub cut: Lsn,
    /// What has its bytes up to there.
    pub source: ForkSource,
    /// Whether the path to the target leaves the timeline at the cut: then what the segment holds behind it under its own name, now
    /// or some day, is no part of the recovery.
    pub left: bool,
}

/// A timeline of which the archive has no segment, only its history: recovery ends where it begins, in the segment in which it left its
/// parent and of which the parent's own copy is whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unfollowed {
    /// The timeline. Once it has the segment, recovery that ends there is not what was asked for.
    pub timeline: TimelineId,
    /// The parent's segment, under which recovery asks for it.
    pub segment: SegmentName,
    /// Where the timeline begins.
    pub from: Lsn,
}

/// What has the bytes of a segment up to a fork.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ForkSource {
    /// The segment of the same number of this timeline, which took them over.
    Segment(TimelineId),
    /// The incomplete copy of the same number of this timeline that holds most: a `.partial` file, or one that ended early.
    Partial(TimelineId),
}

impl ForkSegment {
    /// Whether it is in the archive under its own name, and goes on behind the cut with what the path has left.
    pub fn is_of_itself(&self) -> bool {
        self.source == ForkSource::Segment(self.name.timeline)
    }

    /// What it is built from.
    pub fn source_name(&self) -> WalFileName {
        match self.source {
            ForkSource::Segment(timeline) => WalFileName::Segment(SegmentName { timeline, ..self.name }),
            ForkSource::Partial(timeline) => WalFileName::Partial(SegmentName { timeline, ..self.name }),
        }
    }
}

/// A timeline on the path and the part of it that belongs to the path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PathStep {
    /// The timeline.
    pub timeline: TimelineId,
    /// Where it begins; `0/0` for a timeline without a parent.
    pub begin: Lsn,
    /// Where the path leaves it; `None` for the last one.
    pub end: Option<Lsn>,
}

impl RestorePlan {
    /// No record that starts here or later is replayed by a recovery that stops as planned.
    pub fn replayed_until(&self) -> Lsn {
        let replayed =
            StopRule::of(&self.target, self.inclusive).is_none_or(|rule| rule.applies_the_record());
        self.stop.as_ref().filter(|_| !replayed).map_or(self.until, |stop| stop.record)
    }

    /// Where the part of the path ends that recovery to the end of the archive replays from there.
    pub fn end(&self) -> Lsn {
        let built = self.fork.map(|fork| fork.cut);
        built.or(self.unfollowed.map(|unfollowed| unfollowed.from)).unwrap_or(self.until)
    }

    /// Whether recovery under this plan may ask for a segment: the prefetcher stops after the last one.
    pub fn needs(&self, timeline: TimelineId, number: walpoint_base::SegmentNo) -> bool {
        self.wal.iter().any(|r| r.timeline == timeline && r.first <= number && number <= r.last)
    }
}
