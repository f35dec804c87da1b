//! What all threads share that copy files.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use tokio_util::sync::CancellationToken;
use walpoint_pg::control::ControlFile;
use walpoint_runtime::progress::ByteProgress;

use super::owners::SeenOwners;
use super::pages::PageCheck;

/// What all threads share that copy files.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Bytes of a block of the backup.
    pub(crate) block_size: usize,
    /// How pages are verified; `None` in a cluster without checksums.
    pub(crate) pages: Option<PageCheck>,
    /// Cancelled when nothing they do counts any more.
    pub(crate) stop: CancellationToken,
    /// Counts bytes.
    pub(crate) progress: ByteProgress,
    /// Who owns what was read.
    pub(crate) owners: Mutex<SeenOwners>,
    /// What happened on the way.
    pub(crate) counts: CopyCounts,
}

/// What happened on the way.
#[derive(Debug, Default)]
pub(crate) struct CopyCounts {
    /// Bytes read.
    pub(crate) read: AtomicU64,
    /// Files that vanished before they were opened.
    pub(crate) vanished: AtomicU64,
    /// Files that became shorter while they were read.
    pub(crate) shrunk: AtomicU64,
    /// Bad pages of what a server sent.
    pub(crate) bad_sent: AtomicU64,
}

impl Shared {
    /// Of a backup of blocks of that size.
    pub(crate) fn new(
        block_size: u32,
        pages: Option<PageCheck>,
        stop: CancellationToken,
        progress: ByteProgress,
    ) -> anyhow::Result<Self> {
        let block_size = usize::try_from(block_size)?;
        let (owners, counts) = Default::default();
        Ok(Self { block_size, pages, stop, progress, owners, counts })
    }

    /// Whether all pages carried checksums, from the first one to the `pg_control` that was copied last.
    pub(crate) fn had_checksums(&self, control: &ControlFile) -> bool {
        self.pages.as_ref().is_some_and(|pages| !pages.in_force.has_ended()) && control.has_checksums()
    }
}
