//! What is missing of the WAL that makes a backup consistent, by cases written by hand.

use walpoint_base::{BackupId, Lsn, SegmentNo, TimelineHistory};

use crate::graph::TimelineGraph;
use crate::restore::testing::forked::{mb, world};
use crate::restore::testing::world::*;
use crate::restore::*;

fn missing(world: &World, id: BackupId) -> Vec<SegmentRange> {
    let backup = world.backups.iter().find(|backup| backup.id == id).unwrap();
    let (start, end, end_timeline) = (backup.start(), backup.end, backup.end_timeline);
    world.ask(|facts| Consistency { start, end, end_timeline }.missing(facts))
}

fn range(id: u32, first: u64, last: u64) -> SegmentRange {
    SegmentRange { timeline: tli(id), first: SegmentNo(first), last: SegmentNo(last) }
}

/// Promise 11: a timeline of which nothing is left, not even a history, is no timeline without need.
#[test]
fn a_backup_on_a_timeline_that_is_gone_lacks_all_its_wal() {
    let (mut world, [first, second, third]) = world();
    let long = world.backup(2, mb(11), mb(13), 11_200, 11_300);
    for id in [first, second, third, long] {
        assert_eq!(missing(&world, id), []);
    }
    // Timeline 2 with its history, and what leads to nothing else.
    world.files.retain(|(timeline, _)| *timeline != tli(2));
    let mut graph = TimelineGraph::default();
    graph.add_known(tli(1));
    world.graph = graph;
    assert_eq!(missing(&world, third), [range(2, 11, 11)]);
    assert_eq!(missing(&world, long), [range(2, 11, 12)]);
    assert_eq!((missing(&world, first), missing(&world, second)), (vec![], vec![]));
    world.files.clear();
    world.graph = TimelineGraph::default();
    assert_eq!(missing(&world, first), [range(1, 2, 2)]);
}

/// A standby was promoted while it was backed up: the segment in which the backup ended exists on the next timeline only.
#[test]
fn the_next_timelines_copy_of_the_last_segment_makes_a_backup_consistent() {
    let (mut world, _) = world();
    world.files.retain(|(timeline, number)| *timeline != tli(1) || number.0 < 10);
    let before_fork = world.backup(1, mb(8), mb(10) + SIZE / 4, 800, 860);
    let at_fork = world.backup(1, mb(8), mb(10) + SIZE / 2, 801, 861);
    let behind = world.backup(1, mb(8), mb(10) + SIZE / 2 + 8, 802, 862);
    assert_eq!((missing(&world, before_fork), missing(&world, at_fork)), (vec![], vec![]));
    assert_eq!(missing(&world, behind), [range(1, 10, 10)], "timeline 2 left before its end");
    // Timeline 4 left timeline 2 in the same segment.
    let text = format!("1\t{}\tx\n2\t{}\tx\n", Lsn(mb(10) + SIZE / 2), Lsn(mb(10) + SIZE / 2 + 64));
    world.graph.add(TimelineHistory::parse(tli(4), text.as_bytes()).unwrap());
    world.files.remove(&(tli(2), SegmentNo(10)));
    assert_eq!(missing(&world, before_fork), [range(1, 10, 10)], "the backup's own is named");
    world.files.insert((tli(4), SegmentNo(10)));
    assert_eq!(missing(&world, before_fork), []);
    world.files.remove(&(tli(1), SegmentNo(9)));
    assert_eq!(missing(&world, before_fork), [range(1, 9, 10)]);
}
