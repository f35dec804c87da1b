//! The repositories and the lineage that a recovery began with, `pg_wal/walpoint-origin`.
//!
//! The end of recovery is believed only from them. A repository that was made anew at the same URL holds another archive,
//! and an older copy of it, below a mount that is gone say, holds too little: both answer "no such object" for WAL that
//! exists. So the first to read a repository for a recovery notes its random id, the lineage's random id, and the newest
//! segment that it was seen to hold: `restore`, or, where PostgreSQL was set up by hand, the first question of a server.
//!
//! That segment is the last one of the plan, or the last one that a listing shows from the first segment that is given, and
//! then whatever is given or fetched ahead.
//!
//! The file lies beside the spool, which anybody may remove, and in `pg_wal`, which no base backup takes along. It is
//! replaced durably before anything is answered from what it describes, under a lock on the directory, and removed when the
//! server leaves recovery. Only the newest segment may lag behind by a second: it proves a little less then. A crash leaves
//! the old file or the new one.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use walpoint_base::{LineageId, Place, RECOVERY_ORIGIN, SegmentName, durable};
use walpoint_repo::Lineage;
use walpoint_repo::lineage::LineageUid;
use walpoint_storage::object::{ContentHash, RepositoryId};

use crate::wal::histories::HistoryCache;
use crate::wal::refusal::Refusal;

/// How often the newest segment, and the one that was given last, are written down.
const CADENCE: Duration = Duration::from_secs(1);

/// How often, and after what pauses, the lock is tried: a standby waits for its answer.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// What a recovery began with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Origin {
    /// Tells this recovery from an earlier one in the same directory.
    recovery: String,
    /// The lineage that is recovered.
    pub(crate) lineage: LineageId,
    /// Its repositories.
    pub(crate) repositories: Vec<OriginRepository>,
    /// The repository that WAL is taken from, and a segment that it gave.
    pub(crate) served: Option<(RepositoryId, Option<ServedSegment>)>,
}

/// A segment that was given to the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ServedSegment {
    /// Its name.
    pub(crate) name: SegmentName,
    /// The hash of its content in that repository.
    pub(crate) hash: ContentHash,
    /// Its bytes before the zeros at the end.
    pub(crate) content_len: u64,
    /// Whether the hash has a key of that repository's own.
    pub(crate) keyed: Option<bool>,
}

/// A repository at the beginning of a recovery.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct OriginRepository {
    /// What the configuration called it.
    pub(crate) name: String,
    /// Which one it is.
    pub(crate) id: RepositoryId,
    /// Which lineage it held under the name; `None` while it has not been read.
    pub(crate) lineage: Option<LineageUid>,
    /// Whether absence takes its word.
    pub(crate) acknowledges: bool,
    /// The newest segment that it was seen to hold.
    pub(crate) newest: Option<SegmentName>,
}

impl Origin {
    /// The origin of a recovery that begins now.
    pub(crate) fn new(lineage: LineageId) -> Self {
        Self {
            recovery: format!("{:032x}", rand::random::<u128>()),
            lineage,
            repositories: Vec::new(),
            served: None,
        }
    }

    /// Adds what a repository is, or holds it against what it was. Whether anything was added.
    fn admit(&mut self, found: &OriginRepository) -> anyhow::Result<bool> {
        let known = self.repositories.iter_mut().find(|known| known.id == found.id);
        let Some(known) = known else {
            if let Some(known) = self.repositories.iter().find(|known| known.name == found.name) {
                bail!(Refusal(format!(
                    "it is repository {}, and this recovery began with repository {}",
                    found.id, known.id
                )));
            }
            self.repositories.push(found.clone());
            return Ok(true);
        };
        match (known.lineage, found.lineage) {
            (Some(known), Some(found)) if known != found => {
                bail!(Refusal(format!(
                    "lineage {} was made anew in it after this recovery began",
                    self.lineage
                )))
            }
            (None, Some(_)) => known.lineage = found.lineage,
            _ if known.acknowledges || !found.acknowledges => return Ok(false),
            _ => {}
        }
        known.acknowledges |= found.acknowledges;
        Ok(true)
    }

    /// Leaves this for a recovery in a data directory with that `pg_wal`, instead of what an earlier one left.
    pub(crate) fn write(&self, wal: &Path) -> anyhow::Result<()> {
        let path = wal.join(RECOVERY_ORIGIN);
        let bytes = serde_json::to_vec(&Content::from(self))?;
        durable::replace(&path, &bytes, 0o600).with_context(|| {
            format!("could not write {}, which names what is recovered from", path.display())
        })
    }

    /// Reads it; `None` if there is none.
    pub(crate) fn read(wal: &Path) -> anyhow::Result<Option<Self>> {
        let path = wal.join(RECOVERY_ORIGIN);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("could not read {}", path.display())),
        };
        let parsed = serde_json::from_slice::<Content>(&bytes).ok().and_then(Content::into_origin);
        let parsed = parsed.with_context(|| {
            format!(
                "{} is damaged: what this recovery began with is not known; {}",
                path.display(),
                remedy(wal)
            )
        })?;
        Ok(Some(parsed))
    }
}

/// What a person can do who knows better.
fn remedy(wal: &Path) -> String {
    format!(
        "HINT: Only if what this server recovers from was replaced on purpose, by an archive that continues what was replayed \
         so far, remove {}.",
        wal.join(RECOVERY_ORIGIN).display()
    )
}

/// The file's content.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    recovery: String,
    lineage: String,
    repositories: Vec<ContentRepository>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    served: Option<ContentServed>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContentServed {
    repository: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    segment: Option<ContentSegment>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContentSegment {
    name: String,
    hash: String,
    content_len: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keyed: Option<bool>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContentRepository {
    name: String,
    id: String,
    lineage: Option<String>,
    acknowledges: bool,
    newest: Option<String>,
}

impl From<&Origin> for Content {
    fn from(origin: &Origin) -> Self {
        let repository = |known: &OriginRepository| ContentRepository {
            name: known.name.clone(),
            id: known.id.to_string(),
            lineage: known.lineage.map(|lineage| lineage.to_string()),
            acknowledges: known.acknowledges,
            newest: known.newest.map(|newest| newest.to_string()),
        };
        Self {
            recovery: origin.recovery.clone(),
            lineage: origin.lineage.to_string(),
            repositories: origin.repositories.iter().map(repository).collect(),
            served: origin.served.map(|(repository, segment)| ContentServed {
                repository: repository.to_string(),
                segment: segment.map(|segment| ContentSegment {
                    name: segment.name.to_string(),
                    hash: segment.hash.to_string(),
                    content_len: segment.content_len,
                    keyed: segment.keyed,
                }),
            }),
        }
    }
}

impl Content {
    fn into_origin(self) -> Option<Origin> {
        let mut repositories = Vec::new();
        for known in self.repositories {
            repositories.push(OriginRepository {
                name: known.name,
                id: known.id.parse().ok()?,
                lineage: known.lineage.map(|lineage| lineage.parse()).transpose().ok()?,
                acknowledges: known.acknowledges,
                newest: known.newest.map(|newest| newest.parse()).transpose().ok()?,
            });
        }
        let served = match self.served {
            Some(served) => Some(served.parse()?),
            None => None,
        };
        Some(Origin { recovery: self.recovery, lineage: self.lineage.parse().ok()?, repositories, served })
    }
}

impl ContentServed {
    fn parse(self) -> Option<(RepositoryId, Option<ServedSegment>)> {
        let segment = match self.segment {
            Some(ContentSegment { name, hash, content_len, keyed }) => {
                Some(ServedSegment { name: name.parse().ok()?, hash: hash.parse().ok()?, content_len, keyed })
            }
            None => None,
        };
        Some((self.repository.parse().ok()?, segment))
    }
}

/// The origin of the recovery that one process serves.
#[derive(Debug)]
pub(crate) struct OriginKeeper {
    /// The data directory; `None` where a person fetches a file by hand.
    place: Option<Place>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    origin: Option<Origin>,
    /// When the newest segments were written last.
    written: Option<Instant>,
    /// The repository that gave the newest segment, and when that was written last.
    noted: Option<(RepositoryId, Instant)>,
    /// What it gave since.
    unwritten: Option<(RepositoryId, ServedSegment)>,
}

impl OriginKeeper {
    /// For a recovery in that data directory. Nothing is read yet.
    pub(crate) fn new(place: Option<&Place>) -> Self {
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
        Ok(Origin::read(wal)?.map(|origin| origin.lineage))
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
        let read = Origin::read(wal)?;
        if let Some(served) = &state.origin
            && read.as_ref().map(|origin| &origin.recovery) != Some(&served.recovery)
        {
            bail!("another recovery has begun in {}", wal.display());
        }
        let begins = read.is_none();
        let mut origin = read.unwrap_or_else(|| Origin::new(lineage.id));
        let acknowledges = acknowledges || lineage.ack.iter().any(|member| member.repository == id);
        let found = OriginRepository {
            name: name.to_owned(),
            id,
            lineage: Some(lineage.uid),
            acknowledges,
            newest: None,
        };
        let added = origin
            .admit(&found)
            .with_context(|| format!("\"{name}\" is not what this recovery began with; {}", remedy(wal)))?;
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
        Origin::new(lineage).write(wal)?;
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
        let written = Origin::read(wal).and_then(|read| {
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
            tracing::debug!("the newest segment is not noted: {error:#}");
        }
    }

    /// The repository that WAL is taken from, and a segment that it gave, as far as an earlier process noted that.
    pub(crate) fn served(&self) -> Option<(RepositoryId, Option<ServedSegment>)> {
        Origin::read(self.wal()?).ok()??.served
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
        let written = Origin::read(wal).and_then(|read| {
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
                tracing::debug!("the repository that gave {} is not noted: {error:#}", segment.name);
            }
        }
    }

    /// What the configuration called a repository.
    pub(crate) fn name_of(&self, id: RepositoryId) -> Option<String> {
        let of = |origin: &Origin| {
            origin.repositories.iter().find(|known| known.id == id).map(|known| known.name.clone())
        };
        let known = self.state().origin.as_ref().and_then(of);
        known.or_else(|| Origin::read(self.wal()?).ok()?.as_ref().and_then(of))
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
        Origin::read(wal).is_ok_and(|read| read.is_some_and(|read| read.recovery == served.recovery))
    }

    /// The state. A panic elsewhere leaves it usable: every change to it is a single assignment.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps other processes from replacing the file between reading and writing. A process that hangs meanwhile holds nobody
/// up for long, and a filesystem without locks has none for anybody: two who meet different repositories at one moment may
/// then note only one of them, and the other when it is read again.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(name: &str, id: u8, lineage: Option<u8>) -> OriginRepository {
        OriginRepository {
            name: name.to_owned(),
            id: RepositoryId([id; 16]),
            lineage: lineage.map(|lineage| LineageUid([lineage; 16])),
            acknowledges: true,
            newest: None,
        }
    }

    #[test]
    fn it_is_read_as_written_and_a_damaged_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Origin::read(dir.path()).unwrap(), None);
        let mut origin = Origin::new("7-1".parse().unwrap());
        origin.repositories = vec![repository("a", 1, Some(2)), repository("b", 3, None)];
        origin.repositories[0].newest = Some("000000010000000000000005".parse().unwrap());
        origin.served = Some((RepositoryId([1; 16]), None));
        origin.write(dir.path()).unwrap();
        assert_eq!(Origin::read(dir.path()).unwrap(), Some(origin.clone()));
        let name = "000000010000000000000005".parse().unwrap();
        let given = ServedSegment { name, hash: ContentHash([7; 32]), content_len: 9, keyed: Some(true) };
        origin.served = Some((RepositoryId([1; 16]), Some(given)));
        origin.write(dir.path()).unwrap();
        assert_eq!(Origin::read(dir.path()).unwrap(), Some(origin));
        durable::replace(&dir.path().join(RECOVERY_ORIGIN), b"{\"recovery\":", 0o600).unwrap();
        let error = Origin::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("damaged") && error.contains("HINT: Only if"), "{error}");
    }

    #[test]
    fn what_was_made_anew_is_refused() {
        let mut origin = Origin::new("7-1".parse().unwrap());
        assert!(origin.admit(&repository("a", 1, Some(2))).unwrap());
        assert!(!origin.admit(&repository("a", 1, Some(2))).unwrap());
        assert!(origin.admit(&repository("a", 4, Some(2))).is_err(), "another repository");
        assert!(origin.admit(&repository("a", 1, Some(5))).is_err(), "another lineage");
        assert!(!origin.admit(&repository("renamed", 1, Some(2))).unwrap(), "the same under another name");
        assert!(origin.admit(&repository("b", 3, None)).unwrap(), "one more");
        assert!(origin.admit(&repository("b", 3, Some(6))).unwrap(), "it is read for the first time");
        assert!(origin.admit(&repository("b", 3, Some(7))).is_err());
    }
}
