//! Reading table frames (leaves, nodes) of other backups one by one, in requests that serve many.
//!
//! Leaves of files that are neighbours in the file table lie close together, and so they are asked for: chunks of packs
//! are kept for a while, so that the number of requests follows the bytes of the tables, not the number of files.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::OnceCell;
use walpoint_base::BackupId;
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::object::Codec;

use super::super::catalog::Backups;
use super::super::location::{BackupRef, FrameRef, PackNo};
use super::super::pack::FrameKind;
use super::super::read::packs::OpenPack;

/// What is read of a pack at a time.
const CHUNK: u64 = 512 << 10;
/// Chunks that are kept: 6 MiB.
const KEPT_CHUNKS: usize = 12;
/// Directories that are kept: those of table packs are short.
const HELD_PACKS: usize = 16;

type PackName = (BackupRef, PackNo);

/// Kept things by name, the most recently used one last. Who asks for one that is on its way waits for it.
#[derive(Debug)]
struct Recent<K, V> {
    limit: usize,
    held: Mutex<Vec<(K, Arc<OnceCell<V>>)>>,
}

impl<K: PartialEq, V> Recent<K, V> {
    fn new(limit: usize) -> Self {
        Self { limit, held: Mutex::default() }
    }

    fn cell(&self, name: K) -> Arc<OnceCell<V>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match held.iter().position(|(known, _)| *known == name) {
            Some(at) => held.remove(at),
            None => (name, Arc::default()),
        };
        if held.len() >= self.limit {
            held.remove(0);
        }
        let cell = Arc::clone(&found.1);
        held.push(found);
        cell
    }
}

/// Reads frames of the packs of some backups. Its calls block: only for threads that may.
#[derive(Debug)]
pub(super) struct Frames {
    backups: Backups,
    runtime: tokio::runtime::Handle,
    packs: Recent<PackName, Arc<OpenPack>>,
    chunks: Recent<(PackName, u64), Bytes>,
}

impl Frames {
    pub(super) fn new(backups: &Backups) -> Self {
        Self {
            backups: backups.clone(),
            runtime: tokio::runtime::Handle::current(),
            packs: Recent::new(HELD_PACKS),
            chunks: Recent::new(KEPT_CHUNKS),
        }
    }

    /// The plain content of a frame, in a pack of `id` that has `size` bytes.
    pub(super) fn read(&self, kind: FrameKind, at: FrameRef, id: BackupId, size: u32) -> Result<Vec<u8>> {
        self.runtime.block_on(async {
            let name = (at.backup, at.pack);
            let key = self.backups.paths().pack(id, at.pack.0);
            let cell = self.packs.cell(name);
            let pack = cell.get_or_try_init(|| OpenPack::read(&self.backups, &key, size)).await?;
            let range = pack.directory.range(pack.frame(at.frame, kind)?);
            let (mut bytes, mut next) = (Vec::new(), range.start);
            while next < range.end {
                let number = next / CHUNK;
                let begin = number * CHUNK;
                let end = (begin + CHUNK).min(u64::from(size));
                let cell = self.chunks.cell((name, number));
                let chunk = cell
                    .get_or_try_init(|| async {
                        Ok::<_, RepoError>(self.backups.store().get_range(&key, begin..end).await?.bytes)
                    })
                    .await?;
                let cut = |at: u64| usize::try_from(at.saturating_sub(begin)).unwrap_or(usize::MAX);
                let piece = chunk.get(cut(next)..cut(range.end.min(end)));
                let short = || RepoError::corrupt(&key, "it is shorter than its directory says");
                bytes.extend_from_slice(piece.ok_or_else(short)?);
                next = end;
            }
            let mut plain = Vec::new();
            pack.open(at.frame, &bytes, &mut Codec::for_opening(), &mut plain)?;
            Ok(plain)
        })
    }
}
