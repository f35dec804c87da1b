//! Where recovery stops, and what is locked there.

use walpoint_base::{Lsn, PgTimestamp, RecoveryTarget};

use super::only;
use crate::wal::find::{HeldLocks, Removal, RemovalFinder, StopFinder, Taken, TargetRule, Unlocked, find};
use crate::wal::fixtures::WalFixture;
use crate::wal::{DatabaseDrop, SharedTuple};

fn rule(target: RecoveryTarget, inclusive: bool) -> TargetRule {
    TargetRule { target, inclusive, consistent: Lsn::INVALID }
}

#[test]
fn recovery_stops_where_postgresql_does() {
    let mut fixture = WalFixture::new(17, 1);
    let a = fixture.commit(10, 1000);
    let b = fixture.commit(12, 3000);
    let c = fixture.abort(11, 2000);
    let d = fixture.commit(13, 3000);
    let point = fixture.restore_point("p", 3500);
    let again = fixture.restore_point("p", 3600);
    let e = fixture.commit_prepared(9, 4000);
    let last = fixture.filler(64);
    fixture.switch();
    let stop = |target, inclusive, from| {
        let stop = find(rule(target, inclusive), from, fixture.segments()).unwrap();
        stop.map(|stop| (stop.record.start, stop.replayed))
    };
    let time = |t| RecoveryTarget::Time(PgTimestamp(t));
    let any = Lsn::INVALID;
    assert_eq!(stop(time(1000), true, any), Some((b, false)));
    assert_eq!(stop(time(1000), false, any), Some((a, false)));
    assert_eq!(stop(time(2000), true, any), Some((b, false)), "the first past it in order, not the nearest");
    assert_eq!(stop(time(2500), true, c), Some((d, false)), "records before the start do not count");
    assert_eq!(stop(time(3000), true, any), Some((e, false)), "restore points do not count");
    assert_eq!(stop(time(4000), true, any), None);
    assert_eq!(stop(RecoveryTarget::Xid(11), true, any), Some((c, true)));
    assert_eq!(stop(RecoveryTarget::Xid(11), false, any), Some((c, false)));
    assert_eq!(stop(RecoveryTarget::Xid(9), true, any), Some((e, true)));
    assert_eq!(stop(RecoveryTarget::Xid(14), true, any), None, "equality only");
    assert_eq!(stop(RecoveryTarget::Lsn(c), true, any), Some((c, true)));
    assert_eq!(stop(RecoveryTarget::Lsn(c), false, any), Some((c, false)));
    assert_eq!(stop(RecoveryTarget::Lsn(c + 1), true, any), Some((d, true)), "the first at or after it");
    assert_eq!(
        stop(RecoveryTarget::Name("p".to_owned()), false, any),
        Some((point, true)),
        "the first of that name"
    );
    assert_eq!(stop(RecoveryTarget::Name("p".to_owned()), false, again), Some((again, true)));
    assert_eq!(stop(RecoveryTarget::Name("q".to_owned()), true, any), None);
    assert_eq!(stop(RecoveryTarget::Latest, true, any), None);

    let consistent = TargetRule { consistent: e, ..rule(RecoveryTarget::Immediate, true) };
    let found = find(consistent, any, fixture.segments()).unwrap().unwrap();
    assert_eq!((found.record.start, found.end()), (again, e));
    // A standby's backup ends where the segment does if the last record that it replayed is a switch.
    let mut switched = WalFixture::new(17, 1);
    switched.commit(10, 1000);
    let switch = switched.switch();
    let (end, segments) = (switched.position(), switched.segments());
    assert_eq!(end, switched.start() + (1 << 20));
    let consistent = TargetRule { consistent: end, ..rule(RecoveryTarget::Immediate, true) };
    let found = find(consistent, any, segments).unwrap().unwrap();
    assert_eq!((found.record.start, found.end()), (switch, end));

    let mut finder = StopFinder::new(rule(time(9999), true), any);
    let (name, content) = only(&fixture);
    assert_eq!(finder.segment(name, &content), Ok(None));
    assert_eq!(finder.progress().last_time, Some(PgTimestamp(4000)));
    assert!(finder.progress().last_record.is_some_and(|start| start > last));
    assert_eq!(finder.progress().ended, None);
}

#[test]
fn what_is_locked_at_the_stop_is_known() {
    let mut fixture = WalFixture::new(17, 1);
    fixture.lock(90, 1);
    fixture.commit(80, 100);
    fixture.lock(91, 2);
    fixture.commit_with(90, 91, 200);
    let since = fixture.lock(92, 3);
    fixture.lock(92, 3);
    fixture.lock(93, 4);
    let last_end = fixture.abort(93, 250);
    fixture.commit(92, 300);
    fixture.filler(100);
    let stop = |xid, inclusive| {
        let rule = TargetRule { target: RecoveryTarget::Xid(xid), inclusive, consistent: Lsn(0) };
        find(rule, Lsn(0), fixture.segments()).unwrap().unwrap().locks
    };
    let held = |locks: &HeldLocks| -> Vec<(u32, u32)> {
        locks.all().iter().map(|(_, lock)| (lock.xid, lock.relation)).collect()
    };
    assert_eq!(held(&stop(80, true)), [(90, 1)]);
    assert_eq!(held(&stop(90, false)), [(90, 1), (91, 2)]);
    assert_eq!(held(&stop(90, true)), [], "a transaction within it ended with it");
    let locks = stop(92, false);
    let unlocked = Some(Unlocked { lsn: since, same_transactions: since > last_end });
    assert_eq!(
        (held(&locks), locks.all()[0].0, locks.unlocked()),
        (vec![(92, 3)], Taken::At(since), unlocked)
    );
    assert_eq!(held(&stop(92, true)), []);
}

#[test]
fn a_lock_that_a_checkpoint_repeats_was_taken_before() {
    let mut fixture = WalFixture::new(17, 1);
    let repeated = fixture.repeat_lock(90, 1);
    let taken = fixture.lock(90, 2);
    fixture.repeat_lock(90, 2);
    fixture.commit(90, 100);
    let rule = TargetRule { target: RecoveryTarget::Xid(90), inclusive: false, consistent: Lsn(0) };
    let locks = find(rule, Lsn(0), fixture.segments()).unwrap().unwrap().locks.all();
    let locks: Vec<_> = locks.into_iter().map(|(taken, lock)| (taken, lock.relation)).collect();
    assert_eq!(locks, [(Taken::Before(repeated), 1), (Taken::At(taken), 2)]);
}

#[test]
fn the_last_removal_is_found_with_the_position_before_its_locks() {
    let mut fixture = WalFixture::new(17, 1);
    fixture.commit_removing(80, 50);
    let first = fixture.lock(90, 1);
    fixture.lock(91, 2);
    fixture.fill_segment_but(40);
    // Its record goes on in the next segment.
    let removed = fixture.commit_removing(90, 100);
    fixture.commit(91, 150);
    let alone = fixture.lock(92, 3);
    let again = fixture.commit_removing(92, 200);
    fixture.repeat_lock(93, 4);
    let last = fixture.commit_removing(93, 300);
    fixture.lock(94, 5);
    fixture.abort(94, 350);
    fixture.filler(100);
    let before = |before: Lsn| {
        let mut finder = RemovalFinder::new(before);
        for (name, content) in fixture.segments() {
            finder.segment(name, &content).unwrap();
        }
        finder.last()
    };
    let removal = |xid, time, lsn, unlocked: Option<Lsn>| {
        let unlocked = unlocked.map(|lsn| Unlocked { lsn, same_transactions: true });
        Some(Removal { xid, time: PgTimestamp(time), lsn, unlocked, database: None })
    };
    assert_eq!(before(removed), None, "what removes files without a lock of its own is no DROP");
    assert_eq!(before(again), removal(90, 100, removed, Some(first)), "before that, nothing was locked");
    assert_eq!(before(last), removal(92, 200, again, Some(alone)));
    assert_eq!(before(Lsn(u64::MAX)), removal(93, 300, last, None), "it was locked before what is known");
}

/// A transaction releases its locks after it has written its end, so a snapshot between the two repeats them.
#[test]
fn a_lock_that_is_repeated_behind_its_transactions_end_is_not_held() {
    let mut fixture = WalFixture::new(17, 1);
    fixture.lock(91, 1);
    fixture.commit_with(90, 91, 100);
    fixture.repeat_lock(90, 1);
    let since = fixture.lock(92, 1);
    fixture.commit_removing(92, 200);
    let rule = TargetRule { target: RecoveryTarget::Xid(92), inclusive: false, consistent: Lsn(0) };
    let locks = find(rule, Lsn(0), fixture.segments()).unwrap().unwrap().locks;
    assert_eq!(locks.all().iter().map(|(_, lock)| lock.xid).collect::<Vec<_>>(), [92]);
    assert_eq!(locks.unlocked(), Some(Unlocked { lsn: since, same_transactions: true }));
}

#[test]
fn a_database_is_lost_before_the_transaction_that_drops_it_ends() {
    let tuple = |offset| SharedTuple { relation: 1262, block: 0, offset };
    for (major, marks) in [(14, true), (17, true), (13, false)] {
        let mut fixture = WalFixture::new(major, 1);
        fixture.commit(80, 50);
        let marked = marks.then(|| fixture.change_in_place(tuple(5)));
        fixture.commit(81, 60);
        // That of another database, by VACUUM.
        fixture.change_in_place(tuple(4));
        fixture.delete_shared(90, tuple(5));
        let removed = fixture.remove_database(90, 16384);
        // ALTER DATABASE … SET TABLESPACE.
        fixture.remove_database(91, 16385);
        fixture.commit(90, 100);
        let begins = marked.unwrap_or(removed);
        let unlocked = Unlocked { lsn: begins, same_transactions: !marks };
        let at = |target| {
            let rule = TargetRule { target, inclusive: true, consistent: Lsn(0) };
            find(rule, Lsn(0), fixture.segments()).unwrap().unwrap().locks
        };
        let drop = |database| (DatabaseDrop { xid: 90, database, begins }, unlocked);
        let stops = at(RecoveryTarget::Time(PgTimestamp(70)));
        assert_eq!(stops.drops().collect::<Vec<_>>(), [drop(Some(16384))], "{major}");
        fixture.commit(92, 200);
        let mut finder = RemovalFinder::new(Lsn(u64::MAX));
        for (name, content) in fixture.segments() {
            finder.segment(name, &content).unwrap();
        }
        let removal = finder.last().unwrap();
        assert_eq!((removal.xid, removal.database, removal.unlocked), (90, Some(16384), Some(unlocked)));
    }
}
