//! What the planners know, and what they ask for when they do not know enough.
//!
//! Planners are pure: they never fetch. Where a fact is missing they return a [`Question`]; whoever drives them answers
//! it ([`Facts::answer`]) and calls again. So a plan over a million segments reads the few objects that it depends on,
//! and a test answers from a table.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use walpoint_base::facts::PointRef;
use walpoint_base::{BackupId, LineageId, Lsn, PgMajor, PgTimestamp, SegmentName, SegmentSize, TimelineId};

pub use super::question::{
    Answer, Extent, ExtentQuestion, NamedPoint, PassedQuestion, Question, StopQuestion,
};
use super::removal::{Removal, RemovalQuestion};
use super::stop::Stop;
use crate::graph::TimelineGraph;
use crate::runs::Runs;

/// The facts of a base backup that planning depends on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupFacts {
    /// Its id; also tells the timeline and the redo position it starts at.
    pub id: BackupId,
    /// The lineage with whose WAL it is restored: its own, or one that was split off from that behind it.
    pub lineage: LineageId,
    /// The position from which it is consistent: what `pg_backup_stop` returned.
    pub end: Lsn,
    /// The timeline that the last byte before `end` belongs to.
    pub end_timeline: TimelineId,
    /// When it started.
    pub started: PgTimestamp,
    /// When it ended, by the clock of the server.
    pub ended: PgTimestamp,
    /// The latest time at which a transaction ended before the segment in which it starts, by what was known when it was published.
    pub latest_commit: Option<PgTimestamp>,
    /// The label given to it.
    pub label: String,
    /// Bytes of the cluster's files.
    pub bytes: u64,
    /// Bytes of blocks that are not all zero: what a restore reads, before compression.
    pub block_bytes: u64,
    /// Pages whose checksum was wrong when they were read.
    pub damaged_pages: u64,
    /// Packs that it uses and that were found damaged since, by `verify` or by a later backup.
    pub damaged_packs: u64,
    /// Whether its manifest was found damaged since, as far as a restore has not met it yet.
    pub damaged_manifest: bool,
    /// Segments without which it does not become consistent and that `verify` found damaged.
    pub damaged_segments: u64,
}

impl BackupFacts {
    /// Whether nothing that it needs is known to be damaged.
    pub fn is_sound(&self) -> bool {
        self.damaged_packs == 0 && !self.damaged_manifest && self.damaged_segments == 0
    }

    /// The timeline on which it started.
    pub fn timeline(&self) -> TimelineId {
        self.id.timeline()
    }

    /// The redo position from which recovery starts.
    pub fn start(&self) -> Lsn {
        self.id.start()
    }

    /// From which time on it serves: it holds nothing that is known to have been committed later.
    pub fn serves_from(&self) -> PgTimestamp {
        self.latest_commit.map_or(self.ended, |latest| latest.max(self.ended))
    }

    /// Whether some of what a restore of it would write is known to be wrong, or not to be had.
    pub fn is_damaged(&self) -> bool {
        self.damaged_pages > 0 || self.damaged_packs > 0 || self.damaged_manifest || self.damaged_segments > 0
    }
}

/// What became of a backup whose id is listed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BackupState {
    /// It can be restored as far as its manifest says.
    Complete(Box<BackupFacts>),
    /// It belongs to another lineage of the cluster.
    OtherLineage(LineageId),
    /// It cannot be used.
    Unusable(Unusable),
}

/// Why a backup cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unusable {
    /// It is not finished.
    Unfinished,
    /// It was aborted before it was finished.
    Aborted,
    /// It was deleted.
    Deleted,
    /// Its manifest is damaged.
    DamagedManifest,
    /// It was finished, and its manifest is lost.
    LostManifest,
    /// Its manifest contradicts its name.
    Misnamed,
    /// What a restore needs of it cannot be read.
    Unreadable,
    /// It belongs to another lineage.
    OfLineage(LineageId),
}

impl Unusable {
    /// Whether it was finished, and nothing tells any more where it ends.
    pub fn is_unreadable(self) -> bool {
        matches!(self, Self::DamagedManifest | Self::LostManifest)
    }
}

/// Why it is not known where a timeline comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Doubt {
    /// Its history cannot be read.
    Damaged(String),
    /// It has WAL and no history.
    Missing,
    /// A second server claimed it, with another history.
    Refused,
    /// Its history says of this ancestor what that one's own does not: it comes from another server's timeline of that number.
    OtherAncestor(TimelineId),
    /// It has WAL, and no complete backup lies on its path.
    NoBackup,
}

impl Doubt {
    /// Whether two servers' timelines bear one number. Nothing but a person can settle that.
    pub fn is_of_two_servers(&self) -> bool {
        matches!(self, Self::Refused | Self::OtherAncestor(_))
    }
}

impl std::fmt::Display for Doubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Damaged(why) => write!(f, "its history cannot be read: {why}"),
            Self::Missing => write!(f, "its WAL is archived, but its history is missing"),
            Self::Refused => write!(f, "two servers claim it, with different histories"),
            Self::OtherAncestor(of) => {
                write!(
                    f,
                    "two servers claim timeline {of}, and its history descends from the one that is not stored"
                )
            }
            Self::NoBackup => write!(f, "it has WAL, and no complete backup lies on its path"),
        }
    }
}

/// That a person says that a timeline was abandoned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Abandoned {
    /// When it was said.
    pub settled: Timestamp,
    /// Who says so and why, up to which segment.
    pub verdict: String,
}

impl std::fmt::Display for Abandoned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.verdict)
    }
}

/// A planner's result, or what it has to know first.
pub type Asking<T> = Result<T, Question>;

/// What is known of one lineage: the basics, and the answers so far.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The lineage.
    pub lineage: LineageId,
    /// PostgreSQL's major version.
    pub major: PgMajor,
    /// The size of its segments.
    pub segment_size: SegmentSize,
    /// Its timelines.
    pub graph: TimelineGraph,
    /// Every backup of the cluster that is listed, oldest first; which are complete and of this lineage is asked.
    pub backups: Vec<BackupId>,
    /// Timelines of which it is not known where they come from.
    pub doubts: BTreeMap<TimelineId, Doubt>,
    /// Timelines known from a descendant's history whose own is not stored: recovery can pass them and not end on them.
    pub without_history: BTreeSet<TimelineId>,
    /// Incomplete copies of segments that contradict each other, so that none of them is read. Comes with the answer to
    /// [`Question::Partial`].
    pub contradicting: BTreeMap<SegmentName, Vec<String>>,
    /// Segments of which some was streamed while their server wrote them: recovery to the end of their timeline ends in them without
    /// being told to. Not where that is known to be another server's than the copy that is read. Comes with the answer to
    /// [`Question::Partial`].
    pub sliced: BTreeSet<SegmentName>,
    /// Lists of restore points that cannot be read, for people. Comes with the answer to [`Question::PointsNamed`].
    pub damaged_points: Vec<String>,
    /// Timelines that a person says were abandoned: none of them is the latest.
    pub abandoned: BTreeMap<TimelineId, Abandoned>,
    answers: BTreeMap<Question, Answer>,
    lost: BTreeMap<TimelineId, Runs>,
    begun: BTreeMap<TimelineId, Runs>,
}

impl Facts {
    /// Facts without answers. `backups` in any order.
    pub fn new(
        lineage: LineageId,
        major: PgMajor,
        segment_size: SegmentSize,
        graph: TimelineGraph,
        mut backups: Vec<BackupId>,
    ) -> Self {
        backups.sort_unstable();
        backups.dedup();
        Self {
            lineage,
            major,
            segment_size,
            graph,
            backups,
            doubts: BTreeMap::new(),
            without_history: BTreeSet::new(),
            abandoned: BTreeMap::new(),
            damaged_points: Vec::new(),
            contradicting: BTreeMap::new(),
            sliced: BTreeSet::new(),
            answers: BTreeMap::new(),
            lost: BTreeMap::new(),
            begun: BTreeMap::new(),
        }
    }

    /// Remembers an answer.
    pub fn answer(&mut self, question: Question, answer: Answer) {
        self.answers.insert(question, answer);
    }

    /// Forgets where incomplete copies end, and what follows from that: it was answered less exactly than it can be by now.
    pub fn forget_ends(&mut self) {
        self.answers.retain(|question, _| !matches!(question, Question::Partial(_) | Question::Extent(_)));
        self.sliced.clear();
        self.contradicting.clear();
    }

    /// The segments of a timeline.
    pub fn wal(&self, timeline: TimelineId) -> Asking<&Runs> {
        match self.answers.get(&Question::Wal(timeline)) {
            Some(Answer::Wal(runs)) => Ok(runs),
            _ => Err(Question::Wal(timeline)),
        }
    }

    /// Says which segments of a timeline were stored and cannot be had: gone from the store, or damaged. Comes with the answer to
    /// [`Question::Wal`].
    pub fn lose(&mut self, timeline: TimelineId, lost: Runs) {
        self.lost.insert(timeline, lost);
    }

    /// The segments of a timeline that were stored and cannot be had; `None` if there are none.
    pub fn lost(&self, timeline: TimelineId) -> Asking<Option<&Runs>> {
        self.wal(timeline)?;
        Ok(self.lost.get(&timeline))
    }

    /// Says of which segments of a timeline an incomplete copy is there, as [`Self::lose`]: its server had finished all before it. Those
    /// before the last whole segment may be left out.
    pub fn begin_segments(&mut self, timeline: TimelineId, begun: Runs) {
        self.begun.insert(timeline, begun);
    }

    /// The segments of a timeline of which an incomplete copy is there; `None` if there are none.
    pub fn begun(&self, timeline: TimelineId) -> Asking<Option<&Runs>> {
        self.wal(timeline)?;
        Ok(self.begun.get(&timeline))
    }

    /// What is known about a backup.
    pub fn backup(&self, id: BackupId) -> Asking<&BackupState> {
        match self.answers.get(&Question::Backup(id)) {
            Some(Answer::Backup(state)) => Ok(state),
            _ => Err(Question::Backup(id)),
        }
    }

    /// Whether a backup is known not to be one that can be restored here. Asks nothing.
    pub fn is_ruled_out(&self, id: BackupId) -> bool {
        match self.answers.get(&Question::Backup(id)) {
            Some(Answer::Backup(BackupState::Complete(facts))) => {
                facts.lineage != self.lineage || facts.damaged_manifest
            }
            Some(_) => true,
            None => false,
        }
    }

    /// The backup if it is complete and of this lineage.
    pub fn complete_backup(&self, id: BackupId) -> Asking<Option<&BackupFacts>> {
        Ok(match self.backup(id)? {
            BackupState::Complete(facts) if facts.lineage == self.lineage => Some(facts),
            _ => None,
        })
    }

    /// Where recovery stops.
    pub fn stop(&self, question: StopQuestion) -> Asking<Option<&Stop>> {
        let question = Question::Stop(question);
        match self.answers.get(&question) {
            Some(Answer::Stop(stop)) => Ok(stop.as_ref()),
            _ => Err(question),
        }
    }

    /// What lies in a range of WAL.
    pub fn extent(&self, question: ExtentQuestion) -> Asking<Extent> {
        let question = Question::Extent(question);
        match self.answers.get(&question) {
            Some(Answer::Extent(extent)) => Ok(*extent),
            _ => Err(question),
        }
    }

    /// The commit time of a transaction before a position that stops recovery to a time.
    pub fn passed(&self, question: PassedQuestion) -> Asking<Option<PgTimestamp>> {
        let question = Question::Passed(question);
        match self.answers.get(&question) {
            Some(Answer::Passed(time)) => Ok(*time),
            _ => Err(question),
        }
    }

    /// The last transaction that removed relations.
    pub fn removal(&self, question: RemovalQuestion) -> Asking<Option<Removal>> {
        match self.answers.get(&Question::Removal(question.clone())) {
            Some(Answer::Removal(removal)) => Ok(*removal),
            _ => Err(Question::Removal(question)),
        }
    }

    /// How far an incomplete copy of a segment holds complete records.
    pub fn partial(&self, name: SegmentName) -> Asking<Option<Lsn>> {
        match self.answers.get(&Question::Partial(name)) {
            Some(Answer::Partial(until)) => Ok(*until),
            Some(Answer::DamagedPartial(until, _)) => Ok(*until),
            _ => Err(Question::Partial(name)),
        }
    }

    /// What is wrong with an incomplete copy of a segment that may hold more than can be read, if there is one.
    pub fn damaged_partial(&self, name: SegmentName) -> Asking<Option<&str>> {
        self.partial(name)?;
        Ok(match self.answers.get(&Question::Partial(name)) {
            Some(Answer::DamagedPartial(_, why)) => Some(why),
            _ => None,
        })
    }

    /// Where on the path to a timeline the server was set to `wal_level = minimal`, if that was asked before.
    pub(super) fn minimal(&self, path: TimelineId) -> Option<&[Lsn]> {
        match self.answers.get(&Question::Minimal(path)) {
            Some(Answer::Minimal(at)) => Some(at),
            _ => None,
        }
    }

    /// Where on the path to a timeline a segment does not continue the one before it, if that was asked before.
    pub(super) fn breaks(&self, path: TimelineId) -> Option<&[Lsn]> {
        match self.answers.get(&Question::Breaks(path)) {
            Some(Answer::Breaks(at)) => Some(at),
            _ => None,
        }
    }

    /// Up to where a timeline without a history is proven to have the WAL of the path to another one.
    pub(super) fn begin(&self, of: TimelineId, on: TimelineId) -> Asking<Option<Lsn>> {
        match self.answers.get(&Question::Begin { of, on }) {
            Some(Answer::Begin(begin)) => Ok(*begin),
            _ => Err(Question::Begin { of, on }),
        }
    }

    /// The restore points of one name, on all timelines.
    pub fn points_named(&self, name: &str) -> Asking<&[NamedPoint]> {
        let question = Question::PointsNamed(name.to_owned());
        match self.answers.get(&question) {
            Some(Answer::PointsNamed(points)) => Ok(points),
            _ => Err(question),
        }
    }

    /// The restore points of all names and timelines.
    pub fn points(&self) -> Asking<&[PointRef]> {
        match self.answers.get(&Question::Points) {
            Some(Answer::Points(points)) => Ok(points),
            _ => Err(Question::Points),
        }
    }
}
