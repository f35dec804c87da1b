//! Which slices of the open segment are put together into one, so that a segment that takes hours has few. No IO.
//!
//! Always holds: the parts follow each other without a gap from the start of `content` to its end, and each is stored, or was put
//! together from parts that are. `content` is no longer than a slice may be.
//!
//! So many small slices in a row become one, and so many of those become one again: of a slice every second, a segment has no more than
//! twice [`MANY`] and one for each 8 MiB or 4,096 s. Each byte is stored three times at the most, and a request in ten is one for this: what
//! was put together is stored, and read back before its parts are deleted.
//! Where slices are larger than a [`FEW`]th of what one may hold, they stay: there are few of them for their bytes.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use walpoint_base::{Lsn, SegmentName};
use walpoint_repo::wal::slices::MAX_SLICE;
use walpoint_storage::object::ContentHash;

use super::segment::Slice;

/// So many slices become one.
const MANY: usize = 64;

/// For fewer than this it is not worth a request.
const FEW: usize = 24;

#[derive(Debug)]
struct Part {
    start: Lsn,
    /// What comes before it in the segment, for each repository.
    before: Vec<ContentHash>,
    /// Whether it was put together from others.
    is_merged: bool,
}

/// The slices of one session behind the last one that stays as it is.
#[derive(Debug, Default)]
pub(super) struct Merging {
    /// Slices that are being stored.
    under_way: VecDeque<Slice>,
    segment: Option<SegmentName>,
    content: BytesMut,
    /// Those that were put together come first.
    parts: Vec<Part>,
    is_stopped: bool,
}

impl Merging {
    /// Notes a slice that is about to be stored. Where too much waits to be noted as stored, all of it stays as it is.
    pub(super) fn begins(&mut self, slice: &Slice) {
        if self.is_stopped {
            return;
        }
        let waiting: usize = self.under_way.iter().map(|slice| slice.content.len()).sum();
        if waiting + slice.content.len() > MAX_SLICE {
            self.clear();
        }
        self.under_way.push_back(slice.clone());
    }

    /// Takes what is stored by now; a slice that is worth storing in place of those that it holds.
    pub(super) fn is_stored(&mut self, upto: Lsn) -> Option<Slice> {
        let mut merged = None;
        while merged.is_none()
            && let Some(slice) = self.under_way.pop_front_if(|slice| slice.end() <= upto)
        {
            merged = self.add(slice);
        }
        merged
    }

    /// The segment is complete.
    pub(super) fn clear(&mut self) {
        *self = Self { is_stopped: self.is_stopped, ..Self::default() };
    }

    /// Puts no more together: the store keeps what is deleted, or does not return what was stored.
    pub(super) fn stop(&mut self) {
        self.clear();
        self.is_stopped = true;
    }

    fn add(&mut self, slice: Slice) -> Option<Slice> {
        let end = self.parts.first().map(|part| part.start + self.content.len() as u64);
        let follows = self.segment == Some(slice.segment) && end == Some(slice.start);
        let is_large = slice.content.len() > MAX_SLICE / FEW;
        let mut full = None;
        if is_large || !follows || self.content.len() + slice.content.len() > MAX_SLICE {
            full = self.merge(0).filter(|_| self.parts.len() >= FEW);
            self.start_over();
        }
        if is_large {
            return full;
        }
        self.segment = Some(slice.segment);
        self.content.extend_from_slice(&slice.content);
        self.parts.push(Part { start: slice.start, before: slice.before, is_merged: false });
        full.or_else(|| self.many())
    }

    /// Puts those at the end together that were not yet, if they are many: all, if those that were are many as well.
    fn many(&mut self) -> Option<Slice> {
        let first = self.parts.iter().take_while(|part| part.is_merged).count();
        if self.parts.len() - first < MANY {
            return None;
        }
        if first + 1 >= MANY {
            let merged = self.merge(0);
            self.start_over();
            return merged;
        }
        let merged = self.merge(first)?;
        self.parts.truncate(first);
        self.parts.push(Part { start: merged.start, before: merged.before.clone(), is_merged: true });
        Some(merged)
    }

    fn start_over(&mut self) {
        self.parts.clear();
        self.content = BytesMut::new();
    }

    /// All from a part on as one slice.
    fn merge(&self, first: usize) -> Option<Slice> {
        let (from, all) = (self.parts.get(first)?, self.parts.first()?);
        let offset = usize::try_from(from.start.since(all.start)).ok()?;
        let content = Bytes::copy_from_slice(self.content.get(offset..)?);
        Some(Slice { segment: self.segment?, start: from.start, before: from.before.clone(), content })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use walpoint_base::SegmentSize;

    use super::*;

    const START: u64 = 0x5000_0000;

    fn hash(bytes: &[u8]) -> ContentHash {
        ContentHash(*blake3::hash(bytes).as_bytes())
    }

    /// Stores slices of this length one after the other, each as soon as the one before it is stored; the slices that are there in the
    /// end, and how many were put together.
    fn store(length: usize, count: usize) -> (BTreeMap<Lsn, Lsn>, usize) {
        let segment = name();
        let (mut merging, mut there, mut merges) = (Merging::default(), BTreeMap::new(), 0);
        let content: Vec<u8> = (0..length * count).map(|n| (n / 3).to_le_bytes()[0]).collect();
        for n in 0..count {
            let (from, to) = (n * length, (n + 1) * length);
            let start = Lsn(START + from as u64);
            let before = vec![hash(from.to_le_bytes().as_slice())];
            let slice = Slice { segment, start, before, content: Bytes::copy_from_slice(&content[from..to]) };
            merging.begins(&slice);
            there.insert(slice.start, slice.end());
            assert!(merging.is_stored(Lsn(slice.end().0 - 1)).is_none(), "it is not stored yet");
            if let Some(merged) = merging.is_stored(slice.end()) {
                let offset = usize::try_from(merged.start.0 - START).unwrap();
                assert_eq!(merged.before, [hash(offset.to_le_bytes().as_slice())]);
                assert!(merged.content.len() <= MAX_SLICE);
                assert!(merged.content == content[offset..offset + merged.content.len()]);
                there.retain(|start, end| *start < merged.start || *end > merged.end());
                there.insert(merged.start, merged.end());
                merges += 1;
            }
        }
        let mut upto = Lsn(START);
        for (start, end) in &there {
            assert_eq!(*start, upto, "without a gap");
            upto = *end;
        }
        assert_eq!(upto.0, START + content.len() as u64);
        (there, merges)
    }

    fn name() -> SegmentName {
        walpoint_base::SegmentNo(5).name(walpoint_base::TimelineId::FIRST, SegmentSize::DEFAULT)
    }

    #[test]
    fn a_segment_that_takes_hours_has_few_slices() {
        for (length, count, most) in [
            // Ten hours of a slice every second.
            (100, 36_000, 2 * MANY + 9),
            (8192, 2048, MANY + 16),
            // 64 MiB, with as many slices in 8 MiB as are just worth it.
            (MAX_SLICE / FEW, 8 * FEW, FEW + 8),
        ] {
            let (there, merges) = store(length, count);
            assert!(there.len() <= most, "{length}: {} slices", there.len());
            assert!(merges * 20 <= count, "{length}: {merges} of {count}");
        }
        let (there, merges) = store(1 << 20, 64);
        assert_eq!((there.len(), merges), (64, 0), "large ones stay");
    }

    #[test]
    fn slices_that_do_not_follow_each_other_are_not_put_together() {
        let mut merging = Merging::default();
        for n in 0..3 * MANY as u64 {
            // Another session had every other one.
            let start = Lsn(START + n * 20);
            let slice =
                Slice { segment: name(), start, before: vec![], content: Bytes::from_static(b"10 bytes..") };
            merging.begins(&slice);
            assert_eq!(merging.is_stored(slice.end()), None);
        }
    }
}
