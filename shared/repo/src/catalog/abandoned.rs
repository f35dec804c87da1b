//! Timelines that a person says were abandoned, and when a timeline was written to last: one that is in production is not
//! abandoned, whatever is settled.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use jiff::Timestamp;
use walpoint_base::{SegmentName, SegmentNo, TimelineId, WalFileName};
use walpoint_plan::restore::{Abandoned, ExtentQuestion, Path};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::{AbandonedUntil, WalEntry};

use super::LineageCatalog;
use crate::wal::{Abandonment, WalArchive};

/// What is known of the end of a timeline's WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LastUse {
    /// The last segment that is stored, if there is one.
    pub segment: Option<SegmentNo>,
    /// When it was written to: the latest of its transactions and backups, or else when its last segment was stored.
    pub at: Option<Timestamp>,
}

/// The timelines that were abandoned and have had no WAL since. What is wrong with the others is added to `problems`.
pub(super) async fn abandoned(
    archive: &WalArchive,
    listed: &[AbandonedUntil],
    problems: &mut Vec<String>,
) -> Result<BTreeMap<TimelineId, Abandoned>> {
    let mut abandoned = BTreeMap::new();
    for (timeline, name) in archive.abandoned_here(listed).await? {
        let until = name.until;
        let record = match archive.abandonment(name).await {
            Ok(Some(record)) => record,
            Ok(None) => continue,
            Err(error @ RepoError::Corrupt { .. }) => {
                problems.push(error.to_string());
                continue;
            }
            Err(error) => return Err(error),
        };
        match archive.stored_behind(until).await? {
            None => drop(abandoned.insert(timeline, settled(&record))),
            Some(later) => problems.push(format!(
                "timeline {timeline} was settled as abandoned up to \"{until}\", and \"{later}\" was stored since: it counts again"
            )),
        }
    }
    Ok(abandoned)
}

/// What a planner has to know of it.
fn settled(record: &Abandonment) -> Abandoned {
    Abandoned { settled: record.settled, verdict: record.to_string() }
}

impl LineageCatalog {
    /// When a timeline was written to last.
    pub async fn last_use(&mut self, timeline: TimelineId) -> Result<LastUse> {
        let run = self.ask(None, |facts| Ok(facts.wal(timeline)?.iter().next_back().copied())).await?;
        let mut at = self.last_backup_on(timeline).await?;
        let Some(run) = run else { return Ok(LastUse { segment: None, at }) };
        let until = run.last.end(self.lineage().segment_size);
        let extent = self
            .ask(None, |facts| {
                let Some(path) = Path::to(facts, timeline) else { return Ok(None) };
                path.coverage(run.first)?;
                facts.extent(ExtentQuestion { path: timeline, first: run.first, until }).map(Some)
            })
            .await?;
        at = at.max(extent.and_then(|extent| extent.latest).map(|latest| latest.to_time()));
        if at.is_none() {
            at = self.stored_at(run.last.name(timeline, self.lineage().segment_size)).await?;
        }
        Ok(LastUse { segment: Some(run.last), at })
    }

    async fn last_backup_on(&mut self, timeline: TimelineId) -> Result<Option<Timestamp>> {
        let ids: Vec<_> =
            self.facts().backups.iter().copied().filter(|id| id.timeline() == timeline).collect();
        for id in ids.into_iter().rev() {
            let complete = self.ask(None, |facts| Ok(facts.complete_backup(id)?.cloned())).await?;
            if let Some(backup) = complete {
                return Ok(Some(backup.ended.to_time()));
            }
        }
        Ok(None)
    }

    async fn stored_at(&self, segment: SegmentName) -> Result<Option<Timestamp>> {
        let mut entries = self.archive().list(segment.timeline, Some(segment));
        while let Some((entry, meta)) = entries.try_next().await? {
            if entry == WalEntry::File(WalFileName::Segment(segment)) {
                return Ok(Some(meta.modified));
            }
        }
        Ok(None)
    }
}
