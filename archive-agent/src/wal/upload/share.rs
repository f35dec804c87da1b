//! A file's share of the network and of the memory for all ([`memory`](crate::wal::memory)), and the file made ready in it.
//!
//! No segment is read before there is memory for it. A share is as large as what segments took lately; one that takes more gives
//! it back and starts over in a share that is as large as it may have to be.

use std::sync::Arc;

use tokio::sync::SemaphorePermit;
use walpoint_base::WalFileName;
use walpoint_base::socket::FileIdentity;
use walpoint_repo::cpu;
use walpoint_repo::wal::{SegmentSealer, WalArchive};
use walpoint_storage::RepoError;

use super::{UploadError, UploadSource, Uploader};
use crate::wal::check::CheckError;
use crate::wal::disk;
use crate::wal::memory::{BUDGET, Directories, Purpose, WalMemory};
use crate::wal::prepare::{PrepareError, Prepared, Rules, prepare};
use crate::wal::read::OpenFile;

/// A file up to this length needs no share of the memory.
const SMALL: u64 = 64 << 10;

/// A share of the network, unless it is for a small file, and of the memory.
pub(super) struct Share<'a> {
    pub(super) _transfer: Option<SemaphorePermit<'a>>,
    pub(super) memory: WalMemory,
}

impl Uploader {
    /// Reads, checks and seals a file for these archives, in this share of the memory or, if that cannot grow as needed, in one
    /// that is as large as it may have to be.
    pub(super) async fn prepare(
        &self,
        file: &UploadSource,
        archives: Vec<WalArchive>,
        memory: WalMemory,
        rules: Rules,
    ) -> Result<(FileIdentity, Prepared, WalMemory), PrepareError> {
        let (of, purpose, most) = (Arc::clone(memory.of()), memory.purpose(), memory.most());
        match Self::prepare_in(file, archives.clone(), memory, rules).await {
            Err(PrepareError::NoMemory) => {
                tracing::debug!(file = %file.name, "it compresses less than those before it: starting over with more memory");
                let memory = WalMemory::wait_again(of, purpose, most).await;
                Self::prepare_in(file, archives, memory, rules).await
            }
            prepared => prepared,
        }
    }

    async fn prepare_in(
        file: &UploadSource,
        archives: Vec<WalArchive>,
        mut memory: WalMemory,
        rules: Rules,
    ) -> Result<(FileIdentity, Prepared, WalMemory), PrepareError> {
        let UploadSource { name, ref path, cluster, .. } = *file;
        let (directory, path) = (path.parent().unwrap_or(path).to_owned(), path.clone());
        let prepare = move || {
            // It waited for a core.
            disk::progresses();
            let open = cpu::without_core(|| OpenFile::open(&path, name, cluster.segment_size.bytes()))
                .map_err(CheckError::from)?;
            let prepared = prepare(&open, name, &cluster, rules, &archives, &mut memory)?;
            Ok((open.identity, prepared, memory))
        };
        // A directory that hangs keeps its own threads, and no core.
        disk::run(&directory, move || cpu::run_here(prepare)).await.map_err(RepoError::from)??
    }

    /// What a file needs of the memory for each repository, and for how many of them there is memory at once.
    pub(super) async fn share_of(&self, file: &UploadSource, targets: usize) -> (usize, usize) {
        let (path, directory) = (file.path.clone(), file.path.parent().unwrap_or(&file.path));
        let looked =
            disk::look(directory, move || std::fs::metadata(path).map_or(0, |meta| meta.len())).await;
        // Where the directory does not answer, reading it comes to that.
        let size = looked.unwrap_or_default();
        if size <= SMALL {
            return (0, targets.max(1));
        }
        let unit = SegmentSealer::most_held(file.cluster.segment_size).clamp(1, BUDGET);
        (unit, BUDGET / unit)
    }

    /// What a file will probably take of the `unit` that it takes at the most, in each repository.
    pub(super) fn expected(&self, file: &UploadSource, unit: usize) -> usize {
        match file.name {
            WalFileName::Segment(_) => self.habit.expects(unit),
            _ => unit,
        }
    }

    /// Where what is done for a file reads.
    pub(super) fn directories(&self, file: &UploadSource) -> Directories {
        Arc::new([self.pgdata.clone(), file.path.parent().unwrap_or(&file.path).to_owned()])
    }

    /// A share of the network, and of the memory that so many repositories need: what the file will probably take for each, `unit`
    /// at the most.
    pub(super) async fn share(
        &self,
        file: &UploadSource,
        unit: usize,
        repositories: usize,
    ) -> Result<Share<'_>, UploadError> {
        if unit == 0 {
            return Ok(Share { _transfer: None, memory: WalMemory::unlimited(Purpose::Acknowledging) });
        }
        let transfer = self.transfers.acquire().await.map_err(UploadError::permanent)?;
        let all = |bytes: usize| bytes.saturating_mul(repositories);
        let (of, expected) = (self.directories(file), self.expected(file, unit));
        let memory = WalMemory::wait_for(of, Purpose::Acknowledging, all(expected), all(unit)).await;
        Ok(Share { _transfer: Some(transfer), memory })
    }
}
