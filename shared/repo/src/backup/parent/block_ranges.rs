//! What unfinished backups have stored, by file and place in it, on disk: each file of the new backup looks for itself.
//!
//! Read from progress objects, which hold ranges in no order; sorted through a scratch file without a name. In memory is
//! a line for some kilobytes of it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use walpoint_storage::error::{RepoError, Result};

use super::super::geometry::BlockSize;
use super::super::location::RefWriter;
use super::super::path::TablePath;
use super::super::progress::BlockRange;
use super::super::sorter::{ByPathAndRest, Sorter, nameless_file};
use super::super::wire::{Input, Malformed, Output};
use super::scratch_error;

/// Rows are read this many bytes at a time, or one row.
const CHUNK: usize = 32 << 10;

/// Collects ranges. A row is a range with its number big-endian, so that it sorts, and the age of its backup behind it.
#[derive(Debug)]
pub(super) struct BlockRangesBuilder {
    sorter: Sorter<ByPathAndRest>,
    refs: RefWriter,
    scratch: PathBuf,
    count: u64,
}

/// Ranges of unfinished backups.
#[derive(Debug)]
pub(in crate::backup) struct BlockRanges {
    scratch: File,
    chunks: Vec<Chunk>,
    refs: RefWriter,
    block_size: BlockSize,
}

/// Consecutive rows in the scratch file.
#[derive(Debug)]
struct Chunk {
    first: (TablePath, u32),
    offset: u64,
    length: usize,
}

/// The chunk that was looked at last. One for each thread.
#[derive(Default, Debug)]
pub(in crate::backup) struct CachedChunk {
    chunk: Option<usize>,
    ranges: Vec<BlockRange>,
}

impl BlockRangesBuilder {
    pub(super) fn new(scratch: &Path) -> Self {
        let refs = RefWriter::default();
        Self { sorter: Sorter::new(scratch), refs, scratch: scratch.to_owned(), count: 0 }
    }

    /// Takes a range, its places as the new backup knows them. Of several for one place that of the lowest age counts.
    pub(super) fn add(&mut self, range: &BlockRange, age: u16) -> Result<()> {
        let BlockRange { path, leaf, bytes, blocks } = range;
        let mut row = Vec::new();
        path.encode(&mut row);
        row.put(&leaf.to_be_bytes());
        row.put(&age.to_be_bytes());
        row.put_u32(*bytes);
        blocks.encode(&mut row, &mut self.refs);
        self.count += 1;
        self.sorter.push(row).map_err(scratch_error)
    }

    pub(super) fn finish(self, block_size: BlockSize) -> Result<Option<BlockRanges>> {
        if self.count == 0 {
            return Ok(None);
        }
        let mut rows = self.sorter.into_sorted().map_err(scratch_error)?;
        let mut out = BufWriter::new(nameless_file(&self.scratch).map_err(scratch_error)?);
        let mut chunks: Vec<Chunk> = Vec::new();
        let (mut end, mut last) = (0u64, None);
        while let Some(row) = rows.next().map_err(scratch_error)? {
            let (range, _) = decode(&mut Input::new(&row), &self.refs, block_size)?;
            let name = (range.path, range.leaf);
            if last.as_ref() == Some(&name) {
                continue;
            }
            let length = row.len();
            match chunks.last_mut().filter(|chunk| chunk.length + length <= CHUNK) {
                Some(chunk) => chunk.length += length,
                None => chunks.push(Chunk { first: name.clone(), offset: end, length }),
            }
            out.write_all(&row).map_err(scratch_error)?;
            end += u64::try_from(length).unwrap_or(0);
            last = Some(name);
        }
        let scratch = out.into_inner().map_err(|e| scratch_error(e.into_error()))?;
        Ok(Some(BlockRanges { scratch, chunks, refs: self.refs, block_size }))
    }
}

impl BlockRanges {
    /// What an unfinished backup stored of a file, from that leaf.
    pub(super) fn find(
        &self,
        path: &TablePath,
        leaf: u32,
        cached: &mut CachedChunk,
    ) -> Result<Option<BlockRange>> {
        let after = self.chunks.partition_point(|chunk| (&chunk.first.0, chunk.first.1) <= (path, leaf));
        let Some(n) = after.checked_sub(1) else { return Ok(None) };
        if cached.chunk != Some(n) {
            cached.ranges = self.read(n)?;
            cached.chunk = Some(n);
        }
        let found = cached.ranges.binary_search_by(|s| (&s.path, s.leaf).cmp(&(path, leaf))).ok();
        Ok(found.and_then(|at| cached.ranges.get(at).cloned()))
    }

    fn read(&self, n: usize) -> Result<Vec<BlockRange>> {
        let Some(chunk) = self.chunks.get(n) else { return Ok(Vec::new()) };
        let mut bytes = vec![0; chunk.length];
        self.scratch.read_exact_at(&mut bytes, chunk.offset).map_err(scratch_error)?;
        let (mut input, mut ranges) = (Input::new(&bytes), Vec::new());
        while !input.is_empty() {
            ranges.push(decode(&mut input, &self.refs, self.block_size)?.0);
        }
        Ok(ranges)
    }
}

/// The range in a row, and the age of its backup.
fn decode(input: &mut Input<'_>, refs: &RefWriter, block_size: BlockSize) -> Result<(BlockRange, u16)> {
    let changed = |e: Malformed| RepoError::Internal(format!("the scratch file changed: {e}"));
    let mut read = || {
        let path = TablePath::decode(input)?;
        let (leaf, age) = (u32::from_be_bytes(input.array()?), u16::from_be_bytes(input.array()?));
        let bytes = input.u32()?;
        let count = u32::try_from(block_size.blocks(u64::from(bytes))).unwrap_or(u32::MAX);
        let blocks = super::super::blocks::BlockList::decode(input, refs.used(), count)?;
        Ok((BlockRange { path, leaf, bytes, blocks }, age))
    };
    read().map_err(changed)
}
