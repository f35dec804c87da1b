//! Whether a damaged segment of a directory is the one that is stored under its name, as its records and its neighbors show.
//!
//! A copy of a server that parted in what is damaged has the same records before that. What it wrote of the next segment shows it, as far
//! as there is any: without, the stored segment is taken for its own, and the next one is compared before it is stored.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use walpoint_base::chain::Link;
use walpoint_base::{SegmentName, SegmentNo, WalFileName};
use walpoint_pg::wal::{DamagedComparison, DamagedRecords, WalIdentity};
use walpoint_repo::wal::WalArchive;

use super::comparison::{self, Comparison};
use super::disk;
use super::elsewhere;

/// Takes the stored segment, and compares it with the file as it comes.
struct PageComparison {
    local: File,
    records: DamagedComparison,
    block: usize,
    page: Vec<u8>,
}

impl PageComparison {
    fn compare(&mut self) -> io::Result<()> {
        let mut local = Vec::with_capacity(self.block);
        (&mut self.local).take(self.block as u64).read_to_end(&mut local)?;
        self.records.page(&local, &self.page);
        self.page.clear();
        Ok(())
    }
}

impl Write for PageComparison {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.get(..bytes.len().min(self.block - self.page.len())).unwrap_or(bytes);
        self.page.extend_from_slice(taken);
        if self.page.len() == self.block {
            self.compare()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether the file of a directory is the stored segment, but for what is damaged. What cannot be read shows nothing.
pub(super) async fn is_damaged_copy(
    archive: &WalArchive,
    cluster: &WalIdentity,
    wal: &Path,
    name: SegmentName,
) -> bool {
    records(archive, wal, name).await == DamagedRecords::Same
        && !has_parted(archive, cluster, wal, name).await
}

/// Whether what the server has written of the next segment, though it may be writing it still, does not continue the stored one.
async fn has_parted(archive: &WalArchive, cluster: &WalIdentity, wal: &Path, name: SegmentName) -> bool {
    let size = cluster.segment_size;
    let Some(next) = name.number(size).map(|number| number.next().name(name.timeline, size)) else {
        return false;
    };
    if !matches!(comparison::begun(wal, next, size).await, Ok(true)) {
        return false;
    }
    let edges = comparison::edges(wal, next, cluster).await;
    let (Some(next), Ok(Some(stored))) = (edges, archive.header(name).await) else { return false };
    matches!(stored.chain.end.link(&next), Link::Broken(_))
}

/// Whether the segment that is stored under the name of a damaged one is the directory's: it has the next one as that is stored; or it has
/// the one before, or remembers that, and the records of this one, and nothing of the next one that does not continue it.
pub(super) async fn is_own(
    archive: &WalArchive,
    cluster: &WalIdentity,
    wal: &Path,
    name: SegmentName,
) -> bool {
    let (size, timeline) = (cluster.segment_size, name.timeline);
    let Some(number) = name.number(size) else { return false };
    let has =
        async |name| matches!(comparison::segment(archive, cluster, wal, name).await, Ok(Comparison::Same));
    let shown = records(archive, wal, name).await;
    if shown == DamagedRecords::Other {
        return false;
    }
    if has(number.next().name(timeline, size)).await {
        return true;
    }
    let before = number.0.checked_sub(1).map(|before| SegmentNo(before).name(timeline, size));
    let Some(before) = before.filter(|_| shown == DamagedRecords::Same) else { return false };
    if has_parted(archive, cluster, wal, name).await {
        return false;
    }
    let remembered = elsewhere::claimed(wal, archive, timeline).await;
    matches!(remembered, Ok(Some(noted)) if noted == before) || has(before).await
}

async fn records(archive: &WalArchive, wal: &Path, name: SegmentName) -> DamagedRecords {
    let lineage = archive.lineage();
    let (number, block) = (name.number(lineage.segment_size), usize::try_from(lineage.wal_block_size));
    let (Some(number), Ok(block @ 1..)) = (number, block) else { return DamagedRecords::Nothing };
    let path = wal.join(name.to_string());
    let Ok(Ok(local)) = disk::run(wal, move || File::open(path)).await else {
        return DamagedRecords::Nothing;
    };
    let Ok(Some(reader)) = archive.read(WalFileName::Segment(name)).await else {
        return DamagedRecords::Nothing;
    };
    let records = DamagedComparison::new(number.start(lineage.segment_size), lineage.major, block);
    let comparison = PageComparison { local, records, block, page: Vec::with_capacity(block) };
    match reader.write_to(comparison).await {
        Ok((comparison, _)) => comparison.records.finish(),
        Err(_) => DamagedRecords::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{Bed, size};
    use super::*;

    /// The records of these segments show nothing: they are no WAL.
    #[tokio::test]
    async fn the_next_segment_shows_whose_a_damaged_one_is() {
        let bed = Bed::new().await;
        let [name, next] = ["000000010000000000000002", "000000010000000000000003"];
        bed.put(name, 1).await;
        bed.put(next, 1).await;
        bed.write(name, 2);
        let lineage = bed.archive.lineage();
        let cluster =
            WalIdentity { system_id: lineage.system_id(), major: lineage.major, segment_size: size() };
        let (wal, segment) = (bed.pgdata().join("pg_wal"), name.parse().unwrap());
        let own = async || is_own(&bed.archive, &cluster, &wal, segment).await;
        assert!(!own().await);
        bed.write(next, 2);
        assert!(!own().await);
        bed.write(next, 1);
        assert!(own().await);
        // What is before it, alone, does not show what follows.
        bed.put("000000010000000000000001", 1).await;
        bed.write("000000010000000000000001", 1);
        std::fs::remove_file(wal.join(next)).unwrap();
        assert!(!own().await);
    }
}
