//! Which moments can be recovered: windows, and the gaps between them.
//!
//! A window begins where a backup is consistent and reaches as far as the WAL after it has no gap, and nothing that recovery
//! cannot pass: a segment that does not continue the one before it, a spell of `wal_level = minimal`. Older backups in the
//! same unbroken range make it longer, so only the oldest usable one of each range is looked at.

use std::collections::BTreeSet;

use walpoint_base::{BackupId, Lsn, PgTimestamp, SegmentNo, TimelineId};

use super::facts::{Asking, BackupFacts, ExtentQuestion, Facts};
use super::path::{Coverage, Path, SegmentRange};
use crate::runs::Runs;

/// A range of WAL every moment of which can be recovered on the path to a timeline.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Window {
    /// The timeline whose path it lies on.
    pub timeline: TimelineId,
    /// Where it begins: the end of `oldest`, or, for a timeline's own part, the fork.
    pub from: Lsn,
    /// The time there: when the backup ended, or that of a later commit that it holds; or the latest transaction before the fork.
    pub from_time: Option<PgTimestamp>,
    /// Every byte before this is there.
    pub until: Lsn,
    /// Where the last complete record starts, if known: the last `recovery_target_lsn` in the window.
    pub last_record: Option<Lsn>,
    /// The latest time of a transaction's end in it: a target time must lie before it.
    pub until_time: Option<PgTimestamp>,
    /// The backup that it begins with.
    pub oldest: BackupId,
    /// How many listed backups start in the range on this path, `oldest` included, but for those known to be useless.
    pub backups: usize,
    /// Whether it comes from the parent timeline: it begins at the fork and not at a backup.
    pub continued: bool,
}

/// A part of a path that recovery can replay without a break.
struct CoveredRange {
    from: Lsn,
    until: Lsn,
    /// Where backups may start: recovery cannot begin in a `.partial` file.
    begins_before: Lsn,
}

/// The windows on the whole path to `timeline`, oldest first. Nothing for an unknown timeline.
pub fn on_path(facts: &Facts, timeline: TimelineId) -> Asking<Vec<Window>> {
    reaching_past(facts, timeline, Lsn::INVALID)
}

/// The windows on the path to `timeline` that reach past `begin`.
fn reaching_past(facts: &Facts, timeline: TimelineId, begin: Lsn) -> Asking<Vec<Window>> {
    let Some(path) = Path::to(facts, timeline) else { return Ok(Vec::new()) };
    let mut windows = Vec::new();
    // What recovery cannot pass divides what is there.
    let bars: BTreeSet<Lsn> = path.minimal()?.iter().chain(path.breaks()?).copied().collect();
    for (first, coverage) in ranges(&path)?.into_iter().filter(|(_, coverage)| coverage.until > begin) {
        let mut from = first.start(facts.segment_size);
        let inside = bars.range(from + 1..coverage.until.max(from + 1)).copied();
        for until in inside.chain([coverage.until]) {
            let partial = coverage.by_partial.map(|_| coverage.missing.start(facts.segment_size));
            let begins_before = partial.unwrap_or(until).min(until);
            let range = CoveredRange { from, until, begins_before };
            windows.extend(window_in(facts, &path, &range)?.filter(|window| window.until > begin));
            from = until + 1;
        }
    }
    Ok(windows)
}

/// The windows in a timeline's own part, from its fork on, also past the forks of its children.
pub fn of_timeline(facts: &Facts, timeline: TimelineId) -> Asking<Vec<Window>> {
    let begin = facts.graph.history(timeline).and_then(|h| h.begin_of(timeline)).unwrap_or(Lsn::INVALID);
    let mut windows = reaching_past(facts, timeline, begin)?;
    for window in windows.iter_mut().filter(|w| w.from < begin) {
        let first = SegmentNo::of(window.oldest.start(), facts.segment_size);
        let before = facts.extent(ExtentQuestion { path: timeline, first, until: begin })?;
        window.from_time = before.latest.max(window.from_time);
        window.from = begin;
        window.continued = true;
    }
    Ok(windows)
}

/// The segments that are missing between a timeline's first and its last one, those included that were stored and cannot be
/// had, and those before one of which an incomplete copy is there: nothing after them can be reached from before. The segment of the
/// fork is missing too if only the parent has it, and all from there on if anything is stored of what leads to the fork. The last one is no less than that before which a younger
/// timeline left it: recovery along this timeline reads all up to the fork under this timeline's name.
pub fn gaps(facts: &Facts, timeline: TimelineId) -> Asking<Vec<SegmentRange>> {
    let Some(path) = Path::to(facts, timeline) else { return Ok(Vec::new()) };
    // Asked first: what arrives meanwhile is seen here and not there, and never the other way round.
    let left = followed_until(facts, timeline)?;
    let runs = facts.wal(timeline)?;
    let lost = facts.lost(timeline)?;
    let first = runs.first().or_else(|| lost.and_then(Runs::first));
    let begun = facts.begun(timeline)?.and_then(Runs::last);
    let finished = begun.and_then(|number| number.0.checked_sub(1)).map(SegmentNo);
    let last = runs.last().max(lost.and_then(Runs::last)).max(left).max(finished);
    let fork = path.history().begin_of(timeline).filter(|l| l.is_valid());
    let fork = fork.map(|lsn| SegmentNo(lsn.0 / facts.segment_size.bytes()));
    let first = match fork {
        Some(fork) if is_led_to(facts, &path, fork)? => Some(fork),
        _ => first,
    };
    let (Some(first), Some(last)) = (first, last) else { return Ok(Vec::new()) };
    path.missing(first, last)
}

/// Whether anything is or was stored of the path up to the segment of its fork: where archiving began behind that, nothing is missing.
fn is_led_to(facts: &Facts, path: &Path<'_>, fork: SegmentNo) -> Asking<bool> {
    for ancestor in path.history().path().filter(|timeline| *timeline != path.timeline()) {
        if facts.lost(ancestor)?.and_then(Runs::first).is_some_and(|first| first <= fork) {
            return Ok(true);
        }
    }
    Ok(path.next_readable(SegmentNo(0))?.is_some_and(|first| first <= fork))
}

/// The last segment of a timeline that the path to a younger one reads, of which anything is stored behind the fork. What a
/// person says was abandoned asks for nothing.
fn followed_until(facts: &Facts, timeline: TimelineId) -> Asking<Option<SegmentNo>> {
    let size = facts.segment_size;
    let mut until = None;
    for younger in facts.graph.ids().filter(|id| *id > timeline && !facts.abandoned.contains_key(id)) {
        let history = facts.graph.history(younger);
        let left = history.and_then(|history| history.end_of(timeline));
        let Some(last) = left.and_then(|left| (left.0 / size.bytes()).checked_sub(1)) else { continue };
        let last = Some(SegmentNo(last));
        if last > until && has_begun(facts, younger)? {
            until = last;
        }
    }
    Ok(until)
}

/// Whether anything is stored that a timeline wrote, or else what its parent wrote in the segment in which it was left: an
/// incomplete copy is all that there is of it before the timeline's own first segment is full.
fn has_begun(facts: &Facts, timeline: TimelineId) -> Asking<bool> {
    if facts.wal(timeline)?.first().is_some() || facts.lost(timeline)?.and_then(Runs::first).is_some() {
        return Ok(true);
    }
    let size = facts.segment_size;
    let Some(parent) = facts.graph.history(timeline).and_then(|history| history.parent()) else {
        return Ok(false);
    };
    let copy = SegmentNo(parent.switch.0 / size.bytes()).name(parent.parent, size);
    Ok(facts.partial(copy)?.is_some() || facts.damaged_partial(copy)?.is_some())
}

/// The unbroken ranges of a path.
fn ranges(path: &Path<'_>) -> Asking<Vec<(SegmentNo, Coverage)>> {
    let mut ranges = Vec::new();
    let mut from = path.next_readable(SegmentNo(0))?;
    while let Some(first) = from {
        let coverage = path.with_tail(path.coverage(first)?)?;
        let read = coverage.by_ancestor.is_some();
        from = path.next_readable(if read { coverage.missing.next() } else { coverage.missing })?;
        ranges.push((first, coverage));
    }
    Ok(ranges)
}

/// The window of a range: it begins with the oldest backup all of whose WAL lies in it.
fn window_in(facts: &Facts, path: &Path<'_>, range: &CoveredRange) -> Asking<Option<Window>> {
    let size = facts.segment_size;
    let here = |id: &&BackupId| {
        let on_path = path.history().timeline_at(id.start()) == id.timeline();
        on_path && id.start() >= range.from && id.start() < range.begins_before
    };
    let mut listed: Vec<BackupId> = facts.backups.iter().filter(here).copied().collect();
    listed.sort_by_key(|id| id.start());
    let mut oldest: Option<&BackupFacts> = None;
    for &id in &listed {
        // One that starts later may still end earlier.
        if oldest.is_some_and(|o| id.start() >= o.end) {
            break;
        }
        if let Some(backup) = facts.complete_backup(id)?
            && path.holds(backup)
            && backup.end <= range.until
            && oldest.is_none_or(|o| backup.end < o.end)
        {
            oldest = Some(backup);
        }
    }
    let Some(oldest) = oldest else { return Ok(None) };
    let extent = facts.extent(ExtentQuestion {
        path: path.timeline(),
        first: SegmentNo::of(oldest.start(), size),
        until: range.until,
    })?;
    Ok(Some(Window {
        timeline: path.timeline(),
        from: oldest.end,
        from_time: Some(oldest.serves_from()),
        until: range.until,
        last_record: extent.last_record,
        until_time: extent.latest,
        oldest: oldest.id,
        backups: listed.iter().filter(|id| id.start() >= oldest.start() && !facts.is_ruled_out(**id)).count(),
        continued: false,
    }))
}
