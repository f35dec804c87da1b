//! The WAL of one lineage: segments with what they say about themselves, PostgreSQL's other files, restore points.
//!
//! What always holds: an object under a segment's own name is whole, or flagged as accepted though damaged; it never
//! changes. A crash while storing leaves at most restore points and parts that nothing names yet; the segment was not
//! acknowledged, so it comes again.
//!
//! | module | owns |
//! |---|---|
//! | `put`, `get` | storing and reading back |
//! | `beginning` | what a file begins with, the same in every repository |
//! | [`seal`] | sealing a segment while it is read |
//! | [`gaps`] | where one server's segments do not continue each other |
//! | [`abandoned`] | timelines that a person says do not count |
//! | [`settled`] | refused histories that no longer put their timelines in doubt |
//! | `verdicts` | what is known of timelines beside their histories, copied between repositories |
//! | [`header`] | what an object says about its segment |
//! | `edges` | what it says about its neighbors, as bytes |
//! | `partials` | which of several incomplete copies of a segment is read |
//! | [`inherited`] | what a lineage has in common with its parent |
//! | `prefix` | whether two copies of a segment begin with the same bytes |
//! | `parts` | segments too large for one object |
//! | `points` | named restore points |
//! | `same` | whether two archives hold the same segment |
//! | `joined` | one lineage's WAL in several repositories, read as one archive |
//! | [`copies`] | one lineage's WAL in several repositories |
//! | [`slices`] | what is stored of the open segment |
//! | [`content`] | bytes to be stored, in memory or in a file |

pub mod abandoned;
mod beginning;
pub mod content;
pub mod copies;
mod edges;
mod fetched;
mod from_younger;
pub mod gaps;
mod get;
pub mod header;
pub mod inherited;
mod joined;
pub(crate) mod partials;
mod parts;
mod points;
pub(crate) mod prefix;
mod put;
mod same;
pub mod seal;
pub mod settled;
pub mod slices;
#[cfg(test)]
pub(crate) mod tests;
mod verdicts;

use std::sync::Arc;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use walpoint_base::{Lsn, SegmentName, TimelineId, WalFileName};
use walpoint_storage::error::Result;
use walpoint_storage::layout::{AbandonedUntil, WalEntry, WalPaths};
use walpoint_storage::object::{ContentHash, Sealer};
use walpoint_storage::store::{ListedObject, Store};

pub use self::abandoned::{Abandonment, TimelineOrigin};
pub use self::beginning::BeginningHasher;
pub use self::content::WalContent;
pub use self::copies::WalCopies;
pub(crate) use self::edges::{
    CROSSING, EDGE_FLAGS, EDGES, MARK_FLAGS, decode_crossing, decode_edges, edge_flags, encode_crossing,
    encode_edges, mark_flags, marks,
};
pub use self::fetched::FetchedWal;
pub use self::gaps::RecordedGap;
pub use self::get::WalReader;
pub use self::header::{WalFlags, WalHeader, history_hash};
pub use self::inherited::Inherited;
pub use self::points::FoundPoints;
pub use self::put::Stored;
pub use self::seal::{SealedName, SealedSegment, SegmentSealer};
pub use self::settled::Settlement;
use crate::lineage::Lineage;
use crate::repository::Repository;
pub use walpoint_storage::layout::NameHash;

/// Plain bytes of a frame of WAL.
const FRAME: usize = 1 << 20;

/// The histories that a lineage has.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ListedHistories {
    /// The timelines that have one, sorted.
    pub stored: Vec<TimelineId>,
    /// The histories that a second server wanted to store for a timeline that has another one already, sorted. They are kept
    /// so that readers elsewhere know that two servers claim the timeline.
    pub refused: Vec<(TimelineId, ContentHash)>,
    /// Those that a person has settled, sorted.
    pub settled: Vec<(TimelineId, ContentHash)>,
    /// Which timelines a person says were abandoned, and up to where, sorted. What is stored under such a number may be another one.
    pub abandoned: Vec<AbandonedUntil>,
}

/// The WAL of a lineage in a repository. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WalArchive {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    repository: Repository,
    lineage: Lineage,
    paths: WalPaths,
    inherited: Option<Inherited>,
    /// The same lineage in other repositories.
    beside: Vec<WalArchive>,
}

impl Repository {
    /// The WAL of a lineage. It is not compressed harder than keeps up with a server that waits for it.
    pub fn wal(&self, lineage: &Lineage) -> WalArchive {
        WalArchive::new(self.compressing_at(self.sealer().level().for_wal()), lineage.clone())
    }
}

impl WalArchive {
    pub(crate) fn new(repository: Repository, lineage: Lineage) -> Self {
        Self::inheriting(repository, lineage, None)
    }

    pub(crate) fn inheriting(repository: Repository, lineage: Lineage, inherited: Option<Inherited>) -> Self {
        let paths = lineage.wal_paths();
        Self { inner: Arc::new(Inner { repository, lineage, paths, inherited, beside: Vec::new() }) }
    }

    /// The repository it is in.
    pub fn repository(&self) -> &Repository {
        &self.inner.repository
    }

    /// Whose WAL it is.
    pub fn lineage(&self) -> &Lineage {
        &self.inner.lineage
    }

    /// What a data directory calls it in its record of what was stored from there ([`walpoint_base::archived`]). A lineage that was
    /// deleted and registered again has the same number, and nothing of what was stored before.
    pub fn place(&self) -> String {
        let lineage = self.lineage();
        format!("{} {} {}", self.repository().id(), lineage.id, lineage.uid)
    }

    /// Its keys.
    pub fn paths(&self) -> &WalPaths {
        &self.inner.paths
    }

    fn store(&self) -> &Store {
        self.inner.repository.store()
    }

    fn sealer(&self) -> &Sealer {
        self.inner.repository.sealer()
    }

    /// The timelines that have WAL here, sorted. One whose WAL is all gone may still be named on a filesystem.
    pub async fn timelines(&self) -> Result<Vec<TimelineId>> {
        let own = list_timelines(self.store(), self.paths()).await?;
        self.with_inherited_timelines(own).await
    }

    /// A lineage's own timelines, and those that it inherits.
    pub(crate) async fn with_inherited_timelines(&self, mut own: Vec<TimelineId>) -> Result<Vec<TimelineId>> {
        if let Some(inherited) = self.inherited() {
            let parents = Box::pin(inherited.archive().timelines()).await?;
            own.extend(parents.into_iter().filter(|timeline| inherited.last_of(*timeline).is_some()));
            own.sort_unstable();
            own.dedup();
        }
        Ok(own)
    }

    /// The timelines that have a history file here, sorted.
    pub async fn histories(&self) -> Result<Vec<TimelineId>> {
        Ok(self.all_histories().await?.stored)
    }

    /// The timelines that have a history here, and the histories that were refused. One listing.
    pub async fn all_histories(&self) -> Result<ListedHistories> {
        let own = list_histories(self.store(), self.paths()).await?;
        self.with_inherited_histories(own).await
    }

    /// A lineage's own histories, and those that it inherits.
    pub(crate) async fn with_inherited_histories(&self, mut own: ListedHistories) -> Result<ListedHistories> {
        if let Some(inherited) = self.inherited() {
            let parents = Box::pin(inherited.archive().all_histories()).await?.stored;
            own.stored.extend(parents.into_iter().filter(|timeline| inherited.covers_history(*timeline)));
            own.stored.sort_unstable();
            own.stored.dedup();
        }
        Ok(own)
    }

    /// What the store has of a timeline's WAL, by position, from a segment on, but for what is inherited. A listing: for
    /// tails, not for a million segments.
    pub fn list(
        &self,
        timeline: TimelineId,
        from: Option<SegmentName>,
    ) -> BoxStream<'static, Result<(WalEntry, ListedObject)>> {
        let from = from.map(|segment| self.paths().from(segment));
        let entries = self.store().list(&self.paths().timeline(timeline), from.as_deref());
        let paths = self.paths().clone();
        entries
            .try_filter_map(move |entry| {
                let parsed = paths.parse(&entry.key);
                std::future::ready(Ok(parsed.map(|parsed| (parsed, entry))))
            })
            .boxed()
    }

    /// The `.partial` files of a segment: those of several promotions differ.
    pub async fn partials(&self, segment: SegmentName) -> Result<Vec<NameHash>> {
        let entries = self.store().list_all(&self.paths().all_partials(segment)).await?;
        let hash = |entry: &ListedObject| match self.paths().parse(&entry.key)? {
            WalEntry::Partial(_, hash) => Some(hash),
            _ => None,
        };
        let mut hashes: Vec<_> = entries.iter().filter_map(hash).collect();
        hashes.sort_unstable();
        Ok(hashes)
    }

    /// Where the incomplete contents of a complete name end, with their hashes, in order.
    pub async fn ended(&self, segment: SegmentName) -> Result<Vec<(Lsn, NameHash)>> {
        let entries = self.store().list_all(&self.paths().all_ended(segment)).await?;
        let end = |entry: &ListedObject| match self.paths().parse(&entry.key)? {
            WalEntry::Ended(_, end, hash) => Some((end, hash)),
            _ => None,
        };
        let mut ends: Vec<_> = entries.iter().filter_map(end).collect();
        ends.sort_unstable();
        Ok(ends)
    }
}

/// The timelines of which a lineage itself has WAL, sorted.
pub(crate) async fn list_timelines(store: &Store, paths: &WalPaths) -> Result<Vec<TimelineId>> {
    let names = store.list_dirs(&paths.timelines()).await?;
    let timeline = |name: &String| {
        let id = u32::from_str_radix(name, 16).ok().and_then(TimelineId::new)?;
        (id.hex() == *name).then_some(id)
    };
    Ok(names.iter().filter_map(timeline).collect())
}

/// The histories that a lineage itself has.
pub(crate) async fn list_histories(store: &Store, paths: &WalPaths) -> Result<ListedHistories> {
    let mut listed = ListedHistories::default();
    for entry in store.list_all(&paths.histories()).await? {
        match paths.parse(&entry.key) {
            Some(WalEntry::File(WalFileName::History(timeline))) => listed.stored.push(timeline),
            Some(WalEntry::RefusedHistory(timeline, hash)) => listed.refused.push((timeline, hash)),
            Some(WalEntry::SettledHistory(timeline, hash)) => listed.settled.push((timeline, hash)),
            Some(WalEntry::AbandonedTimeline(name)) => listed.abandoned.push(name),
            _ => {}
        }
    }
    listed.stored.sort_unstable();
    listed.stored.dedup();
    listed.refused.sort_unstable();
    listed.settled.sort_unstable();
    listed.abandoned.sort_unstable();
    Ok(listed)
}
