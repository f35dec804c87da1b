//! A filesystem that is full. Whatever is to be deleted later has to be announced, and an announcement wants room; so there
//! what was announced long enough ago goes first, before anything is written.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;

use jiff::{SignedDuration, Timestamp};
use walpoint_base::ClusterName;
use walpoint_plan::retention::Policy;
use walpoint_storage::error::{RepoError, Result};

use super::announcements::KnownAnnouncements;
use super::report::Expired;
use super::scan::Tally;
use super::{ExpireOptions, LEFTOVER, clock, delete_announced};
use crate::Repository;
use crate::backup::Backups;
use crate::reach::Class;

/// What is known of the store's clock, and what was deleted to make room.
pub(super) struct Room {
    /// How far the store's clock is ahead, if it was compared.
    pub(super) ahead: Option<SignedDuration>,
    /// How far it is taken to be ahead.
    pub(super) assumed: SignedDuration,
    pub(super) deleted: BTreeMap<Class, Tally>,
}

impl Room {
    /// There was room to compare the clocks.
    pub(super) fn without_need(ahead: Option<SignedDuration>) -> Self {
        Self { ahead, assumed: ahead.unwrap_or_default(), deleted: BTreeMap::new() }
    }
}

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

/// Deletes what was announced for the grace period and is still not needed, and what killed writes left. The filesystem may be another
/// machine's, with a clock of its own: that is compared without writing, and once more when there is room.
pub(super) async fn make(
    repository: &Repository,
    cluster: &ClusterName,
    options: &ExpireOptions,
    report: &mut Expired,
) -> Result<Room> {
    report.notes.push(
        "the filesystem is full: objects that were marked long enough ago were deleted before anything was written"
            .to_owned(),
    );
    let store = repository.store();
    let assumed = clock::of_full(store, cluster).await?;
    report.temporary_file_count = store.remove_leftovers(cluster, LEFTOVER).await?;
    let policy = if options.named.is_some() { &Policy::default() } else { &options.policy };
    let announced = KnownAnnouncements::read(&Backups::of(repository, cluster)).await?;
    let announced = (&announced, options.grace, Timestamp::now() + assumed);
    let deleted = delete_announced(repository, cluster, policy, announced, report).await?;
    match clock::compare(store).await {
        Ok(Some(ahead)) => Ok(Room { ahead: Some(ahead), assumed: ahead, deleted }),
        Ok(None) => Ok(Room { ahead: None, assumed, deleted }),
        Err(error) if is_lacking(&error) => Ok(Room { ahead: None, assumed, deleted }),
        Err(error) => Err(error),
    }
}

/// The error, with what was `deleted` before and the way out, if that did not make enough room.
pub(super) fn explain(error: RepoError, deleted: &BTreeMap<Class, Tally>) -> RepoError {
    if !is_lacking(&error) {
        return error;
    }
    let (objects, bytes) = deleted.values().fold((0u64, 0u64), |(objects, bytes), tally| {
        (objects.saturating_add(tally.objects), bytes.saturating_add(tally.bytes))
    });
    let before = match objects {
        0 => "Nothing was deleted: none of the objects that were marked long enough ago can be deleted \
            before something is written."
            .to_owned(),
        _ => format!(
            "Objects that were marked long enough ago were deleted first ({objects}, with {bytes} bytes), \
             but that did not free enough space."
        ),
    };
    let source = |source: &dyn std::fmt::Display| {
        format!(
            "{source}\nDETAIL: {before}\nHINT: Enlarge the filesystem, or delete something from it that \
             is not part of the repository: a few megabytes are enough. Then run it again."
        )
    };
    match error {
        RepoError::Unavailable { what, store, source: cause } => {
            // Of its kind still, by which the error is put into words.
            let kind = cause.downcast_ref::<io::Error>().map_or(io::ErrorKind::Other, io::Error::kind);
            let source = io::Error::new(kind, source(&cause)).into();
            RepoError::Unavailable { what, store, source }
        }
        error => error,
    }
}
