//! Forks in an archive of segments that are no WAL: each seed is a server.

use super::super::fixtures::{Bed, switch_in};
use super::super::pace::IN_A_ROW;
use super::*;

/// A timeline whose first segment does not continue its parent's WAL, and the next segment of it.
async fn forked() -> (Bed, Vec<u8>, SegmentName) {
    let bed = Bed::new().await;
    let history = switch_in("000000010000000000000003", 0x800);
    bed.put_history(2, history.clone()).await;
    for (name, seed) in
        [("000000010000000000000002", 1), ("000000010000000000000003", 1), ("000000020000000000000003", 2)]
    {
        bed.put(name, seed).await;
    }
    (bed, history, "000000020000000000000004".parse().unwrap())
}

/// What a process finds that knows nothing of the forks yet.
async fn judged(bed: &Bed, name: SegmentName) -> Result<bool, TargetError> {
    let path = bed.pgdata().join("pg_wal").join(name.to_string());
    let target = bed.target(true);
    let side = ForkSide { target: &target, archive: &bed.archive, name, path: &path, chain: None };
    side.judge().await
}

#[tokio::test]
async fn a_settled_timeline_is_disputed_by_no_later_process() {
    let (bed, history, next) = forked().await;
    for _ in 0..2 {
        let told = judged(&bed, next).await.unwrap_err();
        assert!(matches!(told, TargetError::SplitBrain(_)), "{told}");
    }
    assert_eq!(disputed(&bed.archive).await.unwrap().len(), 1);
    let hash = bed.archive.repository().sealer().content_hash(&history);
    bed.archive.settle_history(next.timeline, hash, "the other one was a test", "dba").await.unwrap();
    assert!(!judged(&bed, next).await.unwrap());
    assert!(disputed(&bed.archive).await.unwrap().is_empty());
}

/// A timeline that begins between two segments, the first of which is that of a server, and the second that of another or the same.
async fn forked_between(first: u8, second: u8) -> Bed {
    let bed = Bed::new().await;
    bed.put_history(2, switch_in("000000010000000000000003", 0)).await;
    bed.put("000000010000000000000002", first).await;
    bed.put("000000020000000000000003", second).await;
    bed
}

#[tokio::test]
async fn a_timeline_that_begins_between_two_segments_has_to_continue_its_parents_last_one() {
    let [productions, copys] =
        ["000000010000000000000003", "000000020000000000000004"].map(|name| name.parse().unwrap());
    for name in [productions, copys] {
        let bed = forked_between(1, 1).await;
        assert!(!judged(&bed, name).await.unwrap(), "{name}");
        assert!(disputed(&bed.archive).await.unwrap().is_empty(), "{name}");
    }
    let bed = forked_between(1, 2).await;
    assert!(judged(&bed, productions).await.unwrap());
    assert_eq!(disputed(&bed.archive).await.unwrap().len(), 1);
    let told = judged(&forked_between(1, 2).await, copys).await.unwrap_err();
    assert!(matches!(told, TargetError::SplitBrain(_)), "{told}");
}

/// A timeline that comes from another server's timeline 2 was stored before this one's history of timeline 2.
#[tokio::test]
async fn nothing_is_stored_of_a_timeline_whose_stored_history_contradicts_a_stored_ancestors() {
    let bed = Bed::new().await;
    let three = [switch_in("000000010000000000000004", 0x800), switch_in("000000020000000000000006", 0x800)];
    let content = three.concat();
    bed.put_history(3, content.clone()).await;
    let [theirs, ours] =
        ["000000030000000000000007", "000000020000000000000004"].map(|name| name.parse().unwrap());
    assert!(!judged(&bed, theirs).await.unwrap());
    bed.put_history(2, switch_in("000000010000000000000003", 0x800)).await;
    let told = judged(&bed, theirs).await.unwrap_err().to_string();
    assert!(told.starts_with("split brain: timeline 3") && told.contains("settle --timeline 3"), "{told}");
    assert!(!judged(&bed, ours).await.unwrap());
    assert_eq!(disputed(&bed.archive).await.unwrap().len(), 1);
    assert!(is_disputed(&bed.archive, theirs.timeline, &content).await.unwrap().is_some());

    let four = [content.clone(), switch_in("000000030000000000000008", 0x800)].concat();
    let history = TimelineHistory::parse(TimelineId::new(4).unwrap(), &four).unwrap();
    let refused = async || contradiction::refuse(&bed.archive, &history, &four, None).await.unwrap();
    assert!(refused().await.is_some());
    let hash = bed.archive.repository().sealer().content_hash(&content);
    assert!(bed.archive.count_history(theirs.timeline, hash, "it is production", "dba").await.unwrap());
    assert!(!judged(&bed, theirs).await.unwrap());
    assert!(disputed(&bed.archive).await.unwrap().is_empty());
    assert!(is_disputed(&bed.archive, theirs.timeline, &content).await.unwrap().is_none());
    assert_eq!(refused().await, None, "production was promoted once more");
}

/// The last segment before hours without any came in a torrent.
#[tokio::test]
async fn a_fork_that_was_stored_during_a_torrent_is_compared_behind_it() {
    let bed = Bed::new().await;
    let (target, wal) = (bed.target(true), bed.pgdata().join("pg_wal"));
    let name: SegmentName = "000000010000000000000003".parse().unwrap();
    let path = wal.join(name.to_string());
    let judge = async || {
        ForkSide { target: &target, archive: &bed.archive, name, path: &path, chain: None }.judge().await
    };
    for _ in 0..IN_A_ROW {
        assert!(!judge().await.unwrap());
    }
    bed.put_history(2, switch_in("000000010000000000000003", 0)).await;
    bed.put("000000010000000000000002", 1).await;
    bed.put("000000020000000000000003", 2).await;
    assert!(!judge().await.unwrap() && target.has_forks_left(), "no look is due");
    assert!(compare_left(&target, &bed.archive, &wal).await.unwrap());
    assert_eq!(disputed(&bed.archive).await.unwrap().len(), 1);
    assert!(!target.has_forks_left());
}
