//! Deleting what was announced and is still out of reach.
//!
//! Intents and progress first, then manifests, then packs, then WAL, whose index forgets it before it goes, unless
//! there is no room to write that. An object that
//! the store does not let go (a lock, missing rights) is reported, stays announced, and is tried again by the next run. A backup whose
//! manifest stays so is listed, and keeps its packs and its WAL; a tombstone keeps nothing.
//! Objects go a thousand at a time where the store has requests for that.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, TryStreamExt};
use walpoint_base::{BackupId, ClusterName, SegmentNo};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::{ClusterObject, ClusterPaths, Key, Prefix};
use walpoint_storage::store::{BULK, ListedObject};

use super::announcements::{AnnouncedNames, KnownAnnouncements};
use super::full_disk;
use super::report::Expired;
use super::scan::Tally;
use crate::Repository;
use crate::index::IndexWriter;
use crate::reach::{Class, Judgement, Roots};

/// Bulk deletes at the same time.
const AT_ONCE: usize = 4;

/// The objects of more backups than this are found by one listing of all backups.
const MANY: usize = 16;

/// Objects under lock that are named.
pub(super) const NAMED: usize = 20;

/// Deletes what is eligible.
pub(super) struct Deleter<'a> {
    repository: &'a Repository,
    cluster: &'a ClusterName,
    paths: ClusterPaths,
    roots: Roots,
    eligible: &'a AnnouncedNames,
    deleted: BTreeMap<Class, Tally>,
    locked: Vec<(ClusterObject, String)>,
}

impl<'a> Deleter<'a> {
    pub(super) fn new(
        repository: &'a Repository,
        cluster: &'a ClusterName,
        roots: Roots,
        eligible: &'a AnnouncedNames,
    ) -> Self {
        let paths = ClusterPaths::new(cluster);
        Self { repository, cluster, paths, roots, eligible, deleted: BTreeMap::new(), locked: Vec::new() }
    }

    /// Deletes what backups have beside packs and WAL; the backups whose manifest the store does not let go. On an error the rest stays
    /// announced.
    pub(super) async fn delete_backups(&mut self) -> Result<BTreeSet<BackupId>> {
        let backups =
            self.prefixes(self.eligible.backups(), self.paths.backups(), |id| self.paths.backup(id));
        for prefix in &backups {
            self.sweep(prefix, |object| !matches!(object, ClusterObject::Manifest(_))).await?;
        }
        for prefix in &backups {
            self.sweep(prefix, |object| matches!(object, ClusterObject::Manifest(_))).await?;
        }
        let held = self.locked.iter().filter_map(|(object, _)| match object {
            ClusterObject::Manifest(id) => Some(*id),
            _ => None,
        });
        Ok(held.collect())
    }

    /// Judges by these from here on.
    pub(super) fn spare(&mut self, roots: Roots) {
        self.roots = roots;
    }

    /// What is judged by.
    pub(super) fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Deletes packs and WAL, which nothing leads to any more. On an error the rest stays announced.
    pub(super) async fn delete_the_rest(&mut self) -> Result<()> {
        for prefix in self.prefixes(self.eligible.packs_of(), self.paths.all_data(), |id| self.paths.data(id))
        {
            self.sweep(&prefix, |_| true).await?;
        }
        let lineages = self.repository.lineages(self.cluster).await?.whole()?;
        for lineage in &lineages {
            let mut writer = IndexWriter::new(self.repository.wal(lineage));
            let wal = self.paths.wal(lineage.id);
            let eligible = self.eligible.wal();
            for ((_, timeline), runs) in eligible.iter().filter(|((id, _), _)| *id == lineage.id) {
                let gone = self.roots.unneeded(lineage.id, *timeline, runs);
                match writer.forget(*timeline, &gone).await {
                    Err(error) if full_disk::is_lacking(&error) => {
                        let first = self.roots.first_needed(lineage.id, *timeline);
                        self.sweep_before(&wal.timeline(*timeline), first).await?;
                        writer.forget(*timeline, &gone).await?;
                    }
                    forgotten => drop(forgotten?),
                }
                self.sweep(&wal.timeline(*timeline), |_| true).await?;
                for level in [crate::index::GROUP_LEVEL, crate::index::DIRECTORY_LEVEL] {
                    self.sweep(&wal.index(*timeline, level), |_| true).await?;
                }
            }
            if eligible.keys().any(|(id, _)| *id == lineage.id) {
                self.sweep(&wal.points(), |_| true).await?;
            }
        }
        Ok(())
    }

    /// Deletes segments that come before everything needed of their timeline, without room to write that the index forgets them. In an
    /// index that promises too much there no window begins, and what a plan takes from it is looked for before it is followed.
    async fn sweep_before(&mut self, timeline: &Prefix, needed: Option<SegmentNo>) -> Result<()> {
        let roots = self.roots.clone();
        let is_old = move |object: &ClusterObject| {
            let last = roots.lineage_segments(object).map(|segments| segments.last);
            last.is_some_and(|last| needed.is_none_or(|needed| last < needed))
        };
        self.sweep(timeline, is_old).await
    }

    /// Where to look for what is of some backups: at each of them, or at once where they are many.
    fn prefixes(
        &self,
        ids: &BTreeSet<BackupId>,
        all: Prefix,
        one: impl Fn(BackupId) -> Prefix,
    ) -> Vec<Prefix> {
        match ids.len() {
            0..=MANY => ids.iter().map(|id| one(*id)).collect(),
            _ => vec![all],
        }
    }

    /// Deletes what lies below a prefix, is named, out of reach, and `wanted`.
    async fn sweep(&mut self, prefix: &Prefix, wanted: impl Fn(&ClusterObject) -> bool) -> Result<()> {
        let (store, roots, eligible, paths) =
            (self.repository.store(), &self.roots, self.eligible, &self.paths);
        let to_delete = store.list(prefix, None).try_filter_map(|entry| {
            let object = paths.parse(&entry.key).filter(|object| wanted(object));
            let named = object.and_then(|object| match roots.judge(&object) {
                Judgement::Unneeded(class) if eligible.names(&object, roots) => Some((object, class, entry)),
                _ => None,
            });
            std::future::ready(Ok(named))
        });
        let delete = |chunk: Vec<Result<(ClusterObject, Class, ListedObject)>>| async move {
            // A listing that breaks off is an error; what it named before is deleted all the same.
            let (mut found, mut error) = (Vec::with_capacity(chunk.len()), None);
            for one in chunk {
                match one {
                    Ok(one) => found.push(one),
                    Err(broken) => error = Some(broken),
                }
            }
            let keys: Vec<Key> = found.iter().map(|(_, _, entry)| entry.key.clone()).collect();
            let results = store.delete_all(&keys).await;
            (found.into_iter().zip(results).collect::<Vec<_>>(), error)
        };
        let mut results = to_delete.chunks(BULK).map(delete).buffer_unordered(AT_ONCE);
        let mut failed = None;
        while let Some((deleted, broken)) = results.next().await {
            for ((object, class, entry), result) in deleted {
                match result {
                    Ok(()) => self.deleted.entry(class).or_default().add(entry.size),
                    Err(RepoError::Denied { .. }) => self.locked.push((object, entry.key.to_string())),
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
            failed = failed.or(broken);
            if failed.is_some() {
                break;
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Puts what the store did not let go into the report.
    pub(super) fn tell(&self, report: &mut Expired) {
        report.denied_count = u64::try_from(self.locked.len()).unwrap_or(u64::MAX);
        report.denied_objects = self.locked.iter().take(NAMED).map(|(_, key)| key.clone()).collect();
    }

    /// What was deleted so far.
    pub(super) fn deleted(&self) -> &BTreeMap<Class, Tally> {
        &self.deleted
    }

    pub(super) fn into_deleted(self) -> BTreeMap<Class, Tally> {
        self.deleted
    }

    /// The announcements of which nothing is left to be done: not those that ask for the deletion of backups of `waiting`.
    pub(super) fn finished(&self, announced: &KnownAnnouncements, waiting: &BTreeSet<BackupId>) -> Vec<u64> {
        let each = announced.each(self.eligible.numbers());
        let idle =
            each.filter(|(_, named)| !self.locked.iter().any(|(object, _)| named.names(object, &self.roots)));
        idle.map(|(n, _)| n).filter(|n| !announced.asks_for(*n, waiting)).collect()
    }
}
