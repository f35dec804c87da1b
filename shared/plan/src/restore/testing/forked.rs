//! One timeline that forked twice, with three backups, and how it is asked.

use walpoint_base::{BackupId, Lsn, RecoveryTarget, SegmentNo, TargetTimeline, TimelineHistory};

use super::world::*;
use crate::restore::*;

/// Megabytes of WAL: segment `n` begins at `mb(n)`.
pub fn mb(n: u64) -> u64 {
    n * SIZE
}

/// A commit every half segment, at second 100 × segment (+ 50 for the second half).
///
/// ```text
/// timeline 1: segments 1 … 20        backups at 2.0-2.5 and 8.0-8.5
/// timeline 2: from 1 at 10.5, 10 … 14   backup at 11.0-11.5
/// timeline 3: from 1 at 6.5, 6 … 9
/// ```
pub fn world() -> (World, [BackupId; 3]) {
    let mut world = World::default();
    world.graph.add_known(tli(1));
    for (id, switch) in [(2, mb(10) + SIZE / 2), (3, mb(6) + SIZE / 2)] {
        let line = format!("1\t{}\tx\n", Lsn(switch));
        world.graph.add(TimelineHistory::parse(tli(id), line.as_bytes()).unwrap());
    }
    for (id, first, last, later) in [(1, 2u32, 41, 0), (2, 21, 29, 10_000), (3, 13, 19, 20_000)] {
        let record = |half: u32| Record {
            timeline: tli(id),
            start: Lsn(u64::from(half) * SIZE / 2),
            end: Lsn(u64::from(half + 1) * SIZE / 2),
            kind: match half {
                6 => TestRecordKind::Point("early".to_owned()),
                33 => TestRecordKind::Point("late".to_owned()),
                _ => TestRecordKind::Commit { time: at(later + i64::from(half) * 50), xid: 1000 * id + half },
            },
        };
        world.records.insert(tli(id), (first..=last).map(record).collect());
        for number in first / 2..=last / 2 {
            world.files.insert((tli(id), SegmentNo(u64::from(number))));
        }
    }
    let first = world.backup(1, mb(2), mb(2) + SIZE / 2, 200, 260);
    let second = world.backup(1, mb(8), mb(8) + SIZE / 2, 800, 860);
    let third = world.backup(2, mb(11), mb(11) + SIZE / 2, 11_100, 11_160);
    (world, [first, second, third])
}

pub fn on(timeline: u32, target: RecoveryTarget) -> RestoreRequest {
    RestoreRequest { target, timeline: TargetTimeline::Id(tli(timeline)), ..RestoreRequest::default() }
}
