//! Summaries of many finished backups in one object, so that a status of ten thousand takes some requests and not as many.
//!
//! Only copies: what is missing here, or cannot be read, is read from the manifests, and a backup is there if its manifest is
//! listed. Who finishes a backup, and `expire`, write the next object of the sequence when enough finished backups are in
//! none; objects with few entries are merged into it and deleted. A crash leaves both, which say the same.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use walpoint_base::BackupId;
use walpoint_storage::error::{RepoError, Result, found};
use walpoint_storage::layout::{ClusterObject, Key};
use walpoint_storage::object::{ObjectKind, ObjectReader, ObjectWriter, SealedObject, Sealer};
use walpoint_storage::store::NumberClaim;

use super::catalog::{Backups, ListedState, ManifestState};
use super::ending::Published;
use super::facts::BackupSummary;
use super::manifest::{EncodeError, cannot_write};
use super::wire::Malformed;

/// So many finished backups that are in no object are worth one.
pub(crate) const ENOUGH: usize = 32;
/// An object with fewer entries of backups that are still there is merged into the next one.
const FEW: usize = 512;
/// Plain bytes after which the next object is begun.
const FULL: usize = 4 << 20;
/// No object has more plain bytes.
const MAX_SUMMARIES: usize = 8 << 20;
/// Manifests that are looked at at the same time.
const AT_ONCE: usize = 16;
/// How often the next number is tried when others are faster.
const ATTEMPTS: u32 = 20;

/// What an object says.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    /// The numbers of objects whose entries are here too.
    #[serde(default)]
    replaces: BTreeSet<u64>,
    backups: Vec<BackupSummary>,
}

/// What was read of the sequence.
#[derive(Debug, Default)]
struct Known {
    summaries: BTreeMap<BackupId, BackupSummary>,
    /// The objects that count, with the backups in them.
    objects: Vec<(u64, Content)>,
    /// Objects that are replaced, or cannot be read.
    useless: Vec<u64>,
    next: u64,
}

impl Content {
    fn seal(&self, sealer: &Sealer, key: &Key) -> Result<SealedObject, EncodeError> {
        let json = serde_json::to_vec(self).map_err(|e| Malformed(format!("it cannot be written: {e}")))?;
        if json.len() > MAX_SUMMARIES {
            return Err(Malformed(format!("{} bytes are too many", json.len())).into());
        }
        let mut writer = ObjectWriter::new(sealer, ObjectKind::Summaries, key)?;
        writer.frames(&json, 1 << 20)?;
        Ok(writer.finish()?)
    }
}

impl Backups {
    /// What became of finished backups, in the order of `ids`. Of those that are in no summary object only the newest
    /// `unread` are read: `ids` come oldest first.
    pub async fn standings(
        &self,
        ids: &[BackupId],
        unread: usize,
    ) -> Result<Vec<(BackupId, Result<ManifestState>)>> {
        let mut known = match ids.len() {
            // Reading the manifests costs as much.
            0..ENOUGH => Known::default(),
            _ => self.known().await?,
        };
        let mut missing: Vec<BackupId> =
            ids.iter().filter(|id| !known.summaries.contains_key(id)).copied().collect();
        let missing = missing.split_off(missing.len().saturating_sub(unread));
        let read = stream::iter(missing).map(|id| async move { (id, self.standing(id).await) });
        let mut read: BTreeMap<BackupId, Result<ManifestState>> = read.buffered(AT_ONCE).collect().await;
        let each = ids.iter().filter_map(|id| {
            let known =
                known.summaries.remove(id).map(|summary| Ok(ManifestState::Finished(Box::new(summary))));
            Some((*id, known.or_else(|| read.remove(id))?))
        });
        Ok(each.collect())
    }

    /// Writes the summaries of finished backups that are in no object yet, if they are many; whether it did.
    pub async fn summarize(&self) -> Result<bool> {
        let listed = self.list().await?;
        let finished = listed.iter().filter(|one| matches!(one.state, ListedState::Finished(_)));
        let finished: BTreeSet<BackupId> = finished.map(|one| one.id).collect();
        if finished.len() < ENOUGH {
            return Ok(false);
        }
        let known = self.known().await?;
        let missing: Vec<BackupId> =
            finished.iter().filter(|id| !known.summaries.contains_key(id)).copied().collect();
        if missing.len() < ENOUGH {
            return Ok(false);
        }
        let mut fresh: Vec<BackupSummary> = Vec::new();
        let read = stream::iter(missing).map(|id| async move { self.standing(id).await });
        let mut read = read.buffered(AT_ONCE);
        while let Some(standing) = read.next().await {
            match standing {
                Ok(ManifestState::Finished(summary)) => fresh.push(*summary),
                // Opening a damaged one fails with the reason.
                Ok(_) | Err(RepoError::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        drop(read);
        let mut replaces: BTreeSet<u64> = known.useless.iter().copied().collect();
        for (n, content) in known.objects {
            let alive = content.backups.iter().filter(|summary| finished.contains(&summary.id)).count();
            if alive < FEW {
                replaces.insert(n);
                fresh.extend(content.backups.into_iter().filter(|summary| finished.contains(&summary.id)));
            }
        }
        self.write_summaries(fresh, &replaces, known.next).await?;
        for n in &replaces {
            // Without the right to delete they stay; readers skip them.
            self.store().delete(&self.paths().summaries(*n)).await.ok();
        }
        Ok(true)
    }

    /// What is to be done after a backup was finished: it is noted that it was, its progress objects mean nothing any more, and there
    /// may be enough summaries for an object. Who may not delete leaves the progress to `expire`.
    pub async fn tidy(&self, id: BackupId) -> Result<()> {
        let key = self.paths().published(id);
        let published = Published { id }.seal(self.sealer(), &key).map_err(|e| cannot_write(&key, &e))?;
        self.store().create_once(&published).await?;
        let prefix = self.paths().backup(id);
        let entries = self.store().list_all(&prefix).await?;
        let spent = entries.into_iter().map(|entry| entry.key);
        let spent: Vec<Key> =
            spent.filter(|key| matches!(self.paths().parse(key), Some(ClusterObject::Progress(_)))).collect();
        for result in self.store().delete_all(&spent).await {
            if !matches!(result, Err(RepoError::Denied { .. })) {
                result?;
            }
        }
        self.summarize().await.map(drop)
    }

    async fn write_summaries(
        &self,
        all: Vec<BackupSummary>,
        replaces: &BTreeSet<u64>,
        mut n: u64,
    ) -> Result<()> {
        let mut contents = vec![Content::default()];
        let mut bytes = 0;
        for summary in all {
            let length = summary.to_json().map_err(|e| RepoError::Internal(e.to_string()))?.len();
            if bytes + length > FULL {
                contents.push(Content::default());
                bytes = 0;
            }
            bytes += length;
            if let Some(last) = contents.last_mut() {
                last.backups.push(summary);
            }
        }
        // The last one counts only when the others are there.
        if let Some(last) = contents.last_mut() {
            last.replaces.clone_from(replaces);
        }
        let mut lost = 0;
        for content in contents {
            loop {
                let key = self.paths().summaries(n);
                let object = content.seal(self.sealer(), &key).map_err(|e| cannot_write(&key, &e))?;
                n += 1;
                match self.store().claim(&object).await? {
                    NumberClaim::Won => break,
                    NumberClaim::Lost => lost += 1,
                }
                if lost >= ATTEMPTS {
                    let what =
                        format!("others wrote {ATTEMPTS} summaries at the same moment\nHINT: Try again.");
                    return Err(RepoError::Internal(what));
                }
            }
        }
        Ok(())
    }

    /// Reads the sequence, the newest object first: it says which older ones need not be read.
    async fn known(&self) -> Result<Known> {
        let prefix = self.paths().sequence("summaries").map_err(|e| RepoError::Internal(e.to_string()))?;
        let entries = self.store().list_all(&prefix).await?;
        let number = |key: &Key| {
            let n = key.below(&prefix)?.parse::<u64>().ok()?;
            Some(n).filter(|n| self.paths().summaries(*n) == *key)
        };
        let mut numbers: Vec<u64> = entries.iter().filter_map(|entry| number(&entry.key)).collect();
        numbers.sort_unstable();
        let mut known = Known { next: numbers.last().map_or(0, |last| last + 1), ..Known::default() };
        let mut replaced: BTreeSet<u64> = BTreeSet::new();
        for n in numbers.into_iter().rev() {
            if replaced.contains(&n) {
                known.useless.push(n);
                continue;
            }
            match self.read_summaries(n).await {
                Ok(Some(content)) => {
                    replaced.extend(&content.replaces);
                    known
                        .summaries
                        .extend(content.backups.iter().map(|summary| (summary.id, summary.clone())));
                    known.objects.push((n, content));
                }
                Ok(None) => {}
                Err(error @ RepoError::Corrupt { .. }) => {
                    tracing::warn!("{error}\nDETAIL: The manifests are read instead.");
                    known.useless.push(n);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(known)
    }

    async fn read_summaries(&self, n: u64) -> Result<Option<Content>> {
        let key = self.paths().summaries(n);
        let Some(bytes) = found(self.store().get(&key).await)? else { return Ok(None) };
        let sealer = self.sealer().clone();
        crate::cpu::run(move || {
            let corrupt = |e: &dyn std::fmt::Display| RepoError::corrupt(&key, e);
            let reader = ObjectReader::open(&sealer, &[ObjectKind::Summaries], &key, bytes);
            let mut json = Vec::new();
            reader.and_then(|reader| reader.read_all(MAX_SUMMARIES, &mut json)).map_err(|e| corrupt(&e))?;
            serde_json::from_slice(&json).map(Some).map_err(|e| corrupt(&e))
        })
        .await?
    }
}
