//! Files of the parent by their content: for files that are new at their path, as after CREATE DATABASE by file copy, or
//! when a tablespace was moved.
//!
//! A table of fixed rows in a scratch file, sorted by length and hash, searched by bisection; and a second one by length and
//! beginning, which tells of most files that they are others before they are read to their end. Nothing is held in memory.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use walpoint_storage::error::Result;
use walpoint_storage::object::ContentHash;

use super::super::entry::{Blocks, EntryContent, FileContent, FileEntry, LeafRun};
use super::super::geometry::BlockSize;
use super::super::hash::FileBeginning;
use super::super::sorter::{AsBytes, Sorter, nameless_file};
use super::scratch_error;

/// Length (big-endian, so that rows sort by it), hash, index block, entry in the index block.
const BY_HASH: usize = 8 + 32 + 4 + 4;

/// Length (big-endian), beginning.
const BY_BEGINNING: usize = 8 + 8;

/// Collects files.
#[derive(Debug)]
pub(super) struct ByHashBuilder {
    files: Sorter<AsBytes>,
    beginnings: Sorter<AsBytes>,
    scratch: PathBuf,
    /// Shorter files are not looked up: storing them again costs no more.
    shortest: u64,
}

/// Finds them.
#[derive(Debug)]
pub(super) struct ByHash {
    files: Rows<BY_HASH>,
    beginnings: Rows<BY_BEGINNING>,
}

/// Sorted rows in a scratch file.
#[derive(Debug)]
struct Rows<const LENGTH: usize> {
    count: u64,
    scratch: Option<File>,
}

impl ByHashBuilder {
    pub(super) fn new(scratch: &Path, block_size: BlockSize) -> Self {
        Self {
            files: Sorter::new(scratch),
            beginnings: Sorter::new(scratch),
            scratch: scratch.to_owned(),
            shortest: block_size.bytes(),
        }
    }

    /// Takes the files of an index block.
    pub(super) fn add(&mut self, index_block: usize, entries: &[FileEntry]) -> Result<()> {
        let index_block = u32::try_from(index_block).unwrap_or(u32::MAX);
        for (entry, n) in entries.iter().zip(0u32..) {
            let EntryContent::File(file) = &entry.content else { continue };
            // An index block that is damaged is stored again, so that it is reported again.
            if file.length < self.shortest || file.bad_pages > 0 {
                continue;
            }
            let mut row = Vec::with_capacity(BY_BEGINNING);
            row.extend_from_slice(&file.length.to_be_bytes());
            row.extend_from_slice(&beginning(file).0.to_be_bytes());
            self.beginnings.push(row).map_err(scratch_error)?;
            let mut row = Vec::with_capacity(BY_HASH);
            row.extend_from_slice(&file.length.to_be_bytes());
            row.extend_from_slice(&file.hash.0);
            row.extend_from_slice(&index_block.to_be_bytes());
            row.extend_from_slice(&n.to_be_bytes());
            self.files.push(row).map_err(scratch_error)?;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<ByHash> {
        let Self { files, beginnings, scratch, .. } = self;
        Ok(ByHash { files: Rows::of(files, &scratch)?, beginnings: Rows::of(beginnings, &scratch)? })
    }
}

/// How a file begins, as far as its entry shows.
fn beginning(file: &FileContent) -> FileBeginning {
    match &file.blocks {
        Blocks::Inline(list) => {
            let first = list.runs().next().and_then(|(_, hashes)| hashes.first().copied());
            first.map_or(FileBeginning::UNKNOWN, FileBeginning)
        }
        Blocks::Leaves(runs) => match runs.first() {
            Some(LeafRun::Stored { hash, .. }) => FileBeginning::of_leaf(hash),
            _ => FileBeginning::UNKNOWN,
        },
        Blocks::Nodes(_) => FileBeginning::UNKNOWN,
    }
}

impl ByHash {
    /// Whether any file has that length.
    pub(super) fn has_length(&self, length: u64) -> Result<bool> {
        self.beginnings.has(&length.to_be_bytes())
    }

    /// Whether any file of that length may begin so.
    pub(super) fn has_beginning(&self, length: u64, beginning: FileBeginning) -> Result<bool> {
        let has = |beginning: FileBeginning| {
            let mut row = [0; BY_BEGINNING];
            row[..8].copy_from_slice(&length.to_be_bytes());
            row[8..].copy_from_slice(&beginning.0.to_be_bytes());
            self.beginnings.has(&row)
        };
        Ok(has(beginning)? || has(FileBeginning::UNKNOWN)?)
    }

    /// A file of that length and hash: its index block, and which entry of it.
    pub(super) fn find(&self, length: u64, hash: &ContentHash) -> Result<Option<(usize, usize)>> {
        let mut wanted = [0; 40];
        wanted[..8].copy_from_slice(&length.to_be_bytes());
        wanted[8..].copy_from_slice(&hash.0);
        let row = self.files.first_not_before(&wanted)?.filter(|row| row.starts_with(&wanted));
        Ok(row.and_then(|row| {
            let number = |at: usize| row.get(at..at + 4)?.first_chunk().map(|b| u32::from_be_bytes(*b));
            Some((usize::try_from(number(40)?).ok()?, usize::try_from(number(44)?).ok()?))
        }))
    }
}

impl<const LENGTH: usize> Rows<LENGTH> {
    /// Writes them down.
    fn of(sorter: Sorter<AsBytes>, scratch: &Path) -> Result<Self> {
        let mut sorted = sorter.into_sorted().map_err(scratch_error)?;
        let Some(first) = sorted.next().map_err(scratch_error)? else {
            return Ok(Self { count: 0, scratch: None });
        };
        let mut out = BufWriter::new(nameless_file(scratch).map_err(scratch_error)?);
        out.write_all(&first).map_err(scratch_error)?;
        let mut count = 1;
        while let Some(row) = sorted.next().map_err(scratch_error)? {
            out.write_all(&row).map_err(scratch_error)?;
            count += 1;
        }
        let scratch = out.into_inner().map_err(|e| scratch_error(e.into_error()))?;
        Ok(Self { count, scratch: Some(scratch) })
    }

    /// Whether any row begins so.
    fn has(&self, key: &[u8]) -> Result<bool> {
        Ok(self.first_not_before(key)?.is_some_and(|row| row.starts_with(key)))
    }

    /// The first row that does not sort before `key`.
    fn first_not_before(&self, key: &[u8]) -> Result<Option<[u8; LENGTH]>> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.row(middle)? {
                Some(row) if row.as_slice() < key => low = middle + 1,
                _ => high = middle,
            }
        }
        self.row(low)
    }

    fn row(&self, n: u64) -> Result<Option<[u8; LENGTH]>> {
        let Some(file) = self.scratch.as_ref().filter(|_| n < self.count) else { return Ok(None) };
        let mut row = [0; LENGTH];
        let at = n * u64::try_from(LENGTH).unwrap_or(0);
        file.read_exact_at(&mut row, at).map_err(scratch_error)?;
        Ok(Some(row))
    }
}
