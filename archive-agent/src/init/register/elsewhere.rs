//! The lineage of a server that archives already, for a repository that does not know it yet or was made anew: it is the one
//! that the server has in its other repositories, under the same number, or the registration is refused.

use std::path::Path;

use anyhow::{Context, bail};
use walpoint_base::{LineageId, SegmentNo};
use walpoint_pg::control::ControlFile;
use walpoint_repo::agreement::{self, Agreement};
use walpoint_repo::lineage::{AckMember, BINDING, LineageFork, LineageUid, ParentLineage, bound_elsewhere};
use walpoint_repo::wal::WalArchive;
use walpoint_repo::{Lineage, Repository};
use walpoint_storage::RepoError;

use super::on_record;
use crate::binding;
use crate::init::config::ConfigurationPlan;
use crate::wal::lineage;
use crate::wal::target::TargetError;

/// The lineage that the data directory archives to in another repository: its server has that one in every repository of the cluster.
pub(super) struct Elsewhere {
    pub(super) id: LineageId,
    /// Its facts there, if one of the repositories has them.
    pub(super) lineage: Option<Lineage>,
    /// That one.
    pub(super) repository: Option<Repository>,
    /// What it has in common in all repositories from now on, if none has them.
    pub(super) life: LineageUid,
    /// Those that acknowledge, as these repositories have it on record.
    pub(super) members: Vec<AckMember>,
}

impl Elsewhere {
    pub(super) async fn of(
        repositories: &[&Repository],
        plan: &ConfigurationPlan,
        control: &ControlFile,
    ) -> anyhow::Result<Option<Self>> {
        let pgdata = plan.pgdata().map_err(|failure| failure.error)?;
        let bound = binding::read_all(pgdata, &plan.cluster)
            .await
            .with_context(|| pgdata.join(BINDING).display().to_string())?;
        // A line counts where its lineage is, or where that cannot be seen from here.
        let (mut there, mut facts) = (bound.clone(), Vec::new());
        for repository in repositories {
            let Some(id) = bound.get(&repository.id()) else { continue };
            match repository.read_lineage(&plan.cluster, *id).await? {
                Some(found) => facts.push((found, (*repository).clone())),
                None => drop(there.remove(&repository.id())),
            }
        }
        let known = bound_elsewhere(&there, control.system_id);
        let Some((_, id)) = known.or_else(|| bound_elsewhere(&bound, control.system_id)) else {
            return Self::of_unbound(repositories, plan, pgdata, control).await;
        };
        facts.retain(|(lineage, _)| lineage.id == id);
        let members = on_record::members_of_all(&facts).await?;
        // One that was added later may not know the fork.
        facts.sort_by_key(|(lineage, _)| lineage.parent.is_none_or(|parent| parent.fork.is_none()));
        let (lineage, repository) = facts.into_iter().next().unzip();
        Ok(Some(Self { id, lineage, repository, life: LineageUid::random(), members }))
    }

    /// That of a data directory that is bound to none, where a repository has only lineages that were split off from it: it was
    /// made anew, and a copy was registered there first. `None` where nothing of that kind is in the way.
    async fn of_unbound(
        repositories: &[&Repository],
        plan: &ConfigurationPlan,
        pgdata: &Path,
        control: &ControlFile,
    ) -> anyhow::Result<Option<Self>> {
        let mut first = false;
        for repository in repositories {
            let lineages = repository.lineages(&plan.cluster).await?.of(control.system_id);
            let all_split = lineages.read.iter().all(|lineage| lineage.parent.is_some());
            // One whose facts are damaged may be the one that was not.
            if let Some(damaged) = lineages.damaged.first().filter(|_| all_split) {
                return Err(damaged.error().into());
            }
            first |= !lineages.read.is_empty() && all_split;
        }
        if !first {
            return Ok(None);
        }
        let (life, mut unknown) = (LineageUid::random(), None);
        for repository in repositories {
            match lineage::of_directory(repository, &plan.cluster, pgdata).await {
                Ok(Some(lineage)) => {
                    let members = on_record::members(repository, &lineage).await?;
                    let repository = Some((*repository).clone());
                    return Ok(Some(Self {
                        id: lineage.id,
                        lineage: Some(lineage),
                        repository,
                        life,
                        members,
                    }));
                }
                Ok(None) => {}
                // Another repository may tell. One where the first lineage is another server's says that this is a copy.
                Err(error) => match error.downcast_ref::<TargetError>() {
                    Some(TargetError::UnknownLineage { .. } | TargetError::DamagedLineage(_)) => {
                        unknown = Some(error)
                    }
                    _ => return Err(error),
                },
            }
        }
        match unknown {
            Some(unknown) => Err(unknown),
            None => {
                let id = LineageId { system_id: control.system_id, n: 1 };
                Ok(Some(Self { id, lineage: None, repository: None, life, members: Vec::new() }))
            }
        }
    }

    /// The lineage that the WAL of a data directory shows, which is bound to none, in repositories that are not joined: they have several.
    /// `None` where it is the first, or they have only that.
    pub(super) async fn by_wal(
        others: &[Repository],
        plan: &ConfigurationPlan,
        control: &ControlFile,
    ) -> anyhow::Result<Option<Self>> {
        let pgdata = plan.pgdata().map_err(|failure| failure.error)?;
        for repository in others {
            let lineages = repository.lineages(&plan.cluster).await?.of(control.system_id);
            let is_split = lineages.read.iter().any(|lineage| lineage.parent.is_some());
            if lineages.damaged.is_empty() && !is_split {
                continue;
            }
            let found =
                lineage::of_directory(repository, &plan.cluster, pgdata).await.with_context(|| {
                    format!(
                        "repository {}: which lineage is this server's has to be settled there first",
                        repository.name()
                    )
                })?;
            if let Some(lineage) = found.filter(|lineage| lineage.parent.is_some()) {
                let members = on_record::members(repository, &lineage).await?;
                let (id, life) = (lineage.id, LineageUid::random());
                let (lineage, repository) = (Some(lineage), Some(repository.clone()));
                return Ok(Some(Self { id, lineage, repository, life, members }));
            }
        }
        Ok(None)
    }

    /// What the lineage is split off from, in a repository that gets it now. The fork is taken over where that holds the parent's WAL
    /// up to it.
    pub(super) async fn parent(&self, repository: &Repository) -> anyhow::Result<Option<ParentLineage>> {
        Ok(match &self.lineage {
            Some(lineage) => match (lineage.parent, &self.repository) {
                (Some(parent), Some(source)) => {
                    let fork = fork_in((source, repository), lineage, parent).await?;
                    Some(ParentLineage { fork, ..parent })
                }
                (parent, _) => parent.map(|parent| ParentLineage { fork: None, ..parent }),
            },
            // Where no repository tells more. Only a data directory that is bound to it archives into it.
            None => self.id.n.checked_sub(1).filter(|n| *n > 0).map(|n| ParentLineage {
                lineage: LineageId { n, ..self.id },
                fork: None,
                began: None,
                life: Some(self.life),
            }),
        })
    }

    /// The lineage in a repository that the data directory is not bound to, and binds it to that; `None` if it is not there.
    pub(super) async fn find(
        &self,
        repository: &Repository,
        plan: &ConfigurationPlan,
    ) -> anyhow::Result<Option<Lineage>> {
        let Some(found) = repository.read_lineage(&plan.cluster, self.id).await? else { return Ok(None) };
        let id = self.id;
        let same = match &self.lineage {
            Some(lineage) => lineage.is_same_life(&found),
            // One that was not split off is the one for data directories that are bound to none.
            None => found.parent.is_none(),
        };
        if !same {
            bail!(
                "the data directory is bound to lineage {id} in another repository, and nothing shows that the lineage {id} \
                 in this one is the same server's: nothing was changed\nHINT: If it is, add the line \"{}\" to {BINDING} in \
                 the data directory. Else begin a lineage that is this server's in all repositories: \"archive-agent init \
                 --new-lineage --even-if-bound\".",
                walpoint_repo::lineage::binding(&plan.cluster, [(repository.id(), id)]).trim_end()
            );
        }
        Ok(Some(found))
    }
}

/// Up to where a lineage of one repository has its parent's WAL in common, as far as the other repository holds that WAL: it has the
/// same parent, and the last segment of it is the same.
async fn fork_in(
    (source, repository): (&Repository, &Repository),
    lineage: &Lineage,
    parent: ParentLineage,
) -> Result<Option<LineageFork>, RepoError> {
    let Some(fork) = parent.fork else { return Ok(None) };
    let (theirs, ours) = (
        source.read_lineage(&lineage.cluster, parent.lineage).await?,
        repository.read_lineage(&lineage.cluster, parent.lineage).await?,
    );
    let Some((theirs, ours)) = theirs.zip(ours).filter(|(theirs, ours)| ours.is_same_life(theirs)) else {
        return Ok(None);
    };
    let (from, to) = (source.wal_to_read(&theirs).await?, repository.wal_to_read(&ours).await?);
    let size = ours.segment_size;
    // Only whole segments are taken from the parent, so of the one in which the fork lies it is enough where that begins.
    let whole = SegmentNo::of(fork.lsn, size).start(size);
    Ok(match holds_before(&from, &to, LineageFork { lsn: whole, ..fork }).await? {
        true => Some(LineageFork { lsn: whole, ..fork }),
        false => None,
    })
}

/// Whether two archives hold the same segment before the start of another one, on the path to that one's timeline.
async fn holds_before(from: &WalArchive, to: &WalArchive, fork: LineageFork) -> Result<bool, RepoError> {
    let LineageFork { timeline, lsn } = fork;
    let size = from.lineage().segment_size;
    let Some(last) = SegmentNo::of(lsn, size).0.checked_sub(1).map(SegmentNo) else { return Ok(false) };
    if agreement::of_histories(from, to, timeline).await? != Agreement::Same {
        return Ok(false);
    }
    let history = from.history(timeline).await?;
    let of = history.map_or(timeline, |history| history.timeline_at(lsn - 1));
    Ok(agreement::newest(from, to, &[last.name(of, size)]).await? == Agreement::Same)
}

#[cfg(test)]
mod tests {
    use walpoint_base::{Lsn, TimelineId};

    use super::*;
    use crate::wal::fixtures::Bed;

    #[tokio::test]
    async fn the_fork_is_taken_over_where_the_parents_wal_is() {
        let (main, far) = (Bed::named("main").await, Bed::named("far").await);
        let (source, target) = (main.archive.repository(), far.archive.repository());
        let first = main.archive.lineage().clone();
        let fork = LineageFork { timeline: TimelineId::FIRST, lsn: Lsn(0x30_0800) };
        let parent = ParentLineage {
            lineage: first.id,
            fork: Some(fork),
            began: None,
            life: Some(LineageUid::random()),
        };
        let id = LineageId { n: 2, ..first.id };
        let lineage = Lineage { id, parent: Some(parent), ..first };
        let (life, repository) = (LineageUid::random(), Some(source.clone()));
        let elsewhere = Elsewhere { id, lineage: Some(lineage), repository, life, members: Vec::new() };
        let taken = async || elsewhere.parent(target).await.unwrap().unwrap();
        main.put("000000010000000000000002", 1).await;
        assert_eq!(taken().await, ParentLineage { fork: None, ..parent }, "it has nothing of that");
        far.put("000000010000000000000002", 1).await;
        let whole = LineageFork { lsn: Lsn(0x30_0000), ..fork };
        let expected = ParentLineage { fork: Some(whole), ..parent };
        assert_eq!(taken().await, expected, "of the segment in which it lies nothing is taken");

        // Another server's.
        let other = Bed::named("other").await;
        other.put("000000010000000000000002", 2).await;
        let target = other.archive.repository();
        assert_eq!(elsewhere.parent(target).await.unwrap().unwrap().fork, None);
    }
}
