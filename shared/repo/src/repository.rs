//! An open repository: its store, how its objects are sealed, and its clusters' lineages.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use walpoint_base::{ClusterName, LineageId, PgMajor, SegmentSize, SystemId};
use walpoint_storage::descriptor::{Descriptor, now, read_descriptor};
use walpoint_storage::document;
use walpoint_storage::error::{Remedy, RepoError, Result, found};
use walpoint_storage::keys::unlock::{Unlocked, unlock};
use walpoint_storage::keys::{KeySlots, KeySource};
use walpoint_storage::layout::{self, ClusterPaths};
use walpoint_storage::object::{Level, MasterKey, RepositoryId, Sealer};
use walpoint_storage::store::{Creation, Store, StoreSettings};

use crate::lineage::{
    AckMember, DamagedLineage, Lineage, LineageDocument, LineageUid, Lineages, ParentLineage,
};

#[cfg(test)]
mod tests;

/// Lineages that are read at the same time.
const AT_ONCE: usize = 8;

/// A repository whose descriptor was read and fits. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Repository {
    inner: Arc<Inner>,
}

#[derive(Clone, Debug)]
struct Inner {
    name: String,
    store: Store,
    descriptor: Descriptor,
    sealer: Sealer,
    /// What opened it, unless its key was given.
    key: Option<(KeySource, u32)>,
}

/// What a new lineage is created with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewLineage {
    /// The cluster's system identifier.
    pub system_id: SystemId,
    /// Its version.
    pub major: PgMajor,
    /// Bytes of a WAL segment.
    pub segment_size: SegmentSize,
    /// Bytes of a WAL page.
    pub wal_block_size: u32,
    /// Bytes of a page of relations.
    pub block_size: u32,
    /// Pages of a file of a relation.
    pub relation_segment_blocks: u32,
    /// Every repository that must have what is acknowledged, this one included.
    pub ack: Vec<AckMember>,
}

impl Repository {
    /// Opens the repository that `name` calls in the configuration: reads and checks its descriptor, and if it is encrypted
    /// takes its key from the slot that the settings, or else the environment, open.
    pub async fn open(name: &str, settings: &StoreSettings) -> Result<Self> {
        Self::open_in(name, settings, Store::open(settings).await?).await
    }

    /// The same in the settings' store, which is open.
    pub(crate) async fn open_in(name: &str, settings: &StoreSettings, store: Store) -> Result<Self> {
        let descriptor = read_descriptor(&store).await?;
        Self::open_described(name, settings, store, descriptor).await
    }

    /// The repository with that descriptor in a store that is open.
    pub(crate) async fn open_described(
        name: &str,
        settings: &StoreSettings,
        store: Store,
        descriptor: Descriptor,
    ) -> Result<Self> {
        match unlock(&store, &descriptor, &settings.encryption).await? {
            None => Self::assemble(name, store, descriptor, None, None),
            Some(Unlocked { source, opened }) => {
                let key = Some((source, opened.slot));
                Self::assemble(name, store, descriptor, Some(opened.master), key)
            }
        }
    }

    /// As [`Self::open`], but with the key of an encrypted repository, whatever its slots are.
    pub async fn open_with_key(
        name: &str,
        settings: &StoreSettings,
        master: Option<MasterKey>,
    ) -> Result<Self> {
        Self::over(name, Store::open(settings).await?, master).await
    }

    /// The repository in a store that is open.
    pub async fn over(name: &str, store: Store, master: Option<MasterKey>) -> Result<Self> {
        let descriptor = read_descriptor(&store).await?;
        Self::assemble(name, store, descriptor, master, None)
    }

    pub(crate) fn assemble(
        name: &str,
        store: Store,
        descriptor: Descriptor,
        master: Option<MasterKey>,
        key: Option<(KeySource, u32)>,
    ) -> Result<Self> {
        let sealer = descriptor.sealer(store.name(), master)?;
        Ok(Self { inner: Arc::new(Inner { name: name.to_owned(), store, descriptor, sealer, key }) })
    }

    /// What the configuration calls it.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its store.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// How its objects are sealed.
    pub fn sealer(&self) -> &Sealer {
        &self.inner.sealer
    }

    /// Where the secret came from that opened it, and the slot; `None` if it is not encrypted or its key was given.
    pub fn opened_by(&self) -> Option<(&KeySource, u32)> {
        self.inner.key.as_ref().map(|(source, slot)| (source, *slot))
    }

    /// Its key slots.
    pub fn key_slots(&self) -> KeySlots {
        KeySlots::new(self.inner.store.clone(), self.inner.descriptor.clone())
    }

    /// Which repository it is.
    pub fn id(&self) -> RepositoryId {
        self.inner.descriptor.id
    }

    /// Its descriptor, as it was when it was opened.
    pub fn descriptor(&self) -> &Descriptor {
        &self.inner.descriptor
    }

    /// The same repository through a store with other bounds.
    pub fn with_limits(&self, limits: walpoint_storage::store::Limits) -> Self {
        let inner = Inner::clone(&self.inner);
        Self { inner: Arc::new(Inner { store: inner.store.with_limits(limits), ..inner }) }
    }

    /// The same repository, where what is stored is compressed at another level.
    pub fn compressing_at(&self, level: Level) -> Self {
        let inner = Inner::clone(&self.inner);
        Self { inner: Arc::new(Inner { sealer: inner.sealer.at(level), ..inner }) }
    }

    /// Reads the descriptor again and compares: only then, in the same attempt, does "not found" prove absence. Fails with
    /// [`RepoError::Replaced`] if the repository is gone or another one.
    pub async fn read_descriptor_again(&self) -> Result<()> {
        let (what, remedy) = match read_descriptor(self.store()).await {
            Ok(descriptor) if descriptor == self.inner.descriptor => return Ok(()),
            Ok(descriptor) => {
                let what = format!(
                    "it was repository {} and is {} now\nHINT: Check the URL and the mount.",
                    self.id(),
                    descriptor.id
                );
                (what, Some(Remedy::RegisterAnew))
            }
            Err(RepoError::NoRepository { what, remedy, .. }) => (what, remedy),
            Err(error) => return Err(error),
        };
        let (repository, store) = (self.name().to_owned(), self.store().name().to_owned());
        Err(RepoError::Replaced { repository, store, what, remedy })
    }

    /// The clusters that have anything here, sorted.
    pub async fn clusters(&self) -> Result<Vec<ClusterName>> {
        let names = self.store().list_dirs(&layout::clusters()).await?;
        let names = names.iter().filter_map(|name| name.parse().ok());
        let looks = names.map(|name: ClusterName| async move { Ok((self.has_any_of(&name).await?, name)) });
        let looks: Vec<(bool, ClusterName)> =
            stream::iter(looks.collect::<Vec<_>>()).buffered(AT_ONCE).try_collect().await?;
        Ok(looks.into_iter().filter_map(|(has_any, name)| has_any.then_some(name)).collect())
    }

    /// Whether there is an object of a cluster: a directory may stay behind when it was emptied, or with files of another program.
    async fn has_any_of(&self, cluster: &ClusterName) -> Result<bool> {
        let paths = ClusterPaths::new(cluster);
        let mut listing = self.store().list(&paths.all(), None);
        while let Some(entry) = listing.try_next().await? {
            if paths.parse(&entry.key).is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The lineages of a cluster, and those whose facts are damaged. Nothing if the cluster is not here.
    pub async fn lineages(&self, cluster: &ClusterName) -> Result<Lineages> {
        let paths = ClusterPaths::new(cluster);
        let prefix = paths.lineages();
        let entries = self.store().list_all(&prefix).await?;
        let listed = entries
            .iter()
            .filter_map(|entry| Some((entry.key.below(&prefix)?.parse::<LineageId>().ok()?, entry.modified)));
        let reads = listed.map(|(id, stored)| async move {
            DamagedLineage::aside(id, stored, self.read_lineage(cluster, id).await)
        });
        let mut reads = stream::iter(reads.collect::<Vec<_>>()).buffered(AT_ONCE);
        let mut all = Lineages::default();
        while let Some(read) = reads.try_next().await? {
            match read {
                // One that was deleted since it was listed is no lineage.
                Ok(lineage) => all.read.extend(lineage),
                Err(damaged) => all.damaged.push(damaged),
            }
        }
        all.read.sort_unstable_by_key(|l| (l.created, l.id));
        Ok(all)
    }

    /// The lineages of which WAL is stored, whether their facts are there or not.
    pub(crate) async fn stored_lineages(&self, cluster: &ClusterName) -> Result<Vec<LineageId>> {
        let directories = self.store().list_dirs(&ClusterPaths::new(cluster).all()).await?;
        Ok(directories.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// A lineage's facts, read from the store; `None` if there is no such lineage.
    pub async fn read_lineage(&self, cluster: &ClusterName, id: LineageId) -> Result<Option<Lineage>> {
        let key = ClusterPaths::new(cluster).lineage(id);
        let Some(bytes) = found(self.store().get(&key).await)? else { return Ok(None) };
        let document: LineageDocument = document::open(Some(self.sealer()), &key, &bytes)?;
        document.into_lineage(&key).map(Some)
    }

    /// The newest lineage of the cluster with that system identifier that was not split off from another one: the one that it
    /// archives to unless its data directory is bound to another. `None` if there is none. One whose facts are damaged counts as
    /// split off, unless no other is left: a lineage that is made beside another one binds the data directory that it is made for.
    pub async fn lineage_for(&self, cluster: &ClusterName, system_id: SystemId) -> Result<Option<Lineage>> {
        let mut damaged = None;
        for id in self.lineage_ids(cluster, system_id).await? {
            match self.read_lineage(cluster, id).await {
                Ok(Some(lineage)) if lineage.parent.is_none() => return Ok(Some(lineage)),
                Ok(_) => {}
                Err(error @ RepoError::Corrupt { .. }) => damaged = Some(error),
                Err(error) => return Err(error),
            }
        }
        damaged.map_or(Ok(None), Err)
    }

    /// The lineages of the cluster with that system identifier, newest first.
    async fn lineage_ids(&self, cluster: &ClusterName, system_id: SystemId) -> Result<Vec<LineageId>> {
        let prefix = ClusterPaths::new(cluster).lineages();
        let entries = self.store().list_all(&prefix).await?;
        let ids = entries.iter().filter_map(|e| e.key.below(&prefix)?.parse::<LineageId>().ok());
        let mut ids: Vec<LineageId> = ids.filter(|id| id.system_id == system_id).collect();
        ids.sort_unstable_by_key(|id| std::cmp::Reverse(id.n));
        Ok(ids)
    }

    /// Creates the next lineage of a cluster: number 1 for a system identifier that is new here. When somebody else
    /// creates it at the same moment, one of the two fails with a conflict.
    pub async fn create_lineage(&self, cluster: &ClusterName, new: NewLineage) -> Result<Lineage> {
        self.split_lineage(cluster, new, None, 0).await
    }

    /// The number of the newest lineage of the cluster with that system identifier, 0 if there is none.
    pub async fn last_lineage(&self, cluster: &ClusterName, system_id: SystemId) -> Result<u32> {
        Ok(self.lineage_ids(cluster, system_id).await?.first().map_or(0, |id| id.n))
    }

    /// As [`Self::create_lineage`], split off from another lineage if one is named, and with a number greater than `after`.
    pub async fn split_lineage(
        &self,
        cluster: &ClusterName,
        new: NewLineage,
        parent: Option<ParentLineage>,
        after: u32,
    ) -> Result<Lineage> {
        let last = self.last_lineage(cluster, new.system_id).await?.max(after);
        self.create_lineage_as(cluster, new, parent, last.saturating_add(1)).await
    }

    /// As [`Self::split_lineage`], with that number: the one that the server has in another repository. One of that number that is
    /// there already is a conflict.
    pub async fn create_lineage_as(
        &self,
        cluster: &ClusterName,
        new: NewLineage,
        parent: Option<ParentLineage>,
        n: u32,
    ) -> Result<Lineage> {
        let lineage = Lineage {
            cluster: cluster.clone(),
            id: LineageId { system_id: new.system_id, n },
            uid: LineageUid::random(),
            major: new.major,
            segment_size: new.segment_size,
            wal_block_size: new.wal_block_size,
            block_size: new.block_size,
            relation_segment_blocks: new.relation_segment_blocks,
            created: now(),
            ack: new.ack,
            parent,
        };
        let document = document::seal(Some(self.sealer()), &lineage.key(), &LineageDocument::from(&lineage))?;
        match self.store().create_document(&document).await? {
            Creation::New | Creation::Same => Ok(lineage),
        }
    }
}
