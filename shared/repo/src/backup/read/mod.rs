//! Reading a backup: its entries, and the content of files in the order in which it lies in packs.

mod entries;
pub(in crate::backup) mod packs;
mod short_file;
mod unit;
mod window;

use std::sync::Arc;

use walpoint_base::BackupId;
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::Key;

pub use self::entries::Entries;
use self::packs::Packs;
pub use self::unit::{FetchedUnit, FilePiece, OpenUnit, PackUnit};
pub use self::window::{Outline, ReadWindow, WindowLimits, WindowPart, Windows, ZeroRun};
use super::catalog::Backups;
use super::entry::FileEntry;
use super::geometry::BlockSize;
use super::hash::{ContentHasher, Hashing};
use super::location::FrameRef;
use super::manifest::Manifest;
use super::pack::FrameKind;
use super::path::TablePath;
use super::wire::Malformed;

/// A finished backup, open for reading. Cheap to clone, usable from several tasks.
#[derive(Clone, Debug)]
pub struct BackupReader {
    manifest: Arc<Manifest>,
    packs: Arc<Packs>,
    hashing: Hashing,
    block_size: BlockSize,
    key: Key,
}

impl Backups {
    /// Opens a finished backup.
    pub async fn open(&self, id: BackupId) -> Result<BackupReader> {
        let manifest = self.manifest(id).await?;
        BackupReader::new(self, manifest).map_err(|e| RepoError::corrupt(&self.paths().manifest(id), e))
    }
}

impl BackupReader {
    pub(super) fn new(backups: &Backups, manifest: Manifest) -> Result<Self, Malformed> {
        let block_size = manifest.summary.facts.blocks()?;
        let key = backups.paths().manifest(manifest.summary.id);
        let manifest = Arc::new(manifest);
        let packs = Arc::new(Packs::new(backups, &manifest));
        Ok(Self { packs, hashing: Hashing::new(backups.sealer()), manifest, block_size, key })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The cluster's block size.
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// How content is hashed: to find out which blocks of a local file are right already.
    pub fn hashing(&self) -> &Hashing {
        &self.hashing
    }

    /// A hasher for a restored file, read from start to end, to compare with [`super::FileContent::hash`].
    pub fn content_hasher(&self) -> ContentHasher {
        ContentHasher::new(&self.hashing, self.block_size)
    }

    /// Every entry, in the order of paths: a directory before what is in it.
    pub fn entries(&self) -> Entries {
        Entries::new(self)
    }

    /// The content of all files, in windows of bounded size.
    pub fn windows(&self, limits: WindowLimits) -> Windows {
        Windows::new(self, limits)
    }

    /// One entry by its path: reads one index block. That its parents are directories is not proven here.
    pub async fn find(&self, path: &TablePath) -> Result<Option<FileEntry>> {
        let Some(index_block) = self.manifest.index_block_of(path) else { return Ok(None) };
        let entries = self.index_blocks(std::slice::from_ref(index_block)).await?;
        Ok(entries.into_iter().flatten().find(|entry| entry.path == *path))
    }

    /// Gives the plain content of table frames to `take`, with its place in `frames`: see [`Packs::tables`].
    pub(in crate::backup) async fn tables(
        &self,
        kind: FrameKind,
        frames: &[FrameRef],
        take: impl FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        self.packs.tables(kind, frames, take).await
    }

    pub(in crate::backup) fn corrupt(&self, what: &Malformed) -> RepoError {
        RepoError::corrupt(&self.key, format!("what it leads to is wrong: {what}"))
    }
}
