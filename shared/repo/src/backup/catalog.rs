//! The backups of a cluster: which there are, and the way to each of them.
//!
//! A backup is finished when it has a manifest, unfinished while it has only an intent, and aborted when a tombstone
//! stands where the manifest would be. Creating that object decides between finishing and aborting: only one can succeed.

use std::fmt;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{BackupId, ClusterName};
use walpoint_storage::error::{RepoError, Result, found};
use walpoint_storage::layout::{ClusterPaths, Key};
use walpoint_storage::object::{
    Codec, OBJECT_HEADER, ObjectHeader, ObjectKind, ObjectReader, Sealer, open_frame,
};
use walpoint_storage::store::{Creation, Rate, Store};

use super::ending::{Intent, Tombstone};
use super::facts::{BackupSummary, MAX_SUMMARY};
use super::geometry::BlockSize;
use super::manifest::{MAX_TOMBSTONE, Manifest, cannot_write};
use super::progress::ProgressObject;

/// The longest reason in a tombstone, in bytes.
const MAX_REASON: usize = 500;
/// What is read of a manifest to see its summary: enough for most.
const GLANCE: u64 = 32 << 10;

/// Tombstones that are read at the same time.
const AT_ONCE: usize = 16;

/// The base backups of one cluster in one repository. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Backups {
    store: Store,
    sealer: Sealer,
    paths: ClusterPaths,
}

/// What a listing says about a backup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListedBackup {
    /// Which one.
    pub id: BackupId,
    /// When its intent was stored; `None` if it has none (it was being deleted).
    pub begun: Option<Timestamp>,
    /// How many progress objects it has.
    pub progress: u32,
    /// Whether it says that it was finished: without a manifest, that is lost.
    pub published: bool,
    /// How far it came.
    pub state: ListedState,
}

impl ListedBackup {
    /// Whether it was finished and its manifest is gone. One that is being deleted looks the same, and is announced.
    pub fn lost_its_manifest(&self) -> bool {
        self.published && self.state == ListedState::Unfinished
    }
}

/// What a listing says about a backup before anything is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unread {
    listed: ListedBackup,
    /// Whether what stands in the place of its manifest is as small as a tombstone.
    may_be_aborted: bool,
}

/// Every backup by its objects' names, oldest first.
pub(crate) async fn list_names(store: &Store, paths: &ClusterPaths) -> Result<Vec<Unread>> {
    let prefix = paths.backups();
    let mut listing = store.list(&prefix, None);
    let mut backups: Vec<Unread> = Vec::new();
    while let Some(entry) = listing.try_next().await? {
        let Some((id, name)) = entry.key.below(&prefix).and_then(|name| name.split_once('/')) else {
            continue;
        };
        let Ok(id) = id.parse::<BackupId>() else { continue };
        if backups.last().is_none_or(|last| last.listed.id != id) {
            let listed = ListedBackup {
                id,
                begun: None,
                progress: 0,
                published: false,
                state: ListedState::Unfinished,
            };
            backups.push(Unread { listed, may_be_aborted: false });
        }
        let Some(backup) = backups.last_mut() else { continue };
        match name {
            "intent" => backup.listed.begun = Some(entry.modified),
            "manifest" => {
                backup.listed.state = ListedState::Finished(entry.modified);
                backup.may_be_aborted = entry.size <= MAX_TOMBSTONE;
            }
            "published" => backup.listed.published = true,
            _ if name.starts_with("progress-") => backup.listed.progress += 1,
            _ => {}
        }
    }
    backups.sort_by_key(|backup| backup.listed.id);
    Ok(backups)
}

/// How far a backup came, as far as a listing shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListedState {
    /// It has no manifest: it is running, or died.
    Unfinished,
    /// It has a manifest, stored at that time.
    Finished(Timestamp),
    /// It has a tombstone, stored at that time.
    Aborted(Timestamp),
}

impl ListedState {
    /// The same without the time.
    pub fn stage(self) -> BackupStage {
        match self {
            Self::Finished(_) => BackupStage::Finished,
            Self::Unfinished => BackupStage::Unfinished,
            Self::Aborted(_) => BackupStage::Aborted,
        }
    }
}

/// Whether a backup was finished.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BackupStage {
    /// It was finished.
    Finished,
    /// It is being taken, or was interrupted. The next backup resumes it.
    Unfinished,
    /// It was aborted and will never be finished.
    Aborted,
}

impl fmt::Display for BackupStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Finished => "finished",
            Self::Unfinished => "unfinished",
            Self::Aborted => "aborted",
        })
    }
}

/// What stands under the name of a backup's manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ManifestState {
    /// Nothing: the backup is running, or died.
    Unfinished,
    /// A manifest.
    Finished(Box<BackupSummary>),
    /// A tombstone.
    Aborted(Tombstone),
}

impl Backups {
    /// Of `cluster` in `repository`.
    pub fn of(repository: &crate::Repository, cluster: &ClusterName) -> Self {
        Self::new(repository.store(), repository.sealer(), cluster)
    }

    /// Of `cluster` in a store.
    pub fn new(store: &Store, sealer: &Sealer, cluster: &ClusterName) -> Self {
        Self { store: store.clone(), sealer: sealer.clone(), paths: ClusterPaths::new(cluster) }
    }

    /// The same for reading packs, one after the other.
    pub(super) fn keeping_buffers(&self, bytes: usize) -> Self {
        Self { store: self.store.keeping_buffers(bytes), ..self.clone() }
    }

    /// The same, written and read no faster.
    #[must_use]
    pub fn at_rate(self, rate: Option<&Arc<Rate>>) -> Self {
        Self { store: self.store.at_rate(rate), ..self }
    }

    /// The store they are in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    pub(super) fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// The keys of its cluster.
    pub fn paths(&self) -> &ClusterPaths {
        &self.paths
    }

    /// Every backup, oldest first. One listing, and one small read for each tombstone.
    pub async fn list(&self) -> Result<Vec<ListedBackup>> {
        self.judge_tombstones(list_names(&self.store, &self.paths).await?).await
    }

    /// Tells tombstones from manifests.
    pub(crate) async fn judge_tombstones(&self, unread: Vec<Unread>) -> Result<Vec<ListedBackup>> {
        let reads = unread.into_iter().map(|Unread { mut listed, may_be_aborted }| async move {
            if let (ListedState::Finished(stored), true) = (listed.state, may_be_aborted) {
                listed.state = match self.standing(listed.id).await {
                    Ok(ManifestState::Unfinished) => ListedState::Unfinished,
                    Ok(ManifestState::Aborted(_)) => ListedState::Aborted(stored),
                    // Opening a damaged one fails with the reason.
                    Ok(ManifestState::Finished(_)) | Err(RepoError::Corrupt { .. }) => listed.state,
                    Err(error) => return Err(error),
                };
            }
            Ok(listed)
        });
        stream::iter(reads.collect::<Vec<_>>()).buffered(AT_ONCE).try_collect().await
    }

    /// What became of a backup. One or two small requests.
    pub async fn standing(&self, id: BackupId) -> Result<ManifestState> {
        let key = self.paths.manifest(id);
        let Some(glance) = found(self.store.get_range(&key, 0..GLANCE).await)? else {
            return Ok(ManifestState::Unfinished);
        };
        let (header, keys) = ObjectHeader::parse(&self.sealer, &key, &glance.bytes)
            .map_err(|e| RepoError::corrupt(&key, e))?;
        let begin = u64::try_from(OBJECT_HEADER).unwrap_or(u64::MAX);
        let end = begin + u64::from(header.meta_len);
        if header.object_len != glance.size || end > header.object_len {
            return Err(RepoError::corrupt(&key, "its header does not fit its length"));
        }
        let mut bytes = glance.bytes;
        if end > GLANCE {
            // Compressed or not, a summary is never longer than this; what is longer is a lie.
            let longest = begin + u64::try_from(MAX_SUMMARY).unwrap_or(0) + 128;
            if end > longest {
                return Err(RepoError::corrupt(&key, "its description is too long"));
            }
            bytes = self.store.get_range(&key, 0..end).await?.bytes;
        }
        let frame = bytes.get(OBJECT_HEADER..).unwrap_or_default();
        let mut meta = Vec::new();
        open_frame(&keys, 0, frame, &mut Codec::for_opening(), &mut meta)
            .map_err(|e| RepoError::corrupt(&key, e))?;
        match header.kind {
            ObjectKind::Manifest => {
                let summary = BackupSummary::from_json(&meta).map_err(|e| RepoError::corrupt(&key, e))?;
                if summary.id != id {
                    return Err(RepoError::corrupt(&key, format!("it describes backup {}", summary.id)));
                }
                Ok(ManifestState::Finished(Box::new(summary)))
            }
            ObjectKind::Tombstone => Ok(ManifestState::Aborted(
                Tombstone::read(&meta, id).map_err(|e| RepoError::corrupt(&key, e))?,
            )),
            other => Err(RepoError::corrupt(&key, format!("it is an object of kind {other:?}"))),
        }
    }

    /// Whether a listing shows something in the place of a backup's manifest. That it cannot be read is no proof that it is gone.
    pub async fn lists_manifest(&self, id: BackupId) -> Result<bool> {
        let key = self.paths.manifest(id);
        let entries = self.store.list_all(&self.paths.backup(id)).await?;
        Ok(entries.iter().any(|entry| entry.key == key))
    }

    /// Of those asked for, the backups of which packs are stored and nothing else: their directory is lost, or deleted before the packs.
    pub async fn only_packs(&self, asked_for: impl Fn(BackupId) -> bool) -> Result<Vec<BackupId>> {
        let mut found = Vec::new();
        for name in self.store.list_dirs(&self.paths.all_data()).await? {
            let Some(id) = name.parse::<BackupId>().ok().filter(|id| asked_for(*id)) else { continue };
            let has_packs = self.store.list(&self.paths.data(id), None).try_next().await?.is_some();
            // What begins meanwhile has an intent before it has a pack.
            if has_packs && self.store.list_all(&self.paths.backup(id)).await?.is_empty() {
                found.push(id);
            }
        }
        Ok(found)
    }

    /// The summary of a finished backup. An error for any other.
    pub async fn summary(&self, id: BackupId) -> Result<BackupSummary> {
        match self.standing(id).await? {
            ManifestState::Finished(summary) => Ok(*summary),
            ManifestState::Unfinished => Err(self.no_manifest(id)),
            ManifestState::Aborted(tombstone) => Err(self.ended(id, &tombstone)),
        }
    }

    /// What a backup said when it began; `None` if it has no intent.
    pub async fn intent(&self, id: BackupId) -> Result<Option<Intent>> {
        let key = self.paths.intent(id);
        let Some(bytes) = found(self.store.get(&key).await)? else { return Ok(None) };
        let reader = ObjectReader::open(&self.sealer, &[ObjectKind::Intent], &key, bytes);
        let reader = reader.map_err(|e| RepoError::corrupt(&key, e))?;
        Intent::read(reader, id).map(Some).map_err(|e| RepoError::corrupt(&key, e))
    }

    /// What an unfinished backup said it had stored, in its progress object `n`, counted from 0; `None` if it has none of
    /// that number.
    pub async fn progress(
        &self,
        id: BackupId,
        n: u32,
        block_size: BlockSize,
    ) -> Result<Option<ProgressObject>> {
        let key = self.paths.progress(id, n);
        let Some(bytes) = found(self.store.get(&key).await)? else { return Ok(None) };
        let sealer = self.sealer.clone();
        crate::cpu::run(move || {
            let reader = ObjectReader::open(&sealer, &[ObjectKind::Progress], &key, bytes);
            let reader = reader.map_err(|e| RepoError::corrupt(&key, e))?;
            let progress = ProgressObject::read(reader, id, block_size);
            progress.map(Some).map_err(|e| RepoError::corrupt(&key, e))
        })
        .await?
    }

    pub(super) async fn create_intent(&self, intent: &Intent) -> Result<()> {
        let key = self.paths.intent(intent.id);
        let object = intent.seal(&self.sealer, &key).map_err(|e| cannot_write(&key, &e))?;
        match self.store.create_once(&object).await? {
            Creation::New => Ok(()),
            Creation::Same => {
                Err(RepoError::Refused { key, what: "a backup of this id has begun already".to_owned() })
            }
        }
    }

    /// Reads a finished backup's manifest.
    pub(super) async fn manifest(&self, id: BackupId) -> Result<Manifest> {
        let key = self.paths.manifest(id);
        let bytes = match found(self.store.get(&key).await)? {
            Some(bytes) => bytes,
            None => return Err(self.no_manifest(id)),
        };
        let sealer = self.sealer.clone();
        let at = key.clone();
        let manifest = crate::cpu::run(move || {
            let corrupt = |e: &dyn fmt::Display| RepoError::corrupt(&at, e);
            let kinds = [ObjectKind::Manifest, ObjectKind::Tombstone];
            let reader = ObjectReader::open(&sealer, &kinds, &at, bytes).map_err(|e| corrupt(&e))?;
            if reader.header().kind == ObjectKind::Tombstone {
                return Tombstone::read(reader.meta(), id).map(Err).map_err(|e| corrupt(&e));
            }
            Manifest::read(reader, id).map(Ok).map_err(|e| corrupt(&e))
        })
        .await??;
        manifest.map_err(|tombstone| self.ended(id, &tombstone))
    }

    /// Ends an unfinished backup for good: nobody can write its manifest any more. Again: success. Fails with
    /// [`RepoError::Conflict`] if it has a manifest.
    pub async fn abort(&self, id: BackupId, reason: &str) -> Result<()> {
        let key = self.paths.manifest(id);
        let mut reason: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        while reason.len() > MAX_REASON {
            reason.pop();
        }
        let tombstone = Tombstone { id, ended: Timestamp::now(), reason };
        let object = tombstone.seal(&self.sealer, &key).map_err(|e| cannot_write(&key, &e))?;
        self.store.create_once(&object).await.map(drop)
    }

    /// Why a backup that is being written failed: that it was aborted meanwhile, if it was. Its objects are deleted then, and that one
    /// of them is missing is only a consequence.
    pub(super) async fn why_failed(&self, id: BackupId, error: RepoError) -> RepoError {
        // A store that does not answer would not answer this either.
        if error.is_transient() {
            return error;
        }
        match self.standing(id).await {
            Ok(ManifestState::Aborted(tombstone)) => self.ended(id, &tombstone),
            _ => error,
        }
    }

    fn no_manifest(&self, id: BackupId) -> RepoError {
        RepoError::NotFound { key: self.paths.manifest(id), store: self.store.name().to_owned() }
    }

    pub(super) fn ended(&self, id: BackupId, tombstone: &Tombstone) -> RepoError {
        let Tombstone { ended, reason, .. } = tombstone;
        let what = format!("the backup never finished, it was aborted at {ended}: {reason}");
        RepoError::Refused { key: self.paths.manifest(id), what }
    }

    /// The key of a pack, for messages.
    pub fn pack_key(&self, id: BackupId, pack: super::location::PackNo) -> Key {
        self.paths.pack(id, pack.0)
    }
}
