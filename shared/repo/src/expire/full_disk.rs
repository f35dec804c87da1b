//! A filesystem that is full. Whatever is to be deleted later has to be announced, and an announcement wants room; so there
//! what was announced long enough ago goes first, before anything is written.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;

use jiff::Timestamp;
use walpoint_base::ClusterName;
use walpoint_plan::retention::Policy;
use walpoint_storage::error::{RepoError, Result};

use super::announcements::KnownAnnouncements;
use super::report::Expired;
use super::scan::Tally;
use super::{ExpireOptions, LEFTOVER, delete_announced};
use crate::Repository;
use crate::backup::Backups;
use crate::reach::Class;

/// Whether a directory's filesystem had no room for what was to be written.
pub(super) fn is_lacking(error: &RepoError) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Deletes what was announced for the grace period and is still not needed, and what killed writes left; what that was.
pub(super) async fn make(
    repository: &Repository,
    cluster: &ClusterName,
    options: &ExpireOptions,
    report: &mut Expired,
) -> Result<BTreeMap<Class, Tally>> {
    report.temporary_file_count = repository.store().remove_leftovers(cluster, LEFTOVER).await?;
    let policy = if options.named.is_some() { &Policy::default() } else { &options.policy };
    let announced = KnownAnnouncements::read(&Backups::of(repository, cluster)).await?;
    delete_announced(repository, cluster, policy, (&announced, options.grace, Timestamp::now()), report).await
}

/// The error, with the way out if there was no room even then.
pub(super) fn explain(error: RepoError) -> RepoError {
    let lacking = is_lacking(&error);
    match error {
        RepoError::Unavailable { what, store, source } if lacking => RepoError::Unavailable {
            what,
            store,
            source: format!(
                "{source}\nDETAIL: What was announced for deletion long enough ago is deleted before anything is written, and \
                 that did not make enough room to announce the rest.\nHINT: Make the filesystem larger, or take something off \
                 it that is not the repository's: a few megabytes are enough."
            )
            .into(),
        },
        error => error,
    }
}
