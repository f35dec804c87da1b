//! What a restore that failed leaves behind, and what to do about it.

use std::path::Path;

use walpoint_base::BackupId;
use walpoint_repo::RepoError;

/// What to do when the backup is not what was stored.
const ANOTHER: &str = "the same command would end there again: restore from another backup (--backup, archive-agent status lists \
                       them) or another repository (--repo), and let archive-agent verify tell what else is affected";

/// Says what an interrupted restore left, and what to do about it.
pub(super) fn incomplete(pgdata: &Path, error: anyhow::Error) -> anyhow::Error {
    let next = if is_damaged(&error) { ANOTHER } else { "run the same command again" };
    error.context(format!("{} is incomplete and cannot start; {next}", pgdata.display()))
}

/// Says what to do about a backup that cannot be read, before anything was written.
pub(super) fn unread(backup: BackupId, error: anyhow::Error) -> anyhow::Error {
    if !is_damaged(&error) {
        return error;
    }
    error.context(format!("nothing was changed, because backup {backup} cannot be read; {ANOTHER}"))
}

/// Whether an object of the repository is damaged or missing, which no second attempt mends.
fn is_damaged(error: &anyhow::Error) -> bool {
    let damaged = |cause: &RepoError| matches!(cause, RepoError::Corrupt { .. } | RepoError::NotFound { .. });
    error.chain().filter_map(|cause| cause.downcast_ref()).any(damaged)
}
