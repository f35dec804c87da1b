//! Storing in a repository that does not have to acknowledge: that it is down or slow must never fill `pg_wal`.
//!
//! A daemon does it after the acknowledgement ([`beside`](crate::wal::beside)); a command, which ends with it, waits for a moment, and
//! notes what failed for those that follow ([`resting`]).
//! What is not stored is missed, and copied by a daemon later.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use walpoint_base::socket::FileIdentity;
use walpoint_base::{SegmentName, SegmentSize, WalFileName};
use walpoint_repo::wal::SegmentSealer;
use walpoint_runtime::human;

use super::super::disk;
use super::{Purpose, Share, UploadError, UploadSource, Uploader, WalMemory, upload_error};
use crate::wal::follows;
use crate::wal::known::Incarnation;
use crate::wal::memory::BUDGET;
use crate::wal::presence;
use crate::wal::resting;
use crate::wal::target::WalTarget;

/// How long a command waits for such a repository, and a daemon that stops.
pub(crate) const TIME_LIMIT: Duration = Duration::from_secs(5);

/// How long storing one file may take, where nothing waits for it.
const LATER_TIME_LIMIT: Duration = Duration::from_secs(30);

/// How often to look whether the segment before one was stored by the same command.
const LOOK: Duration = Duration::from_millis(100);

/// How long such a repository is left out after it failed: asked for nothing on behalf of others, and by a command not at all.
pub(crate) const REST: Duration = Duration::from_secs(60);

/// A file that is being uploaded, until dropped.
pub(super) struct UnderWay<'a>(&'a Uploader, WalFileName);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut under_way = self.0.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = under_way.iter().position(|name| *name == self.1) {
            under_way.swap_remove(at);
        }
    }
}

impl Uploader {
    /// A file begins to be uploaded.
    pub(super) fn begins(&self, name: WalFileName) -> UnderWay<'_> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).push(name);
        UnderWay(self, name)
    }

    fn is_under_way(&self, name: SegmentName) -> bool {
        let under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.contains(&WalFileName::Segment(name))
    }

    /// From now on the repositories that do not have to acknowledge get what is acknowledged by tasks of their own.
    pub(crate) fn stores_beside_later(&self) {
        self.later.store(true, Ordering::Relaxed);
    }

    /// Lets the repositories that do not have to acknowledge have a file that was stored with that identity.
    pub(super) async fn beside(&self, file: UploadSource, identity: FileIdentity, others: Vec<&WalTarget>) {
        let file = UploadSource { expected: Some(identity), ..file };
        if self.later.load(Ordering::Relaxed) {
            others.into_iter().for_each(|target| target.store_later(file.clone()));
        } else {
            join_all(others.into_iter().map(|target| self.store_now(&file, target))).await;
        }
    }

    /// Counts a file as missed by repositories that do not have to acknowledge: what lies here must not be stored there.
    pub(super) fn miss(&self, file: UploadSource, identity: FileIdentity, others: Vec<&WalTarget>) {
        let file = UploadSource { expected: Some(identity), ..file };
        for target in others {
            match self.later.load(Ordering::Relaxed) {
                // When its turn comes it is found to be damaged, and what follows it waits until it is copied.
                true => target.store_later(file.clone()),
                false => target.note_missed(file.name),
            }
        }
    }

    /// Stores a file that waited for its turn; whether it did. `before`: the segment that the repository is asked for first.
    pub(in crate::wal) async fn store_waiting(
        &self,
        (file, before): (&UploadSource, Option<SegmentName>),
        target: &WalTarget,
        stop: &CancellationToken,
    ) -> bool {
        if !self.is_unchanged(file).await {
            tracing::info!(file = %file.name, repository = target.name(), "no longer in pg_wal: it is copied later");
            return false;
        }
        let time_limit = async {
            tokio::select! {
                () = tokio::time::sleep(LATER_TIME_LIMIT) => LATER_TIME_LIMIT,
                () = async { stop.cancelled().await; tokio::time::sleep(TIME_LIMIT).await } => TIME_LIMIT,
            }
        };
        let Err(UploadError { text: problem, permanent }) =
            self.store_within(time_limit, (file, before), target).await
        else {
            return true;
        };
        self.note_blocked(target).await;
        // One that answers is asked whose WAL it holds before the next acknowledgement.
        if !permanent {
            target.rest(REST);
        }
        tracing::warn!(
            file = %file.name,
            repository = target.name(),
            "not stored in this repository, which does not have to acknowledge: {problem}\nDETAIL: It is copied later, as \
             what follows it."
        );
        false
    }

    /// Whether a file is the one that was acknowledged, and its server the same.
    async fn is_unchanged(&self, file: &UploadSource) -> bool {
        let pgdata = self.pgdata.clone();
        let incarnation = disk::run(&self.pgdata, move || Incarnation::of(&pgdata)).await;
        incarnation.is_ok_and(|now| now == file.incarnation)
            && self.look(file.name).await.is_ok_and(|now| Some(now) == file.expected)
    }

    /// Leaves those repositories out that failed a moment ago, as a command before this one has noted.
    pub(in crate::wal) async fn rest_as_noted(&self) {
        let wal = self.wal_directory();
        let directory = wal.clone();
        let noted = disk::look(&directory, move || resting::read(&wal)).await.unwrap_or_default();
        for target in self.targets.iter().filter(|target| !target.acknowledges) {
            if let Some((_, left)) = noted.iter().find(|(name, _)| name == target.name()) {
                target.rest(*left);
            }
        }
    }

    /// Stores a file while the command that was asked to waits, and after a failure not at all for a while.
    async fn store_now(&self, file: &UploadSource, target: &WalTarget) {
        let before = self.before_now(file, target).await;
        if target.rests() {
            tracing::debug!(file = %file.name, repository = target.name(), "left out: the repository failed a moment ago");
            return;
        }
        let time_limit = async {
            tokio::time::sleep(TIME_LIMIT).await;
            TIME_LIMIT
        };
        let stored = self.store_within(time_limit, (file, before), target).await;
        if stored.is_ok() {
            target.beside.was_stored(file.name);
        }
        if let Err(UploadError { text: problem, .. }) = stored {
            self.note_blocked(target).await;
            target.rest(REST);
            let (wal, name) = (self.wal_directory(), target.name().to_owned());
            let (directory, note) = (wal.clone(), move || resting::note(&wal, &name));
            let noted =
                disk::look(&directory, note).await.map_err(std::io::Error::other).and_then(|noted| noted);
            let unnoted = noted.err().map(|error| {
                let file = directory.join(resting::FILE);
                format!(
                    " (but the next file is tried there as well, because {} cannot be written: {error})",
                    file.display()
                )
            });
            tracing::warn!(
                file = %file.name,
                repository = target.name(),
                "not stored in this repository, which does not have to acknowledge: {problem}\nDETAIL: It is left out for {}{}. A \
                 daemon copies what it missed.",
                human::span(REST),
                unnoted.unwrap_or_default()
            );
        }
    }

    /// The segment before a file that a command stores, if the repository has to be asked for it. One that the same command stores is
    /// waited for.
    async fn before_now(&self, file: &UploadSource, target: &WalTarget) -> Option<SegmentName> {
        let before = follows::before(file)?;
        let comes = async {
            while !target.beside.has_taken(before) && !target.rests() && self.is_under_way(before) {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(LATER_TIME_LIMIT, comes).await.ok();
        (!target.beside.has_taken(before)).then_some(before)
    }

    /// Stores a file before `time_limit` ends, which says how long that was.
    async fn store_within(
        &self,
        time_limit: impl Future<Output = Duration>,
        (file, before): (&UploadSource, Option<SegmentName>),
        target: &WalTarget,
    ) -> Result<(), UploadError> {
        // It is not the repository's fault if there is no memory left: the clock starts when there is some.
        let share = self.share_beside(file).await;
        let targets = [target];
        let store = async {
            // A daemon did when it compared this repository with the others.
            if !self.later.load(Ordering::Relaxed) {
                let archive =
                    target.archive(&file.cluster).await.map_err(|error| upload_error(target, &error))?;
                self.record_in(&file.cluster, (target, &archive)).await;
            }
            if let Some(before) = before {
                self.follows(&file.cluster, before, target).await?;
            }
            presence::during(&targets, self.store(file, (&targets, &[]), Some(share)).boxed()).await
        };
        tokio::select! {
            stored = store => stored.map(drop),
            span = time_limit => {
                Err(UploadError { text: format!("no answer within {}", human::span(span)), permanent: false })
            }
        }
    }

    /// The memory to store a file in one repository for which no acknowledgement waits. Of the network it takes none of the share
    /// for which acknowledgements do.
    pub(super) async fn share_beside(&self, file: &UploadSource) -> Share<'_> {
        let (unit, _) = self.share_of(file, 1).await;
        let memory = match unit {
            0 => WalMemory::unlimited(Purpose::Beside),
            unit => {
                let expected = self.expected(file, unit);
                WalMemory::wait_for(self.directories(file), Purpose::Beside, expected, unit).await
            }
        };
        Share { _transfer: None, memory }
    }

    /// The memory to read a file back from a repository, for which no acknowledgement waits.
    pub(in crate::wal) async fn memory_to_read(&self, size: SegmentSize) -> WalMemory {
        let unit = SegmentSealer::most_held(size).clamp(1, BUDGET);
        WalMemory::wait_for(Arc::new([]), Purpose::Beside, self.habit.expects(unit), unit).await
    }
}
