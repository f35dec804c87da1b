//! What the repository lacks of the WAL without which a backup does not become consistent.

use std::collections::BTreeSet;

use walpoint_base::{SegmentNo, TimelineId};
use walpoint_plan::restore::windows::Consistency;
use walpoint_plan::restore::{Doubt, SegmentRange};
use walpoint_storage::error::Result;

use super::LineageCatalog;
use crate::backup::{AnnouncedWal, AnnouncementReason, NumberedAnnouncement};

/// What is lacking.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Lacking {
    /// Segments that are missing, or that were announced as damaged.
    pub segments: u64,
    /// Whether the history that leads to them is missing or cannot be read.
    pub history: bool,
    /// The announcements that name one of the segments, by number.
    pub announced: BTreeSet<u64>,
}

impl LineageCatalog {
    /// What is lacking of the WAL of a backup of this lineage. `announced`: what is announced.
    pub async fn lacks(&mut self, wal: Consistency, announced: &[NumberedAnnouncement]) -> Result<Lacking> {
        let missing = self.lacking(wal).await?;
        let mut lacking = self.announced(wal, announced);
        for range in &missing {
            let numbers = (range.first.0..=range.last.0).map(SegmentNo);
            let also = |number: &SegmentNo| !self.names_one(announced, range.timeline, *number);
            let more = u64::try_from(numbers.filter(also).count()).unwrap_or(u64::MAX);
            lacking.segments = lacking.segments.saturating_add(more);
        }
        Ok(lacking)
    }

    /// What of it was announced as damaged, and whether its history is known: as far as that can be said without asking the store.
    pub(super) fn announced(&self, wal: Consistency, announced: &[NumberedAnnouncement]) -> Lacking {
        let mut lacking = Lacking { history: self.has_no_history(wal.end_timeline), ..Lacking::default() };
        if !announced.iter().any(|one| !one.announcement.wal.is_empty()) {
            return lacking;
        }
        for SegmentRange { timeline, first, last } in wal.segments(self.facts()) {
            for number in (first.0..=last.0).map(SegmentNo) {
                let by: Vec<u64> = self.naming(announced, timeline, number).collect();
                lacking.segments += u64::from(!by.is_empty());
                lacking.announced.extend(by);
            }
        }
        lacking
    }

    /// Whether what leads to a timeline is stored and cannot be read, or was stored and is not there.
    fn has_no_history(&self, timeline: TimelineId) -> bool {
        let facts = self.facts();
        let doubt = facts.doubts.get(&timeline);
        matches!(doubt, Some(Doubt::Damaged(_) | Doubt::Missing)) || facts.without_history.contains(&timeline)
    }

    fn names_one(&self, announced: &[NumberedAnnouncement], timeline: TimelineId, number: SegmentNo) -> bool {
        self.naming(announced, timeline, number).next().is_some()
    }

    /// The announcements of damage that name a segment of this lineage.
    fn naming<'a>(
        &self,
        announced: &'a [NumberedAnnouncement],
        timeline: TimelineId,
        number: SegmentNo,
    ) -> impl Iterator<Item = u64> + 'a {
        let lineage = self.id();
        let names = move |wal: &AnnouncedWal| {
            let (first, last) = wal.segments();
            (wal.lineage, wal.timeline) == (lineage, timeline) && (first..=last).contains(&number)
        };
        let damaged = announced.iter().filter(|one| one.announcement.reason == AnnouncementReason::Damaged);
        damaged.filter(move |one| one.announcement.wal.iter().any(names)).map(|one| one.n)
    }
}
