//! What a restore that failed leaves behind, and what to do about it.

use std::fmt;
use std::io;
use std::path::Path;

use rustix::io::Errno;
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
        None => {
            let hint = match obstacle(&error) {
                Some(obstacle) => format!("{obstacle}. Then run the same command again."),
                None => "Run the same command again.".to_owned(),
            };
            error.context(format!("{left}\nHINT: {hint}"))
        }
    }
}

/// What to do about a file or directory that may not be changed, if that made a restore fail: the same command would end there again.
fn obstacle(error: &anyhow::Error) -> Option<&'static str> {
    // What a repository answers is about its own files.
    if error.chain().any(|cause| cause.is::<RepoError>()) {
        return None;
    }
    let cause: &io::Error = error.chain().find_map(|cause| cause.downcast_ref())?;
    match Errno::from_io_error(cause)? {
        Errno::ACCESS => Some(
            "Let this user write to it and to the directory in which it lies, for example with \"chmod u+w\"",
        ),
        Errno::PERM => Some(
            "It, or the directory in which it lies, may be immutable or belong to another user: \"lsattr -d\" shows the first, \
             \"chattr -ia\" ends it",
        ),
        Errno::ROFS => {
            Some("The filesystem in which it lies is mounted read-only: mount it so that it can be written")
        }
        _ => None,
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

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn what_may_not_be_changed_is_named_with_what_to_do_about_it() {
        for (errno, expected) in [
            (Errno::ACCESS, Some("chmod u+w")),
            (Errno::PERM, Some("chattr -ia")),
            (Errno::ROFS, Some("read-only")),
            (Errno::NOSPC, None),
        ] {
            let failed: io::Result<()> = Err(errno.into());
            let failed = failed.context("/data/base/1/1259 cannot be repaired").unwrap_err();
            let text = walpoint_words::format_chain(&incomplete(Path::new("/data"), failed));
            assert!(
                text.contains("/data/base/1/1259") && text.contains("un the same command again."),
                "{text}"
            );
            assert!(expected.is_none_or(|expected| text.contains(expected)), "{text}");
            assert_eq!(text.contains(". Then run"), expected.is_some(), "{text}");
        }
        let source = io::Error::from(Errno::ACCESS);
        let read = RepoError::Io { what: "a pack".to_owned(), source };
        assert_eq!(obstacle(&anyhow::Error::new(read)), None, "that is the repository's");
    }
}
