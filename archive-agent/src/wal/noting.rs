//! Noting for the next daemon up to where a repository lacks nothing ([`complete`]): when, and how often.
//!
//! What always holds: a note never says more than is known, and one that has to say less than the one before is written at once. A note
//! that is refused, or takes too long, is left out. A crash leaves the note before, or the new one: both let the next daemon compare
//! enough, an old one more than that. What it means is in [`complete`], and what is complete in [`beside`](super::beside).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use walpoint_base::SegmentName;

use super::archiver::Archiver;
use super::{complete, disk};

/// How often to note up to where nothing is missing.
pub(super) const NOTE_INTERVAL: Duration = Duration::from_secs(30);

/// How long that may hold anything up.
const NOTE_LIMIT: Duration = Duration::from_secs(1);

/// Notes for the next daemon up to where a repository lacks nothing.
pub(super) struct Notes {
    archiver: Arc<Archiver>,
    repository: usize,
    noted: Option<(SegmentName, Instant)>,
}

impl Notes {
    /// Of the repository with that number.
    pub(super) fn new(archiver: &Arc<Archiver>, repository: usize) -> Self {
        Self { archiver: Arc::clone(archiver), repository, noted: None }
    }

    /// As long as the last note is not old, another one is not worth a write, unless more has to be compared than that says.
    pub(super) async fn note(&mut self, interval: Duration) {
        let Some(target) = self.archiver.uploader().targets().get(self.repository) else { return };
        let Some(place) = target.presence.place() else { return };
        let Some(complete) = target.beside.complete() else { return };
        let is_enough = |(noted, at): (SegmentName, Instant)| {
            noted == complete || noted < complete && at.elapsed() < interval
        };
        if self.noted.is_some_and(is_enough) {
            return;
        }
        let directory = self.archiver.wal_directory();
        let wal = directory.clone();
        let written = disk::run(&directory, move || complete::note(&wal, &place, complete));
        match tokio::time::timeout(NOTE_LIMIT, written).await {
            Ok(Ok(Ok(()))) => self.noted = Some((complete, Instant::now())),
            // The daemon may only read there, for example: then the next one compares from the newest backup.
            failed => tracing::debug!(repository = target.name(), "{}: {failed:?}", complete::FILE),
        }
    }
}
