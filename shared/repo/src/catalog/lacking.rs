//! What the repository lacks of the WAL without which a backup does not become consistent.

use std::collections::BTreeSet;

use walpoint_base::{SegmentNo, TimelineId};
use walpoint_plan::restore::{Consistency, Doubt, SegmentRange};
use walpoint_plan::retention::Candidate;
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

/// The WAL without which a backup does not become consistent.
pub(crate) fn wal_of(backup: &Candidate) -> Consistency {
    Consistency { start: backup.id.start(), end: backup.stop, end_timeline: backup.stop_timeline }
}

impl LineageCatalog {
    /// What is lacking of the WAL of a backup of this lineage. `announced`: what is announced.
    pub async fn lacks(&mut self, wal: Consistency, announced: &[NumberedAnnouncement]) -> Result<Lacking> {
        let mut ways = Vec::new();
        for way in wal.ways(self.facts()) {
            let mut lacking = self.announced_of(&way, announced);
            for range in self.lacking_of(&way).await? {
                let numbers = (range.first.0..=range.last.0).map(SegmentNo);
                let also = |number: &SegmentNo| !self.names_one(announced, range.timeline, *number);
                let more = u64::try_from(numbers.filter(also).count()).unwrap_or(u64::MAX);
                lacking.segments = lacking.segments.saturating_add(more);
            }
            let is_whole = lacking.segments == 0;
            ways.push(lacking);
            if is_whole {
                break;
            }
        }
        Ok(Lacking { history: self.has_no_history(wal.end_timeline), ..least(ways) })
    }

    /// What of it was announced as damaged, and whether its history is known: as far as that can be said without asking the store.
    pub(super) fn announced(&self, wal: Consistency, announced: &[NumberedAnnouncement]) -> Lacking {
        let ways = wal.ways(self.facts());
        let ways = ways.iter().map(|way| self.announced_of(way, announced)).collect();
        Lacking { history: self.has_no_history(wal.end_timeline), ..least(ways) }
    }

    /// Which of these files were announced as damaged.
    fn announced_of(&self, files: &[SegmentRange], announced: &[NumberedAnnouncement]) -> Lacking {
        let mut lacking = Lacking::default();
        if !announced.iter().any(|one| !one.announcement.wal.is_empty()) {
            return lacking;
        }
        for SegmentRange { timeline, first, last } in files {
            for number in (first.0..=last.0).map(SegmentNo) {
                let by: Vec<u64> = self.naming(announced, *timeline, number).collect();
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
        // Of a timeline that is not known nothing is stored, and all but the first one had a history.
        let is_unknown = timeline > TimelineId::FIRST && !facts.graph.contains(timeline);
        matches!(doubt, Some(Doubt::Damaged(_) | Doubt::Missing))
            || facts.without_history.contains(&timeline)
            || is_unknown
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

/// The way on which the least is lacking; and the announcements that name a segment on any of them.
fn least(ways: Vec<Lacking>) -> Lacking {
    let announced = ways.iter().flat_map(|way| way.announced.iter().copied()).collect();
    let least = ways.into_iter().min_by_key(|way| way.segments).unwrap_or_default();
    Lacking { announced, ..least }
}
