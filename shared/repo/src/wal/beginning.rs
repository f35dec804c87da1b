//! What a file begins with, as a hash. Without a key, it is the same in every repository, whichever key that hashes with.
//!
//! A segment that a restore has built is cut out of another file: an incomplete copy, or a younger timeline's first segment. The
//! plan counted on the bytes up to the cut, and each repository may have another copy.

use std::io::{self, Write};

use walpoint_base::{Lsn, SegmentName, WalFileName};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::object::ContentHash;

use super::WalArchive;
use super::slices::SliceName;

/// Takes a file and hashes what it begins with.
#[derive(Debug)]
pub struct BeginningHasher {
    hasher: blake3::Hasher,
    /// Bytes that are still missing.
    left: u64,
}

impl BeginningHasher {
    /// The first `length` bytes count.
    pub fn of(length: u64) -> Self {
        Self::with(blake3::Hasher::new(), length)
    }

    fn with(hasher: blake3::Hasher, length: u64) -> Self {
        Self { hasher, left: length }
    }

    /// The hash; `None` if the file was shorter.
    pub fn hash(&self) -> Option<ContentHash> {
        (self.left == 0).then(|| ContentHash(*self.hasher.finalize().as_bytes()))
    }
}

impl Write for BeginningHasher {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let counted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        self.hasher.update(buffer.get(..counted).unwrap_or(buffer));
        self.left -= counted as u64;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WalArchive {
    /// The hash of the first `length` bytes of a file, checked as a whole; of an incomplete copy of a segment that which
    /// [`Self::read_incomplete`] reads.
    pub async fn beginning(&self, name: WalFileName, length: u64) -> Result<Option<ContentHash>> {
        let reader = match name {
            WalFileName::Partial(segment) => self.read_incomplete(segment).await?,
            _ => self.read(name).await?,
        };
        let Some(reader) = reader else {
            let store = self.repository().store().name().to_owned();
            return Err(RepoError::NotFound { key: self.paths().file(name), store });
        };
        Ok(reader.write_to(BeginningHasher::of(length)).await?.0.hash())
    }

    /// The slices of a segment that is stored as a whole which that holds, byte for byte: those that a process left which died before it
    /// deleted them. None if any of them is damaged, or holds something else.
    pub async fn slices_held_by_whole(&self, segment: SegmentName) -> Result<Vec<SliceName>> {
        let Some((sliced, hash)) = self.sliced_beginning(segment, Lsn(u64::MAX)).await? else {
            return Ok(Vec::new());
        };
        let size = self.lineage().segment_size;
        let length = segment.number(size).map_or(0, |number| sliced.end.since(number.start(size)));
        let Some(reader) = self.read(WalFileName::Segment(segment)).await? else { return Ok(Vec::new()) };
        let whole = reader.write_to(BeginningHasher::with(self.content_hasher(), length)).await?.0.hash();
        let is_held = sliced.fault.is_none() && whole == Some(hash);
        Ok(if is_held { sliced.taken } else { Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_behind_the_beginning_makes_no_difference() {
        let hash = |pieces: &[&str], length| {
            let mut beginning = BeginningHasher::of(length);
            pieces.iter().for_each(|piece| beginning.write_all(piece.as_bytes()).unwrap());
            beginning.hash()
        };
        assert_eq!(hash(&["ab", "cd"], 3), hash(&["abc", "xyz"], 3));
        assert_ne!(hash(&["abcd"], 3), hash(&["abxd"], 3));
        assert_eq!(hash(&["ab"], 3), None, "it is too short");
    }
}
