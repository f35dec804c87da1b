//! WAL that `verify` found damaged, and what of it was stored anew since.
//!
//! What was announced is about the object that `verify` read. One that was created later is another one: the damaged object was removed,
//! and the segment archived again. It is read before it counts, once and whole; a restore must not wait for a verification of everything,
//! and only a verification with the right to write ends an announcement. Nothing is written here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use walpoint_base::{LineageId, SegmentNo, TimelineId, WalFileName};
use walpoint_storage::object::RepositoryId;

use super::lineage::LineageCatalog;
use crate::backup::{AnnouncedWal, AnnouncementReason, NumberedAnnouncement};
use crate::wal::WalArchive;

/// Announced segments that are looked at, at most. More than that are left to a verification.
const LOOKED_AT: usize = 256;

/// Objects that are looked at or read at the same time.
const AT_ONCE: usize = 4;

/// A segment, by its lineage, timeline and number.
type Segment = (LineageId, TimelineId, SegmentNo);

/// Segments that `verify` found damaged in a repository.
#[derive(Debug, Clone)]
pub(super) struct FoundDamaged {
    pub(super) repository: RepositoryId,
    pub(super) wal: AnnouncedWal,
}

impl LineageCatalog {
    /// What was found damaged of the WAL, here and in repositories that it is read with.
    pub(super) fn found_damaged(&self) -> Vec<FoundDamaged> {
        let repository = self.archive.repository().id();
        let own = self.announced_damaged().flat_map(|one| &one.announcement.wal);
        let own = own.map(|wal| FoundDamaged { repository, wal: *wal });
        own.chain(self.found_beside.iter().cloned()).collect()
    }

    /// Takes out of what is known to be damaged the segments that were stored since that was announced, and are sound: those of the
    /// lineage, and those that it inherits.
    pub(super) async fn leave_out_what_was_stored_anew(&mut self) {
        let mut anew = BTreeSet::new();
        let mut next = Some(self.archive.clone());
        while let Some(archive) = next {
            let announced = self.announced_segments(archive.lineage().id);
            let looking = announced.into_iter().map(|(segment, at)| stored_anew(&archive, segment, at));
            let looking = stream::iter(looking.collect::<Vec<_>>()).buffer_unordered(AT_ONCE);
            anew.extend(looking.filter_map(async |sound| sound).collect::<Vec<Segment>>().await);
            next = archive.inherited().map(|inherited| inherited.archive().clone());
        }
        if let Some(Some(announced)) = &mut self.announced
            && !anew.is_empty()
        {
            for one in
                announced.iter_mut().filter(|one| one.announcement.reason == AnnouncementReason::Damaged)
            {
                one.announcement.wal =
                    one.announcement.wal.iter().flat_map(|wal| without(wal, &anew)).collect();
            }
        }
        self.stored_anew = anew;
    }

    /// The segments that were announced as damaged, were stored since, and were read: lineage, timeline and number.
    pub(crate) fn stored_anew(&self) -> &BTreeSet<(LineageId, TimelineId, SegmentNo)> {
        &self.stored_anew
    }

    fn announced_damaged(&self) -> impl Iterator<Item = &NumberedAnnouncement> {
        let announced = self.announcements().unwrap_or_default().iter();
        announced.filter(|one| one.announcement.reason == AnnouncementReason::Damaged)
    }

    /// The segments of a lineage that were announced as damaged, and when each was announced last: one that was put right once may be
    /// damaged again.
    fn announced_segments(&self, lineage: LineageId) -> BTreeMap<Segment, Timestamp> {
        let wal =
            self.announced_damaged().flat_map(|one| one.announcement.wal.iter().map(|wal| (one.stored, wal)));
        let mut wal: Vec<_> = wal.filter(|(_, wal)| wal.lineage == lineage).collect();
        // The newest first: what is left out for the limit is then never the last word on a segment.
        wal.sort_by_key(|(at, _)| Reverse(*at));
        let each = wal.into_iter().flat_map(|(at, wal)| {
            (wal.first..=wal.last).map(move |number| ((lineage, wal.timeline, SegmentNo(number)), at))
        });
        let mut last = BTreeMap::new();
        for (segment, at) in each {
            if last.len() >= LOOKED_AT {
                break;
            }
            last.entry(segment).or_insert(at);
        }
        last
    }
}

/// The segment, if it was stored after it was announced and can be read to its end. What cannot be found out is left as announced.
async fn stored_anew(archive: &WalArchive, segment: Segment, announced: Timestamp) -> Option<Segment> {
    let name = segment.2.name(segment.1, archive.lineage().segment_size);
    let meta = archive.repository().store().head(&archive.paths().segment(name)).await.ok()??;
    if meta.modified <= announced {
        return None;
    }
    let reader = archive.read(WalFileName::Segment(name)).await.ok()??;
    if reader.header().is_none_or(|header| header.damaged) {
        return None;
    }
    reader.write_to(std::io::sink()).await.ok()?;
    Some(segment)
}

/// What is left of a range without these segments.
fn without(wal: &AnnouncedWal, anew: &BTreeSet<Segment>) -> Vec<AnnouncedWal> {
    let (mut left, mut first) = (Vec::new(), Some(wal.first));
    let segment = |number| (wal.lineage, wal.timeline, SegmentNo(number));
    for (.., number) in anew.range(segment(wal.first)..=segment(wal.last)) {
        let begins = first.filter(|first| *first < number.0);
        left.extend(begins.map(|first| AnnouncedWal { first, last: number.0 - 1, ..*wal }));
        first = number.0.checked_add(1);
    }
    let rest = first.filter(|first| *first <= wal.last);
    left.extend(rest.map(|first| AnnouncedWal { first, ..*wal }));
    left
}

#[cfg(test)]
mod tests {
    use walpoint_base::SystemId;

    use super::*;

    #[test]
    fn a_range_is_divided_by_what_was_stored_anew() {
        let lineage = LineageId { system_id: SystemId(7), n: 1 };
        let timeline = TimelineId::FIRST;
        let wal = AnnouncedWal { lineage, timeline, first: 3, last: u64::MAX };
        let left = |anew: &[u64]| {
            let anew = anew.iter().map(|n| (lineage, timeline, SegmentNo(*n))).collect();
            without(&wal, &anew).iter().map(|wal| (wal.first, wal.last)).collect::<Vec<_>>()
        };
        assert_eq!(left(&[]), [(3, u64::MAX)]);
        assert_eq!(left(&[2]), [(3, u64::MAX)]);
        assert_eq!(left(&[3, 4, 9]), [(5, 8), (10, u64::MAX)]);
        assert_eq!(left(&[7, u64::MAX]), [(3, 6), (8, u64::MAX - 1)]);
        assert_eq!(
            without(&AnnouncedWal { last: 3, ..wal }, &BTreeSet::from([(lineage, timeline, SegmentNo(3))])),
            []
        );
    }
}
