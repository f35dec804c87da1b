//! The origin of the recovery that one process serves: what it reads from is held against what the recovery began with, and
//! noted if it was not met before.
//!
//! What admits a repository is written durably before anything is answered from it. Which segments it was seen to hold, and
//! which one was given last, is written now and then. Another process may do the same at any moment: what is noted is added to
//! what the file says by then, under a lock, and only for the recovery that this process serves.

use std::fs::{self, File};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use walpoint_base::{LineageId, RECOVERY_ORIGIN, SegmentName, WalDirectory};
use walpoint_repo::Lineage;
use walpoint_storage::object::RepositoryId;

use super::histories::HistoryCache;
use super::origin::{OriginRepository, RecoveryOrigin, ServedSegment, remedy};

/// How often the newest segment, and the one that was given last, are written down.
const CADENCE: Duration = Duration::from_secs(1);

/// How often, and after what pauses, the lock is tried: a standby waits for its answer.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// The origin of the recovery that one process serves.
#[derive(Debug)]
pub(crate) struct OriginKeeper {
    /// The data directory; `None` where a person fetches a file by hand.
    place: Option<WalDirectory>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    origin: Option<RecoveryOrigin>,
    /// When the newest segments were written last.
    written: Option<Instant>,
    /// The repository that gave the newest segment, and when that was written last.
    noted: Option<(RepositoryId, Instant)>,
    /// What it gave since.
    unwritten: Option<(RepositoryId, ServedSegment)>,
}

impl OriginKeeper {
    /// For a recovery in that data directory. Nothing is read yet.
    pub(crate) fn new(place: Option<&WalDirectory>) -> Self {
        Self { place: place.cloned(), state: Mutex::default() }
    }

    /// Where the server keeps its WAL; `None` where a person fetches a file by hand.
    pub(crate) fn wal(&self) -> Option<&Path> {
        self.place.as_ref().map(|place| place.wal.as_path())
    }

    /// Whether a server asks, for whom the origin is noted; `pg_rewind` finds nothing new in its directory. Looked up anew: a
    /// prefetcher may have started before the server.
    fn server(&self) -> bool {
        self.place.as_ref().is_some_and(|place| place.pgdata.join("postmaster.pid").exists())
    }

    /// The lineage that the recovery began with, if that is known.
    pub(crate) fn lineage(&self) -> anyhow::Result<Option<LineageId>> {
        let Some(wal) = self.wal() else { return Ok(None) };
        Ok(RecoveryOrigin::read(wal)?.map(|origin| origin.lineage))
    }

    /// Holds a repository against what this recovery began with, and notes one that it has not met before.
    pub(crate) fn admit(
        &self,
        name: &str,
        id: RepositoryId,
        lineage: &Lineage,
        acknowledges: bool,
    ) -> anyhow::Result<()> {
        let Some(wal) = self.wal() else { return Ok(()) };
        let server = self.server();
        let mut state = self.state();
        let _lock = lock(wal);
        let read = RecoveryOrigin::read(wal)?;
        if let Some(served) = &state.origin
            && read.as_ref().map(|origin| &origin.recovery) != Some(&served.recovery)
        {
            bail!("another recovery has begun in {}", wal.display());
        }
        let begins = read.is_none();
        let mut origin = read.unwrap_or_else(|| RecoveryOrigin::new(lineage.id));
        let acknowledges = acknowledges || lineage.ack.iter().any(|member| member.repository == id);
        let found = OriginRepository {
            name: name.to_owned(),
            id,
            lineage: Some(lineage.uid),
            acknowledges,
            newest: None,
        };
        let added = origin.admit(&found).with_context(|| {
            format!("\"{name}\" is not what this recovery began with\nHINT: {}", remedy(wal))
        })?;
        if server && (begins || added) {
            if begins {
                HistoryCache::in_wal(wal)
                    .forget()
                    .context("could not remove the histories of an earlier recovery")?;
            }
            origin.write(wal)?;
        }
        if server || !begins {
            state.origin = Some(origin);
        }
        Ok(())
    }

    /// Lets the recovery begin anew, in another lineage: what is known of the repositories and of histories was of the other one.
    /// Where no server asks, nothing may be changed, and that is an error.
    pub(crate) fn begin_anew(&self, lineage: LineageId) -> anyhow::Result<()> {
        let Some(wal) = self.wal() else { return Ok(()) };
        if !self.server() {
            bail!("{} names another lineage than {lineage}", wal.join(RECOVERY_ORIGIN).display());
        }
        let mut state = self.state();
        let _lock = lock(wal);
        HistoryCache::in_wal(wal).forget().context("could not remove the histories of the other lineage")?;
        RecoveryOrigin::new(lineage).write(wal)?;
        *state = State::default();
        Ok(())
    }

    /// Remembers that a repository holds a segment. Writes it down now and then; a failure makes no difference to what is
    /// given.
    pub(crate) fn seen(&self, id: RepositoryId, segment: SegmentName) {
        let Some(wal) = self.wal().filter(|_| self.server()) else { return };
        let mut state = self.state();
        let Some(origin) = &mut state.origin else { return };
        let known = origin.repositories.iter_mut().find(|known| known.id == id);
        let Some(known) = known.filter(|known| known.newest < Some(segment)) else { return };
        known.newest = Some(segment);
        if state.written.is_some_and(|at| at.elapsed() < CADENCE) {
            return;
        }
        state.written = Some(Instant::now());
        let _lock = lock(wal);
        let written = RecoveryOrigin::read(wal).and_then(|read| {
            let Some(mut read) =
                read.filter(|read| state.origin.as_ref().is_some_and(|o| o.recovery == read.recovery))
            else {
                return Ok(());
            };
            if let Some(known) = read.repositories.iter_mut().find(|known| known.id == id) {
                known.newest = known.newest.max(Some(segment));
            }
            read.write(wal)
        });
        if let Err(error) = written {
            tracing::debug!("the newest segment is not noted: {}", walpoint_words::format_chain(&error));
        }
    }

    /// The repository that WAL is taken from, and a segment that it gave, as far as an earlier process noted that.
    pub(crate) fn served(&self) -> Option<(RepositoryId, Option<ServedSegment>)> {
        RecoveryOrigin::read(self.wal()?).ok()??.served
    }

    /// Notes the repository that gave a segment: at once if none was noted by this process or another repository was, and otherwise
    /// with [`Self::write_served`]. A failure makes no difference to what is given.
    pub(crate) fn note_served(&self, id: RepositoryId, segment: ServedSegment) {
        if self.wal().is_none() || !self.server() {
            return;
        }
        let mut state = self.state();
        state.unwritten = Some((id, segment));
        if state.noted.is_none_or(|(known, at)| known != id || at.elapsed() >= CADENCE) {
            self.write_unwritten(&mut state);
        }
    }

    /// Writes down which segment was given last: now and then, and before the process ends.
    pub(crate) fn write_served(&self) {
        self.write_unwritten(&mut self.state());
    }

    fn write_unwritten(&self, state: &mut State) {
        let Some((id, segment)) = state.unwritten.take() else { return };
        let (Some(wal), Some(recovery)) = (self.wal(), state.origin.as_ref().map(|origin| &origin.recovery))
        else {
            return;
        };
        let _lock = lock(wal);
        let written = RecoveryOrigin::read(wal).and_then(|read| {
            let Some(mut read) = read.filter(|read| read.recovery == *recovery) else { return Ok(()) };
            if read.served == Some((id, Some(segment))) {
                return Ok(());
            }
            read.served = Some((id, Some(segment)));
            read.write(wal)
        });
        match written {
            Ok(()) => state.noted = Some((id, Instant::now())),
            Err(error) => {
                tracing::debug!(
                    "the repository that gave {} is not noted: {}",
                    segment.name,
                    walpoint_words::format_chain(&error)
                );
            }
        }
    }

    /// What the configuration called a repository.
    pub(crate) fn name_of(&self, id: RepositoryId) -> Option<String> {
        let of = |origin: &RecoveryOrigin| {
            origin.repositories.iter().find(|known| known.id == id).map(|known| known.name.clone())
        };
        let known = self.state().origin.as_ref().and_then(of);
        known.or_else(|| RecoveryOrigin::read(self.wal()?).ok()?.as_ref().and_then(of))
    }

    /// Whether nothing is known yet of what a repository holds.
    pub(crate) fn is_new(&self, id: RepositoryId) -> bool {
        let state = self.state();
        let mut known = state.origin.iter().flat_map(|origin| &origin.repositories);
        known.any(|known| known.id == id && known.newest.is_none())
    }

    /// The newest segment that a repository was seen to hold.
    pub(crate) fn newest(&self, id: RepositoryId) -> Option<SegmentName> {
        let state = self.state();
        state.origin.as_ref()?.repositories.iter().find(|known| known.id == id)?.newest
    }

    /// Name and id of the repositories whose word absence takes.
    pub(crate) fn acknowledging(&self) -> Vec<(String, RepositoryId)> {
        let state = self.state();
        let known = state.origin.iter().flat_map(|origin| &origin.repositories);
        known.filter(|known| known.acknowledges).map(|known| (known.name.clone(), known.id)).collect()
    }

    /// Whether the recovery that was served is still the one in the data directory: a restore may have begun another.
    pub(crate) fn is_current(&self) -> bool {
        let state = self.state();
        let (Some(served), Some(wal)) = (&state.origin, self.wal()) else { return true };
        RecoveryOrigin::read(wal).is_ok_and(|read| read.is_some_and(|read| read.recovery == served.recovery))
    }

    /// The state. A panic elsewhere leaves it usable: every change to it is a single assignment.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps other processes from replacing the file between reading and writing. A process that hangs meanwhile does not
/// hold the others up for long. On a filesystem without locks, two processes that meet different repositories at one moment may note only
/// one of them, and the other when it is read again.
fn lock(wal: &Path) -> Option<File> {
    let directory = File::open(wal).ok()?;
    for _ in 0..LOCK_ATTEMPTS {
        match directory.try_lock() {
            Ok(()) => return Some(directory),
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(fs::TryLockError::Error(_)) => return None,
        }
    }
    None
}
