//! Lineages that were split off from another one and have no backup of their own.

use walpoint_base::Lsn;
use walpoint_storage::error::RepoError;

use super::*;
use crate::Lineage;
use crate::index::fixtures::header_only;
use crate::index::tests::like;
use crate::lineage::{LineageFork, ParentLineage};
use crate::wal::WalArchive;

/// Timeline 2 begins here.
const SECOND: u64 = 60;

/// The copy left its original here, on timeline 2.
const FORK: u64 = 70;

fn tli(id: u32) -> TimelineId {
    TimelineId::new(id).unwrap()
}

fn start(segment: u64) -> Lsn {
    SegmentNo(segment).start(size())
}

async fn store_history(archive: &WalArchive, timeline: u32, at: u64) {
    let text = format!("1\t{}\tno recovery target specified\n", start(at));
    archive.put_file(WalFileName::History(tli(timeline)), text.into_bytes()).await.unwrap();
}

/// Without transactions, so that no timeline is written beside another one.
async fn store_wal(archive: &WalArchive, timeline: u32, segments: std::ops::Range<u64>) {
    for number in segments {
        let mut header = header(archive.lineage().id, tli(timeline), number);
        header.transactions = None;
        header_only(archive, &header).await.unwrap();
    }
}

/// Five backups on timeline 1 that lead to timeline 2, on which a copy was split off; and the newest one on timeline 1 behind that,
/// which leads to timeline 3, the newest. The copy has no backup.
async fn split_world() -> (Bed, Vec<BackupId>, Lineage) {
    let (bed, mut ids) = world().await;
    for (timeline, at) in [(2, SECOND), (3, 90)] {
        store_history(&bed.archive, timeline, at).await;
        store_wal(&bed.archive, timeline, at..at + 10).await;
    }
    ids.push(backup(&bed, 85, DAY).await);
    let own = bed.archive.lineage();
    let fork = LineageFork { timeline: tli(2), lsn: start(FORK) };
    let parent = ParentLineage { lineage: own.id, fork: Some(fork), began: None, life: None };
    let repository = bed.archive.repository();
    let copy = repository.split_lineage(&cluster(), like(own), Some(parent), 0).await.unwrap();
    store_history(&repository.wal(&copy), 2, SECOND).await;
    store_wal(&repository.wal(&copy), 2, FORK..FORK + 5).await;
    (bed, ids, copy)
}

fn history(bed: &Bed, archive: &WalArchive) -> PathBuf {
    path(bed, archive.paths().file(WalFileName::History(tli(2))).as_str())
}

fn hurt(file: &std::path::Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::remove_file(file).unwrap();
    std::io::Write::write_all(&mut File::create_new(file).unwrap(), &bytes).unwrap();
}

async fn is_shared(bed: &Bed, copy: &Lineage, id: BackupId) -> bool {
    let archive = bed.archive.repository().wal_to_read(copy).await.unwrap();
    archive.shares(bed.archive.lineage().id, FIRST, id.start() + size().bytes())
}

/// K3, promise 11: what the parent's history says, the lineage's own one says as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_lineages_own_history_shows_what_it_inherits_where_its_parents_cannot_be_read() {
    for damage in ["none", "damaged", "missing"] {
        let (bed, ids, copy) = split_world().await;
        let file = history(&bed, &bed.archive);
        match damage {
            "damaged" => hurt(&file),
            "missing" => std::fs::remove_file(&file).unwrap(),
            _ => {}
        }
        assert!(is_shared(&bed, &copy, ids[4]).await, "{damage}");
        assert!(!is_shared(&bed, &copy, ids[5]).await, "{damage}: it came after timeline 2 began");
        for _ in 0..2 {
            run(&bed, &at_once(1)).await;
            assert_eq!(finished(&bed).await, [ids[4], ids[5]], "{damage}");
            let left = segments(&bed).await;
            assert!(left.ends_with(&(45..100).collect::<Vec<u64>>()), "{damage}: {left:?}");
        }
    }
}

/// K3, promise 11: while no history shows what a lineage inherits, nothing goes that it may need.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_that_a_lineage_may_inherit_while_no_history_shows_it() {
    let (bed, ids, copy) = split_world().await;
    hurt(&history(&bed, &bed.archive));
    let own = bed.archive.repository().wal(&copy);
    // It speaks of a timeline 2 that began behind the fork.
    std::fs::remove_file(history(&bed, &own)).unwrap();
    store_history(&own, 2, FORK + 2).await;
    assert!(!is_shared(&bed, &copy, ids[4]).await);
    for _ in 0..2 {
        let report = run(&bed, &at_once(1)).await;
        assert_eq!(finished(&bed).await, ids);
        assert_eq!(segments(&bed).await.len(), 100);
        let why = &report.backups[0].reason;
        assert!(why.starts_with(&format!("it is unknown whether lineage {}", copy.id)), "{why}");
    }
    let refused = expire(bed.archive.repository(), &cluster(), &by_name(ids[4])).await.unwrap_err();
    let RepoError::Protected { obstacles, .. } = refused else { panic!("{refused}") };
    assert!(obstacles.iter().any(|one| one.what.starts_with("it is unknown whether")), "{obstacles:?}");
}
