//! What a restore that failed leaves behind, and what to do about it.

use std::fmt;
use std::path::Path;

use walpoint_base::{BackupId, Diagnostic};
use walpoint_repo::wal::slices::Superseded;
use walpoint_storage::RepoError;

/// What to do when the backup is not what was stored.
const ANOTHER: &str = "The same command would end there again: restore from another backup (--backup, \"restore-agent list\" \
                       shows them) or another repository (--repo). \"archive-agent verify\" shows what else is affected.";

/// That what failed is the backup itself: an object that it needs is damaged or missing. In words for a person.
#[derive(Debug)]
struct DamagedBackup(String);

impl fmt::Display for DamagedBackup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Says what an interrupted restore left, and what to do about it.
pub(super) fn incomplete(pgdata: &Path, error: anyhow::Error) -> anyhow::Error {
    let left = format!("{} is incomplete and cannot start", pgdata.display());
    match damage(&error) {
        Some(_) => error.context(DamagedBackup(format!("{left}\nHINT: {ANOTHER}"))),
        None => error.context(format!("{left}\nHINT: Run the same command again.")),
    }
}

/// Says what to do about a backup that cannot be read, before anything was written.
pub(super) fn unread(backup: BackupId, error: anyhow::Error) -> anyhow::Error {
    if damage(&error).is_none() {
        return error;
    }
    let text = format!("nothing was changed, because backup {backup} cannot be read\nHINT: {ANOTHER}");
    error.context(DamagedBackup(text))
}

/// What is wrong with the backup, if that made a restore fail.
pub(super) fn of_backup(error: &anyhow::Error) -> Option<String> {
    error.downcast_ref::<DamagedBackup>()?;
    damage(error)
}

/// Whether something failed because its plan counts on what was replaced in the repository since: another plan finds what took the place.
pub(super) fn is_superseded(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<RepoError>()).any(Superseded::is_why)
}

/// Which object of the repository is damaged or missing, which a second attempt would meet again.
fn damage(error: &anyhow::Error) -> Option<String> {
    let damaged =
        |cause: &&RepoError| matches!(cause, RepoError::Corrupt { .. } | RepoError::NotFound { .. });
    let found = error.chain().filter_map(|cause| cause.downcast_ref()).find(damaged);
    found.map(|cause: &RepoError| Diagnostic::new(cause.to_string()).message().to_owned())
}
