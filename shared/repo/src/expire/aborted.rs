//! Unfinished backups that no process will finish. They are aborted by a tombstone, which stands where the manifest would: if
//! the backup is alive after all, the process that creates that object first decides.

use jiff::{SignedDuration, Timestamp};
use walpoint_base::BackupId;
use walpoint_storage::error::{RepoError, Result};

use super::gather::Gathered;
use super::report::Expired;
use crate::backup::Backups;

/// One that stored nothing for so long is aborted if a later one was finished: that had its chance to take over what it stored.
const OVERTAKEN: SignedDuration = SignedDuration::from_hours(24);

/// One that stored nothing for so long is aborted.
const SILENT: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Why they are aborted.
pub(super) const SILENCE: &str = "it stored nothing for a long time; expire aborted it";

/// Those that are to be aborted at `now`, by the store's clock.
pub(super) fn of(gathered: &Gathered, now: Timestamp) -> Vec<BackupId> {
    let newest = gathered.facts.backups.iter().map(|backup| backup.id).max();
    let silent_ones = gathered.unfinished.iter().filter(|unfinished| {
        let silent = now.duration_since(unfinished.seen);
        silent > SILENT || (silent > OVERTAKEN && newest.is_some_and(|newest| newest > unfinished.id))
    });
    silent_ones.map(|unfinished| unfinished.id).collect()
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
