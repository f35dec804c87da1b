//! Whether what is to be restored fits, on each filesystem that it goes to.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::bail;
use walpoint_plan::restore::{RestorePlan, SegmentRange};
use walpoint_repo::backup::{
    BackupReader, BlockSize, Blocks, EntryContent, FileContent, FileEntry, LeafRun, Root, TablePath,
};
use walpoint_runtime::human;

use super::decided::Decided;
use super::directory;
use super::layout::{Layout, Spot};
use super::steps::Step;

/// Segments that recovery holds at least: the one that it replays and those that were prefetched.
const AT_LEAST: u64 = 4;

/// How much replayed WAL PostgreSQL keeps in `pg_wal` until a restartpoint, about, unless `max_wal_size` says otherwise.
const MAX_WAL_SIZE: u64 = 1 << 30;

/// A filesystem.
#[derive(Debug)]
struct Volume {
    path: PathBuf,
    free: u64,
    /// Bytes of files.
    files: u64,
    /// Bytes of WAL that recovery holds.
    wal: u64,
}

impl Volume {
    fn needed(&self) -> u64 {
        self.files.saturating_add(self.wal)
    }
}

/// Refuses when a filesystem cannot hold what goes to it. What an interrupted restore wrote is freed first; how much of a
/// directory that is repaired stays is not known before it was compared. Returns what a person should know of space that may become
/// short while WAL is replayed.
pub(super) async fn check(
    reader: &BackupReader,
    layout: &Layout,
    plan: &RestorePlan,
    decided: &Decided,
) -> anyhow::Result<Option<String>> {
    if !decided.does(&Step::MeasureSpace) {
        return Ok(None);
    }
    let volumes = measure(reader, layout).await?;
    let segment = reader.manifest().summary.facts.wal_segment_size;
    let segments = plan.wal.iter().map(SegmentRange::count).sum();
    match too_small(&volumes) {
        None => Ok(volumes.iter().find_map(|volume| short_of_wal(volume, segments, segment))),
        Some(volume) => bail!(
            "there is not enough space: backup {} needs {} in {}, and {} are free there; nothing was changed",
            plan.backup.id,
            human::size(volume.needed()),
            volume.path.display(),
            human::size(volume.free)
        ),
    }
}

/// The first filesystem that cannot hold what goes to it.
fn too_small(volumes: &[Volume]) -> Option<&Volume> {
    volumes.iter().find(|volume| volume.free < volume.needed())
}

/// Says that the filesystem of `pg_wal` may become full: PostgreSQL keeps what it replayed until a restartpoint. It need not, if one
/// comes early.
fn short_of_wal(volume: &Volume, segments: u64, segment: u64) -> Option<String> {
    let kept = segments.saturating_mul(segment).min(MAX_WAL_SIZE);
    let wanted = kept.saturating_add(AT_LEAST.saturating_mul(segment));
    let left = volume.free.saturating_sub(volume.files);
    (volume.wal > 0 && left < wanted).then(|| {
        format!(
            "recovery may run out of space in {}: {} are left there for WAL, and PostgreSQL keeps the WAL that it has \
             replayed in pg_wal until a restartpoint, about max_wal_size (1 GB by default), here up to {}\nHINT: Make room, or \
             put pg_wal elsewhere with --wal-dir, or lower max_wal_size for the recovery.",
            volume.path.display(),
            human::size(left),
            human::size(wanted)
        )
    })
}

/// Measures the filesystems of a layout, and what goes to each.
async fn measure(reader: &BackupReader, layout: &Layout) -> anyhow::Result<Vec<Volume>> {
    let summary = &reader.manifest().summary;
    let mut volumes = BTreeMap::new();
    for path in std::iter::once(layout.pgdata().to_owned()).chain(layout.others()) {
        volume_of(&mut volumes, &path)?;
    }
    let total = summary.totals.blocks.saturating_mul(u64::from(summary.facts.block_size));
    let wal = TablePath::data("pg_wal").ok().map(|path| layout.spot(&path));
    let wal = match wal {
        Some(Spot::Elsewhere(directory)) => directory,
        _ => layout.pgdata().to_owned(),
    };
    volume_of(&mut volumes, &wal)?.wal = summary.facts.wal_segment_size.saturating_mul(AT_LEAST);
    if volumes.len() == 1 {
        volume_of(&mut volumes, layout.pgdata())?.files = total;
    } else {
        share_out(reader, layout, total, &mut volumes).await?;
    }
    Ok(volumes.into_values().collect())
}

/// The filesystem of a directory, or of the nearest parent that exists.
fn volume_of<'a>(volumes: &'a mut BTreeMap<u64, Volume>, path: &Path) -> std::io::Result<&'a mut Volume> {
    let existing = nearest(path);
    let free = directory::free_space(&existing)?;
    let volume = || Volume { path: path.to_owned(), free, files: 0, wal: 0 };
    Ok(volumes.entry(std::fs::metadata(existing)?.dev()).or_insert_with(volume))
}

/// The directory that is there of where a path leads.
fn nearest(path: &Path) -> PathBuf {
    let path = directory::resolve(path).unwrap_or_else(|_| path.to_owned());
    path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/")).to_owned()
}

/// Finds out how much of the `total` goes to which filesystem.
async fn share_out(
    reader: &BackupReader,
    layout: &Layout,
    total: u64,
    volumes: &mut BTreeMap<u64, Volume>,
) -> anyhow::Result<()> {
    let (mut entries, mut sum) = (reader.entries(), 0u64);
    // Files of one directory follow each other.
    let mut last: Option<(PathBuf, u64)> = None;
    while let Some(entry) = entries.next().await? {
        let EntryContent::File(content) = &entry.content else { continue };
        let place = directory_of(&entry, layout);
        let device = match &last {
            Some((known, device)) if *known == place => *device,
            _ => std::fs::metadata(nearest(&place))?.dev(),
        };
        let bytes = at_most(content, reader.block_size());
        sum = sum.saturating_add(bytes);
        if let Some(volume) = volumes.get_mut(&device) {
            volume.files = volume.files.saturating_add(bytes);
        }
        last = Some((place, device));
    }
    // Of long files only the upper bound is known here, of all together the sum: what fits must not be refused.
    if sum > total {
        for volume in volumes.values_mut() {
            let scaled = u128::from(volume.files) * u128::from(total) / u128::from(sum);
            volume.files = u64::try_from(scaled).unwrap_or(volume.files);
        }
    }
    Ok(())
}

/// The directory outside PGDATA in which an entry lies, or PGDATA.
fn directory_of(entry: &FileEntry, layout: &Layout) -> PathBuf {
    if entry.path.root != Root::Data {
        return layout.extra().unwrap_or(layout.pgdata()).to_owned();
    }
    let mut parts = entry.path.path.as_bytes().splitn(3, |b| *b == b'/');
    let oid = (parts.next() == Some(b"pg_tblspc")).then(|| parts.next()).flatten();
    let oid = oid.and_then(|oid| std::str::from_utf8(oid).ok()?.parse().ok());
    oid.and_then(|oid| layout.tablespace(oid)).unwrap_or(layout.pgdata()).to_owned()
}

/// The most bytes that a file takes.
fn at_most(content: &FileContent, size: BlockSize) -> u64 {
    let bytes = match &content.blocks {
        Blocks::Inline(list) => (list.hashes().len() as u64).saturating_mul(size.bytes()),
        Blocks::Leaves(runs) => {
            let stored = runs.iter().filter(|run| matches!(run, LeafRun::Stored { .. })).count();
            (stored as u64).saturating_mul(size.leaf_bytes())
        }
        Blocks::Nodes(_) => content.length,
    };
    bytes.min(content.length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_to_a_filesystem_has_to_fit_there_with_the_wal() {
        let volume = |path: &str, free, files, wal| Volume { path: path.into(), free, files, wal };
        let fits = || volume("/data", 150, 100, 50);
        let short = || volume("/wal", 149, 100, 50);
        assert!(too_small(&[fits(), volume("/fast", 0, 0, 0)]).is_none());
        assert_eq!(too_small(&[fits(), short()]).map(|volume| &*volume.path), Some(Path::new("/wal")));
        assert!(too_small(&[volume("/data", u64::MAX - 1, u64::MAX, 1)]).is_some(), "sums do not wrap");
    }

    #[test]
    fn space_that_replayed_wal_may_fill_is_told() {
        const MIB: u64 = 1 << 20;
        let note = |free: u64, files: u64, segments: u64| {
            let volume = Volume { path: "/wal".into(), free: free * MIB, files: files * MIB, wal: 64 * MIB };
            short_of_wal(&volume, segments, 16 * MIB)
        };
        assert_eq!(note(1000, 776, 10), None, "ten segments and four");
        assert!(note(999, 776, 10).is_some_and(|text| text.contains("/wal")));
        assert_eq!(note(1088, 0, 100_000), None, "no more than max_wal_size");
        assert!(note(1087, 0, 100_000).is_some());
        let elsewhere = Volume { path: "/data".into(), free: 0, files: 0, wal: 0 };
        assert_eq!(short_of_wal(&elsewhere, 10, 16 * MIB), None);
    }
}
