//! The keys of one lineage's WAL: segments, what goes with them, histories, index, restore points.

use std::fmt;

use walpoint_base::{Lsn, SegmentName, TimelineId, WalFileName};

use super::{Key, Prefix, hex, point_file, unhex};
use crate::ids::ContentHash;

/// Everything below `clusters/<name>/<lineage>`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WalPaths {
    root: String,
}

/// The first half of a content hash, as it stands in names: 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NameHash(pub [u8; 16]);

impl NameHash {
    /// Of a content.
    pub fn of(hash: &ContentHash) -> Self {
        let mut half = [0; 16];
        half.iter_mut().zip(hash.0).for_each(|(to, from)| *to = from);
        Self(half)
    }

    fn parse(text: &str) -> Option<Self> {
        let number = u128::from_str_radix(text, 16).ok()?;
        let hash = Self(number.to_be_bytes());
        (hash.to_string() == text).then_some(hash)
    }
}

impl fmt::Display for NameHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// A timeline that was abandoned, and up to where. Its number alone may be another server's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct AbandonedUntil {
    /// The last segment that the record covers.
    pub until: SegmentName,
    /// The timeline that it left, and where; `None` if it has no ancestors, or no history.
    pub fork: Option<(TimelineId, Lsn)>,
}

impl fmt::Display for AbandonedUntil {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fork {
            None => write!(f, "{}", self.until),
            Some((parent, lsn)) => write!(f, "{}.{}", self.until, point_file(parent, lsn)),
        }
    }
}

/// What an object below `wal/` is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum WalEntry {
    /// A whole segment, or one of PostgreSQL's other files.
    File(WalFileName),
    /// A complete name with content that ends early, at that position.
    Ended(SegmentName, Lsn, NameHash),
    /// A `.partial` file.
    Partial(SegmentName, NameHash),
    /// The record that a segment does not continue the one before it.
    Gap(SegmentName),
    /// A part of a large file; it means nothing without the object that names it.
    Part(SegmentName),
    /// A range of the open segment, from one position to another, stored by one session.
    Slice(SegmentName, Lsn, Lsn, u32),
    /// A history that differs from the one stored for its timeline, by the hash of its content.
    RefusedHistory(TimelineId, ContentHash),
    /// The record that a refused history no longer puts its timeline in doubt.
    SettledHistory(TimelineId, ContentHash),
    /// The record that a timeline was abandoned.
    AbandonedTimeline(AbandonedUntil),
}

impl WalEntry {
    /// The segment that it belongs to; `None` for a history file.
    pub fn segment(self) -> Option<SegmentName> {
        match self {
            Self::File(file) => file.segment(),
            Self::Ended(name, ..)
            | Self::Partial(name, _)
            | Self::Gap(name)
            | Self::Part(name)
            | Self::Slice(name, ..) => Some(name),
            Self::RefusedHistory(..) | Self::SettledHistory(..) | Self::AbandonedTimeline(_) => None,
        }
    }
}

impl WalPaths {
    pub(super) fn new(root: String) -> Self {
        Self { root }
    }

    /// A directory whose directories are the timelines that have WAL, eight hexadecimal digits each.
    pub fn timelines(&self) -> Prefix {
        Prefix::composed(format!("{}/wal", self.root))
    }

    /// All WAL of a timeline; names sort by position.
    pub fn timeline(&self, timeline: TimelineId) -> Prefix {
        Prefix::composed(format!("{}/wal/{}", self.root, timeline.hex()))
    }

    /// The WAL of one log (4 GiB) of a timeline.
    pub fn log(&self, timeline: TimelineId, log: u32) -> Prefix {
        Prefix::composed(format!("{}/wal/{}/{log:08X}", self.root, timeline.hex()))
    }

    /// The object of a file that PostgreSQL archives.
    pub fn file(&self, name: WalFileName) -> Key {
        match name {
            WalFileName::History(timeline) => {
                Key::composed(format!("{}/history/{}.history", self.root, timeline.hex()))
            }
            WalFileName::Segment(segment)
            | WalFileName::Backup(segment, _)
            | WalFileName::Partial(segment) => Key::composed(format!("{}/{name}", self.directory(segment))),
        }
    }

    /// The object of a whole segment.
    pub fn segment(&self, segment: SegmentName) -> Key {
        self.file(WalFileName::Segment(segment))
    }

    /// A complete name whose content ends at `end`.
    pub fn ended(&self, segment: SegmentName, end: Lsn, hash: NameHash) -> Key {
        Key::composed(format!("{}/{segment}.ended/{:016X}-{hash}", self.directory(segment), end.0))
    }

    /// A `.partial` file with that content.
    pub fn partial(&self, segment: SegmentName, hash: NameHash) -> Key {
        Key::composed(format!("{}/{segment}.partial/{hash}", self.directory(segment)))
    }

    /// The record that a segment does not continue the one before it, though both are one server's.
    pub fn gap(&self, segment: SegmentName) -> Key {
        Key::composed(format!("{}/{segment}.gap", self.directory(segment)))
    }

    /// Every `.partial` file stored for a segment.
    pub fn all_partials(&self, segment: SegmentName) -> Prefix {
        Prefix::composed(format!("{}/{segment}.partial", self.directory(segment)))
    }

    /// Every incomplete content stored for a segment.
    pub fn all_ended(&self, segment: SegmentName) -> Prefix {
        Prefix::composed(format!("{}/{segment}.ended", self.directory(segment)))
    }

    /// Part `n` of a large file whose whole content has that hash. The hash in the name keeps the parts of two
    /// different contents apart until the object that names them is created and decides between them.
    pub fn part(&self, name: WalFileName, hash: &str, n: u32) -> Key {
        Key::composed(format!("{}/{hash}-{n:04}", self.parts(name).as_str()))
    }

    /// Every part of what was stored under that name, or was to be.
    pub fn parts(&self, name: WalFileName) -> Prefix {
        let segment = match name {
            WalFileName::Segment(s) | WalFileName::Backup(s, _) | WalFileName::Partial(s) => s,
            WalFileName::History(timeline) => SegmentName { timeline, log: 0, segment: 0 },
        };
        Prefix::composed(format!("{}/{segment}.parts", self.directory(segment)))
    }

    /// A range of the open segment, from `start` to `end`, stored by one session.
    pub fn slice(&self, segment: SegmentName, start: Lsn, end: Lsn, session: u32) -> Key {
        let dir = self.directory(segment);
        Key::composed(format!("{dir}/{segment}.slices/{:016X}-{:016X}-{session:08x}", start.0, end.0))
    }

    /// What messages call all stored ranges of a segment together. No object has that name.
    pub fn sliced(&self, segment: SegmentName) -> Key {
        Key::composed(format!("{}/{segment}.slices", self.directory(segment)))
    }

    /// Every stored range of a segment.
    pub fn slices(&self, segment: SegmentName) -> Prefix {
        Prefix::composed(format!("{}/{segment}.slices", self.directory(segment)))
    }

    /// Where a listing of the timeline starts so that it names only what lies after `segment` and all that goes with it.
    pub fn after(&self, segment: SegmentName) -> String {
        // '0' is the first allowed character after '.', which every name that goes with a segment continues with.
        format!("{}/{segment}0", self.directory(segment))
    }

    /// Where a listing of the timeline starts so that it begins with `segment` itself.
    pub fn from(&self, segment: SegmentName) -> String {
        // '-' sorts before every digit, so this lies before the segment and after the one before it.
        let name = segment.to_string();
        let (head, last) = name.split_at(name.len() - 1);
        let before = match last {
            "0" => "-".to_owned(),
            "A" => "9z".to_owned(),
            digit => digit.bytes().next().map_or(String::new(), |b| format!("{}z", char::from(b - 1))),
        };
        format!("{}/{head}{before}", self.directory(segment))
    }

    /// A history that differs from the one stored for its timeline.
    pub fn refused_history(&self, timeline: TimelineId, hash: ContentHash) -> Key {
        Key::composed(format!("{}/history/{}.history.refused/{hash}", self.root, timeline.hex()))
    }

    /// The record that a refused history is settled.
    pub fn settled_history(&self, timeline: TimelineId, hash: ContentHash) -> Key {
        Key::composed(format!("{}/history/{}.history.settled/{hash}", self.root, timeline.hex()))
    }

    /// The record that a timeline was abandoned.
    pub fn abandoned_timeline(&self, name: AbandonedUntil) -> Key {
        let timeline = name.until.timeline.hex();
        Key::composed(format!("{}/history/{timeline}.history.abandoned/{name}", self.root))
    }

    /// A directory whose files are the histories; refused ones lie in directories below it.
    pub fn histories(&self) -> Prefix {
        Prefix::composed(format!("{}/history", self.root))
    }

    /// Sealed index objects of a timeline and level, `<n>.<generation>`.
    pub fn index(&self, timeline: TimelineId, level: u8) -> Prefix {
        Prefix::composed(format!("{}/index/{}/{level}", self.root, timeline.hex()))
    }

    /// One sealed index object.
    pub fn index_object(&self, timeline: TimelineId, level: u8, n: u64, generation: u32) -> Key {
        let index = self.index(timeline, level);
        Key::composed(format!("{}/{n:012}.{generation:06}", index.as_str()))
    }

    /// A directory whose directories are the names of restore points, in hex.
    pub fn points(&self) -> Prefix {
        Prefix::composed(format!("{}/points", self.root))
    }

    /// Every restore point of that name.
    pub fn points_named(&self, name: &str) -> Prefix {
        Prefix::composed(format!("{}/points/{}", self.root, point_directory(name)))
    }

    /// One restore point; `lsn` is where its record starts.
    pub fn point(&self, name: &str, timeline: TimelineId, lsn: Lsn) -> Key {
        Key::composed(format!("{}/points/{}/{}", self.root, point_directory(name), point_file(timeline, lsn)))
    }

    /// The name, timeline and record start that a restore point's key says.
    pub fn parse_point(&self, key: &Key) -> Option<(String, TimelineId, Lsn)> {
        let (name, file) = key.below(&self.points())?.split_once('/')?;
        let (timeline, lsn) = parse_point_file(file)?;
        let name = unhex(name)?;
        (self.point(&name, timeline, lsn) == *key).then_some((name, timeline, lsn))
    }

    /// A directory whose objects hold many restore points each.
    pub fn point_batches(&self) -> Prefix {
        Prefix::composed(format!("{}/points/{BATCHES}", self.root))
    }

    /// Restore points of a segment with that content, from the one whose record starts at `first`.
    pub fn point_batch(&self, timeline: TimelineId, first: Lsn, segment: NameHash) -> Key {
        let file = point_file(timeline, first);
        Key::composed(format!("{}/points/{BATCHES}/{file}-{segment}", self.root))
    }

    /// The timeline, and where the first record starts, that the key of many restore points says.
    pub fn parse_point_batch(&self, key: &Key) -> Option<(TimelineId, Lsn)> {
        let (file, segment) = key.below(&self.point_batches())?.rsplit_once('-')?;
        let (timeline, lsn) = parse_point_file(file)?;
        (self.point_batch(timeline, lsn, NameHash::parse(segment)?) == *key).then_some((timeline, lsn))
    }

    /// Whether an object is one of this lineage, whatever it is.
    pub fn holds(&self, key: &Key) -> bool {
        key.as_str().strip_prefix(&self.root).is_some_and(|rest| rest.starts_with('/'))
    }

    /// What an object below `wal/` or `history/` is; `None` for a stranger.
    pub fn parse(&self, key: &Key) -> Option<WalEntry> {
        let name = key.as_str().strip_prefix(&self.root)?.strip_prefix('/')?;
        let entry = match name.strip_prefix("history/") {
            Some(file) => parse_history(file)?,
            None => parse_entry(name.strip_prefix("wal/")?)?,
        };
        let expected = match entry {
            WalEntry::File(file) => self.file(file),
            WalEntry::Ended(segment, end, hash) => self.ended(segment, end, hash),
            WalEntry::Partial(segment, hash) => self.partial(segment, hash),
            WalEntry::Gap(segment) => self.gap(segment),
            WalEntry::RefusedHistory(timeline, hash) => self.refused_history(timeline, hash),
            WalEntry::SettledHistory(timeline, hash) => self.settled_history(timeline, hash),
            WalEntry::AbandonedTimeline(until) => self.abandoned_timeline(until),
            WalEntry::Slice(segment, start, end, session) => self.slice(segment, start, end, session),
            WalEntry::Part(_) => return Some(entry),
        };
        (expected == *key).then_some(entry)
    }

    fn directory(&self, segment: SegmentName) -> String {
        format!("{}/wal/{}/{:08X}", self.root, segment.timeline.hex(), segment.log)
    }
}

/// The directory of those that hold many restore points. It is no name in hex.
const BATCHES: &str = "batches";

/// `<TLI>-<lsn>`
fn parse_point_file(file: &str) -> Option<(TimelineId, Lsn)> {
    let (timeline, lsn) = file.split_once('-')?;
    let timeline = TimelineId::new(u32::from_str_radix(timeline, 16).ok()?)?;
    Some((timeline, Lsn(u64::from_str_radix(lsn, 16).ok()?)))
}

/// The directory of a restore point's name. An empty name, which no recovery target can ask for, has one of its own.
fn point_directory(name: &str) -> String {
    if name.is_empty() { "-".to_owned() } else { hex(name) }
}

/// `<TLI>.history`, `<TLI>.history.refused/<hash>`, `<TLI>.history.settled/<hash>` or `<TLI>.history.abandoned/<segment>[.<TLI>-<LSN>]`
fn parse_history(name: &str) -> Option<WalEntry> {
    let Some((file, rest)) = name.split_once('/') else { return Some(WalEntry::File(name.parse().ok()?)) };
    let (name, kind) = file.rsplit_once('.')?;
    let WalFileName::History(timeline) = name.parse().ok()? else { return None };
    if kind == "abandoned" {
        let (until, fork) = match rest.split_once('.') {
            None => (rest, None),
            Some((until, fork)) => (until, Some(parse_point_file(fork)?)),
        };
        return until.parse().ok().map(|until| WalEntry::AbandonedTimeline(AbandonedUntil { until, fork }));
    }
    let hash = rest.parse::<ContentHash>().ok()?;
    match kind {
        "refused" => Some(WalEntry::RefusedHistory(timeline, hash)),
        "settled" => Some(WalEntry::SettledHistory(timeline, hash)),
        _ => None,
    }
}

/// `<TLI>/<LOG>/…`
fn parse_entry(name: &str) -> Option<WalEntry> {
    let mut parts = name.splitn(4, '/').skip(2);
    let (file, rest) = (parts.next()?, parts.next());
    let Some(rest) = rest else {
        if let Some(segment) = file.strip_suffix(".gap") {
            return segment.parse().ok().map(WalEntry::Gap);
        }
        // The name of a `.partial` is that of a directory.
        let file = file.parse().ok().filter(|file| !matches!(file, WalFileName::Partial(_)));
        return file.map(WalEntry::File);
    };
    let (segment, kind) = file.split_once('.')?;
    let segment: SegmentName = segment.parse().ok()?;
    let lsn =
        |digits: &str| (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok()).flatten().map(Lsn);
    match kind {
        "ended" => {
            let (end, hash) = rest.split_once('-')?;
            Some(WalEntry::Ended(segment, lsn(end)?, NameHash::parse(hash)?))
        }
        "partial" => NameHash::parse(rest).map(|hash| WalEntry::Partial(segment, hash)),
        "parts" => Some(WalEntry::Part(segment)),
        "slices" => {
            let mut parts = rest.split('-');
            let (start, end) = (lsn(parts.next()?)?, lsn(parts.next()?)?);
            let session = u32::from_str_radix(parts.next()?, 16).ok()?;
            Some(WalEntry::Slice(segment, start, end, session))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::ClusterPaths;
    use super::*;

    fn paths() -> WalPaths {
        ClusterPaths::new(&"main".parse().unwrap()).wal("7-1".parse().unwrap())
    }

    #[test]
    fn keys_and_back() {
        let paths = paths();
        let segment: SegmentName = "00000002000000010000000A".parse().unwrap();
        assert_eq!(
            paths.segment(segment).as_str(),
            "clusters/main/7-1/wal/00000002/00000001/00000002000000010000000A"
        );
        let timeline = TimelineId::new(2).unwrap();
        for entry in [
            WalEntry::File(WalFileName::Segment(segment)),
            WalEntry::File(WalFileName::Backup(segment, 0x28)),
            WalEntry::File(WalFileName::History(timeline)),
        ] {
            let WalEntry::File(file) = entry else { continue };
            assert_eq!(paths.parse(&paths.file(file)), Some(entry));
        }
        let hash = NameHash([0xA0; 16]);
        let ended = paths.ended(segment, Lsn(0x10A001234), hash);
        assert!(
            ended.as_str().ends_with(".ended/000000010A001234-a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0"),
            "{ended}"
        );
        assert_eq!(paths.parse(&ended), Some(WalEntry::Ended(segment, Lsn(0x10A001234), hash)));
        let partial = paths.partial(segment, hash);
        assert_eq!(paths.parse(&partial), Some(WalEntry::Partial(segment, hash)));
        assert_eq!(paths.parse(&paths.gap(segment)), Some(WalEntry::Gap(segment)));
        let slice = paths.slice(segment, Lsn(1), Lsn(2), 3);
        assert_eq!(paths.parse(&slice), Some(WalEntry::Slice(segment, Lsn(1), Lsn(2), 3)));
        let longer = format!("{slice}-00").parse().unwrap();
        assert_eq!(paths.parse(&longer), None, "a name that no slice has");
        let refused = paths.refused_history(timeline, ContentHash([0x1F; 32]));
        assert!(refused.as_str().contains("/history/00000002.history.refused/1f1f"), "{refused}");
        assert_eq!(paths.parse(&refused), Some(WalEntry::RefusedHistory(timeline, ContentHash([0x1F; 32]))));
        let settled = paths.settled_history(timeline, ContentHash([0x1F; 32]));
        assert_eq!(paths.parse(&settled), Some(WalEntry::SettledHistory(timeline, ContentHash([0x1F; 32]))));
        let fork = Some((TimelineId::FIRST, Lsn(0x10A001234)));
        for (fork, end) in [(fork, "0A.00000001-000000010A001234"), (None, "00000002000000010000000A")] {
            let name = AbandonedUntil { until: segment, fork };
            let abandoned = paths.abandoned_timeline(name);
            assert!(
                abandoned.as_str().contains("/history/00000002.history.abandoned/00000002"),
                "{abandoned}"
            );
            assert!(abandoned.as_str().ends_with(end), "{abandoned}");
            assert_eq!(paths.parse(&abandoned), Some(WalEntry::AbandonedTimeline(name)));
        }
        let part = paths.part(WalFileName::Segment(segment), "00ff", 3);
        assert_eq!(paths.parse(&part), Some(WalEntry::Part(segment)));
        for stranger in [
            "clusters/main/7-1/wal/00000001/00000001/00000002000000010000000A",
            "clusters/main/7-1/wal/00000002/00000001/00000002000000010000000A.tmp",
            "clusters/main/7-2/wal/00000002/00000001/00000002000000010000000A",
            "clusters/main/7-1/history/00000002000000010000000A",
            "clusters/main/7-1/wal/00000002.history",
            "clusters/main/7-1/history/00000002.history.refused/1f",
            "clusters/main/7-1/history/00000003.history.abandoned/00000002000000010000000A",
            "clusters/main/7-1/history/00000002000000010000000A.refused/1f",
        ] {
            assert_eq!(paths.parse(&stranger.parse().unwrap()), None, "{stranger}");
        }
    }

    #[test]
    fn listings_start_where_they_should() {
        let paths = paths();
        let timeline = TimelineId::new(1).unwrap();
        for number in [0u32, 1, 9, 10, 11, 15, 16, 0x9F, 0xA0, 0xFF] {
            let name = |n| SegmentName { timeline, log: 3, segment: n };
            let this = name(number);
            let next = paths.segment(name(number + 1));
            let goes_with = [
                paths.segment(this),
                paths.ended(this, Lsn(u64::MAX), NameHash([0xFF; 16])),
                paths.file(WalFileName::Backup(this, u32::MAX)),
                paths.partial(this, NameHash([0xFF; 16])),
                paths.slice(this, Lsn(0), Lsn(1), 1),
            ];
            let (from, after) = (paths.from(this), paths.after(this));
            for key in &goes_with {
                assert!(
                    from.as_str() < key.as_str() && key.as_str() < after.as_str(),
                    "{from} {key} {after}"
                );
            }
            assert!(after.as_str() < next.as_str());
            assert!(from.parse::<Key>().is_ok() && after.parse::<Key>().is_ok());
            if let Some(before) = number.checked_sub(1) {
                assert!(paths.after(name(before)) < from, "{from}");
                assert!(paths.slice(name(before), Lsn(9), Lsn(9), 9).as_str() < from.as_str());
            }
        }
    }

    #[test]
    fn restore_points() {
        let paths = paths();
        let timeline = TimelineId::new(0x1F).unwrap();
        for name in ["before upgrade", "ä"] {
            let key = paths.point(name, timeline, Lsn(0x3000060));
            assert_eq!(paths.parse_point(&key), Some((name.to_owned(), timeline, Lsn(0x3000060))));
            assert!(key.below(&paths.points_named(name)).is_some());
            assert_eq!(paths.parse_point_batch(&key), None);
        }
    }
}
