//! Whether a damaged segment of a directory is the one that is stored under its name, as its records and its neighbors show.
//!
//! A copy of a server that parted in what is damaged has the same records before that. What it wrote of the next segment shows it, as far
//! as there is any: without, the stored segment is taken for its own, and the next one is compared before it is stored. What cannot be read
//! may show it, too, so that is an error, which another attempt may cure; what is damaged shows nothing, and nothing counts as its own for it.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;

use walpoint_base::chain::Link;
use walpoint_base::{SegmentName, SegmentNo, WalFileName};
use walpoint_pg::wal::{DamagedComparison, DamagedRecords, WalIdentity};
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;

use super::claim;
use super::comparison::{self, Comparison};
use super::disk;
use super::neighbors::{self, StoredNeighbor};
use super::target::WalTarget;
use super::unreadable;

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

/// What a directory has of the segment behind a damaged one, though its server may be writing it still, held against what is stored under
/// the damaged one's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Continuation {
    /// It continues that, as far as there is anything of it.
    Continues,
    /// It does not: two servers parted in what is damaged.
    Parted,
    /// It is damaged, too, or nothing sound is stored: it shows nothing.
    Unknown,
}

/// Whether the file of a directory is the stored segment, but for what is damaged. An error if what decides cannot be read.
pub(super) async fn is_damaged_copy(
    archive: &WalArchive,
    cluster: &WalIdentity,
    wal: &Path,
    name: SegmentName,
) -> Result<bool, RepoError> {
    Ok(records(archive, wal, name).await? == DamagedRecords::Same
        && continuation(archive, cluster, wal, name).await? == Continuation::Continues)
}

/// What the server has written of the next segment.
async fn continuation(
    archive: &WalArchive,
    cluster: &WalIdentity,
    wal: &Path,
    name: SegmentName,
) -> Result<Continuation, RepoError> {
    let size = cluster.segment_size;
    let Some(next) = name.number(size).map(|number| number.next().name(name.timeline, size)) else {
        return Ok(Continuation::Unknown);
    };
    if !comparison::begun(wal, next, size).await? {
        return Ok(Continuation::Continues);
    }
    let Some(next) = comparison::edges_if_read(wal, next, cluster).await? else {
        return Ok(Continuation::Unknown);
    };
    let StoredNeighbor::Sound(stored) = neighbors::header(archive, name).await? else {
        return Ok(Continuation::Unknown);
    };
    Ok(match stored.chain.end.link(&next) {
        Link::Broken(_) => Continuation::Parted,
        Link::Continues | Link::Reset => Continuation::Continues,
    })
}

/// Whether the segment that is stored under the name of a damaged one is the directory's: it has the next one as that is stored; or it has
/// the one before, or it is remembered that it stored that, and the records of this one, and nothing of the next one that does not continue
/// it. An error if what decides cannot be read.
pub(super) async fn is_own(
    (target, archive): (&WalTarget, &WalArchive),
    cluster: &WalIdentity,
    wal: &Path,
    name: SegmentName,
) -> Result<bool, RepoError> {
    let (size, timeline) = (cluster.segment_size, name.timeline);
    let Some(number) = name.number(size) else { return Ok(false) };
    let has = async |name| {
        let compared = comparison::segment(archive, cluster, wal, name).await?;
        Ok::<_, RepoError>(compared == Comparison::Same)
    };
    let shown = records(archive, wal, name).await?;
    if shown == DamagedRecords::Other {
        return Ok(false);
    }
    if has(number.next().name(timeline, size)).await? {
        return Ok(true);
    }
    let before = number.0.checked_sub(1).map(|before| SegmentNo(before).name(timeline, size));
    let Some(before) = before.filter(|_| shown == DamagedRecords::Same) else { return Ok(false) };
    if continuation(archive, cluster, wal, name).await? != Continuation::Continues {
        return Ok(false);
    }
    if has(before).await? {
        return Ok(true);
    }
    match claim::newest((target, archive), wal, timeline).await? {
        Some(claim) => Ok(claim::unless_replaced(archive, claim).await? == Some(before)),
        None => Ok(false),
    }
}

/// What the records of a damaged file and of the stored segment show. What is not there or stored damaged shows nothing.
async fn records(archive: &WalArchive, wal: &Path, name: SegmentName) -> Result<DamagedRecords, RepoError> {
    let lineage = archive.lineage();
    let (number, block) = (name.number(lineage.segment_size), usize::try_from(lineage.wal_block_size));
    let (Some(number), Ok(block @ 1..)) = (number, block) else { return Ok(DamagedRecords::Nothing) };
    let path = wal.join(name.to_string());
    let file = path.clone();
    let local = match disk::run(wal, move || File::open(file)).await? {
        Ok(local) => local,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(DamagedRecords::Nothing),
        Err(source) => {
            return Err(RepoError::Io { what: format!("{} cannot be read", path.display()), source });
        }
    };
    let read = async {
        let Some(reader) = archive.read(WalFileName::Segment(name)).await? else {
            return Ok(DamagedRecords::Nothing);
        };
        let records = DamagedComparison::new(number.start(lineage.segment_size), lineage.major, block);
        let comparison = PageComparison { local, records, block, page: Vec::with_capacity(block) };
        let (comparison, _) = reader.write_to(comparison).await?;
        Ok(comparison.records.finish())
    };
    match unreadable::settled(archive, read.await).await {
        Err(RepoError::Corrupt { .. }) => Ok(DamagedRecords::Nothing),
        Err(RepoError::Io { source, .. }) => {
            Err(RepoError::Io { what: format!("{} cannot be read", path.display()), source })
        }
        shown => shown,
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
        let target = bed.target(true);
        let own = async || is_own((&target, &bed.archive), &cluster, &wal, segment).await.unwrap();
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

    /// Promises 1 and 12: what cannot be read is neither nothing nor the same.
    #[tokio::test]
    async fn what_cannot_be_read_of_a_damaged_segment_decides_nothing() {
        let bed = Bed::new().await;
        let [name, next] = ["000000010000000000000002", "000000010000000000000003"];
        bed.put(name, 1).await;
        bed.put(next, 1).await;
        bed.write(name, 2);
        bed.write(next, 1);
        let lineage = bed.archive.lineage();
        let cluster =
            WalIdentity { system_id: lineage.system_id(), major: lineage.major, segment_size: size() };
        let (wal, segment) = (bed.pgdata().join("pg_wal"), name.parse().unwrap());
        let target = bed.target(true);
        let own = async || is_own((&target, &bed.archive), &cluster, &wal, segment).await;
        assert!(own().await.unwrap());
        let stored = bed.make_unreadable(name);
        assert!(own().await.unwrap_err().is_transient(), "the store may be away");
        stored.put_back();
        let cannot_be_read = |error: RepoError, name: &str| {
            let error = error.to_string();
            assert!(error.contains(name) && error.contains("cannot be read"), "{error}");
        };
        // What is no file cannot be read like one.
        for file in [name, next] {
            std::fs::remove_file(wal.join(file)).unwrap();
            std::fs::create_dir(wal.join(file)).unwrap();
        }
        cannot_be_read(own().await.unwrap_err(), name);
        let behind = continuation(&bed.archive, &cluster, &wal, segment).await;
        cannot_be_read(behind.unwrap_err(), next);
    }

    #[tokio::test]
    async fn a_damaged_segment_behind_a_damaged_one_shows_nothing() {
        let bed = Bed::new().await;
        let [name, next] = ["000000010000000000000002", "000000010000000000000003"];
        bed.put(name, 1).await;
        let lineage = bed.archive.lineage();
        let cluster =
            WalIdentity { system_id: lineage.system_id(), major: lineage.major, segment_size: size() };
        let (wal, segment) = (bed.pgdata().join("pg_wal"), name.parse().unwrap());
        let next_shows = async || continuation(&bed.archive, &cluster, &wal, segment).await.unwrap();
        assert_eq!(next_shows().await, Continuation::Continues, "it has not begun");
        // Another segment waits under that name to be used again.
        bed.write("000000010000000000000001", 1);
        std::fs::copy(wal.join("000000010000000000000001"), wal.join(next)).unwrap();
        assert_eq!(next_shows().await, Continuation::Continues, "it has not begun");
        // It begins as that segment, and is no WAL.
        bed.write(next, 1);
        assert_eq!(next_shows().await, Continuation::Unknown);
    }
}
