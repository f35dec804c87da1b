//! Two timelines of one lineage: written beside each other, or one after the other.

use walpoint_base::Lsn;

use super::*;

/// Timeline 2 leaves timeline 1 here.
const FORK: u64 = 60;

fn second() -> TimelineId {
    TimelineId::new(2).unwrap()
}

/// The world, with a timeline 2 whose transactions are those of timeline 1 at the same position, so many seconds later; and a newest
/// backup on it. Its history was stored three days ago.
async fn promoted(seconds: u64) -> (Bed, Vec<BackupId>, BackupId) {
    let (bed, ids) = world().await;
    let fork: Lsn = SegmentNo(FORK).start(size());
    let text = format!("1\t{fork}\tno recovery target specified\n");
    bed.archive.put_file(WalFileName::History(second()), text.into_bytes()).await.unwrap();
    age(&bed, "00000002.history", 72).await;
    let of = bed.archive.lineage().id;
    for number in FORK..95 {
        let transactions = header(of, second(), number + seconds).transactions;
        bed.store_header(WalHeader { transactions, ..header(of, second(), number) }).await;
    }
    let id = BackupId::new(ago(DAY), second(), SegmentNo(90).start(size()) + 40, 90);
    let writer = begin(&bed, intent(&bed, id, ago(DAY))).await;
    let newest = finish(&bed, writer, 90, DAY).await;
    (bed, ids, newest)
}

/// K3: which of two servers is in production is not known, so neither makes the other's backups expire, nor its WAL.
#[tokio::test(flavor = "multi_thread")]
async fn of_timelines_written_beside_each_other_neither_makes_the_other_expire() {
    let (bed, ids, copy) = promoted(1).await;
    let production = backup(&bed, 85, 48).await;
    for _ in 0..2 {
        let report = run(&bed, &at_once(1)).await;
        assert_eq!(finished(&bed).await, [production, copy]);
        assert_eq!(segments(&bed).await, (85..100).collect::<Vec<u64>>());
        let why = report.backups.iter().find(|told| told.id == production).unwrap().reason.clone();
        assert!(
            why.starts_with("timeline 1, which was written beside a newer one: it is the newest"),
            "{why}"
        );
    }
    assert!(!ids.contains(&production));
    // By name neither, while the server goes on.
    let refused = expire(bed.archive.repository(), &cluster(), &by_name(production)).await.unwrap_err();
    assert!(matches!(refused, RepoError::Protected { .. }), "{refused}");
}

/// K3: what a dead primary archived behind the position at which its standby was promoted came before the first transaction there, and
/// keeps nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_leaves_nothing_of_the_old_primary_that_no_rule_keeps() {
    let (bed, _, newest) = promoted(1000).await;
    for _ in 0..2 {
        run(&bed, &at_once(1)).await;
        assert_eq!((finished(&bed).await, segments(&bed).await), (vec![newest], vec![]));
    }
}
