//! Whether one segment of WAL continues another: what their edges say about the records on both sides of a boundary, and
//! the comparison of the two.
//!
//! Each record points back to the one before it, and one that crosses a boundary has a length and a CRC. So a segment
//! that another server wrote shows at the boundary, whatever its name and timeline. Refusing valid WAL stops production,
//! so what is not known is never compared:
//!
//! | what | is then |
//! |---|---|
//! | the neighbor is absent, damaged, or its content ends early (`.ended`, `.partial`) | unknown: begin with [`ChainEnd::UNKNOWN`] |
//! | the first record points back to 0 (`initdb`, `pg_resetwal`) | [`Link::Reset`]: nothing precedes it |
//! | no record starts in a segment | carried on: [`ChainEnd::after`] |
//! | the record that came in was abandoned and overwritten | the first record points back to the last complete one |
//! | a record's header is cut by the end of the segment | compared once the rest is there |
//!
//! The neighbor of a timeline's first segment lies on the timeline that the history names for the byte before it: that
//! is for the caller to find.
//!
//! The CRC of a crossing record is a sum modulo 2 (CRC-32C is linear): each segment states what its bytes contribute, with
//! the bytes that follow taken as zero, and over all of them the sum is zero. Nothing here computes a CRC.

use std::fmt;

use crate::Lsn;

/// Both edges of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ChainFacts {
    /// Where it begins.
    pub begin: ChainBegin,
    /// Where it ends.
    pub end: ChainEnd,
}

/// What the beginning of a segment says about the records before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ChainBegin {
    /// `xl_prev` of the first record that starts here, which may be 0; `None` if none starts, or the end of the segment cuts
    /// its header before it.
    pub previous: Option<Lsn>,
    /// `xlp_rem_len` of the first page: bytes of a record that began before this segment, 0 if there is none.
    pub carried: u32,
    /// Whether a page that takes the place of the rest of an abandoned record precedes the first record.
    pub overwritten: bool,
    /// What the carried bytes contribute to their record's check if its header lies whole in the segment before, or is cut
    /// there as [`Cut`] says. `None` if they were not all read.
    pub rest: Option<[u32; 3]>,
}

/// What the end of a segment says about the records that follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ChainEnd {
    /// Where the last record starts, complete or not. `None`: not known.
    pub last: Option<Lsn>,
    /// Where the last complete record starts. `None`: not known.
    pub complete: Option<Lsn>,
    /// Bytes of the last record that follow in the next segment, 0 if it is complete. `None`: not known.
    pub carried: Option<u32>,
    /// What that record's bytes contribute to its check so far. `None`: not known, or it is complete.
    pub due: Option<Due>,
}

/// The contribution to a check, up to the end of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Due {
    /// Where the end of the segment cuts the record's header.
    pub cut: Cut,
    /// The contribution.
    pub sum: u32,
}

/// Where the end of a segment cuts the header of its last record. Records start at multiples of 8 bytes and a header has 24.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// Behind it, or not at all.
    Behind,
    /// 8 bytes of it are in the segment.
    At8,
    /// 16 bytes of it are in the segment.
    At16,
}

impl Cut {
    const fn place(self) -> usize {
        match self {
            Self::Behind => 0,
            Self::At8 => 1,
            Self::At16 => 2,
        }
    }
}

/// How a segment relates to the one before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// It continues it, as far as is known.
    Continues,
    /// Its first record points back to nothing: `initdb` or `pg_resetwal` wrote it. Recovery cannot get here from the
    /// segment before, but both may be one server's.
    Reset,
    /// It does not.
    Broken(Break),
}

/// Why a segment does not continue the one before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Break {
    /// The first record points back elsewhere.
    Previous {
        /// Where the last record, or the last complete one, starts.
        expected: Lsn,
        /// Where the first record points back to.
        found: Lsn,
    },
    /// The first page continues a record that is longer or shorter than the one that is to be continued.
    Length {
        /// Bytes that should follow.
        expected: u32,
        /// Bytes that the page says.
        found: u32,
    },
    /// The bytes that follow are not those of the record that is to be continued.
    Content {
        /// Where the record starts, if that is known.
        record: Option<Lsn>,
    },
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Previous { expected, found } => {
                write!(
                    f,
                    "its first record follows one at {found}, the segment before has its last at {expected}"
                )
            }
            Self::Length { expected: 0, found } => {
                write!(
                    f,
                    "it begins with {found} bytes of an earlier record, the segment before leaves none open"
                )
            }
            Self::Length { expected, found: 0 } => {
                write!(
                    f,
                    "{expected} bytes of the last record of the segment before are missing at its beginning"
                )
            }
            Self::Length { expected, found } => write!(
                f,
                "it begins with {found} bytes of an earlier record, of which {expected} bytes should follow"
            ),
            Self::Content { record: Some(record) } => {
                write!(f, "the rest of the record at {record} has a wrong CRC: it is another record's")
            }
            Self::Content { record: None } => {
                write!(f, "the rest of the record it begins with has a wrong CRC: it is another record's")
            }
        }
    }
}

impl ChainEnd {
    /// Of a segment that is absent, damaged or ends early.
    pub const UNKNOWN: Self = Self { last: None, complete: None, carried: None, due: None };

    /// Whether a segment continues what ends here.
    pub fn link(&self, next: &ChainFacts) -> Link {
        let begin = &next.begin;
        if begin.previous == Some(Lsn::INVALID) {
            return Link::Reset;
        }
        // An abandoned record whose rest was to begin in the first page has left nothing there to compare.
        let replaced = begin.overwritten && begin.carried == 0;
        if let Some(expected) = self.carried.filter(|expected| !replaced && *expected != begin.carried) {
            return Link::Broken(Break::Length { expected, found: begin.carried });
        }
        let ends = begin.carried > 0 && !begin.overwritten && !next.is_passed_through();
        if ends && self.sum(begin).is_some_and(|sum| sum != 0) {
            return Link::Broken(Break::Content { record: self.last });
        }
        let expected = if begin.overwritten { self.complete } else { self.last };
        match (expected, begin.previous) {
            (Some(expected), Some(found)) if expected != found => {
                Link::Broken(Break::Previous { expected, found })
            }
            _ => Link::Continues,
        }
    }

    /// What is known at the end of a segment that continues what ends here.
    #[must_use]
    pub fn after(&self, next: &ChainFacts) -> Self {
        let (begin, end) = (&next.begin, &next.end);
        let through = next.is_passed_through();
        let ended = begin.carried > 0 && !begin.overwritten && !through;
        Self {
            last: end.last.or(self.last),
            complete: end.complete.or(if ended { self.last } else { self.complete }),
            carried: end.carried,
            due: if through { self.sum(begin).map(|sum| Due { cut: Cut::Behind, sum }) } else { end.due },
        }
    }

    fn sum(&self, begin: &ChainBegin) -> Option<u32> {
        let (due, rest) = (self.due?, begin.rest?);
        Some(due.sum ^ rest.get(due.cut.place())?)
    }
}

impl ChainFacts {
    /// Whether one record fills the segment, beginning before it and ending behind it.
    pub fn is_passed_through(&self) -> bool {
        self.begin.carried > 0 && self.end.last.is_none() && self.end.carried.is_some_and(|left| left > 0)
    }
}

/// Why a segment cannot follow the one before it in the repository.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChainFault {
    /// Its records do not continue those before it: another server wrote it, or the segment before.
    Broken(Break),
    /// `pg_resetwal` wrote it: recovery ends before it.
    Reset,
    /// It was stored under another history of its timeline.
    History,
}

impl ChainFault {
    /// Whether it says that two servers wrote the WAL of one timeline.
    pub fn is_split_brain(&self) -> bool {
        !matches!(self, Self::Reset)
    }
}

impl fmt::Display for ChainFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(fault) => fault.fmt(f),
            Self::Reset => f.write_str(
                "its first record follows none: pg_resetwal wrote it, and recovery ends before it",
            ),
            Self::History => {
                f.write_str("it was archived under another history of its timeline than the segment before")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsn(at: u64) -> Option<Lsn> {
        Some(Lsn(at))
    }

    fn begin(previous: Option<Lsn>, carried: u32) -> ChainBegin {
        ChainBegin { previous, carried, ..ChainBegin::default() }
    }

    fn end(last: Option<Lsn>, complete: Option<Lsn>, carried: u32) -> ChainEnd {
        ChainEnd { last, complete, carried: Some(carried), due: None }
    }

    fn due(cut: Cut, sum: u32) -> Option<Due> {
        Some(Due { cut, sum })
    }

    /// A segment in which records start.
    fn segment(begin: ChainBegin) -> ChainFacts {
        ChainFacts { begin, end: end(lsn(0x900), lsn(0x900), 0) }
    }

    #[test]
    fn each_exemption_is_one_and_nothing_else_is() {
        let (plain, open) = (end(lsn(0x100), lsn(0x100), 0), end(lsn(0x100), lsn(0x80), 30));
        let rest = Some([5, 6, 7]);
        let previous =
            |expected, found| Link::Broken(Break::Previous { expected: Lsn(expected), found: Lsn(found) });
        let length = |expected, found| Link::Broken(Break::Length { expected, found });
        let content = Link::Broken(Break::Content { record: lsn(0x100) });
        let known = |cut, sum| ChainEnd { due: due(cut, sum), ..open };
        let carried = |previous| ChainBegin { rest, ..begin(previous, 30) };
        let overwritten = |begin| ChainBegin { overwritten: true, ..begin };
        for (what, end, begin, link) in [
            ("the record before it", plain, begin(lsn(0x100), 0), Link::Continues),
            ("another record before it", plain, begin(lsn(0xF8), 0), previous(0x100, 0xF8)),
            ("initdb and pg_resetwal", plain, begin(lsn(0), 0), Link::Reset),
            ("pg_resetwal behind an open record", open, begin(lsn(0), 0), Link::Reset),
            ("no neighbor", ChainEnd::UNKNOWN, begin(lsn(0xF8), 30), Link::Continues),
            ("no header to read", plain, begin(None, 0), Link::Continues),
            ("a header cut in another place", plain, begin(None, 30), length(0, 30)),
            ("the rest", open, begin(lsn(0x100), 30), Link::Continues),
            ("the rest, and another record before it", open, begin(lsn(0x80), 30), previous(0x100, 0x80)),
            ("no rest", open, begin(lsn(0x100), 0), length(30, 0)),
            ("another rest", open, begin(lsn(0x100), 38), length(30, 38)),
            ("a rest with the right sum", known(Cut::Behind, 5), carried(lsn(0x100)), Link::Continues),
            ("a rest with a wrong sum", known(Cut::Behind, 6), carried(lsn(0x100)), content),
            ("a header cut at 8", known(Cut::At8, 6), carried(lsn(0x100)), Link::Continues),
            ("a header cut at 8, wrong", known(Cut::At8, 5), carried(lsn(0x100)), content),
            ("a header cut at 16", known(Cut::At16, 7), carried(lsn(0x100)), Link::Continues),
            ("a header cut at 16, wrong", known(Cut::At16, 6), carried(lsn(0x100)), content),
            ("overwritten at once", open, overwritten(begin(lsn(0x80), 0)), Link::Continues),
            (
                "overwritten, and pointing to it",
                open,
                overwritten(begin(lsn(0x100), 0)),
                previous(0x80, 0x100),
            ),
            ("overwritten later", known(Cut::Behind, 9), overwritten(carried(lsn(0x80))), Link::Continues),
            ("overwritten later, of another", open, overwritten(begin(lsn(0x80), 8)), length(30, 8)),
            (
                "overwritten behind what is not known",
                ChainEnd { complete: None, ..open },
                overwritten(begin(lsn(0x80), 0)),
                Link::Continues,
            ),
        ] {
            assert_eq!(end.link(&segment(begin)), link, "{what}");
        }
    }

    #[test]
    fn a_segment_without_a_start_is_carried_on() {
        let first = ChainEnd { due: due(Cut::At8, 6), ..end(lsn(0x100), lsn(0x80), 5000) };
        let through = ChainFacts {
            begin: ChainBegin { rest: Some([1, 2, 3]), ..begin(None, 5000) },
            end: ChainEnd { last: None, complete: None, carried: Some(1000), due: None },
        };
        assert_eq!(first.link(&through), Link::Continues);
        let state = first.after(&through);
        assert_eq!(state, ChainEnd { due: due(Cut::Behind, 4), ..end(lsn(0x100), lsn(0x80), 1000) });
        let last = |sum| segment(ChainBegin { rest: Some([sum, 0, 0]), ..begin(lsn(0x100), 1000) });
        assert_eq!(state.link(&last(4)), Link::Continues);
        assert_eq!(state.link(&last(5)), Link::Broken(Break::Content { record: lsn(0x100) }));

        // Read from here on: only its length is known.
        let state = ChainEnd::UNKNOWN.after(&through);
        assert_eq!(state, ChainEnd { last: None, complete: None, carried: Some(1000), due: None });
        assert_eq!(state.link(&last(5)), Link::Continues);
        assert_eq!(
            state.link(&segment(begin(lsn(0x100), 8))),
            Link::Broken(Break::Length { expected: 1000, found: 8 })
        );
    }

    #[test]
    fn the_last_complete_record_may_begin_in_an_earlier_segment() {
        let before = end(lsn(0x100), lsn(0x80), 30);
        // The record at 0x100 ends here, and the only one that starts here is abandoned.
        let here = ChainFacts { begin: begin(lsn(0x100), 30), end: end(lsn(0x200), None, 64) };
        let after = before.after(&here);
        assert_eq!((after.last, after.complete), (lsn(0x200), lsn(0x100)));
        let next = segment(ChainBegin { overwritten: true, ..begin(lsn(0x100), 0) });
        assert_eq!(after.link(&next), Link::Continues);
        // A segment switch whose last bytes are here, and nothing else.
        let switch = ChainFacts { begin: begin(None, 16), end: end(None, None, 0) };
        let after = end(lsn(0x100), lsn(0x80), 16).after(&switch);
        assert_eq!((after.last, after.complete, after.carried), (lsn(0x100), lsn(0x100), Some(0)));
        assert_eq!(after.link(&segment(begin(lsn(0x100), 0))), Link::Continues);
        // An abandoned record that is overwritten here; the record behind it crosses the end in its turn.
        let here = ChainFacts {
            begin: ChainBegin { overwritten: true, ..begin(lsn(0x80), 0) },
            end: end(lsn(0x300), None, 8),
        };
        assert_eq!(before.after(&here).complete, lsn(0x80));
    }
}
