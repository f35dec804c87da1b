//! Whether the parts of needed segments that are too large for one object are there, by name and size: without one of them
//! recovery does not pass the segment, though the object that names them is there.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use walpoint_base::{SegmentName, SegmentNo, TimelineId, WalFileName};
use walpoint_plan::runs::Runs;
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::{Key, WalEntry};
use walpoint_storage::object::MAX_CONTENT;

use super::Run;
use super::report::FindingKind;
use crate::index::TimelineIndex;
use crate::wal::WalArchive;

/// Segments of which the parts are looked at at the same time.
const AT_ONCE: usize = 8;

/// What a listing has of one segment.
#[derive(Default)]
struct Listed {
    /// Bytes of the object that names the parts.
    table: u64,
    /// The parts, with their bytes.
    parts: BTreeMap<Key, u64>,
}

impl Listed {
    fn stored(&self) -> u64 {
        self.parts.values().fold(self.table, |sum, size| sum.saturating_add(*size))
    }
}

impl Run<'_> {
    /// Looks for the parts of the needed segments of a timeline; takes those out of `wanted` that lack one, which are told. One
    /// listing, and one small object for each segment.
    pub(super) async fn parts(
        &mut self,
        archive: &WalArchive,
        timeline: TimelineId,
        wanted: &mut Runs,
    ) -> Result<()> {
        let size = archive.lineage().segment_size;
        let Some(first) = wanted.first().filter(|_| size.bytes() > MAX_CONTENT as u64) else { return Ok(()) };
        let mut listed: BTreeMap<SegmentNo, Listed> = BTreeMap::new();
        let mut entries = archive.list(timeline, Some(first.name(timeline, size)));
        while let Some((entry, object)) = entries.try_next().await? {
            let number = entry.segment().and_then(|name| name.number(size));
            let Some(number) = number.filter(|number| wanted.contains(*number)) else { continue };
            match entry {
                WalEntry::File(WalFileName::Segment(_)) => {
                    listed.entry(number).or_default().table = object.size
                }
                WalEntry::Part(_) => {
                    listed.entry(number).or_default().parts.insert(object.key, object.size);
                }
                _ => {}
            }
        }
        let mut index = TimelineIndex::load(archive, timeline).await?;
        let mut looking = Vec::new();
        for (number, one) in listed {
            let group = index.group(crate::index::group_of(number)).await?;
            let indexed = group.get(number).map(|entry| entry.stored) == Some(one.stored());
            let name = number.name(timeline, size);
            looking.push(async move {
                Ok::<_, RepoError>((name, archive.lacking_part(name, &one.parts, !indexed).await?))
            });
        }
        let mut looked = stream::iter(looking).buffered(AT_ONCE);
        while let Some((name, lacking)) = looked.try_next().await? {
            if let Some(what) = lacking
                && self.is_needed_now(archive, name).await?
            {
                self.lacks_a_part(archive, name, what, wanted);
            }
        }
        Ok(())
    }

    fn lacks_a_part(&mut self, archive: &WalArchive, name: SegmentName, what: String, wanted: &mut Runs) {
        self.bad_segment(archive, name, FindingKind::Damaged, what);
        if let Some(number) = name.number(archive.lineage().segment_size) {
            wanted.remove(number);
        }
    }
}
