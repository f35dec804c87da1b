//! What `queue_max` and `push --skip` drop: file by file, only what exceeds the limit, only what could not be stored for the documented
//! time, and never what is stored.

use walpoint_base::dropped::{DropReason, record, record_archived};

use super::*;

/// How long the first file of a queue that is too long is tried, and each one behind it.
const FIRST: Duration = secs(8 + 16 / 8);
const NEXT: Duration = secs(1);

/// An archiver with `waiting` segments that wait, of which two may; what is asked for each.
fn bed_with(waiting: u32) -> (Bed, Vec<PushRequest>) {
    let bed = Bed::with_queue_max(Some(2 * SEGMENT));
    let requests = (1..=waiting).map(|number| bed.finish(segment(number))).collect();
    (bed, requests)
}

#[track_caller]
fn assert_lasts(took: Duration, expected: Duration) {
    let most = expected + Duration::from_millis(600);
    assert!(took >= expected && took <= most, "{took:?}, not {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_asked_again_and_dropped_only_after_the_documented_time() {
    let (bed, requests) = bed_with(3);
    bed.script().answers(Answer::Refuses(Duration::ZERO));
    let (reply, took) = bed.pushed(&requests[0]).await;
    assert_eq!(reply.outcome, PushOutcome::Dropped);
    assert_lasts(took, FIRST);
    for part in ["3 files (48.0 MiB) are waiting", "queue_max (32.0 MiB)", "403: not allowed", "HINT: "] {
        assert!(reply.message.contains(part), "{part}: {}", reply.message);
    }
    let attempts = bed.script().attempts(None);
    assert!((15..=22).contains(&attempts.len()), "{}", attempts.len());
    assert!(bed.archiver.refused.borrow().is_none(), "PostgreSQL is not held up by it");
    let told = tokio::time::timeout(Duration::ZERO, bed.archiver.queue().dropped.notified()).await;
    assert!(told.is_ok(), "the gap is looked for at once");
}

#[tokio::test(start_paused = true)]
async fn what_fails_or_hangs_is_dropped_after_the_same_time() {
    for answer in [Answer::Fails(Duration::ZERO), Answer::Fails(secs(3)), Answer::Hangs] {
        let (bed, requests) = bed_with(3);
        bed.script().answers(answer);
        let (reply, took) = bed.pushed(&requests[0]).await;
        assert_eq!(reply.outcome, PushOutcome::Dropped, "{answer:?}");
        assert_lasts(took, FIRST);
    }
}

/// Each moment at which the store may answer again, to the end of the time.
#[tokio::test(start_paused = true)]
async fn what_can_be_stored_in_time_is_not_dropped() {
    let refused = Answer::Refuses(Duration::ZERO);
    let failed = Answer::Fails(Duration::ZERO);
    for (bad, last) in [(refused, 99), (failed, 49)] {
        for tenths in (1..=last).step_by(7) {
            let (bed, requests) = bed_with(3);
            bed.script().answers(bad);
            let push = bed.push(&requests[0]);
            tokio::time::sleep(Duration::from_millis(100) * tenths).await;
            bed.script().answers(Answer::Stores(Duration::from_millis(10)));
            let reply = push.await.unwrap();
            assert_eq!(reply.outcome, PushOutcome::Stored, "{bad:?} for {tenths}00 ms: {}", reply.message);
        }
    }
    let (bed, requests) = bed_with(3);
    bed.script().answers(Answer::Stores(FIRST - Duration::from_millis(50)));
    assert_eq!(bed.pushed(&requests[0]).await.0.outcome, PushOutcome::Stored);
    assert_eq!(bed.script().attempts(None).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn files_behind_a_dropped_one_are_tried_for_a_second_until_one_is_stored() {
    let (bed, requests) = bed_with(9);
    bed.script().answers(Answer::Refuses(Duration::ZERO));
    for (n, expected) in [(0, FIRST), (1, NEXT), (2, NEXT)] {
        let (reply, took) = bed.pushed(&requests[n]).await;
        assert_eq!(reply.outcome, PushOutcome::Dropped);
        assert_lasts(took, expected);
        bed.done(segment(u32::try_from(n + 1).unwrap()));
    }
    bed.script().answers(Answer::Stores(Duration::ZERO));
    assert_eq!(bed.pushed(&requests[3]).await.0.outcome, PushOutcome::Stored);
    bed.script().answers(Answer::Refuses(Duration::ZERO));
    let (reply, took) = bed.pushed(&requests[4]).await;
    assert_eq!(reply.outcome, PushOutcome::Dropped);
    assert_lasts(took, FIRST);
}

#[tokio::test(start_paused = true)]
async fn one_hopeless_file_drops_no_other() {
    let (bed, requests) = bed_with(6);
    bed.script().answers(Answer::Stores(Duration::from_millis(900)));
    bed.script().answers_for(segment(3), Answer::Refuses(Duration::ZERO));
    let mut dropped = Vec::new();
    for (request, number) in requests.iter().zip(1..) {
        let (reply, _) = bed.pushed(request).await;
        match reply.outcome {
            PushOutcome::Dropped => dropped.push(number),
            outcome => assert_eq!(outcome, PushOutcome::Stored, "{number}"),
        }
        bed.done(segment(number));
    }
    assert_eq!(dropped, [3]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_dropped_while_no_more_waits_than_may() {
    let (bed, requests) = bed_with(2);
    bed.script().answers(Answer::Refuses(Duration::ZERO));
    let (reply, took) = bed.pushed(&requests[0]).await;
    assert_eq!((reply.outcome, took < secs(1)), (PushOutcome::Failed, true));
    bed.script().answers(Answer::Hangs);
    let (reply, took) = bed.pushed(&requests[1]).await;
    assert_eq!((reply.outcome, took >= secs(60)), (PushOutcome::Failed, true), "{took:?}");

    let unlimited = Bed::new();
    (1..=50).for_each(|number| drop(unlimited.finish(segment(number))));
    unlimited.script().answers(Answer::Refuses(Duration::ZERO));
    let request = unlimited.finish(segment(1));
    assert_eq!(unlimited.pushed(&request).await.0.outcome, PushOutcome::Failed);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_grows_or_shrinks_during_a_push_counts_as_it_is() {
    let (bed, requests) = bed_with(2);
    bed.script().answers(Answer::Hangs);
    let push = bed.push(&requests[0]);
    tokio::time::sleep(secs(20)).await;
    bed.finish(segment(3));
    tokio::time::sleep(FIRST + secs(2)).await;
    assert!(push.is_finished(), "its time began when there was too much");
    assert_eq!(push.await.unwrap().outcome, PushOutcome::Dropped);

    let (bed, requests) = bed_with(3);
    bed.script().answers(Answer::Refuses(Duration::ZERO));
    let push = bed.push(&requests[0]);
    tokio::time::sleep(secs(5)).await;
    bed.done(segment(3));
    assert_eq!(push.await.unwrap().outcome, PushOutcome::Failed, "PostgreSQL asks again");
}

#[tokio::test(start_paused = true)]
async fn files_that_are_not_postgresqls_to_drop_are_not_dropped() {
    let (bed, requests) = bed_with(9);
    bed.script().answers(Answer::Refuses(Duration::ZERO));
    let by_hand = bed.write(segment(77));
    assert_eq!(bed.pushed(&by_hand).await.0.outcome, PushOutcome::Failed);
    let identity = FileIdentity { inode: 1, ..requests[0].identity };
    let elsewhere = PushRequest { identity, ..requests[0].clone() };
    assert_eq!(bed.pushed(&elsewhere).await.0.outcome, PushOutcome::Failed);
    bed.remove(segment(1));
    assert_eq!(bed.pushed(&requests[0]).await.0.outcome, PushOutcome::Failed);
    // It is here, and unreadable: the reason makes no difference.
    bed.script().reads_nothing();
    let (reply, took) = bed.pushed(&requests[1]).await;
    assert_eq!(reply.outcome, PushOutcome::Dropped);
    assert_lasts(took, FIRST);
}

#[tokio::test(start_paused = true)]
async fn two_clients_of_one_hopeless_file_hear_the_same() {
    let (bed, requests) = bed_with(3);
    bed.script().answers(Answer::Refuses(Duration::ZERO));
    let (one, two) = tokio::join!(bed.pushed(&requests[0]), bed.pushed(&requests[0]));
    assert_eq!([one.0.outcome, two.0.outcome], [PushOutcome::Dropped; 2]);
    assert!(bed.script().attempts(None).len() <= 42, "{}", bed.script().attempts(None).len());
}

#[tokio::test(start_paused = true)]
async fn a_skipped_file_is_dropped_only_if_it_cannot_be_stored() {
    let bed = Bed::new();
    let requests: Vec<_> = (1..=4).map(|number| bed.finish(segment(number))).collect();
    let (damaged, skipped) = (DropReason::Damaged, DropReason::Skipped);
    for (number, reason) in
        [(1, damaged), (1, skipped), (2, skipped), (3, DropReason::QueueMax), (4, damaged)]
    {
        record(&bed.archiver.wal_directory(), segment(number), reason).unwrap();
    }
    bed.script().answers(Answer::Refuses(Duration::ZERO));
    let (reply, took) = bed.pushed(&requests[0]).await;
    assert_eq!((reply.outcome, took < secs(1)), (PushOutcome::Dropped, true));
    assert!(reply.message.contains("push --skip") && reply.message.contains("403"), "{}", reply.message);
    for other in [&requests[2], &requests[3]] {
        assert_eq!(bed.pushed(other).await.0.outcome, PushOutcome::Failed, "{}", other.name);
    }
    let identity = FileIdentity { inode: 1, ..requests[1].identity };
    let elsewhere = PushRequest { identity, ..requests[1].clone() };
    assert_eq!(bed.pushed(&elsewhere).await.0.outcome, PushOutcome::Failed, "another file of that name");
    bed.script().answers(Answer::Stores(Duration::ZERO));
    assert_eq!(bed.pushed(&requests[1]).await.0.outcome, PushOutcome::StoredAfterAll);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_file_that_is_stored_sound_is_answered_as_archived_after_all() {
    let bed = Bed::new();
    let requests: Vec<_> = (1..=4).map(|number| bed.finish(segment(number))).collect();
    let wal = bed.archiver.wal_directory();
    for (number, reason) in [(1, DropReason::QueueMax), (2, DropReason::Skipped), (3, DropReason::Skipped)] {
        record(&wal, segment(number), reason).unwrap();
    }
    bed.script().holds_damaged(segment(3));
    let outcome = async |n: usize| bed.pushed(&requests[n]).await.0.outcome;
    for n in [0, 1] {
        assert_eq!(outcome(n).await, PushOutcome::StoredAfterAll, "{n}");
    }
    assert_eq!(outcome(2).await, PushOutcome::Stored, "what is stored is damaged");
    assert_eq!(outcome(3).await, PushOutcome::Stored, "it was never dropped");
    record_archived(&wal, segment(1)).unwrap();
    assert_eq!(outcome(0).await, PushOutcome::Stored, "it is on record already");
}
