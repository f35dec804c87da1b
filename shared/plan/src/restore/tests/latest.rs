//! The latest moment by cases written by hand: which timeline it is on, and when it is not known.

use walpoint_base::{Lsn, RecoveryTarget, SegmentNo, TargetTimeline};

use crate::graph::TimelineGraph;
use crate::restore::testing::forked::{mb, on, world};
use crate::restore::testing::world::*;
use crate::restore::*;

#[test]
fn latest_is_refused_while_it_is_not_known_where_a_younger_timeline_comes_from() {
    let (world, [first, ..]) = world();
    let damaged = || Doubt::Damaged("torn".to_owned());
    // Timeline 3 is the newest that a backup leads to.
    for (timeline, doubt, refused) in [
        (4, Doubt::Missing, true),
        (4, damaged(), true),
        (4, Doubt::Refused, true),
        (3, damaged(), true),
        (3, Doubt::Refused, true),
        (3, Doubt::Missing, false),
        (2, Doubt::Refused, false),
        (2, damaged(), false),
    ] {
        let plan = |request: &RestoreRequest| {
            let mut facts = world.facts();
            facts.doubts.insert(tli(timeline), doubt.clone());
            world.plan_with(facts, request)
        };
        let time = RecoveryTarget::Time(at(300));
        for request in [
            RestoreRequest::default(),
            RestoreRequest { target: time.clone(), ..RestoreRequest::default() },
            RestoreRequest { backup: Some(first), ..RestoreRequest::default() },
        ] {
            match plan(&request) {
                Err(refusal) if timeline == 3 && doubt == Doubt::Missing => {
                    // PostgreSQL would not start; the target lies on timeline 1.
                    assert_ne!(request.target, time, "{refusal:?}");
                    assert_eq!(refusal.why, Why::NoHistory(tli(3)));
                }
                Err(refusal) if refused => {
                    assert!(
                        matches!(refusal.why, Why::DoubtfulTimeline { timeline: of, .. } if of == tli(timeline))
                    );
                    let instead = refusal.hints.iter().find_map(|hint| match hint {
                        Hint::Without { instead, .. } => Some(*instead),
                        _ => None,
                    });
                    // Without its own history, there is no way to timeline 3 either; of two histories either may be meant.
                    let expected = match (timeline, &doubt) {
                        (3, Doubt::Refused) => None,
                        (3, _) => Some(tli(2)),
                        _ => Some(tli(3)),
                    };
                    assert_eq!(instead, expected, "{refusal:?}");
                }
                verdict => assert!(verdict.is_ok() && !refused, "{timeline} {doubt:?}: {verdict:?}"),
            }
        }
        let by_number = plan(&on(3, RecoveryTarget::Latest));
        let readable = timeline != 3 || doubt == Doubt::Refused;
        assert_eq!(by_number.is_ok(), readable, "asked for by number: {by_number:?}");
        assert!(plan(&on(1, time)).is_ok(), "asked for by number");
    }
}

fn timeline_setting(plan: &RestorePlan) -> &str {
    let setting = plan.settings.iter().find(|setting| setting.name == "recovery_target_timeline");
    &setting.unwrap().value
}

/// PostgreSQL reads the history of the timeline of a backup's checkpoint only for its ancestors. What begins and ends on that timeline
/// is recovered without one; what begins before it, or is to become a standby, is not, and nothing that would be refused is offered.
#[test]
fn a_backup_of_a_timeline_whose_history_is_lost_is_recovered_on_that_timeline() {
    let (mut world, [first, _, third]) = world();
    let damaged = |timeline| (tli(timeline), Doubt::Damaged("torn".to_owned()));
    let standby = RestoreRequest { standby: true, ..on(2, RecoveryTarget::Latest) };
    let before = RestoreRequest { backup: Some(first), ..on(2, RecoveryTarget::Latest) };
    for is_damaged in [true, false] {
        let plan = |request: &RestoreRequest| {
            let mut facts = world.facts();
            match is_damaged {
                true => facts.doubts.extend([damaged(2)]),
                false => facts.without_history.extend([tli(2)]),
            }
            world.plan_with(facts, request)
        };
        let by_backup = RestoreRequest { backup: Some(third), ..RestoreRequest::default() };
        let current = RestoreRequest { timeline: TargetTimeline::Current, ..RestoreRequest::default() };
        for (request, until) in [
            (on(2, RecoveryTarget::Latest), mb(15)),
            (by_backup, mb(15)),
            (current, mb(15)),
            (on(2, RecoveryTarget::Immediate), mb(11) + SIZE / 2),
            (on(2, RecoveryTarget::Time(at(11_160))), mb(12) + SIZE / 2),
        ] {
            let plan = plan(&request).unwrap_or_else(|refusal| panic!("{request:?}: {refusal:?}"));
            assert_eq!((plan.backup.id, plan.until), (third, Lsn(until)), "{request:?}");
            assert_eq!(timeline_setting(&plan), "current", "{request:?}");
            assert!(plan.notes.contains(&Note::HistoryLost(tli(2))), "{:?}", plan.notes);
            assert_eq!((plan.histories, plan.without), (vec![], vec![tli(2)]), "{request:?}");
        }
        // Another timeline has its history, and this one's WAL before the fork is the parent's.
        assert_eq!(timeline_setting(&plan(&on(3, RecoveryTarget::Latest)).unwrap()), "3");
        assert_eq!(timeline_setting(&plan(&on(2, RecoveryTarget::Time(at(900)))).unwrap()), "1");

        let without = Hint::Without { timeline: tli(2), instead: tli(1) };
        for (request, hint) in [(&standby, Hint::WithoutStandby), (&before, without)] {
            let refusal = plan(request).unwrap_err();
            assert_eq!(refusal.why, Why::NoHistory(tli(2)), "{request:?}");
            assert!(refusal.hints.contains(&hint), "{request:?}: {:?}", refusal.hints);
            assert_eq!(refusal.nearest[0].target, MomentTarget::End, "{request:?}: {refusal:?}");
        }
    }
    // Without a backup of its own, its end is not offered as a way to itself.
    world.backups.pop();
    let mut facts = world.facts();
    facts.doubts.extend([damaged(2)]);
    let refusal = world.plan_with(facts, &on(2, RecoveryTarget::Latest)).unwrap_err();
    assert_eq!((refusal.why, refusal.nearest), (Why::NoHistory(tli(2)), vec![]));
}

/// The youngest timeline is the latest wherever it comes from.
#[test]
fn latest_is_the_youngest_timeline_also_where_its_own_history_cannot_be_read() {
    let (mut world, [.., third]) = world();
    // Nothing says where timeline 2 comes from.
    world.graph = TimelineGraph::default();
    world.graph.add_known(tli(1));
    world.graph.add_known(tli(2));
    world.files.retain(|(timeline, _)| *timeline != tli(3));
    for doubt in [Doubt::Missing, Doubt::Damaged("torn".to_owned())] {
        let plan = |more: &[(u32, Doubt)]| {
            let mut facts = world.facts();
            facts.doubts.insert(tli(2), doubt.clone());
            facts.doubts.extend(more.iter().map(|(timeline, doubt)| (tli(*timeline), doubt.clone())));
            world.plan_with(facts, &RestoreRequest::default())
        };
        let latest = plan(&[]).unwrap();
        assert_eq!(
            (latest.backup.id, latest.until, timeline_setting(&latest)),
            (third, Lsn(mb(15)), "current")
        );
        let refusal = plan(&[(3, Doubt::Missing)]).unwrap_err();
        assert!(
            matches!(refusal.why, Why::DoubtfulTimeline { timeline, .. } if timeline == tli(3)),
            "{refusal:?}"
        );
    }
}

/// A standby asks for one number after the other, and never comes to one behind a number that it does not find.
#[test]
fn a_standby_is_told_the_number_of_a_timeline_that_it_would_not_find() {
    let (world, [first, ..]) = world();
    let standby = RestoreRequest { standby: true, backup: Some(first), ..RestoreRequest::default() };
    for (doubt, expected, told) in
        [(None, "latest", false), (Some(Doubt::Damaged("torn".to_owned())), "3", true)]
    {
        let mut facts = world.facts();
        facts.doubts.extend(doubt.map(|doubt| (tli(2), doubt)));
        let plan = world.plan_with(facts, &standby).unwrap();
        assert_eq!((plan.timeline, plan.backup.id.timeline()), (tli(3), tli(1)));
        let line = format!("recovery_target_timeline = '{expected}'");
        assert!(plan.settings.iter().any(|setting| setting.line() == line), "{:?}", plan.settings);
        assert_eq!(plan.notes.contains(&Note::StandbyStays(tli(3))), told, "{:?}", plan.notes);
    }
}

/// Where the WAL of a timeline without a history is proven to go on from the path, what lies before that is the same on both.
#[test]
fn a_target_before_a_timeline_whose_history_is_lost_is_reached() {
    let (mut world, [first, ..]) = world();
    for (begin, reached) in [(Some(mb(5)), true), (Some(mb(1)), false), (None, false)] {
        world.begins = begin.map(|at| (tli(4), Lsn(at))).into_iter().collect();
        for target in [RecoveryTarget::Time(at(300)), RecoveryTarget::Lsn(Lsn(mb(3)))] {
            let request = RestoreRequest { target, ..RestoreRequest::default() };
            for request in [RestoreRequest { backup: Some(first), ..request.clone() }, request] {
                let mut facts = world.facts();
                facts.doubts.insert(tli(4), Doubt::Missing);
                let verdict = world.plan_with(facts, &request);
                assert_eq!(verdict.is_ok(), reached, "{request:?}: {verdict:?}");
                let mut facts = world.facts();
                facts.doubts.extend([(tli(4), Doubt::Missing), (tli(5), Doubt::Refused)]);
                assert!(world.plan_with(facts, &request).is_err(), "{request:?}");
            }
        }
        let mut facts = world.facts();
        facts.doubts.insert(tli(4), Doubt::Missing);
        assert!(world.plan_with(facts, &RestoreRequest::default()).is_err());
    }
}

/// Incomplete copies of the last segment that contradict each other: "latest" does not end before them without a word.
#[test]
fn latest_is_refused_where_copies_of_the_last_segment_contradict_each_other() {
    let (world, _) = world();
    let last = SegmentNo(15).name(tli(2), size());
    let plan = |request: &RestoreRequest| {
        let mut facts = world.facts();
        facts.contradicting.insert(last, vec!["one".to_owned(), "other".to_owned()]);
        world.plan_with(facts, request)
    };
    let refused = plan(&on(2, RecoveryTarget::Latest)).unwrap_err();
    let copies = vec!["one".to_owned(), "other".to_owned()];
    assert_eq!(refused.why, Why::ContradictingCopies { segment: last, copies });
    assert!(plan(&on(2, RecoveryTarget::Lsn(Lsn(mb(12))))).is_ok());
    assert!(plan(&RestoreRequest { standby: true, ..on(2, RecoveryTarget::Latest) }).is_ok());
}

/// A plan that ends in a copy is refused because of what another repository has of that segment: as damage, or as another server's.
#[test]
fn an_end_that_another_repository_makes_doubtful_is_refused_as_what_it_is() {
    let (world, _) = world();
    let plan = world.plan(&on(2, RecoveryTarget::Latest)).unwrap();
    let last = SegmentNo::before(plan.until, size()).name(tli(2), size());
    let refusal = |doubt| {
        let lineage = InLineage { id: lineage(), created: jiff::Timestamp::UNIX_EPOCH };
        Unreachable::of_end(&plan, TargetTimeline::Latest, lineage, size(), doubt)
    };
    let damaged = refusal(DoubtfulEnd::Damaged("a bit flipped".to_owned()));
    assert!(matches!(damaged.why, Why::EndsIncomplete { segment, damaged: Some(_), .. } if segment == last));
    let copies = vec!["one".to_owned(), "other".to_owned()];
    let contradicting = refusal(DoubtfulEnd::Contradicting(copies.clone()));
    assert_eq!(contradicting.why, Why::ContradictingCopies { segment: last, copies });
    assert_eq!(contradicting.hints, [Hint::DecideCopies(last)]);
}

/// An incomplete copy of the last segment that cannot be read shows that the segment was begun, so recovery could not end before it.
#[test]
fn latest_is_refused_where_the_copy_of_the_last_segment_is_damaged() {
    let (world, _) = world();
    let last = SegmentNo(15).name(tli(2), size());
    let plan = |request: &RestoreRequest| {
        let mut facts = world.facts();
        facts.answer(Question::Partial(last), Answer::DamagedPartial(None, "a bit flipped".to_owned()));
        world.plan_with(facts, request)
    };
    for use_partial in [false, true] {
        let refused = plan(&RestoreRequest { use_partial, ..on(2, RecoveryTarget::Latest) }).unwrap_err();
        assert!(
            matches!(&refused.why, Why::EndsIncomplete { segment, damaged: Some(what), .. } if *segment == last
                && what == "a bit flipped"),
            "{refused:?}"
        );
        assert!(matches!(refused.nearest[0].target, MomentTarget::Record(_)), "{refused:?}");
    }
    let before = plan(&on(2, RecoveryTarget::Lsn(Lsn(mb(12))))).unwrap();
    assert!(
        before.settings.iter().any(|setting| setting.line() == "recovery_prefetch = 'off'"),
        "{before:?}"
    );
    assert!(plan(&RestoreRequest { standby: true, ..on(2, RecoveryTarget::Latest) }).is_ok());
}

/// What was streamed of the last segment is recovered without being asked for, by archive recovery only; any other incomplete copy is not.
#[test]
fn latest_ends_in_what_was_streamed_of_the_last_segment() {
    let (mut world, _) = world();
    let (last, end) = (SegmentNo(15), Lsn(mb(15) + 5000));
    world.partials.insert((tli(2), last), end);
    let plan = |streamed: bool, request: &RestoreRequest| {
        let mut facts = world.facts();
        facts.sliced.extend(streamed.then(|| last.name(tli(2), size())));
        world.plan_with(facts, request)
    };
    let latest = on(2, RecoveryTarget::Latest);
    let refused = plan(false, &latest).unwrap_err();
    assert!(matches!(refused.why, Why::EndsIncomplete { damaged: None, .. }), "{refused:?}");
    let planned = plan(true, &latest).unwrap();
    let fork = planned.fork.expect("a segment that is built");
    assert_eq!((planned.until, fork.cut, fork.name), (end, end, last.name(tli(2), size())));
    assert_eq!(
        plan(true, &RestoreRequest { use_partial: true, ..latest.clone() }).unwrap().fork,
        planned.fork
    );
    let standby = plan(true, &RestoreRequest { standby: true, ..latest }).unwrap();
    assert_eq!(standby.fork, None, "a standby streams what comes");
}

/// A timeline that a person says was abandoned is not the latest, whatever is wrong with it.
#[test]
fn an_abandoned_timeline_is_not_the_latest() {
    let (world, [first, second, _]) = world();
    let facts = |of: &[u32]| {
        let mut facts = world.facts();
        for timeline in of {
            let verdict = format!("timeline {timeline}: settled by dba");
            let record = Abandoned { settled: at(1000).to_time(), verdict };
            facts.abandoned.insert(tli(*timeline), record);
        }
        facts
    };
    let on =
        |of: &[u32], request: &RestoreRequest| world.plan_with(facts(of), request).unwrap().timeline.get();
    let latest = RestoreRequest::default();
    assert_eq!(on(&[], &latest), 3);
    assert_eq!(on(&[3], &latest), 2);
    assert_eq!(on(&[2, 3], &latest), 1);
    assert_eq!(on(&[3], &RestoreRequest { timeline: TargetTimeline::Id(tli(3)), ..latest.clone() }), 3);
    assert_ne!(on(&[3], &RestoreRequest { backup: Some(first), ..latest.clone() }), 3);
    assert_eq!(on(&[2, 3], &RestoreRequest { backup: Some(second), ..latest.clone() }), 1);
    // It passes over timeline 3, and follows what comes after it.
    let standby = RestoreRequest { standby: true, ..latest.clone() };
    let plan = world.plan_with(facts(&[3]), &standby).unwrap();
    assert!(plan.settings.iter().any(|s| s.line() == "recovery_target_timeline = 'latest'"), "{plan:?}");
    let plan = world.plan_with(facts(&[3]), &latest).unwrap();
    assert!(
        matches!(&plan.notes[..], [Note::NotTheLatest { timeline, .. }] if *timeline == tli(3)),
        "{plan:?}"
    );
    for doubt in [Doubt::Missing, Doubt::Refused, Doubt::Damaged("torn".to_owned())] {
        let mut facts = facts(&[4]);
        facts.doubts.insert(tli(4), doubt);
        assert_eq!(world.plan_with(facts, &latest).unwrap().timeline.get(), 3);
    }
}
