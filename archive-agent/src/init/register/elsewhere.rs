//! The lineage of a server that archives already, for a repository that does not know it yet or was made anew: it is the one
//! that the server has in its other repositories, under the same number, or the registration is refused.

use std::path::Path;

use anyhow::{Context, bail};
use walpoint_base::LineageId;
use walpoint_pg::control::ControlFile;
use walpoint_repo::lineage::{BINDING, LineageUid, ParentLineage, bound_elsewhere};
use walpoint_repo::{Lineage, Repository};

use crate::binding;
use crate::init::config::ConfigurationPlan;
use crate::wal::lineage;
use crate::wal::target::TargetError;

/// The lineage that the data directory archives to in another repository: its server has that one in every repository of the cluster.
pub(super) struct Elsewhere {
    pub(super) id: LineageId,
    /// Its facts there, if one of the repositories has them.
    pub(super) lineage: Option<Lineage>,
    /// What it has in common in all repositories from now on, if none has them.
    pub(super) life: LineageUid,
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
                Some(found) => facts.push(found),
                None => drop(there.remove(&repository.id())),
            }
        }
        let known = bound_elsewhere(&there, control.system_id);
        let Some((_, id)) = known.or_else(|| bound_elsewhere(&bound, control.system_id)) else {
            return Self::of_unbound(repositories, plan, pgdata, control).await;
        };
        let lineage = facts.into_iter().find(|lineage| lineage.id == id);
        Ok(Some(Self { id, lineage, life: LineageUid::random() }))
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
                Ok(Some(lineage)) => return Ok(Some(Self { id: lineage.id, lineage: Some(lineage), life })),
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
                Ok(Some(Self { id: LineageId { system_id: control.system_id, n: 1 }, lineage: None, life }))
            }
        }
    }

    /// What the lineage is split off from, in a repository that has nothing of what came before.
    pub(super) fn parent(&self) -> Option<ParentLineage> {
        match &self.lineage {
            Some(lineage) => lineage.parent.map(|parent| ParentLineage { fork: None, ..parent }),
            // Where no repository tells more. Only a data directory that is bound to it archives into it.
            None => self.id.n.checked_sub(1).filter(|n| *n > 0).map(|n| ParentLineage {
                lineage: LineageId { n, ..self.id },
                fork: None,
                began: None,
                life: Some(self.life),
            }),
        }
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
