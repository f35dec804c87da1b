//! The content of a `.history` file: a timeline's ancestors, and which of them a position on its path belongs to.
//!
//! A line is the parent's id, the position at which it was left, and a reason in free text. The meaning is PostgreSQL's own
//! (`tliOfPointInHistory`, and `XLogFileReadAnyTLI` for files): the newest timeline that has begun owns a position. Switch
//! positions may decrease: a recovery that follows timeline 2 and ends before 2 begins writes "1 until 5, 2 until 3" for
//! timeline 3, which then follows 1 from position 3 on. Timeline 2 is *passed through* there: it is an ancestor that the
//! path has no byte of.

use super::{TimelineId, scan};
use crate::{Lsn, SegmentNo, SegmentSize};

/// One line of a history file: `parent` was left at `switch`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HistoryEntry {
    /// The timeline that was left.
    pub parent: TimelineId,
    /// The first position that no longer belongs to it.
    pub switch: Lsn,
    /// PostgreSQL's reason, such as `no recovery target specified`. The name of a restore point is in it, in the encoding of
    /// the server: what is not UTF-8 is replaced here.
    pub reason: String,
}

/// Where a timeline comes from: its ancestors, oldest first.
///
/// Invariant: parents ascend and are lower than `timeline`. Switch positions come in any order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TimelineHistory {
    timeline: TimelineId,
    entries: Vec<HistoryEntry>,
}

/// Why a history file cannot be used. PostgreSQL does not accept it either.
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
    /// Parents do not ascend, or are not lower than the timeline.
    #[error(
        "line {line} of the history of timeline {timeline} is out of order: parents ascend, up to the timeline's own id"
    )]
    Order {
        /// Whose history.
        timeline: TimelineId,
        /// Counted from 1.
        line: usize,
    },
}

impl TimelineHistory {
    /// A timeline without ancestors: the first one, for which PostgreSQL writes no file.
    pub fn root(timeline: TimelineId) -> Self {
        Self { timeline, entries: Vec::new() }
    }

    /// Reads the content of `<timeline>.history`. Any bytes give a value or an error.
    pub fn parse(timeline: TimelineId, content: &[u8]) -> Result<Self, HistoryError> {
        let mut entries: Vec<HistoryEntry> = Vec::new();
        for (index, text) in scan::lines(content).enumerate().filter(|(_, text)| !scan::is_skipped(text)) {
            let line = index + 1;
            let error = || {
                let text = String::from_utf8_lossy(text).trim().chars().take(80).collect();
                HistoryError::Line { timeline, line, text }
            };
            let (parent, high, low, reason) = scan::fields(text).ok_or_else(error)?;
            // PostgreSQL reads a parent 0, but never writes one: no WAL has that timeline.
            let parent = TimelineId::new(parent).ok_or_else(error)?;
            if entries.last().is_some_and(|before| parent <= before.parent) || parent >= timeline {
                return Err(HistoryError::Order { timeline, line });
            }
            entries.push(HistoryEntry {
                parent,
                switch: Lsn(u64::from(high) << 32 | u64::from(low)),
                reason: String::from_utf8_lossy(reason).trim().to_owned(),
            });
        }
        Ok(Self { timeline, entries })
    }

    /// What shows that PostgreSQL did not write `content`, or not to its end, if anything does. `writeTimeLineHistory` in
    /// `src/backend/access/transam/timeline.c` ends each line of its own with a newline, and with a reason before that; what precedes
    /// its last line it copies, from wherever that came.
    pub fn flaw(content: &[u8]) -> Option<&'static str> {
        if content.contains(&0) {
            return Some("it holds zero bytes");
        }
        let Some(last) = scan::lines(content).filter(|text| !scan::is_skipped(text)).last() else {
            return Some(if content.is_empty() { "it is empty" } else { "it names no timeline" });
        };
        if !content.ends_with(b"\n") {
            return Some("its last line is cut short");
        }
        let reason = scan::fields(last).is_some_and(|(.., reason)| !reason.trim_ascii().is_empty());
        (!reason).then_some("its last line has no reason")
    }

    /// The timeline whose history this is.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The lines as they stand in the file, oldest ancestor first, those of timelines passed through included. For which
    /// bytes the path has, ask [`Self::begin_of`], [`Self::end_of`] and [`Self::timeline_at`].
    pub fn entries(&self) -> &[HistoryEntry] {
        &self.entries
    }

    /// What this history says about an ancestor's own: the lines before the one that leaves it. `None` for a timeline that
    /// is no ancestor.
    pub fn of_ancestor(&self, ancestor: TimelineId) -> Option<Self> {
        let entries = self.entries_before(ancestor)?.to_vec();
        Some(Self { timeline: ancestor, entries })
    }

    /// What this history says about an ancestor's own ancestors; `None` for a timeline that is no ancestor.
    pub fn entries_before(&self, ancestor: TimelineId) -> Option<&[HistoryEntry]> {
        let at = self.entries.iter().position(|e| e.parent == ancestor)?;
        self.entries.get(..at)
    }

    /// Its newest lines alone, as of a timeline whose older ancestors nothing tells.
    pub fn newest(&self, lines: usize) -> Self {
        let older = self.entries.len().saturating_sub(lines);
        Self { timeline: self.timeline, entries: self.entries.get(older..).unwrap_or_default().to_vec() }
    }

    /// Whether this history descends from another timeline of that number than the one whose history `own` is. What one of the two
    /// lacks at its beginning proves nothing: where the history of the timeline that it leaves is missing, PostgreSQL begins
    /// a new one (`writeTimeLineHistory` in `src/backend/access/transam/timeline.c`).
    pub fn contradicts(&self, own: &Self) -> bool {
        let Some(told) = self.entries_before(own.timeline) else { return false };
        let mut both = told.iter().rev().zip(own.entries.iter().rev());
        both.any(|(one, other)| (one.parent, one.switch) != (other.parent, other.switch))
    }

    /// Where its own bytes begin, and whose come before them: the last line, with the timeline passed through replaced by
    /// the one that owns the bytes before the switch.
    pub fn parent(&self) -> Option<HistoryEntry> {
        let last = self.entries.last()?;
        let before = last.switch.0.checked_sub(1).map(|before| self.timeline_at(Lsn(before)));
        Some(HistoryEntry { parent: before.unwrap_or(last.parent), ..last.clone() })
    }

    /// The ids in the file, oldest first, this timeline last; those of timelines passed through included.
    pub fn path(&self) -> impl DoubleEndedIterator<Item = TimelineId> + '_ {
        self.entries.iter().map(|e| e.parent).chain(std::iter::once(self.timeline))
    }

    /// Whether `timeline` is this one or an ancestor.
    pub fn contains(&self, timeline: TimelineId) -> bool {
        self.path().any(|t| t == timeline)
    }

    /// Where `timeline` begins on this path: 0 for the first; `None` if the path has no byte of it.
    pub fn begin_of(&self, timeline: TimelineId) -> Option<Lsn> {
        self.portion_of(timeline).map(|(begin, _)| begin)
    }

    /// Where this path leaves `timeline`: `None` if it never does or has no byte of it.
    pub fn end_of(&self, timeline: TimelineId) -> Option<Lsn> {
        self.portion_of(timeline)?.1
    }

    /// The timeline that the byte at `lsn` belongs to on this path.
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        let begun = self.entries.iter().rposition(|e| e.switch <= lsn).map_or(0, |at| at + 1);
        self.entries.get(begun).map_or(self.timeline, |e| e.parent)
    }

    /// The bytes of the path that are `timeline`'s own.
    fn portion_of(&self, timeline: TimelineId) -> Option<(Lsn, Option<Lsn>)> {
        let (begin, end) = self.agreement_with(timeline)?;
        end.is_none_or(|end| begin < end).then_some((begin, end))
    }

    /// Where `timeline` was begun, and up to where what it wrote, and what it took over, is the path's. The end of a timeline
    /// that was passed through lies at or before its begin: only what its files took over from its ancestors counts.
    fn agreement_with(&self, timeline: TimelineId) -> Option<(Lsn, Option<Lsn>)> {
        let at = self.path().position(|t| t == timeline)?;
        let begin =
            at.checked_sub(1).and_then(|before| self.entries.get(before)).map_or(Lsn::INVALID, |e| e.switch);
        let end = self.entries.get(at..).unwrap_or_default().iter().map(|e| e.switch).min();
        Some((begin, end))
    }

    /// Whether PostgreSQL looks for segment `segment` under `timeline` when no newer timeline has it: unless it began after
    /// the segment.
    pub fn may_be_asked(&self, timeline: TimelineId, segment: SegmentNo, size: SegmentSize) -> bool {
        self.agreement_with(timeline).is_some_and(|(begin, _)| SegmentNo::of(begin, size) <= segment)
    }

    /// Up to where the file of segment `segment` that `timeline` wrote holds the bytes of this path: at most the segment's
    /// end. A file begins with what its timeline took over from its ancestors. `None` if it holds none of them, or if
    /// `timeline` began after the segment and has no such file.
    pub fn served_until(&self, timeline: TimelineId, segment: SegmentNo, size: SegmentSize) -> Option<Lsn> {
        let (first, last) = self.files_of(timeline, size)?;
        if segment < first || last.is_some_and(|last| segment > last) {
            return None;
        }
        let (_, end) = self.agreement_with(timeline)?;
        Some(end.map_or(segment.end(size), |end| end.min(segment.end(size))))
    }

    /// The segments of which `timeline`'s own files hold bytes of this path, the first and the last; the last of the path's
    /// own timeline is not known. `None` if there are none.
    pub fn files_of(
        &self,
        timeline: TimelineId,
        size: SegmentSize,
    ) -> Option<(SegmentNo, Option<SegmentNo>)> {
        let (begin, end) = self.agreement_with(timeline)?;
        let first = SegmentNo::of(begin, size);
        // Nothing ends at position 0, before which there is no segment.
        let last = end.map(|end| end.0.checked_sub(1).map(|before| SegmentNo::of(Lsn(before), size)));
        match last {
            None => Some((first, None)),
            Some(last) => last.filter(|last| first <= *last).map(|last| (first, Some(last))),
        }
    }

    /// The timelines under which recovery looks for a segment, in its order: newest first, leaving out those that begin
    /// after the segment. PostgreSQL also tries timelines whose file of that number has no byte of the path: a sound
    /// archive has none but those of timelines passed through, which recovery must not read.
    pub fn candidates(&self, segment: SegmentNo, size: SegmentSize) -> impl Iterator<Item = TimelineId> + '_ {
        self.path().rev().filter(move |&t| self.served_until(t, segment, size).is_some())
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
    fn the_segment_of_a_fork_is_searched_under_the_child_first() {
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
        for bad in ["x", "1", "1 2", "1\t0/1\n1\t0/2", "2\t0/2\n1\t0/3", "4\t0/1", "5\t0/1", "0\t0/1"] {
            assert!(TimelineHistory::parse(tli(4), bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(TimelineHistory::parse(tli(4), &[0xFF, 0xFE]).is_err());
        assert!(TimelineHistory::parse(tli(1), b"1\t0/1").is_err(), "timeline 1 has no parent");
    }

    /// As PostgreSQL 13 to 19 write them: with a short or a padded position, behind a copy of the parent's or none.
    #[test]
    fn what_postgresql_writes_has_no_flaw_and_a_part_of_it_has() {
        for whole in [
            &b"1\t0/A000A0\tno recovery target specified\n"[..],
            b"1\t0/00A000A0\tno recovery target specified\n",
            b"1\t0/A000A0\tno recovery target specified\n\n2\t0/B000000\tbefore 2026-11-21 10:00:00+00\n",
            b"# by hand, without an end\n1\t0/A000A0\n2\t0/B000000\tat restore point \"caf\xE9\"\n",
            b"1\t0/A000A0\tx\n# a note\n",
        ] {
            assert_eq!(TimelineHistory::flaw(whole), None, "{}", whole.escape_ascii());
        }
        let whole = b"1\t0/A000A0\tno recovery target specified\n";
        for end in 0..whole.len() {
            assert!(TimelineHistory::flaw(&whole[..end]).is_some(), "{end}");
        }
        for flawed in
            [&b"\n"[..], b"# a note\n", b"1\t0/A000A0\n", b"1\t0/A000A0\t \n", b"1\t0/A0\0\0A0\tx\n"]
        {
            assert!(TimelineHistory::flaw(flawed).is_some(), "{}", flawed.escape_ascii());
        }
    }

    /// Recovery to timeline 2 ended before 2 begins, and made 3.
    fn decreasing() -> TimelineHistory {
        TimelineHistory::parse(tli(3), b"1\t0/5000060\tx\n\n2\t0/3000028\tbefore 2026-11-21 10:00:00+00\n")
            .unwrap()
    }

    #[test]
    fn a_timeline_may_be_passed_through_without_a_byte() {
        let history = decreasing();
        assert_eq!(history.path().map(TimelineId::get).collect::<Vec<_>>(), [1, 2, 3]);
        for (lsn, owner) in [(0, 1), (0x300_0027, 1), (0x300_0028, 3), (0x500_0060, 3), (0x900_0000, 3)] {
            assert_eq!(history.timeline_at(Lsn(lsn)), tli(owner), "{}", Lsn(lsn));
        }
        let fork = Some(Lsn(0x300_0028));
        assert_eq!((history.begin_of(tli(1)), history.end_of(tli(1))), (Some(Lsn(0)), fork));
        assert_eq!((history.begin_of(tli(2)), history.end_of(tli(2))), (None, None));
        assert_eq!((history.begin_of(tli(3)), history.end_of(tli(3))), (fork, None));
        let parent = history.parent().unwrap();
        assert_eq!((parent.parent, parent.switch), (tli(1), Lsn(0x300_0028)));
        let second = TimelineHistory::parse(tli(2), b"1\t0/5000060\tx\n").unwrap();
        assert_eq!(history.of_ancestor(tli(2)), Some(second));
        assert_eq!(history.of_ancestor(tli(1)), Some(TimelineHistory::root(tli(1))));
        assert_eq!(history.of_ancestor(tli(3)), None);
    }

    #[test]
    fn a_history_with_other_switch_points_contradicts_that_of_an_ancestor() {
        let of = |id, text: &str| TimelineHistory::parse(tli(id), text.as_bytes()).unwrap();
        let own = of(3, "1\t0/5000060\tx\n2\t0/7000000\ty\n");
        for (descendant, contradicts) in [
            ("1\t0/5000060\tx\n2\t0/7000000\tanother reason\n3\t0/9000000\tz\n", false),
            ("1\t0/5000068\tx\n2\t0/7000000\ty\n3\t0/9000000\tz\n", true),
            ("1\t0/5000060\tx\n2\t0/7000008\ty\n3\t0/9000000\tz\n", true),
            ("1\t0/5000060\tx\n3\t0/9000000\tz\n", true),
            ("2\t0/7000000\ty\n3\t0/9000000\tz\n", false),
            ("3\t0/9000000\tz\n", false),
            ("1\t0/4000000\tx\n2\t0/7000008\ty\n", false),
        ] {
            assert_eq!(of(4, descendant).contradicts(&own), contradicts, "{descendant}");
        }
        assert!(!of(4, "1\t0/5000060\tx\n3\t0/9000000\tz\n").contradicts(&TimelineHistory::root(tli(3))));
    }

    #[test]
    fn the_files_of_a_timeline_passed_through_are_not_searched() {
        let at = |history: &TimelineHistory, n| {
            history.candidates(SegmentNo(n), SegmentSize::DEFAULT).map(TimelineId::get).collect::<Vec<_>>()
        };
        let history = decreasing();
        for (segment, expected) in [(2, vec![1]), (3, vec![3, 1]), (4, vec![3]), (5, vec![3]), (6, vec![3])] {
            assert_eq!(at(&history, segment), expected, "{segment}");
        }
        // Both forks lie in one segment: timeline 2's file holds what both took over from 1.
        let near = TimelineHistory::parse(tli(3), b"1\t0/3000060\tx\n2\t0/3000028\tx\n").unwrap();
        assert_eq!(at(&near, 3), [3, 2, 1]);
        let until = |t| near.served_until(tli(t), SegmentNo(3), SegmentSize::DEFAULT);
        assert_eq!(
            [until(1), until(2), until(3)].map(Option::unwrap),
            [0x300_0028, 0x300_0028, 0x400_0000].map(Lsn)
        );
    }

    #[test]
    fn histories_are_bytes_as_postgresql_reads_them() {
        // A restore point named in LATIN1, hand-written white space and comments, no reason, no newline at the end.
        let content = b"  # from \xE9t\xE9\n \t1 0/5000060\tat restore point \"d\xE9but\"\r\n\x0b\n2\t1/A";
        let history = TimelineHistory::parse(tli(7), content).unwrap();
        let entry = |parent, switch, reason: &str| HistoryEntry {
            parent: tli(parent),
            switch: Lsn(switch),
            reason: reason.to_owned(),
        };
        assert_eq!(
            history.entries(),
            [entry(1, 0x500_0060, "at restore point \"d\u{FFFD}but\""), entry(2, 0x1_0000_000A, "")]
        );
    }

    /// `tliOfPointInHistory`, over the list that `readTimeLineHistory` builds.
    fn as_postgresql(history: &TimelineHistory, at: Lsn) -> TimelineId {
        let mut begin = 0;
        let mut list = Vec::new();
        for entry in history.entries() {
            list.push((entry.parent, begin, entry.switch.0));
            begin = entry.switch.0;
        }
        list.push((history.timeline(), begin, 0));
        let owns = |&&(_, begin, end): &&(TimelineId, u64, u64)| {
            (begin == 0 || begin <= at.0) && (end == 0 || at.0 < end)
        };
        list.iter().rev().find(owns).expect("contiguous").0
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_history_or_an_error(bytes: Vec<u8>) {
            let _result = TimelineHistory::parse(tli(9), &bytes);
        }

        #[test]
        fn positions_belong_to_whom_postgresql_says(switches in prop::collection::vec(0u64..12, 0..6), at in 0u64..14) {
            let lines: String =
                switches.iter().enumerate().map(|(n, switch)| format!("{}\t0/{switch:X}\tx\n", n + 1)).collect();
            let history = TimelineHistory::parse(tli(7), lines.as_bytes()).unwrap();
            let owner = history.timeline_at(Lsn(at));
            prop_assert_eq!(owner, as_postgresql(&history, Lsn(at)));
            // The portions lie side by side, and say the same.
            for timeline in history.path() {
                let begun = history.begin_of(timeline).is_some_and(|begin| begin <= Lsn(at));
                let inside = begun && history.end_of(timeline).is_none_or(|end| Lsn(at) < end);
                prop_assert_eq!(inside, timeline == owner);
            }
        }
    }
}
