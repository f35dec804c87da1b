//! Whether a file may be stored: the repositories are opened for it, and each is asked whose WAL it holds where the file would go.
//!
//! A file that is refused as another server's in one repository goes into none. Repositories that do not have to acknowledge are
//! asked too, for a moment, before it is stored in those that have to. Nothing is stored here but the history of a timeline, before
//! its WAL, and a history that is refused; a crash leaves these or not.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use walpoint_base::chain::ChainFacts;
use walpoint_base::{SegmentName, TimelineHistory, TimelineId, WalFileName};
use walpoint_repo::wal::{SealedSegment, WalArchive};
use walpoint_storage::RepoError;

use super::{UploadError, UploadSource, Uploader, together, upload_error};
use crate::same_place::SamePlace;
use crate::wal::disk;
use crate::wal::fork::ForkSide;
use crate::wal::history::{self, FoundHistory};
use crate::wal::identity;
use crate::wal::neighbors::{self, Newcomer};
use crate::wal::split_brain::SplitBrain;
use crate::wal::target::{TargetError, UnderWay, WalTarget};

/// How long an acknowledgement waits to learn whose WAL a repository holds that does not have to acknowledge.
const WITNESS_LIMIT: Duration = Duration::from_secs(1);

/// A repository that a file may go to.
pub(super) struct CandidateRepository<'a> {
    pub(super) target: &'a WalTarget,
    pub(super) admitted: Result<Admitted<'a>, TargetError>,
    /// For it, once it is prepared, if it is a segment.
    pub(super) sealed: Option<SealedSegment>,
}

impl CandidateRepository<'_> {
    pub(super) fn archive(&self) -> Option<&WalArchive> {
        Some(&self.admitted.as_ref().ok()?.archive)
    }
}

/// A repository that is open for a file.
pub(super) struct Admitted<'a> {
    pub(super) archive: WalArchive,
    /// Of its timeline.
    history: Option<Arc<TimelineHistory>>,
    /// Of a segment, until it is stored.
    _under_way: Option<UnderWay<'a>>,
}

/// What a segment shows of its neighbors, and the repositories of its cluster.
pub(super) type Neighborhood<'a> = (Option<ChainFacts>, &'a [WalTarget]);

/// A file and what it is compared with in a repository; `None` for a history, which was compared before.
pub(super) fn newcomer<'a>(
    file: &'a UploadSource,
    target: &'a WalTarget,
    admitted: &'a Admitted<'_>,
    (chain, around): Neighborhood<'a>,
) -> Option<Newcomer<'a>> {
    let name = match file.name {
        WalFileName::Segment(name) | WalFileName::Partial(name) | WalFileName::Backup(name, _) => name,
        WalFileName::History(_) => return None,
    };
    Some(Newcomer {
        target,
        archive: &admitted.archive,
        cluster: &file.cluster,
        file: file.name,
        name,
        chain,
        history: admitted.history.as_deref(),
        wal: file.path.parent().unwrap_or(&file.path),
        answers: file.answers,
        writes: file.writes,
        witness: false,
        around,
    })
}

impl Uploader {
    /// Opens repositories for a file and makes sure that the history of its timeline is in each. A segment then counts as being
    /// stored. Where it is refused as another server's in one of them, it goes into none, and neither does its history.
    pub(super) async fn admit<'a>(
        &'a self,
        file: &UploadSource,
        targets: &[&'a WalTarget],
    ) -> Result<Vec<CandidateRepository<'a>>, UploadError> {
        let wal = self.wal_directory();
        let places = identity::places_of_history(&file.path, file.name, &wal);
        let (places, wal, timeline) = (places.as_slice(), wal.as_path(), file.name.timeline());
        let look = |target: &'a WalTarget| async move {
            target.answers()?;
            let archive = target.archive_at(&file.cluster, timeline).await?;
            target.known(archive.lineage().id, |known| known.since(file.incarnation));
            let around = (wal, self.targets.as_slice());
            if let Some(later) = file.later {
                self.later_is_not_refused(file, target, &archive, later).await?;
            }
            let found = history::find(target, &archive, &file.cluster, timeline, places, around).await?;
            Ok((archive, found))
        };
        let looked = join_all(targets.iter().map(|target| look(target))).await;
        self.refused_nowhere(file, targets.iter().zip(&looked).map(|(target, looked)| (*target, looked)))?;
        let begin = |(target, looked): (&'a WalTarget, Result<(WalArchive, FoundHistory), TargetError>)| async move {
            let admitted = async {
                let (archive, found) = looked?;
                self.is_no_other(target, &archive)?;
                let history = history::store(target, &archive, timeline, found).await?;
                let WalFileName::Segment(name) = file.name else {
                    return Ok(Admitted { archive, history, _under_way: None });
                };
                self.not_behind_a_refusal(target, &archive, name).await?;
                let before = neighbors::before(name, history.as_deref(), file.cluster.segment_size);
                let under_way = target.begin(archive.lineage().id, name, before).await;
                // The one before may have been refused meanwhile.
                self.not_behind_a_refusal(target, &archive, name).await?;
                Ok(Admitted { archive, history, _under_way: Some(under_way) })
            };
            CandidateRepository { target, admitted: admitted.await, sealed: None }
        };
        let candidates = join_all(targets.iter().copied().zip(looked).map(begin)).await;
        self.refused_nowhere(file, candidates.iter().map(|one| (one.target, &one.admitted)))?;
        Ok(candidates)
    }

    /// Refuses a repository that is another one of the configuration, too: what is stored in both is one copy. One that has to acknowledge
    /// is not refused for one beside.
    pub(in crate::wal) fn is_no_other(
        &self,
        target: &WalTarget,
        archive: &WalArchive,
    ) -> Result<(), TargetError> {
        let id = archive.repository().id();
        let counts = |other: &&WalTarget| {
            other.name() != target.name()
                && (other.acknowledges || !target.acknowledges)
                && other.presence.is(id)
        };
        match self.targets.iter().find(counts) {
            None => Ok(()),
            Some(other) => {
                let (first, second) = (target.name().to_owned(), other.name().to_owned());
                Err(SamePlace { first, second, id }.into())
            }
        }
    }

    /// Refuses a file of an earlier timeline if the one that its server writes is refused: what PostgreSQL kept of the earlier one may
    /// be the server's own as well.
    async fn later_is_not_refused(
        &self,
        file: &UploadSource,
        target: &WalTarget,
        archive: &WalArchive,
        later: TimelineId,
    ) -> Result<(), TargetError> {
        let wal = self.wal_directory();
        let (places, around) =
            ([wal.join(WalFileName::History(later).to_string())], (wal.as_path(), self.targets.as_slice()));
        match history::find(target, archive, &file.cluster, later, &places, around).await {
            Err(error @ (TargetError::SplitBrain(_) | TargetError::Repository(_))) => Err(error),
            // That its own timeline has no history stands in the way of that one only.
            _ => Ok(()),
        }
    }

    /// Compares a file with what is stored around it in each repository. Where it is refused in one, it goes into none.
    pub(super) async fn judge(
        &self,
        file: &UploadSource,
        chain: Option<ChainFacts>,
        candidates: Vec<&mut CandidateRepository<'_>>,
    ) -> Result<(), UploadError> {
        let judged = candidates.iter().map(|one| async {
            let admitted = one.admitted.as_ref().ok()?;
            let newcomer = newcomer(file, one.target, admitted, (chain, &self.targets))?;
            match newcomer.admit().await {
                Ok(()) => self.judge_forks(file, one.target, &admitted.archive, chain).await.err(),
                refused => refused.err(),
            }
        });
        let judged: Vec<Result<(), TargetError>> =
            join_all(judged).await.into_iter().map(|error| error.map_or(Ok(()), Err)).collect();
        let results = candidates.iter().map(|one| one.target).zip(&judged);
        self.refused_nowhere(file, results)?;
        for (one, result) in candidates.into_iter().zip(judged) {
            if let Err(error) = result {
                one.admitted = Err(error);
            }
        }
        Ok(())
    }

    /// Compares a segment with the timelines that begin in it or before it, or with the one that its own timeline left.
    async fn judge_forks(
        &self,
        file: &UploadSource,
        target: &WalTarget,
        archive: &WalArchive,
        chain: Option<ChainFacts>,
    ) -> Result<(), TargetError> {
        let WalFileName::Segment(name) = file.name else { return Ok(()) };
        if !file.in_wal {
            return Ok(());
        }
        if (ForkSide { target, archive, name, path: &file.path, chain }).judge().await? {
            self.refused.notify_one();
        }
        Ok(())
    }

    /// Compares a file with what is stored around it in repositories that do not have to acknowledge, before it is stored in those
    /// that have to. One that fails, rests or does not answer in time says nothing; of a timeline that is known to be this
    /// server's there none is asked.
    pub(super) async fn hear(
        &self,
        file: &UploadSource,
        chain: Option<ChainFacts>,
        witnesses: &[&WalTarget],
    ) -> Result<(), UploadError> {
        let heard = witnesses.iter().filter(|target| !target.rests()).map(|&target| async move {
            // One that hangs is left out when it does not store the file either.
            let heard = tokio::time::timeout(WITNESS_LIMIT, self.witness(file, chain, target)).await;
            (target, heard.unwrap_or(Ok(())))
        });
        let heard = join_all(heard).await;
        self.refused_nowhere(file, heard.iter().map(|(target, heard)| (*target, heard)))
    }

    /// Whether a repository holds another server's WAL where a file would go. Stores nothing but a refused history.
    async fn witness(
        &self,
        file: &UploadSource,
        chain: Option<ChainFacts>,
        target: &WalTarget,
    ) -> Result<(), TargetError> {
        let (wal, timeline) = (self.wal_directory(), file.name.timeline());
        let archive = target.archive_at(&file.cluster, timeline).await?;
        let claimed = target.known(archive.lineage().id, |known| {
            known.since(file.incarnation);
            known.has_claimed(timeline)
        });
        if claimed {
            return Ok(());
        }
        let places = identity::places_of_history(&file.path, file.name, &wal);
        let around = (wal.as_path(), self.targets.as_slice());
        let found = history::find(target, &archive, &file.cluster, timeline, &places, around).await;
        if matches!(&found, Err(TargetError::SplitBrain(split)) if !split.is_shown()) {
            return Ok(());
        }
        let found = found?;
        if let WalFileName::Segment(name) = file.name {
            match self.not_behind_a_refusal(target, &archive, name).await {
                Err(TargetError::SplitBrain(split)) if !split.is_shown() => {}
                refused => refused?,
            }
        }
        let admitted = Admitted { archive, history: found.history(), _under_way: None };
        match newcomer(file, target, &admitted, (chain, &self.targets)) {
            Some(newcomer) => Newcomer { witness: true, ..newcomer }.admit().await,
            None => Ok(()),
        }
    }

    /// An error, if one of these repositories holds another server's WAL.
    fn refused_nowhere<'r, T: 'r>(
        &self,
        file: &UploadSource,
        results: impl Iterator<Item = (&'r WalTarget, &'r Result<T, TargetError>)>,
    ) -> Result<(), UploadError> {
        let mut refusals = Vec::new();
        for (target, result) in results {
            if let Err(error @ TargetError::SplitBrain(split)) = result {
                self.refuse(file, target, split);
                refusals.push(upload_error(target, error));
            }
        }
        together(refusals).map_or(Ok(()), Err)
    }

    pub(super) fn refuse(&self, file: &UploadSource, target: &WalTarget, split: &SplitBrain) {
        let segment = match file.name {
            WalFileName::Segment(name) => Some(name),
            _ => None,
        };
        target.refuse(split, segment);
        self.refused.notify_one();
    }

    /// Refuses what follows a segment that was refused as another server's and waits still: nothing behind it can be this
    /// server's there.
    async fn not_behind_a_refusal(
        &self,
        target: &WalTarget,
        archive: &WalArchive,
        name: SegmentName,
    ) -> Result<(), TargetError> {
        let lineage = archive.lineage().id;
        let Some((first, split)) = target.known(lineage, |known| known.refused_before(name)) else {
            return Ok(());
        };
        let wal = self.wal_directory();
        let mark = wal.join(format!("archive_status/{first}.ready"));
        if disk::look(&wal, move || mark.exists()).await.map_err(RepoError::from)? {
            return Err(split.into());
        }
        target.known(lineage, |known| known.forget_refusal(name.timeline));
        Ok(())
    }
}
