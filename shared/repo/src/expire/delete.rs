//! Deleting what was announced and is still out of reach.
//!
//! Intents and progress first, then manifests, then packs, then WAL, whose index forgets it before it goes. An object that
//! the store does not let go (a lock, missing rights) is reported, stays announced, and is tried again by the next run.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt};
use walpoint_base::ClusterName;

use super::condemned::{Announced, Named};
use super::report::Expired;
use super::scan::Tally;
use crate::Repository;
use crate::error::{RepoError, Result};
use crate::index::IndexWriter;
use crate::layout::{ClusterObject, ClusterPaths, Prefix};
use crate::reach::{Class, Judgement, Roots};
use crate::store::Entry;

/// Objects that are deleted at the same time.
const AT_ONCE: usize = 16;

/// Objects under lock that are named.
const NAMED: usize = 20;

/// Deletes what is ripe.
pub(super) struct Deleter<'a> {
    repository: &'a Repository,
    cluster: &'a ClusterName,
    paths: ClusterPaths,
    roots: &'a Roots,
    ripe: &'a Named,
    deleted: BTreeMap<Class, Tally>,
    locked: Vec<(ClusterObject, String)>,
}

impl<'a> Deleter<'a> {
    pub(super) fn new(
        repository: &'a Repository,
        cluster: &'a ClusterName,
        roots: &'a Roots,
        ripe: &'a Named,
    ) -> Self {
        let paths = ClusterPaths::new(cluster);
        Self { repository, cluster, paths, roots, ripe, deleted: BTreeMap::new(), locked: Vec::new() }
    }

    /// Deletes all of it. On an error the rest stays announced.
    pub(super) async fn run(&mut self) -> Result<()> {
        let ids: Vec<_> = self.ripe.backups().iter().copied().collect();
        for id in &ids {
            self.sweep(&self.paths.backup(*id), |object| !matches!(object, ClusterObject::Manifest(_)))
                .await?;
        }
        for id in &ids {
            self.sweep(&self.paths.backup(*id), |_| true).await?;
        }
        let with_packs: Vec<_> = self.ripe.packs_of().iter().copied().collect();
        for id in with_packs {
            self.sweep(&self.paths.data(id), |_| true).await?;
        }
        let lineages = self.repository.lineages(self.cluster).await?;
        for lineage in &lineages {
            let mut writer = IndexWriter::new(self.repository.wal(lineage));
            let wal = self.paths.wal(lineage.id);
            let ripe = self.ripe.wal();
            for ((_, timeline), runs) in ripe.iter().filter(|((id, _), _)| *id == lineage.id) {
                let gone = self.roots.unneeded(lineage.id, *timeline, runs);
                writer.forget(*timeline, &gone).await?;
                self.sweep(&wal.timeline(*timeline), |_| true).await?;
                for level in [crate::index::GROUP_LEVEL, crate::index::DIRECTORY_LEVEL] {
                    self.sweep(&wal.index(*timeline, level), |_| true).await?;
                }
            }
            if ripe.keys().any(|(id, _)| *id == lineage.id) {
                self.sweep(&wal.points(), |_| true).await?;
            }
        }
        Ok(())
    }

    /// Deletes what lies below a prefix, is named, out of reach, and `wanted`.
    async fn sweep(&mut self, prefix: &Prefix, wanted: impl Fn(&ClusterObject) -> bool) -> Result<()> {
        let (store, roots, ripe, paths) = (self.repository.store(), self.roots, self.ripe, &self.paths);
        let doomed = store.list(prefix, None).try_filter_map(|entry| {
            let object = paths.parse(&entry.key).filter(|object| wanted(object));
            let doomed = object.and_then(|object| match roots.judge(&object) {
                Judgement::Unneeded(class) if ripe.names(&object, roots) => Some((object, class, entry)),
                _ => None,
            });
            std::future::ready(Ok(doomed))
        });
        let delete = |found: Result<(ClusterObject, Class, Entry)>| async {
            let (object, class, entry) = found?;
            match store.delete(&entry.key).await {
                Ok(()) => Ok((object, class, entry, true)),
                Err(RepoError::Denied { .. }) => Ok((object, class, entry, false)),
                Err(error) => Err(error),
            }
        };
        let mut results = doomed.map(delete).buffer_unordered(AT_ONCE);
        let mut done = Vec::new();
        let mut failed = None;
        while let Some(result) = results.next().await {
            match result {
                Ok((_, class, entry, true)) => done.push((class, entry.size)),
                Ok((object, _, entry, false)) => self.locked.push((object, entry.key.to_string())),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
            if done.len() >= 1000 {
                count(&mut self.deleted, &mut done);
            }
        }
        drop(results);
        count(&mut self.deleted, &mut done);
        failed.map_or(Ok(()), Err)
    }

    /// Puts it into the report.
    pub(super) fn tell(&self, report: &mut Expired) {
        report.deleted(&self.deleted);
        report.held_objects = u64::try_from(self.locked.len()).unwrap_or(u64::MAX);
        report.held = self.locked.iter().take(NAMED).map(|(_, key)| key.clone()).collect();
    }

    /// The announcements of which nothing is left to be done.
    pub(super) fn finished(&self, announced: &Announced) -> Vec<u64> {
        let each = announced.each(self.ripe.numbers());
        let idle =
            each.filter(|(_, named)| !self.locked.iter().any(|(object, _)| named.names(object, self.roots)));
        idle.map(|(n, _)| n).collect()
    }
}

fn count(deleted: &mut BTreeMap<Class, Tally>, done: &mut Vec<(Class, u64)>) {
    for (class, bytes) in done.drain(..) {
        deleted.entry(class).or_default().add(bytes);
    }
}
