//! Expiring one backup by name: what stands against it, and what overrides that.

use std::collections::BTreeSet;

use jiff::Timestamp;
use walpoint_base::{BackupId, ClusterName};
use walpoint_plan::retention::{DeletionRequest, Protection, protections};
use walpoint_storage::error::{Obstacle, Override, Remedy, RepoError, Result};

use super::gather::Gathered;
use super::report::Expired;
use super::{aborted, roots};
use crate::backup::Backups;

/// A backup that is to be deleted, whatever the rules say.
#[derive(Clone, Debug)]
pub struct NamedBackup {
    /// Which one.
    pub backup: BackupId,
    /// Who asks, for what is announced.
    pub who: String,
    /// Although holds keep it.
    pub even_if_held: bool,
    /// Although it is the last one from which something can be restored.
    pub even_if_last: bool,
    /// Abort the unfinished backups that build on it.
    pub abort_unfinished: bool,
    /// What is noted then of why they were aborted.
    pub abort_reason: String,
}

/// The request, if nothing stands against it; it counts from now on. Aborts unfinished backups that build on the backup if
/// that is asked for.
pub(super) async fn admit(
    cluster: &ClusterName,
    backups: &Backups,
    gathered: &mut Gathered,
    named: &NamedBackup,
    now: Timestamp,
    report: &mut Expired,
) -> Result<DeletionRequest> {
    let id = named.backup;
    find(cluster, backups, gathered, id)?;
    let found = protections(&gathered.facts, id, &already_gone(gathered), now);
    let users = roots::users(gathered, id);
    let mut obstacles: Vec<Obstacle> = Vec::new();
    let obstacle = |what: String, overridden_by| Obstacle { what, remedy: None, overridden_by };
    let mut despite_holds = BTreeSet::new();
    for protection in found.iter().chain(&gathered.holds_on_unreadable(id, now)) {
        let (overridden, by) = match protection {
            Protection::Hold(number, ..) => {
                despite_holds.insert(*number);
                (named.even_if_held, Override::Held)
            }
            Protection::Last | Protection::Base(_) | Protection::MaybeBase(_) | Protection::Path(..) => {
                (named.even_if_last, Override::Last)
            }
        };
        if !overridden {
            obstacles.push(obstacle(protection.to_string(), by));
        }
    }
    for user in users.iter().filter(|_| !named.abort_unfinished) {
        let what = format!("the unfinished backup {user} builds on it");
        obstacles.push(obstacle(what, Override::AbortUnfinished));
    }
    if !obstacles.is_empty() {
        let what = format!("backup {id} of cluster {cluster} is not deleted");
        return Err(RepoError::Protected { what, obstacles, remedy: None });
    }
    for user in users {
        aborted::abort_backup(backups, gathered, user, report, &named.abort_reason).await?;
    }
    let (who, even_if_last) = (named.who.clone(), named.even_if_last);
    let request = DeletionRequest { backup: id, who, at: now, despite_holds, even_if_last };
    gathered.ask(request.clone(), now);
    Ok(request)
}

/// Fails if there is no finished backup of that id.
fn find(cluster: &ClusterName, backups: &Backups, gathered: &Gathered, id: BackupId) -> Result<()> {
    if gathered.facts.backups.iter().any(|backup| backup.id == id) || gathered.unreadable.contains(&id) {
        return Ok(());
    }
    let (what, remedy) = if gathered.unfinished.iter().any(|unfinished| unfinished.id == id) {
        ("is unfinished: the next backup resumes or aborts it, and expire deletes what it stored", None)
    } else if gathered.aborted.iter().any(|(aborted, _)| *aborted == id) {
        ("was aborted, expire deletes what it stored", None)
    } else {
        ("is not here", Some(Remedy::ListBackups))
    };
    let store = backups.store().name();
    let what = format!("backup {id} of cluster {cluster} in {store} {what}");
    Err(RepoError::Protected { what, obstacles: Vec::new(), remedy })
}

/// The backups whose deletion was asked for before.
fn already_gone(gathered: &Gathered) -> BTreeSet<BackupId> {
    gathered.facts.requests.iter().map(|request| request.backup).collect()
}
