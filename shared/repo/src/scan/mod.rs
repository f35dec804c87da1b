//! All WAL of a timeline's path between two moments, read in order, to list what happened.
//!
//! Unlike a plan it needs no backup, and a segment that is missing or damaged does not end it: what could not be read is reported as a
//! gap, never left out silently. Memory does not grow with the archive: two objects as they are stored, and one frame of one of them. Only
//! reads.
//!
//! | module | owns |
//! |---|---|
//! | `range` | which segments lie between two moments, and what is there of each |
//! | `read` | reading them, from whichever repository has them undamaged |

mod range;
mod read;
#[cfg(test)]
mod tests;

use walpoint_base::{BackupId, Lsn, PgTimestamp, SegmentName, SegmentNo, TimelineId};
use walpoint_plan::restore::SegmentRange;

pub use self::range::{latest_timeline, segments_between};
pub use self::read::read;

/// From when to when.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Moments {
    /// From this time on; `None`: from where the newest backup before the end starts.
    pub from: Option<PgTimestamp>,
    /// Up to this time; `None`: to the end of the archive.
    pub to: Option<PgTimestamp>,
}

/// What lies between two moments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanRange {
    /// The timeline whose path it is.
    pub timeline: TimelineId,
    /// All segments between the bounds, in order, whether they are there or not.
    pub parts: Vec<ScanPart>,
    /// The backup at whose start it begins, if it does.
    pub backup: Option<BackupId>,
}

/// Consecutive segments between the bounds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ScanPart {
    /// They are there.
    Whole(SegmentRange),
    /// One of which at most a beginning is there.
    Incomplete(IncompletePart),
    /// They are not there: why.
    Missing(SegmentRange, GapReason),
}

/// A segment of which at most a beginning is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IncompletePart {
    /// Which one.
    pub number: SegmentNo,
    /// The timeline to which its last byte belongs.
    pub timeline: TimelineId,
    /// The files that begin with the path's bytes, and up to where they hold them: the first one that is there is read.
    pub files: Vec<(SegmentName, Lsn)>,
    /// Whether a listing showed an incomplete copy.
    pub listed: bool,
    /// Up to where it is known to have been written: what is not read before that is a gap.
    pub written: Option<Lsn>,
}

impl ScanRange {
    /// How many segments are there.
    pub fn count(&self) -> u64 {
        let whole = self.parts.iter().map(|part| match part {
            ScanPart::Whole(files) => files.count(),
            ScanPart::Incomplete(_) | ScanPart::Missing(..) => 0,
        });
        whole.sum()
    }
}

/// WAL that was not read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanGap {
    /// Where it begins: what lies before was read.
    pub from: Lsn,
    /// Where it ends; `None` if nothing behind it was read.
    pub until: Option<Lsn>,
    /// The timeline of the segments.
    pub timeline: TimelineId,
    /// Why.
    pub why: GapReason,
}

/// Why WAL was not read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GapReason {
    /// No repository has these segments.
    Missing,
    /// They were stored, and are known to be damaged, or are gone from the store.
    Lost,
    /// What is stored is damaged in every repository that has it.
    Damaged(String),
    /// The records cannot be followed: what is wrong.
    Records(String),
}

/// Takes the WAL that is read.
pub trait WalSink: Send + 'static {
    /// A segment begins. It continues the one before, unless a gap was reported. The same one begins again with another copy if the
    /// records of the first one could not be followed and none of them ended.
    fn begin(&mut self, name: SegmentName, length: u64);

    /// Its next bytes. The error says what is wrong with its records: then nothing more of it comes.
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), String>;

    /// All of it has come. Whether its records reach its end, so that the next segment can continue them.
    fn end(&mut self) -> Result<bool, String>;

    /// Something could not be read.
    fn gap(&mut self, gap: ScanGap);

    /// Up to where records were read.
    fn position(&self) -> Lsn;

    /// Whether nothing more is wanted.
    fn is_done(&self) -> bool;
}
