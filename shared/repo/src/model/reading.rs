//! Restores: whole, and over files that are there already.

use std::collections::BTreeMap;

use futures_util::FutureExt;
use rand::Rng;
use rand::seq::IteratorRandom;
use walpoint_base::BackupId;
use walpoint_storage::error::{RepoError, Result};

use super::cluster::Files;
use super::world::{Made, Readable, World};
use crate::backup::tests::restore;
use crate::backup::{BackupReader, Backups, EntryContent, WindowLimits};

/// What was restored, by path.
type Restored = BTreeMap<Vec<u8>, Vec<u8>>;

/// Reads a backup over what is there, as a repair of a data directory does: only blocks that differ.
async fn repair(reader: &BackupReader, limits: WindowLimits, there: &Files) -> Result<Restored> {
    let (mut restored, size) = (Restored::new(), reader.block_size());
    let mut windows = reader.windows(limits);
    while let Some(window) = windows.next().await? {
        let parts = window.parts();
        for part in parts {
            let path = part.entry.path.path.as_bytes();
            let EntryContent::File(file) = &part.entry.content else { continue };
            if part.begins {
                let old = there.get(std::str::from_utf8(path).unwrap());
                let mut bytes = old.map_or_else(Vec::new, |bytes| bytes.to_vec());
                bytes.resize(usize::try_from(file.length).unwrap(), 0);
                restored.insert(path.to_vec(), bytes);
            }
        }
        let mut stored: Vec<Vec<u64>> = parts.iter().map(|_| Vec::new()).collect();
        let units = window.units_of(|part, number, hash| {
            stored[part].push(number);
            let bytes = &restored[parts[part].entry.path.path.as_bytes()];
            let start = usize::try_from(number * size.bytes()).unwrap();
            let end = bytes.len().min(start + size.as_usize());
            reader.hashing().block(&bytes[start..end]) != hash
        });
        // What is not stored is zero.
        for (part, mut numbers) in parts.iter().zip(stored) {
            let Some(bytes) = restored.get_mut(part.entry.path.path.as_bytes()) else { continue };
            numbers.sort_unstable();
            for start in part.range.clone().step_by(size.as_usize()) {
                if numbers.binary_search(&(start / size.bytes())).is_err() {
                    let start = usize::try_from(start).unwrap();
                    let end = bytes.len().min(start + size.as_usize());
                    bytes[start..end].fill(0);
                }
            }
        }
        for unit in units {
            let fetched = reader.fetch(&unit).await?;
            reader.scatter::<RepoError>(&unit, &fetched, |piece| {
                let bytes = restored.get_mut(parts[piece.part].entry.path.path.as_bytes()).unwrap();
                let start = usize::try_from(piece.offset).unwrap();
                bytes[start..start + piece.bytes.len()].copy_from_slice(piece.bytes);
                Ok(())
            })?;
        }
    }
    Ok(restored)
}

/// Reads a backup in one of the two ways.
async fn read(
    backups: &Backups,
    id: BackupId,
    limits: WindowLimits,
    over: Option<&Files>,
) -> Result<Restored> {
    let reader = backups.open(id).await?;
    match over {
        None => restore(&reader, limits).boxed_local().await,
        Some(there) => repair(&reader, limits, there).boxed_local().await,
    }
}

impl World {
    /// Restores one of the backups.
    pub(super) async fn restore_one(&mut self) {
        let Some(id) = self.made.keys().copied().choose(&mut self.rng) else { return };
        self.restore(id).boxed_local().await;
    }

    /// Restores every backup.
    pub(super) async fn restore_all(&mut self) {
        let ids: Vec<BackupId> = self.made.keys().copied().collect();
        for id in ids {
            self.restore(id).boxed_local().await;
        }
    }

    /// Restores a backup and compares. An error is one only where damage explains it; then it is returned.
    pub(super) async fn restore(&mut self, id: BackupId) -> Option<RepoError> {
        let limits = match self.rng.random_bool(0.5) {
            true => WindowLimits::default(),
            false => {
                WindowLimits { blocks: self.rng.random_range(1..3000), entries: self.rng.random_range(1..20) }
            }
        };
        let over = self.rng.random_bool(0.4).then(|| {
            let others = self.made.values().map(|made| &made.files).chain([&self.cluster.files]);
            others.choose(&mut self.rng).cloned().unwrap_or_default()
        });
        let way = if over.is_some() { "over what is there" } else { "whole" };
        let backups = self.backups().await;
        let result = read(&backups, id, limits, over.as_ref()).boxed_local().await;
        let Made { files, packs, manifest, .. } = &self.made[&id];
        let hurt = *manifest != Readable::All || packs.iter().any(|pack| self.damaged.contains(pack));
        match result {
            Ok(restored) => {
                assert_eq!(*manifest, Readable::All, "{id} restores by a damaged manifest");
                compare(id, way, &restored, files);
                None
            }
            Err(error @ (RepoError::Corrupt { .. } | RepoError::NotFound { .. })) if hurt => Some(error),
            Err(error) => panic!("{id} does not restore ({way}): {error}"),
        }
    }
}

/// Holds what was restored against what it must be.
fn compare(id: BackupId, way: &str, restored: &Restored, files: &Files) {
    for (path, bytes) in restored {
        let path = std::str::from_utf8(path).unwrap();
        let right = files.get(path).unwrap_or_else(|| panic!("{id} restores {path}, which was not there"));
        assert_eq!(bytes.len(), right.len(), "{id}: the length of {path}, restored {way}");
        let differs = bytes.iter().zip(right.iter()).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{id}: {path} differs there, restored {way}");
    }
    let missing: Vec<&String> = files.keys().filter(|path| !restored.contains_key(path.as_bytes())).collect();
    assert!(missing.is_empty(), "{id} restores without {missing:?}");
}
