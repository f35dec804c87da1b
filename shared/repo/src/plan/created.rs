//! Tablespaces that recovery under a plan creates. Replay of `CREATE TABLESPACE` uses the location in the record, whatever
//! lies there on the machine where it runs: a restore has to know of it beforehand.
//!
//! The index says which segments hold such a record; decoding says where. A record counts where it starts and may begin in
//! the segment before, if that cut its header, or end in the one behind: both are decoded too. So is a segment that is built
//! from an incomplete copy, which has no mark, and one whose mark cannot be read.
//!
//! What is damaged in one repository is read from another one of the same lineage, as recovery itself would.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use walpoint_base::{CreatedTablespace, Lsn, SegmentName, SegmentNo, TimelineId, WalFileName};

use super::minimal::readable;
use super::partial;
use super::path::SegmentRange;
use super::restore_plan::{ForkSource, RestorePlan};
use super::stop::SegmentDecoder;
use crate::catalog::{LineageCatalog, TimelineWal};
use crate::cpu;
use crate::error::{RepoError, Result};
use crate::index::{first_of, group_of, last_of};
use crate::wal::{WalArchive, WalCopies};

/// Looks for such records, fed with consecutive segments in LSN order, beginning anywhere.
pub trait TablespaceSearch: Send {
    /// The records that end in the next whole segment. The error says what is wrong with its content.
    fn feed(&mut self, name: SegmentName, content: &[u8]) -> Result<Vec<CreatedTablespace>, String>;
}

/// A segment that a plan replays: the place of its range in [`RestorePlan::wal`], and its number.
pub type Replayed = (usize, SegmentNo);

/// The segments that a plan replays and that hold such a record by their marks, from what was read for the plan.
pub async fn creating_segments(lineage: &mut LineageCatalog, plan: &RestorePlan) -> Result<Vec<Replayed>> {
    let mut creating = Vec::new();
    for (at, range) in plan.wal.iter().enumerate() {
        if let Some(wal) = lineage.wal_mut(range.timeline) {
            creating.extend(marked(wal, *range).await?.into_iter().map(|number| (at, number)));
        } else {
            let mut wal = TimelineWal::load(lineage.archive(), range.timeline).await?;
            creating.extend(marked(&mut wal, *range).await?.into_iter().map(|number| (at, number)));
        }
    }
    Ok(creating)
}

/// The same, read for this alone.
async fn read_creating(archive: &WalArchive, plan: &RestorePlan) -> Result<Vec<Replayed>> {
    let mut timelines: BTreeMap<TimelineId, TimelineWal> = BTreeMap::new();
    let mut creating = Vec::new();
    for (at, range) in plan.wal.iter().enumerate() {
        let wal = match timelines.entry(range.timeline) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(new) => {
                new.insert(TimelineWal::load(archive, range.timeline).await?)
            }
        };
        creating.extend(marked(wal, *range).await?.into_iter().map(|number| (at, number)));
    }
    Ok(creating)
}

/// What recovery under a plan creates, in LSN order. `copies`: the WAL of the plan's lineage, in the plan's repository first.
/// `from`: where replay begins. `creating`: what [`creating_segments`] found; without it the index is read again.
/// What is damaged in all repositories is an error: recovery would stop there.
pub async fn created_tablespaces(
    copies: &WalCopies,
    plan: &RestorePlan,
    creating: Option<&[Replayed]>,
    from: Lsn,
    decoder: &Arc<dyn SegmentDecoder>,
) -> Result<Vec<CreatedTablespace>> {
    let needed: BTreeSet<Replayed> = match creating {
        Some(creating) => creating.iter().copied().collect(),
        None => read_creating(copies.first(), plan).await?.into_iter().collect(),
    };
    let mut wanted = needed.clone();
    for &(at, number) in &needed {
        wanted.extend(before(&plan.wal, at, number));
        wanted.extend(behind(&plan.wal, at, number));
    }
    let size = copies.first().lineage().segment_size;
    let mut found = Vec::new();
    let mut running: Option<(Replayed, Box<dyn TablespaceSearch>)> = None;
    for (at, number) in wanted {
        let follows = |last: &Replayed| behind(&plan.wal, last.0, last.1) == Some((at, number));
        let search = match running.take() {
            Some((last, search)) if follows(&last) => search,
            _ => decoder.tablespaces(),
        };
        let Some(range) = plan.wal.get(at) else { continue };
        let name = number.name(range.timeline, size);
        let Some(file) = copies.get(WalFileName::Segment(name)).await? else {
            if needed.contains(&(at, number)) {
                return Err(RepoError::Internal(format!("{name} vanished while planning")));
            }
            // Its neighbor is built from what else there is.
            continue;
        };
        let mut search = search;
        let (records, search) = cpu::run(move || (search.feed(name, &file.content), search)).await?;
        found.extend(
            records.map_err(|reason| RepoError::Internal(format!("{name} cannot be decoded: {reason}")))?,
        );
        running = Some(((at, number), search));
    }
    for created in in_built(copies, plan, decoder).await? {
        if !found.iter().any(|known: &CreatedTablespace| known.record == created.record) {
            found.push(created);
        }
    }
    let until = plan.replayed_until();
    found.retain(|created| from <= created.record && created.record < until);
    Ok(found)
}

/// Those in a segment that is built from an incomplete copy, up to where it is cut: no mark says what the copy holds.
async fn in_built(
    copies: &WalCopies,
    plan: &RestorePlan,
    decoder: &Arc<dyn SegmentDecoder>,
) -> Result<Vec<CreatedTablespace>> {
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
    let mut search = decoder.tablespaces();
    // A record may begin in the segment before.
    let before = plan.wal.last().filter(|range| range.last.next() == number);
    if let Some(name) = before.map(|range| range.last.name(range.timeline, size))
        && let Some(file) = copies.get(WalFileName::Segment(name)).await?
    {
        search = cpu::run(move || search.feed(name, &file.content).map(|_| search))
            .await?
            .map_err(undecodable(name))?;
    }
    let copy = SegmentName { timeline, ..fork.name };
    let Some(file) = copies.get_incomplete(copy).await? else {
        return Err(RepoError::Internal(format!("the incomplete copy of {copy} vanished while planning")));
    };
    let mut content = file.content;
    partial::cut(&mut content, fork.cut.since(number.start(size)));
    cpu::run(move || search.feed(copy, &content)).await?.map_err(undecodable(copy))
}

/// The segments of a range that are marked, and those whose header cannot be read: what is in them has to be looked at.
async fn marked(wal: &mut TimelineWal, range: SegmentRange) -> Result<Vec<SegmentNo>> {
    let mut marked = Vec::new();
    for group in group_of(range.first)..=group_of(range.last) {
        if wal.summary(group).is_some_and(|summary| summary.marks.tablespace == 0) {
            continue;
        }
        let (first, last) = (first_of(group).max(range.first), last_of(group).min(range.last));
        let entries = readable(wal, first, last).await?;
        let numbers = (first.0..=last.0).map(SegmentNo);
        marked.extend(numbers.filter(|number| match entries.get(number) {
            Some(entry) => entry.marks.tablespace,
            None => wal.runs().contains(*number),
        }));
    }
    Ok(marked)
}

/// The segment before one of a path.
fn before(path: &[SegmentRange], at: usize, number: SegmentNo) -> Option<(usize, SegmentNo)> {
    if path.get(at)?.first < number {
        return Some((at, SegmentNo(number.0 - 1)));
    }
    let at = at.checked_sub(1)?;
    path.get(at).map(|range| (at, range.last))
}

/// The segment behind one of a path.
fn behind(path: &[SegmentRange], at: usize, number: SegmentNo) -> Option<(usize, SegmentNo)> {
    if number < path.get(at)?.last {
        return Some((at, number.next()));
    }
    path.get(at + 1).map(|range| (at + 1, range.first))
}
