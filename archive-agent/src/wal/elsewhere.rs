//! What a directory can show of a segment through the other repositories of its cluster: one of them holds the same content, and
//! the directory remembers to have stored it there ([`claim`]).
//!
//! A repository may hold this server's WAL that was never stored there out of `pg_wal`: it was copied from another one, by the
//! daemon or beside it. A crash leaves a note or none.

use std::path::Path;
use std::time::Duration;

use walpoint_base::{SegmentName, TimelineId};
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::agreement::{self, Agreement};
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;

use super::claim::{self, SegmentClaim};
use super::disk;
use super::neighbors::{StoredNeighbor, header, newest_before};
use super::split_brain::SplitBrain;
use super::target::{TargetError, WalTarget};
use super::unreadable;

/// How long another repository may take.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// Whether a segment of `archive`, which is that of `target`, has the content of one that the directory stored in another
/// repository. One that fails, rests or does not answer in time shows nothing.
pub(super) async fn shows(
    (target, archive): (&WalTarget, &WalArchive),
    others: &[WalTarget],
    cluster: &WalIdentity,
    wal: &Path,
    name: SegmentName,
) -> Result<bool, RepoError> {
    for other in others.iter().filter(|other| other.name() != target.name() && !other.rests()) {
        let look = async {
            let there = other.archive_at(cluster, name.timeline).await?;
            if claimed(wal, &there, name.timeline).await?.is_none_or(|claim| claim < name) {
                return Ok::<_, TargetError>(false);
            }
            Ok(there.same_segment(archive, name).await? == Some(true))
        };
        if let Ok(Ok(true)) = tokio::time::timeout(TIME_LIMIT, look).await {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The newest segment of a timeline that the directory remembers to have stored in an archive, unless that has other content. A note
/// that cannot be read shows nothing.
pub(super) async fn claimed(
    wal: &Path,
    archive: &WalArchive,
    timeline: TimelineId,
) -> Result<Option<SegmentName>, RepoError> {
    let claim = match claim::noted(wal, archive, timeline).await {
        Ok(claim) => claim,
        Err(RepoError::Io { .. }) => None,
        Err(error) => return Err(error),
    };
    match claim {
        Some(claim) => claim::unless_replaced(archive, claim).await,
        None => Ok(None),
    }
}

/// Follows what is copied of one timeline from one archive to another: nothing is copied behind another server's WAL, and what is
/// this directory's is noted, as long as it is: the directory stored it in the first archive, and what is stored before it in the
/// other one is the same there.
pub(super) struct Copies<'a> {
    wal: &'a Path,
    from: &'a WalArchive,
    to: &'a WalArchive,
    /// The newest segment that the directory stored in the first one, as far as it was looked at.
    covered: Option<SegmentName>,
    /// Whether the timeline begins at the same position in both, once that was asked.
    begins: Option<Agreement>,
    /// The newest segment of the other one that was passed, and whether both hold one server's WAL up to there, once that was asked.
    before: Option<(SegmentName, Option<Agreement>)>,
}

impl<'a> Copies<'a> {
    /// From one archive to another one, of one timeline from a segment on, beside that directory. One listing of what is older.
    pub(super) async fn new(
        wal: &'a Path,
        (from, to): (&'a WalArchive, &'a WalArchive),
        first: SegmentName,
    ) -> Result<Self, RepoError> {
        let before = newest_before(to, first).await?.map(|before| (before, None));
        Ok(Self { wal, from, to, covered: None, begins: None, before })
    }

    /// A segment is in the other archive: what is copied next comes behind it.
    pub(super) fn passes(&mut self, name: SegmentName) {
        self.before = Some((name, None));
    }

    /// What shows that the other archive holds another server's WAL before a segment that is copied next, or as its beginning, if anything
    /// does. `begun`: the other one has something of that segment.
    pub(super) async fn contradiction(
        &mut self,
        next: SegmentName,
        begun: bool,
    ) -> Result<Option<SplitBrain>, RepoError> {
        let begins = match self.begins.take() {
            Some(begins) => begins,
            None => {
                let begins = agreement::of_histories(self.from, self.to, next.timeline).await;
                unreadable::agreement((self.from, self.to), begins).await?
            }
        };
        let before = match &mut self.before {
            Some((_, Some(asked))) => asked.clone(),
            Some((before, asked)) => {
                let segments = agreement::older(self.to, *before);
                asked.insert(unreadable::newest((self.from, self.to), segments).await?).clone()
            }
            None => Agreement::Same,
        };
        let mut agreement = self.begins.insert(begins).clone().and(before);
        if begun && !matches!(agreement, Agreement::Different(_)) {
            let incomplete = agreement::incomplete(self.from, self.to, next, None).await;
            agreement = agreement.and(unreadable::agreement((self.from, self.to), incomplete).await?);
        }
        Ok(agreement.difference().map(|what| SplitBrain::new(self.to, next.timeline, what)))
    }

    /// A segment was copied.
    pub(super) async fn copied(&mut self, name: SegmentName) -> Result<(), RepoError> {
        let before = self.before.replace((name, Some(Agreement::Same)));
        if self.covered.is_none_or(|covered| covered < name) {
            self.covered = claimed(self.wal, self.from, name.timeline).await?;
        }
        if self.covered.is_none_or(|covered| covered < name)
            || before.is_some_and(|(_, same)| same != Some(Agreement::Same))
        {
            return Ok(());
        }
        let StoredNeighbor::Sound(stored) = header(self.to, name).await? else { return Ok(()) };
        let (wal, archive, claim) =
            (self.wal.to_owned(), self.to.clone(), SegmentClaim { segment: name, hash: stored.hash });
        let noted = disk::run(self.wal, move || claim::note(&wal, &archive, claim)).await;
        if let Ok(Err(error)) = noted {
            tracing::debug!(file = %name, "not remembered in pg_wal: {error}");
        }
        Ok(())
    }
}
