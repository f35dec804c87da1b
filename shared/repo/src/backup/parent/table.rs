//! The parent's file table, copied to a scratch file: every file of the new backup looks for itself in it, in whatever order
//! the cluster is read.
//!
//! In memory is a line for each page. The scratch file has no name, so a crash leaves nothing behind.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use walpoint_base::BackupId;
use walpoint_storage::error::{RepoError, Result};

use super::super::entry::{EntryContent, FileContent, FileEntry};
use super::super::geometry::BlockSize;
use super::super::hash::FileBeginning;
use super::super::location::{BackupRef, FrameRef};
use super::super::manifest::PageRef;
use super::super::pack::FrameKind;
use super::super::page::decode_page;
use super::super::path::TablePath;
use super::super::read::BackupReader;
use super::super::sorter::nameless_file;
use super::super::wire::Malformed;
use super::lookup::{ByHash, ByHashBuilder};
use super::scratch_error;

/// Pages that are asked for at once.
const AT_ONCE: usize = 64;

/// A page of the table.
#[derive(Debug)]
struct Page {
    first: TablePath,
    entries: u32,
    /// Where it is in the repository.
    at: FrameRef,
    /// The hash of its plain content: equal content under the same path is the same page.
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
    pages: Vec<Page>,
    by_hash: ByHash,
    block_size: BlockSize,
}

/// The page that was looked at last, taken apart. One for each thread.
#[derive(Default, Debug)]
pub(in crate::backup) struct CachedPage {
    page: Option<usize>,
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
        let (mut pages, mut end) = (Vec::new(), 0u64);
        let mut by_hash = ByHashBuilder::new(scratch, block_size);
        for some in reader.manifest().pages.chunks(AT_ONCE) {
            let places: Vec<FrameRef> = some.iter().map(|page| page.at).collect();
            let first = pages.len();
            let mut copied: Vec<Option<Page>> = some.iter().map(|_| None).collect();
            let take = |n: usize, plain: &[u8]| {
                let (Some(page), Some(slot)) = (some.get(n), copied.get_mut(n)) else { return Ok(()) };
                let entries = decode_page(plain, backups, block_size);
                let entries = entries.and_then(|entries| is_meant(page, &entries).map(|()| entries));
                let entries = entries.map_err(|e| reader.corrupt(&e))?;
                by_hash.add(first + n, &entries)?;
                file.write_all_at(plain, end).map_err(scratch_error)?;
                let backup = map.get(usize::from(page.at.backup.0)).copied();
                let backup = backup.ok_or_else(|| RepoError::Internal("a page of nowhere".to_owned()))?;
                *slot = Some(Page {
                    first: page.first.clone(),
                    entries: page.entries,
                    at: FrameRef { backup, ..page.at },
                    digest: blake3::hash(plain),
                    offset: end,
                    length: plain.len(),
                });
                end += u64::try_from(plain.len()).unwrap_or(0);
                Ok(())
            };
            reader.tables(FrameKind::Page, &places, take).await?;
            pages.extend(copied.into_iter().flatten());
        }
        let by_hash = by_hash.finish()?;
        Ok(Self { scratch: file, pages, by_hash, block_size })
    }

    /// The file at that path, if there was one.
    pub(super) fn find(
        &self,
        path: &TablePath,
        backups: &[BackupId],
        cached: &mut CachedPage,
    ) -> Result<Option<FileContent>> {
        let after = self.pages.partition_point(|page| page.first <= *path);
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
        cached: &mut CachedPage,
    ) -> Result<Option<FileContent>> {
        let Some((page, entry)) = self.by_hash.find(length, hash)? else { return Ok(None) };
        self.load(page, backups, cached)?;
        let found = cached.entries.get(entry).and_then(file_of);
        Ok(found.filter(|file| file.length == length && file.hash == *hash))
    }

    fn load(&self, n: usize, backups: &[BackupId], cached: &mut CachedPage) -> Result<()> {
        if cached.page == Some(n) {
            return Ok(());
        }
        let Some(page) = self.pages.get(n) else { return Ok(()) };
        let mut plain = vec![0; page.length];
        self.scratch.read_exact_at(&mut plain, page.offset).map_err(scratch_error)?;
        let entries = decode_page(&plain, backups, self.block_size);
        let changed = |e| RepoError::Internal(format!("the scratch file changed: {e}"));
        cached.entries = entries.map_err(changed)?;
        cached.page = Some(n);
        Ok(())
    }

    /// Whether a page of the table begins with that path.
    pub(in crate::backup) fn begins_page(&self, path: &TablePath) -> bool {
        self.page(path).is_some()
    }

    /// The page that holds exactly this, if there is one: where it is in the repository.
    pub(in crate::backup) fn same_page(
        &self,
        first: &TablePath,
        entries: u32,
        plain: &[u8],
    ) -> Option<FrameRef> {
        let page = self.page(first).filter(|page| page.entries == entries)?;
        (page.digest == blake3::hash(plain)).then_some(page.at)
    }

    fn page(&self, first: &TablePath) -> Option<&Page> {
        let at = self.pages.binary_search_by(|page| page.first.cmp(first)).ok()?;
        self.pages.get(at)
    }
}

/// The page that the manifest means.
fn is_meant(page: &PageRef, entries: &[FileEntry]) -> Result<(), Malformed> {
    let right = u32::try_from(entries.len()) == Ok(page.entries)
        && entries.first().is_some_and(|first| first.path == page.first);
    right.then_some(()).ok_or_else(|| Malformed::new("a page of the file table is not the one that is meant"))
}

fn file_of(entry: &FileEntry) -> Option<FileContent> {
    match &entry.content {
        EntryContent::File(file) => Some(file.clone()),
        _ => None,
    }
}
