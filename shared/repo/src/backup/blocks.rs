//! Lists of blocks: for each its hash and where it is. A leaf is one of up to 2,048 blocks, stored as a frame.
//!
//! Blocks that lie one after the other in the same frame form a run, and so do blocks of zeros, which are not stored
//! and have no hash. A leaf carries its own table of backups, so that later manifests can share it as it is.

use walpoint_base::BackupId;

use super::geometry::LEAF_BLOCKS;
use super::location::{BackupRef, BlockRef, FrameRef, PackNo, RefWriter, read_refs};
use super::wire::{Input, Malformed, Output};

/// Where the content of a block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockLocation {
    /// All zero, or in a hole: nothing is stored.
    Zero,
    /// In a pack.
    At(BlockRef),
}

/// Consecutive blocks of a file that are stored one after the other in one frame, or that are all zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockRun {
    /// How many.
    pub blocks: u16,
    /// Where the first one is.
    pub place: BlockLocation,
}

/// Up to 2,048 consecutive blocks of a file.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct BlockList {
    runs: Vec<BlockRun>,
    /// Of the stored blocks, in order.
    hashes: Vec<u64>,
    blocks: u32,
}

impl BlockList {
    /// Appends a block; `hash` means nothing for one of zeros.
    pub(super) fn push(&mut self, place: BlockLocation, hash: u64) {
        self.blocks += 1;
        if let BlockLocation::At(_) = place {
            self.hashes.push(hash);
        }
        if let Some(run) = self.runs.last_mut() {
            let continues = match (run.place, place) {
                (BlockLocation::Zero, BlockLocation::Zero) => true,
                (BlockLocation::At(first), BlockLocation::At(next)) => {
                    first.frame == next.frame && u16::from(first.index) + run.blocks == u16::from(next.index)
                }
                _ => false,
            };
            if continues {
                run.blocks += 1;
                return;
            }
        }
        self.runs.push(BlockRun { blocks: 1, place });
    }

    pub(super) fn clear(&mut self) {
        self.runs.clear();
        self.hashes.clear();
        self.blocks = 0;
    }

    /// How many blocks it describes.
    pub fn len(&self) -> u32 {
        self.blocks
    }

    /// Whether it describes none.
    pub fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// Whether every block is zero.
    pub fn is_zero(&self) -> bool {
        self.hashes.is_empty()
    }

    /// The hashes of the stored blocks, in file order.
    pub fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    /// The runs in file order, each with the hashes of its blocks (none for zeros).
    pub fn runs(&self) -> impl Iterator<Item = (BlockRun, &[u64])> {
        let mut hashes = self.hashes.as_slice();
        self.runs.iter().map(move |run| {
            let stored = if run.place == BlockLocation::Zero { 0 } else { usize::from(run.blocks) };
            let (now, later) = hashes.split_at_checked(stored).unwrap_or((hashes, &[]));
            hashes = later;
            (*run, now)
        })
    }

    /// Gives every block that is in `from` its place in `to`; how a frame gets its number after its blocks were listed.
    pub(super) fn relocate(&mut self, from: FrameRef, to: FrameRef) {
        for run in &mut self.runs {
            if let BlockLocation::At(at) = &mut run.place
                && at.frame == from
            {
                at.frame = to;
            }
        }
    }

    /// Whether a block is in that frame.
    pub(super) fn uses(&self, frame: FrameRef) -> bool {
        self.runs.iter().any(|run| matches!(run.place, BlockLocation::At(at) if at.frame == frame))
    }

    /// Gives every backup another number; blocks of one that has none are in none that is known.
    pub(super) fn renumber(&mut self, to: impl Fn(BackupRef) -> Option<BackupRef>) {
        for run in &mut self.runs {
            if let BlockLocation::At(at) = &mut run.place {
                at.frame.backup = to(at.frame.backup).unwrap_or(BackupRef(u16::MAX));
            }
        }
    }

    /// The highest pack of `backup` that a block is in.
    pub(super) fn highest_pack(&self, backup: BackupRef) -> Option<PackNo> {
        let pack = |run: &BlockRun| match run.place {
            BlockLocation::At(at) if at.frame.backup == backup => Some(at.frame.pack),
            _ => None,
        };
        self.runs.iter().filter_map(pack).max()
    }

    /// Number of runs (16 bits), the runs, then the hashes. A run: number of blocks (16 bits), its highest bit set for
    /// zeros, and if not the frame and the index of the first block.
    pub(super) fn encode(&self, out: &mut Vec<u8>, refs: &mut RefWriter) {
        out.put_u16(u16::try_from(self.runs.len()).unwrap_or(u16::MAX));
        for run in &self.runs {
            match run.place {
                BlockLocation::Zero => out.put_u16(run.blocks | ZERO),
                BlockLocation::At(at) => {
                    out.put_u16(run.blocks);
                    at.frame.encode(out, refs);
                    out.put_u8(at.index);
                }
            }
        }
        for hash in &self.hashes {
            out.put_u64(*hash);
        }
    }

    /// Reads a list of exactly `blocks` blocks.
    pub(super) fn decode(input: &mut Input<'_>, refs: &[BackupRef], blocks: u32) -> Result<Self, Malformed> {
        if blocks > LEAF_BLOCKS {
            return Err(Malformed(format!("a list of {blocks} blocks is too long")));
        }
        let count = usize::from(input.u16()?);
        let mut list = Self::default();
        list.runs.reserve_exact(count.min(input.len() / 2));
        let mut stored = 0u32;
        for _ in 0..count {
            let head = input.u16()?;
            let n = head & !ZERO;
            let place = if head & ZERO == 0 {
                let frame = FrameRef::decode(input, refs)?;
                stored += u32::from(n);
                BlockLocation::At(BlockRef { frame, index: input.u8()? })
            } else {
                BlockLocation::Zero
            };
            let last = match place {
                BlockLocation::At(at) => u32::from(at.index) + u32::from(n),
                BlockLocation::Zero => 0,
            };
            list.blocks += u32::from(n);
            if n == 0 || last > 255 || list.blocks > blocks {
                return Err(Malformed::new("a run of blocks has an impossible length"));
            }
            list.runs.push(BlockRun { blocks: n, place });
        }
        if list.blocks != blocks {
            return Err(Malformed(format!("a list of {} blocks stands for {blocks}", list.blocks)));
        }
        list.hashes.reserve_exact(usize::try_from(stored).unwrap_or(0).min(input.len() / 8));
        for _ in 0..stored {
            list.hashes.push(input.u64()?);
        }
        Ok(list)
    }
}

/// Hands out the blocks of a list one by one.
#[derive(Debug)]
pub(super) struct BlockCursor {
    list: BlockList,
    /// The next block: its run, its place in the run, and its hash if it is stored.
    run: usize,
    within: u16,
    hash: usize,
}

impl BlockCursor {
    pub(super) fn new(list: BlockList) -> Self {
        Self { list, run: 0, within: 0, hash: 0 }
    }

    pub(super) fn list(&self) -> &BlockList {
        &self.list
    }
}

impl Iterator for BlockCursor {
    /// Where the block is, and its hash if it is stored.
    type Item = Option<(BlockRef, u64)>;

    fn next(&mut self) -> Option<Self::Item> {
        let run = *self.list.runs.get(self.run)?;
        let within = self.within;
        self.within += 1;
        if self.within >= run.blocks {
            self.run += 1;
            self.within = 0;
        }
        let BlockLocation::At(first) = run.place else { return Some(None) };
        let hash = *self.list.hashes.get(self.hash)?;
        self.hash += 1;
        let index = first.index.saturating_add(u8::try_from(within).unwrap_or(u8::MAX));
        Some(Some((BlockRef { index, ..first }, hash)))
    }
}

/// Marks a run of zeros.
const ZERO: u16 = 0x8000;

/// The plain content of a leaf's frame: its table of backups, then the list.
pub(super) fn encode_leaf(list: &BlockList, backups: &[BackupId]) -> Result<Vec<u8>, Malformed> {
    let (mut refs, mut body) = (RefWriter::default(), Vec::new());
    list.encode(&mut body, &mut refs);
    let mut out = Vec::with_capacity(body.len() + 2 + BackupId::ENCODED);
    refs.encode(&mut out, backups)?;
    out.put(&body);
    Ok(out)
}

/// Reads a leaf that describes `blocks` blocks.
pub(super) fn decode_leaf(bytes: &[u8], backups: &[BackupId], blocks: u32) -> Result<BlockList, Malformed> {
    let mut input = Input::new(bytes);
    let refs = read_refs(&mut input, backups)?;
    let list = BlockList::decode(&mut input, &refs, blocks)?;
    input.end()?;
    Ok(list)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn id(random: u32) -> BackupId {
        let text = format!("20261121T101500Z-00000001-0000000002000028-{random:08x}");
        text.parse().unwrap()
    }

    pub(crate) fn at(backup: u16, pack: u32, frame: u16, index: u8) -> BlockLocation {
        let frame = FrameRef { backup: BackupRef(backup), pack: PackNo(pack), frame };
        BlockLocation::At(BlockRef { frame, index })
    }

    #[test]
    fn neighbours_form_runs() {
        let mut list = BlockList::default();
        for n in 0..16 {
            list.push(at(0, 1, 2, n), u64::from(n));
        }
        list.push(at(0, 1, 3, 0), 16);
        list.push(BlockLocation::Zero, 0);
        list.push(BlockLocation::Zero, 0);
        let runs: Vec<_> = list.runs().map(|(run, hashes)| (run.blocks, hashes.len())).collect();
        assert_eq!(runs, [(16, 16), (1, 1), (2, 0)]);
        assert_eq!(list.len(), 19);
    }

    #[test]
    fn a_leaf_means_the_same_in_another_manifest() {
        let mut list = BlockList::default();
        list.push(at(0, 7, 1, 0), 1);
        list.push(at(2, 8, 1, 0), 2);
        let bytes = encode_leaf(&list, &[id(1), id(2), id(3)]).unwrap();
        let later = decode_leaf(&bytes, &[id(9), id(3), id(1)], 2).unwrap();
        let places: Vec<_> = later.runs().map(|(run, _)| run.place).collect();
        assert_eq!(places, [at(2, 7, 1, 0), at(1, 8, 1, 0)]);
        assert!(decode_leaf(&bytes, &[id(1)], 2).is_err(), "a backup that the manifest does not name");
        assert!(decode_leaf(&bytes, &[id(1), id(3)], 3).is_err(), "another number of blocks");
    }

    prop_compose! {
        pub(crate) fn any_place()(zero: bool, backup in 0u16..3, pack in 0u32..3, frame in 0u16..3, index in 0u8..20) -> BlockLocation {
            if zero { BlockLocation::Zero } else { at(backup, pack, frame, index) }
        }
    }

    proptest! {
        #[test]
        fn leaves_come_back(places in proptest::collection::vec((any_place(), any::<u64>()), 0..300)) {
            let mut list = BlockList::default();
            places.iter().for_each(|(place, hash)| list.push(*place, *hash));
            let ids = [id(1), id(2), id(3)];
            let bytes = encode_leaf(&list, &ids).unwrap();
            let back = decode_leaf(&bytes, &ids, list.len()).unwrap();
            prop_assert_eq!(&back, &list);
            let mut n = 0;
            for (run, hashes) in back.runs() {
                for k in 0..run.blocks {
                    let (place, hash) = places[n];
                    match run.place {
                        BlockLocation::Zero => prop_assert_eq!(place, BlockLocation::Zero),
                        BlockLocation::At(first) => {
                            let index = first.index + u8::try_from(k).unwrap();
                            prop_assert_eq!(place, BlockLocation::At(BlockRef { index, ..first }));
                            prop_assert_eq!(hash, hashes[usize::from(k)]);
                        }
                    }
                    n += 1;
                }
            }
            prop_assert_eq!(n, places.len());
            let expected = places.iter().map(|(place, hash)| match place {
                BlockLocation::Zero => None,
                BlockLocation::At(at) => Some((*at, *hash)),
            });
            prop_assert!(BlockCursor::new(back).eq(expected));
        }

        #[test]
        fn any_bytes_are_a_leaf_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200), blocks in 0u32..3000) {
            if let Ok(list) = decode_leaf(&[&[0, 0], &bytes[..]].concat(), &[], blocks) {
                prop_assert_eq!(list.len(), blocks);
            }
        }

        #[test]
        fn a_changed_byte_never_panics(at in 0usize..200, value: u8) {
            let mut list = BlockList::default();
            for n in 0..10 {
                list.push(self::at(0, 1, 2, n * 2), 5);
            }
            let mut bytes = encode_leaf(&list, &[id(1)]).unwrap();
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(back) = decode_leaf(&bytes, &[id(1)], 10) {
                prop_assert_eq!(back.len(), 10);
            }
        }
    }
}
