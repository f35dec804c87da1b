//! Cases written by hand: one timeline that forked twice, three backups, and what is asked of them.

use walpoint_base::target::FullXid;
use walpoint_base::{BackupId, Lsn, RecoveryTarget, SegmentNo, TargetTimeline, TimelineHistory};

use crate::restore::testing::forked::{mb, on, world};
use crate::restore::testing::world::*;
use crate::restore::{windows, *};

#[test]
fn the_newest_backup_that_ends_before_the_target_on_the_path() {
    let (world, [first, second, third]) = world();
    let time = |seconds| RecoveryTarget::Time(at(seconds));
    for (request, backup, until) in [
        (on(1, time(300)), first, Some(mb(3) + SIZE)),
        (on(1, time(860)), second, Some(mb(9) + SIZE / 2)),
        (on(1, time(859)), first, Some(mb(9) + SIZE / 2)),
        (on(2, time(11_150)), second, Some(mb(12) + SIZE / 2)),
        (on(2, time(11_160)), third, Some(mb(12) + SIZE / 2)),
        // Timeline 3 forked before the second backup ended.
        (on(3, time(20_700)), first, Some(mb(8))),
        (on(1, RecoveryTarget::Lsn(Lsn(mb(8) + SIZE / 2))), second, Some(mb(9))),
        (on(1, RecoveryTarget::Lsn(Lsn(mb(8)))), first, Some(mb(8) + SIZE / 2)),
        (on(1, RecoveryTarget::Xid(1020)), second, Some(mb(10) + SIZE / 2)),
        (on(2, RecoveryTarget::Xid(2022)), second, Some(mb(11) + SIZE / 2)),
        (on(2, RecoveryTarget::Xid(2023)), third, Some(mb(12))),
        (on(1, RecoveryTarget::Name("early".into())), first, Some(mb(3) + SIZE / 2)),
        (on(1, RecoveryTarget::Name("late".into())), second, Some(mb(17))),
        (on(1, RecoveryTarget::Immediate), second, Some(mb(8) + SIZE / 2)),
        (on(1, RecoveryTarget::Latest), second, Some(mb(21))),
        (on(2, RecoveryTarget::Latest), third, Some(mb(15))),
        (on(3, RecoveryTarget::Latest), first, Some(mb(10))),
        // The newest timeline is 3, and only the first backup lies on its path.
        (RestoreRequest::default(), first, Some(mb(10))),
        (
            RestoreRequest { timeline: TargetTimeline::Current, ..RestoreRequest::default() },
            third,
            Some(mb(15)),
        ),
        (RestoreRequest { backup: Some(second), ..RestoreRequest::default() }, second, Some(mb(15))),
        (
            RestoreRequest {
                timeline: TargetTimeline::Current,
                backup: Some(second),
                ..RestoreRequest::default()
            },
            second,
            Some(mb(21)),
        ),
    ] {
        let plan = world.plan(&request).unwrap_or_else(|e| panic!("{request:?}: {e:?}"));
        assert_eq!((plan.backup.id, Some(plan.until.0)), (backup, until), "{request:?}");
    }
}

/// PostgreSQL stops at the first transaction that ended after the target. A backup that holds one begins behind it, however early
/// it ended by a clock that was set back.
#[test]
fn a_backup_behind_a_later_commit_time_serves_no_time_before_that() {
    let (mut world, [first, second, _]) = world();
    let time = |seconds| on(1, RecoveryTarget::Time(at(seconds)));
    // A commit before the second backup, from a clock that was ahead.
    let record = world.records.get_mut(&tli(1)).unwrap().iter_mut().find(|r| r.start == Lsn(mb(5))).unwrap();
    record.kind = TestRecordKind::Commit { time: at(950), xid: 77 };
    let planned = |request: &RestoreRequest| {
        let plan = world.plan(request).unwrap();
        (plan.backup.id, plan.stop.unwrap().record.0, plan.notes.len())
    };
    assert_eq!(planned(&time(900)), (first, mb(5), 1));
    assert_eq!(planned(&time(949)), (first, mb(5), 1));
    assert_eq!(planned(&RestoreRequest { inclusive: false, ..time(950) }), (first, mb(5), 1));
    assert_eq!(planned(&time(950)), (second, mb(9) + SIZE / 2 + SIZE / 2, 0), "that commit is replayed");
    let named = RestoreRequest { backup: Some(second), ..time(900) };
    assert_eq!(planned(&named), (second, mb(9) + SIZE / 2, 1), "a person chose it");
    // No older one is left.
    let mut alone = world.clone();
    alone.backups.retain(|backup| backup.id != first);
    let refusal = alone.plan(&time(900)).unwrap_err();
    assert_eq!(refusal.why, Why::ClockSetBack { backup: second, time: at(950) });
    assert_eq!(refusal.hints, [Hint::SecondTime(second)]);
    // What is not there is not known, unless the backup notes it.
    alone.files.remove(&(tli(1), SegmentNo(5)));
    assert_eq!(alone.plan(&time(900)).unwrap().backup.id, second);
    alone.backups[0].latest_commit = Some(at(950));
    let refusal = alone.plan(&time(900)).unwrap_err();
    assert_eq!(refusal.why, Why::ClockSetBack { backup: second, time: at(950) });
    assert_eq!(refusal.nearest[0].time, Some(at(950)), "from then on it serves");
    assert!(alone.plan(&RestoreRequest { inclusive: false, ..time(950) }).is_err());
    assert_eq!(alone.plan(&time(950)).unwrap().backup.id, second);
    alone.backups[0].latest_commit = Some(at(600));
    assert_eq!(alone.plan(&time(900)).unwrap().backup.id, second, "what is right is not refused");
}

#[test]
fn what_lies_exactly_at_the_target_is_in_or_out() {
    let (world, _) = world();
    let stop = |inclusive, target| {
        world.plan(&RestoreRequest { inclusive, ..on(1, target) }).unwrap().stop.unwrap().record.0
    };
    assert_eq!(stop(true, RecoveryTarget::Time(at(900))), mb(9) + SIZE / 2, "the commit at 900 is replayed");
    assert_eq!(stop(false, RecoveryTarget::Time(at(900))), mb(9), "recovery stops before it");
    for inclusive in [true, false] {
        assert_eq!(
            stop(inclusive, RecoveryTarget::Lsn(Lsn(mb(9)))),
            mb(9),
            "the record is needed either way"
        );
        let plan = world.plan(&RestoreRequest { inclusive, ..on(1, RecoveryTarget::Xid(1018)) }).unwrap();
        let value = if inclusive { "on" } else { "off" };
        assert!(plan.settings.iter().any(|s| s.name == "recovery_target_inclusive" && s.value == value));
    }
}

#[test]
fn wal_is_searched_under_the_names_of_the_path() {
    let (world, [_, second, _]) = world();
    let plan = world.plan(&RestoreRequest { backup: Some(second), ..on(2, RecoveryTarget::Latest) }).unwrap();
    let names: Vec<String> = plan.wal.iter().map(|r| r.describe(size())).collect();
    assert_eq!(
        names,
        [
            "000000010000000000000008 to 000000010000000000000009 (2 segments)",
            "00000002000000000000000A to 00000002000000000000000E (5 segments)",
        ],
        "the segment of the fork is the child's"
    );
    assert_eq!(plan.histories, [tli(2)]);
    assert_eq!(plan.estimate.wal_segments, 7);
}

#[test]
fn the_parents_file_does_when_recovery_stops_before_the_fork() {
    let (mut world, [_, second, _]) = world();
    world.files.remove(&(tli(2), SegmentNo(10)));
    let before = on(2, RecoveryTarget::Lsn(Lsn(mb(10))));
    let plan = world.plan(&before).unwrap();
    assert_eq!(
        (plan.backup.id, plan.timeline),
        (second, tli(1)),
        "recovery must not ask for timeline 2's file"
    );
    let after = world.plan(&on(2, RecoveryTarget::Lsn(Lsn(mb(10) + SIZE / 2)))).unwrap_err();
    assert_eq!(after.missing, [SegmentRange { timeline: tli(2), first: SegmentNo(10), last: SegmentNo(10) }]);
}

#[test]
fn a_timeline_without_wal_ends_where_it_was_forked() {
    let (mut world, _) = world();
    world.files.retain(|(timeline, _)| *timeline != tli(2));
    world.records.insert(tli(2), Vec::new());
    world.backups.pop();
    let plan = world.plan(&on(2, RecoveryTarget::Latest)).unwrap();
    let set = |name: &str| plan.settings.iter().find(|s| s.name == name).unwrap().value.clone();
    assert_eq!(set("recovery_target_lsn"), Lsn(mb(10) + SIZE / 2).to_string());
    assert_eq!(
        (set("recovery_target_inclusive"), set("recovery_target_timeline")),
        ("off".into(), "1".into())
    );
    assert_eq!(plan.notes.len(), 1);
}

/// A promoted server died before it archived a segment, and of the parent's last one there is only a `.partial`, which
/// recovery never reads: it would ask for the segment for ever.
#[test]
fn wal_up_to_the_fork_that_is_not_there_is_missing() {
    let (mut world, _) = world();
    world.files.retain(|(timeline, number)| *timeline != tli(2) && *number < SegmentNo(10));
    world.records.insert(tli(2), Vec::new());
    world.backups.pop();
    let refusal = world.plan(&on(2, RecoveryTarget::Latest)).unwrap_err();
    let fork =
        SegmentRange { timeline: refusal.missing[0].timeline, first: SegmentNo(10), last: SegmentNo(10) };
    assert_eq!(refusal.missing, [fork]);
    let nearest = refusal.nearest.first().unwrap();
    assert!(world.plan(&on(1, RecoveryTarget::Lsn(nearest.lsn))).is_ok(), "{refusal:?}");
}

#[test]
fn refusals_say_what_is_missing_and_what_is_near() {
    let (mut world, [first, second, _]) = world();
    world.files.remove(&(tli(1), SegmentNo(5)));
    world.files.remove(&(tli(1), SegmentNo(6)));
    let gap = [SegmentRange { timeline: tli(1), first: SegmentNo(5), last: SegmentNo(6) }];

    let refusal = world.plan(&on(1, RecoveryTarget::Time(at(700)))).unwrap_err();
    assert_eq!(refusal.why, Why::MissingWal { backup: first });
    assert_eq!(refusal.missing, gap);
    let near: Vec<_> = refusal.nearest.iter().map(|m| (m.earlier, m.lsn.0)).collect();
    assert_eq!(near, [(true, mb(4) + SIZE / 2), (false, mb(8) + SIZE / 2)]);
    let targets: Vec<_> = refusal.nearest.iter().map(|m| (m.timeline, m.target)).collect();
    let record = MomentTarget::Record(Lsn(mb(4) + SIZE / 2));
    assert_eq!(targets, [(tli(1), record), (tli(1), MomentTarget::Consistent(second))]);
    // What is offered can be had.
    let offered = on(1, RecoveryTarget::Lsn(refusal.nearest[0].lsn));
    let plan = world.plan(&offered).unwrap();
    assert_eq!(plan.backup.id, first);
    // Reading ahead, recovery would ask for what is missing.
    let careful = |plan: &RestorePlan| plan.settings.iter().any(|s| s.line() == "recovery_prefetch = 'off'");
    assert!(careful(&plan));
    let after_the_gap = RestoreRequest { backup: Some(second), ..on(1, RecoveryTarget::Immediate) };
    let plan = world.plan(&after_the_gap).unwrap();
    assert_eq!(plan.backup.id, second);
    assert!(careful(&plan), "what lies behind a target is not needed");
    assert!(!careful(&world.plan(&on(1, RecoveryTarget::Latest)).unwrap()));

    let refusal =
        world.plan(&RestoreRequest { backup: Some(first), ..on(1, RecoveryTarget::Latest) }).unwrap_err();
    assert_eq!((refusal.why, refusal.missing), (Why::MissingWal { backup: first }, gap.to_vec()));
}

#[test]
fn a_time_after_the_last_commit_is_refused_with_the_last_moment() {
    let (world, [_, second, _]) = world();
    let refusal = world.plan(&on(1, RecoveryTarget::Time(at(3000)))).unwrap_err();
    let last = at(41 * 50);
    let until = Lsn(mb(21));
    assert_eq!(refusal.why, Why::AfterEnd { backup: second, until, latest: Some(last) });
    assert_eq!((refusal.nearest[0].time, refusal.nearest[0].target), (Some(last), MomentTarget::End));
    // Exactly at the last commit nothing later proves that the time is over.
    assert!(world.plan(&on(1, RecoveryTarget::Time(last))).is_err());
    assert!(world.plan(&RestoreRequest { inclusive: false, ..on(1, RecoveryTarget::Time(last)) }).is_ok());
}

#[test]
fn refusals_of_wrong_requests() {
    let (world, [first, _, third]) = world();
    let why = |request: &RestoreRequest| world.plan(request).unwrap_err().why;
    let unknown: BackupId = "20261121T101500Z-00000001-0000000002000028-9f3a0c11".parse().unwrap();
    let with = |backup, request| RestoreRequest { backup: Some(backup), ..request };
    assert_eq!(why(&on(9, RecoveryTarget::Latest)), Why::UnknownTimeline(tli(9)));
    assert_eq!(why(&with(unknown, RestoreRequest::default())), Why::UnknownBackup(unknown));
    assert_eq!(why(&with(third, on(1, RecoveryTarget::Latest))), Why::BackupNotOnPath(third, tli(1)));
    assert_eq!(why(&with(first, on(1, RecoveryTarget::Time(at(210))))), Why::BackupTooLate(first));
    assert_eq!(why(&on(1, RecoveryTarget::Time(at(210)))), Why::BeforeFirstBackup { timeline: tli(1) });
    assert_eq!(why(&on(1, RecoveryTarget::Xid(77))), Why::XidNotFound);
    let elsewhere = world.plan(&on(3, RecoveryTarget::Name("late".into()))).unwrap_err();
    assert_eq!(elsewhere.why, Why::NameNotFound);
    assert!(
        matches!(elsewhere.hints[0], Hint::PointOn { timeline, .. } if timeline == tli(1)),
        "{elsewhere:?}"
    );
    let mistyped = world.plan(&on(3, RecoveryTarget::Name("leat".into()))).unwrap_err();
    assert_eq!(mistyped.why, Why::NameNotFound);
    assert_eq!(mistyped.hints[0], Hint::KnownPoints(vec!["late".to_owned(), "early".to_owned()]));
    let branch = world.plan(&on(3, RecoveryTarget::Time(at(30_000)))).unwrap_err();
    assert!(!branch.hints.iter().any(|h| matches!(h, Hint::OtherTimeline(_))));
    let abandoned = world.plan(&on(3, RecoveryTarget::Lsn(Lsn(mb(12))))).unwrap_err();
    assert!(abandoned.hints.contains(&Hint::OtherTimeline(tli(2))), "{:?}", abandoned.hints);

    let empty = World { backups: Vec::new(), ..world };
    assert_eq!(empty.plan(&RestoreRequest::default()).unwrap_err().why, Why::NoBackup);
}

/// Whether a backup leads to a timeline whose history cannot be read is not known: another backup is not all that helps.
#[test]
fn without_a_backup_the_histories_that_cannot_be_read_are_named() {
    let world = World { backups: Vec::new(), ..world().0 };
    let mut facts = world.facts();
    facts.doubts.insert(tli(2), Doubt::Damaged("damaged".to_owned()));
    let refused = world.plan_with(facts, &RestoreRequest::default()).unwrap_err();
    assert_eq!(refused.why, Why::NoBackup);
    assert_eq!(refused.hints, [Hint::ArchiveHistory(tli(2)), Hint::TakeBackup]);
}

/// PostgreSQL stops at the first restore point of a name that it replays. Which one that is hangs on the backup, so it is not
/// left to chance which one is meant.
#[test]
fn restore_points_of_one_name_are_told_apart() {
    let (mut world, [first, second, third]) = world();
    let mut name = |half: u64| {
        let lsn = Lsn(half * SIZE / 2);
        let records = world.records.get_mut(&tli(1)).unwrap();
        records.iter_mut().find(|r| r.start == lsn).unwrap().kind = TestRecordKind::Point("late".to_owned());
        lsn
    };
    // One before the first backup ends, which no recovery can stop at; then one more besides that of segment 16.
    let (unreachable, other, late) = (name(4), name(24), Lsn(33 * SIZE / 2));
    let request = on(1, RecoveryTarget::Name("late".into()));
    let refusal = world.plan(&request).unwrap_err();
    let Why::SeveralPoints(points) = &refusal.why else { panic!("{refusal:?}") };
    assert_eq!(points.iter().map(|p| p.lsn).collect::<Vec<_>>(), [other, late]);
    assert!(refusal.nearest.is_empty() && refusal.hints.len() == 2, "{refusal:?}");
    for (hint, lsn) in refusal.hints.iter().zip([other, late]) {
        assert!(
            matches!(hint, Hint::PointAt(point) if (point.timeline, point.lsn) == (tli(1), lsn)),
            "{hint:?}"
        );
        let stop = world.plan(&on(1, RecoveryTarget::Lsn(lsn))).unwrap().stop.unwrap();
        assert_eq!(stop.record, lsn, "what is advised recovers to exactly there");
    }
    // A branch that left before both has none within reach, and says where they are.
    let elsewhere = world.plan(&on(3, RecoveryTarget::Name("late".into()))).unwrap_err();
    let on_first = |hint: &Hint| matches!(hint, Hint::PointOn { timeline, .. } if *timeline == tli(1));
    assert!(elsewhere.hints.iter().any(on_first), "{:?}", elsewhere.hints);

    // Only one is within reach, but recovery comes by the other one first, before it is consistent: by position it works.
    let records = world.records.get_mut(&tli(1)).unwrap();
    records.iter_mut().find(|r| r.start == other).unwrap().kind = TestRecordKind::Other;
    let plan = world.plan(&RestoreRequest { backup: Some(first), ..request }).unwrap();
    assert_eq!((plan.backup.id, plan.stop.as_ref().unwrap().record), (first, late));
    assert_eq!(plan.target, RecoveryTarget::Lsn(late), "{unreachable} comes first");
    assert_eq!(plan.notes, [Note::PointByPosition { name: "late".to_owned(), lsn: late }]);
    assert!(plan.settings.iter().any(|s| s.name == "recovery_target_name" && s.value.is_empty()));
    assert!(second < third);
}

/// What is kept of a name that is no UTF-8 leads nowhere: PostgreSQL compares the bytes, and they are not known any more.
#[test]
fn a_restore_point_whose_name_is_no_utf8_is_reached_by_its_position() {
    let (mut world, _) = world();
    let late = Lsn(33 * SIZE / 2);
    let name = "vor-\u{FFFD}nderung".to_owned();
    let records = world.records.get_mut(&tli(1)).unwrap();
    records.iter_mut().find(|r| r.start == late).unwrap().kind = TestRecordKind::Point(name.clone());
    let refusal = world.plan(&on(1, RecoveryTarget::Name(name))).unwrap_err();
    let Why::NameNotUtf8(points) = &refusal.why else { panic!("{refusal:?}") };
    assert_eq!(points.iter().map(|point| point.lsn).collect::<Vec<_>>(), [late]);
    assert!(matches!(&refusal.hints[..], [Hint::PointAt(point)] if point.lsn == late), "{refusal:?}");
    assert_eq!(world.plan(&on(1, RecoveryTarget::Lsn(late))).unwrap().stop.unwrap().record, late);
    let mistyped = world.plan(&on(1, RecoveryTarget::Name("leat".into()))).unwrap_err();
    assert_eq!(mistyped.hints[0], Hint::KnownPoints(vec!["early".to_owned()]), "none that cannot be given");
}

/// Ids of transactions repeat. With the epoch the right one is found, or none.
#[test]
fn a_transaction_of_another_epoch_is_not_taken_for_the_one_asked_for() {
    let (mut world, [first, second, _]) = world();
    // The transaction of segment 4 occurs again in segment 12, an epoch later.
    let records = world.records.get_mut(&tli(1)).unwrap();
    let again = records.iter_mut().find(|r| r.start == Lsn(mb(12))).unwrap();
    again.kind = TestRecordKind::Commit { time: at(1200), xid: 1008 };
    world.wraps.push(Lsn(mb(10)));
    let found = |target| {
        let plan = world.plan(&on(1, target)).unwrap();
        (plan.backup.id, plan.stop.unwrap().record.0, plan.notes.len())
    };
    assert_eq!(found(RecoveryTarget::FullXid(1008)), (first, mb(4), 0));
    assert_eq!(found(RecoveryTarget::FullXid(1 << 32 | 1008)), (second, mb(12), 0));
    assert_eq!(found(RecoveryTarget::Xid(1008)), (second, mb(12), 1), "the newest, and the note says so");
    let refusal = world.plan(&on(1, RecoveryTarget::FullXid(2 << 32 | 1008))).unwrap_err();
    let known = vec![FullXid(1008), FullXid(1 << 32 | 1008)];
    assert_eq!(refusal.why, Why::XidOfOtherEpoch(known));
    assert_eq!(world.plan(&on(1, RecoveryTarget::FullXid(1 << 32 | 77))).unwrap_err().why, Why::XidNotFound);
    let settings = world.plan(&on(1, RecoveryTarget::FullXid(1 << 32 | 1008))).unwrap().settings;
    assert!(settings.iter().any(|s| s.line() == "recovery_target_xid = '1008'"), "{settings:?}");
}

/// A target would stop a standby. So where its timeline has no segment yet, it gets the parent's up to the fork, and no target.
#[test]
fn a_standby_waits_at_a_fork_behind_which_there_is_nothing_yet() {
    let (mut world, [first, ..]) = world();
    world.files.retain(|(timeline, _)| *timeline != tli(3));
    let latest = RestoreRequest { backup: Some(first), ..RestoreRequest::default() };
    let settings = |plan: &RestorePlan| plan.settings.iter().map(RecoverySetting::line).collect::<Vec<_>>();
    let fork = Lsn(mb(6) + SIZE / 2);
    let alone = world.plan(&latest).unwrap();
    assert!(settings(&alone).contains(&format!("recovery_target_lsn = '{fork}'")), "{alone:?}");
    let segment = SegmentNo(6).name(tli(1), size());
    assert_eq!(alone.unfollowed, Some(Unfollowed { timeline: tli(3), segment, from: fork }));
    assert_eq!((alone.timeline, alone.leaf, alone.end()), (tli(1), tli(3), fork));
    let standby = world.plan(&RestoreRequest { standby: true, ..latest }).unwrap();
    let lines = settings(&standby);
    assert!(lines.contains(&"recovery_target_timeline = 'latest'".to_owned()), "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line.ends_with("= ''")).count(), 5, "{lines:?}");
    assert_eq!((standby.timeline, standby.until), (tli(3), fork));
    let name = SegmentNo(6).name(tli(1), size());
    assert_eq!(
        standby.fork,
        Some(ForkSegment { name, cut: fork, source: ForkSource::Segment(tli(1)), left: true })
    );
    assert_eq!(standby.wal.last().unwrap().names(size()).1, name);
}

/// The WAL is all there, and PostgreSQL ends recovery where the server was set to `wal_level = minimal`.
#[test]
fn no_plan_passes_a_change_to_minimal_wal() {
    let (mut world, [first, second, _]) = world();
    let at_minimal = Lsn(mb(5));
    let records = world.records.get_mut(&tli(1)).unwrap();
    records.iter_mut().find(|r| r.start == at_minimal).unwrap().kind = TestRecordKind::Minimal;
    let refused = |request: &RestoreRequest| world.plan(request).unwrap_err();
    let time = refused(&on(1, RecoveryTarget::Time(at(700))));
    assert_eq!(time.why, Why::MinimalWal { backup: first, at: at_minimal });
    let near: Vec<_> = time.nearest.iter().map(|m| (m.earlier, m.lsn.0)).collect();
    assert_eq!(near, [(true, mb(4) + SIZE / 2), (false, mb(8) + SIZE / 2)]);
    assert_eq!(time.nearest[0].target, MomentTarget::Record(Lsn(mb(4) + SIZE / 2)));
    assert!(time.hints.contains(&Hint::BackupAfterMinimal), "{:?}", time.hints);
    // What is offered can be had; the record itself cannot.
    assert!(world.plan(&on(1, RecoveryTarget::Lsn(time.nearest[0].lsn))).is_ok());
    assert!(world.plan(&RestoreRequest { backup: Some(second), ..on(1, RecoveryTarget::Immediate) }).is_ok());
    for target in [RecoveryTarget::Lsn(at_minimal), RecoveryTarget::Lsn(Lsn(mb(7)))] {
        assert!(matches!(refused(&on(1, target)).why, Why::MinimalWal { .. }));
    }
    let latest = refused(&RestoreRequest { backup: Some(first), ..on(1, RecoveryTarget::Latest) });
    assert!(matches!(latest.why, Why::MinimalWal { .. }));
    assert_eq!(latest.nearest[0].lsn, time.nearest[0].lsn);
    let xid = refused(&RestoreRequest { backup: Some(first), ..on(1, RecoveryTarget::Xid(1013)) });
    assert_eq!(xid.why, Why::XidNotFound);
    assert!(xid.hints.contains(&Hint::MaybeBehindMinimal(at_minimal)), "{:?}", xid.hints);
    // From a backup after it everything is as ever.
    assert_eq!(world.plan(&on(1, RecoveryTarget::Latest)).unwrap().backup.id, second);
    let windows = world.ask(|facts| windows::of_timeline(facts, tli(1)));
    let windows: Vec<_> = windows.iter().map(|w| (w.from.0, w.until.0)).collect();
    assert_eq!(windows, [(mb(2) + SIZE / 2, mb(5)), (mb(8) + SIZE / 2, mb(21))]);
}

/// Timeline 1 went on for a while after timeline 3 left it: a time from then is reached on 3 where it begins, and on 1.
#[test]
fn a_moment_that_an_abandoned_branch_has_too_is_noted() {
    let (world, _) = world();
    let notes = |seconds, timeline| {
        let request = RestoreRequest {
            target: RecoveryTarget::Time(at(seconds)),
            timeline,
            ..RestoreRequest::default()
        };
        let plan = world.plan(&request).unwrap();
        (plan.timeline, plan.notes)
    };
    let (timeline, told) = notes(900, TargetTimeline::Latest);
    assert_eq!((timeline, told), (tli(3), vec![Note::AlsoOn(tli(1))]));
    assert_eq!(notes(400, TargetTimeline::Latest).1, [], "before they parted");
    assert_eq!(notes(900, TargetTimeline::Id(tli(1))).1, [], "asked for");
}

#[test]
fn commit_times_that_go_backwards_are_met_in_lsn_order() {
    let (mut world, [first, ..]) = world();
    // One commit carries a time far ahead: recovery to any earlier time stops there, not at later, earlier ones.
    let records = world.records.get_mut(&tli(1)).unwrap();
    let ahead = records.iter_mut().find(|r| r.start == Lsn(mb(5))).unwrap();
    ahead.kind = TestRecordKind::Commit { time: at(700), xid: 1010 };
    let plan = world.plan(&on(1, RecoveryTarget::Time(at(650)))).unwrap();
    assert_eq!((plan.backup.id, plan.stop.unwrap().record), (first, Lsn(mb(5))));
}

#[test]
fn windows_and_gaps_of_each_timeline() {
    let (mut world, [first, second, _]) = world();
    world.files.remove(&(tli(1), SegmentNo(13)));
    world.files.remove(&(tli(2), SegmentNo(10)));
    let windows = |id| {
        let found = world.ask(|facts| windows::of_timeline(facts, tli(id)));
        found.iter().map(|w| (w.from.0, w.until.0, w.backups, w.continued)).collect::<Vec<_>>()
    };
    let gaps = |id| world.ask(|facts| windows::gaps(facts, tli(id)));
    assert_eq!(windows(1), [(mb(2) + SIZE / 2, mb(13), 2, false)], "nothing after the gap has a backup");
    assert_eq!(gaps(1), [SegmentRange { timeline: tli(1), first: SegmentNo(13), last: SegmentNo(13) }]);
    assert_eq!(windows(2), [(mb(11) + SIZE / 2, mb(15), 1, false)], "the fork's segment is missing");
    assert_eq!(gaps(2), [SegmentRange { timeline: tli(2), first: SegmentNo(10), last: SegmentNo(10) }]);
    assert_eq!(windows(3), [(mb(6) + SIZE / 2, mb(10), 1, true)], "carried on from timeline 1");
    assert_eq!(gaps(3), []);
    let whole = world.ask(|facts| windows::on_path(facts, tli(1)));
    assert_eq!((whole[0].oldest, whole[0].from_time), (first, Some(at(260))));
    assert!(second > first);
}

/// Timeline 1 ends before the fork of what goes on from it: what is missing up to there belongs to neither of their files.
#[test]
fn what_is_missing_before_a_fork_is_a_gap_of_the_parent() {
    let (mut world, _) = world();
    let range =
        |id, first, last| SegmentRange { timeline: tli(id), first: SegmentNo(first), last: SegmentNo(last) };
    let gaps = |world: &World, id| world.ask(|facts| windows::gaps(facts, tli(id)));
    world.files.retain(|(timeline, number)| *timeline != tli(1) || number.0 < 8);
    assert_eq!(gaps(&world, 1), [range(1, 8, 9)]);
    assert_eq!((gaps(&world, 2), gaps(&world, 3)), (vec![], vec![]));
    // Nothing is stored behind the fork, or only what a person says was abandoned: it is the end of the archive.
    let behind = world.files.clone();
    world.files.retain(|(timeline, _)| *timeline != tli(2));
    assert_eq!(gaps(&world, 1), []);
    world.partials.insert((tli(1), SegmentNo(10)), Lsn(mb(10)));
    assert_eq!(gaps(&world, 1), [range(1, 8, 9)], "but for an incomplete copy of the segment of the fork");
    world.partials.clear();
    let abandoned = || Abandoned { settled: at(0).to_time(), verdict: String::new() };
    world.files = behind;
    let without = world.ask(|facts| {
        let mut facts = facts.clone();
        facts.abandoned.insert(tli(2), abandoned());
        windows::gaps(&facts, tli(1))
    });
    assert_eq!(without, []);
    // One that has no segment of its own left, between two that have: all of it is missing.
    world.graph.add(TimelineHistory::parse(tli(4), b"1\t0/A80000\tx\n2\t0/D80000\tx\n").unwrap());
    world.files.retain(|(timeline, _)| *timeline == tli(1));
    world.files.insert((tli(4), SegmentNo(13)));
    assert_eq!((gaps(&world, 1), gaps(&world, 2)), (vec![range(1, 8, 9)], vec![range(2, 10, 12)]));
    // Archiving began behind both forks.
    world.files.retain(|(timeline, _)| *timeline == tli(4));
    assert_eq!((gaps(&world, 1), gaps(&world, 2), gaps(&world, 4)), (vec![], vec![], vec![]));
}

/// A backup that was taken on a standby ends in the segment in which a younger timeline left its own, and of that segment the timeline
/// has a `.partial` file: no WAL is missing, and an older backup leads to the end.
#[test]
fn a_backup_that_ends_in_the_segment_of_a_fork_leaves_its_timeline_to_an_older_one() {
    let (mut world, [_, second, _]) = world();
    let fork = Lsn(mb(10) + SIZE / 2);
    world.files.retain(|(timeline, number)| *timeline != tli(1) || number.0 < 10);
    world.partials.insert((tli(1), SegmentNo(10)), fork);
    world.backup(1, mb(9), mb(10) + SIZE / 4, 900, 1_010);
    let latest = |use_partial| RestoreRequest { use_partial, ..on(1, RecoveryTarget::Latest) };
    let plan = world.plan(&latest(false)).unwrap();
    assert_eq!((plan.backup.id, plan.until), (second, Lsn(mb(10))));
    assert_eq!(world.plan(&latest(true)).unwrap().until, fork);
    // Without anything of that segment some of what the backup needs is missing.
    world.files.remove(&(tli(2), SegmentNo(10)));
    world.partials.clear();
    let refused = world.plan(&latest(false)).unwrap_err();
    assert!(matches!(refused.why, Why::MissingWal { .. }), "{refused:?}");
}

/// Promise 11: a backup with damaged pages is planned only where no sound one serves, or if it was asked for.
#[test]
fn a_damaged_backup_is_planned_only_where_no_sound_one_serves() {
    let (mut world, [first, second, third]) = world();
    let before = world.plan(&on(1, RecoveryTarget::Latest)).unwrap();
    world.backups[1].damaged_pages = 2;
    for target in [
        RecoveryTarget::Latest,
        RecoveryTarget::Time(at(900)),
        RecoveryTarget::Lsn(Lsn(mb(9))),
        RecoveryTarget::Xid(1020),
        RecoveryTarget::Name("late".into()),
    ] {
        let plan = world.plan(&on(1, target.clone())).unwrap();
        assert_eq!(plan.backup.id, first, "{target:?}");
        let passed_over = Note::NewerDamaged { backup: second, damage: DamageNote::Pages(2) };
        assert!(plan.notes.contains(&passed_over), "{target:?}: {:?}", plan.notes);
        let asked = world.plan(&RestoreRequest { backup: Some(second), ..on(1, target) }).unwrap();
        assert_eq!(asked.backup.id, second);
    }
    assert_eq!(world.plan(&on(1, RecoveryTarget::Latest)).unwrap().until, before.until);
    (world.backups[1].damaged_pages, world.backups[1].damaged_packs) = (0, 3);
    let plan = world.plan(&on(1, RecoveryTarget::Latest)).unwrap();
    let passed_over = Note::NewerDamaged { backup: second, damage: DamageNote::Packs(3) };
    assert!(plan.backup.id == first && plan.notes.contains(&passed_over), "{plan:?}");
    assert_eq!(world.plan(&on(2, RecoveryTarget::Latest)).unwrap().backup.id, third);
    // WAL between the two is missing.
    world.files.remove(&(tli(1), SegmentNo(5)));
    for target in [RecoveryTarget::Latest, RecoveryTarget::Time(at(900)), RecoveryTarget::Xid(1020)] {
        assert_eq!(world.plan(&on(1, target)).unwrap().backup.id, second);
    }
    let early = world.plan(&on(1, RecoveryTarget::Time(at(300)))).unwrap();
    assert_eq!(
        (early.backup.id, early.notes.iter().any(|note| matches!(note, Note::NewerDamaged { .. }))),
        (first, false)
    );
}
