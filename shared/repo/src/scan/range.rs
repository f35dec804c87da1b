//! Which segments lie between two moments. The index decides: times of transactions are not monotone in LSN order, so it is all from
//! the first segment that may have one late enough to the last one that may have one early enough.

use walpoint_base::{PgTimestamp, SegmentNo, SegmentSize, TimelineId};
use walpoint_plan::restore::{Facts, Path, SegmentRange};
use walpoint_storage::error::{RepoError, Result};

use super::{Moments, ScanRange};
use crate::catalog::{LineageCatalog, TimelineWal};
use crate::index::{first_of, group_of, last_of};

/// WAL that is read before the first moment: what a transaction that ends soon behind it changed before, and a record that tells which
/// transactions had not begun yet. A busy server writes one every 15 seconds.
const AHEAD: u64 = 64 << 20;

/// The youngest timeline with WAL or a history that was not abandoned. The error names a timeline that may be a younger one's, of which
/// it is not known where it comes from.
pub fn latest_timeline(facts: &Facts) -> std::result::Result<Option<TimelineId>, TimelineId> {
    let counts = |timeline: &TimelineId| !facts.abandoned.contains_key(timeline);
    let known = facts.graph.ids().filter(counts).max();
    match facts.doubts.keys().copied().filter(counts).max() {
        Some(doubtful) if Some(doubtful) >= known => Err(doubtful),
        _ => Ok(known),
    }
}

/// What of the path to a timeline lies between two moments.
pub async fn segments_between(
    lineage: &mut LineageCatalog,
    timeline: TimelineId,
    moments: Moments,
) -> Result<ScanRange> {
    let present = lineage.ask(None, |facts| path(facts, timeline).map_or(Ok(Vec::new()), |p| p.present()));
    let present: Vec<SegmentRange> = present.await?;
    let (mut backup, size) = (None, lineage.facts().segment_size);
    let mut range = ScanRange { timeline, files: Vec::new(), lost: Vec::new(), tail: None, backup };
    let (Some(begin), Some(end)) = (present.first(), present.last()) else { return Ok(range) };
    let (begin, end) = (begin.first, end.last);
    let first = match moments.from {
        Some(from) => {
            let first = first_from(lineage, &present, from).await?.unwrap_or(end);
            SegmentNo(first.0.saturating_sub((AHEAD / size.bytes()).max(1)))
        }
        None => {
            let newest = newest_backup(lineage, timeline, moments.to).await?;
            backup = newest.map(|(id, _)| id);
            newest.map_or(begin, |(_, start)| start)
        }
    };
    let last = match moments.to {
        // A record that says when may end in the next one.
        Some(to) => last_until(lineage, &present, to).await?.map_or(first, |last| last.next().min(end)),
        None => end,
    };
    let cut = present.iter().map(|one| SegmentRange {
        first: one.first.max(first),
        last: one.last.min(last),
        ..*one
    });
    range.files = cut.filter(|one| one.first <= one.last).collect();
    range.backup = backup;
    range.tail = (last == end).then(|| end.next().name(timeline, size));
    range.lost = lost_between(lineage, &range.files)?;
    Ok(range)
}

fn path(facts: &Facts, timeline: TimelineId) -> Option<Path<'_>> {
    Path::to(facts, timeline)
}

/// The newest backup on the path that started before a moment, and the segment in which recovery from it begins.
async fn newest_backup(
    lineage: &mut LineageCatalog,
    timeline: TimelineId,
    before: Option<PgTimestamp>,
) -> Result<Option<(walpoint_base::BackupId, SegmentNo)>> {
    let find = |facts: &Facts| {
        let Some(path) = path(facts, timeline) else { return Ok(None) };
        for id in facts.backups.iter().rev() {
            let Some(backup) = facts.complete_backup(*id)? else { continue };
            if path.holds(backup) && before.is_none_or(|before| backup.started <= before) {
                return Ok(Some((backup.id, SegmentNo::of(backup.start(), facts.segment_size))));
            }
        }
        Ok(None)
    };
    lineage.ask(None, find).await
}

/// Consecutive segments of one group of the index.
struct Part {
    timeline: TimelineId,
    first: SegmentNo,
    last: SegmentNo,
}

fn parts(present: &[SegmentRange]) -> impl DoubleEndedIterator<Item = Part> + '_ {
    present.iter().flat_map(|range| {
        (group_of(range.first)..=group_of(range.last)).map(|n| Part {
            timeline: range.timeline,
            first: first_of(n).max(range.first),
            last: last_of(n).min(range.last),
        })
    })
}

/// The first segment with a transaction that ended at or after a time.
async fn first_from(
    lineage: &mut LineageCatalog,
    present: &[SegmentRange],
    from: PgTimestamp,
) -> Result<Option<SegmentNo>> {
    for part in parts(present) {
        let wal = wal_of(lineage, part.timeline)?;
        let summary = wal.summary(group_of(part.first)).and_then(|summary| summary.transactions);
        if summary.is_some_and(|transactions| transactions.latest < from) {
            continue;
        }
        for (number, entry) in wal.entries(part.first, part.last).await? {
            if entry.transactions.is_some_and(|transactions| transactions.latest >= from) {
                return Ok(Some(number));
            }
        }
    }
    Ok(None)
}

/// The last segment with a transaction that ended at or before a time.
async fn last_until(
    lineage: &mut LineageCatalog,
    present: &[SegmentRange],
    to: PgTimestamp,
) -> Result<Option<SegmentNo>> {
    for part in parts(present).rev() {
        let wal = wal_of(lineage, part.timeline)?;
        let summary = wal.summary(group_of(part.first)).and_then(|summary| summary.transactions);
        if summary.is_some_and(|transactions| transactions.earliest > to) {
            continue;
        }
        for (number, entry) in wal.entries(part.first, part.last).await?.into_iter().rev() {
            if entry.transactions.is_some_and(|transactions| transactions.earliest <= to) {
                return Ok(Some(number));
            }
        }
    }
    Ok(None)
}

fn wal_of(lineage: &mut LineageCatalog, timeline: TimelineId) -> Result<&mut TimelineWal> {
    lineage
        .wal_mut(timeline)
        .ok_or_else(|| RepoError::Internal(format!("the WAL of timeline {timeline} was not looked at yet")))
}

/// The segments between ranges that were stored and cannot be had.
fn lost_between(lineage: &mut LineageCatalog, files: &[SegmentRange]) -> Result<Vec<SegmentNo>> {
    let mut lost = Vec::new();
    for pair in files.windows(2) {
        let [before, after] = pair else { continue };
        for timeline in [before.timeline, after.timeline] {
            for run in wal_of(lineage, timeline)?.lost().iter() {
                let (first, last) = (run.first.max(before.last.next()), run.last.0.min(after.first.0 - 1));
                lost.extend((first.0..=last).map(SegmentNo));
            }
        }
    }
    lost.sort_unstable();
    lost.dedup();
    Ok(lost)
}

/// Where a segment begins and the one behind the last of a range.
pub(super) fn bounds(range: &SegmentRange, size: SegmentSize) -> (walpoint_base::Lsn, walpoint_base::Lsn) {
    (range.first.start(size), range.last.end(size))
}
