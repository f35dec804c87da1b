//! WAL that was found damaged and has been stored anew since.
//!
//! What `verify` announced is about the object that it read. One that was created later is another one: a person removed the damaged
//! object and archived the segment again. It is read before it counts, once and whole; a restore must not wait for a verification of
//! everything, which only who may write can end an announcement with.

use std::collections::BTreeSet;

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use walpoint_base::{LineageId, SegmentNo, TimelineId, WalFileName};
use walpoint_storage::object::RepositoryId;

use super::lineage::LineageCatalog;
use crate::backup::{CondemnedReason, CondemnedWal, NumberedCondemned};
use crate::wal::WalArchive;

/// Announced segments that are looked at, at most. Of more than that it is left to a verification.
const LOOKED_AT: usize = 256;

/// Objects that are looked at or read at the same time.
const AT_ONCE: usize = 4;

/// A segment, by its lineage, timeline and number.
type Segment = (LineageId, TimelineId, SegmentNo);

/// Segments that `verify` found damaged in a repository.
#[derive(Debug, Clone)]
pub(super) struct FoundDamaged {
    pub(super) repository: RepositoryId,
    pub(super) wal: CondemnedWal,
}

impl LineageCatalog {
    /// Takes out of what is known to be damaged the segments of the lineage that were stored since that was announced, and are sound.
    pub(super) async fn leave_out_what_was_stored_anew(&mut self) {
        let mut anew = BTreeSet::new();
        let mut next = Some(self.archive.clone());
        while let Some(archive) = next {
            let announced = self.announced_segments(archive.lineage().id);
            let looking = announced.map(|(one, segment)| is_stored_anew(&archive, one.stored, segment));
            let looking = stream::iter(looking.collect::<Vec<_>>()).buffer_unordered(AT_ONCE);
            anew.extend(looking.filter_map(async |sound| sound).collect::<Vec<Segment>>().await);
            // What is inherited counts as well.
            next = archive.inherited().map(|inherited| inherited.archive().clone());
        }
        if anew.is_empty() {
            return;
        }
        let Some(Some(condemned)) = &mut self.condemned else { return };
        for one in condemned.iter_mut().filter(|one| one.condemned.reason == CondemnedReason::Damaged) {
            let left = one.condemned.wal.iter().flat_map(|wal| without(wal, &anew)).collect();
            one.condemned.wal = left;
        }
        self.stored_anew = anew;
    }

    /// The segments that were announced as damaged, were stored since, and were read: lineage, timeline and number.
    pub(crate) fn stored_anew(&self) -> &BTreeSet<(LineageId, TimelineId, SegmentNo)> {
        &self.stored_anew
    }

    /// The segments of a lineage that were announced as damaged.
    fn announced_segments(
        &self,
        lineage: LineageId,
    ) -> impl Iterator<Item = (&NumberedCondemned, Segment)> + '_ {
        let damaged = self.condemned().unwrap_or_default().iter();
        let damaged = damaged.filter(|one| one.condemned.reason == CondemnedReason::Damaged);
        let wal = damaged.flat_map(|one| one.condemned.wal.iter().map(move |wal| (one, wal)));
        let wal = wal.filter(move |(_, wal)| wal.lineage == lineage);
        let each = wal.flat_map(move |(one, wal)| {
            (wal.first..=wal.last).map(move |number| (one, (lineage, wal.timeline, SegmentNo(number))))
        });
        each.take(LOOKED_AT)
    }
}

/// The segment, if it was stored after it was announced and can be read to its end. What cannot be found out is left as announced.
async fn is_stored_anew(archive: &WalArchive, announced: Timestamp, segment: Segment) -> Option<Segment> {
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
fn without(wal: &CondemnedWal, anew: &BTreeSet<Segment>) -> Vec<CondemnedWal> {
    let mut left: Vec<CondemnedWal> = Vec::new();
    let of_it = |one: &Segment| {
        (one.0, one.1) == (wal.lineage, wal.timeline) && (wal.first..=wal.last).contains(&one.2.0)
    };
    if !anew.iter().any(of_it) {
        return vec![*wal];
    }
    let stays = |n: &u64| !anew.contains(&(wal.lineage, wal.timeline, SegmentNo(*n)));
    for n in (wal.first..=wal.last).filter(stays) {
        match left.last_mut() {
            Some(last) if last.last + 1 == n => last.last = n,
            _ => left.push(CondemnedWal { first: n, last: n, ..*wal }),
        }
    }
    left
}
