//! The other repositories that the configuration has of a cluster that is registered in one of them only. A lineage that is made in that one
//! begins with those that acknowledge the server's WAL in the others: a reader that has no other repository waits for their word.

use anyhow::bail;
use walpoint_repo::Repository;
use walpoint_storage::RepoError;

use crate::init::config::ConfigurationPlan;

/// The other repositories, as far as they answer.
#[derive(Default)]
pub(super) struct Others {
    pub(super) there: Vec<Repository>,
    /// Those that cannot be opened, by their names.
    away: Vec<(String, RepoError)>,
}

impl Others {
    pub(super) async fn open(plan: &ConfigurationPlan) -> Self {
        let mut others = Self::default();
        for (name, settings) in &plan.others {
            match Repository::open(name, &settings.impatient()).await {
                Ok(other) => others.there.push(other),
                Err(error) => others.away.push((name.clone(), error)),
            }
        }
        others
    }

    /// Makes sure that those answer that have to acknowledge: each of them knows who has acknowledged the server's WAL so far. One that is
    /// not there may not be mounted.
    pub(super) fn are_known(&self, repository: &Repository, plan: &ConfigurationPlan) -> anyhow::Result<()> {
        let required = plan.settings.ack_set();
        let Some((name, error)) = self.away.iter().find(|(name, _)| required.contains(name)) else {
            return Ok(());
        };
        bail!(
            "repository {name} of cluster {} cannot be opened: {}\nDETAIL: Repository {} has to record which repositories acknowledge WAL, \
             or a recovery from it alone could end early. The cluster was not registered there.\nHINT: Make repository {name} reachable and \
             run this again. If it is yet to be created, run \"archive-agent init\" without --repo. If it is lost for good, first remove it \
             from the repositories of the cluster in {}.",
            plan.cluster,
            walpoint_words::error(error),
            repository.name(),
            plan.path.display()
        )
    }
}
