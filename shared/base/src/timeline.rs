//! Timelines: their ids, the `.history` files that say where they come from, and the way back to the first one.
//!
//! Source of the file format: `src/backend/access/transam/timeline.c` of PostgreSQL. A line is the parent's id, the
//! position at which it was left, and a reason in free text, separated by white space; `#` starts a comment.

use std::fmt;
use std::str::FromStr;

use crate::{Lsn, ParseError, SegmentNo, SegmentSize};

/// The id of a timeline; never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineId(pub(crate) u32);

impl TimelineId {
    /// The timeline that every cluster starts on.
    pub const FIRST: TimelineId = TimelineId(1);

    /// `None` for 0, which PostgreSQL never uses.
    pub fn new(id: u32) -> Option<Self> {
        (id != 0).then_some(Self(id))
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The id that a promotion tries next; `None` at the end of the range.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }

    /// The eight hexadecimal digits used in file names.
    pub fn hex(self) -> String {
        format!("{:08X}", self.0)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TimelineId({})", self.0)
    }
}

impl FromStr for TimelineId {
    type Err = ParseError;

    /// Decimal, or hexadecimal after `0x`, as PostgreSQL takes `recovery_target_timeline`.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => text.parse(),
        };
        let id = number.ok().filter(|_| !text.contains('+')).and_then(Self::new);
        id.ok_or_else(|| ParseError::new("a timeline id (a number from 1)", text))
    }
}

/// One line of a history file: `parent` was left at `switch`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HistoryEntry {
    /// The timeline that was left.
    pub parent: TimelineId,
    /// The first position that no longer belongs to it.
    pub switch: Lsn,
    /// PostgreSQL's reason, such as `no recovery target specified`.
    pub reason: String,
}

/// Where a timeline comes from: its ancestors, oldest first.
///
/// Invariant: parents ascend and are lower than `timeline`; switch positions never descend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TimelineHistory {
    timeline: TimelineId,
    entries: Vec<HistoryEntry>,
}

/// Why a history file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// A line is not `<parent> <switch> <reason>`.
    #[error(
        "line {line} of the history of timeline {timeline} is not \"<parent> <switch LSN> <reason>\": {text:?}"
    )]
    Line {
        /// Whose history.
        timeline: TimelineId,
        /// Counted from 1.
        line: usize,
        /// Its beginning.
        text: String,
    },
    /// Parents do not ascend, or switch positions descend.
    #[error("line {line} of the history of timeline {timeline} is out of order")]
    Order {
        /// Whose history.
        timeline: TimelineId,
        /// Counted from 1.
        line: usize,
    },
    /// It is not text.
    #[error("the history of timeline {timeline} is not text")]
    NotText {
        /// Whose history.
        timeline: TimelineId,
    },
}

impl TimelineHistory {
    /// A timeline without ancestors: the first one, for which PostgreSQL writes no file.
    pub fn root(timeline: TimelineId) -> Self {
        Self { timeline, entries: Vec::new() }
    }

    /// Reads the content of `<timeline>.history`. Any bytes give a value or an error.
    pub fn parse(timeline: TimelineId, content: &[u8]) -> Result<Self, HistoryError> {
        let text = std::str::from_utf8(content).map_err(|_| HistoryError::NotText { timeline })?;
        let mut entries: Vec<HistoryEntry> = Vec::new();
        for (index, raw) in text.lines().enumerate() {
            let line = index + 1;
            let text = raw.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let error = || HistoryError::Line { timeline, line, text: text.chars().take(80).collect() };
            let mut parts = text.splitn(3, char::is_whitespace);
            let parent = parts.next().and_then(|p| p.parse().ok()).ok_or_else(error)?;
            let switch = parts.next().and_then(|p| p.parse().ok()).ok_or_else(error)?;
            let reason = parts.next().unwrap_or_default().trim().to_owned();
            let ascends = entries.last().is_none_or(|e| e.parent < parent && e.switch <= switch);
            if !ascends || parent >= timeline {
                return Err(HistoryError::Order { timeline, line });
            }
            entries.push(HistoryEntry { parent, switch, reason });
        }
        Ok(Self { timeline, entries })
    }

    /// The timeline whose history this is.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The ancestors, oldest first.
    pub fn entries(&self) -> &[HistoryEntry] {
        &self.entries
    }

    /// The timeline it was forked from, and where.
    pub fn parent(&self) -> Option<&HistoryEntry> {
        self.entries.last()
    }

    /// The ids on the path, oldest first, this timeline last.
    pub fn path(&self) -> impl DoubleEndedIterator<Item = TimelineId> + '_ {
        self.entries.iter().map(|e| e.parent).chain(std::iter::once(self.timeline))
    }

    /// Whether `timeline` is this one or an ancestor.
    pub fn contains(&self, timeline: TimelineId) -> bool {
        self.path().any(|t| t == timeline)
    }

    /// Where `timeline` begins on this path: 0 for the first; `None` if it is not on it.
    pub fn begin_of(&self, timeline: TimelineId) -> Option<Lsn> {
        let at = self.path().position(|t| t == timeline)?;
        Some(at.checked_sub(1).and_then(|before| self.entries.get(before)).map_or(Lsn::INVALID, |e| e.switch))
    }

    /// Where this path leaves `timeline`: `None` if it never does or it is not on the path.
    pub fn end_of(&self, timeline: TimelineId) -> Option<Lsn> {
        self.entries.iter().find(|e| e.parent == timeline).map(|e| e.switch)
    }

    /// The timeline that the byte at `lsn` belongs to on this path.
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        self.entries.iter().find(|e| lsn < e.switch).map_or(self.timeline, |e| e.parent)
    }

    /// The timelines under which recovery looks for a segment, in its order: newest first, leaving out those that
    /// begin after the segment. PostgreSQL also tries timelines that ended before it; a sound archive has nothing there.
    pub fn candidates(&self, segment: SegmentNo, size: SegmentSize) -> impl Iterator<Item = TimelineId> + '_ {
        self.path().rev().filter(move |&t| {
            let begin = self.begin_of(t).unwrap_or(Lsn::INVALID);
            let ended = self.end_of(t).is_some_and(|end| SegmentNo::before(end, size) < segment);
            SegmentNo::of(begin, size) <= segment && !ended
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tli(id: u32) -> TimelineId {
        TimelineId::new(id).unwrap()
    }

    fn sample() -> TimelineHistory {
        let text = b"1\t0/5000060\tno recovery target specified\n\n# note\n2\t0/7000000\tbefore 2026-11-21 10:00:00+00\n";
        TimelineHistory::parse(tli(4), text).unwrap()
    }

    #[test]
    fn a_path_knows_who_owns_a_position() {
        let history = sample();
        assert_eq!(history.path().map(TimelineId::get).collect::<Vec<_>>(), [1, 2, 4]);
        for (lsn, owner) in [(0, 1), (0x500_005F, 1), (0x500_0060, 2), (0x6FF_FFFF, 2), (0x700_0000, 4)] {
            assert_eq!(history.timeline_at(Lsn(lsn)), tli(owner), "{}", Lsn(lsn));
        }
        assert_eq!(history.begin_of(tli(2)), Some(Lsn(0x500_0060)));
        assert_eq!(history.end_of(tli(2)), Some(Lsn(0x700_0000)));
        assert_eq!(history.end_of(tli(4)), None);
        assert_eq!(history.begin_of(tli(3)), None);
    }

    #[test]
    fn the_segment_of_a_fork_is_sought_under_the_child_first() {
        let history = sample();
        let at = |n| {
            history.candidates(SegmentNo(n), SegmentSize::DEFAULT).map(TimelineId::get).collect::<Vec<_>>()
        };
        assert_eq!(at(4), [1]);
        assert_eq!(at(5), [2, 1]);
        assert_eq!(at(6), [2]);
        assert_eq!(at(7), [4], "timeline 2 ends exactly where segment 7 begins");
    }

    #[test]
    fn damaged_histories_are_errors() {
        for bad in [
            "x",
            "1",
            "1 2",
            "1\t0/1\n1\t0/2",
            "2\t0/2\n1\t0/3",
            "1\t0/3\n2\t0/2",
            "4\t0/1",
            "5\t0/1",
            "0\t0/1",
        ] {
            assert!(TimelineHistory::parse(tli(4), bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(TimelineHistory::parse(tli(4), &[0xFF, 0xFE]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_history_or_an_error(bytes: Vec<u8>) {
            let _result = TimelineHistory::parse(tli(9), &bytes);
        }
    }
}
