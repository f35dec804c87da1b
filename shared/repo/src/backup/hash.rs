//! The three hashes of a backup: of a block (64 bits), of a leaf and of a file (256 bits each).
//!
//! All are BLAKE3, keyed in an encrypted repository, so that nobody without the key can tell from a hash what a block
//! holds. The hash of a file is made of those of its leaves: it can be found in any order, and a hole of a terabyte
//! costs nothing.

use walpoint_storage::object::{ContentHash, Sealer};

use super::geometry::{BlockSize, INLINE_BLOCKS, LEAF_BLOCKS};

/// How a repository hashes.
#[derive(Clone, Debug)]
pub struct Hashing(Sealer);

impl Hashing {
    /// As the repository of `sealer` does.
    pub fn new(sealer: &Sealer) -> Self {
        Self(sealer.clone())
    }

    /// The hash of one block, as long as it is in its file: the first 64 bits, little-endian.
    pub fn block(&self, block: &[u8]) -> u64 {
        let hash = blake3::keyed_hash(self.0.block_key(), block);
        hash.as_bytes().first_chunk::<8>().map_or(0, |first| u64::from_le_bytes(*first))
    }

    /// A hasher for the bytes of one leaf; [`Hashing::finish`] gives its value.
    pub fn hasher(&self) -> blake3::Hasher {
        self.0.content_hasher()
    }

    /// The value of a hasher.
    pub fn finish(hasher: &blake3::Hasher) -> ContentHash {
        ContentHash(*hasher.finalize().as_bytes())
    }

    /// The hash of `len` zero bytes.
    pub fn zeros(&self, len: u64) -> ContentHash {
        let mut hasher = self.hasher();
        let mut left = len;
        while left > 0 {
            let piece = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
            hasher.update(ZEROS.get(..piece).unwrap_or(&ZEROS));
            left -= u64::try_from(piece).unwrap_or(left);
        }
        Self::finish(&hasher)
    }
}

static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// Makes the hash of a file from those of its leaves, in file order.
///
/// A file of at most one leaf has that leaf's hash, which is the BLAKE3 of its content (an empty file: of nothing).
/// A longer one has the BLAKE3 of `walpoint file\n`, its length (64 bits, little-endian) and the BLAKE3 of its leaves'
/// hashes.
#[derive(Clone, Debug)]
pub struct FileHasher {
    hashing: Hashing,
    block_size: BlockSize,
    first: Option<ContentHash>,
    rest: Option<blake3::Hasher>,
    /// The hash of a leaf without a byte other than zero, once it is known.
    zero_leaf: Option<ContentHash>,
}

impl FileHasher {
    /// For one file.
    pub fn new(hashing: &Hashing, block_size: BlockSize) -> Self {
        Self { hashing: hashing.clone(), block_size, first: None, rest: None, zero_leaf: None }
    }

    /// Takes the next leaf's hash.
    pub fn leaf(&mut self, hash: ContentHash) {
        let Some(first) = self.first else {
            self.first = Some(hash);
            return;
        };
        let rest = self.rest.get_or_insert_with(|| {
            let mut hasher = self.hashing.hasher();
            hasher.update(&first.0);
            hasher
        });
        rest.update(&hash.0);
    }

    /// Takes `count` full leaves of zeros.
    pub fn zero_leaves(&mut self, count: u64) {
        if count == 0 {
            return;
        }
        let len = u64::from(LEAF_BLOCKS) * self.block_size.bytes();
        let hash = *self.zero_leaf.get_or_insert_with(|| self.hashing.zeros(len));
        for _ in 0..count {
            self.leaf(hash);
        }
    }

    /// The file's hash, `length` being its exact length.
    pub fn finish(self, length: u64) -> ContentHash {
        match (self.first, self.rest) {
            (None, _) => self.hashing.zeros(0),
            (Some(only), None) => only,
            (Some(_), Some(leaves)) => {
                let mut hasher = self.hashing.hasher();
                hasher.update(b"walpoint file\n").update(&length.to_le_bytes());
                hasher.update(leaves.finalize().as_bytes());
                Hashing::finish(&hasher)
            }
        }
    }
}

/// Hashes a file that is read from its start to its end, to compare it with its entry in a backup.
#[derive(Clone, Debug)]
pub struct ContentHasher {
    file: FileHasher,
    leaf: blake3::Hasher,
    /// Bytes in the open leaf.
    filled: u64,
    length: u64,
    /// The hash of the first block, if it came in one piece.
    first_block: Option<u64>,
}

/// How a file begins, as far as the file table of a backup shows: the hash of its first block, or in a file that has leaves the
/// beginning of its first leaf's hash. Zero: not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileBeginning(pub(super) u64);

impl FileBeginning {
    /// Any.
    pub(super) const UNKNOWN: Self = Self(0);

    /// Of a file with that first leaf.
    pub(super) fn of_leaf(hash: &ContentHash) -> Self {
        Self(hash.0.first_chunk().map_or(0, |first| u64::from_le_bytes(*first)))
    }
}

impl ContentHasher {
    /// For one file.
    pub fn new(hashing: &Hashing, block_size: BlockSize) -> Self {
        let file = FileHasher::new(hashing, block_size);
        Self { leaf: hashing.hasher(), file, filled: 0, length: 0, first_block: None }
    }

    /// How a file of `length` bytes begins, once that can be said of what was taken so far.
    pub fn beginning(&self, length: u64) -> Option<FileBeginning> {
        if length <= INLINE_BLOCKS * self.file.block_size.bytes() {
            return self.first_block.map(FileBeginning);
        }
        self.file.first.as_ref().map(FileBeginning::of_leaf)
    }

    /// Takes the file's next bytes, any number of them.
    pub fn update(&mut self, mut bytes: &[u8]) {
        let leaf_len = self.file.block_size.leaf_bytes();
        if self.length == 0
            && let Some(block) = bytes.get(..self.file.block_size.as_usize())
        {
            // A block of zeros is listed without a hash.
            let is_zero = block.iter().all(|byte| *byte == 0);
            self.first_block = Some(if is_zero { 0 } else { self.file.hashing.block(block) });
        }
        while !bytes.is_empty() {
            let room = usize::try_from(leaf_len - self.filled).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(room);
            self.leaf.update(now);
            let n = u64::try_from(now.len()).unwrap_or(u64::MAX);
            self.filled += n;
            self.length += n;
            if self.filled == leaf_len {
                self.file.leaf(Hashing::finish(&self.leaf));
                self.leaf.reset();
                self.filled = 0;
            }
            bytes = later;
        }
    }

    /// Takes a hole: `len` zero bytes, at no cost where it covers whole leaves.
    pub fn zeros(&mut self, mut len: u64) {
        let leaf_len = self.file.block_size.leaf_bytes();
        while len > 0 {
            if self.filled == 0 && len >= leaf_len {
                let whole = len / leaf_len;
                self.file.zero_leaves(whole);
                self.length += whole * leaf_len;
                len -= whole * leaf_len;
                continue;
            }
            let piece = len.min(leaf_len - self.filled).min(1 << 16);
            let n = usize::try_from(piece).unwrap_or(ZEROS.len());
            self.update(ZEROS.get(..n).unwrap_or(&ZEROS));
            len -= piece;
        }
    }

    /// The file's length and hash.
    pub fn finish(mut self) -> (u64, ContentHash) {
        if self.filled > 0 {
            self.file.leaf(Hashing::finish(&self.leaf));
        }
        (self.length, self.file.finish(self.length))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use walpoint_storage::object::testing::sealers;

    use super::*;

    fn hashings() -> [Hashing; 2] {
        [Hashing::new(&sealers()[0]), Hashing::new(&sealers()[1])]
    }

    fn of(hashing: &Hashing, content: &[u8]) -> ContentHash {
        let mut hasher = ContentHasher::new(hashing, BlockSize::new(1024).unwrap());
        hasher.update(content);
        hasher.finish().1
    }

    #[test]
    fn small_files_have_the_hash_that_b3sum_prints() {
        let [plain, keyed] = hashings();
        assert_eq!(of(&plain, b"abc").0, *blake3::hash(b"abc").as_bytes());
        assert_eq!(of(&plain, b"").0, *blake3::hash(b"").as_bytes());
        assert_ne!(of(&keyed, b"abc"), of(&plain, b"abc"));
        assert_ne!(keyed.block(b"abc"), plain.block(b"abc"));
    }

    #[test]
    fn length_and_order_of_leaves_matter() {
        let [plain, _] = hashings();
        let leaf = vec![1; 2048 * 1024];
        let two = [leaf.clone(), vec![2; 2048 * 1024]].concat();
        let swapped = [vec![2; 2048 * 1024], leaf.clone()].concat();
        assert_ne!(of(&plain, &two), of(&plain, &swapped));
        assert_ne!(of(&plain, &two), of(&plain, &leaf));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn holes_hash_like_the_zeros_they_stand_for(before in 0usize..3_000_000, hole in 0u64..7_000_000, after in 0usize..3_000_000) {
            let [_, hashing] = hashings();
            let mut sparse = ContentHasher::new(&hashing, BlockSize::new(1024).unwrap());
            let mut dense = sparse.clone();
            sparse.update(&vec![5; before]);
            sparse.zeros(hole);
            sparse.update(&vec![6; after]);
            dense.update(&vec![5; before]);
            dense.update(&vec![0; usize::try_from(hole).unwrap()]);
            dense.update(&vec![6; after]);
            prop_assert_eq!(sparse.finish(), dense.finish());
        }
    }
}
