//! The planner against brute force on random clusters: forks of forks, forks at segment boundaries, abandoned branches
//! that go on, files missing anywhere, commit times that go backwards.
//!
//! Three questions are put to every plan. Would PostgreSQL, with these settings and this archive, replay exactly what the
//! path holds up to the stop? Does the backup hold nothing that recovery to a time has to leave out? And was there no newer backup
//! that would have done, or, if refused, none at all?

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use walpoint_base::{Lsn, RecoveryTarget, SegmentNo, TargetTimeline, TimelineId};

use crate::restore::testing::random::{random_request, random_world};
use crate::restore::testing::world::*;
use crate::restore::windows;
use crate::restore::*;

/// How many bytes from `from` on the archive has, on the path to `leaf`, byte by byte as it were: a file serves as far
/// as its own path agrees with the leaf's. A `.partial` serves where the path leaves its timeline, though not to begin with.
fn readable_until(world: &World, leaf: TimelineId, from: Lsn) -> Lsn {
    let path = world.history(leaf);
    let mut number = SegmentNo::of(from, size());
    loop {
        let (start, end) = (number.start(size()), number.end(size()));
        let agrees_until = |t: TimelineId| {
            let forks = path.entries().iter().map(|e| e.switch).filter(|s| *s > start && *s < end);
            let mut probes: Vec<Lsn> = std::iter::once(start).chain(forks).collect();
            probes.push(end);
            // Switch points of one history may decrease.
            probes.sort_unstable();
            let other = world.history(t);
            let agreed = probes.windows(2).take_while(|p| other.timeline_at(p[0]) == path.timeline_at(p[0]));
            agreed.last().map_or(start, |p| p[1])
        };
        let files = path.path().filter(|&t| world.files.contains(&(t, number)));
        let partials = path.path().filter(|t| *t != leaf && number > SegmentNo::of(from, size()));
        let partials = partials.filter_map(|t| {
            let held = *world.partials.get(&(t, number))?;
            (agrees_until(t) < end).then(|| agrees_until(t).min(held))
        });
        let own = world.partials.get(&(leaf, number)).copied();
        let own = own.filter(|_| number > SegmentNo::of(from, size()) && is_last(world, leaf, number));
        let until = files.map(agrees_until).chain(partials).chain(own).max().unwrap_or(start);
        if until < end {
            return until;
        }
        number = number.next();
    }
}

/// The same for a target: also what the timeline's own incomplete copy holds of a segment inside which younger ones left it.
fn searched_until(world: &World, leaf: TimelineId, from: Lsn) -> Lsn {
    let until = readable_until(world, leaf, from);
    let number = SegmentNo::of(until, size());
    let left = |t: TimelineId| world.history(t).entries().iter().find(|e| e.parent == leaf).map(|e| e.switch);
    let forks: Vec<Lsn> = world.graph.ids().filter(|id| *id > leaf).filter_map(left).collect();
    let inside = forks.iter().any(|fork| *fork > number.start(size()))
        && forks.iter().all(|fork| *fork < number.end(size()));
    let ends = last_right_file(world, leaf).is_none_or(|last| last < number)
        && !is_begun_behind(world, leaf, number)
        && world.history(leaf).begin_of(leaf).is_some_and(|begin| begin < number.end(size()));
    let held = world.partials.get(&(leaf, number)).copied();
    let held = held.filter(|_| inside && ends && number > SegmentNo::of(from, size()));
    held.unwrap_or(until).max(until)
}

/// Whether nothing shows that the timeline went on behind a segment, or was left in it.
fn is_last(world: &World, leaf: TimelineId, number: SegmentNo) -> bool {
    let path = world.history(leaf);
    last_right_file(world, leaf).is_none_or(|last| last < number)
        && !is_begun_behind(world, leaf, number)
        && path.begin_of(leaf).is_some_and(|begin| begin < number.end(size()))
        && left_at(world, leaf).is_none_or(|left| left <= number.start(size()))
}

/// Where the last of the timelines that come from `leaf` left it.
fn left_at(world: &World, leaf: TimelineId) -> Option<Lsn> {
    let younger = world.graph.ids().filter(|id| *id > leaf).map(|id| world.history(id).entries());
    younger.filter_map(|entries| Some(entries.iter().find(|e| e.parent == leaf)?.switch)).max()
}

/// Where recovery to the latest moment ends; `None` if that is refused.
fn latest_end(world: &World, leaf: TimelineId, from: Lsn, use_partial: bool) -> Option<Lsn> {
    let until = readable_until(world, leaf, from);
    let path = world.history(leaf);
    if last_right_file(world, leaf).is_some_and(|last| last.start(size()) >= until) {
        return None;
    }
    // The server had finished all before a segment that it began.
    if is_begun_behind(world, leaf, SegmentNo::of(until, size())) {
        return None;
    }
    // Without WAL up to the last fork recovery asks for the segment of the fork for ever.
    if path.begin_of(leaf).is_some_and(|begin| until < begin) {
        return None;
    }
    let number = SegmentNo::of(until, size());
    if left_at(world, leaf).is_some_and(|left| left >= number.end(size())) {
        return None;
    }
    if until > number.start(size()) && is_last(world, leaf, number) {
        let files = path.path().filter(|&t| world.files.contains(&(t, number)));
        let by_file = files.filter_map(|t| path.end_of(t)).any(|end| end == until);
        if world.partials.get(&(leaf, number)) == Some(&until) && !by_file {
            return use_partial.then_some(until);
        }
    }
    if until > number.start(size()) {
        // The segment of the fork, from its own timeline or else built.
        let owner = path.timeline_at(until - 1);
        return (use_partial || world.files.contains(&(owner, number))).then_some(until);
    }
    let inside = |(_, fork): (TimelineId, Lsn)| Some(fork).filter(|f| until < *f && *f < number.end(size()));
    let Some(left) = world.graph.children(leaf).into_iter().filter_map(inside).max() else {
        return Some(until);
    };
    let takes_over = |(t, n): &&(TimelineId, SegmentNo)| {
        *t > leaf && *n == number && world.history(*t).timeline_at(left - 1) == path.timeline_at(left - 1)
    };
    let heir = world.files.iter().any(|file| takes_over(&file));
    let partial = world.partials.get(&(leaf, number)).is_some_and(|held| *held >= left);
    let held = world.partials.get(&(leaf, number)).copied();
    let beyond = held.filter(|held| left_at(world, leaf).is_some_and(|left| left < *held));
    match use_partial {
        true => beyond.or((heir || partial).then_some(left)),
        false => heir.then_some(until),
    }
}

/// The last right file on the path: nothing after it is there.
fn last_right_file(world: &World, leaf: TimelineId) -> Option<SegmentNo> {
    let path = world.history(leaf);
    let right = |(t, n): &&(TimelineId, SegmentNo)| path.timeline_at(n.end(size()) - 1) == *t;
    world.files.iter().filter(right).map(|(_, n)| *n).max()
}

/// Whether there is an incomplete copy of a later segment of the path.
fn is_begun_behind(world: &World, leaf: TimelineId, number: SegmentNo) -> bool {
    let path = world.history(leaf);
    world.partials.keys().any(|(t, n)| *n > number && path.timeline_at(n.end(size()) - 1) == *t)
}

fn on_path(world: &World, leaf: TimelineId, backup: &BackupFacts) -> bool {
    let path = world.history(leaf);
    path.timeline_at(backup.start()) == backup.timeline()
        && path.timeline_at(backup.end - 1) == backup.timeline()
}

/// The timeline that the request means.
fn leaf_of(world: &World, request: &RestoreRequest) -> Option<TimelineId> {
    if let TargetTimeline::Id(timeline) = request.timeline {
        return Some(timeline);
    }
    let usable = |t: &TimelineId| {
        world.backups.iter().any(|b| request.backup.is_none_or(|id| id == b.id) && on_path(world, *t, b))
    };
    // The latest timeline is not left out silently, only because no backup leads to it.
    let written =
        |t: &TimelineId| request.backup.is_none() && world.files.iter().any(|(timeline, _)| timeline == t);
    world.graph.ids().rev().find(|t| usable(t) || written(t)).filter(usable)
}

/// How many restore points of the name asked for lie where some backup is consistent and all WAL is there.
fn reachable_points(world: &World, request: &RestoreRequest, leaf: TimelineId) -> usize {
    let RecoveryTarget::Name(name) = &request.target else { return 0 };
    let chosen = |b: &&BackupFacts| on_path(world, leaf, b) && request.backup.is_none_or(|id| id == b.id);
    let backups: Vec<&BackupFacts> = world.backups.iter().filter(chosen).collect();
    let named = |r: &&Record| matches!(&r.kind, TestRecordKind::Point(own) if own == name);
    let reached = |r: &&Record| {
        backups.iter().any(|b| b.end <= r.start && searched_until(world, leaf, b.start()) > r.start)
    };
    world.path_records(leaf).into_iter().filter(named).filter(reached).count()
}

/// The newest backup that does, by trying them all.
fn expected(world: &World, request: &RestoreRequest, leaf: TimelineId) -> Option<BackupFacts> {
    let mut backups: Vec<&BackupFacts> = world
        .backups
        .iter()
        .filter(|b| on_path(world, leaf, b) && request.backup.is_none_or(|id| id == b.id))
        .collect();
    backups.sort_by_key(|b| std::cmp::Reverse((b.start(), b.id)));
    if let RecoveryTarget::Name(name) = &request.target
        && reachable_points(world, request, leaf) == 1
    {
        let named = |r: &&Record| matches!(&r.kind, TestRecordKind::Point(own) if own == name);
        let reached =
            |r: &Record, b: &BackupFacts| b.end <= r.start && searched_until(world, leaf, b.start()) >= r.end;
        let points: Vec<&Record> = world.path_records(leaf).into_iter().filter(named).collect();
        return backups.into_iter().find(|b| points.iter().any(|r| reached(r, b))).cloned();
    }
    let rule = StopRule::of(&request.target, request.inclusive);
    for backup in backups {
        let until = match rule {
            Some(_) => searched_until(world, leaf, backup.start()),
            None => readable_until(world, leaf, backup.start()),
        };
        let early = match request.target {
            RecoveryTarget::Time(time) => backup.ended <= time,
            RecoveryTarget::Lsn(lsn) => backup.end <= lsn,
            _ => true,
        };
        if !early {
            continue;
        }
        // It holds what recovery has to leave out: an older one stops before that. Who names a backup gets it.
        if let (RecoveryTarget::Time(_), Some(rule), None) = (&request.target, &rule, request.backup)
            && world.passed(leaf, rule, backup.start()).is_some()
        {
            continue;
        }
        let stop = rule.as_ref().map(|rule| world.stop(leaf, rule, backup.start(), until));
        let reached = match &stop {
            Some(stop) => stop.as_ref().is_some_and(|s| s.record >= backup.end),
            None => until >= backup.end,
        };
        match (&request.target, stop) {
            (RecoveryTarget::Xid(_) | RecoveryTarget::Name(_), _) if reached => return Some(backup.clone()),
            (RecoveryTarget::Xid(_) | RecoveryTarget::Name(_), _) => {}
            (RecoveryTarget::Time(_), Some(Some(stop)))
                if until >= backup.end && stop.record < backup.end => {}
            (RecoveryTarget::Latest, _) => {
                let end = latest_end(world, leaf, backup.start(), request.use_partial);
                if reached && end.is_some() {
                    return Some(backup.clone());
                }
                if SegmentNo::of(until, size()) != SegmentNo::of(backup.start(), size()) {
                    return None;
                }
            }
            _ if reached && until >= backup.end => return Some(backup.clone()),
            // Recovery cannot begin in an incomplete segment, and passes it from an older backup.
            _ if SegmentNo::of(until, size()) == SegmentNo::of(backup.start(), size()) => {}
            _ => return None,
        }
    }
    None
}

/// Follows a plan as PostgreSQL would and compares what is replayed with what the path holds.
fn follow(world: &World, leaf: TimelineId, plan: &RestorePlan, use_partial: bool) {
    let set = |name: &str| plan.settings.iter().find(|s| s.name == name).unwrap().value.clone();
    let timeline = set("recovery_target_timeline").parse().unwrap();
    let inclusive = set("recovery_target_inclusive") == "on";
    let targets =
        ["recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid"];
    let used: Vec<&str> = targets.into_iter().filter(|t| !set(t).is_empty()).collect();
    assert!(used.len() <= 1);
    let rule = match used.first() {
        None if plan.target == RecoveryTarget::Immediate => {
            // Stops as soon as the backup is consistent.
            let last = world.path_records(leaf).into_iter().find(|r| r.end >= plan.backup.end).unwrap();
            Some(StopRule::Lsn { at: last.start, inclusive: true })
        }
        None => None,
        Some(&"recovery_target_lsn") => {
            Some(StopRule::Lsn { at: set("recovery_target_lsn").parse().unwrap(), inclusive })
        }
        Some(_) => StopRule::of(&plan.target, inclusive),
    };
    let (read, stopped) = world.recover(timeline, plan.backup.start(), rule.as_ref(), plan.fork.as_ref());
    assert_eq!(stopped, rule.is_some(), "recovery ends before its target, or has none");
    let consistent = read.iter().any(|r| r.end >= plan.backup.end);
    assert!(consistent, "recovery stops before the backup is consistent");
    if let Some(stop) = &plan.stop {
        assert!(stop.record >= plan.backup.end);
        assert_eq!((stop.record, stop.end), (read.last().unwrap().start, read.last().unwrap().end));
        assert_eq!(stop.end, plan.until);
    }
    // All that is replayed, in the order of the path, nothing left out and nothing of another branch.
    let applied = match &rule {
        Some(rule) if !rule.applies_the_record() => &read[..read.len() - 1],
        _ => &read[..],
    };
    let wanted: Vec<&Record> =
        world.path_records(leaf).into_iter().filter(|r| r.start >= plan.backup.start()).collect();
    for (got, want) in applied.iter().zip(&wanted) {
        assert_eq!(&got, want);
    }
    assert!(
        applied.len() <= wanted.len(),
        "recovery goes on on a branch that the path has left: {plan:#?} {world:#?}"
    );
    if plan.target == RecoveryTarget::Latest {
        let until = latest_end(world, leaf, plan.backup.start(), use_partial).unwrap();
        let complete = wanted.iter().take_while(|r| r.end <= until).count();
        let replayed = applied.len();
        assert_eq!(replayed, complete, "not all that is there was replayed: {plan:#?}\n{world:#?}");
    }
    for range in &plan.wal {
        for number in range.first.0..=range.last.0 {
            assert!(world.files.contains(&(range.timeline, SegmentNo(number))), "a planned file is missing");
        }
    }
    // The next history: the timeline that is followed is left where recovery ends, and that is not before it begins.
    if let Some(last) = applied.last() {
        let begin = world.history(timeline).begin_of(timeline).unwrap();
        assert!(begin <= last.end, "switch points decrease: {plan:#?}\n{world:#?}");
    }
    let partial = plan.fork.is_some_and(|fork| matches!(fork.source, ForkSource::Partial(_)));
    let covered = plan.wal.iter().map(SegmentRange::count).sum::<u64>() + u64::from(partial);
    let span = SegmentNo::before(plan.until, size()).0 - SegmentNo::of(plan.backup.start(), size()).0 + 1;
    assert_eq!(covered, span, "every segment once");
}

fn check(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let world = random_world(&mut rng);
    for _ in 0..12 {
        let request = random_request(&mut rng, &world);
        let verdict = world.plan(&request);
        let leaf = leaf_of(&world, &request);
        let expected = leaf.and_then(|leaf| expected(&world, &request, leaf));
        if let (Err(refusal), Some(leaf)) = (&verdict, leaf)
            && let Why::SeveralPoints(points) = &refusal.why
        {
            assert!(points.len() > 1, "{request:?}\n{world:#?}");
            assert_eq!(points.len(), reachable_points(&world, &request, leaf), "{request:?}\n{world:#?}");
            continue;
        }
        match (&verdict, expected) {
            (Ok(plan), Some(backup)) => {
                assert!(reachable_points(&world, &request, leaf.unwrap()) < 2, "{request:?}\n{world:#?}");
                assert_eq!(plan.backup.id, backup.id, "{request:?}\n{world:#?}");
                follow(&world, leaf.unwrap(), plan, request.use_partial);
            }
            (Err(refusal), None) => {
                for range in &refusal.missing {
                    for number in range.first.0..=range.last.0 {
                        assert!(!world.files.contains(&(range.timeline, SegmentNo(number))));
                    }
                }
                if matches!(refusal.why, Why::MissingWal { .. }) {
                    assert!(!refusal.missing.is_empty(), "{request:?} {refusal:?}\n{world:#?}");
                }
            }
            (verdict, expected) => {
                panic!("{request:?}\n gives {verdict:?}\n instead of {expected:?}\n in {world:#?}")
            }
        }
    }
    for timeline in world.graph.ids() {
        check_windows(&world, timeline);
    }
}

/// Both ends of every window can be planned, and what lies outside cannot.
fn check_windows(world: &World, timeline: TimelineId) {
    let found = world.ask(|facts| windows::on_path(facts, timeline));
    let reaches = |lsn: Lsn| {
        let target = RecoveryTarget::Lsn(lsn);
        world
            .plan(&RestoreRequest {
                target,
                timeline: TargetTimeline::Id(timeline),
                ..RestoreRequest::default()
            })
            .is_ok()
    };
    for window in &found {
        if let Some(last) = window.last_record.filter(|last| *last >= window.from) {
            assert!(reaches(window.from) && reaches(last), "{window:?}\n{world:#?}");
        }
    }
    for record in world.path_records(timeline) {
        let inside = found.iter().any(|w| w.from <= record.start && record.end <= w.until);
        assert_eq!(reaches(record.start), inside, "{record:?} {found:?}\n{world:#?}");
    }
}

/// The newest backup begins in a segment whose own file is there as `.partial` alone: an older one recovers what that holds.
#[test]
fn an_older_backup_passes_the_incomplete_segment_that_a_newer_one_begins_in() {
    check(12_150_298_002_060_119_962);
}

/// The only backup begins in a segment that is there as `.partial` alone: recovery cannot begin in it, so no window does.
#[test]
fn no_window_begins_in_a_partial_segment() {
    check(17_157_956_424_488_078_457);
}

/// Two forks of one path in the same segment, the younger one before the older.
#[test]
fn a_timeline_is_passed_through_within_a_segment() {
    check(4_075_978_944_694_589_025);
}

/// A timeline begins with a segment that its parent has, too, and of its own there is only what its child took over.
#[test]
fn the_beginning_of_a_timeline_is_taken_from_its_child() {
    check(17_222_077_863_013_342_846);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn plans_are_what_brute_force_finds(seed: u64) {
        check(seed);
    }
}
