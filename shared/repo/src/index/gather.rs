//! Entries from the segments themselves: a listing says which are there, their headers say what is in them.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, TryStreamExt, stream};
use walpoint_base::{SegmentNo, TimelineId, WalFileName};
use walpoint_storage::error::Result;
use walpoint_storage::layout::WalEntry;

use super::entry::SegmentEntry;
use crate::wal::WalArchive;

/// Headers that are read at the same time: as many as may be in no index object.
const PARALLEL: usize = super::STEP;

/// Segments and the bytes that each takes in the repository, parts included.
pub type SegmentSizes = BTreeMap<SegmentNo, u64>;

/// What a listing of a timeline's WAL shows.
#[derive(Clone, Default, Debug)]
pub struct Survey {
    /// The segments.
    pub listed: SegmentSizes,
    /// Segments of which there is an incomplete copy: a `.partial` file, or one that ended early.
    pub incomplete: BTreeSet<SegmentNo>,
    /// Whether the listing was ended before it was through.
    pub cut: bool,
}

/// Lists the segments of a timeline from `first` to `last`, and says whether it stopped after `limit` of them.
pub async fn list(
    archive: &WalArchive,
    timeline: TimelineId,
    first: SegmentNo,
    last: SegmentNo,
    limit: usize,
) -> Result<(SegmentSizes, bool)> {
    let survey = survey(archive, timeline, first, last, limit).await?;
    Ok((survey.listed, survey.cut))
}

/// The same, and what else there is of them.
pub async fn survey(
    archive: &WalArchive,
    timeline: TimelineId,
    first: SegmentNo,
    last: SegmentNo,
    limit: usize,
) -> Result<Survey> {
    let size = archive.lineage().segment_size;
    let (mut found, mut parts) = (Survey::default(), SegmentSizes::new());
    let mut entries = archive.list(timeline, Some(first.name(timeline, size)));
    while let Some((entry, object)) = entries.try_next().await? {
        let Some(number) = entry.segment().and_then(|name| name.number(size)) else { continue };
        if number > last {
            break;
        }
        if found.listed.len() >= limit && !found.listed.contains_key(&number) {
            found.cut = true;
            break;
        }
        match entry {
            WalEntry::File(WalFileName::Segment(_)) => {
                found.listed.insert(number, object.size);
            }
            WalEntry::Part(_) => *parts.entry(number).or_default() += object.size,
            WalEntry::Partial(..) | WalEntry::Ended(..) | WalEntry::Slice(..) => {
                found.incomplete.insert(number);
            }
            _ => {}
        }
    }
    for (number, stored) in &mut found.listed {
        *stored += parts.get(number).copied().unwrap_or_default();
    }
    Ok(found)
}

/// Reads the headers of the segments listed. One that was deleted since is left out.
pub async fn entries(
    archive: &WalArchive,
    timeline: TimelineId,
    listed: impl IntoIterator<Item = (SegmentNo, u64)>,
) -> Result<BTreeMap<SegmentNo, SegmentEntry>> {
    let size = archive.lineage().segment_size;
    let read = listed.into_iter().map(|(number, stored)| {
        let archive = archive.clone();
        async move {
            let header = archive.header(number.name(timeline, size)).await?;
            Ok(header.map(|header| (number, SegmentEntry::of(&header, stored))))
        }
    });
    let read: Vec<_> = stream::iter(read).buffer_unordered(PARALLEL).try_collect().await?;
    Ok(read.into_iter().flatten().collect())
}
