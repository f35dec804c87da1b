//! What was removed before the target, and what leads to the moment before.

use walpoint_base::{Lsn, RecoveryTarget};

use crate::restore::testing::forked::{mb, on, world};
use crate::restore::testing::world::*;
use crate::restore::*;

fn removal(segment: u64) -> Removal {
    let lsn = Lsn(mb(segment));
    let unlocked = Some(UnlockedPosition { lsn: Lsn(lsn.0 - 64), same_transactions: true });
    Removal { xid: 900, time: at(i64::try_from(segment).unwrap() * 100), lsn, unlocked, database: None }
}

/// The removal that a plan notes, or a refusal hints at, first of all.
fn told(verdict: &Verdict) -> Option<RemovedBefore> {
    match verdict {
        Ok(plan) => match plan.notes.first() {
            Some(Note::RemovedBefore(removed)) => Some(*removed),
            _ => None,
        },
        Err(refusal) => match refusal.hints.first() {
            Some(Hint::RemovedBefore(removed)) => Some(*removed),
            _ => None,
        },
    }
}

#[test]
fn a_removal_is_told_if_recovery_can_stop_before_it() {
    let (mut world, [first, ..]) = world();
    let time = |seconds| RecoveryTarget::Time(at(seconds));
    let told_of =
        |world: &World, request: &RestoreRequest| told(&world.plan(request)).map(|told| told.removal.lsn);
    for (segment, timeline, target, expected) in [
        // Backups end at 2.5 and 8.5.
        (5, 1, time(700), true),
        (5, 1, time(1500), false),
        (12, 1, time(1500), true),
        (12, 1, time(1100), false),
        // Timeline 2 left timeline 1 before.
        (12, 2, time(11_400), false),
        (5, 1, RecoveryTarget::Lsn(Lsn(mb(6))), true),
        (5, 1, RecoveryTarget::Xid(1013), true),
        (5, 1, RecoveryTarget::Immediate, false),
        (12, 1, RecoveryTarget::Latest, false),
        // The archive ends before it.
        (12, 1, time(99_999), true),
        (5, 1, time(99_999), false),
        (12, 1, RecoveryTarget::Lsn(Lsn(mb(90))), false),
    ] {
        world.removals = vec![(tli(1), removal(segment))];
        let found = told_of(&world, &on(timeline, target.clone()));
        assert_eq!(found, expected.then(|| Lsn(mb(segment))), "{segment} {timeline} {target}");
    }
    world.removals = vec![(tli(1), removal(5)), (tli(1), removal(4))];
    let named = RestoreRequest { backup: Some(first), ..on(1, time(1500)) };
    assert_eq!(told_of(&world, &named), Some(Lsn(mb(5))), "the last one");
}

#[test]
fn a_position_without_locks_is_offered_where_recovery_pauses_and_can_stop() {
    let (mut world, _) = world();
    world.removals = vec![(tli(1), removal(5))];
    let request = on(1, RecoveryTarget::Time(at(700)));
    let pauses = RestoreRequest { action: TargetAction::Pause, ..request.clone() };
    let promotes = RestoreRequest { action: TargetAction::Promote, ..request };
    let offered = |world: &World, request| {
        let told = told(&world.plan(request)).unwrap();
        (told.pauses, told.removal.unlocked.map(|unlocked| unlocked.lsn))
    };
    assert_eq!(offered(&world, &pauses), (true, Some(Lsn(mb(5) - 64))));
    assert_eq!(offered(&world, &promotes), (false, None));
    // It lies before the end of the backup.
    let early = UnlockedPosition { lsn: Lsn(mb(2)), same_transactions: true };
    world.removals = vec![(tli(1), Removal { unlocked: Some(early), ..removal(5) })];
    assert_eq!(offered(&world, &pauses), (true, None));
}
