//! Invented clusters and requests, drawn at random.

use rand::Rng;
use rand::rngs::StdRng;
use walpoint_base::{Lsn, RecoveryTarget, SegmentNo, TargetTimeline, TimelineHistory, TimelineId};

use super::world::*;
use crate::restore::*;

/// Writes `count` records on a timeline from `from` on, sometimes up to the end of a segment.
fn write_records(
    rng: &mut StdRng,
    timeline: TimelineId,
    from: Lsn,
    count: usize,
    clock: &mut i64,
    xid: &mut u32,
) -> Vec<Record> {
    let mut start = from;
    let mut records = Vec::new();
    for _ in 0..count {
        let mut end = start + 8 * rng.random_range(4..90_000);
        if rng.random_ratio(1, 8) {
            end = SegmentNo::of(start, size()).end(size());
        }
        *clock += rng.random_range(0..4);
        if rng.random_ratio(1, 12) {
            // The clock is set.
            *clock = (*clock + rng.random_range(-150..150)).max(100);
        }
        let kind = match rng.random_range(0..10) {
            0..6 => {
                *xid += 1;
                let late = if rng.random_ratio(1, 6) { rng.random_range(0..12) } else { 0 };
                TestRecordKind::Commit {
                    time: at(*clock - late),
                    xid: *xid - u32::from(rng.random_ratio(1, 12)),
                }
            }
            6 => TestRecordKind::Point(format!("p{}", rng.random_range(0..4))),
            _ => TestRecordKind::Other,
        };
        records.push(Record { timeline, start, end, kind });
        start = end;
    }
    records
}

pub fn random_world(rng: &mut StdRng) -> World {
    let mut world = World::default();
    let (mut clock, mut xid) = (100, 700);
    let first = Lsn(SIZE + 40);
    let count = rng.random_range(8..40);
    world.graph.add_known(tli(1));
    world.records.insert(tli(1), write_records(rng, tli(1), first, count, &mut clock, &mut xid));
    for id in 2..2 + rng.random_range(0..4) {
        fork(rng, &mut world, tli(id), &mut clock, &mut xid);
    }
    archive(rng, &mut world, first);
    leave_partials_at_forks(rng, &mut world);
    for _ in 0..rng.random_range(0..6) {
        take_backup(rng, &mut world);
    }
    leave_partials_of_dead_servers(rng, &mut world);
    world
}

/// A new timeline that leaves one of those that there are.
fn fork(rng: &mut StdRng, world: &mut World, id: TimelineId, clock: &mut i64, xid: &mut u32) {
    // Timelines without a record of their own cannot be forked from.
    let parents: Vec<TimelineId> =
        world.records.iter().filter(|(_, r)| !r.is_empty()).map(|(t, _)| *t).collect();
    let parent = parents[rng.random_range(0..parents.len())];
    let own: Vec<&Record> = match rng.random_ratio(1, 4) {
        // Recovery that followed the parent and stopped before the parent begins: switch points decrease.
        true => world.path_records(parent),
        false => world.records[&parent].iter().collect(),
    };
    let switch = own[rng.random_range(0..own.len())].start;
    let mut lines: String =
        world.history(parent).entries().iter().map(|e| format!("{}\t{}\tx\n", e.parent, e.switch)).collect();
    lines.push_str(&format!("{parent}\t{switch}\tx\n"));
    world.graph.add(TimelineHistory::parse(id, lines.as_bytes()).unwrap());
    let count = if rng.random_ratio(1, 5) { 0 } else { rng.random_range(1..25) };
    *clock += 20;
    world.records.insert(id, write_records(rng, id, switch, count, clock, xid));
}

/// Puts segments in the archive, most of them.
fn archive(rng: &mut StdRng, world: &mut World, first: Lsn) {
    for (&timeline, records) in &world.records {
        let begin = world.graph.history(timeline).unwrap().begin_of(timeline).unwrap().max(first);
        let Some(end) = records.last().map(|r| r.end) else { continue };
        let last = SegmentNo::of(end, size());
        let keep = if rng.random_ratio(1, 3) { 100 } else { rng.random_range(70..100) };
        for number in SegmentNo::of(begin, size()).0..=last.0 {
            // The last segment is there only if it was switched.
            if (number < last.0 || rng.random_ratio(1, 2)) && rng.random_ratio(keep, 100) {
                world.files.insert((timeline, SegmentNo(number)));
            }
        }
    }
}

/// What the old timeline's server had of the segment in which another one was forked.
fn leave_partials_at_forks(rng: &mut StdRng, world: &mut World) {
    for timeline in world.graph.ids().collect::<Vec<_>>() {
        for (_, switch) in world.graph.children(timeline) {
            let number = SegmentNo::before(switch, size());
            if world.files.contains(&(timeline, number)) || rng.random_ratio(1, 2) {
                continue;
            }
            // What the promoted server had received, up to the fork or beyond.
            let received = world.path_records(timeline).into_iter().map(|r| r.end);
            let most = received.filter(|end| *end <= number.end(size())).max().unwrap_or(switch).max(switch);
            let held = if rng.random() { switch } else { most };
            let known = world.partials.entry((timeline, number)).or_insert(held);
            *known = held.max(*known);
        }
    }
}

/// A backup of any range of a timeline that has two records.
fn take_backup(rng: &mut StdRng, world: &mut World) {
    let timelines: Vec<TimelineId> = world.records.keys().copied().collect();
    let timeline = timelines[rng.random_range(0..timelines.len())];
    let own = world.records[&timeline].clone();
    if own.len() < 2 {
        return;
    }
    let start = rng.random_range(0..own.len() - 1);
    let end = rng.random_range(start..own.len().min(start + 5));
    let time = |r: &Record| match r.kind {
        TestRecordKind::Commit { time, .. } => Some(time.0 / 1_000_000),
        _ => None,
    };
    let started = own[..=start].iter().rev().find_map(time).unwrap_or(100);
    let ended = own[..=end].iter().rev().find_map(time).unwrap_or(100).max(started);
    world.backup(timeline.get(), own[start].start.0, own[end].end.0, started, ended + rng.random_range(0..3));
}

/// What there was of the last segments of servers that died.
fn leave_partials_of_dead_servers(rng: &mut StdRng, world: &mut World) {
    for timeline in world.graph.ids().collect::<Vec<_>>() {
        // A server that died while it wrote its last segment, of which an operator stored what there was.
        let Some(last) = world.records.get(&timeline).and_then(|records| records.last()) else { continue };
        let number = SegmentNo::of(last.end, size());
        let records = world.path_records(timeline).into_iter().map(|r| r.end);
        let held = records.filter(|end| *end > number.start(size()) && *end < number.end(size())).max();
        // A backup is complete only once its WAL is there.
        let begins = |b: &BackupFacts| b.timeline() == timeline && SegmentNo::of(b.start(), size()) == number;
        if world.backups.iter().any(begins) {
            continue;
        }
        if let Some(held) = held.filter(|_| !world.files.contains(&(timeline, number)) && rng.random()) {
            world.partials.entry((timeline, number)).or_insert(held);
        }
    }
}

pub fn random_request(rng: &mut StdRng, world: &World) -> RestoreRequest {
    let all: Vec<&Record> = world.records.values().flatten().collect();
    let some = all[rng.random_range(0..all.len())].clone();
    let time = all.iter().rev().find_map(|r| match r.kind {
        TestRecordKind::Commit { time, .. } if rng.random_ratio(1, 5) => Some(time),
        _ => None,
    });
    let target = match rng.random_range(0..8) {
        0 => RecoveryTarget::Latest,
        1 => RecoveryTarget::Immediate,
        2 => RecoveryTarget::Lsn(Lsn(some.start.0 + rng.random_range(0..2) * 8)),
        3 => RecoveryTarget::Xid(rng.random_range(700..760)),
        4 => RecoveryTarget::Name(format!("p{}", rng.random_range(0..4))),
        _ => RecoveryTarget::Time(time.unwrap_or(at(rng.random_range(90..300)))),
    };
    let newest = u32::try_from(world.graph.len()).unwrap();
    let timeline = match rng.random_range(0..3) {
        0 => TargetTimeline::Latest,
        _ => TargetTimeline::Id(tli(rng.random_range(1..=newest))),
    };
    let chosen = !world.backups.is_empty() && rng.random_ratio(1, 5);
    let backup = chosen.then(|| world.backups[rng.random_range(0..world.backups.len())].id);
    let use_partial = target == RecoveryTarget::Latest && rng.random();
    RestoreRequest {
        target,
        timeline,
        inclusive: rng.random(),
        backup,
        use_partial,
        ..RestoreRequest::default()
    }
}
