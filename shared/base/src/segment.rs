//! Segments of WAL and the names of the files in `pg_wal`.
//!
//! Source of the naming: `src/include/access/xlog_internal.h` of PostgreSQL. A name holds the timeline, the "log"
//! (4 GiB of WAL) and the segment within it, so the number of a segment depends on the cluster's segment size.

use std::fmt;
use std::str::FromStr;

use crate::{Lsn, ParseError, TimelineId};

/// Bytes of one WAL segment: a power of two from 1 MiB to 1 GiB, fixed when a cluster is created.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// PostgreSQL's default, 16 MiB.
    pub const DEFAULT: SegmentSize = SegmentSize(16 << 20);

    /// `None` if no cluster can have segments of that many bytes.
    pub fn new(bytes: u64) -> Option<Self> {
        let bytes = u32::try_from(bytes).ok()?;
        (bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes)).then_some(Self(bytes))
    }

    /// Bytes of a segment.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// Bytes of a segment, as a length in memory.
    pub fn as_usize(self) -> usize {
        self.0 as usize
    }

    /// Segments in 4 GiB of WAL, one "log" of a segment's name.
    pub fn per_log(self) -> u64 {
        (1 << 32) / self.bytes()
    }
}

impl fmt::Debug for SegmentSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0 >> 20)
    }
}

/// The number of a segment: its start position divided by the segment size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentNo(pub u64);

impl SegmentNo {
    /// The segment that holds the byte at `lsn`.
    pub fn of(lsn: Lsn, size: SegmentSize) -> Self {
        Self(lsn.0 / size.bytes())
    }

    /// The segment that holds the last byte before `lsn`; for the end of a range of WAL.
    pub fn before(lsn: Lsn, size: SegmentSize) -> Self {
        Self::of(lsn - 1, size)
    }

    /// Its first byte.
    pub fn start(self, size: SegmentSize) -> Lsn {
        Lsn(self.0.saturating_mul(size.bytes()))
    }

    /// The first byte after it.
    pub fn end(self, size: SegmentSize) -> Lsn {
        self.next().start(size)
    }

    /// The following segment.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The name of this segment's file on a timeline.
    pub fn name(self, timeline: TimelineId, size: SegmentSize) -> SegmentName {
        let part = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        SegmentName { timeline, log: part(self.0 / size.per_log()), segment: part(self.0 % size.per_log()) }
    }
}

/// The name of a segment's file, 24 hexadecimal digits: timeline, log, segment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The timeline that the file belongs to. Its first pages may carry the parent's id.
    pub timeline: TimelineId,
    /// Which 4 GiB of WAL.
    pub log: u32,
    /// Which segment of the log.
    pub segment: u32,
}

impl SegmentName {
    /// The segment's number, or `None` if no cluster with that segment size writes such a name.
    pub fn number(self, size: SegmentSize) -> Option<SegmentNo> {
        let segment = u64::from(self.segment);
        (segment < size.per_log()).then(|| SegmentNo(u64::from(self.log) * size.per_log() + segment))
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.0, self.log, self.segment)
    }
}

impl fmt::Debug for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SegmentName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = || ParseError::new("the name of a WAL segment (24 hexadecimal digits)", text);
        if text.len() != 24 || !text.is_ascii() {
            return Err(error());
        }
        let part = |range| hex8(&text[range]).ok_or_else(error);
        let timeline = TimelineId::new(part(0..8)?).ok_or_else(error)?;
        Ok(Self { timeline, log: part(8..16)?, segment: part(16..24)? })
    }
}

/// Every kind of file that PostgreSQL hands to `archive_command` or asks of `restore_command`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFileName {
    /// A segment.
    Segment(SegmentName),
    /// `<TLI>.history`: where a timeline comes from.
    History(TimelineId),
    /// `<segment>.<offset>.backup`: written at the end of a base backup that started at that offset.
    Backup(SegmentName, u32),
    /// `<segment>.partial`: the last segment of a timeline that was left by a promotion.
    Partial(SegmentName),
}

impl WalFileName {
    /// The timeline in the name.
    pub fn timeline(self) -> TimelineId {
        match self {
            Self::Segment(name) | Self::Backup(name, _) | Self::Partial(name) => name.timeline,
            Self::History(timeline) => timeline,
        }
    }

    /// The segment in the name; `None` for a history file.
    pub fn segment(self) -> Option<SegmentName> {
        match self {
            Self::Segment(name) | Self::Backup(name, _) | Self::Partial(name) => Some(name),
            Self::History(_) => None,
        }
    }

    /// Whether PostgreSQL asks for such a file and never writes it: the first timeline comes from nowhere, and no file says
    /// so. It asks when it ends recovery on that timeline, after it has removed its signal file, so the answer must not
    /// depend on a repository.
    pub fn is_never_written(self) -> bool {
        self == Self::History(TimelineId::FIRST)
    }
}

impl fmt::Display for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(name) => write!(f, "{name}"),
            Self::History(timeline) => write!(f, "{:08X}.history", timeline.0),
            Self::Backup(name, offset) => write!(f, "{name}.{offset:08X}.backup"),
            Self::Partial(name) => write!(f, "{name}.partial"),
        }
    }
}

impl fmt::Debug for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for WalFileName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error =
            || ParseError::new("a WAL file name (a segment, or a .history, .backup or .partial file)", text);
        let Some((stem, suffix)) = text.split_once('.') else {
            return text.parse().map(Self::Segment).map_err(|_| error());
        };
        let segment = || stem.parse::<SegmentName>().map_err(|_| error());
        match suffix {
            "history" => hex8(stem).and_then(TimelineId::new).map(Self::History).ok_or_else(error),
            "partial" => Ok(Self::Partial(segment()?)),
            _ => {
                let offset = suffix.strip_suffix(".backup").and_then(hex8).ok_or_else(error)?;
                Ok(Self::Backup(segment()?, offset))
            }
        }
    }
}

/// Exactly eight upper-case hexadecimal digits, as PostgreSQL writes and accepts them.
fn hex8(digits: &str) -> Option<u32> {
    let plain = digits.len() == 8 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_first_timeline_has_no_history() {
        let never = |name: &str| name.parse::<WalFileName>().unwrap().is_never_written();
        assert!(never("00000001.history"));
        assert!(!never("00000002.history") && !never("000000010000000000000001"));
    }

    #[test]
    fn names_follow_the_segment_size() {
        let timeline = TimelineId::new(3).unwrap();
        let lsn: Lsn = "1/5000028".parse().unwrap();
        for (mib, name) in [
            (1, "000000030000000100000050"),
            (16, "000000030000000100000005"),
            (64, "000000030000000100000001"),
            (1024, "000000030000000100000000"),
        ] {
            let size = SegmentSize::new(mib << 20).unwrap();
            let number = SegmentNo::of(lsn, size);
            assert_eq!(number.name(timeline, size).to_string(), name);
            assert_eq!(name.parse::<SegmentName>().unwrap().number(size), Some(number));
            assert!(number.start(size) <= lsn && lsn < number.end(size));
        }
        let beyond: SegmentName = "000000010000000000000100".parse().unwrap();
        assert_eq!(beyond.number(SegmentSize::DEFAULT), None, "16 MiB segments are 256 per log");
    }

    #[test]
    fn sizes_are_powers_of_two_from_1_mib_to_1_gib() {
        for bytes in [0, 1, 1 << 19, (1 << 20) + 1, 3 << 20, 1 << 31, 1 << 32, u64::MAX] {
            assert_eq!(SegmentSize::new(bytes), None, "{bytes}");
        }
    }

    #[test]
    fn every_kind_of_name_is_read_and_nothing_else() {
        for good in [
            "00000001000000000000000A",
            "0000000A.history",
            "00000001000000000000000A.00000028.backup",
            "00000001000000000000000A.partial",
        ] {
            assert_eq!(good.parse::<WalFileName>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "pg_wal/00000001000000000000000A",
            "00000001000000000000000a",
            "00000000000000000000000A",
            "00000001000000000000000",
            "00000001000000000000000A.tmp",
            "00000001000000000000000A.partial.partial",
            "00000001000000000000000A.28.backup",
            "00000000.history",
            "1.history",
            "../../../../etc/passwd00.history",
            "0000000é.history",
        ] {
            assert!(bad.parse::<WalFileName>().is_err(), "{bad:?} must not be a WAL file name");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_name_or_an_error(text in "\\PC{0,70}") {
            if let Ok(name) = text.parse::<WalFileName>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }

        #[test]
        fn numbers_survive_their_names(number in 0u64..1 << 40, timeline in 1u32.., shift in 20u32..=30) {
            let size = SegmentSize::new(1 << shift).unwrap();
            let number = SegmentNo(number % ((1 << 32) * size.per_log()));
            let name = number.name(TimelineId::new(timeline).unwrap(), size);
            prop_assert_eq!(name.to_string().parse::<SegmentName>().unwrap().number(size), Some(number));
        }
    }
}
