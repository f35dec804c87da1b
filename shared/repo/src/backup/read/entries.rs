//! The entries of a backup in the order of their paths, index block by index block, proven to form trees.

use std::collections::VecDeque;
use std::sync::Arc;

use walpoint_storage::error::{RepoError, Result};

use super::super::entry::FileEntry;
use super::super::index_block::decode_index_block;
use super::super::location::FrameRef;
use super::super::manifest::{IndexBlockRef, Manifest};
use super::super::pack::FrameKind;
use super::super::path::{Root, TreeCheck};
use super::super::wire::Malformed;
use super::BackupReader;

/// Index blocks that are read at once.
const AHEAD: usize = 64;

/// Hands out a backup's entries. Every one was checked: its path stays below its root, its parent is a directory that
/// came before it, and no path comes twice.
#[derive(Debug)]
pub struct Entries {
    reader: BackupReader,
    tree: TreeCheck,
    next_page: usize,
    ready: VecDeque<FileEntry>,
}

impl Entries {
    pub(super) fn new(reader: &BackupReader) -> Self {
        Self { reader: reader.clone(), tree: TreeCheck::default(), next_page: 0, ready: VecDeque::new() }
    }

    /// The next entry; `None` after the last one.
    pub async fn next(&mut self) -> Result<Option<FileEntry>> {
        if self.ready.is_empty() {
            self.read_pages().await?;
        }
        let Some(entry) = self.ready.pop_front() else { return Ok(None) };
        let manifest = &self.reader.manifest;
        let known_root = match entry.path.root {
            Root::Data => true,
            Root::Extra(n) => usize::from(n) < manifest.summary.facts.extra_paths.len(),
        };
        let checked = self.tree.next(&entry.path, entry.content.is_directory());
        let checked = checked.and_then(|()| {
            let unknown = || Malformed(format!("{} is relative to a path that is not listed", entry.path));
            known_root.then_some(()).ok_or_else(unknown)
        });
        checked.map_err(|e| self.reader.corrupt(&e))?;
        Ok(Some(entry))
    }

    async fn read_pages(&mut self) -> Result<()> {
        let manifest = Arc::clone(&self.reader.manifest);
        let rest = manifest.index_blocks.get(self.next_page..).unwrap_or_default();
        let index_blocks = rest.get(..AHEAD).unwrap_or(rest);
        self.next_page += index_blocks.len();
        for entries in self.reader.index_blocks(index_blocks).await? {
            self.ready.extend(entries);
        }
        Ok(())
    }
}

impl BackupReader {
    /// The entries of some index blocks, in their order.
    pub(super) async fn index_blocks(&self, index_blocks: &[IndexBlockRef]) -> Result<Vec<Vec<FileEntry>>> {
        let places: Vec<FrameRef> = index_blocks.iter().map(|index_block| index_block.at).collect();
        let mut decoded: Vec<Vec<FileEntry>> = index_blocks.iter().map(|_| Vec::new()).collect();
        let Manifest { backups, .. } = &*self.manifest;
        let take = |n: usize, plain: &[u8]| {
            let entries = decode_index_block(plain, backups, self.block_size).and_then(|entries| {
                let index_block = index_blocks.get(n).filter(|index_block| {
                    u32::try_from(entries.len()) == Ok(index_block.entries)
                        && entries.first().is_some_and(|first| first.path == index_block.first)
                });
                let stranger = || Malformed::new("an index block is not the one that is meant");
                index_block.map(|_| entries).ok_or_else(stranger)
            });
            let entries = entries.map_err(|e| self.corrupt(&e))?;
            let slot = decoded.get_mut(n);
            *slot.ok_or_else(|| RepoError::Internal("an index block too many was read".to_owned()))? =
                entries;
            Ok(())
        };
        self.packs.tables(FrameKind::IndexBlock, &places, take).await?;
        Ok(decoded)
    }
}
