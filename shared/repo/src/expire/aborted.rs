//! Unfinished backups that no process will finish. They are aborted by a tombstone, which stands where the manifest would: if
//! the backup is alive after all, the process that creates that object first decides. A backup of a large cluster in which little
//! changes may store nothing for days: the lease that it renews shows that it lives.

use jiff::{SignedDuration, Timestamp};
use walpoint_base::{BackupId, ClusterName};
use walpoint_plan::retention::CLOCK_LIMIT;
use walpoint_storage::error::{RepoError, Result};

use super::gather::{Gathered, Unfinished};
use super::report::Expired;
use crate::Repository;
use crate::backup::Backups;
use crate::lease::{BACKUP, Lease, Leases};

/// One that stored nothing for so long is aborted if a later one was finished: that had its chance to take over what it stored.
const OVERTAKEN: SignedDuration = SignedDuration::from_hours(24);

/// One that stored nothing for so long is aborted.
const SILENT: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Why they are aborted.
pub(super) const SILENCE: &str = "it stored nothing for a long time; expire aborted it";

/// Those that are to be aborted at `now`, by the store's clock.
pub(super) async fn of(
    repository: &Repository,
    cluster: &ClusterName,
    gathered: &Gathered,
    now: Timestamp,
) -> Result<Vec<BackupId>> {
    let newest = gathered.facts.backups.iter().map(|backup| backup.id).max();
    let is_silent = |unfinished: &&Unfinished| {
        let silent = now.duration_since(unfinished.seen);
        silent > SILENT || (silent > OVERTAKEN && newest.is_some_and(|newest| newest > unfinished.id))
    };
    let mut silent: Vec<&Unfinished> = gathered.unfinished.iter().filter(is_silent).collect();
    if !silent.is_empty() {
        let living = Leases::of(repository, cluster, BACKUP).living(now).await?;
        silent.retain(|unfinished| !living.iter().any(|lease| may_hold(lease, unfinished)));
    }
    Ok(silent.into_iter().map(|unfinished| unfinished.id).collect())
}

/// Whether a lease may be that of an unfinished backup: it was taken before the backup began. The id does not tell: its time is
/// by the server's clock, which may have been wrong.
fn may_hold(lease: &Lease, unfinished: &Unfinished) -> bool {
    unfinished.begun.duration_since(lease.since) >= -CLOCK_LIMIT
}

/// Aborts one, for that reason. In a dry run nothing is stored.
pub(super) async fn abort_backup(
    backups: &Backups,
    gathered: &mut Gathered,
    id: BackupId,
    report: &mut Expired,
    reason: &str,
) -> Result<()> {
    if !report.dry_run {
        match backups.abort(id, reason).await {
            Ok(()) => {}
            // It was finished at this very moment.
            Err(RepoError::Conflict { .. }) => {
                report.notes.push(format!("backup {id} was finished just now"));
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
    report.aborted_backups.push(id);
    gathered.unfinished.retain(|unfinished| unfinished.id != id);
    gathered.aborted.push((id, Timestamp::now()));
    Ok(())
}
