//! A segment's beginning, put together from slices. No IO.
//!
//! Always holds: what is assembled is what every slice that was taken was made for, byte for byte and by hash; a slice that differs in
//! one bit from those before it takes nothing away from them.

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
}

/// Slices of one segment, added in order of where they start.
#[derive(Debug)]
pub struct SliceAssembly {
    start: Lsn,
    content: Vec<u8>,
    /// Of the first `hashed` bytes: up to where the last slice starts.
    hasher: blake3::Hasher,
    hashed: usize,
    empty: blake3::Hasher,
}

impl SliceAssembly {
    /// Of the segment that starts there, with the repository's hasher for contents.
    pub fn new(start: Lsn, hasher: blake3::Hasher) -> Self {
        Self { start, content: Vec::new(), empty: hasher.clone(), hasher, hashed: 0 }
    }

    /// The position behind the last byte.
    pub fn end(&self) -> Lsn {
        self.start + self.content.len() as u64
    }

    /// The bytes so far.
    pub fn into_content(self) -> Vec<u8> {
        self.content
    }

    /// Adds a slice with its content.
    pub fn add(&mut self, header: &SliceHeader, content: &[u8]) -> Added {
        let offset = usize::try_from(header.facts.start.since(self.start)).unwrap_or(usize::MAX);
        let Some(behind) = self.content.get(offset..) else { return Added::Gap };
        if header.facts.start < self.start {
            return Added::Contradicts;
        }
        let overlap = behind.len().min(content.len());
        let same = behind.iter().zip(content).take_while(|(one, other)| one == other).count();
        let continues = self.hash_before(offset) == header.facts.before;
        if !continues || same < overlap {
            self.content.truncate(if continues { offset + same } else { offset });
            return Added::Contradicts;
        }
        match content.get(overlap..) {
            None | Some([]) => Added::Known,
            Some(new) => {
                self.content.extend_from_slice(new);
                Added::Continued
            }
        }
    }

    /// The hash of everything before an offset. In order of where slices start, each byte is hashed once.
    fn hash_before(&mut self, offset: usize) -> ContentHash {
        if offset < self.hashed {
            (self.hasher, self.hashed) = (self.empty.clone(), 0);
        }
        self.hasher.update(self.content.get(self.hashed..offset).unwrap_or_default());
        self.hashed = offset;
        ContentHash(*self.hasher.finalize().as_bytes())
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
        SliceAssembly::new(START, blake3::Hasher::new())
    }

    #[test]
    fn what_was_made_for_other_bytes_is_not_taken() {
        let (ours, mut theirs) = (bytes(1), bytes(1));
        theirs[10] ^= 1;
        let mut assembly = assembly();
        let mut add = |of: &[u8], from, to| {
            let (header, content) = slice(of, from, to);
            (assembly.add(&header, &content), assembly.end().since(START))
        };
        assert_eq!(add(&ours, 0, 40), (Added::Continued, 40));
        assert_eq!(add(&ours, 50, 60), (Added::Gap, 40));
        assert_eq!(add(&ours, 20, 30), (Added::Known, 40));
        assert_eq!(add(&ours, 30, 60), (Added::Continued, 60));
        // Equal bytes, behind others: the hash tells.
        assert_eq!(add(&theirs, 60, 80), (Added::Contradicts, 60));
        assert_eq!(add(&ours, 60, 90), (Added::Continued, 90), "what was taken before is not spoilt");
        // One that begins before the difference: both servers have what comes before that.
        assert_eq!(add(&theirs, 5, 20), (Added::Contradicts, 10));
        assert_eq!(add(&ours, 5, 20), (Added::Continued, 20));
    }

    proptest! {
        /// However two daemons cut the same bytes, the beginning is whole up to the first gap.
        #[test]
        fn any_cuts_of_one_server_agree(cuts in prop::collection::vec((0..LENGTH, 1..60_usize), 1..20)) {
            let of = bytes(3);
            let mut cuts: Vec<(usize, usize)> =
                cuts.into_iter().map(|(from, length)| (from, (from + length).min(LENGTH))).collect();
            cuts.sort_unstable();
            let (mut assembly, mut reached) = (assembly(), 0);
            for (from, to) in cuts {
                let (header, content) = slice(&of, from, to);
                let expected = match (from > reached, to > reached) {
                    (true, _) => Added::Gap,
                    (false, true) => Added::Continued,
                    (false, false) => Added::Known,
                };
                prop_assert_eq!(assembly.add(&header, &content), expected);
                if from <= reached { reached = reached.max(to); }
            }
            prop_assert_eq!(assembly.into_content(), &of[..reached]);
        }
    }
}
