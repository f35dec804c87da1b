//! Whether the store itself has the segments that a plan needs, whatever the index says.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::try_join_all;
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use walpoint_base::{SegmentNo, TimelineId};
use walpoint_plan::restore::{Consistency, SegmentRange, missing_of};
use walpoint_storage::error::{RepoError, Result};

use super::LineageCatalog;
use crate::index::gather;
use crate::wal::WalArchive;

/// Segments that one listing looks for: together with PostgreSQL's other files they fit into one answer of a store.
const PIECE: u64 = 900;

/// So many missing segments are asked for one by one.
const FEW: u64 = 64;

/// Listings, and looks at single segments, at the same time.
const AT_ONCE: usize = 8;

/// Ranges that are confirmed at the same time, with as many requests each.
const RANGES: usize = 8;

impl LineageCatalog {
    /// Whether the store itself has all these segments. Those that it has lost count as such from now on.
    pub async fn confirm(&mut self, ranges: &[SegmentRange]) -> Result<bool> {
        let this = &*self;
        let looks: Vec<_> = ranges.iter().map(|range| this.absent(*range)).collect();
        let absent: Vec<BTreeSet<SegmentNo>> = stream::iter(looks).buffered(RANGES).try_collect().await?;
        let complete = absent.iter().all(BTreeSet::is_empty);
        for (range, absent) in ranges.iter().zip(absent) {
            absent.into_iter().for_each(|number| self.lose(range.timeline, number));
        }
        Ok(complete)
    }

    /// The segments of a range that the store itself does not have.
    async fn absent(&self, range: SegmentRange) -> Result<BTreeSet<SegmentNo>> {
        let size = self.facts().segment_size;
        let mut missing: BTreeSet<SegmentNo> = (range.first.0..=range.last.0).map(SegmentNo).collect();
        if let Some(wal) = self.wal(range.timeline) {
            wal.take_seen(&mut missing);
        }
        self.take_inherited(&range, &mut missing).await?;
        take_listed(self.archive(), &range, &mut missing).await?;
        for other in self.archive().beside() {
            take_listed(other, &range, &mut missing).await?;
        }
        // Not every store lists in the order of names: each is asked for before it counts as missing.
        let archive = self.archive();
        let looks = missing.into_iter().map(|number| async move {
            let is_missing = archive.header(number.name(range.timeline, size)).await?.is_none();
            Ok::<_, RepoError>(is_missing.then_some(number))
        });
        let looks: Vec<Option<SegmentNo>> =
            stream::iter(looks.collect::<Vec<_>>()).buffered(AT_ONCE).try_collect().await?;
        Ok(looks.into_iter().flatten().collect())
    }

    /// Asks the store for the WAL of all these backups at the same time: until [`Self::end_looks`], what is asked about one of them
    /// is known then, and costs no request.
    pub(crate) async fn look_for(&mut self, backups: &[Consistency]) -> Result<()> {
        let (mut files, mut missing) = (Segments::new(), BTreeSet::new());
        for wal in backups {
            for way in wal.ways(self.facts()) {
                let of_way = self.ask(None, |facts| missing_of(facts, &way)).await?;
                // What is known of a timeline of which nothing is stored was listed just now.
                if way.iter().all(|range| self.facts().graph.contains(range.timeline)) {
                    files.extend(numbers(&way));
                    missing.extend(of_way.iter().map(|range| (range.timeline, range.first, range.last)));
                }
                if of_way.is_empty() {
                    break;
                }
            }
        }
        // Not joined: what is asked for by name are ranges that are short.
        let missing = missing.into_iter();
        let missing = missing.map(|(timeline, first, last)| SegmentRange { timeline, first, last });
        self.look_again(&missing.collect::<Vec<_>>()).await?;
        let all = ranges(&files);
        let missing: Segments = numbers(&self.ask(None, |facts| missing_of(facts, &all)).await?).collect();
        self.confirm(&ranges(&files.difference(&missing).copied().collect())).await?;
        self.looked = files;
        Ok(())
    }

    /// From now on the store is asked about each backup again.
    pub(crate) fn end_looks(&mut self) {
        self.looked.clear();
    }

    /// The segments without which a backup does not become consistent that the store itself does not have, or has though damaged:
    /// none where there is a way without them.
    pub async fn lacking(&mut self, wal: Consistency) -> Result<Vec<SegmentRange>> {
        let mut of_first = None;
        for way in wal.ways(self.facts()) {
            let missing = self.lacking_of(&way).await?;
            if missing.is_empty() {
                return Ok(missing);
            }
            of_first.get_or_insert(missing);
        }
        Ok(of_first.unwrap_or_default())
    }

    /// Those of these files that the store itself does not have, or has though damaged.
    pub(super) async fn lacking_of(&mut self, files: &[SegmentRange]) -> Result<Vec<SegmentRange>> {
        let missing = self.ask(None, |facts| missing_of(facts, files)).await?;
        // Backups are listed before timelines: nothing of one that is not there arrives any more.
        if files.iter().any(|range| !self.facts().graph.contains(range.timeline)) {
            return Ok(missing);
        }
        if numbers(files).all(|segment| self.looked.contains(&segment)) {
            return Ok(missing);
        }
        self.look_again(&missing).await?;
        let missing = self.ask(None, |facts| missing_of(facts, files)).await?;
        let mut there = files.to_vec();
        if !missing.is_empty() {
            let is_missing =
                |number| missing.iter().any(|range| (range.first..=range.last).contains(&number));
            there = there
                .iter()
                .flat_map(|range| (range.first.0..=range.last.0).map(|n| (range.timeline, SegmentNo(n))))
                .filter(|(_, number)| !is_missing(*number))
                .map(|(timeline, number)| SegmentRange { timeline, first: number, last: number })
                .collect();
        }
        if self.confirm(&there).await? {
            return Ok(missing);
        }
        self.ask(None, |facts| missing_of(facts, files)).await
    }

    /// Asks the store once more for segments that count as missing: while segments arrive side by side, a listing shows one
    /// and not yet the one before it. Those that are there and sound count as such from now on.
    pub async fn look_again(&mut self, missing: &[SegmentRange]) -> Result<()> {
        let (archive, size) = (self.archive(), self.facts().segment_size);
        let lists = missing.iter().map(|range| async move {
            let SegmentRange { timeline, first, last } = *range;
            let (listed, _) = gather::list(archive, timeline, first, last, usize::MAX).await?;
            Ok::<_, RepoError>((range, listed))
        });
        let lists: Vec<_> = stream::iter(lists.collect::<Vec<_>>()).buffered(AT_ONCE).try_collect().await?;
        let mut asked = Vec::new();
        for (range, listed) in lists {
            // What is inherited, and what a store lists out of order, is asked for by name where that is not much.
            let numbers: Vec<SegmentNo> = match range.count() <= FEW {
                true => (range.first.0..=range.last.0).map(SegmentNo).collect(),
                false => listed.keys().copied().collect(),
            };
            let stored = |number: &SegmentNo| listed.get(number).copied().unwrap_or(0);
            asked.extend(numbers.iter().map(|number| (range.timeline, *number, stored(number))));
        }
        let looks = asked.into_iter().map(|(timeline, number, stored)| async move {
            let sound = match archive.header(number.name(timeline, size)).await {
                Ok(header) => header.is_some_and(|header| !header.damaged),
                Err(RepoError::Corrupt { .. }) => false,
                Err(error) => return Err(error),
            };
            Ok(sound.then_some((timeline, number, stored)))
        });
        let looks: Vec<_> = stream::iter(looks.collect::<Vec<_>>()).buffered(AT_ONCE).try_collect().await?;
        for (timeline, number, stored) in looks.into_iter().flatten() {
            self.find(timeline, number, stored);
        }
        Ok(())
    }

    /// Those of these, which are missing, that may be on their way: the segment behind was stored no longer ago than `within`. Only the
    /// newest are looked at: older ones have none behind them that is so young.
    pub async fn overtaken(&self, missing: &[SegmentRange], within: Duration) -> Result<Vec<SegmentRange>> {
        let (archive, size) = (self.archive(), self.facts().segment_size);
        let newest = missing.get(missing.len().saturating_sub(AT_ONCE)..).unwrap_or_default();
        let looks = newest.iter().map(|range| async move {
            let behind = archive.paths().segment(range.last.next().name(range.timeline, size));
            let stored = archive.repository().store().head(&behind).await?;
            let age = |at| Timestamp::now().duration_since(at).unsigned_abs();
            Ok::<_, RepoError>(stored.filter(|meta| age(meta.modified) <= within).map(|_| *range))
        });
        Ok(try_join_all(looks).await?.into_iter().flatten().collect())
    }

    /// Takes out of what is looked for what a listing of the ancestors shows.
    async fn take_inherited(&self, range: &SegmentRange, missing: &mut BTreeSet<SegmentNo>) -> Result<()> {
        let mut inherited = self.archive().inherited();
        while let Some(from) = inherited {
            inherited = from.archive().inherited();
            let Some(last) = from.last_of(range.timeline).filter(|last| range.first <= *last) else {
                continue;
            };
            let common = SegmentRange { last: range.last.min(last), ..*range };
            take_listed(from.archive(), &common, missing).await?;
        }
        Ok(())
    }
}

/// Segments, by timeline.
pub(super) type Segments = BTreeSet<(TimelineId, SegmentNo)>;

fn numbers(ranges: &[SegmentRange]) -> impl Iterator<Item = (TimelineId, SegmentNo)> {
    ranges.iter().flat_map(|range| {
        let timeline = range.timeline;
        (range.first.0..=range.last.0).map(move |number| (timeline, SegmentNo(number)))
    })
}

/// The same as ranges.
fn ranges(segments: &Segments) -> Vec<SegmentRange> {
    let mut ranges: Vec<SegmentRange> = Vec::new();
    for &(timeline, number) in segments {
        match ranges.last_mut().filter(|last| last.timeline == timeline && last.last.next() == number) {
            Some(last) => last.last = number,
            None => ranges.push(SegmentRange { timeline, first: number, last: number }),
        }
    }
    ranges
}

/// Takes out of what is looked for what a listing shows.
async fn take_listed(
    archive: &WalArchive,
    range: &SegmentRange,
    missing: &mut BTreeSet<SegmentNo>,
) -> Result<()> {
    let mut lists = Vec::new();
    let mut first = range.first;
    while let Some(next) = missing.range(first..).next().copied().filter(|next| *next <= range.last) {
        let last = SegmentNo(next.0.saturating_add(PIECE - 1)).min(range.last);
        lists.push(gather::list(archive, range.timeline, next, last, usize::MAX));
        first = last.next();
    }
    let lists: Vec<_> = stream::iter(lists).buffered(AT_ONCE).try_collect().await?;
    for (listed, _) in lists {
        missing.retain(|number| !listed.contains_key(number));
    }
    Ok(())
}
