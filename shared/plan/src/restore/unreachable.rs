//! Why a target cannot be reached, and what can be reached instead.

use std::fmt;

use jiff::Timestamp;
use walpoint_base::chain::ChainFault;
use walpoint_base::target::FullXid;
use walpoint_base::{
    BackupId, LineageId, Lsn, PgTimestamp, RecoveryTarget, SegmentName, SegmentNo, SegmentSize,
    TargetTimeline, TimelineHistory, TimelineId,
};

use super::facts::{Doubt, NamedPoint};
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
    /// What to do or to look at, one sentence each.
    pub hints: Vec<String>,
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
        why: String,
    ) -> Self {
        let segment = plan.fork.and_then(|fork| fork.source_name().segment());
        let segment =
            segment.unwrap_or_else(|| SegmentNo::before(plan.until, size).name(plan.timeline, size));
        let start = segment.number(size).map(|number| number.start(size)).unwrap_or_default();
        Self {
            target: plan.target.clone(),
            timeline,
            lineage: Some(lineage),
            why: Why::EndsIncomplete { segment, until: plan.until, damaged: Some(why) },
            missing: Vec::new(),
            nearest: Vec::new(),
            hints: vec![
                "If the server, a standby or another repository has the whole segment, archive it with \"archive-agent push\"."
                    .to_owned(),
                format!(
                    "Or archive another copy of what there is of it, as a .partial file, from the dead server's pg_wal. What lies before \
                     {start} can be recovered with a target."
                ),
            ],
            segment_size: size,
            youngest: None,
        }
    }
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
    /// There is no such lineage.
    UnknownLineage(LineageId),
    /// Several servers went on from one lineage, and each of them has what was asked for: another content for each.
    SeveralLineages(Vec<LineageMoment>),
    /// The newest lineage has WAL and no usable backup, so only an older one could be restored.
    NewestWithoutBackup {
        /// Where the WAL of the newest one ends.
        newest: LineageMoment,
        /// The older one.
        older: LineageId,
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
    /// There is no such backup.
    UnknownBackup(BackupId),
    /// The chosen backup cannot be used at all.
    UnusableBackup(BackupId, String),
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
    /// The history of the timeline on which recovery would end is not there, though a descendant's tells where it comes from.
    NoHistory(TimelineId),
    /// No commit or abort of the transaction is in any WAL that a backup on the path can replay.
    XidNotFound,
    /// Only transactions of the same number but of other epochs ended in WAL that a backup on the path can replay: these.
    XidOfOtherEpoch(Vec<FullXid>),
    /// No restore point of the name is in any WAL that a backup on the path can replay.
    NameNotFound,
    /// Several restore points of the name can be reached, these, by position.
    SeveralPoints(Vec<NamedPoint>),
}

/// Where recovery would end in one of several lineages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LineageMoment {
    /// The lineage.
    pub lineage: LineageId,
    /// The one that it was split off from, if it was.
    pub parent: Option<LineageId>,
    /// The timeline on which recovery would end.
    pub timeline: TimelineId,
    /// All WAL before this would be replayed.
    pub until: Lsn,
    /// The time of the record that would end recovery, if one would.
    pub time: Option<PgTimestamp>,
}

impl fmt::Display for LineageMoment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lineage, parent, timeline, until, time } = self;
        write!(f, "{lineage}")?;
        if let Some(parent) = parent {
            write!(f, " (split off from {parent})")?;
        }
        write!(f, " up to {until} on timeline {timeline}")?;
        time.map_or(Ok(()), |time| write!(f, ", {time}"))
    }
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
    /// The options of `restore-agent` that reach it.
    pub options: Vec<String>,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCluster(name) => write!(f, "the repository has no cluster {name}"),
            Self::UnknownLineage(id) => write!(f, "the cluster has no lineage {id}"),
            Self::SeveralLineages(all) => {
                let all: Vec<String> = all.iter().map(LineageMoment::to_string).collect();
                write!(f, "several lineages of the cluster have it: {}", all.join("; "))
            }
            Self::NewestWithoutBackup { newest, .. } => {
                write!(f, "the newest lineage has WAL and no complete backup: {newest}")
            }
            Self::NoBackup => write!(f, "the cluster has no complete backup"),
            Self::NoBackupOnPath { timeline } => {
                write!(f, "no complete backup lies on the path to timeline {timeline}")
            }
            Self::BeforeFirstBackup { timeline } => {
                write!(f, "every complete backup on the path to timeline {timeline} ends after it")
            }
            Self::ClockSetBack { backup, time } => write!(
                f,
                "backup {backup} ended before it, but already holds a transaction whose commit time, {time}, is after it: the \
                 server's clock was set back, or runs ahead of that of the standby that was backed up, and no older backup can be used"
            ),
            Self::UnknownBackup(id) => write!(f, "there is no backup {id}"),
            Self::UnusableBackup(id, why) => write!(f, "backup {id} cannot be restored because it {why}"),
            Self::BackupTooLate(id) => write!(f, "backup {id} is not yet consistent there"),
            Self::BackupNotOnPath(id, timeline) => {
                write!(f, "backup {id} does not lie on the path to timeline {timeline}")
            }
            Self::UnknownTimeline(timeline) => write!(f, "the archive knows no timeline {timeline}"),
            Self::MissingWal { backup } => write!(f, "WAL is missing between backup {backup} and the target"),
            Self::MinimalWal { backup, at } => write!(
                f,
                "between backup {backup} and the target, at {at}, the server was set to wal_level = minimal, and recovery cannot \
                 pass that"
            ),
            Self::AfterEnd { until, latest: Some(latest), .. } => {
                write!(
                    f,
                    "the archive ends before it, at {until}; the latest transaction in it ended at {latest}"
                )
            }
            Self::AfterEnd { until, .. } => write!(f, "the archive ends before it, at {until}"),
            Self::BrokenChain { segment, fault, recorded: false, .. } if fault.is_split_brain() => {
                write!(
                    f,
                    "the archive holds WAL of two servers: \"{segment}\" does not continue the segment before it: {fault}"
                )
            }
            Self::BrokenChain { segment, fault, .. } => {
                write!(f, "there is a gap, and recovery ends before \"{segment}\": {fault}")
            }
            Self::EndsInFork { timeline, until } => write!(
                f,
                "the younger timeline has no segment in the archive yet, and the end of timeline {timeline}, up to {until}, is \
                 only in a .partial file or in another timeline's first segment"
            ),
            Self::ContradictingCopies { segment, copies } => write!(
                f,
                "of the last segment, \"{segment}\", only incomplete copies are in the archive, and they contradict each other, so two \
                 servers wrote them: {}",
                copies.join(", ")
            ),
            Self::EndsIncomplete { segment, until, damaged: Some(damaged) } => write!(
                f,
                "of the last segment, \"{segment}\", only a damaged copy is in the archive ({damaged}), and recovery cannot pass {until}"
            ),
            Self::EndsIncomplete { segment, until, damaged: None } => write!(
                f,
                "of the last segment, \"{segment}\", only an incomplete copy is in the archive, up to {until}, and whether more \
                 of it was written is not known"
            ),
            Self::DoubtfulTimeline { timeline, doubt, instead } => {
                write!(
                    f,
                    "the latest timeline is in doubt: {doubt} (timeline {timeline}; without it, {instead} is the latest)"
                )?;
                match doubt {
                    Doubt::Refused => write!(
                        f,
                        ". What is stored of timeline {timeline} is one server's, the one that archived first: --target-timeline \
                         {timeline} recovers that. A server whose WAL was refused needs a lineage of its own (archive-agent init \
                         --new-lineage). Once that is seen to, \"archive-agent lineage settle --timeline {timeline}\" ends the doubt"
                    ),
                    _ => Ok(()),
                }
            }
            Self::NoHistory(timeline) => write!(
                f,
                "its WAL is there and the history of timeline {timeline} is not: PostgreSQL would not start to recover to it"
            ),
            Self::XidNotFound => write!(f, "its end is in no WAL that a backup can replay"),
            Self::XidOfOtherEpoch(found) => {
                let found: Vec<String> = found.iter().map(|full| format!("{full} ({})", full.0)).collect();
                write!(
                    f,
                    "the transaction of that number that a backup can replay is of another epoch: {}",
                    found.join(", ")
                )
            }
            Self::NameNotFound => write!(f, "it is in no WAL that a backup can replay"),
            Self::SeveralPoints(points) => write!(f, "there are {} of that name", points.len()),
        }
    }
}

impl fmt::Display for Unreachable {
    /// One line for an error chain; [`super::text::unreachable`] is for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.why {
            Why::SeveralPoints(_) | Why::SeveralLineages(_) => "means several moments",
            _ => "cannot be reached",
        };
        write!(f, "{} (timeline {}) {verdict}: {}", self.target, self.timeline, self.why)
    }
}

impl std::error::Error for Unreachable {}
