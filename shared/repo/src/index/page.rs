//! The two kinds of index objects as bytes. `FORMAT.md`, chapter "WAL index".
//!
//! The numbers in the body repeat those in the key, so that a group cannot stand in for another one even where nothing is
//! encrypted.

use bytes::Bytes;
use walpoint_base::{SegmentNo, SegmentSize, TimelineId};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::Key;
use walpoint_storage::object::bytes::Fields;
use walpoint_storage::object::{ObjectKind, ObjectReader, ObjectWriter, SealedObject, Sealer};

use super::entry::{ENTRY, GroupSummary, SUMMARY, SegmentEntry};
use super::{DIRECTORY_LEVEL, FANOUT, GROUP_LEVEL, PLACES, first_of, group_of};

/// Bytes before the first entry.
const HEAD: usize = 24;

/// 1,024 consecutive segments of a timeline.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// The timeline.
    pub timeline: TimelineId,
    /// Its number: segments `1024 × n` to `1024 × n + 1023`.
    pub n: u64,
    /// Counted from 1.
    pub generation: u32,
    entries: Vec<Option<SegmentEntry>>,
}

impl Group {
    /// A group of which nothing is known.
    pub fn empty(timeline: TimelineId, n: u64) -> Self {
        Self { timeline, n, generation: 0, entries: vec![None; PLACES] }
    }

    /// What is known of a segment of this group.
    pub fn get(&self, number: SegmentNo) -> Option<&SegmentEntry> {
        self.entries.get(self.place(number)?)?.as_ref()
    }

    /// Sets or clears what is known of a segment; `false` if it was so already or the segment is not of this group.
    pub fn set(&mut self, number: SegmentNo, entry: Option<SegmentEntry>) -> bool {
        let place = self.place(number).and_then(|at| self.entries.get_mut(at));
        place.is_some_and(|place| {
            let differs = *place != entry;
            *place = entry;
            differs
        })
    }

    /// The segments that are there, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (SegmentNo, &SegmentEntry)> {
        let first = first_of(self.n).0;
        let number = move |place: usize| SegmentNo(first.saturating_add(place as u64));
        self.entries.iter().enumerate().filter_map(move |(at, e)| Some((number(at), e.as_ref()?)))
    }

    /// What the directory keeps of it; `None` if nothing is there.
    pub fn summary(&self) -> Option<GroupSummary> {
        GroupSummary::of(self.generation, self.iter())
    }

    fn place(&self, number: SegmentNo) -> Option<usize> {
        (group_of(number) == self.n).then(|| usize::try_from(number.0 % FANOUT).ok()).flatten()
    }

    /// The object to be created under `key`.
    pub(crate) fn seal(&self, sealer: &Sealer, key: &Key) -> Result<SealedObject> {
        let mut body = head(self.timeline, GROUP_LEVEL, self.n, self.generation);
        body.reserve(self.entries.len() * ENTRY);
        self.entries.iter().for_each(|e| SegmentEntry::encode(e.as_ref(), &mut body));
        seal(sealer, key, &body)
    }

    /// Reads an object. Any bytes give a group or an error.
    pub(super) fn open(
        sealer: &Sealer,
        key: &Key,
        bytes: Bytes,
        at: (TimelineId, u64, u32),
        size: SegmentSize,
    ) -> Result<Self> {
        let (timeline, n, generation) = at;
        let body = open(sealer, key, bytes, PLACES * ENTRY)?;
        let parse = || {
            let mut f = Fields::new(&body);
            check_head(&mut f, timeline, GROUP_LEVEL, n, generation)?;
            let numbers = (0..FANOUT).map(|i| SegmentNo(first_of(n).0.saturating_add(i)));
            numbers.map(|number| SegmentEntry::decode(&mut f, number, size)).collect::<Option<Vec<_>>>()
        };
        let entries = parse().ok_or_else(|| senseless(key))?;
        Ok(Self { timeline, n, generation, entries })
    }
}

/// 1,024 consecutive groups of a timeline.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Directory {
    /// The timeline.
    pub timeline: TimelineId,
    /// Its number: groups `1024 × n` to `1024 × n + 1023`.
    pub n: u64,
    /// Counted from 1.
    pub generation: u32,
    groups: Vec<Option<GroupSummary>>,
}

impl Directory {
    /// A directory of which nothing is known.
    pub fn empty(timeline: TimelineId, n: u64) -> Self {
        Self { timeline, n, generation: 0, groups: vec![None; PLACES] }
    }

    /// Sets or clears a group; `false` if it was so already or is not of this directory.
    pub fn set(&mut self, group: u64, summary: Option<GroupSummary>) -> bool {
        let place = (group / FANOUT == self.n).then(|| usize::try_from(group % FANOUT).ok()).flatten();
        place.and_then(|at| self.groups.get_mut(at)).is_some_and(|place| {
            let differs = *place != summary;
            *place = summary;
            differs
        })
    }

    /// The groups that have segments, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &GroupSummary)> {
        let first = self.n.saturating_mul(FANOUT);
        (first..).zip(&self.groups).filter_map(|(n, s)| Some((n, s.as_ref()?)))
    }

    /// The object to be created under `key`.
    pub(crate) fn seal(&self, sealer: &Sealer, key: &Key) -> Result<SealedObject> {
        let mut body = head(self.timeline, DIRECTORY_LEVEL, self.n, self.generation);
        body.reserve(self.groups.len() * SUMMARY);
        self.groups.iter().for_each(|s| GroupSummary::encode(s.as_ref(), &mut body));
        seal(sealer, key, &body)
    }

    /// Reads an object. Any bytes give a directory or an error.
    pub(super) fn open(sealer: &Sealer, key: &Key, bytes: Bytes, at: (TimelineId, u64, u32)) -> Result<Self> {
        let (timeline, n, generation) = at;
        let body = open(sealer, key, bytes, PLACES * SUMMARY)?;
        let parse = || {
            let mut f = Fields::new(&body);
            check_head(&mut f, timeline, DIRECTORY_LEVEL, n, generation)?;
            let numbers = (0..FANOUT).map(|i| n.saturating_mul(FANOUT).saturating_add(i));
            numbers.map(|group| GroupSummary::decode(&mut f, group)).collect::<Option<Vec<_>>>()
        };
        let groups = parse().ok_or_else(|| senseless(key))?;
        Ok(Self { timeline, n, generation, groups })
    }
}

/// 24 bytes: timeline, level, number, generation, nothing.
fn head(timeline: TimelineId, level: u8, n: u64, generation: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD);
    bytes.extend_from_slice(&timeline.get().to_le_bytes());
    bytes.extend_from_slice(&u32::from(level).to_le_bytes());
    bytes.extend_from_slice(&n.to_le_bytes());
    bytes.extend_from_slice(&generation.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes
}

fn check_head(f: &mut Fields<'_>, timeline: TimelineId, level: u8, n: u64, generation: u32) -> Option<()> {
    let right = f.u32()? == timeline.get()
        && f.u32()? == u32::from(level)
        && f.u64()? == n
        && f.u32()? == generation
        && f.u32()? == 0;
    right.then_some(())
}

fn seal(sealer: &Sealer, key: &Key, body: &[u8]) -> Result<SealedObject> {
    let sealed = ObjectWriter::new(sealer, ObjectKind::Index, key).and_then(|mut writer| {
        writer.frame(body)?;
        writer.finish()
    });
    sealed.map_err(|e| RepoError::Internal(format!("{key} could not be sealed: {e}")))
}

/// The body, exactly as long as `entries` bytes of entries make it.
fn open(sealer: &Sealer, key: &Key, bytes: Bytes, entries: usize) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    ObjectReader::open(sealer, &[ObjectKind::Index], key, bytes)
        .and_then(|reader| reader.read_all(HEAD + entries, &mut body))
        .map_err(|error| RepoError::corrupt(key, error))?;
    if body.len() == HEAD + entries { Ok(body) } else { Err(senseless(key)) }
}

fn senseless(key: &Key) -> RepoError {
    RepoError::corrupt(key, "it is not the index that its name says\nHINT: Delete it: it is written again.")
}
