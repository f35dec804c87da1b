//! Catching up a repository that has to acknowledge, with what it missed before it had to.
//!
//! WAL is stored there meanwhile, so what it lacks is what it still lacks a moment later. Nothing is copied, no history and nothing
//! that is known of timelines either, where it lacks no segment.

use std::future::ready;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::{Stream, TryStreamExt};
use walpoint_base::{SegmentName, TimelineId, WalFileName};
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;
use walpoint_storage::layout::WalEntry;

use super::copy::Copy;
use super::{CaughtUp, Ranges, catch_up, say};
use crate::wal::archiver::Archiver;
use crate::wal::split_brain::SplitBrain;
use crate::wal::target::Missed;

/// After that, what was being stored when another repository had it already is there.
const MOMENT: Duration = Duration::from_secs(3);

/// How often to look whether the repository has another lineage, or another one answers again.
const INTERVAL: Duration = Duration::from_secs(60);

/// Catches up the repository with that number; `working` is called after every success. A failure ends it: it is started again.
/// Another repository that is away is asked later.
pub(crate) async fn keep_acknowledging(
    archiver: Arc<Archiver>,
    repository: usize,
    working: impl Fn(),
) -> anyhow::Result<()> {
    let uploader = archiver.uploader();
    let Some(target) = uploader.targets().get(repository) else { return Ok(()) };
    // In which of its lineages nothing is missing that another repository has.
    let mut complete = None;
    loop {
        let now = target.lineages_left();
        if complete != Some(now) {
            let caught_up = catch_up(uploader, target, &Missed::new(), false).await;
            let CaughtUp { files, left, away, .. } = caught_up
                .with_context(|| format!("repository {} is not compared with the others", target.name()))?;
            say(target, files);
            if let Some(problem) = left {
                return Err(problem.context(format!("repository {} is not caught up", target.name())));
            }
            complete = (!away).then_some(now);
            working();
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The whole segments of a timeline from one on.
fn segments(
    archive: &WalArchive,
    timeline: TimelineId,
    first: SegmentName,
) -> impl Stream<Item = Result<SegmentName, RepoError>> + Send + use<> {
    archive.list(timeline, Some(first)).try_filter_map(|(entry, _)| {
        ready(Ok(match entry {
            WalEntry::File(WalFileName::Segment(segment)) => Some(segment),
            _ => None,
        }))
    })
}

impl Copy<'_> {
    /// Whether the repository lacks a segment that the other one has; the first one is named in the log, because recovery cannot pass it.
    pub(super) async fn lacks_any(&self, ranges: &Ranges) -> anyhow::Result<bool> {
        let mut waited = false;
        for timeline in self.from.timelines().await? {
            let Some(first) = ranges.first(self.to, timeline).await? else { continue };
            // Both listings are in the order of the names.
            let mut here = pin!(segments(self.to, timeline, first));
            let mut next_here = here.try_next().await?;
            let mut there = pin!(segments(self.from, timeline, first));
            while let Some(name) = there.try_next().await? {
                while next_here.is_some_and(|here| here < name) {
                    next_here = here.try_next().await?;
                }
                if next_here == Some(name) {
                    continue;
                }
                if !std::mem::replace(&mut waited, true) {
                    tokio::time::sleep(MOMENT).await;
                }
                if self.to.header(name).await?.is_none() {
                    tracing::warn!(
                        file = %name,
                        repository = self.target.name(),
                        "missing in this repository, which has to acknowledge, and stored in repository {}: it is copied from there, \
                         with what else is missing",
                        self.source
                    );
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// A timeline is left where another server wrote in one of the two: which of them is right is told where the servers' own WAL is
    /// compared.
    pub(super) fn leaves(&self, split: &SplitBrain) {
        tracing::warn!(
            repository = self.target.name(),
            "nothing more of timeline {} is copied from repository {}, which holds other WAL: {split}",
            split.timeline(),
            self.source
        );
    }
}
