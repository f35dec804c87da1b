//! Whether the WAL with which a backup begins can still arrive. A standby that replays late begins a backup where the primary archived
//! everything long ago, and `expire` deleted that with the backups that needed it.

use std::time::Duration;

use anyhow::bail;
use futures_util::TryStreamExt;
use tokio::time::Instant;
use walpoint_base::{Lsn, SegmentName, SegmentNo, TimelineId, WalFileName};
use walpoint_repo::wal::WalArchive;
use walpoint_storage::error::{Result, error_chain};
use walpoint_storage::layout::WalEntry;

use super::begun::Begun;
use crate::check::repository::Destination;

/// How long a segment may be overtaken by the next one on its way to a repository.
const OVERTAKEN: Duration = Duration::from_secs(15);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// Refuses a backup of which no replica could ever be restored, before anything is copied.
pub(crate) async fn refuse(begun: &Begun, copies: &[Destination]) -> anyhow::Result<()> {
    let (timeline, start) = (begun.id.timeline(), begun.id.start());
    let mut refused = None;
    for copy in copies {
        match deleted(&copy.archive(), timeline, start, OVERTAKEN).await {
            Ok(Some(found)) => refused = Some((copy.name(), found)),
            Ok(None) => return Ok(()),
            // The wait for the WAL at the end reports what lasts.
            Err(error) => {
                tracing::debug!(repository = copy.name(), "WAL was not looked for: {}", error_chain(&error));
                return Ok(());
            }
        }
    }
    if let Some((repository, (first, oldest))) = refused {
        bail!(
            "no backup was taken: it would begin in segment {first}, and repository {repository} has WAL of timeline \
             {timeline} from segment {oldest} on only\nDETAIL: The primary archived what lies before that long ago, and it was \
             deleted with the backups that needed it, or it was archived before this repository was: it does not arrive any more, and \
             without it the backup could not be restored.\nHINT: A backup from a standby begins at the standby's last restart \
             point. Let the standby replay the WAL up to {oldest} and further (recovery_min_apply_delay or a paused replay keeps it \
             back), run CHECKPOINT on it, and run the backup again; or back up the primary."
        );
    }
    Ok(())
}

/// The segment in which a backup begins and the oldest one that an archive has of its timeline, where the first is not there and lies
/// before the other one, `overtaken` long.
async fn deleted(
    archive: &WalArchive,
    timeline: TimelineId,
    start: Lsn,
    overtaken: Duration,
) -> Result<Option<(SegmentName, SegmentName)>> {
    let size = archive.lineage().segment_size;
    let first = SegmentNo::of(start, size).name(timeline, size);
    let began = Instant::now();
    loop {
        let Some(oldest) = oldest(archive, timeline).await?.filter(|oldest| *oldest > first) else {
            return Ok(None);
        };
        // A lineage may inherit WAL that no listing of its own shows.
        if archive.header(first).await?.is_some() {
            return Ok(None);
        }
        if began.elapsed() >= overtaken {
            return Ok(Some((first, oldest)));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The oldest whole segment of a timeline.
async fn oldest(archive: &WalArchive, timeline: TimelineId) -> Result<Option<SegmentName>> {
    let mut entries = archive.list(timeline, None);
    while let Some((entry, _)) = entries.try_next().await? {
        if let WalEntry::File(WalFileName::Segment(segment)) = entry {
            return Ok(Some(segment));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::fixtures::Bed;

    #[tokio::test]
    async fn a_backup_that_begins_before_all_stored_wal_of_its_timeline_waits_for_none() {
        let bed = Bed::new().await;
        let size = bed.archive.lineage().segment_size;
        let name = |n: u64| SegmentNo(n).name(TimelineId::FIRST, size);
        let deleted = async |n: u64| {
            let start = SegmentNo(n).start(size) + 40;
            deleted(&bed.archive, TimelineId::FIRST, start, Duration::ZERO).await.unwrap()
        };
        assert_eq!(deleted(3).await, None, "nothing was archived so far");
        bed.put(&name(5).to_string(), 1).await;
        bed.put(&name(6).to_string(), 1).await;
        assert_eq!(deleted(3).await, Some((name(3), name(5))));
        assert_eq!([deleted(5).await, deleted(6).await], [None, None]);
        assert_eq!(deleted(7).await, None, "it is archived when it is full");
        bed.put(&name(3).to_string(), 1).await;
        assert_eq!(
            [deleted(3).await, deleted(4).await],
            [None, None],
            "what is missing behind it may arrive"
        );
    }
}
