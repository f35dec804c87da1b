//! How a file is cut: into blocks, and those into leaves.

/// Blocks described by one leaf.
pub const LEAF_BLOCKS: u32 = 2048;
/// A file of at most this many blocks has its list of blocks in the file table; a longer one in leaves of its own.
pub const INLINE_BLOCKS: u64 = 64;
/// The longest file a backup can hold, 256 TiB: bounds what a lying length can ask for.
pub const MAX_FILE: u64 = 1 << 48;

/// Bytes of a block (`BLCKSZ`): a power of two from 1 to 32 KiB. Every file is cut by it, not only relations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockSize(u32);

impl BlockSize {
    /// `None` if no server can have blocks of that many bytes.
    pub fn new(bytes: u32) -> Option<Self> {
        (bytes.is_power_of_two() && (1 << 10..=1 << 15).contains(&bytes)).then_some(Self(bytes))
    }

    /// Bytes of a block.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// Bytes of a block, as a length in memory.
    pub fn as_usize(self) -> usize {
        self.0 as usize
    }

    /// Bytes described by a full leaf.
    pub fn leaf_bytes(self) -> u64 {
        self.bytes() * u64::from(LEAF_BLOCKS)
    }

    /// Blocks of a file of that length; the last one may be short.
    pub fn blocks(self, length: u64) -> u64 {
        length.div_ceil(self.bytes())
    }

    /// Leaves of a file of that length.
    pub fn leaves(self, length: u64) -> u64 {
        length.div_ceil(self.leaf_bytes())
    }

    /// The length of block `n` of a file of that length; 0 beyond its end.
    pub fn block_len(self, length: u64, n: u64) -> usize {
        let left = length.saturating_sub(n.saturating_mul(self.bytes())).min(self.bytes());
        usize::try_from(left).unwrap_or(0)
    }

    /// Bytes of leaf `n` of a file of that length; 0 beyond its end.
    pub fn leaf_len(self, length: u64, n: u64) -> u64 {
        length.saturating_sub(n.saturating_mul(self.leaf_bytes())).min(self.leaf_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_cuts() {
        for bad in [0, 1, 512, 1025, 1 << 16, u32::MAX] {
            assert_eq!(BlockSize::new(bad), None);
        }
        let size = BlockSize::new(8192).unwrap();
        assert_eq!((size.blocks(0), size.blocks(1), size.blocks(8192), size.blocks(8193)), (0, 1, 1, 2));
        assert_eq!((size.leaves(0), size.leaves(1 << 24), size.leaves((1 << 24) + 1)), (0, 1, 2));
        assert_eq!((size.block_len(8193, 0), size.block_len(8193, 1), size.block_len(8193, 2)), (8192, 1, 0));
        assert_eq!(size.leaf_len((1 << 24) + 5, 1), 5);
        assert_eq!(size.block_len(u64::MAX, u64::MAX), 0);
    }
}
