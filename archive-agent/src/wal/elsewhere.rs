//! What a directory can show of a segment through the other repositories of its cluster: one of them holds the same content, and
//! the directory remembers to have stored it there ([`claim`]).
//!
//! A repository may hold this server's WAL that was never stored there out of `pg_wal`: it was copied from another one, by the
//! daemon or beside it. A crash leaves a note or none.

use std::path::Path;
use std::time::Duration;

use walpoint_base::{SegmentName, TimelineId, WalFileName};
use walpoint_pg::wal::Identity;
use walpoint_repo::RepoError;
use walpoint_repo::wal::{WalArchive, WalHeader};

use super::claim::{self, Claim};
use super::neighbors::{Stored, header, newest_before};
use super::target::{Target, TargetError};

/// How long another repository may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether a segment of `archive`, which is that of `target`, has the content of one that the directory stored in another
/// repository. One that fails, rests or does not answer in time shows nothing.
pub(super) async fn shows(
    (target, archive): (&Target, &WalArchive),
    others: &[Target],
    cluster: &Identity,
    wal: &Path,
    name: SegmentName,
) -> Result<bool, RepoError> {
    let Stored::Sound(here) = header(archive, name).await? else { return Ok(false) };
    for other in others.iter().filter(|other| other.name() != target.name() && !other.rests()) {
        let look = async {
            let there = other.archive_at(cluster, name.timeline).await?;
            if claimed(wal, &there, name.timeline).await?.is_none_or(|claim| claim < name) {
                return Ok::<_, TargetError>(false);
            }
            Ok(same(&there, archive, &here, name).await?)
        };
        if let Ok(Ok(true)) = tokio::time::timeout(PATIENCE, look).await {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The newest segment of a timeline that the directory remembers to have stored in an archive, unless that has other content now.
async fn claimed(
    wal: &Path,
    archive: &WalArchive,
    timeline: TimelineId,
) -> Result<Option<SegmentName>, RepoError> {
    let (wal, of) = (wal.to_owned(), archive.clone());
    let read = tokio::task::spawn_blocking(move || claim::read(&wal, &of, timeline)).await;
    let Some(claim) = read.map_err(|error| RepoError::Internal(error.to_string()))? else { return Ok(None) };
    Ok(match header(archive, claim.segment).await? {
        Stored::Sound(header) if header.hash != claim.hash => None,
        _ => Some(claim.segment),
    })
}

/// Whether an archive has a segment with the content that `to` has of it. Each encrypted repository has hashes of its own, so the
/// content may have to be read.
async fn same(
    from: &WalArchive,
    to: &WalArchive,
    there: &WalHeader,
    name: SegmentName,
) -> Result<bool, RepoError> {
    let Stored::Sound(header) = header(from, name).await? else { return Ok(false) };
    if header.hash == there.hash {
        return Ok(true);
    }
    if header.chain != there.chain || header.content_len != there.content_len {
        return Ok(false);
    }
    let Some(mut file) = from.get(WalFileName::Segment(name)).await? else { return Ok(false) };
    file.content.resize(usize::try_from(there.size.bytes()).unwrap_or(file.content.len()), 0);
    let sealer = to.repository().sealer().clone();
    let hashed = tokio::task::spawn_blocking(move || sealer.content_hash(&file.content)).await;
    Ok(hashed.map_err(|error| RepoError::Internal(error.to_string()))? == there.hash)
}

/// Notes of what is copied from one archive to another that it is this directory's, as long as it is: the directory stored it in
/// the first one, and what is stored before it in the other one is the same there.
pub(super) struct Copies<'a> {
    wal: &'a Path,
    from: &'a WalArchive,
    to: &'a WalArchive,
    /// The newest segment that the directory stored in the first one, as far as it was looked at.
    covered: Option<SegmentName>,
    /// The newest one that is the directory's in the other one.
    shown: Option<SegmentName>,
}

impl<'a> Copies<'a> {
    /// From one archive to another one, of one timeline, beside that directory.
    pub(super) fn new(wal: &'a Path, from: &'a WalArchive, to: &'a WalArchive) -> Self {
        Self { wal, from, to, covered: None, shown: None }
    }

    /// A segment was copied.
    pub(super) async fn copied(&mut self, name: SegmentName) -> Result<(), RepoError> {
        if self.covered.is_none_or(|covered| covered < name) {
            self.covered = claimed(self.wal, self.from, name.timeline).await?;
        }
        if self.covered.is_none_or(|covered| covered < name) {
            return Ok(());
        }
        if let Some(before) = newest_before(self.to, name).await?
            && self.shown != Some(before)
        {
            let Stored::Sound(there) = header(self.to, before).await? else { return Ok(()) };
            if !same(self.from, self.to, &there, before).await? {
                return Ok(());
            }
        }
        let Stored::Sound(stored) = header(self.to, name).await? else { return Ok(()) };
        self.shown = Some(name);
        let (wal, archive, claim) =
            (self.wal.to_owned(), self.to.clone(), Claim { segment: name, hash: stored.hash });
        let noted = tokio::task::spawn_blocking(move || claim::note(&wal, &archive, claim)).await;
        if let Ok(Err(error)) = noted {
            tracing::debug!(file = %name, "not remembered in pg_wal: {error}");
        }
        Ok(())
    }
}
