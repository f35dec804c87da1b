//! Which segments lie between two moments, and what is there of each. The index decides: times of transactions are not monotone in LSN
//! order, so it is all from the first segment that may have one late enough to the last one that may have one early enough.
//!
//! The index has no times of what is not a transaction, of records that cross from one segment to the next, and of segments that are
//! not there. So at each end the range extends to the next segment with transactions, or to the end of what is known.

use walpoint_base::facts::TransactionRange;
use walpoint_base::{BackupId, Lsn, PgTimestamp, SegmentName, SegmentNo, SegmentSize, TimelineId};
use walpoint_plan::restore::{Asking, Facts, Path, SegmentRange};
use walpoint_plan::runs::Runs;
use walpoint_storage::error::{RepoError, Result};

use super::{GapReason, IncompletePart, Moments, ScanPart, ScanRange};
use crate::catalog::{LineageCatalog, TimelineWal};
use crate::index::{first_of, group_of, last_of};

/// WAL that is read before the first moment: what a transaction that ends soon behind it changed before, and a record that says which
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
    let present =
        lineage.ask(None, |facts| Path::to(facts, timeline).map_or(Ok(Vec::new()), |path| path.present()));
    let present: Vec<SegmentRange> = present.await?;
    let find = |facts: &Facts| Path::to(facts, timeline).map_or(Ok(None), |path| known(facts, path));
    let known = lineage.ask(None, find).await?;
    let backup = match moments.from {
        Some(_) => None,
        None => newest_backup(lineage, timeline, moments.to).await?,
    };
    let mut range = ScanRange { timeline, parts: Vec::new(), backup: backup.map(|backup| backup.id) };
    // What a backup needs was written, whether any of it is left or not.
    let needed = backup.map(|backup| (backup.first, backup.last));
    let begin = known.map(|known| known.0).or(needed.map(|needed| needed.0));
    let end = known.map(|known| known.1).max(needed.map(|needed| needed.1));
    let (Some(begin), Some(end)) = (begin, end) else { return Ok(range) };
    let first = match (moments.from, needed) {
        (Some(from), _) => first_for(lineage, &present, from, (begin, end)).await?,
        (None, Some((first, _))) => first,
        (None, None) => begin,
    };
    let last = match moments.to {
        Some(to) => last_for(lineage, &present, to).await?,
        None => None,
    };
    let bounds = (first, last.map(|last| last.max(first)), end);
    let find = |facts: &Facts| {
        Path::to(facts, timeline).map_or(Ok(Vec::new()), |path| parts_between(facts, path, bounds))
    };
    range.parts = lineage.ask(None, find).await?;
    Ok(range)
}

/// The first and the last segment of a path of which anything is there, or was.
fn known(facts: &Facts, path: Path<'_>) -> Asking<Option<(SegmentNo, SegmentNo)>> {
    let mut known: Option<(SegmentNo, SegmentNo)> = None;
    let mut note = |first: SegmentNo, last: SegmentNo| {
        let (before, behind) = known.unwrap_or((first, last));
        known = Some((before.min(first), behind.max(last)));
    };
    let mut begin = None;
    let all = path.right(SegmentNo(0), SegmentNo(u64::MAX / facts.segment_size.bytes() - 1));
    for SegmentRange { timeline, first, last } in all {
        let runs = [Some(facts.wal(timeline)?), facts.lost(timeline)?, facts.begun(timeline)?];
        for run in runs.into_iter().flatten().flat_map(Runs::iter) {
            if run.first <= last && first <= run.last {
                note(run.first.max(first), run.last.min(last));
            }
        }
        begin = Some(first);
    }
    // Up to where its last timeline begins the path was written.
    let written = begin.and_then(|begin| begin.0.checked_sub(1)).map(SegmentNo);
    Ok(known.map(|(first, last)| (first, written.map_or(last, |written| last.max(written)))))
}

/// What there is of each segment from a first one up to a last one, or else up to the end, which what was written last may follow.
fn parts_between(
    facts: &Facts,
    path: Path<'_>,
    (first, last, end): (SegmentNo, Option<SegmentNo>, SegmentNo),
) -> Asking<Vec<ScanPart>> {
    let (size, mut parts) = (facts.segment_size, Vec::new());
    let owner = path.right(end, end).first().map(|files| files.timeline);
    let begun = match owner {
        Some(owner) => is_in(facts.begun(owner)?, end) && !facts.wal(owner)?.contains(end),
        None => false,
    };
    let open = if begun { end } else { end.next() };
    for files in path.right(first, last.unwrap_or(open)) {
        let SegmentRange { timeline, last: until, .. } = files;
        let (there, lost, begun) = (facts.wal(timeline)?, facts.lost(timeline)?, facts.begun(timeline)?);
        let begins = path.history().begin_of(timeline).unwrap_or(Lsn::INVALID);
        let mut number = files.first;
        while number <= until {
            if let Some(run) = there.containing(number) {
                let last = run.last.min(until);
                parts.push(ScanPart::Whole(SegmentRange { timeline, first: number, last }));
                number = last.next();
                continue;
            }
            let (is_open, listed) = (last.is_none() && number == open, is_in(begun, number));
            let is_fork = begins > number.start(size);
            if is_open || listed || is_fork {
                let written = match is_open {
                    true => is_fork.then_some(begins),
                    false => Some(number.end(size)),
                };
                let files = files_of(path, number, size);
                let part = IncompletePart { number, timeline, files, listed, written };
                parts.push(ScanPart::Incomplete(part));
            } else {
                add_missing(&mut parts, (timeline, number), is_in(lost, number));
            }
            number = number.next();
        }
    }
    Ok(parts)
}

fn is_in(runs: Option<&Runs>, number: SegmentNo) -> bool {
    runs.is_some_and(|runs| runs.contains(number))
}

/// The files of a segment that hold bytes of the path, the newest timeline's first, and up to where.
fn files_of(path: Path<'_>, number: SegmentNo, size: SegmentSize) -> Vec<(SegmentName, Lsn)> {
    let history = path.history();
    let file = |timeline| {
        let until = history.served_until(timeline, number, size)?;
        Some((number.name(timeline, size), until))
    };
    history.candidates(number, size).filter_map(file).collect()
}

/// Adds a segment that is not there to those before it.
fn add_missing(parts: &mut Vec<ScanPart>, (timeline, number): (TimelineId, SegmentNo), lost: bool) {
    let why = if lost { GapReason::Lost } else { GapReason::Missing };
    match parts.last_mut() {
        Some(ScanPart::Missing(range, before)) if range.timeline == timeline => {
            range.last = number;
            if lost {
                *before = why;
            }
        }
        _ => {
            let range = SegmentRange { timeline, first: number, last: number };
            parts.push(ScanPart::Missing(range, why));
        }
    }
}

/// A backup, and the WAL that recovery from it needs to become consistent.
#[derive(Clone, Copy)]
struct NewestBackup {
    id: BackupId,
    first: SegmentNo,
    last: SegmentNo,
}

/// The newest backup on the path that started before a moment.
async fn newest_backup(
    lineage: &mut LineageCatalog,
    timeline: TimelineId,
    before: Option<PgTimestamp>,
) -> Result<Option<NewestBackup>> {
    let find = |facts: &Facts| {
        let Some(path) = Path::to(facts, timeline) else { return Ok(None) };
        let size = facts.segment_size;
        for id in facts.backups.iter().rev() {
            let Some(backup) = facts.complete_backup(*id)? else { continue };
            if path.holds(backup) && before.is_none_or(|before| backup.started <= before) {
                let (first, last) =
                    (SegmentNo::of(backup.start(), size), SegmentNo::before(backup.end, size));
                return Ok(Some(NewestBackup { id: backup.id, first, last }));
            }
        }
        Ok(None)
    };
    lineage.ask(None, find).await
}

/// The first segment that is read to list what ended at or after a time.
async fn first_for(
    lineage: &mut LineageCatalog,
    present: &[SegmentRange],
    from: PgTimestamp,
    (begin, end): (SegmentNo, SegmentNo),
) -> Result<SegmentNo> {
    let found = first_with(lineage, present, begin, |transactions| transactions.latest >= from).await?;
    let found = found.unwrap_or(end.next());
    let size = lineage.facts().segment_size;
    let ahead = SegmentNo(found.0.saturating_sub((AHEAD / size.bytes()).max(1)));
    let before = last_with(lineage, present, found, |_| true).await?;
    Ok(before.map_or(begin, |before| before.min(ahead)).max(begin))
}

/// The last segment that is read to list what ended at or before a time; `None` if that is all to the end.
async fn last_for(
    lineage: &mut LineageCatalog,
    present: &[SegmentRange],
    to: PgTimestamp,
) -> Result<Option<SegmentNo>> {
    let end = present.last().map_or(SegmentNo(0), |files| files.last.next());
    let found = last_with(lineage, present, end, |transactions| transactions.earliest <= to).await?;
    first_with(lineage, present, found.map_or(SegmentNo(0), SegmentNo::next), |_| true).await
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

/// The first segment from one on with transactions that are wanted; those of a group are if any of them is.
async fn first_with(
    lineage: &mut LineageCatalog,
    present: &[SegmentRange],
    from: SegmentNo,
    wanted: impl Fn(&TransactionRange) -> bool,
) -> Result<Option<SegmentNo>> {
    for part in parts(present).filter(|part| part.last >= from) {
        let wal = wal_of(lineage, part.timeline)?;
        let summary = wal.summary(group_of(part.first)).and_then(|summary| summary.transactions);
        if summary.is_some_and(|transactions| !wanted(&transactions)) {
            continue;
        }
        for (number, entry) in wal.entries(part.first.max(from), part.last).await? {
            if entry.transactions.is_some_and(|transactions| wanted(&transactions)) {
                return Ok(Some(number));
            }
        }
    }
    Ok(None)
}

/// The last segment before one with transactions that are wanted; those of a group are if any of them is.
async fn last_with(
    lineage: &mut LineageCatalog,
    present: &[SegmentRange],
    before: SegmentNo,
    wanted: impl Fn(&TransactionRange) -> bool,
) -> Result<Option<SegmentNo>> {
    for part in parts(present).rev().filter(|part| part.first < before) {
        let wal = wal_of(lineage, part.timeline)?;
        let summary = wal.summary(group_of(part.first)).and_then(|summary| summary.transactions);
        if summary.is_some_and(|transactions| !wanted(&transactions)) {
            continue;
        }
        let last = part.last.min(SegmentNo(before.0.saturating_sub(1)));
        for (number, entry) in wal.entries(part.first, last).await?.into_iter().rev() {
            if entry.transactions.is_some_and(|transactions| wanted(&transactions)) {
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
