//! Records that the index knows of by marks, in the WAL that a plan replays.
//!
//! The index says which segments hold such a record; decoding says where. A record counts where it starts and may begin in
//! the segment before, if that cut its header, or end in the one behind: both are decoded too. So is a segment that is built
//! from an incomplete copy, which has no mark, and one whose mark cannot be read.
//!
//! What is damaged in one repository is read from another one of the same lineage, as recovery itself would.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use walpoint_base::facts::SegmentMarks;
use walpoint_base::{SegmentName, SegmentNo, TimelineId, WalFileName};
use walpoint_plan::restore::created::{PlannedSegment, before, behind};
use walpoint_plan::restore::decide::cut;
use walpoint_plan::restore::path::SegmentRange;
use walpoint_plan::restore::restore_plan::{ForkSource, RestorePlan};
use walpoint_storage::error::{RepoError, Result};

use crate::catalog::{TimelineWal, readable};
use crate::cpu;
use crate::index::{MarkCounts, first_of, group_of, last_of};
use crate::wal::slices::Superseded;
use crate::wal::{WalArchive, WalCopies};

/// What became of an object that a plan counts on.
const GONE: &str = "it was there when the plan was made, and is gone";

/// Which mark is looked for.
pub(super) struct Mark {
    /// Whether a segment has it.
    pub(super) segment: fn(SegmentMarks) -> bool,
    /// Whether one of a group has it.
    pub(super) group: fn(&MarkCounts) -> bool,
}

/// The segments that a plan replays and that have a mark in any of the repositories, read for this alone. What none of them knows of,
/// as of what lies in one that could not be read, counts as marked.
pub(super) async fn read(
    copies: &WalCopies,
    plan: &RestorePlan,
    mark: &Mark,
) -> Result<BTreeSet<PlannedSegment>> {
    let (mut found, mut known) = (BTreeSet::new(), BTreeSet::new());
    for archive in copies.archives() {
        match read_one(archive, plan, mark).await {
            Ok((marked, listed)) => {
                found.extend(marked);
                known.extend(listed);
            }
            Err(error) if archive.repository().id() == copies.first().repository().id() => return Err(error),
            Err(error) => tracing::warn!("repository \"{}\": {error}", archive.repository().name()),
        }
    }
    let needed =
        plan.wal.iter().enumerate().flat_map(|(at, range)| {
            (range.first.0..=range.last.0).map(move |number| (at, SegmentNo(number)))
        });
    found.extend(needed.filter(|one| !known.contains(one)));
    Ok(found)
}

/// Those that are marked in one repository, and those that it has.
async fn read_one(
    archive: &WalArchive,
    plan: &RestorePlan,
    mark: &Mark,
) -> Result<(Vec<PlannedSegment>, Vec<PlannedSegment>)> {
    let mut timelines: BTreeMap<TimelineId, TimelineWal> = BTreeMap::new();
    let (mut marked, mut listed) = (Vec::new(), Vec::new());
    for (at, range) in plan.wal.iter().enumerate() {
        let wal = match timelines.entry(range.timeline) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(TimelineWal::load(archive, range.timeline).await?),
        };
        let here =
            (range.first.0..=range.last.0).map(SegmentNo).filter(|number| wal.runs().contains(*number));
        listed.extend(here.map(|number| (at, number)));
        marked.extend(segments(wal, *range, mark).await?.into_iter().map(|number| (at, number)));
    }
    Ok((marked, listed))
}

/// The records in the segments that are `needed`, and what their neighbors have of them, in order. `begin` begins a search, `feed`
/// feeds it with consecutive segments.
pub(super) async fn records<S: Send + 'static, T: Send + 'static>(
    copies: &WalCopies,
    plan: &RestorePlan,
    needed: &BTreeSet<PlannedSegment>,
    begin: impl Fn() -> S,
    feed: impl Fn(&mut S, SegmentName, &[u8]) -> Result<Vec<T>, String> + Copy + Send + 'static,
) -> Result<Vec<T>> {
    let mut wanted = needed.clone();
    for &(at, number) in needed {
        wanted.extend(before(&plan.wal, at, number));
        wanted.extend(behind(&plan.wal, at, number));
    }
    let size = copies.first().lineage().segment_size;
    let mut found = Vec::new();
    let mut running: Option<(PlannedSegment, S)> = None;
    for (at, number) in wanted {
        let follows = |last: &PlannedSegment| behind(&plan.wal, last.0, last.1) == Some((at, number));
        let mut search = match running.take() {
            Some((last, search)) if follows(&last) => search,
            _ => begin(),
        };
        let Some(range) = plan.wal.get(at) else { continue };
        let name = number.name(range.timeline, size);
        let Some(file) = copies.get(WalFileName::Segment(name)).await? else {
            if needed.contains(&(at, number)) {
                return Err(Superseded::error(copies.first(), name.to_string(), GONE));
            }
            // Its neighbor is built from what else there is.
            continue;
        };
        let (records, search) = cpu::run(move || (feed(&mut search, name, &file.content), search)).await?;
        found.extend(
            records.map_err(|reason| RepoError::Internal(format!("{name} cannot be decoded: {reason}")))?,
        );
        running = Some(((at, number), search));
    }
    Ok(found)
}

/// Those in a segment that is built from an incomplete copy, up to where it is cut: no mark says what the copy holds.
pub(super) async fn in_built<S: Send + 'static, T: Send + 'static>(
    copies: &WalCopies,
    plan: &RestorePlan,
    begin: impl Fn() -> S,
    feed: impl Fn(&mut S, SegmentName, &[u8]) -> Result<Vec<T>, String> + Copy + Send + 'static,
) -> Result<Vec<T>> {
    let size = copies.first().lineage().segment_size;
    let Some((fork, timeline)) = plan.fork.and_then(|fork| match fork.source {
        ForkSource::Partial(timeline) => Some((fork, timeline)),
        ForkSource::Segment(_) => None,
    }) else {
        return Ok(Vec::new());
    };
    let Some(number) = fork.name.number(size) else { return Ok(Vec::new()) };
    let undecodable = |name: SegmentName| {
        move |reason: String| RepoError::Internal(format!("{name} cannot be decoded: {reason}"))
    };
    let mut search = begin();
    // A record may begin in the segment before.
    let before = plan.wal.last().filter(|range| range.last.next() == number);
    if let Some(name) = before.map(|range| range.last.name(range.timeline, size))
        && let Some(file) = copies.get(WalFileName::Segment(name)).await?
    {
        search = cpu::run(move || feed(&mut search, name, &file.content).map(|_| search))
            .await?
            .map_err(undecodable(name))?;
    }
    let copy = SegmentName { timeline, ..fork.name };
    let mut content = incomplete(copies, copy).await?;
    cut(&mut content, fork.cut.since(number.start(size)));
    cpu::run(move || feed(&mut search, copy, &content)).await?.map_err(undecodable(copy))
}

/// An incomplete copy that is planned with. Its server may have completed the segment since: what is stored then begins with what the
/// copy held.
async fn incomplete(copies: &WalCopies, copy: SegmentName) -> Result<Vec<u8>> {
    let gone = match copies.get_incomplete(copy).await {
        Ok(Some(file)) => return Ok(file.content),
        Ok(None) => Superseded::error(copies.first(), format!("the incomplete copy of {copy}"), GONE),
        Err(error) if Superseded::is_why(&error) => error,
        Err(error) => return Err(error),
    };
    let whole = copies.get(WalFileName::Segment(copy)).await?;
    whole.map(|file| file.content).ok_or(gone)
}

/// The segments of a range that are marked, and those whose header cannot be read: what is in them has to be looked at.
pub(super) async fn segments(
    wal: &mut TimelineWal,
    range: SegmentRange,
    mark: &Mark,
) -> Result<Vec<SegmentNo>> {
    let mut marked = Vec::new();
    for group in group_of(range.first)..=group_of(range.last) {
        if wal.summary(group).is_some_and(|summary| !(mark.group)(&summary.marks)) {
            continue;
        }
        let (first, last) = (first_of(group).max(range.first), last_of(group).min(range.last));
        let entries = readable(wal, first, last).await?;
        let numbers = (first.0..=last.0).map(SegmentNo);
        marked.extend(numbers.filter(|number| match entries.get(number) {
            Some(entry) => (mark.segment)(entry.marks),
            None => wal.runs().contains(*number),
        }));
    }
    Ok(marked)
}
