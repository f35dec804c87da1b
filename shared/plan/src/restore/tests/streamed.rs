//! What was streamed of a segment inside which a younger timeline left its own: it is the old timeline's to its last record.

use walpoint_base::{Lsn, RecoveryTarget, SegmentName, SegmentNo};

use crate::restore::testing::forked::{mb, on, world};
use crate::restore::testing::world::*;
use crate::restore::{windows, *};
use crate::runs::Runs;

/// Where timeline 2 left timeline 1.
const FORK: Lsn = Lsn(10 * SIZE + SIZE / 2);

/// The segment of timeline 1 that it was left in.
fn open_segment() -> SegmentName {
    SegmentNo(10).name(tli(1), size())
}

/// Timeline 1's server died after timeline 2 had left it: of its segment 10 there is an incomplete copy up to `held`.
fn failed_over(held: Lsn) -> World {
    let (mut world, _) = world();
    world.files.retain(|(timeline, number)| *timeline != tli(1) || number.0 < 10);
    world.partials.insert((tli(1), SegmentNo(10)), held);
    world
}

fn facts(world: &World, streamed: bool) -> Facts {
    let mut facts = world.facts();
    facts.sliced.extend(streamed.then(open_segment));
    facts
}

fn latest(timeline: u32) -> RestoreRequest {
    on(timeline, RecoveryTarget::Latest)
}

/// A commit that PostgreSQL confirmed is there when this timeline is restored, also where a younger timeline left it before.
#[test]
fn the_old_timeline_is_recovered_to_its_last_streamed_record_behind_the_fork() {
    let held = Lsn(mb(10) + SIZE * 3 / 4);
    let world = failed_over(held);
    for use_partial in [false, true] {
        let request = RestoreRequest { use_partial, ..latest(1) };
        let plan = world.plan_with(facts(&world, true), &request).unwrap();
        let fork = plan.fork.expect("a segment that is built");
        assert_eq!((plan.until, plan.timeline, plan.wal.last().unwrap().last), (held, tli(1), SegmentNo(9)));
        assert_eq!((fork.name, fork.cut, fork.source), (open_segment(), held, ForkSource::Partial(tli(1))));
        assert_eq!((fork.left, &plan.notes[..]), (false, &[Note::LastSegmentBuilt(fork)][..]));
    }
    let windows = world.ask(|asked| {
        let mut asked = asked.clone();
        asked.sliced.insert(open_segment());
        windows::of_timeline(&asked, tli(1))
    });
    assert_eq!(windows.last().unwrap().until, held);
    let standby = RestoreRequest { standby: true, ..latest(1) };
    let standby = world.plan_with(facts(&world, true), &standby).unwrap();
    assert_eq!((standby.fork, standby.until), (None, Lsn(mb(10))), "a standby streams what comes");
    // Any other copy may be what the promoted server had received.
    let plan = world.plan_with(facts(&world, false), &latest(1)).unwrap();
    assert_eq!((plan.until, plan.fork), (Lsn(mb(10)), None));
    assert!(plan.notes.contains(&Note::MoreUntil { timeline: tli(1), cut: FORK }), "{:?}", plan.notes);
}

/// The same of what was stored of it in another way, where all of that is asked for.
#[test]
fn the_old_timeline_is_recovered_to_the_end_of_its_incomplete_copy_behind_the_fork_on_request() {
    let request = RestoreRequest { use_partial: true, ..latest(1) };
    let held = Lsn(mb(10) + SIZE * 3 / 4);
    let world = failed_over(held);
    let plan = world.plan_with(facts(&world, false), &request).unwrap();
    let fork = plan.fork.expect("a segment that is built");
    assert_eq!((plan.until, fork.cut, fork.source), (held, held, ForkSource::Partial(tli(1))));
    assert_eq!((fork.left, &plan.notes[..]), (false, &[Note::LastSegmentBuilt(fork)][..]));
    // One that ends before has nothing that the younger timeline has not.
    let world = failed_over(Lsn(mb(10) + SIZE / 4));
    let plan = world.plan_with(facts(&world, false), &request).unwrap();
    let fork = plan.fork.expect("a segment that is built");
    assert_eq!((plan.until, fork.source), (FORK, ForkSource::Segment(tli(2))));
}

#[test]
fn a_younger_timeline_reads_nothing_of_it_behind_the_fork() {
    let mut world = failed_over(Lsn(mb(10) + SIZE * 3 / 4));
    let plan = world.plan_with(facts(&world, true), &latest(2)).unwrap();
    assert_eq!((plan.until, plan.fork), (Lsn(mb(15)), None));
    // The timeline that is followed up to a stop before that segment has nothing to build either.
    let before = world.plan_with(facts(&world, true), &on(2, RecoveryTarget::Lsn(Lsn(mb(9))))).unwrap();
    assert_eq!((before.timeline, before.fork), (tli(1), None));
    // Nothing of timeline 2 is there: recovery along its path ends at the fork, and only if that is asked for.
    world.files.retain(|(timeline, _)| *timeline != tli(2));
    world.backups.pop();
    let refused = world.plan_with(facts(&world, true), &latest(2)).unwrap_err();
    assert_eq!(refused.why, Why::EndsInFork { timeline: tli(1), until: FORK });
    let asked = RestoreRequest { use_partial: true, ..latest(2) };
    let plan = world.plan_with(facts(&world, true), &asked).unwrap();
    let fork = plan.fork.expect("a segment that is built");
    assert_eq!((plan.until, fork.cut, fork.left), (FORK, FORK, true));
}

/// The promoted server had received more than the stream had stored: that is proven to be the old timeline's.
#[test]
fn what_a_younger_timeline_took_over_behind_the_last_slice_is_recovered_too() {
    let mut world = failed_over(Lsn(mb(10) + SIZE / 4));
    let plan = world.plan_with(facts(&world, true), &latest(1)).unwrap();
    let fork = plan.fork.expect("a segment that is built");
    assert_eq!((plan.until, fork.cut, fork.source), (FORK, FORK, ForkSource::Segment(tli(2))));
    world.files.remove(&(tli(2), SegmentNo(10)));
    let refused = world.plan_with(facts(&world, true), &latest(1)).unwrap_err();
    assert!(matches!(refused.why, Why::MissingWal { .. }), "{refused:?}");
    assert_eq!(
        refused.missing,
        [SegmentRange { timeline: tli(1), first: SegmentNo(10), last: SegmentNo(10) }]
    );
}

/// What cannot be read of it is not left out without a word.
#[test]
fn damaged_or_contradicting_slices_behind_the_fork_are_refused() {
    let world = failed_over(Lsn(mb(10) + SIZE * 3 / 4));
    let damaged = |streamed| {
        let mut facts = facts(&world, streamed);
        let answer = Answer::DamagedPartial(None, "a bit flipped".to_owned());
        facts.answer(Question::Partial(open_segment()), answer);
        facts
    };
    let refused = world.plan_with(damaged(true), &latest(1)).unwrap_err();
    assert!(matches!(refused.why, Why::EndsIncomplete { damaged: Some(_), .. }), "{refused:?}");
    assert!(world.plan_with(damaged(false), &latest(1)).is_ok(), "the younger timeline has what counts");
    let contradicting = |streamed| {
        let mut facts = damaged(streamed);
        facts.contradicting.insert(open_segment(), vec!["one".to_owned(), "other".to_owned()]);
        facts
    };
    let refused = world.plan_with(contradicting(true), &latest(1)).unwrap_err();
    assert!(matches!(refused.why, Why::ContradictingCopies { .. }), "{refused:?}");
    assert!(world.plan_with(contradicting(false), &latest(1)).is_ok());
    // A target before it needs none of that.
    assert!(world.plan_with(contradicting(true), &on(1, RecoveryTarget::Lsn(Lsn(mb(9))))).is_ok());
}

/// What was found without a decoder is looked up again with one.
#[test]
fn nothing_is_left_of_what_was_answered_less_exactly() {
    let mut facts = facts(&failed_over(FORK), true);
    facts.contradicting.insert(open_segment(), vec!["one".to_owned(), "other".to_owned()]);
    facts.answer(Question::Partial(open_segment()), Answer::Partial(Some(FORK)));
    facts.forget_ends();
    assert!(facts.sliced.is_empty() && facts.contradicting.is_empty());
    assert_eq!(facts.partial(open_segment()), Err(Question::Partial(open_segment())));
}

/// The last segment comes from a younger timeline's file: the old one has whole segments all the same.
#[test]
fn a_timeline_is_said_to_have_no_whole_segment_only_if_it_has_none() {
    let mut world = failed_over(FORK);
    let none_of = |timeline| Note::NoWholeSegment(tli(timeline));
    let asked = |timeline| RestoreRequest { use_partial: true, ..latest(timeline) };
    let plan = world.plan(&asked(1)).unwrap();
    assert_eq!((plan.until, plan.wal.last().unwrap().timeline), (FORK, tli(2)));
    assert!(!plan.notes.contains(&none_of(1)), "{:?}", plan.notes);
    world.files.retain(|(timeline, _)| *timeline != tli(2));
    world.backups.pop();
    let plan = world.plan(&asked(2)).unwrap();
    assert!(plan.notes.contains(&none_of(2)), "{:?}", plan.notes);
}

/// Later segments, stored whole, take nothing away from what was confirmed before them.
#[test]
fn what_was_streamed_of_a_segment_that_is_missing_serves_targets_in_it() {
    // Before the position at which a younger timeline left, and behind all such positions.
    for number in [9, 12] {
        let (mut world, _) = world();
        let (segment, held) = (SegmentNo(number), Lsn(mb(number) + SIZE / 2));
        world.files.remove(&(tli(1), segment));
        world.partials.insert((tli(1), segment), held);
        let plan = world.plan(&on(1, RecoveryTarget::Lsn(Lsn(mb(number))))).unwrap();
        let fork = plan.fork.expect("a segment that is built");
        assert_eq!((fork.name, fork.cut), (segment.name(tli(1), size()), held));
        assert_eq!((fork.source, plan.until), (ForkSource::Partial(tli(1)), held));
        assert_eq!(plan.wal.last().unwrap().last, SegmentNo(number - 1));
        let rule = StopRule::Lsn { at: Lsn(mb(number)), inclusive: true };
        let (read, stopped) = world.recover(tli(1), plan.backup.start(), Some(&rule), plan.fork.as_ref());
        assert_eq!((read.last().unwrap().start, stopped), (Lsn(mb(number)), true));
        // What lies behind it is missing still, and the last moment before that is offered.
        for target in [RecoveryTarget::Lsn(held), RecoveryTarget::Latest] {
            let refused = world.plan(&on(1, target)).unwrap_err();
            assert!(matches!(refused.why, Why::MissingWal { .. }), "{refused:?}");
            assert_eq!(refused.missing, [SegmentRange { timeline: tli(1), first: segment, last: segment }]);
            assert_eq!(refused.nearest[0].target, MomentTarget::Record(Lsn(mb(number))));
        }
        let windows = world.ask(|asked| windows::of_timeline(asked, tli(1)));
        assert!(windows.iter().any(|window| window.until == held), "{windows:?}");
    }
}

/// The whole one was stored, damaged or deleted since, and nothing follows it.
#[test]
fn what_was_streamed_of_a_segment_that_is_lost_serves_targets_in_it() {
    let (mut world, _) = world();
    let (segment, held) = (SegmentNo(12), Lsn(mb(12) + SIZE / 2));
    world.files.retain(|(timeline, number)| *timeline != tli(1) || number.0 < 12);
    world.partials.insert((tli(1), segment), held);
    let facts = || {
        let (mut facts, mut lost) = (world.facts(), Runs::default());
        lost.insert(segment, 0);
        facts.lose(tli(1), lost);
        facts
    };
    let plan = world.plan_with(facts(), &on(1, RecoveryTarget::Lsn(Lsn(mb(12))))).unwrap();
    assert_eq!((plan.fork.map(|fork| fork.cut), plan.until), (Some(held), held));
    let refused = world.plan_with(facts(), &latest(1)).unwrap_err();
    assert!(matches!(refused.why, Why::MissingWal { .. }), "{refused:?}");
    assert_eq!(refused.nearest[0].target, MomentTarget::Record(Lsn(mb(12))), "not the end of the archive");
}
