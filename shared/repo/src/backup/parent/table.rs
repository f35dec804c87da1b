//! The parent's file table, copied to a scratch file: every file of the new backup looks for itself in it, in whatever order
//! the cluster is read.
//!
//! In memory is a line for each index block. The scratch file has no name, so a crash leaves nothing behind.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use walpoint_base::BackupId;
use walpoint_storage::error::{RepoError, Result};

use super::super::entry::{EntryContent, FileContent, FileEntry};
use super::super::geometry::BlockSize;
use super::super::hash::FileBeginning;
use super::super::index_block::decode_index_block;
use super::super::location::{BackupRef, FrameRef};
use super::super::manifest::IndexBlockRef;
use super::super::pack::FrameKind;
use super::super::path::TablePath;
use super::super::read::BackupReader;
use super::super::sorter::nameless_file;
use super::super::wire::Malformed;
use super::lookup::{ByHash, ByHashBuilder};
use super::scratch_error;

/// Index blocks that are asked for at once.
const AT_ONCE: usize = 64;

/// An index block of the table.
#[derive(Debug)]
struct IndexBlock {
    first: TablePath,
    entries: u32,
    /// Where it is in the repository.
    at: FrameRef,
    /// The hash of its plain content: equal content under the same path is the same index block.
    digest: blake3::Hash,
    /// Where its plain content is in the scratch file.
    offset: u64,
    length: usize,
}

/// The file table of a finished backup.
#[derive(Debug)]
pub(in crate::backup) struct ParentTable {
    scratch: File,
    /// In the order of paths.
    index_blocks: Vec<IndexBlock>,
    by_hash: ByHash,
    block_size: BlockSize,
}

/// The index block that was looked at last, taken apart. One for each thread.
#[derive(Default, Debug)]
pub(in crate::backup) struct CachedIndexBlock {
    index_block: Option<usize>,
    entries: Vec<FileEntry>,
}

impl ParentTable {
    /// Copies the table. `backups` are those that the new backup knows, `map` gives for each backup of the manifest its
    /// place among them.
    pub(super) async fn copy(
        reader: &BackupReader,
        backups: &[BackupId],
        map: &[BackupRef],
        scratch: &Path,
    ) -> Result<Self> {
        let block_size = reader.block_size();
        let file = nameless_file(scratch).map_err(scratch_error)?;
        let (mut index_blocks, mut end) = (Vec::new(), 0u64);
        let mut by_hash = ByHashBuilder::new(scratch, block_size);
        for some in reader.manifest().index_blocks.chunks(AT_ONCE) {
            let places: Vec<FrameRef> = some.iter().map(|index_block| index_block.at).collect();
            let first = index_blocks.len();
            let mut copied: Vec<Option<IndexBlock>> = some.iter().map(|_| None).collect();
            let take = |n: usize, plain: &[u8]| {
                let (Some(index_block), Some(slot)) = (some.get(n), copied.get_mut(n)) else { return Ok(()) };
                let entries = decode_index_block(plain, backups, block_size);
                let entries = entries.and_then(|entries| is_meant(index_block, &entries).map(|()| entries));
                let entries = entries.map_err(|e| reader.corrupt(&e))?;
                by_hash.add(first + n, &entries)?;
                file.write_all_at(plain, end).map_err(scratch_error)?;
                let backup = map.get(usize::from(index_block.at.backup.0)).copied();
                let backup =
                    backup.ok_or_else(|| RepoError::Internal("an index block of nowhere".to_owned()))?;
                *slot = Some(IndexBlock {
                    first: index_block.first.clone(),
                    entries: index_block.entries,
                    at: FrameRef { backup, ..index_block.at },
                    digest: blake3::hash(plain),
                    offset: end,
                    length: plain.len(),
                });
                end += u64::try_from(plain.len()).unwrap_or(0);
                Ok(())
            };
            reader.tables(FrameKind::IndexBlock, &places, take).await?;
            index_blocks.extend(copied.into_iter().flatten());
        }
        let by_hash = by_hash.finish()?;
        Ok(Self { scratch: file, index_blocks, by_hash, block_size })
    }

    /// The file at that path, if there was one.
    pub(super) fn find(
        &self,
        path: &TablePath,
        backups: &[BackupId],
        cached: &mut CachedIndexBlock,
    ) -> Result<Option<FileContent>> {
        let after = self.index_blocks.partition_point(|index_block| index_block.first <= *path);
        let Some(n) = after.checked_sub(1) else { return Ok(None) };
        self.load(n, backups, cached)?;
        let found = cached.entries.binary_search_by(|entry| entry.path.cmp(path)).ok();
        Ok(found.and_then(|at| file_of(cached.entries.get(at)?)))
    }

    /// Whether any file had that length.
    pub(super) fn has_length(&self, length: u64) -> Result<bool> {
        self.by_hash.has_length(length)
    }

    /// Whether any file of that length may begin so.
    pub(super) fn has_beginning(&self, length: u64, beginning: FileBeginning) -> Result<bool> {
        self.by_hash.has_beginning(length, beginning)
    }

    /// A file of that length and hash.
    pub(super) fn find_content(
        &self,
        length: u64,
        hash: &walpoint_storage::object::ContentHash,
        backups: &[BackupId],
        cached: &mut CachedIndexBlock,
    ) -> Result<Option<FileContent>> {
        let Some((index_block, entry)) = self.by_hash.find(length, hash)? else { return Ok(None) };
        self.load(index_block, backups, cached)?;
        let found = cached.entries.get(entry).and_then(file_of);
        Ok(found.filter(|file| file.length == length && file.hash == *hash))
    }

    fn load(&self, n: usize, backups: &[BackupId], cached: &mut CachedIndexBlock) -> Result<()> {
        if cached.index_block == Some(n) {
            return Ok(());
        }
        let Some(index_block) = self.index_blocks.get(n) else { return Ok(()) };
        let mut plain = vec![0; index_block.length];
        self.scratch.read_exact_at(&mut plain, index_block.offset).map_err(scratch_error)?;
        let entries = decode_index_block(&plain, backups, self.block_size);
        let changed = |e| RepoError::Internal(format!("the scratch file changed: {e}"));
        cached.entries = entries.map_err(changed)?;
        cached.index_block = Some(n);
        Ok(())
    }

    /// Whether an index block of the table begins with that path.
    pub(in crate::backup) fn begins_index_block(&self, path: &TablePath) -> bool {
        self.index_block(path).is_some()
    }

    /// The index block that holds exactly this, if there is one: where it is in the repository.
    pub(in crate::backup) fn same_index_block(
        &self,
        first: &TablePath,
        entries: u32,
        plain: &[u8],
    ) -> Option<FrameRef> {
        let index_block = self.index_block(first).filter(|index_block| index_block.entries == entries)?;
        (index_block.digest == blake3::hash(plain)).then_some(index_block.at)
    }

    fn index_block(&self, first: &TablePath) -> Option<&IndexBlock> {
        let at = self.index_blocks.binary_search_by(|index_block| index_block.first.cmp(first)).ok()?;
        self.index_blocks.get(at)
    }
}

/// The index block that the manifest means.
fn is_meant(index_block: &IndexBlockRef, entries: &[FileEntry]) -> Result<(), Malformed> {
    let right = u32::try_from(entries.len()) == Ok(index_block.entries)
        && entries.first().is_some_and(|first| first.path == index_block.first);
    right.then_some(()).ok_or_else(|| Malformed::new("an index block is not the one that is meant"))
}

fn file_of(entry: &FileEntry) -> Option<FileContent> {
    match &entry.content {
        EntryContent::File(file) => Some(file.clone()),
        _ => None,
    }
}
