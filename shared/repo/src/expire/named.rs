//! Expiring one backup by name: what stands against it, and what overrides that.

use std::collections::BTreeSet;

use jiff::Timestamp;
use walpoint_base::{BackupId, ClusterName};
use walpoint_plan::retention::{Protection, Request, protections};
use walpoint_storage::error::{RepoError, Result};

use super::gather::Gathered;
use super::report::Expired;
use super::{dead, roots};
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
) -> Result<Request> {
    let id = named.backup;
    find(cluster, backups, gathered, id)?;
    let found = protections(&gathered.facts, id, &already_gone(gathered), now);
    let users = roots::users(gathered, id);
    let mut against: Vec<String> = Vec::new();
    let mut despite_holds = BTreeSet::new();
    for protection in found.iter().chain(&gathered.holds_on_unreadable(id, now)) {
        let (overridden, flag) = match protection {
            Protection::Hold(number, ..) => {
                despite_holds.insert(*number);
                (named.even_if_held, "--even-if-held")
            }
            Protection::Last | Protection::Base(_) | Protection::Path(..) => {
                (named.even_if_last, "--even-if-last")
            }
        };
        if !overridden {
            against.push(format!("{protection} ({flag} overrides this)"));
        }
    }
    for user in users.iter().filter(|_| !named.abort_unfinished) {
        against
            .push(format!("the unfinished backup {user} builds on it (--abort-unfinished aborts that one)"));
    }
    if !against.is_empty() {
        let what = format!("backup {id} of cluster {cluster} is not deleted: {}", against.join("; "));
        return Err(RepoError::Protected { what });
    }
    for user in users {
        dead::bury(backups, gathered, user, report, "archive-agent expire --abort-unfinished aborted it")
            .await?;
    }
    let (who, even_if_last) = (named.who.clone(), named.even_if_last);
    let request = Request { backup: id, who, at: now, despite_holds, even_if_last };
    gathered.ask(request.clone(), now);
    Ok(request)
}

/// Fails if there is no finished backup of that id.
fn find(cluster: &ClusterName, backups: &Backups, gathered: &Gathered, id: BackupId) -> Result<()> {
    if gathered.facts.backups.iter().any(|backup| backup.id == id) || gathered.unreadable.contains(&id) {
        return Ok(());
    }
    let what = if gathered.unfinished.iter().any(|unfinished| unfinished.id == id) {
        "is unfinished: the next backup resumes or aborts it, and expire deletes what it stored"
    } else if gathered.ended.iter().any(|(ended, _)| *ended == id) {
        "was aborted, expire deletes what it stored"
    } else {
        "is not here; archive-agent status lists the backups"
    };
    let store = backups.store().name();
    Err(RepoError::Protected { what: format!("backup {id} of cluster {cluster} in {store} {what}") })
}

/// The backups whose deletion was asked for before.
fn already_gone(gathered: &Gathered) -> BTreeSet<BackupId> {
    gathered.facts.requests.iter().map(|request| request.backup).collect()
}
