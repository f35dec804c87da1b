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
//! The file lies beside the spool, which an operator may remove, and in `pg_wal`, which no base backup takes along. It is
//! replaced durably before anything is answered from what it describes, under a lock on the directory, and removed when the
//! server leaves recovery. Only the newest segment may lag behind by a second: it proves a little less then. A crash leaves
//! the old file or the new one.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, bail};
use walpoint_base::{LineageId, RECOVERY_ORIGIN, SegmentName, durable};
use walpoint_repo::lineage::LineageUid;
use walpoint_storage::object::{ContentHash, RepositoryId};

use crate::wal::origin_file::Content;
pub(crate) use crate::wal::origin_keeper::OriginKeeper;
use crate::wal::refusal::LastingError;

/// What a recovery began with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RecoveryOrigin {
    /// Tells this recovery from an earlier one in the same directory.
    pub(super) recovery: String,
    /// The lineage that is recovered.
    pub(crate) lineage: LineageId,
    pub(crate) repositories: Vec<OriginRepository>,
    /// The repository that WAL is taken from, and a segment that it gave.
    pub(crate) served: Option<(RepositoryId, Option<ServedSegment>)>,
}

/// A segment that was given to the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ServedSegment {
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

impl RecoveryOrigin {
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
    pub(super) fn admit(&mut self, found: &OriginRepository) -> anyhow::Result<bool> {
        let known = self.repositories.iter_mut().find(|known| known.id == found.id);
        let Some(known) = known else {
            if let Some(known) = self.repositories.iter().find(|known| known.name == found.name) {
                bail!(LastingError(format!(
                    "it is repository {}, and this recovery began with repository {}",
                    found.id, known.id
                )));
            }
            self.repositories.push(found.clone());
            return Ok(true);
        };
        match (known.lineage, found.lineage) {
            (Some(known), Some(found)) if known != found => {
                bail!(LastingError(format!(
                    "lineage {} was created again in it after this recovery began",
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
                "{} is damaged, so it is unknown what this recovery began with\nHINT: {}",
                path.display(),
                remedy(wal)
            )
        })?;
        Ok(Some(parsed))
    }
}

/// What a person can do who knows better.
pub(super) fn remedy(wal: &Path) -> String {
    format!(
        "Only if what this server recovers from was replaced on purpose, by an archive that continues what was replayed so \
         far, remove {}.",
        wal.join(RECOVERY_ORIGIN).display()
    )
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
        assert_eq!(RecoveryOrigin::read(dir.path()).unwrap(), None);
        let mut origin = RecoveryOrigin::new("7-1".parse().unwrap());
        origin.repositories = vec![repository("a", 1, Some(2)), repository("b", 3, None)];
        origin.repositories[0].newest = Some("000000010000000000000005".parse().unwrap());
        origin.served = Some((RepositoryId([1; 16]), None));
        origin.write(dir.path()).unwrap();
        assert_eq!(RecoveryOrigin::read(dir.path()).unwrap(), Some(origin.clone()));
        let name = "000000010000000000000005".parse().unwrap();
        let given = ServedSegment { name, hash: ContentHash([7; 32]), content_len: 9, keyed: Some(true) };
        origin.served = Some((RepositoryId([1; 16]), Some(given)));
        origin.write(dir.path()).unwrap();
        assert_eq!(RecoveryOrigin::read(dir.path()).unwrap(), Some(origin));
        durable::replace(&dir.path().join(RECOVERY_ORIGIN), b"{\"recovery\":", 0o600).unwrap();
        let error = RecoveryOrigin::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("damaged") && error.contains("\nHINT: Only if"), "{error}");
    }

    #[test]
    fn what_was_made_anew_is_refused() {
        let mut origin = RecoveryOrigin::new("7-1".parse().unwrap());
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
