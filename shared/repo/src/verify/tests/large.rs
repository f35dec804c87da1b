//! Segments that are stored in parts, and those that end early.

use walpoint_base::{BackupId, SegmentNo, SegmentSize, TimelineId};
use walpoint_storage::layout::{Key, WalEntry};

use super::{flip, keys, path, run};
use crate::backup::{Attributes, BlockSize, WriteOptions};
use crate::expire::tests::{ago, cluster, intent, publish};
use crate::index::tests::Bed;
use crate::verify::wal::LONGEST;
use crate::verify::*;
use crate::wal::tests::{facts_of_size, segment};
use crate::wal::{WalArchive, WalFlags};

const NAME: &str = "000000010000000000000001";

fn size() -> SegmentSize {
    SegmentSize::new(64 << 20).unwrap()
}

async fn bed() -> Bed {
    let made = crate::wal::tests::bed(size(), None).await;
    Bed { archive: made.archive, dir: made.dir }
}

async fn store(archive: &WalArchive, whole: bool) {
    let facts = facts_of_size(NAME, whole, size());
    archive.put_segment(&facts, segment(size(), 1), WalFlags::default()).await.unwrap();
}

/// K4: what no backup needs is read with its parts, and so is what ends early.
#[tokio::test(flavor = "multi_thread")]
async fn segments_that_end_early_and_parts_that_nothing_needs_are_read() {
    let bed = bed().await;
    store(&bed.archive, false).await;
    store(&bed.archive, true).await;
    let paths = bed.archive.paths();
    let entry = |key: &str| paths.parse(&key.parse::<Key>().unwrap());
    let all = keys(&bed).await;
    let ended = all.iter().find(|key| matches!(entry(key.as_str()), Some(WalEntry::Ended(..)))).unwrap();
    let parts: Vec<&String> =
        all.iter().filter(|key| matches!(entry(key.as_str()), Some(WalEntry::Part(_)))).collect();
    assert_eq!(parts.len(), 8, "{all:?}");
    // Sorted, the two files' parts lie one behind the other.
    for damaged in [ended, parts[0], parts[7]] {
        let named = |report: &Verified| {
            report.findings.iter().any(|finding| {
                finding.kind == FindingKind::Damaged && finding.what.contains(damaged.as_str())
            })
        };
        assert!(!named(&run(&bed, Depth::Full).await), "{damaged}");
        flip(&path(&bed, damaged));
        let report = run(&bed, Depth::Full).await;
        assert!(named(&report), "{damaged}: {report:#?}");
        flip(&path(&bed, damaged));
    }
}

/// A backup that needs the segment.
async fn publish_over(bed: &Bed) {
    let (repository, hours) = (bed.archive.repository(), 5);
    let id = BackupId::new(ago(hours), TimelineId::FIRST, SegmentNo(1).start(size()) + 40, 1);
    let writer = Backups::of(repository, &cluster())
        .begin(intent(bed, id, ago(hours)), BlockSize::new(8192).unwrap(), &WriteOptions::default())
        .await
        .unwrap();
    let mut stream = writer.stream();
    tokio::task::spawn_blocking(move || {
        let attributes = Attributes { mode: 0o700, uid: 26, gid: 26, mtime: 0 };
        stream.directory(TablePath::data("").unwrap(), attributes).unwrap();
        stream.finish().unwrap();
    })
    .await
    .unwrap();
    publish(bed, writer, hours).await;
}

/// Promise 7: a part that is gone or cut is found without being read, where a backup needs the segment, and announced for plans.
#[tokio::test(flavor = "multi_thread")]
async fn a_light_verification_looks_for_the_parts_of_what_is_needed() {
    let bed = bed().await;
    store(&bed.archive, true).await;
    publish_over(&bed).await;
    let is_part = |key: &str| {
        matches!(bed.archive.paths().parse(&key.parse::<Key>().unwrap()), Some(WalEntry::Part(_)))
    };
    let part = keys(&bed).await.into_iter().rfind(|key| is_part(key.as_str())).unwrap();
    let whole = std::fs::read(path(&bed, &part)).unwrap();
    let report = run(&bed, Depth::Light).await;
    assert!(report.findings.iter().all(|finding| !finding.what.contains(".parts/")), "{report:#?}");
    assert_eq!(report.segment_count, 1);
    for cut in [Some(whole.len() - 1), None] {
        std::fs::remove_file(path(&bed, &part)).unwrap();
        if let Some(cut) = cut {
            let mut file = std::fs::File::create_new(path(&bed, &part)).unwrap();
            std::io::Write::write_all(&mut file, &whole[..cut]).unwrap();
        }
        for depth in [Depth::Light, Depth::Sample(0.01)] {
            let report = run(&bed, depth).await;
            let found = report.findings.iter().any(|finding| finding.what.contains(part.as_str()));
            assert!(found, "{cut:?} {depth:?}: {report:#?}");
        }
    }
    let backups = Backups::of(bed.archive.repository(), &cluster());
    let read = backups.announcements().await.unwrap().read;
    let named: Vec<_> = read.iter().flat_map(|one| &one.announcement.wal).map(|wal| wal.first).collect();
    assert!(named.contains(&1), "{read:#?}");
}

/// Refuses what is longer than what is to be in memory as a whole.
struct Short;

impl WalCheck for Short {
    fn segment(&mut self, _: SegmentName, content: &[u8]) -> Result<(), String> {
        match content.len() as u64 > LONGEST {
            true => Err("it is in memory as a whole".to_owned()),
            false => Ok(()),
        }
    }
}

/// A segment may have a gigabyte, and several are read at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn a_sample_reads_a_large_segment_in_parts() {
    let bed = bed().await;
    store(&bed.archive, true).await;
    let name: SegmentName = NAME.parse().unwrap();
    let key = bed.archive.paths().segment(name);
    let read = async || sample::segment(&bed.archive, name, &key, Box::new(Short)).await;
    assert_eq!(read().await.unwrap(), size().bytes());
    let is_part = |key: &str| {
        matches!(bed.archive.paths().parse(&key.parse::<Key>().unwrap()), Some(WalEntry::Part(_)))
    };
    let part = keys(&bed).await.into_iter().find(|key| is_part(key.as_str())).unwrap();
    flip(&path(&bed, &part));
    let error = read().await.unwrap_err();
    assert!(matches!(error, walpoint_storage::RepoError::Corrupt { .. }), "{error}");
}
