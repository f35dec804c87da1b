//! What was received of the open segment, cut into slices. No IO.
//!
//! Always holds: every byte from the segment's start to `position` was hashed, in order, once for each repository (contents are
//! hashed with the repository's key). The pieces that wait follow each other without a gap and end at `position`, unless what comes is
//! skipped: then none waits, and the rest of the segment is hashed only.

use std::collections::VecDeque;
use std::io::Write;

use bytes::{Bytes, BytesMut};
use walpoint_base::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};
use walpoint_repo::wal::BeginningHasher;
use walpoint_repo::wal::slices::MAX_SLICE;
use walpoint_storage::object::ContentHash;

/// A range of the segment that is to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) segment: SegmentName,
    pub(super) start: Lsn,
    /// What comes before it in the segment, for each repository.
    pub(super) before: Vec<ContentHash>,
    pub(super) content: Bytes,
}

impl Slice {
    pub(super) fn end(&self) -> Lsn {
        self.start + self.content.len() as u64
    }
}

/// What is stored of the segment by others, slices of an earlier session or the whole one: up to here, and what it holds, for each repository;
/// `None`: that one does not have so much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredBefore {
    pub(super) end: Lsn,
    pub(super) hashes: Vec<Option<ContentHash>>,
    /// Of a whole segment that ends with a switch: what lies behind that is no WAL, and may differ.
    pub(super) switched: Option<SwitchedBefore>,
}

/// What is stored of a segment up to the end of the switch that ends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SwitchedBefore {
    /// Bytes of the segment up to there.
    pub(super) length: u64,
    /// The hash of them without a key ([`BeginningHasher`]) for each repository; `None`: that one has no such segment.
    pub(super) records: Vec<Option<ContentHash>>,
}

/// It holds other bytes than the server sends.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "split brain: segment {segment} is stored up to {end}, and this server has other WAL there: another server wrote it, \
     this data directory was reset to an earlier state, or its file of that segment is damaged\nHINT: If \"archive-agent push\" calls \
     pg_wal/{segment} damaged, keep the slices: they may be the only undamaged copy. If this server is a copy, give it a lineage of \
     its own (archive-agent init --new-lineage). If it is the right one and its file is not damaged, move what lies below \
     {segment}.slices in each repository to another place."
)]
pub(super) struct OtherServers {
    segment: SegmentName,
    end: Lsn,
}

#[derive(Debug)]
struct Piece {
    start: Lsn,
    before: Vec<ContentHash>,
    content: BytesMut,
}

/// The segment that is being received.
#[derive(Debug)]
pub(super) struct OpenSegment {
    pub(super) name: SegmentName,
    pub(super) end: Lsn,
    pub(super) position: Lsn,
    hashers: Vec<blake3::Hasher>,
    before: Option<StoredBefore>,
    /// Takes what `before` is compared with up to its switch.
    records: Option<Box<BeginningHasher>>,
    /// The stored hash, for each repository whose segment has the same records as the server's, and differs behind them.
    stored: Vec<Option<ContentHash>>,
    pieces: VecDeque<Piece>,
    skips: bool,
}

impl OpenSegment {
    /// The segment that begins at a position. `empty`: a hasher for each repository.
    pub(super) fn at(
        start: Lsn,
        timeline: TimelineId,
        size: SegmentSize,
        empty: Vec<blake3::Hasher>,
        before: Option<StoredBefore>,
    ) -> Self {
        let number = SegmentNo::of(start, size);
        let before = before.filter(|before| before.end > start);
        let switched = before.as_ref().and_then(|before| before.switched.as_ref());
        Self {
            name: number.name(timeline, size),
            end: number.end(size),
            position: number.start(size),
            records: switched.map(|switched| Box::new(BeginningHasher::of(switched.length))),
            stored: vec![None; empty.len()],
            hashers: empty,
            before,
            pieces: VecDeque::new(),
            skips: false,
        }
    }

    /// Takes what belongs to this segment of the next bytes; the rest. Whether the slices of an earlier session turned out to be this
    /// server's: then all up to their end is durable. Of a whole segment, that is for [`Self::is_complete`] to say.
    pub(super) fn add<'a>(&mut self, bytes: &'a [u8]) -> Result<(&'a [u8], Option<Lsn>), OtherServers> {
        let room = usize::try_from(self.end.since(self.position)).unwrap_or(usize::MAX);
        let (mut ours, rest) = bytes.split_at(room.min(bytes.len()));
        let mut durable = None;
        if let Some(before) = &self.before {
            let upto = usize::try_from(before.end.since(self.position)).unwrap_or(usize::MAX);
            let (stored, new) = ours.split_at(upto.min(ours.len()));
            for hasher in &mut self.hashers {
                hasher.update(stored);
            }
            if let Some(records) = &mut self.records {
                // It takes everything.
                records.write_all(stored).ok();
            }
            self.position = self.position + stored.len() as u64;
            ours = new;
            if self.position == before.end {
                self.stored =
                    self.compared(before).ok_or(OtherServers { segment: self.name, end: before.end })?;
                durable = self.before.take().map(|before| before.end).filter(|end| *end < self.end);
            }
        }
        while !ours.is_empty() {
            let full = self.pieces.back().is_none_or(|piece| piece.content.len() >= MAX_SLICE);
            if full && !self.skips {
                let (start, before) = (self.position, self.hashes());
                self.pieces.push_back(Piece { start, before, content: BytesMut::new() });
            }
            let held = self.pieces.back().map_or(0, |piece| piece.content.len());
            let (now, later) = ours.split_at(ours.len().min(MAX_SLICE.saturating_sub(held).max(1)));
            if let Some(piece) = self.pieces.back_mut() {
                piece.content.extend_from_slice(now);
            }
            for hasher in &mut self.hashers {
                hasher.update(now);
            }
            (self.position, ours) = (self.position + now.len() as u64, later);
        }
        Ok((rest, durable))
    }

    /// For each repository whose content differs from the server's, but for the records: its hash. `None` if one holds other records.
    fn compared(&self, before: &StoredBefore) -> Option<Vec<Option<ContentHash>>> {
        let own = self.records.as_ref().and_then(|records| records.hash());
        let records = |n: usize| *before.switched.as_ref()?.records.get(n)?;
        let one = |(n, (stored, hash)): (usize, (&Option<ContentHash>, ContentHash))| match stored {
            Some(stored) if *stored != hash => (own.is_some() && records(n) == own).then_some(Some(*stored)),
            _ => Some(None),
        };
        before.hashes.iter().zip(self.hashes()).enumerate().map(one).collect()
    }

    /// Up to where others have stored it, as long as the server has not sent so much.
    pub(super) fn awaits(&self) -> Option<Lsn> {
        self.before.as_ref().map(|before| before.end)
    }

    /// What waits to be stored, in bytes.
    pub(super) fn waiting(&self) -> usize {
        self.pieces.iter().map(|piece| piece.content.len()).sum()
    }

    /// Whether a slice waits that cannot grow.
    pub(super) fn has_full(&self) -> bool {
        self.pieces.front().is_some_and(|piece| piece.content.len() >= MAX_SLICE)
    }

    /// The first slice that waits.
    pub(super) fn take(&mut self) -> Option<Slice> {
        let Piece { start, before, content } = self.pieces.pop_front()?;
        Some(Slice { segment: self.name, start, before, content: content.freeze() })
    }

    /// Drops what waits, and what comes: the segment is complete on the server, and stored as a whole at its end.
    pub(super) fn skip(&mut self) {
        self.skips = true;
        self.pieces.clear();
    }

    /// The hash of all that was received, for each repository; of the stored segment where that has the same records.
    pub(super) fn hashes(&self) -> Vec<ContentHash> {
        let own = self.hashers.iter().map(|hasher| ContentHash(*hasher.finalize().as_bytes()));
        own.zip(&self.stored).map(|(own, stored)| stored.unwrap_or(own)).collect()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.position == self.end
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 1 << 20;
    const START: Lsn = Lsn(3 * SIZE);

    fn content() -> Vec<u8> {
        (0..SIZE + 100).map(|n| ((n * 31) >> 3).to_le_bytes()[0]).collect()
    }

    fn hash(bytes: &[u8]) -> ContentHash {
        ContentHash(*blake3::hash(bytes).as_bytes())
    }

    fn segment(before: Option<StoredBefore>) -> OpenSegment {
        let size = SegmentSize::new(SIZE).unwrap();
        OpenSegment::at(START, TimelineId::FIRST, size, vec![blake3::Hasher::new()], before)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        /// However the bytes come and whenever slices are taken: together they are the segment, and each knows what comes before it.
        #[test]
        fn slices_are_the_segment(pieces in prop::collection::vec((1..200_000_usize, any::<bool>()), 1..20)) {
            let (content, mut segment) = (content(), segment(None));
            let (mut given, mut slices) = (0, Vec::new());
            for (length, taken) in pieces {
                let next = &content[given..(given + length).min(content.len())];
                let (rest, durable) = segment.add(next).unwrap();
                given += next.len() - rest.len();
                prop_assert!(durable.is_none() && (rest.is_empty() || segment.is_complete()));
                prop_assert_eq!(segment.position, START + given as u64);
                if taken { slices.extend(segment.take()); }
            }
            slices.extend(std::iter::from_fn(|| segment.take()));
            prop_assert_eq!(segment.hashes(), [hash(&content[..given])]);
            let mut upto = 0;
            for slice in slices {
                prop_assert_eq!(slice.start, START + upto as u64);
                prop_assert_eq!(&slice.before[..], &[hash(&content[..upto])]);
                prop_assert_eq!(&slice.content[..], &content[upto..upto + slice.content.len()]);
                upto += slice.content.len();
            }
            prop_assert_eq!(upto, given);
        }
    }

    #[test]
    fn what_an_earlier_session_stored_is_not_stored_again_if_it_is_the_same() {
        let content = content();
        let before =
            |hash| Some(StoredBefore { end: START + 1000, hashes: vec![Some(hash)], switched: None });
        let mut ours = segment(before(hash(&content[..1000])));
        assert_eq!(ours.add(&content[..999]).unwrap(), (&[][..], None));
        assert_eq!((ours.waiting(), ours.position), (0, START + 999));
        assert_eq!(ours.add(&content[999..1500]).unwrap(), (&[][..], Some(START + 1000)));
        let slice = ours.take().unwrap();
        assert_eq!(
            (slice.start, slice.end(), &slice.before[..]),
            (START + 1000, START + 1500, &[hash(&content[..1000])][..])
        );
        assert!(segment(before(hash(b"other"))).add(&content[..1500]).is_err());
    }

    /// Where one repository has the whole segment, nothing of it is confirmed before the others have it, too.
    #[test]
    fn nothing_is_stored_of_a_segment_that_others_have_whole() {
        let content = content();
        let whole = |bytes: &[u8]| {
            Some(StoredBefore { end: START + SIZE, hashes: vec![Some(hash(bytes))], switched: None })
        };
        let mut ours = segment(whole(&content[..1 << 20]));
        assert_eq!(ours.add(&content[..1500]).unwrap(), (&[][..], None));
        assert_eq!((ours.waiting(), ours.awaits()), (0, Some(START + SIZE)));
        let (rest, durable) = ours.add(&content[1500..]).unwrap();
        assert_eq!((rest.len(), durable, ours.is_complete(), ours.awaits()), (100, None, true, None));
        assert!(segment(whole(b"other")).add(&content).is_err());
        let mut unknown =
            segment(Some(StoredBefore { end: START + SIZE, hashes: vec![None], switched: None }));
        assert!(unknown.add(&content).is_ok() && unknown.is_complete());
    }

    #[test]
    fn a_segment_that_is_skipped_is_hashed_to_its_end() {
        let (content, mut segment) = (content(), segment(None));
        segment.add(&content[..500]).unwrap();
        segment.skip();
        let (rest, _) = segment.add(&content[500..]).unwrap();
        assert_eq!((segment.waiting(), segment.take().is_none(), rest.len()), (0, true, 100));
        assert_eq!((segment.hashes(), segment.is_complete()), (vec![hash(&content[..1 << 20])], true));
    }

    #[test]
    fn what_differs_behind_the_switch_of_a_whole_segment_only_is_the_stored_one() {
        let sent = content();
        let mut stored = sent[..sent.len() - 100].to_vec();
        stored[900_000] ^= 1;
        let before = |length: u32| {
            let records = vec![Some(hash(&stored[..usize::try_from(length).unwrap()]))];
            let switched = Some(SwitchedBefore { length: length.into(), records });
            Some(StoredBefore { end: START + SIZE, hashes: vec![Some(hash(&stored))], switched })
        };
        let mut open = segment(before(800_000));
        for piece in sent[..stored.len()].chunks(70_001) {
            open.add(piece).unwrap();
        }
        assert!(open.is_complete());
        assert_eq!(open.hashes(), [hash(&stored)], "what is stored");
        assert!(segment(before(900_001)).add(&sent).is_err(), "the records differ");
    }
}
