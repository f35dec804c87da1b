//! Databases that were copied file by file while the backup ran: by `ALTER DATABASE … SET TABLESPACE`, or by
//! `CREATE DATABASE` before 15 and with `STRATEGY = FILE_COPY`.
//!
//! Replay repeats such a copy with the source as the backup has it. If that was changed or removed behind the copy, the
//! backup may have read it in the later state, and the restored database would lack files or hold what it never held. No
//! error would say so. So the WAL that the backup needs is asked, and there is no backup unless it shows that the
//! source stayed as it was. Which segments hold such records is in their headers: mostly none does, and nothing is read.

use std::collections::BTreeSet;

use anyhow::{Context, bail};
use walpoint_base::{Lsn, SegmentNo, WalFileName};
use walpoint_pg::server::DEFAULT_TABLESPACE;
use walpoint_pg::wal::{DatabaseCopies, DatabaseDirectory, FoundCopy};
use walpoint_repo::wal::{FetchedWal, WalArchive};

use super::needed_wal::BackupWal;

/// There is no backup if a database was copied in that range of WAL and its source changed before the end of the range.
/// `marked`: the segments that hold such records.
pub(super) async fn refuse(
    archive: &WalArchive,
    needed: &BackupWal,
    marked: &BTreeSet<SegmentNo>,
    (start, stop): (Lsn, Lsn),
) -> anyhow::Result<()> {
    let Some(first) = marked.first() else { return Ok(()) };
    // A record counts in the next segment where the end of one cuts its header.
    let before = SegmentNo(first.0.saturating_sub(1));
    let segments = needed.segments().skip_while(|segment| *segment < before);
    let mut copies = DatabaseCopies::new(start, stop);
    for segment in segments {
        let (name, file) = read(archive, needed, segment).await?;
        copies = tokio::task::spawn_blocking(move || copies.segment(name, &file.content).map(|()| copies))
            .await?
            .with_context(|| format!("the WAL that the backup needs cannot be read in segment {name}"))?;
    }
    let changed = copies.found().iter().find_map(|found| Some((found, found.changed?)));
    let Some((FoundCopy { record, copy, .. }, changed)) = changed else { return Ok(()) };
    bail!(
        "no backup was taken: while it ran, {} was copied to {} (at {record}, by ALTER DATABASE … SET \
         TABLESPACE, or a CREATE \
         DATABASE that copies files), and what was copied changed before the backup's end (at {changed})\nDETAIL: A restore \
         would repeat the copy with the files as they were later.\nHINT: Run the backup again. On a standby, run CHECKPOINT \
         on the primary first, then on the standby.",
        shown(copy.from),
        shown(copy.to)
    )
}

async fn read(
    archive: &WalArchive,
    needed: &BackupWal,
    segment: SegmentNo,
) -> anyhow::Result<(walpoint_base::SegmentName, FetchedWal)> {
    let names = needed.names(segment);
    for name in &names {
        if let Some(file) = archive.get(WalFileName::Segment(*name)).await? {
            return Ok((*name, file));
        }
    }
    let name = names.first().map(ToString::to_string).unwrap_or_default();
    bail!("segment {name}, which the backup needs, was there a moment ago and is gone")
}

/// Where a database lies, as people find it in the data directory.
fn shown(DatabaseDirectory { tablespace, database }: DatabaseDirectory) -> String {
    match tablespace {
        DEFAULT_TABLESPACE => format!("database {database} (base/{database})"),
        _ => format!("database {database} (in pg_tblspc/{tablespace})"),
    }
}
