//! What listings show of a cluster and of a lineage before anything of them is read: all of it is listed at the same time, and
//! that of a cluster while the repository is opened. Nothing of it counts before the descriptor was read.

use futures_util::future::{join, join3, try_join};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use walpoint_base::{ClusterName, LineageId, TimelineId};
use walpoint_storage::error::Result;
use walpoint_storage::layout::{ClusterPaths, WalPaths};
use walpoint_storage::store::{ListedObject, Store, StoreSettings};

use super::{AT_ONCE, Catalog, by_position};
use crate::Repository;
use crate::backup::{Backups, Unread, list_announcements, list_names};
use crate::catalog::LineageCatalog;
use crate::lineage::{DamagedLineage, Lineage};
use crate::wal::{ListedHistories, list_histories, list_timelines};

/// What listings show of a lineage itself.
#[derive(Debug)]
pub(super) struct LineageOutline {
    pub(super) histories: ListedHistories,
    pub(super) timelines: Vec<TimelineId>,
}

impl LineageOutline {
    pub(super) async fn list(store: &Store, paths: &WalPaths) -> Result<Self> {
        let (histories, timelines) =
            try_join(list_histories(store, paths), list_timelines(store, paths)).await?;
        Ok(Self { histories, timelines })
    }
}

/// What listings show of a cluster.
struct ClusterOutline {
    backups: Vec<Unread>,
    lineages: Vec<(LineageId, Timestamp)>,
    /// What is announced, if that was listed.
    announced: Option<Vec<(u64, Timestamp)>>,
}

impl ClusterOutline {
    async fn list(store: &Store, paths: &ClusterPaths) -> Result<Self> {
        let (backups, lineages) = try_join(list_names(store, paths), list_lineages(store, paths)).await?;
        Ok(Self { backups, lineages, announced: None })
    }

    /// The same, and what is announced. That it cannot be listed is no condition of anything.
    async fn list_all(store: &Store, paths: &ClusterPaths) -> Result<Self> {
        let (outline, announced) = join(Self::list(store, paths), list_announcements(store, paths)).await;
        Ok(Self { announced: announced.ok(), ..outline? })
    }
}

/// The lineages, and when the facts of each were stored.
async fn list_lineages(store: &Store, paths: &ClusterPaths) -> Result<Vec<(LineageId, Timestamp)>> {
    let prefix = paths.lineages();
    let entries = store.list_all(&prefix).await?;
    let id = |entry: &ListedObject| entry.key.below(&prefix)?.parse().ok();
    Ok(entries.iter().filter_map(|entry| Some((id(entry)?, entry.modified))).collect())
}

impl Catalog {
    /// Lists what a cluster has: its lineages, their timelines, its backups. A cluster that is not there has none.
    pub async fn load(repository: &Repository, cluster: &ClusterName) -> Result<Self> {
        let outline = ClusterOutline::list(repository.store(), &ClusterPaths::new(cluster)).await?;
        Self::of(repository, cluster, outline).await
    }

    /// Opens a repository, as [`Repository::open`] does, and lists what a cluster has, with fewer requests that wait for one
    /// another than if that was done one after the other.
    pub async fn open(name: &str, settings: &StoreSettings, cluster: &ClusterName) -> Result<Self> {
        Self::over(name, settings, Store::open(settings).await?, cluster).await
    }

    /// The same for a store that is open.
    pub(crate) async fn over(
        name: &str,
        settings: &StoreSettings,
        store: Store,
        cluster: &ClusterName,
    ) -> Result<Self> {
        let paths = ClusterPaths::new(cluster);
        let (repository, outline) = join(
            Repository::open_in(name, settings, store.clone()),
            ClusterOutline::list_all(&store, &paths),
        )
        .await;
        // What is wrong with the repository is said first.
        let repository = repository?;
        Self::of(&repository, cluster, outline?).await
    }

    async fn of(repository: &Repository, cluster: &ClusterName, outline: ClusterOutline) -> Result<Self> {
        let reader = Backups::of(repository, cluster);
        let announced = async {
            match outline.announced {
                Some(listed) => Some(reader.read_all_announcements(listed).await),
                None => None,
            }
        };
        let lineages = outline.lineages.into_iter().map(|(id, stored)| async move {
            DamagedLineage::aside(id, stored, read_lineage(repository, cluster, id).await)
        });
        let lineages = stream::iter(lineages.collect::<Vec<_>>()).buffered(AT_ONCE).try_collect::<Vec<_>>();
        let (backups, lineages_read, announced) =
            join3(reader.judge_tombstones(outline.backups), lineages, announced).await;
        let mut backups = backups?;
        let (mut lineages, mut damaged): (Vec<(Lineage, LineageOutline)>, _) = (Vec::new(), Vec::new());
        for read in lineages_read? {
            match read {
                // One that was deleted since it was listed is no lineage.
                Ok(lineage) => lineages.extend(lineage),
                Err(one) => damaged.push(one),
            }
        }
        lineages.sort_unstable_by_key(|(lineage, _)| (lineage.created, lineage.id));
        let (all, known) = (&backups, &reader);
        let loads = lineages.into_iter().map(|(lineage, outline)| async move {
            let archive = repository.wal_to_read(&lineage).await?;
            LineageCatalog::of(archive, outline, known, all).await
        });
        let loads = stream::iter(loads.collect::<Vec<_>>()).buffered(AT_ONCE);
        let mut lineages: Vec<LineageCatalog> = loads.try_collect().await?;
        // What cannot be read is left to those who ask for it.
        if let Some(Ok(announced)) = announced {
            for lineage in &mut lineages {
                lineage.take_announcements(Ok(announced.clone())).await;
            }
        }
        let loaded = Timestamp::now();
        // Positions of several lineages cannot be compared, and a listing does not tell which one a backup is of.
        if let ([lineage], []) = (&lineages[..], &damaged[..]) {
            by_position(&lineage.facts().graph, &mut backups, loaded);
        }
        let (repository, cluster) = (repository.clone(), cluster.clone());
        Ok(Self { repository, cluster, backups, lineages, damaged, loaded })
    }
}

/// A lineage with what listings show of it; `None` if it was deleted since it was listed.
async fn read_lineage(
    repository: &Repository,
    cluster: &ClusterName,
    id: LineageId,
) -> Result<Option<(Lineage, LineageOutline)>> {
    let paths = ClusterPaths::new(cluster).wal(id);
    let outline = LineageOutline::list(repository.store(), &paths);
    let (lineage, outline) = try_join(repository.read_lineage(cluster, id), outline).await?;
    Ok(lineage.map(|lineage| (lineage, outline)))
}
