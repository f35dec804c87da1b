//! Catching up a repository that does not have to acknowledge: what it missed is copied from one that has it.
//!
//! What is missing shows when listings are compared: from the first file that this process knows it missed, and from the
//! repository's newest backup on, for what was missed before. Older gaps are left: what is expired on purpose has gaps, too.
//! A copy goes the way of every file. It is checked as it is read back, lies in a scratch directory for a moment, and is
//! checked again as it is sealed for the other repository.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use futures_util::TryStreamExt;
use tokio_util::sync::CancellationToken;
use walpoint_base::{SegmentName, SegmentNo, TimelineId, WalFileName};
use walpoint_pg::wal::Identity;
use walpoint_repo::backup::{Backups, ListedState};
use walpoint_repo::layout::WalEntry;
use walpoint_repo::wal::WalArchive;

use super::archiver::Archiver;
use super::target::{Missed, Target};
use super::upload::{Trouble, Uploader};

/// Catches up the repository with that number whenever it missed something, until `stop`; `working` is called after every
/// success. A failure ends it: it is started again.
pub(crate) async fn keep(
    archiver: Arc<Archiver>,
    repository: usize,
    stop: CancellationToken,
    working: impl Fn(),
) -> anyhow::Result<()> {
    tokio::select! {
        result = keep_copying(archiver.uploader(), repository, working) => result,
        // What is half copied was not announced, and is found missing again.
        () = stop.cancelled() => Ok(()),
    }
}

async fn keep_copying(uploader: &Uploader, repository: usize, working: impl Fn()) -> anyhow::Result<()> {
    let Some(target) = uploader.targets().get(repository) else { return Ok(()) };
    loop {
        let missed = target.take_missed();
        match catch_up(uploader, target, &missed).await {
            Ok(copied) => {
                target.rest_no_more();
                if copied > 0 {
                    tracing::info!(repository = target.name(), files = copied, "caught up");
                }
                working();
            }
            Err(error) => {
                target.miss_again(missed);
                return Err(error.context(format!("repository {} is not caught up", target.name())));
            }
        }
        target.missed_something().await;
    }
}

/// Copies what is missing from all that can be reached; how many files that were.
async fn catch_up(uploader: &Uploader, target: &Target, missed: &Missed) -> anyhow::Result<usize> {
    let told = |Trouble { text, .. }| anyhow::anyhow!(text);
    let cluster = uploader.identity().await.map_err(told)?;
    let to = target.archive(&cluster).await?;
    let ranges = Ranges::of(&to, &cluster, missed).await?;
    let (mut copied, mut unreachable, mut sources) = (0, None, 0);
    // Those that acknowledge hold everything.
    let (first, others): (Vec<_>, Vec<_>) = uploader.targets().iter().partition(|source| source.acknowledges);
    for source in first.into_iter().chain(others).filter(|source| source.name() != target.name()) {
        match source.archive(&cluster).await {
            Ok(from) => {
                sources += 1;
                copied += Copy { uploader, target, from: &from, to: &to }.missing(&ranges).await?;
            }
            Err(error) => unreachable = Some(error),
        }
    }
    match unreachable {
        Some(error) if sources == 0 => Err(error.into()),
        _ => Ok(copied),
    }
}

/// From where on a repository should have all of a timeline.
struct Ranges {
    /// Where its newest backup starts.
    backup: Option<(TimelineId, SegmentName)>,
    /// The timelines that it has WAL of.
    timelines: Vec<TimelineId>,
    missed: Missed,
}

impl Ranges {
    async fn of(to: &WalArchive, cluster: &Identity, missed: &Missed) -> anyhow::Result<Self> {
        let listed = Backups::of(to.repository(), &to.lineage().cluster).list().await?;
        let finished = listed.iter().filter_map(|backup| match backup.state {
            ListedState::Finished(stored) => Some((stored, backup.id)),
            _ => None,
        });
        let backup = finished.max().map(|(_, id)| {
            let segment = SegmentNo::of(id.start(), cluster.segment_size);
            (id.timeline(), segment.name(id.timeline(), cluster.segment_size))
        });
        Ok(Self { backup, timelines: to.timelines().await?, missed: missed.clone() })
    }

    /// The first file that it should have; `None` if it needs nothing of that timeline.
    async fn first(&self, to: &WalArchive, timeline: TimelineId) -> anyhow::Result<Option<SegmentName>> {
        let begin = SegmentName { timeline, log: 0, segment: 0 };
        let known = match self.backup {
            Some((of, segment)) if of == timeline => Some(segment),
            Some((of, _)) => (of < timeline).then_some(begin),
            None if self.timelines.contains(&timeline) => {
                let first = to.list(timeline, None).try_next().await?;
                first.and_then(|(entry, _)| entry.segment())
            }
            // It has nothing at all: what it holds begins with what is archived next.
            None => self.timelines.last().filter(|last| **last < timeline).map(|_| begin),
        };
        let missed = self.missed.get(&timeline).copied();
        Ok(known.into_iter().chain(missed).min())
    }
}

/// Copies from one repository to the other.
struct Copy<'a> {
    uploader: &'a Uploader,
    target: &'a Target,
    from: &'a WalArchive,
    to: &'a WalArchive,
}

impl Copy<'_> {
    /// Copies what is missing; how many files that were. One that cannot be copied does not keep the next ones from it.
    async fn missing(&self, ranges: &Ranges) -> anyhow::Result<usize> {
        let scratch = tempfile::Builder::new().prefix("walpoint-").tempdir();
        let scratch = scratch.context("there is no scratch directory for what is copied")?;
        let mut done = Done::default();
        let here: BTreeSet<TimelineId> = self.to.histories().await?.into_iter().collect();
        for timeline in self.from.histories().await?.into_iter().filter(|timeline| !here.contains(timeline)) {
            let name = WalFileName::History(timeline);
            done.count(name, self.copy(name, scratch.path()).await)?;
        }
        for timeline in self.from.timelines().await? {
            let Some(first) = ranges.first(self.to, timeline).await? else { continue };
            let mut here = BTreeSet::new();
            let mut listed = self.to.list(timeline, Some(first));
            while let Some((entry, _)) = listed.try_next().await? {
                here.extend(file(entry));
            }
            // The history beside a segment tells which timelines its pages may be of.
            let history = WalFileName::History(timeline);
            let fetched = self.fetch(history, scratch.path()).await.map(|_| false);
            done.count(history, fetched)?;
            let mut listed = self.from.list(timeline, Some(first));
            while let Some((entry, _)) = listed.try_next().await? {
                if let Some(name) = file(entry).filter(|name| !here.contains(name)) {
                    done.count(name, self.copy(name, scratch.path()).await)?;
                }
            }
        }
        match done.failed {
            None => Ok(done.copied),
            Some(problem) => Err(problem.context(format!("{} files cannot be copied", done.failures))),
        }
    }

    /// Copies a file; `false` if there is none any more.
    async fn copy(&self, name: WalFileName, scratch: &Path) -> Result<bool, Trouble> {
        let Some(damaged) = self.fetch(name, scratch).await? else { return Ok(false) };
        let path = scratch.join(name.to_string());
        self.uploader.upload_to(self.target, name, path.clone(), damaged).await?;
        if !matches!(name, WalFileName::History(_)) {
            tokio::fs::remove_file(&path).await.map_err(Trouble::lasting)?;
        }
        Ok(true)
    }

    /// Reads a file back into the scratch directory: whether it was accepted although damaged. `None` if there is none.
    async fn fetch(&self, name: WalFileName, scratch: &Path) -> Result<Option<bool>, Trouble> {
        let Some(reader) = self.from.read(name).await? else { return Ok(None) };
        let file = File::create(scratch.join(name.to_string())).map_err(Trouble::lasting)?;
        let (_, header) = reader.write_to(file).await?;
        Ok(Some(header.is_some_and(|header| header.damaged)))
    }
}

/// What became of the files so far.
#[derive(Default)]
struct Done {
    copied: usize,
    failures: usize,
    /// Of the first one.
    failed: Option<anyhow::Error>,
}

/// Files that may fail before it is useless to go on.
const FAILURES: usize = 16;

impl Done {
    /// Counts a file. An error means that going on is useless.
    fn count(&mut self, name: WalFileName, result: Result<bool, Trouble>) -> anyhow::Result<()> {
        match result {
            Ok(copied) => self.copied += usize::from(copied),
            Err(Trouble { text, lasting }) => {
                let problem = anyhow::anyhow!("{name}: {text}");
                self.failures += 1;
                if !lasting || self.failures == FAILURES {
                    return Err(problem);
                }
                self.failed.get_or_insert(problem);
            }
        }
        Ok(())
    }
}

/// What PostgreSQL handed over; the rest follows from it.
fn file(entry: WalEntry) -> Option<WalFileName> {
    match entry {
        WalEntry::File(name) => Some(name),
        _ => None,
    }
}
