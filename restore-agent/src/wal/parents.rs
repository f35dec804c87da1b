//! What PostgreSQL reads at a fork behind the archive's back: the parent's segment, put into `pg_wal`.
//!
//! The segment in which a timeline begins holds its parent's bytes up to the switch point, and recovery asks for it under the
//! child's name. The first record of the child is replayed while PostgreSQL still counts itself on the parent. If that is a
//! checkpoint, as after a recovery that was not promoted by hand, a hot standby reads the transactions that are prepared at that
//! moment once more (`PrescanPreparedTransactions`), from `pg_wal` and under the parent's name, and ends with "has already been
//! removed" if there is none. A restore knows the forks on its way (`restore::forks`); a standby that follows comes by later
//! ones.
//!
//! The file holds what belongs to the parent, with zeros behind, and is marked as archived: nothing archives it, and a
//! checkpoint removes it. One that is there is left alone.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use walpoint_base::{Lsn, SegmentName, SegmentNo, SegmentSize, WalDirectory, durable};

use crate::wal::archive::ClusterArchive;
use crate::wal::atomic_file::{self, AtomicFile, Durability};
use crate::wal::cut::CutFile;

/// A standby waits for its answer: the history is not waited for longer. It was mostly read before.
const HISTORY: Duration = Duration::from_millis(300);

/// Puts the parents' segments into `pg_wal` for a segment that is about to be handed over. A failure makes no difference to
/// what is handed over.
pub(crate) async fn put(archive: &ClusterArchive, place: &WalDirectory, name: SegmentName, content: &Path) {
    if let Err(error) = try_put(archive, place, name, content).await {
        tracing::warn!(
            "the part of \"{name}\" that belongs to the timeline before is not in pg_wal: {}",
            walpoint_words::format_chain(&error)
        );
    }
}

async fn try_put(
    archive: &ClusterArchive,
    place: &WalDirectory,
    name: SegmentName,
    content: &Path,
) -> anyhow::Result<()> {
    let Some(size) = archive.segment_size().filter(|_| begins_on_parent(name, content)) else {
        return Ok(());
    };
    let Some(number) = name.number(size) else { return Ok(()) };
    let history = tokio::time::timeout(HISTORY, archive.history(name.timeline)).await;
    let history = history.context("no repository gave the timeline's history in time")??;
    let switches: Vec<(SegmentName, Lsn)> = history
        .iter()
        .flat_map(|history| history.entries())
        .filter(|entry| SegmentNo::of(entry.switch, size) == number && number.start(size) < entry.switch)
        .map(|entry| (number.name(entry.parent, size), entry.switch))
        .collect();
    let (wal, content) = (place.wal.clone(), content.to_owned());
    atomic_file::blocking(move || {
        switches.into_iter().try_for_each(|(parent, switch)| write(&wal, parent, switch, size, &content))
    })
    .await
}

/// Whether the first page of a segment is of an earlier timeline (`xlp_tli`, behind magic and info).
fn begins_on_parent(name: SegmentName, content: &Path) -> bool {
    let mut header = [0; 8];
    let read = File::open(content).and_then(|mut file| file.read_exact(&mut header));
    let [.., a, b, c, d] = header;
    read.is_ok() && u32::from_le_bytes([a, b, c, d]) != name.timeline.get()
}

fn write(
    wal: &Path,
    parent: SegmentName,
    switch: Lsn,
    size: SegmentSize,
    content: &Path,
) -> anyhow::Result<()> {
    let (path, status) = (wal.join(parent.to_string()), wal.join("archive_status"));
    // Without that directory no PostgreSQL has started here.
    if path.exists() || !status.is_dir() {
        return Ok(());
    }
    let keep = switch.0 % size.bytes();
    let mut cut = CutFile::new(AtomicFile::begin(&path)?, keep, size.bytes());
    let mut source = File::open(content)?.take(keep);
    io::copy(&mut source, &mut cut).with_context(|| path.display().to_string())?;
    let file = cut.finish()?;
    durable::replace(&status.join(format!("{parent}.done")), b"", 0o600)?;
    file.finish(Durability::Ours)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_parents_part_is_put_there_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("archive_status")).unwrap();
        let size = SegmentSize::new(1 << 20).unwrap();
        let child: SegmentName = "000000020000000000000005".parse().unwrap();
        let parent: SegmentName = "000000010000000000000005".parse().unwrap();
        let content = dir.path().join("content");
        let mut bytes = vec![7; 1 << 20];
        bytes[4..8].copy_from_slice(&1u32.to_le_bytes());
        durable::create(&content, &bytes).unwrap();
        assert!(begins_on_parent(child, &content) && !begins_on_parent(parent, &content));
        write(dir.path(), parent, Lsn(0x50_0100), size, &content).unwrap();
        let path = dir.path().join(parent.to_string());
        let written = fs::read(&path).unwrap();
        assert_eq!(written.len(), 1 << 20);
        assert!(written[..0x100] == bytes[..0x100] && written[0x100..].iter().all(|byte| *byte == 0));
        assert!(dir.path().join(format!("archive_status/{parent}.done")).exists());
        durable::replace(&path, b"its own", 0o600).unwrap();
        write(dir.path(), parent, Lsn(0x50_0100), size, &content).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"its own");
    }
}
