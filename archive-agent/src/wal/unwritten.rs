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
use super::disk;
use super::identity::on_path;
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
    // The server may have written it since.
    if newest_begun(wal, timeline, size).await?.is_none_or(|newest| newest >= stored) {
        return Ok(None);
    }
    let (directory, noting) = (wal.to_owned(), archive.clone());
    let noted = disk::run(wal, move || claim::read(&directory, &noting, timeline)).await;
    if noted?.is_some_and(|claim| claim.segment >= stored) {
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
