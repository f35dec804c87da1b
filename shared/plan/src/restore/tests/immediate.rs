//! To the end of a backup: PostgreSQL stops there by itself only where it can read one more record.

use walpoint_base::{BackupId, Lsn, RecoveryTarget, SegmentNo};

use crate::restore::testing::forked::{mb, on, world};
use crate::restore::testing::world::*;
use crate::restore::*;

/// The plan to the end of a backup, along the path to a timeline.
fn planned(world: &World, timeline: u32, backup: BackupId) -> RestorePlan {
    let request = RestoreRequest { backup: Some(backup), ..on(timeline, RecoveryTarget::Immediate) };
    let plan = world.plan(&request).unwrap_or_else(|refused| panic!("{refused:?}"));
    let end = world.backups.iter().find(|known| known.id == backup).unwrap().end;
    assert_eq!((plan.until, &plan.stop), (end, &None));
    plan
}

/// The target among its settings.
fn target(plan: &RestorePlan) -> String {
    let set = |name: &str| plan.settings.iter().find(|s| s.name == name).unwrap().value.clone();
    let targets = ["recovery_target", "recovery_target_lsn", "recovery_target_time"].map(&set);
    assert_eq!(targets.iter().filter(|value| !value.is_empty()).count(), 1, "{targets:?}");
    if !set("recovery_target_lsn").is_empty() {
        assert_eq!(set("recovery_target_inclusive"), "on");
    }
    targets.concat()
}

/// A standby's backup ends with the segment where the last record that it replayed is a switch. No WAL behind it is needed, and
/// none is kept.
#[test]
fn a_backup_that_ends_with_a_segment_needs_no_record_behind_it() {
    let (mut world, _) = world();
    let (inside, whole) =
        (world.backup(1, mb(4), mb(5) + SIZE / 2, 400, 560), world.backup(1, mb(4), mb(6), 401, 600));
    assert_eq!(target(&planned(&world, 1, inside)), "immediate");
    let last = Lsn(mb(5) + SIZE / 2).to_string();
    assert_eq!(target(&planned(&world, 1, whole)), last);
    world.files.retain(|(timeline, number)| *timeline == tli(1) && (4..6).contains(&number.0));
    let plan = planned(&world, 1, whole);
    assert_eq!(target(&plan), last);
    assert_eq!(plan.wal, [SegmentRange { timeline: tli(1), first: SegmentNo(4), last: SegmentNo(5) }]);

    // A record follows in the segment, and ends in the next one.
    let records = world.records.get_mut(&tli(1)).unwrap();
    records.retain(|record| record.start != Lsn(mb(6)));
    records.iter_mut().find(|r| r.start == Lsn(mb(5) + SIZE / 2)).unwrap().end = Lsn(mb(6) + SIZE / 2);
    assert_eq!(target(&planned(&world, 1, inside)), Lsn(mb(5)).to_string());
}

/// The primary died, and the standby was promoted where its backup had ended: the segment is built, and holds no more than the
/// backup needs.
#[test]
fn a_backup_that_ends_at_a_promotion_needs_no_record_behind_it() {
    let (mut world, _) = world();
    let fork = mb(10) + SIZE / 2;
    let backup = world.backup(1, mb(9), fork, 900, 1060);
    world.files.retain(|(timeline, number)| *timeline == tli(2) || number.0 < 10);
    let plan = planned(&world, 2, backup);
    assert_eq!((plan.timeline, target(&plan)), (tli(1), Lsn(mb(10)).to_string()));
    let built = plan.fork.unwrap();
    assert_eq!((built.cut, built.source), (Lsn(fork), ForkSource::Segment(tli(2))));

    // It has only the checkpoint that the primary was shut down with, which is not replayed: the new timeline has the next record.
    let checkpoint = world.backup(1, mb(10), fork, 1000, 1060);
    let plan = planned(&world, 2, checkpoint);
    assert_eq!((plan.timeline, target(&plan), plan.fork), (tli(2), "immediate".to_owned(), None));
    assert_eq!(plan.wal, [SegmentRange { timeline: tli(2), first: SegmentNo(10), last: SegmentNo(10) }]);
}
