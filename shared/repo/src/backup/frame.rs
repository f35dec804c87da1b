//! The plain content of a data frame: up to 128 KiB of blocks of any files, then their lengths, then their number.
//!
//! The lengths stand behind the blocks so that a frame is filled without knowing how many it will hold. A block is
//! never empty and never all zero: such blocks are not stored.

use super::geometry::BlockSize;
use super::wire::{Malformed, Output};

/// Bytes of blocks in one frame: 16 of the usual 8 KiB.
pub const FRAME_BYTES: usize = 128 << 10;
/// Blocks in one frame, so that an index fits a byte and files of a few bytes each share one.
pub(super) const FRAME_BLOCKS: usize = 255;
/// The longest plain content of a data frame.
pub(super) const MAX_FRAME: usize = FRAME_BYTES + 2 * FRAME_BLOCKS + 1;

/// A data frame that is being filled.
#[derive(Debug)]
pub(super) struct FrameBuilder {
    blocks: Vec<u8>,
    lengths: Vec<u16>,
    hashes: Vec<u64>,
}

impl FrameBuilder {
    pub(super) fn new() -> Self {
        Self { blocks: Vec::with_capacity(MAX_FRAME), lengths: Vec::new(), hashes: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Whether a block of that length still fits.
    pub(super) fn fits(&self, len: usize) -> bool {
        self.lengths.len() < FRAME_BLOCKS && self.blocks.len() + len <= FRAME_BYTES
    }

    /// Takes a block that fits, and says which one it is.
    pub(super) fn push(&mut self, block: &[u8], hash: u64) -> u8 {
        let index = u8::try_from(self.lengths.len()).unwrap_or(u8::MAX);
        self.blocks.extend_from_slice(block);
        self.lengths.push(u16::try_from(block.len()).unwrap_or(u16::MAX));
        self.hashes.push(hash);
        index
    }

    /// Completes the plain content. [`FrameBuilder::clear`] makes it ready for the next.
    pub(super) fn seal(&mut self) -> (&[u8], &[u64]) {
        for &len in &self.lengths {
            self.blocks.put_u16(len);
        }
        self.blocks.put_u8(u8::try_from(self.lengths.len()).unwrap_or(u8::MAX));
        (&self.blocks, &self.hashes)
    }

    pub(super) fn clear(&mut self) {
        self.blocks.clear();
        self.lengths.clear();
        self.hashes.clear();
    }
}

/// A data frame's plain content, taken apart.
#[derive(Debug)]
pub struct DataFrame<'a> {
    blocks: &'a [u8],
    /// Where each block ends; only the first `count` are meant.
    ends: [u32; FRAME_BLOCKS],
    count: usize,
}

impl<'a> DataFrame<'a> {
    /// Checks the lengths against the content.
    pub fn parse(plain: &'a [u8], block_size: BlockSize) -> Result<Self, Malformed> {
        let bad = |what: &str| Malformed(format!("a data frame of {} bytes {what}", plain.len()));
        let Some((&count, rest)) = plain.split_last() else {
            return Err(bad("has no count"));
        };
        let count = usize::from(count);
        let Some(len) = rest.len().checked_sub(2 * count) else {
            return Err(bad("is too short for its count"));
        };
        let (blocks, lengths) = rest.split_at(len);
        let mut ends = [0; FRAME_BLOCKS];
        let mut end = 0u32;
        for (slot, length) in ends.iter_mut().zip(lengths.chunks_exact(2)) {
            let length = length.first_chunk().map_or(0, |l| u16::from_le_bytes(*l));
            if length == 0 || usize::from(length) > block_size.as_usize() {
                return Err(bad("holds a block of an impossible length"));
            }
            end += u32::from(length);
            *slot = end;
        }
        if usize::try_from(end) != Ok(len) {
            return Err(bad("has lengths that do not add up"));
        }
        Ok(Self { blocks, ends, count })
    }

    /// How many blocks it holds.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Block `index`; `None` beyond the last one.
    pub fn block(&self, index: u8) -> Option<&'a [u8]> {
        self.blocks(index, 1)
    }

    /// `count` blocks from block `index` on, one behind the other; `None` if there are not as many.
    pub fn blocks(&self, index: u8, count: usize) -> Option<&'a [u8]> {
        let index = usize::from(index);
        let last = (index + count).checked_sub(1)?;
        let end = self.ends.get(..self.count)?.get(last)?;
        let start = index.checked_sub(1).map_or(Some(&0), |before| self.ends.get(before))?;
        self.blocks.get(usize::try_from(*start).ok()?..usize::try_from(*end).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size() -> BlockSize {
        BlockSize::new(8192).unwrap()
    }

    #[test]
    fn fills_to_128_kib_or_255_blocks() {
        let mut builder = FrameBuilder::new();
        let mut count = 0;
        while builder.fits(8192) {
            assert_eq!(builder.push(&[1; 8192], 0), count);
            count += 1;
        }
        assert_eq!(count, 16);
        assert_eq!(builder.seal().0.len(), FRAME_BYTES + 33);
        builder.clear();
        assert!(builder.is_empty());
        while builder.fits(3) {
            builder.push(b"abc", 0);
        }
        let frame = builder.seal().0.to_vec();
        let frame = DataFrame::parse(&frame, size()).unwrap();
        assert_eq!(frame.count(), 255);
        assert_eq!(frame.block(254), Some(&b"abc"[..]));
        assert_eq!(frame.block(255), None);
    }

    #[test]
    fn lies_are_refused() {
        for bad in [&[][..], &[1], &[9, 2, 0, 1], &[9, 0, 0, 1], &[9, 1, 0, 0], &[1, 2, 3, 0xFF, 0xFF, 1]] {
            assert!(DataFrame::parse(bad, size()).is_err(), "{bad:?}");
        }
        assert_eq!(DataFrame::parse(&[0], size()).unwrap().count(), 0);
    }

    proptest! {
        #[test]
        fn blocks_come_back(blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..600), 0..200)) {
            let mut builder = FrameBuilder::new();
            let mut taken = 0;
            for block in blocks.iter().take_while(|b| builder.fits(b.len())).collect::<Vec<_>>() {
                if builder.fits(block.len()) {
                    builder.push(block, 1);
                    taken += 1;
                }
            }
            let plain = builder.seal().0.to_vec();
            let frame = DataFrame::parse(&plain, size()).unwrap();
            prop_assert_eq!(frame.count(), taken);
            for (n, block) in blocks.iter().take(taken).enumerate() {
                prop_assert_eq!(frame.block(u8::try_from(n).unwrap()), Some(&block[..]));
            }
        }

        #[test]
        fn any_bytes_are_a_frame_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..1000)) {
            if let Ok(frame) = DataFrame::parse(&bytes, size()) {
                for n in 0..=255 {
                    prop_assert_eq!(frame.block(n).is_some(), usize::from(n) < frame.count());
                }
            }
        }
    }
}
