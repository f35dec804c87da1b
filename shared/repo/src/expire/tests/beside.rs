//! Two timelines of one lineage: written beside each other, or one after the other.

use walpoint_base::facts::TransactionRange;
use walpoint_base::{Lsn, PgTimestamp};
use walpoint_storage::error::Remedy;
use walpoint_storage::layout::AbandonedUntil;

use super::*;
use crate::index::tests::commit_time;

/// Timeline 2 leaves timeline 1 here.
const FORK: u64 = 60;

fn second() -> TimelineId {
    TimelineId::new(2).unwrap()
}

/// The world, with a timeline 2 whose transactions are those of timeline 1 at the same position, so many seconds later; and a newest
/// backup on it. Its history was stored three days ago.
async fn promoted(seconds: u64) -> (Bed, Vec<BackupId>, BackupId) {
    promoted_by(0, |number| transaction(number + seconds)).await
}

/// A commit so many seconds after the first one of the world.
fn transaction(seconds: u64) -> Option<TransactionRange> {
    Some(TransactionRange::add(None, commit_time(seconds), 1))
}

/// The same with those transactions, by segment, and a fork so many bytes behind the beginning of a segment.
async fn promoted_by(
    inside: u64,
    transactions: impl Fn(u64) -> Option<TransactionRange>,
) -> (Bed, Vec<BackupId>, BackupId) {
    let (bed, ids) = world().await;
    let fork: Lsn = SegmentNo(FORK).start(size()) + inside;
    let text = format!("1\t{fork}\tno recovery target specified\n");
    bed.archive.put_file(WalFileName::History(second()), text.into_bytes()).await.unwrap();
    age(&bed, "00000002.history", 72).await;
    let of = bed.archive.lineage().id;
    for number in FORK..95 {
        let transactions = transactions(number);
        bed.store_header(WalHeader { transactions, ..header(of, second(), number) }).await;
    }
    let id = BackupId::new(ago(DAY), second(), SegmentNo(90).start(size()) + 40, 90);
    let writer = begin(&bed, intent(&bed, id, ago(DAY))).await;
    let newest = finish(&bed, writer, 90, DAY).await;
    (bed, ids, newest)
}

/// Whether timeline 1 keeps the backup from which it is recovered, and a plan on timeline 2 says that it went on.
async fn is_beside(bed: &Bed, newest: BackupId, base: BackupId) -> bool {
    let mut catalog = Catalog::load(bed.archive.repository(), &cluster()).await.unwrap();
    let went_on = catalog.lineages_mut()[0].went_on(second()).await.unwrap();
    run(bed, &at_once(1)).await;
    let beside = match finished(bed).await {
        both if both == [base, newest] => true,
        alone if alone == [newest] => false,
        other => panic!("{other:?}"),
    };
    assert_eq!(went_on.iter().any(|one| one.timeline == FIRST), beside, "{went_on:?}");
    beside
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

/// K3: the first transaction of a copy may lie in the segment of the fork, and its next one come after all that the server wrote. What
/// both have of that segment is no transaction of the copy.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_transaction_of_a_timeline_may_lie_in_the_segment_of_the_fork() {
    let range = |of: &[u64]| {
        of.iter().fold(None, |range, at| Some(TransactionRange::add(range, commit_time(*at), 1)))
    };
    // Timeline 1 has a transaction each second from 60 to 99.
    for (inside, in_it, beside) in [
        (0, range(&[61]), true),
        (0, range(&[100]), false),
        (400, range(&[61]), true),
        (400, range(&[60, 61]), true),
        // An idle copy, or one that was promoted after the server's end.
        (400, range(&[60]), false),
        (400, range(&[60, 100]), false),
        (400, None, false),
    ] {
        let transactions = |number| if number == FORK { in_it } else { transaction(number + 1000) };
        let (bed, ids, newest) = promoted_by(inside, transactions).await;
        age(&bed, "00000002.history", 0).await;
        assert_eq!(is_beside(&bed, newest, ids[4]).await, beside, "{inside} {in_it:?}");
    }
}

/// K3: a copy that was idle for long wrote its first transaction after all of the server's. That the server went on after the copy's
/// promotion stays known.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_wrote_after_a_promotion_keeps_it_in_use_whatever_the_copy_writes_later() {
    const EPOCH: u64 = 946_684_800;
    for (stored, beside) in [(70, true), (99, false), (150, false)] {
        let (bed, ids, newest) = promoted(1000).await;
        let history = path(&bed, keys(&bed).await.iter().find(|k| k.ends_with("2.history")).unwrap());
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(EPOCH + stored);
        File::open(history).unwrap().set_modified(at).unwrap();
        assert_eq!(is_beside(&bed, newest, ids[4]).await, beside, "{stored}");
    }
    // The same with a backup, and a first transaction a day after that.
    let seconds = u64::try_from(ago(DAY).as_second()).unwrap() - EPOCH;
    let (bed, _, copy) = promoted(seconds).await;
    let production = backup(&bed, 85, 48).await;
    run(&bed, &at_once(1)).await;
    assert_eq!(finished(&bed).await, [production, copy]);
}

/// K3: from the moment on that a server was promoted its base is needed, though it has archived nothing but the history of its timeline.
#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_of_which_only_the_history_is_stored_is_in_use() {
    let (bed, ids) = world().await;
    let fork = SegmentNo(40).start(size());
    let text = format!("1\t{fork}\tbefore 2026-11-21 10:00:00+00\n");
    bed.archive.put_file(WalFileName::History(second()), text.into_bytes()).await.unwrap();
    for _ in 0..2 {
        let report = run(&bed, &at_once(1)).await;
        assert_eq!(finished(&bed).await, ids[3..]);
        assert_eq!(segments(&bed).await, (35..100).collect::<Vec<u64>>());
        let why = &report.backups.iter().find(|told| told.id == ids[3]).unwrap().reason;
        assert!(why.ends_with("timeline 2, of which only the history is archived so far"), "{why}");
        let remedies: Vec<_> = report.remarks.iter().filter_map(|remark| remark.remedy.clone()).collect();
        assert_eq!(remedies, [Remedy::AbandonTimeline(second())], "what ends that is said");
    }
    let refused = expire(bed.archive.repository(), &cluster(), &by_name(ids[3])).await.unwrap_err();
    assert!(matches!(refused, RepoError::Protected { .. }), "{refused}");
}

const HOUR: i64 = 3600;

/// A timeline that leaves timeline 1. Times are seconds before the present.
#[derive(Clone, Copy)]
struct Branch {
    timeline: u32,
    /// The segment with which it begins.
    fork: u64,
    /// When its history was stored.
    began: i64,
    /// When its transactions were.
    wrote: i64,
    /// When its backup ended, if it has one.
    backup: Option<i64>,
}

/// The present, in whole seconds.
fn present() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap()
}

/// The world, with a transaction on timeline 1 every two hours, the last one 52 hours ago.
async fn world_at(now: Timestamp) -> (Bed, Vec<BackupId>) {
    let hours = |number: u64| 250 - 2 * i64::try_from(number).unwrap();
    world_of(|header| header.transactions = commit(now, hours(header.segment.0) * HOUR)).await
}

fn before(now: Timestamp, seconds: i64) -> Timestamp {
    now - SignedDuration::from_secs(seconds)
}

fn commit(now: Timestamp, seconds: i64) -> Option<TransactionRange> {
    Some(TransactionRange::add(None, PgTimestamp::from_time(before(now, seconds)), 1))
}

/// Adds a branch; its backup.
async fn add(bed: &Bed, now: Timestamp, branch: Branch) -> Option<BackupId> {
    let timeline = TimelineId::new(branch.timeline).unwrap();
    let text = format!("1\t{}\tno recovery target specified\n", SegmentNo(branch.fork).start(size()));
    bed.archive.put_file(WalFileName::History(timeline), text.into_bytes()).await.unwrap();
    let history = bed.archive.paths().file(WalFileName::History(timeline));
    let began = u64::try_from(before(now, branch.began).as_second()).unwrap();
    let began = SystemTime::UNIX_EPOCH + Duration::from_secs(began);
    File::open(path(bed, history.as_str())).unwrap().set_modified(began).unwrap();
    let of = bed.archive.lineage().id;
    for number in branch.fork..branch.fork + 5 {
        let transactions = commit(now, branch.wrote);
        bed.store_header(WalHeader { transactions, ..header(of, timeline, number) }).await;
    }
    let hours = branch.backup? / HOUR;
    let (number, random) = (branch.fork + 2, branch.timeline);
    let id = BackupId::new(ago(hours), timeline, SegmentNo(number).start(size()) + 40, random);
    let writer = begin(bed, intent(bed, id, ago(hours))).await;
    Some(finish(bed, writer, number, hours).await)
}

/// What is left after some runs that keep one backup, and the timelines that the last one named as written beside a newer one.
async fn after_expiry(bed: &Bed) -> (Vec<BackupId>, Vec<u32>) {
    let mut report = run(bed, &at_once(1)).await;
    for _ in 0..2 {
        report = run(bed, &at_once(1)).await;
    }
    let beside = report.remarks.iter().filter_map(|remark| match remark.remedy {
        Some(Remedy::AbandonTimeline(timeline)) => Some(timeline.get()),
        _ => None,
    });
    (finished(bed).await, beside.collect())
}

/// K3: a server on timeline 1 and its copy on timeline 2 archive. What shows that expires with the server's own backups: then the copy
/// stays, whatever the server goes to next, and whether the copy writes or not.
#[tokio::test(flavor = "multi_thread")]
async fn a_copys_only_backup_stays_when_its_original_fails_over_or_goes_back() {
    for (fork, wrote) in [(95, 128), (95, 45), (50, 128), (50, 45)] {
        let now = present();
        let (bed, _) = world_at(now).await;
        let production = backup(&bed, 85, 80).await;
        let copy = Branch {
            timeline: 2,
            fork: 60,
            began: 129 * HOUR,
            wrote: wrote * HOUR,
            backup: Some(127 * HOUR),
        };
        let copy = add(&bed, now, copy).await.unwrap();
        assert_eq!(after_expiry(&bed).await, (vec![copy, production], vec![1]));
        assert_eq!(segments(&bed).await.first(), Some(&85), "nothing of the fork is left");

        let newest =
            Branch { timeline: 3, fork, began: 50 * HOUR, wrote: 49 * HOUR, backup: Some(48 * HOUR) };
        let newest = add(&bed, now, newest).await.unwrap();
        if fork == 50 {
            // It may be the copy's server that went back, and the original may be quiet.
            assert_eq!(after_expiry(&bed).await, (vec![copy, production, newest], vec![1, 2]), "{wrote}");
            let until = SegmentNo(99).name(FIRST, size());
            bed.archive.abandon_timeline(AbandonedUntil { until, fork: None }, "left", "dba").await.unwrap();
        }
        assert_eq!(after_expiry(&bed).await, (vec![copy, newest], vec![2]), "{fork} {wrote}");
        assert_eq!(segments(&bed).await, [] as [u64; 0]);
        let wal = bed.archive.paths().segment(SegmentNo(63).name(second(), size()));
        assert!(keys(&bed).await.contains(wal.as_str()));
    }
}

/// K3: one server that was recovered to a moment of timeline 1, and then to another one of it, earlier or later, leaves nothing of either
/// that no rule keeps.
#[tokio::test(flavor = "multi_thread")]
async fn two_recoveries_of_one_server_leave_nothing_that_no_rule_keeps() {
    // Where the two begin, when the first one began and wrote, and whether that shows two servers.
    for (forks, began, wrote, two) in [
        ((60, 80), 50 * HOUR, 49 * HOUR, false),
        ((80, 60), 50 * HOUR, 49 * HOUR, false),
        // It wrote after the second recovery.
        ((60, 80), 50 * HOUR, 43 * HOUR, true),
        ((80, 60), 50 * HOUR, 43 * HOUR, true),
        // Timeline 1 was written last in the second in which its history was stored, and in the one before.
        ((60, 80), 52 * HOUR, 49 * HOUR, true),
        ((60, 80), 52 * HOUR - 1, 49 * HOUR, false),
    ] {
        let now = present();
        let (bed, ids) = world_at(now).await;
        let first = Branch { timeline: 2, fork: forks.0, began, wrote, backup: None };
        add(&bed, now, first).await;
        let newest = Branch {
            timeline: 3,
            fork: forks.1,
            began: 45 * HOUR,
            wrote: 44 * HOUR,
            backup: Some(40 * HOUR),
        };
        let newest = add(&bed, now, newest).await.unwrap();
        let left = after_expiry(&bed).await;
        if two {
            assert_eq!(left, (vec![ids[4], newest], vec![2]), "{forks:?} {began} {wrote}");
        } else {
            assert_eq!(left, (vec![newest], vec![]), "{forks:?} {began} {wrote}");
            assert_eq!(segments(&bed).await, [] as [u64; 0]);
        }
    }
}
