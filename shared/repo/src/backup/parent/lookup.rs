//! Files of the parent by their content: for files that are new at their path, as after CREATE DATABASE by file copy, or
//! when a tablespace was moved.
//!
//! A table of fixed rows in a scratch file, sorted by length and hash, searched by bisection. Nothing is held in memory.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::super::entry::{Content, Entry};
use super::super::geometry::BlockSize;
use super::super::sorter::{AsBytes, Sorter, nameless_file};
use super::scratch_error;
use crate::error::Result;
use crate::object::ContentHash;

/// Length (big-endian, so that rows sort by it), hash, page, entry in the page.
const ROW: usize = 8 + 32 + 4 + 4;
type Row = [u8; ROW];

/// Collects files.
#[derive(Debug)]
pub(super) struct ByHashBuilder {
    sorter: Sorter<AsBytes>,
    scratch: PathBuf,
    /// Shorter files are not looked up: storing them again costs no more.
    shortest: u64,
}

/// Finds them.
#[derive(Debug)]
pub(super) struct ByHash {
    rows: u64,
    scratch: Option<File>,
}

impl ByHashBuilder {
    pub(super) fn new(scratch: &Path, block_size: BlockSize) -> Self {
        Self { sorter: Sorter::new(scratch), scratch: scratch.to_owned(), shortest: block_size.bytes() }
    }

    /// Takes the files of a page.
    pub(super) fn add(&mut self, page: usize, entries: &[Entry]) -> Result<()> {
        let page = u32::try_from(page).unwrap_or(u32::MAX);
        for (entry, n) in entries.iter().zip(0u32..) {
            let Content::File(file) = &entry.content else { continue };
            // A page that is damaged is stored again, so that it is reported again.
            if file.length < self.shortest || file.bad_pages > 0 {
                continue;
            }
            let mut row = Vec::with_capacity(ROW);
            row.extend_from_slice(&file.length.to_be_bytes());
            row.extend_from_slice(&file.hash.0);
            row.extend_from_slice(&page.to_be_bytes());
            row.extend_from_slice(&n.to_be_bytes());
            self.sorter.push(row).map_err(scratch_error)?;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<ByHash> {
        let mut sorted = self.sorter.into_sorted().map_err(scratch_error)?;
        let Some(first) = sorted.next().map_err(scratch_error)? else {
            return Ok(ByHash { rows: 0, scratch: None });
        };
        let mut out = BufWriter::new(nameless_file(&self.scratch).map_err(scratch_error)?);
        out.write_all(&first).map_err(scratch_error)?;
        let mut rows = 1;
        while let Some(row) = sorted.next().map_err(scratch_error)? {
            out.write_all(&row).map_err(scratch_error)?;
            rows += 1;
        }
        let scratch = out.into_inner().map_err(|e| scratch_error(e.into_error()))?;
        Ok(ByHash { rows, scratch: Some(scratch) })
    }
}

impl ByHash {
    /// Whether any file has that length.
    pub(super) fn has_length(&self, length: u64) -> Result<bool> {
        let first = self.first_not_before(&length.to_be_bytes())?;
        Ok(first.is_some_and(|row| row.starts_with(&length.to_be_bytes())))
    }

    /// A file of that length and hash: its page, and which entry of it.
    pub(super) fn find(&self, length: u64, hash: &ContentHash) -> Result<Option<(usize, usize)>> {
        let mut wanted = [0; 40];
        wanted[..8].copy_from_slice(&length.to_be_bytes());
        wanted[8..].copy_from_slice(&hash.0);
        let row = self.first_not_before(&wanted)?.filter(|row| row.starts_with(&wanted));
        Ok(row.and_then(|row| {
            let number = |at: usize| row.get(at..at + 4)?.first_chunk().map(|b| u32::from_be_bytes(*b));
            Some((usize::try_from(number(40)?).ok()?, usize::try_from(number(44)?).ok()?))
        }))
    }

    /// The first row that does not sort before `key`.
    fn first_not_before(&self, key: &[u8]) -> Result<Option<Row>> {
        let (mut low, mut high) = (0, self.rows);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.row(middle)? {
                Some(row) if row.as_slice() < key => low = middle + 1,
                _ => high = middle,
            }
        }
        self.row(low)
    }

    fn row(&self, n: u64) -> Result<Option<Row>> {
        let Some(file) = self.scratch.as_ref().filter(|_| n < self.rows) else { return Ok(None) };
        let mut row = [0; ROW];
        let at = n * u64::try_from(ROW).unwrap_or(0);
        file.read_exact_at(&mut row, at).map_err(scratch_error)?;
        Ok(Some(row))
    }
}
