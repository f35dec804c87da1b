//! Index blocks of the file table and nodes of leaves: the frames of a pack that are neither blocks nor leaves.
//!
//! Both begin with their own table of backups, so that later manifests can share them as they are.

use walpoint_base::BackupId;
use walpoint_storage::object::MAX_FRAME;

use super::entry::{FileEntry, LeafRun, decode_leaf_runs, encode_leaf_runs};
use super::geometry::BlockSize;
use super::location::{RefWriter, read_refs};
use super::wire::{Input, Malformed, Output};

/// An index block is closed when it reaches this many bytes.
pub(super) const INDEX_BLOCK_BYTES: usize = 16 << 10;

/// An index block that is being filled with entries in order.
#[derive(Default, Debug)]
pub(super) struct IndexBlockBuilder {
    refs: RefWriter,
    body: Vec<u8>,
    entries: u32,
}

impl IndexBlockBuilder {
    pub(super) fn push(&mut self, entry: &FileEntry) {
        entry.encode(&mut self.body, &mut self.refs);
        self.entries += 1;
    }

    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    /// Bytes of the entries so far.
    pub(super) fn len(&self) -> usize {
        self.body.len()
    }

    /// The table of backups, the number of entries (32 bits), the entries.
    pub(super) fn encode(&self, backups: &[BackupId]) -> Result<Vec<u8>, Malformed> {
        let mut out = Vec::with_capacity(self.body.len() + 64);
        self.refs.encode(&mut out, backups)?;
        out.put_u32(self.entries);
        out.put(&self.body);
        fits(out)
    }

    /// The same, and leaves the builder empty.
    pub(super) fn finish(&mut self, backups: &[BackupId]) -> Result<Vec<u8>, Malformed> {
        std::mem::take(self).encode(backups)
    }
}

/// Reads the entries of an index block. Their order is [`super::path::TreeCheck`]'s to prove.
pub(super) fn decode_index_block(
    bytes: &[u8],
    backups: &[BackupId],
    block_size: BlockSize,
) -> Result<Vec<FileEntry>, Malformed> {
    /// Path, tag and attributes of an entry with an empty path.
    const SHORTEST: usize = 2 + 2 + 1 + 18;
    let mut input = Input::new(bytes);
    let refs = read_refs(&mut input, backups)?;
    let count = input.count(SHORTEST)?;
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        entries.push(FileEntry::decode(&mut input, &refs, block_size)?);
    }
    input.end()?;
    Ok(entries)
}

/// The plain content of a node's frame: its table of backups, then the runs.
pub(super) fn encode_node(runs: &[LeafRun], backups: &[BackupId]) -> Result<Vec<u8>, Malformed> {
    let (mut refs, mut body, mut out) = (RefWriter::default(), Vec::new(), Vec::new());
    encode_leaf_runs(runs, &mut body, &mut refs);
    refs.encode(&mut out, backups)?;
    out.put(&body);
    fits(out)
}

/// Reads a node that stands for `leaves` leaves.
pub(super) fn decode_node(
    bytes: &[u8],
    backups: &[BackupId],
    leaves: u32,
) -> Result<Vec<LeafRun>, Malformed> {
    let mut input = Input::new(bytes);
    let refs = read_refs(&mut input, backups)?;
    let runs = decode_leaf_runs(&mut input, &refs, u64::from(leaves))?;
    input.end()?;
    Ok(runs)
}

/// A frame's worth of bytes, or an error.
fn fits(bytes: Vec<u8>) -> Result<Vec<u8>, Malformed> {
    match bytes.len() {
        0..=MAX_FRAME => Ok(bytes),
        n => Err(Malformed(format!("an index block of {n} bytes is too long: a file has too many pieces"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::blocks::tests::id;
    use super::super::entry::tests::any_entry;
    use super::*;

    proptest! {
        #[test]
        fn pages_come_back(entries in proptest::collection::vec(any_entry(), 0..20)) {
            let size = BlockSize::new(1024).unwrap();
            let mut index_block = IndexBlockBuilder::default();
            entries.iter().for_each(|entry| index_block.push(entry));
            let bytes = index_block.finish(&[id(0), id(1), id(2)]).unwrap();
            prop_assert_eq!(index_block.entries(), 0);
            let back = decode_index_block(&bytes, &[id(2), id(1), id(0)], size).unwrap();
            prop_assert_eq!(back.len(), entries.len());
            let back = decode_index_block(&bytes, &[id(0), id(1), id(2)], size).unwrap();
            prop_assert_eq!(back, entries);
        }

        #[test]
        fn any_bytes_are_a_page_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let size = BlockSize::new(8192).unwrap();
            let index_block = [&[0, 0], &bytes[..]].concat();
            decode_index_block(&index_block, &[], size).ok();
            decode_index_block(&bytes, &[id(0)], size).ok();
            decode_node(&index_block, &[], 7).ok();
        }
    }
}
