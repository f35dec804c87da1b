//! Which lineage of a repository a data directory reads.
//!
//! The line for the repository in its binding says so. A repository that the binding does not mention has the same server's WAL
//! under the same number, or none of it; only a directory without a binding reads the lineage that was not split off. Never does
//! one repository's number decide about another repository that the binding mentions: a number may be another server's there.
//!
//! The binding counts before what the recovery began with: a person binds a standby to the lineage that its primary archives into
//! now. The recovery goes on there only where both lineages have what the directory holds already, or the newest of that is in the bound
//! one; else nothing is given. A process that serves many requests looks at the binding with each.

use std::collections::BTreeMap;
use std::io::ErrorKind;

use anyhow::{Context, bail};
use walpoint_base::{ClusterName, LineageId, WalDirectory};
use walpoint_pg::control::{CONTROL_FILE, ControlFile};
use walpoint_repo::lineage::{BINDING, LineageFork, bound_elsewhere, bound_lineages};
use walpoint_repo::{Lineage, Repository};
use walpoint_storage::object::RepositoryId;

use super::{ClusterArchive, lock};
use crate::wal::branch;
use crate::wal::creates::Marked;
use crate::wal::own::{self, Own};
use crate::wal::refusal::LastingError;
use crate::wal::source::FetchSource;

impl ClusterArchive {
    pub(super) async fn find_lineage(&self, repository: &Repository) -> anyhow::Result<Lineage> {
        let cluster = &self.cluster;
        let (bound, mut elsewhere) = (self.bound()?, lock(&self.lineage).clone());
        // What the data directory says of this very repository needs no other one.
        if let Some(id) = bound.get(&repository.id()) {
            let found = repository.read_lineage(cluster, *id).await?;
            let found = found.with_context(|| format!("lineage {id} of cluster {cluster} is not in it"))?;
            if elsewhere.is_some_and(|elsewhere| elsewhere.id == *id && !elsewhere.is_same_life(&found)) {
                return Err(another_servers(*id, cluster));
            }
            if let Some(begun) = self.origin.lineage()?.filter(|begun| begun != id) {
                self.change(begun, &found, repository).await?;
            }
            return Ok(found);
        }
        if elsewhere.is_none() && !bound.is_empty() {
            elsewhere = self.bound_elsewhere(&bound).await;
        }
        let known = match &elsewhere {
            Some(lineage) => Some(lineage.id),
            None => self.origin.lineage()?.or_else(|| {
                let system_id = self.system_id?;
                bound_elsewhere(&bound, system_id).map(|(_, lineage)| lineage)
            }),
        };
        if let Some(id) = known {
            let found = repository.read_lineage(cluster, id).await?;
            let found = found.with_context(|| match &self.place {
                Some(place) if !bound.is_empty() => format!(
                    "lineage {id} of cluster {cluster}, which {} names for another repository, is not in it\nHINT: \
                     \"archive-agent init\" on the primary creates it there.",
                    place.pgdata.join(BINDING).display()
                ),
                _ => format!("lineage {id} of cluster {cluster} is not in it"),
            })?;
            if elsewhere.is_some_and(|elsewhere| !elsewhere.is_same_life(&found)) {
                return Err(another_servers(id, cluster));
            }
            return Ok(found);
        }
        if let Some(system_id) = self.system_id {
            let found = repository.lineage_for(cluster, system_id).await?;
            return found.with_context(|| {
                format!("cluster {cluster} with system identifier {system_id} is not in it\nHINT: Check that this is the \
                         right cluster.")
            });
        }
        let lineages = repository.lineages(cluster).await?;
        // One that was split off is asked for from its own data directory.
        let read = &lineages.read;
        let newest = read.iter().rev().find(|lineage| lineage.parent.is_none()).or(read.last());
        // One that cannot be read may be the one that was not split off, or of another system identifier.
        let other = lineages.damaged.iter().find(|damaged| {
            newest.is_none_or(|newest| newest.parent.is_some() || newest.system_id() != damaged.id.system_id)
        });
        if let Some(damaged) = other {
            return Err(damaged.error().into());
        }
        let newest = newest.cloned().with_context(|| format!("cluster {cluster} is not in it"))?;
        if read.iter().any(|lineage| lineage.system_id() != newest.system_id()) {
            bail!(
                "cluster {cluster} has had several system identifiers\nHINT: Fetch into pg_wal of the data directory that \
                 needs it."
            );
        }
        Ok(newest)
    }

    /// Lets a recovery that began in another lineage go on in the bound one, if what the data directory holds is in both, or in that one.
    async fn change(&self, begun: LineageId, bound: &Lineage, repository: &Repository) -> anyhow::Result<()> {
        let Some(place) = &self.place else { return Ok(()) };
        let parent = bound.parent.filter(|parent| parent.lineage == begun);
        let common = parent.and_then(|parent| parent.fork).is_some_and(|fork| holds_less(place, fork));
        let is_there = common || {
            let wal = repository.wal_to_read(bound).await?;
            // What lies before the fork is in both, and shows nothing of what may lie behind it.
            matches!(own::newest(&place.wal, &wal).await?, Some(Own::Same(name)) if !wal.inherits(name))
        };
        if !is_there {
            let (path, id) = (place.pgdata.join(BINDING), bound.id);
            bail!(LastingError(format!(
                "this recovery began in lineage {begun}, and {} binds the data directory to {id}: it is not known that what \
                 was replayed is in {id}\nHINT: If the data directory has WAL of {begun} that {id} lacks, create it anew \
                 (restore-agent restore --standby, or pg_basebackup). If it is to continue in {begun}, correct {BINDING}.",
                path.display()
            )));
        }
        tracing::warn!(
            "the data directory is bound to lineage {}: recovery continues there, and no longer in {begun}",
            bound.id
        );
        self.origin.begin_anew(bound.id)
    }

    /// Whether the data directory is bound otherwise than when its lineage was looked up.
    pub(crate) fn is_rebound(&self) -> bool {
        BindingFile::of(self.place.as_ref()) != *lock(&self.binding)
    }

    /// Forgets the lineage and all that is known of it: the next request looks up what the data directory is bound to.
    pub(crate) fn forget(&self) {
        *lock(&self.binding) = BindingFile::of(self.place.as_ref());
        self.sources.iter().for_each(FetchSource::close);
        *lock(&self.lineage) = None;
        lock(&self.histories).clear();
        *lock(&self.marked) = Marked::default();
        self.served.forget();
    }

    /// The lineages of this cluster that the data directory is bound to.
    fn bound(&self) -> anyhow::Result<BTreeMap<RepositoryId, LineageId>> {
        let Some(WalDirectory { pgdata, .. }) = &self.place else { return Ok(BTreeMap::new()) };
        let path = pgdata.join(BINDING);
        let read = match std::fs::read_to_string(&path) {
            Ok(text) => bound_lineages(&text, &self.cluster).map_err(anyhow::Error::from),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error.into()),
        };
        let mut bound = read.with_context(|| {
            format!("{} cannot be read, so the lineage of this data directory is unknown", path.display())
        })?;
        bound.retain(|_, lineage| self.system_id.is_none_or(|system_id| lineage.system_id == system_id));
        Ok(bound)
    }

    /// The facts of the lineage that the data directory is bound to, from the first repository that it mentions and that can be
    /// read: a lineage of the same number in one that it does not mention may be another server's.
    async fn bound_elsewhere(&self, bound: &BTreeMap<RepositoryId, LineageId>) -> Option<Lineage> {
        for source in &self.sources {
            let Ok(repository) = Repository::open(&source.name, &source.settings).await else { continue };
            let Some(id) = bound.get(&repository.id()) else { continue };
            if let Ok(Some(found)) = repository.read_lineage(&self.cluster, *id).await {
                return Some(found);
            }
        }
        None
    }
}

/// What the file that binds a data directory holds, or why that is not known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct BindingFile(Result<Vec<u8>, ErrorKind>);

impl BindingFile {
    /// As it is now; of no data directory it is missing.
    pub(super) fn of(place: Option<&WalDirectory>) -> Self {
        let read = place.map(|place| std::fs::read(place.pgdata.join(BINDING)));
        Self(read.map_or(Err(ErrorKind::NotFound), |read| read.map_err(|error| error.kind())))
    }
}

/// Whether a data directory holds nothing behind the position up to which two lineages have the same WAL.
fn holds_less(place: &WalDirectory, fork: LineageFork) -> bool {
    let control = std::fs::read(place.pgdata.join(CONTROL_FILE)).ok();
    let Some(control) = control.and_then(|control| ControlFile::parse(&control).ok()) else { return false };
    let sizes = (control.wal_segment_size, u64::from(control.wal_block_size));
    let reached = control.min_recovery_point.max(control.checkpoint.lsn);
    reached <= fork.lsn && !branch::goes_on(&place.wal, fork.timeline, fork.lsn, sizes)
}

fn another_servers(id: LineageId, cluster: &ClusterName) -> anyhow::Error {
    let what = "is another server's in it than in the other repositories";
    LastingError(format!("lineage {id} of cluster {cluster} {what}")).into()
}
