//! Catching up a repository: what it missed is copied from one that has it.
//!
//! What is missing shows when listings are compared: from the first file that this process knows it missed, and from the
//! repository's newest backup on, for what was missed before. Older gaps are left: what is expired on purpose has gaps, too.
//! Nothing is copied behind a segment that has other content in the two: another server wrote there.
//! A copy goes the way of every file. It is checked as it is read back, lies in a scratch directory for a moment, and is
//! checked again as it is sealed for the other repository. A crash leaves the scratch directory; what was not copied is found
//! missing by the next daemon.
//!
//! While it is behind, nothing is stored in that repository directly ([`beside`](super::beside)): what is acknowledged meanwhile waits,
//! so that nothing lies behind a gap. One that has to acknowledge misses nothing while it has to: it is compared with the others once
//! after each start or reload, because it may not have had to before, and where it got another lineage.

mod acknowledging;

use std::collections::BTreeSet;
use std::fs::File;
use std::future::ready;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use anyhow::{Context, bail};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use walpoint_base::{BackupId, Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId, WalFileName};
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::wal::WalArchive;
use walpoint_runtime::human;
use walpoint_storage::RepoError;
use walpoint_storage::layout::{NameHash, WalEntry};
use walpoint_storage::store::ListedObject;

pub(crate) use self::acknowledging::keep_acknowledging;
use super::archiver::Archiver;
use super::base;
use super::elsewhere::Copies;
use super::target::{Missed, TargetError, WalTarget};
use super::upload::{REST, TIME_LIMIT, UploadError, Uploader};

/// Catches up the repository with that number whenever it missed something; `working` is called after every success. A
/// failure ends it: it is started again.
pub(crate) async fn keep(
    archiver: Arc<Archiver>,
    repository: usize,
    working: impl Fn(),
) -> anyhow::Result<()> {
    let uploader = archiver.uploader();
    let Some(target) = uploader.targets().get(repository) else { return Ok(()) };
    // In which lineage of which repository it is known what is missing. What was missed before this began is not known yet.
    let mut known = None;
    // What could not be copied before this was started again.
    if target.missed_any() {
        target.beside.falls_behind();
    }
    loop {
        target.beside.is_behind().await;
        let (missed, now) = (target.take_missed(), target.lineages_left());
        let failed =
            |error: anyhow::Error| error.context(format!("repository {} is not caught up", target.name()));
        match catch_up(uploader, target, &missed, known == Some(now)).await {
            Ok(CaughtUp { files, left, .. }) => {
                known = Some(now);
                say(target, files);
                target.end_rest();
                // What cannot be copied keeps nothing behind it away.
                target.is_caught_up();
                if let Some(problem) = left {
                    target.miss_again(missed);
                    return Err(failed(problem));
                }
                working();
            }
            Err(error) => {
                target.miss_again(missed);
                return Err(failed(error));
            }
        }
    }
}

fn say(target: &WalTarget, files: usize) {
    if files > 0 {
        tracing::info!(repository = target.name(), files, "caught up");
    }
}

/// What became of a comparison that went through everything.
struct CaughtUp {
    files: usize,
    /// Whether another repository does not answer, with which one that has to acknowledge is to be compared.
    away: bool,
    /// Why some files cannot be copied.
    left: Option<anyhow::Error>,
}

/// Copies what is missing. `known`: nothing else is missing than what is said to be missed.
async fn catch_up(
    uploader: &Uploader,
    target: &WalTarget,
    missed: &Missed,
    known: bool,
) -> anyhow::Result<CaughtUp> {
    let cluster = uploader.identity().await?;
    let to = match target.acknowledges {
        true => target.archive(&cluster).await?,
        false => open(target, &cluster).await?,
    };
    let ranges = Ranges::of(uploader, &to, &cluster, missed, known).await?;
    let (mut files, mut left, mut problem) = (0, None, None);
    let (mut through, mut complete, mut away) = (false, false, false);
    // Those that acknowledge hold everything. What one of them cannot give, another repository may.
    let (first, others): (Vec<_>, Vec<_>) = uploader.targets().iter().partition(|source| source.acknowledges);
    for source in first.into_iter().chain(others).filter(|source| source.name() != target.name()) {
        let from = source.archive(&cluster).await.map_err(anyhow::Error::new);
        let is_away = from.is_err();
        let result = match &from {
            Ok(from) => {
                let copy = Copy { uploader, target, source: source.name(), from, to: &to };
                copy.missing(&ranges, &mut files).await
            }
            Err(_) => Ok(None),
        };
        // A repository that is gone lists nothing that could be missing.
        let there = source.look_again().await.map_err(anyhow::Error::new);
        match from.and(result).and_then(|left| there.map(|()| left)) {
            Ok(some) => {
                through |= source.acknowledges;
                complete |= source.acknowledges && some.is_none();
                left = left.or(some);
            }
            Err(error) if target.acknowledges && is_away => {
                tracing::debug!(
                    repository = target.name(),
                    "not compared with {}: {}",
                    source.name(),
                    walpoint_words::format_chain(&error)
                );
                away = true;
            }
            Err(error) => {
                problem.get_or_insert(error);
            }
        }
    }
    target.look_again().await?;
    match problem {
        Some(problem) if !through || target.acknowledges => Err(problem),
        _ => Ok(CaughtUp { files, away, left: left.filter(|_| !complete) }),
    }
}

/// Opens a repository. One that does not answer soon rests meanwhile, so that no acknowledgement asks it whose WAL it holds.
async fn open(target: &WalTarget, cluster: &WalIdentity) -> Result<WalArchive, TargetError> {
    let mut opening = pin!(target.archive(cluster));
    loop {
        match tokio::time::timeout(TIME_LIMIT, &mut opening).await {
            Ok(opened) => {
                return opened.inspect_err(|error| {
                    if error.is_transient() {
                        target.rest(REST);
                    }
                });
            }
            Err(_) => {
                if !target.rests() {
                    tracing::warn!(
                        repository = target.name(),
                        "no answer within {} from this repository, which does not have to acknowledge\nDETAIL: What it misses \
                         is copied later.",
                        human::span(TIME_LIMIT)
                    );
                }
                target.rest(REST);
            }
        }
    }
}

/// From where on a repository should have all of a timeline.
enum Ranges {
    /// Of each timeline, from what it missed.
    Missed(Missed),
    /// From its newest backup as well, on that timeline and later ones: what is older may have been expired.
    SinceBackup(Missed, BackupId, SegmentSize),
    /// From its first file: it has no backup.
    SinceFirst(Missed, Vec<TimelineId>),
}

impl Ranges {
    async fn of(
        uploader: &Uploader,
        to: &WalArchive,
        cluster: &WalIdentity,
        missed: &Missed,
        known: bool,
    ) -> anyhow::Result<Self> {
        let missed = missed.clone();
        if known {
            return Ok(Self::Missed(missed));
        }
        let newest = match base::path(uploader, to).await? {
            Some(path) => base::newest_backup(to, &path).await?,
            None => None,
        };
        Ok(match newest {
            Some(backup) => Self::SinceBackup(missed, backup, cluster.segment_size),
            None => Self::SinceFirst(missed, to.timelines().await?),
        })
    }

    /// The first file that it should have; `None` if it needs nothing of that timeline.
    async fn first(&self, to: &WalArchive, timeline: TimelineId) -> anyhow::Result<Option<SegmentName>> {
        let (missed, other) = match self {
            Self::Missed(missed) => (missed, None),
            Self::SinceBackup(missed, backup, size) => {
                let start = SegmentNo::of(backup.start(), *size).name(timeline, *size);
                (missed, (timeline >= backup.timeline()).then_some(start))
            }
            Self::SinceFirst(missed, timelines) if timelines.contains(&timeline) => {
                let first = to.list(timeline, None).try_next().await?;
                (missed, first.and_then(|(entry, _)| entry.segment()))
            }
            // If it has nothing at all, what it holds begins with what is archived next.
            Self::SinceFirst(missed, timelines) => {
                let later = timelines.last().is_some_and(|last| *last < timeline);
                (missed, later.then_some(SegmentName { timeline, log: 0, segment: 0 }))
            }
        };
        Ok(missed.get(&timeline).copied().into_iter().chain(other).min())
    }
}

/// Copies from one repository to the other.
struct Copy<'a> {
    uploader: &'a Uploader,
    target: &'a WalTarget,
    /// Its name.
    source: &'a str,
    from: &'a WalArchive,
    to: &'a WalArchive,
}

impl Copy<'_> {
    /// Copies what is missing and counts it, but for what waits to be stored directly. One file that cannot be copied does not keep
    /// the next ones from it; why it cannot.
    async fn missing(&self, ranges: &Ranges, copied: &mut usize) -> anyhow::Result<Option<anyhow::Error>> {
        if self.target.acknowledges && !self.lacks_any(ranges).await? {
            return Ok(None);
        }
        let scratch = tempfile::Builder::new().prefix("walpoint-").tempdir();
        let scratch = scratch.context("there is no scratch directory for what is copied")?;
        // Before any WAL: a timeline that was abandoned, or that two servers claim, would count in this repository meanwhile.
        let verdicts = self.to.take_verdicts(self.from).await?;
        if verdicts > 0 {
            tracing::info!(repository = self.target.name(), verdicts, "took over what is known of timelines");
        }
        let mut done = Done { copied, failures: 0, failed: None };
        let here: BTreeSet<TimelineId> = self.to.histories().await?.into_iter().collect();
        for timeline in self.from.histories().await?.into_iter().filter(|timeline| !here.contains(timeline)) {
            let name = WalFileName::History(timeline);
            if self.target.beside.awaits(name) {
                continue;
            }
            done.count(name, self.copy(Handed::of(name), scratch.path()).await)?;
        }
        for timeline in self.from.timelines().await? {
            let Some(first) = ranges.first(self.to, timeline).await? else { continue };
            // The history beside a segment tells which timelines its pages may be of.
            let history = WalFileName::History(timeline);
            let path = scratch.path().join(history.to_string());
            let fetched = self.fetch(Handed::of(history), &path).await;
            done.count(history, fetched.map(|_| false))?;
            let wal = self.uploader.wal_directory();
            let mut copies = Copies::new(&wal, (self.from, self.to), first).await?;
            // Both listings are in the order of the names.
            let mut here = files(self.to.list(timeline, Some(first)));
            let mut next_here = here.try_next().await?;
            let mut passed_here = None;
            let mut there = files(self.from.list(timeline, Some(first)));
            while let Some(name) = there.try_next().await? {
                while let Some(here_now) = next_here.filter(|here| here.order() < name.order()) {
                    here_now.whole().into_iter().for_each(|segment| copies.passes(segment));
                    passed_here = here_now.segment();
                    next_here = here.try_next().await?;
                }
                let waits = !matches!(name.copy, Copied::Ended(..)) && self.target.beside.awaits(name.file);
                if next_here != Some(name) && !waits {
                    if let Some(segment) = name.segment() {
                        let begun = [passed_here, next_here.and_then(|here| here.segment())];
                        let begun = begun.contains(&Some(segment));
                        if let Some(split) = copies.contradiction(segment, begun).await? {
                            if self.target.acknowledges {
                                return self.leaves(done, &split);
                            }
                            self.target.refuse(&split, None);
                            self.uploader.refused.notify_one();
                            bail!("{split}");
                        }
                    }
                    let result = self.copy(name, scratch.path()).await;
                    if let (Ok(true), Some(segment)) = (&result, name.whole()) {
                        copies.copied(segment).await?;
                    }
                    done.count(name.file, result)?;
                    if done.failures == FAILURES {
                        return Ok(done.left());
                    }
                }
            }
        }
        Ok(done.left())
    }

    /// Copies a file; `false` if there is none any more.
    async fn copy(&self, name: Handed, scratch: &Path) -> Result<bool, UploadError> {
        // Before anything is read for it.
        self.uploader.answers(self.target)?;
        let path = scratch.join(format!("{}.copy", name.file));
        let fetched = {
            // An object is read in one piece.
            let _memory = self.uploader.memory_to_read(self.from.lineage().segment_size).await;
            self.fetch(name, &path).await
        };
        let copied = match fetched {
            Ok(Some(damaged)) => {
                self.uploader.upload_to(self.target, name.file, path.clone(), damaged).await.map(|_| true)
            }
            Ok(None) => return Ok(false),
            Err(error) => Err(error),
        };
        // Whatever became of it: it may be a gigabyte.
        tokio::fs::remove_file(&path).await.ok();
        copied
    }

    /// Reads a file back: whether it was accepted although damaged. `None` if there is none.
    async fn fetch(&self, name: Handed, path: &Path) -> Result<Option<bool>, UploadError> {
        let reader = match name.copy {
            Copied::Whole => self.from.read(name.file).await?,
            Copied::Partial(segment, hash) => self.from.read_partial(segment, hash).await?,
            Copied::Ended(segment, end, hash) => self.from.read_ended(segment, end, hash).await?,
        };
        let Some(reader) = reader else { return Ok(None) };
        let file = File::create(path).map_err(UploadError::permanent)?;
        let (_, header) = reader.write_to(file).await?;
        Ok(Some(header.is_some_and(|header| header.damaged)))
    }
}

/// What became of the files so far.
struct Done<'a> {
    copied: &'a mut usize,
    failures: usize,
    /// Of the first one.
    failed: Option<anyhow::Error>,
}

/// Files that may fail before it is useless to go on.
const FAILURES: usize = 16;

impl Done<'_> {
    /// Counts a file. An error means that going on is useless.
    fn count(&mut self, name: WalFileName, result: Result<bool, UploadError>) -> anyhow::Result<()> {
        match result {
            Ok(copied) => *self.copied += usize::from(copied),
            Err(UploadError { text, permanent }) => {
                let problem = anyhow::anyhow!("{name}: {text}");
                if !permanent {
                    return Err(problem);
                }
                self.failures += 1;
                self.failed.get_or_insert(problem);
            }
        }
        Ok(())
    }

    /// What cannot be copied.
    fn left(self) -> Option<anyhow::Error> {
        let failures = self.failures;
        self.failed.map(|problem| problem.context(format!("{failures} files cannot be copied")))
    }
}

/// A file that PostgreSQL handed over.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Handed {
    file: WalFileName,
    copy: Copied,
}

/// Which content of a file: of what is not complete, several may exist. In an encrypted repository hashes are its own, so there
/// such a file is copied once more whenever its segment is compared, and found to be there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Copied {
    Whole,
    Partial(SegmentName, NameHash),
    /// A segment whose records end there.
    Ended(SegmentName, Lsn, NameHash),
}

impl Handed {
    /// A file of which there is one.
    fn of(file: WalFileName) -> Self {
        Self { file, copy: Copied::Whole }
    }

    /// The segment that it is, if it is a whole one.
    fn whole(&self) -> Option<SegmentName> {
        match (self.copy, self.file) {
            (Copied::Whole, WalFileName::Segment(segment)) => Some(segment),
            _ => None,
        }
    }

    /// The segment that it is, or is a copy of; `None` for PostgreSQL's other files.
    fn segment(&self) -> Option<SegmentName> {
        match (self.copy, self.file) {
            (Copied::Whole, WalFileName::Segment(segment)) => Some(segment),
            (Copied::Partial(segment, _) | Copied::Ended(segment, ..), _) => Some(segment),
            _ => None,
        }
    }

    /// Its place in a listing.
    fn order(&self) -> (String, Option<(Lsn, NameHash)>) {
        match self.copy {
            Copied::Whole => (self.file.to_string(), None),
            Copied::Partial(_, hash) => (self.file.to_string(), Some((Lsn(0), hash))),
            Copied::Ended(segment, end, hash) => (format!("{segment}.ended"), Some((end, hash))),
        }
    }
}

/// What PostgreSQL handed over, of a listing.
fn files(
    listed: BoxStream<'static, Result<(WalEntry, ListedObject), RepoError>>,
) -> BoxStream<'static, Result<Handed, RepoError>> {
    let file = |entry| match entry {
        WalEntry::File(file) => Some(Handed::of(file)),
        WalEntry::Partial(segment, hash) => {
            Some(Handed { file: WalFileName::Partial(segment), copy: Copied::Partial(segment, hash) })
        }
        WalEntry::Ended(segment, end, hash) => {
            Some(Handed { file: WalFileName::Segment(segment), copy: Copied::Ended(segment, end, hash) })
        }
        _ => None,
    };
    listed.try_filter_map(move |(entry, _)| ready(Ok(file(entry)))).boxed()
}
