//! The file table while it grows: rows in any order from any thread, and what is counted over them.

use std::path::Path;
use std::sync::Arc;

use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::object::Codec;

use super::super::blocks::BlockList;
use super::super::entry::{Blocks, EntryContent, FileEntry};
use super::super::facts::Totals;
use super::super::findings::{MAX_FINDINGS, PageFinding};
use super::super::geometry::BlockSize;
use super::super::index_block::{INDEX_BLOCK_BYTES, IndexBlockBuilder};
use super::super::live::{Live, count, count_blocks};
use super::super::location::{BackupRef, PackNo, RefWriter};
use super::super::manifest::IndexBlockRef;
use super::super::pack::FrameKind;
use super::super::parent::{ParentTable, Parents};
use super::super::path::{TablePath, TreeCheck};
use super::super::progress::encode_range;
use super::super::sorter::{ByPath, Sorter};
use super::super::wire::{Input, Malformed};
use super::sink::PackSink;

/// Rows that were added, and what they add up to.
#[derive(Debug)]
pub(super) struct TableWriter {
    sorter: Sorter<ByPath>,
    /// What backups the rows' indexes stand for, one table for all of them.
    refs: RefWriter,
    live: Live,
    totals: Totals,
    findings: Vec<PageFinding>,
    /// Ranges that no progress object names, up to [`FRESH`] bytes, and what backups their indexes stand for.
    fresh: Vec<FreshRange>,
    fresh_len: usize,
    fresh_refs: RefWriter,
}

/// What of the ranges since the last progress object is remembered. The next backup reads what a dead one stored; what
/// is not remembered it stores again.
const FRESH: usize = 4 << 20;

/// A range that this backup stored something of.
#[derive(Debug)]
struct FreshRange {
    /// The highest of its packs.
    newest: PackNo,
    row: Vec<u8>,
}

/// Ranges for a progress object.
#[derive(Debug)]
pub(super) struct Fresh {
    pub(super) ranges: Vec<Vec<u8>>,
    pub(super) refs: RefWriter,
}

/// What the blocks of a file add up to.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Counted {
    /// Blocks that are not all zero.
    pub(super) stored: u64,
    /// Bytes of those that this backup stored.
    pub(super) new_bytes: u64,
    /// Bytes of those that another backup has.
    pub(super) reused_bytes: u64,
}

/// A finished file table.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) index_blocks: Vec<IndexBlockRef>,
    pub(super) live: Live,
    pub(super) totals: Totals,
    pub(super) findings: Vec<PageFinding>,
}

impl TableWriter {
    pub(super) fn new(scratch: &Path) -> Self {
        Self {
            sorter: Sorter::new(scratch),
            refs: RefWriter::default(),
            live: Live::default(),
            totals: Totals::default(),
            findings: Vec::new(),
            fresh: Vec::new(),
            fresh_len: 0,
            fresh_refs: RefWriter::default(),
        }
    }

    /// Remembers a range for a progress object, if something of it is in a pack of this backup.
    pub(super) fn note(&mut self, path: &TablePath, leaf: u64, bytes: u64, blocks: &BlockList) {
        let numbers = (u32::try_from(leaf), u32::try_from(bytes));
        let (Some(newest), (Ok(leaf), Ok(bytes))) = (blocks.highest_pack(BackupRef::OWN), numbers) else {
            return;
        };
        if self.fresh_len >= FRESH {
            return;
        }
        let mut row = Vec::new();
        encode_range(path, leaf, bytes, blocks, &mut row, &mut self.fresh_refs);
        self.fresh_len += row.len();
        self.fresh.push(FreshRange { newest, row });
    }

    /// The ranges since the last call that lie in packs below that number.
    pub(super) fn take_fresh(&mut self, below: PackNo) -> Fresh {
        let (now, later) = std::mem::take(&mut self.fresh).into_iter().partition(|s| s.newest < below);
        self.fresh = later;
        let ranges: Vec<_> = Vec::into_iter(now).map(|range: FreshRange| range.row).collect();
        self.fresh_len -= ranges.iter().map(Vec::len).sum::<usize>();
        Fresh { ranges, refs: self.fresh_refs.clone() }
    }

    /// Adds a row. `live` counts the packs that its leaves and blocks are in; inline blocks are counted here.
    pub(super) fn add(&mut self, entry: &FileEntry, live: &Live, findings: Vec<PageFinding>) -> Result<()> {
        for (pack, units) in live {
            let used = self.live.entry(*pack).or_default();
            *used = used.saturating_add(*units);
        }
        match &entry.content {
            EntryContent::File(file) => {
                self.totals.files += 1;
                self.totals.bytes += file.length;
                self.totals.bad_pages += u64::from(file.bad_pages);
                if let Blocks::Inline(list) = &file.blocks {
                    count_blocks(&mut self.live, list);
                }
            }
            _ => self.totals.others += 1,
        }
        let room = MAX_FINDINGS.saturating_sub(self.findings.len());
        self.findings.extend(findings.into_iter().take(room));
        let mut row = Vec::new();
        entry.encode(&mut row, &mut self.refs);
        self.sorter.push(row).map_err(scratch_error)
    }

    /// Counts blocks of some file.
    pub(super) fn count_blocks(&mut self, counted: Counted) {
        self.totals.blocks += counted.stored;
        self.totals.new_bytes += counted.new_bytes;
        self.totals.reused_bytes += counted.reused_bytes;
    }

    /// Sorts the rows, proves that they form trees, and stores them as index blocks. Blocks the thread.
    pub(super) fn finish(
        mut self,
        sink: &Arc<PackSink>,
        parents: &Parents,
        block_size: BlockSize,
    ) -> Result<Finished> {
        let mut rows = self.sorter.into_sorted().map_err(scratch_error)?;
        let mut writer = IndexBlockWriter {
            sink,
            parents,
            parent: parents.table(),
            index_block: IndexBlockBuilder::default(),
            first: None,
            index_blocks: Vec::new(),
        };
        let (mut tree, mut codec) = (TreeCheck::default(), sink.codec());
        while let Some(row) = rows.next().map_err(scratch_error)? {
            let entry = FileEntry::decode(&mut Input::new(&row), self.refs.used(), block_size);
            let entry = entry.map_err(|e| broken(&e))?;
            tree.next(&entry.path, entry.content.is_directory()).map_err(|e| broken(&e))?;
            writer.push(&entry, &mut codec, &mut self.live)?;
        }
        writer.close(&mut codec, &mut self.live)?;
        self.findings.sort_by(|a, b| (&a.path, a.block).cmp(&(&b.path, b.block)));
        let Self { live, totals, findings, .. } = self;
        Ok(Finished { index_blocks: writer.index_blocks, live, totals, findings })
    }
}

/// Cuts rows into index blocks, and where the parent cut if that is sensible: so an index block in which nothing changed is the parent's.
struct IndexBlockWriter<'a> {
    sink: &'a Arc<PackSink>,
    parents: &'a Parents,
    parent: Option<&'a ParentTable>,
    index_block: IndexBlockBuilder,
    first: Option<TablePath>,
    index_blocks: Vec<IndexBlockRef>,
}

impl IndexBlockWriter<'_> {
    fn push(&mut self, entry: &FileEntry, codec: &mut Codec, live: &mut Live) -> Result<()> {
        // Without a look at the parent one more file would shift all that follows; and an index block that shrank is joined to
        // the next one before it is too short to be worth one.
        if self.parent.is_some_and(|parent| parent.begins_index_block(&entry.path))
            && (self.index_block.len() >= INDEX_BLOCK_BYTES / 4 || self.is_the_parents()?)
        {
            self.close(codec, live)?;
        }
        self.index_block.push(entry);
        self.first.get_or_insert_with(|| entry.path.clone());
        let limit = if self.parent.is_some() { 3 * INDEX_BLOCK_BYTES } else { INDEX_BLOCK_BYTES };
        if self.index_block.len() >= limit { self.close(codec, live) } else { Ok(()) }
    }

    /// Whether the open index block is one of the parent's. Asked of short index blocks only.
    fn is_the_parents(&self) -> Result<bool> {
        let (Some(first), Some(parent)) = (&self.first, self.parent) else { return Ok(false) };
        if !parent.begins_index_block(first) {
            return Ok(false);
        }
        let plain = self.index_block.encode(&self.parents.backups).map_err(|e| broken(&e))?;
        Ok(parent.same_index_block(first, self.index_block.entries(), &plain).is_some())
    }

    fn close(&mut self, codec: &mut Codec, live: &mut Live) -> Result<()> {
        let Some(first) = self.first.take() else { return Ok(()) };
        let entries = self.index_block.entries();
        let plain = self.index_block.finish(&self.parents.backups).map_err(|e| broken(&e))?;
        let same = self.parent.and_then(|parent| parent.same_index_block(&first, entries, &plain));
        let at = match same.filter(|at| self.parents.ledger.may_use(*at)) {
            Some(at) => at,
            None => self.sink.append(FrameKind::IndexBlock, &plain, &[], codec)?,
        };
        count(live, at, 1);
        self.index_blocks.push(IndexBlockRef { at, entries, first });
        Ok(())
    }
}

fn scratch_error(source: std::io::Error) -> RepoError {
    RepoError::Io { what: "the scratch file that sorts the file table".to_owned(), source }
}

/// The caller gave rows that cannot be a file table.
fn broken(error: &Malformed) -> RepoError {
    RepoError::Internal(format!("the file table of the backup cannot be written: {error}"))
}
