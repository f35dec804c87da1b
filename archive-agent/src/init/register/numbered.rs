//! A lineage that is begun has one number in all repositories of its server, and that number is no other server's there, however many
//! begin one at the same moment.

use walpoint_pg::control::ControlFile;
use walpoint_storage::RepoError;

use super::{Joined, Opened, Registration};
use crate::check::report::CheckReport;
use crate::init::config::ConfigurationPlan;

/// So often a greater number is tried.
const ATTEMPTS: u32 = 10;

impl Registration<'_> {
    /// Joins the cluster's lineage in each repository, or begins it there. One that is begun has one number in all of them: where another
    /// server took that at the same moment, a greater one is tried in all. What the earlier attempt has made holds no WAL, and no data
    /// directory is bound to it.
    pub(super) async fn join_all<'o>(
        &mut self,
        report: &mut CheckReport,
        opened: &'o [Opened],
    ) -> anyhow::Result<Vec<Joined<'o>>> {
        let mut order: Vec<(usize, &Opened)> = opened.iter().enumerate().collect();
        // In the same order from every configuration, so that of two servers one has the number in the first repository, and the other
        // one begins anew there.
        if self.begun.is_some() {
            order.sort_by_key(|(_, opened)| opened.repository.id().to_string());
        }
        let mut attempts = 0;
        'anew: loop {
            let mut joined = Vec::new();
            for (at, opened) in &order {
                match self.join(report, opened).await {
                    Ok(one) => joined.push((*at, one)),
                    Err(error) if self.begun.is_some() && is_conflict(&error) && attempts < ATTEMPTS => {
                        attempts += 1;
                        let repositories = order.iter().map(|(_, opened)| *opened);
                        self.after =
                            last_lineage(repositories, self.plan, self.control).await?.max(self.after);
                        continue 'anew;
                    }
                    Err(error) => return Err(error),
                }
            }
            joined.sort_by_key(|(at, _)| *at);
            return Ok(joined.into_iter().map(|(_, joined)| joined).collect());
        }
    }
}

/// The number of the newest lineage of the cluster in any of these repositories, 0 if there is none.
pub(super) async fn last_lineage<'a>(
    opened: impl IntoIterator<Item = &'a Opened>,
    plan: &ConfigurationPlan,
    control: &ControlFile,
) -> anyhow::Result<u32> {
    let mut last = 0;
    for opened in opened {
        last = last.max(opened.repository.last_lineage(&plan.cluster, control.system_id).await?);
    }
    Ok(last)
}

fn is_conflict(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(RepoError::Conflict { .. }))
}
