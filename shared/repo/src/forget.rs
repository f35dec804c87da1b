//! Forgetting a cluster: everything that a repository has of it is deleted, at once and for good.
//!
//! The facts of its lineages go first: from then on nothing is archived to it, and a server in recovery from it is not sent
//! "no such segment" but an error, since absence is proven only by a lineage that is there. Then the manifests, so that no
//! backup is listed and incomplete; then the rest. A crash leaves a part that the same call deletes. Other clusters, and
//! what is not Walpoint's, are left alone.
//!
//! There is no grace period, so the two guards are all that stands against a mistake: a hold in force, and something stored within
//! the last hour. Both go by the store's clock, and nothing is deleted where that is far from this machine's.

use std::collections::BTreeSet;

use futures_util::{StreamExt, TryStreamExt};
use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::diagnostic::shown;
use walpoint_base::{BackupId, ClusterName, Diagnostic, LineageId};
use walpoint_storage::error::{Obstacle, Override, RepoError, Result};
use walpoint_storage::layout::{ClusterObject, ClusterPaths, Key};
use walpoint_storage::store::{BULK, ListedObject};

use crate::Repository;
use crate::expire::compare_for_deletion;
use crate::holds::{Holdings, Holds};

/// Something stored within this time is a sign that an agent still works on the cluster.
const IN_USE: SignedDuration = SignedDuration::from_hours(1);

/// Bulk deletes at the same time.
const AT_ONCE: usize = 4;

/// Objects that are named.
const NAMED: usize = 20;

/// What is asked of [`forget`].
#[derive(Clone, Copy, Default, Debug)]
pub struct ForgetOptions {
    /// Change nothing, and tell what would be deleted.
    pub dry_run: bool,
    /// Although holds are in force.
    pub even_if_held: bool,
    /// Although something was stored within the last hour.
    pub even_if_in_use: bool,
}

/// What was deleted of a cluster in one repository, or would be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct Forgotten {
    /// The cluster.
    pub cluster: ClusterName,
    /// The repository's name in the configuration.
    pub repository: String,
    /// Whether it was a dry run, which changes nothing.
    pub dry_run: bool,
    /// When it began.
    pub start_time: Timestamp,
    /// The lineages, oldest first.
    pub lineages: Vec<LineageId>,
    /// The backups that have a manifest or a tombstone, oldest first.
    pub backups: Vec<BackupId>,
    /// The number of objects that the repository held of the cluster.
    pub object_count: u64,
    /// Their size.
    pub object_bytes: u64,
    /// The number of objects that were deleted; 0 in a dry run.
    pub deleted_count: u64,
    /// Their size.
    pub deleted_bytes: u64,
    /// The number of objects that the store refused to delete: they are under a lock, or the account may not delete them.
    pub denied_count: u64,
    /// The first of them.
    pub denied_objects: Vec<String>,
    /// The first objects whose names are not known. They are not touched.
    pub unknown_objects: Vec<String>,
    /// Notes for the operator, one sentence each.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    pub notes: Vec<String>,
}

/// Deletes everything of a cluster in one repository.
pub async fn forget(
    repository: &Repository,
    cluster: &ClusterName,
    options: ForgetOptions,
) -> Result<Forgotten> {
    let mut forgotten = Forgotten {
        cluster: cluster.clone(),
        repository: repository.name().to_owned(),
        dry_run: options.dry_run,
        start_time: Timestamp::now(),
        lineages: Vec::new(),
        backups: Vec::new(),
        object_count: 0,
        object_bytes: 0,
        deleted_count: 0,
        deleted_bytes: 0,
        denied_count: 0,
        denied_objects: Vec::new(),
        unknown_objects: Vec::new(),
        notes: Vec::new(),
    };
    let first = look(repository, cluster, &mut forgotten).await?;
    // A dry run stores nothing, not even what shows the store's clock.
    let ahead = match options.dry_run {
        true => SignedDuration::ZERO,
        false => compare_clocks(repository, cluster, options).await?,
    };
    protect(repository, cluster, options, &first, Timestamp::now() + ahead).await?;
    if options.dry_run {
        return Ok(forgotten);
    }
    let paths = ClusterPaths::new(cluster);
    let is_lineage = |object: &ClusterObject| matches!(object, ClusterObject::Lineage(_));
    let is_manifest = |object: &ClusterObject| matches!(object, ClusterObject::Manifest(_));
    sweep(repository, &paths, &mut forgotten, &paths.lineages(), is_lineage).await?;
    sweep(repository, &paths, &mut forgotten, &paths.backups(), is_manifest).await?;
    sweep(repository, &paths, &mut forgotten, &paths.all(), |_| true).await?;
    repository.store().remove_leftovers(cluster, SignedDuration::ZERO).await?;
    let mut left = repository.store().list(&paths.all(), None);
    let mut late = 0u64;
    while let Some(entry) = left.try_next().await? {
        late += u64::from(paths.parse(&entry.key).is_some());
    }
    if late > forgotten.denied_count {
        forgotten.notes.push(format!(
            "{} objects were stored meanwhile: an agent still works on the cluster\nHINT: Stop it and run this again.",
            late - forgotten.denied_count
        ));
    }
    Ok(forgotten)
}

/// How far the store's clock is ahead, or why nothing may be deleted: neither how long ago something was stored is known while the
/// clocks disagree, nor which holds are in force. Who overrides both guards needs no clock.
pub async fn compare_clocks(
    repository: &Repository,
    cluster: &ClusterName,
    options: ForgetOptions,
) -> Result<SignedDuration> {
    match options.even_if_held && options.even_if_in_use {
        true => Ok(SignedDuration::ZERO),
        false => compare_for_deletion(repository.store(), cluster).await,
    }
}

/// What stands out in a listing.
struct Newest(Option<(Timestamp, Key)>);

/// Lists everything and counts it. Fails if there is nothing.
async fn look(repository: &Repository, cluster: &ClusterName, forgotten: &mut Forgotten) -> Result<Newest> {
    let paths = ClusterPaths::new(cluster);
    let (mut newest, mut lineages, mut backups) = (None, BTreeSet::new(), BTreeSet::new());
    let mut listing = repository.store().list(&paths.all(), None);
    while let Some(entry) = listing.try_next().await? {
        let Some(object) = paths.parse(&entry.key) else {
            if forgotten.unknown_objects.len() < NAMED {
                forgotten.unknown_objects.push(entry.key.to_string());
            }
            continue;
        };
        forgotten.object_count += 1;
        forgotten.object_bytes = forgotten.object_bytes.saturating_add(entry.size);
        match object {
            ClusterObject::Lineage(id) => {
                lineages.insert(id);
            }
            ClusterObject::Manifest(id) => {
                backups.insert(id);
            }
            _ => {}
        }
        let works = !matches!(
            object,
            ClusterObject::Hold(_)
                | ClusterObject::Announcement(_)
                | ClusterObject::Evidence(_)
                | ClusterObject::EvidenceHead
        );
        if works && newest.as_ref().is_none_or(|(at, _)| *at < entry.modified) {
            newest = Some((entry.modified, entry.key));
        }
    }
    drop(listing);
    forgotten.lineages = lineages.into_iter().collect();
    forgotten.backups = backups.into_iter().collect();
    if forgotten.object_count == 0 {
        let known: Vec<String> = repository.clusters().await?.iter().map(ClusterName::to_string).collect();
        let known = if known.is_empty() { "no cluster".to_owned() } else { known.join(", ") };
        let what = format!(
            "repository {} has nothing of cluster {cluster}\nDETAIL: It has {known}.",
            repository.name()
        );
        return Err(RepoError::Protected { what, obstacles: Vec::new(), remedy: None });
    }
    Ok(Newest(newest))
}

/// Fails if something stands against it. `now` is the store's time.
async fn protect(
    repository: &Repository,
    cluster: &ClusterName,
    options: ForgetOptions,
    newest: &Newest,
    now: Timestamp,
) -> Result<()> {
    let mut obstacles = Vec::new();
    if !options.even_if_held {
        let Holdings { holds, damaged } = Holds::of(repository, cluster).look().await?;
        for hold in holds.iter().filter(|hold| hold.is_in_force(now)) {
            let (number, placed) = (hold.number, &hold.placed);
            let what =
                format!("hold {number} by {} is in force: {}", shown(&placed.who), shown(&placed.reason));
            obstacles.push(Obstacle { what, remedy: None, overridden_by: Override::Held });
        }
        for damaged in damaged {
            let (what, remedy) = (damaged.error().to_string(), Some(damaged.remedy()));
            obstacles.push(Obstacle { what, remedy, overridden_by: Override::Held });
        }
    }
    if let Newest(Some((at, key))) = newest
        && !options.even_if_in_use
        && now.duration_since(*at) < IN_USE
    {
        let what = format!(
            "{key} was stored at {at}, within the last hour, so an agent may still work on the cluster: stop it first"
        );
        obstacles.push(Obstacle { what, remedy: None, overridden_by: Override::InUse });
    }
    if obstacles.is_empty() {
        return Ok(());
    }
    let what = format!("cluster {cluster} in repository {} is not deleted", repository.name());
    Err(RepoError::Protected { what, obstacles, remedy: None })
}

/// Deletes what lies below a prefix and is `wanted`.
async fn sweep(
    repository: &Repository,
    paths: &ClusterPaths,
    forgotten: &mut Forgotten,
    prefix: &walpoint_storage::layout::Prefix,
    wanted: impl Fn(&ClusterObject) -> bool,
) -> Result<()> {
    let store = repository.store();
    let found = store.list(prefix, None).try_filter(|entry| {
        std::future::ready(paths.parse(&entry.key).is_some_and(|object| wanted(&object)))
    });
    let delete = |chunk: Vec<Result<ListedObject>>| async move {
        let entries: Vec<ListedObject> = chunk.into_iter().collect::<Result<_>>()?;
        let keys: Vec<Key> = entries.iter().map(|entry| entry.key.clone()).collect();
        let results = store.delete_all(&keys).await;
        Ok::<_, RepoError>(entries.into_iter().zip(results).collect::<Vec<_>>())
    };
    let mut results = found.chunks(BULK).map(delete).buffer_unordered(AT_ONCE);
    while let Some(deleted) = results.next().await {
        for (entry, result) in deleted? {
            match result {
                Ok(()) => {
                    forgotten.deleted_count += 1;
                    forgotten.deleted_bytes = forgotten.deleted_bytes.saturating_add(entry.size);
                }
                Err(RepoError::Denied { .. }) => {
                    let key = entry.key.to_string();
                    // A lineage or a manifest is tried again with the rest.
                    if !forgotten.denied_objects.contains(&key) {
                        forgotten.denied_count += 1;
                        if forgotten.denied_objects.len() < NAMED {
                            forgotten.denied_objects.push(key);
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::tests::bed;

    #[tokio::test]
    async fn an_emptied_directory_is_no_cluster() {
        let bed = bed().await;
        let (repository, cluster): (_, ClusterName) = (bed.archive.repository(), "main".parse().unwrap());
        let options = ForgetOptions { even_if_in_use: true, ..ForgetOptions::default() };
        assert_eq!(repository.clusters().await.unwrap(), std::slice::from_ref(&cluster));
        assert!(forget(repository, &cluster, options).await.unwrap().deleted_count > 0);
        std::fs::create_dir_all(bed.dir.path().join("clusters/main/backups")).unwrap();
        let refused = forget(repository, &cluster, options).await.unwrap_err().to_string();
        assert!(refused.contains("has nothing of cluster main\nDETAIL: It has no cluster."), "{refused}");
        let notes = bed.dir.path().join("clusters/main/notes.txt");
        walpoint_base::durable::replace(&notes, b"another program's", 0o600).unwrap();
        assert_eq!(repository.clusters().await.unwrap(), []);
    }
}
