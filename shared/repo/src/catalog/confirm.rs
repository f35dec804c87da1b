//! Whether the store itself has the segments that a plan needs, whatever the index says.

use std::collections::BTreeSet;

use futures_util::{StreamExt, TryStreamExt, stream};
use walpoint_base::SegmentNo;

use super::LineageCatalog;
use crate::error::Result;
use crate::index::gather;
use crate::plan::SegmentRange;
use crate::wal::WalArchive;

/// Segments that one listing looks for: together with PostgreSQL's other files they fit into one answer of a store.
const PIECE: u64 = 900;

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
