//! WAL that is missing where one timeline leaves another.

use walpoint_base::{SegmentNo, TimelineId, WalFileName};

use super::{Anything, run, run_with};
use crate::expire::tests::world;
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
