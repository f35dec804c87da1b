//! Whether an archive holds WAL of a timeline that the server which writes it has not written yet: another server's, or what the
//! same data directory wrote before it was put back to an earlier state.
//!
//! The server that writes a timeline has come further than all of it that is stored. So one listing from the newest segment in
//! `pg_wal` on is enough. A server that recovers or follows another one has not, and is not asked.

use std::path::Path;

use futures_util::TryStreamExt;
use walpoint_base::{SegmentName, SegmentSize, TimelineHistory, TimelineId, WalFileName};
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;
use walpoint_storage::layout::WalEntry;

use super::claim;
use super::identity::{self, on_path};
use super::split_brain::SplitBrain;

/// What shows that, if anything does; `wal` is the directory of the server that writes the timeline.
pub(crate) async fn unwritten(
    archive: &WalArchive,
    wal: &Path,
    timeline: TimelineId,
    size: SegmentSize,
) -> Result<Option<SplitBrain>, RepoError> {
    let Some(newest) = newest_begun(wal, timeline, size).await? else { return Ok(None) };
    let Some(stored) = newest_stored_behind(archive, newest).await? else { return Ok(None) };
    // The server may have written it since, and to what cannot be read.
    let newest = identity::newest_begun(wal, timeline, size).await?;
    if newest.is_none() || newest >= stored.number(size) {
        return Ok(None);
    }
    if claim::noted(wal, archive, timeline).await?.is_some_and(|claim| claim.segment >= stored) {
        return Ok(None);
    }
    let what = format!(
        "segment {stored} is stored, but this server has not reached it yet: another server wrote it, or \
         this data directory was later reset to an earlier state"
    );
    Ok(Some(SplitBrain::new(archive, timeline, what)))
}

async fn newest_begun(
    wal: &Path,
    timeline: TimelineId,
    size: SegmentSize,
) -> Result<Option<SegmentName>, RepoError> {
    let begun = on_path(wal, TimelineHistory::root(timeline), size).await?;
    Ok(begun.into_iter().filter(|name| name.timeline == timeline).max())
}

async fn newest_stored_behind(
    archive: &WalArchive,
    name: SegmentName,
) -> Result<Option<SegmentName>, RepoError> {
    let (mut newest, mut entries) = (None, archive.list(name.timeline, Some(name)));
    while let Some((entry, _)) = entries.try_next().await? {
        if let WalEntry::File(WalFileName::Segment(segment)) = entry
            && segment > name
        {
            newest = Some(segment);
        }
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{Bed, size};
    use super::*;

    #[tokio::test]
    async fn a_segment_that_cannot_be_read_is_not_taken_for_one_that_was_not_written() {
        let bed = Bed::new().await;
        let (wal, stored) = (bed.pgdata().join("pg_wal"), "000000010000000000000005");
        bed.write("000000010000000000000003", 1);
        bed.put(stored, 1).await;
        let found = async || unwritten(&bed.archive, &wal, TimelineId::FIRST, size()).await;
        assert!(found().await.unwrap().is_some());
        // It cannot be read like a file.
        std::fs::create_dir(wal.join(stored)).unwrap();
        let error = found().await.unwrap_err().to_string();
        assert!(error.contains(stored), "{error}");
    }
}
