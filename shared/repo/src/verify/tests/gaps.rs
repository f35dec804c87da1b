//! WAL that is missing where one timeline leaves another.

use jiff::Timestamp;
use walpoint_base::{SegmentNo, TimelineId, WalFileName};
use walpoint_plan::retention::Policy;

use super::{Anything, path, run, run_with};
use crate::catalog::Catalog;
use crate::expire::outlook;
use crate::expire::tests::{backup, cluster, world};
use crate::index::tests::{Bed, header};
use crate::verify::*;

/// Timeline 2 left timeline 1, which has segments 0 to 99, in segment 105.
async fn promoted() -> (Bed, Vec<BackupId>) {
    let (bed, ids) = world().await;
    let second = TimelineId::new(2).unwrap();
    let history = b"1\t0/6980000\tno recovery target specified\n".to_vec();
    bed.archive.put_file(WalFileName::History(second), history).await.unwrap();
    for number in 105..110 {
        bed.store_header(header(bed.archive.lineage().id, second, number)).await;
    }
    (bed, ids)
}

fn gaps(report: &Verified) -> Vec<&VerifyFinding> {
    report.findings.iter().filter(|finding| finding.kind == FindingKind::Gap).collect()
}

/// K4: a primary that died before it archived all that its standby has replayed.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_before_a_fork_is_a_gap() {
    let (bed, ids) = promoted().await;
    let size = bed.archive.lineage().segment_size;
    let name = |number| SegmentNo(number).name(TimelineId::FIRST, size).to_string();
    for depth in [Depth::Light, Depth::Sample(1.0), Depth::Full] {
        let report = run(&bed, depth).await;
        let found = gaps(&report);
        assert_eq!(found.len(), 1, "{report:#?}");
        assert!(found[0].object.ends_with(&format!("{} to {} (5 segments)", name(100), name(104))));
        assert_eq!(found[0].backups, ids.iter().map(BackupId::to_string).collect::<Vec<_>>());
        let moments = found[0].moments.as_ref().unwrap();
        assert!(moments.ends_with("on timeline 1 and what goes on from it"), "{moments}");
    }
    // Without a way on, a backup has all that it needs.
    let alone = run_with(&bed, Depth::Light, Some(ids[4]), Arc::new(Anything)).await;
    assert_eq!(gaps(&alone), Vec::<&VerifyFinding>::new());
    bed.store(100..105).await;
    assert_eq!(gaps(&run(&bed, Depth::Light).await), Vec::<&VerifyFinding>::new());
}

/// K4, promise 7: what there is of a dead primary's last segment is archived, and the one before it is not. Its server had finished that.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_before_an_incomplete_copy_is_a_gap() {
    let (bed, _) = world().await;
    let size = bed.archive.lineage().segment_size;
    let name = |number| SegmentNo(number).name(TimelineId::FIRST, size);
    bed.archive.put_file(WalFileName::Partial(name(101)), vec![1; 1000]).await.unwrap();
    let report = run(&bed, Depth::Light).await;
    let found = gaps(&report);
    assert_eq!(found.len(), 1, "{report:#?}");
    assert!(found[0].object.ends_with(&name(100).to_string()), "{report:#?}");
    bed.store(100..101).await;
    assert_eq!(gaps(&run(&bed, Depth::Light).await), Vec::<&VerifyFinding>::new());
}

/// K4, promise 11: with the WAL everything is gone that shows that there is a timeline, but for the backups on it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_of_a_timeline_that_is_gone_is_a_finding() {
    let (bed, ids) = world().await;
    std::fs::remove_dir_all(path(&bed, &format!("clusters/main/{}", bed.archive.lineage().id))).unwrap();
    for depth in [Depth::Light, Depth::Sample(1.0), Depth::Full] {
        let report = run(&bed, depth).await;
        assert!(report.findings.iter().all(|finding| finding.kind == FindingKind::Missing), "{report:#?}");
        let named: Vec<&String> = report.findings.iter().flat_map(|finding| &finding.backups).collect();
        assert_eq!(named, ids.iter().map(BackupId::to_string).collect::<Vec<_>>().iter().collect::<Vec<_>>());
    }
}

/// A standby was promoted while it was backed up: the segment in which the backup ended is on the next timeline only.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_a_promotion_ended_has_its_wal() {
    let (bed, _) = promoted().await;
    bed.store(100..105).await;
    let id = backup(&bed, 104, 1).await;
    let damage = async || {
        let mut catalog = Catalog::load(bed.archive.repository(), &cluster()).await.unwrap();
        let status = catalog.status().await.unwrap();
        let backup = status.backups.into_iter().find(|backup| backup.id == id).unwrap();
        backup.details.unwrap().damage
    };
    assert_eq!(run(&bed, Depth::Light).await.findings, []);
    assert_eq!(damage().await, None);
    let second = SegmentNo(105).name(TimelineId::new(2).unwrap(), bed.archive.lineage().segment_size);
    std::fs::remove_file(path(&bed, bed.archive.paths().segment(second).as_str())).unwrap();
    let report = run(&bed, Depth::Light).await;
    assert!(report.findings.iter().any(|found| found.backups == [id.to_string()]), "{report:#?}");
    assert_eq!(damage().await.as_deref(), Some("1 damaged or missing WAL segments"));
}

/// K4: of two segments that are archived at the same time the second one is stored first.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_one_behind_it_has_overtaken_is_waited_for() {
    let (bed, _) = world().await;
    bed.store(101..102).await;
    let verified = |overtaken| {
        let bed = &bed;
        async move {
            let options = VerifyOptions { depth: Depth::Light, overtaken, ..VerifyOptions::default() };
            let repository = bed.archive.repository();
            let outlook =
                outlook(repository, &cluster(), &Policy::default(), Timestamp::now()).await.unwrap();
            verify(repository, &cluster(), &outlook, Arc::new(Anything), &options).await.unwrap()
        }
    };
    assert_eq!(gaps(&verified(Duration::from_secs(1)).await).len(), 1, "it never came");
    let arrives = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        bed.store(100..101).await;
    };
    let (report, ()) = tokio::join!(verified(Duration::from_secs(60)), arrives);
    assert_eq!(gaps(&report), Vec::<&VerifyFinding>::new());
    assert_eq!(report.findings, Vec::new(), "{report:#?}");
}
