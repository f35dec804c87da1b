//! A segment's beginning, put together from slices, of which only a window is in memory. No IO.
//!
//! Always holds: what is assembled is what every slice that was taken was made for, byte for byte and by hash; a slice that differs in
//! one bit from those before it takes nothing away from what comes before that bit. What lies before the start of the slice that was added
//! last is settled: slices come in order of where they start, so none can contradict it any more. The rest is the window, at most one slice
//! long. A slice that was put in the place of others while they were read begins where one of these did, before what is settled: it is
//! taken if it holds that as well, by hash.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use walpoint_base::Lsn;
use walpoint_storage::object::ContentHash;

use super::SliceHeader;

/// What became of a slice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Added {
    /// It begins where the others end, or before that, and ends behind them.
    Continued,
    /// It holds nothing new.
    Known,
    /// It begins behind the end of the others.
    Gap,
    /// It is another server's: it was made for other bytes than these, or holds others. What lies behind the first byte that differs is not
    /// believed, or behind its start where that is not known.
    Contradicts,
    /// It begins before what is settled, and is not known to hold the same. Slices in their order, from the first one on, show that.
    TooEarly,
}

/// Starts of slices that are remembered: those of more slices than are put together at once.
const MARKS: usize = 256;

/// Slices of one segment, added in order of where they start.
#[derive(Debug)]
pub struct SliceAssembly {
    start: Lsn,
    /// Of the bytes that are settled, and how many that are.
    hasher: Box<blake3::Hasher>,
    settled: u64,
    /// What follows them.
    window: BytesMut,
    /// How many bytes were settled where the last slices start, and the hasher of these.
    marks: VecDeque<(u64, Box<blake3::Hasher>)>,
}

impl SliceAssembly {
    /// Of the segment that starts there, with the repository's hasher for contents.
    pub fn new(start: Lsn, hasher: Box<blake3::Hasher>) -> Self {
        Self { start, hasher, settled: 0, window: BytesMut::new(), marks: VecDeque::new() }
    }

    /// The position behind the last byte.
    pub fn end(&self) -> Lsn {
        self.settled() + self.window.len() as u64
    }

    /// The position behind the last byte that is settled.
    pub fn settled(&self) -> Lsn {
        self.start + self.settled
    }

    /// Adds a slice with its content; the bytes that this settles.
    pub fn add(&mut self, header: &SliceHeader, content: &[u8]) -> (Added, Bytes) {
        let start = header.facts.start;
        if start < self.settled() {
            let rest = self.repeated(start, header.facts.before, content);
            let same = rest.is_some_and(|rest| self.window.iter().zip(rest).all(|(one, other)| one == other));
            return match rest.filter(|_| same) {
                None => (Added::TooEarly, Bytes::new()),
                Some(rest) => (self.extend(rest), Bytes::new()),
            };
        }
        let behind = usize::try_from(start.since(self.settled())).unwrap_or(usize::MAX);
        if behind > self.window.len() {
            return (Added::Gap, Bytes::new());
        }
        let settled = self.settle(behind);
        let overlap = self.window.len().min(content.len());
        let same = self.window.iter().zip(content).take_while(|(one, other)| one == other).count();
        let continues = self.hash() == header.facts.before;
        if !continues || same < overlap {
            self.window.truncate(if continues { same } else { 0 });
            return (Added::Contradicts, settled);
        }
        if self.marks.back().is_none_or(|(at, _)| *at < self.settled) {
            self.marks.push_back((self.settled, self.hasher.clone()));
            if self.marks.len() > MARKS {
                self.marks.pop_front();
            }
        }
        (self.extend(content), settled)
    }

    /// What a slice that begins before what is settled holds behind that, if it holds the same before it.
    fn repeated<'a>(&self, start: Lsn, before: ContentHash, content: &'a [u8]) -> Option<&'a [u8]> {
        let at = start.0.checked_sub(self.start.0)?;
        let (_, hasher) = self.marks.iter().rev().find(|(mark, _)| *mark == at)?;
        let known = usize::try_from(self.settled - at).ok()?;
        let (same, rest) = content.split_at_checked(known)?;
        let hash = |hasher: &blake3::Hasher| ContentHash(*hasher.finalize().as_bytes());
        let is_same = hash(hasher) == before && hash(hasher.clone().update(same)) == self.hash();
        is_same.then_some(rest)
    }

    /// Takes what follows the window of bytes that begin as it does.
    fn extend(&mut self, content: &[u8]) -> Added {
        match content.get(self.window.len()..) {
            None | Some([]) => Added::Known,
            Some(new) => {
                self.window.extend_from_slice(new);
                Added::Continued
            }
        }
    }

    /// Settles all: no slice comes any more.
    pub fn finish(&mut self) -> Bytes {
        self.settle(self.window.len())
    }

    /// The hash of what is settled.
    pub fn hash(&self) -> ContentHash {
        ContentHash(*self.hasher.finalize().as_bytes())
    }

    fn settle(&mut self, length: usize) -> Bytes {
        let bytes = self.window.split_to(length).freeze();
        self.hasher.update(&bytes);
        self.settled += bytes.len() as u64;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use walpoint_base::facts::HistoryHash;
    use walpoint_base::{LineageId, PgMajor, SegmentSize, SystemId};

    use super::super::SliceFacts;
    use super::*;

    const START: Lsn = Lsn(0x50_0000);
    const LENGTH: usize = 200;

    fn bytes(seed: u8) -> Vec<u8> {
        (0..LENGTH).map(|n| n.to_le_bytes()[0].wrapping_mul(31).wrapping_add(seed)).collect()
    }

    fn slice(of: &[u8], from: usize, to: usize) -> (SliceHeader, Vec<u8>) {
        let facts = SliceFacts {
            segment: "000000010000000000000005".parse().unwrap(),
            start: START + from as u64,
            before: ContentHash(*blake3::hash(&of[..from]).as_bytes()),
            history: HistoryHash([0; 16]),
            received: jiff::Timestamp::UNIX_EPOCH,
        };
        let lineage = LineageId { system_id: SystemId(7), n: 1 };
        let (size, major) = (SegmentSize::new(1 << 20).unwrap(), PgMajor::new(17).unwrap());
        let header = SliceHeader::new(lineage, size, major, facts, START + to as u64).unwrap();
        (header, of[from..to].to_vec())
    }

    fn assembly() -> SliceAssembly {
        SliceAssembly::new(START, Box::new(blake3::Hasher::new()))
    }

    #[test]
    fn what_was_made_for_other_bytes_is_not_taken() {
        let (ours, mut theirs) = (bytes(1), bytes(1));
        theirs[10] ^= 1;
        let mut assembly = assembly();
        let mut add = |of: &[u8], from, to| {
            let (header, content) = slice(of, from, to);
            let (added, settled) = assembly.add(&header, &content);
            (added, settled.len(), assembly.end().since(START))
        };
        assert_eq!(add(&ours, 0, 40), (Added::Continued, 0, 40));
        // One that begins before the difference: both servers have what comes before that.
        assert_eq!(add(&theirs, 5, 20), (Added::Contradicts, 5, 10));
        assert_eq!(add(&ours, 5, 40), (Added::Continued, 0, 40));
        assert_eq!(add(&ours, 20, 30), (Added::Known, 15, 40));
        assert_eq!(add(&ours, 50, 60), (Added::Gap, 0, 40));
        assert_eq!(add(&ours, 30, 60), (Added::Continued, 10, 60));
        // Equal bytes, behind others: the hash tells.
        assert_eq!(add(&theirs, 60, 80), (Added::Contradicts, 30, 60));
        assert_eq!(add(&ours, 60, 90), (Added::Continued, 0, 90), "what was taken before is not spoilt");
        assert_eq!(add(&ours, 5, 20), (Added::TooEarly, 0, 90), "it ends before what is settled");
        assert_eq!(add(&theirs, 5, 200), (Added::TooEarly, 0, 90));
        assert_eq!(add(&ours, 7, 200), (Added::TooEarly, 0, 90), "no slice began there");
        // It takes the place of all from there on.
        assert_eq!(add(&ours, 5, 80), (Added::Known, 0, 90));
        assert_eq!(add(&ours, 5, 100), (Added::Continued, 0, 100));
        assert_eq!(
            (assembly.finish(), assembly.hash()),
            (Bytes::copy_from_slice(&ours[60..100]), ContentHash(*blake3::hash(&ours[..100]).as_bytes()))
        );
    }

    proptest! {
        /// However two daemons cut the same bytes, the beginning is whole up to the first gap.
        #[test]
        fn any_cuts_of_one_server_agree(cuts in prop::collection::vec((0..LENGTH, 1..60_usize), 1..20)) {
            let of = bytes(3);
            let mut cuts: Vec<(usize, usize)> =
                cuts.into_iter().map(|(from, length)| (from, (from + length).min(LENGTH))).collect();
            cuts.sort_unstable();
            let (mut assembly, mut reached, mut settled) = (assembly(), 0, Vec::new());
            for (from, to) in cuts {
                let (header, content) = slice(&of, from, to);
                let expected = match (from > reached, to > reached) {
                    (true, _) => Added::Gap,
                    (false, true) => Added::Continued,
                    (false, false) => Added::Known,
                };
                let (added, bytes) = assembly.add(&header, &content);
                prop_assert_eq!(added, expected);
                settled.extend_from_slice(&bytes);
                prop_assert!(reached.max(to) - settled.len() <= 60 || from > reached);
                if from <= reached { reached = reached.max(to); }
            }
            settled.extend_from_slice(&assembly.finish());
            prop_assert_eq!(settled, &of[..reached]);
        }
    }
}
