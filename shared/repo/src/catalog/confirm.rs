//! Whether the store itself has the segments that a plan needs, whatever the index says.

use std::collections::BTreeSet;

use futures_util::{StreamExt, TryStreamExt, stream};
use walpoint_base::SegmentNo;
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

impl LineageCatalog {
    /// Whether the store itself has all these segments. Those that it has lost count as such from now on.
    pub async fn confirm(&mut self, ranges: &[SegmentRange]) -> Result<bool> {
        let size = self.facts().segment_size;
        let mut complete = true;
        for range in ranges {
            let mut missing: BTreeSet<SegmentNo> = (range.first.0..=range.last.0).map(SegmentNo).collect();
            if let Some(wal) = self.wal(range.timeline) {
                wal.take_seen(&mut missing);
            }
            self.take_inherited(range, &mut missing).await?;
            take_listed(self.archive(), range, &mut missing).await?;
            for other in self.archive().beside() {
                take_listed(other, range, &mut missing).await?;
            }
            // Not every store lists in the order of names: each is asked for before it counts as missing.
            let archive = self.archive();
            let looks = missing.into_iter().map(|number| async move {
                Ok((number, archive.header(number.name(range.timeline, size)).await?.is_none()))
            });
            let looks: Vec<(SegmentNo, bool)> =
                stream::iter(looks.collect::<Vec<_>>()).buffered(AT_ONCE).try_collect().await?;
            for (number, _) in looks.into_iter().filter(|(_, is_missing)| *is_missing) {
                complete = false;
                self.lose(range.timeline, number);
            }
        }
        Ok(complete)
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
        let size = self.facts().segment_size;
        for range in missing {
            let archive = self.archive();
            let (listed, _) =
                gather::list(archive, range.timeline, range.first, range.last, usize::MAX).await?;
            // What is inherited, and what a store lists out of order, is asked for by name where that is not much.
            let asked: Vec<SegmentNo> = match range.count() <= FEW {
                true => (range.first.0..=range.last.0).map(SegmentNo).collect(),
                false => listed.keys().copied().collect(),
            };
            let looks = asked.into_iter().map(|number| async move {
                let sound = match archive.header(number.name(range.timeline, size)).await {
                    Ok(header) => header.is_some_and(|header| !header.damaged),
                    Err(RepoError::Corrupt { .. }) => false,
                    Err(error) => return Err(error),
                };
                Ok((number, sound))
            });
            let looks: Vec<(SegmentNo, bool)> =
                stream::iter(looks.collect::<Vec<_>>()).buffered(AT_ONCE).try_collect().await?;
            for (number, _) in looks.into_iter().filter(|(_, is_there)| *is_there) {
                self.find(range.timeline, number, listed.get(&number).copied().unwrap_or(0));
            }
        }
        Ok(())
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
