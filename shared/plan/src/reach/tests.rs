//! What is needed is kept and what is not is let go, against a brute-force walk over every path.

use proptest::prelude::*;
use walpoint_base::{BackupId, Lsn, SegmentNo, SegmentSize, TimelineHistory, TimelineId};

use super::*;
use crate::graph::TimelineGraph;
use crate::retention::{Candidate, Damage};

const MIB: u64 = 1 << 20;

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

fn tli(id: u32) -> TimelineId {
    TimelineId::new(id).unwrap()
}

/// A backup from one position to another, both in KiB.
fn backup(n: u32, start: (u32, u64), stop: (u32, u64)) -> Candidate {
    let started = "2026-11-21T10:00:00Z".parse().unwrap();
    let lsn = |kib: u64| Lsn(kib << 10);
    Candidate {
        id: BackupId::new(started, tli(start.0), lsn(start.1), n),
        lineage: "7-1".parse().unwrap(),
        ended: started,
        complete_by: started,
        latest_commit: None,
        stop: lsn(stop.1),
        stop_timeline: tli(stop.0),
        label: String::new(),
        damage: Damage::default(),
    }
}

fn graph(histories: &[(u32, &str)]) -> TimelineGraph {
    let mut graph = TimelineGraph::default();
    for (id, text) in histories {
        graph.add(TimelineHistory::parse(tli(*id), text.as_bytes()).unwrap());
    }
    graph.add_known(tli(1));
    graph
}

fn needed(need: &WalNeed, timeline: u32) -> Vec<u64> {
    (0..20).filter(|n| need.needs(tli(timeline), SegmentNo(*n))).collect()
}

/// Timeline 2 leaves 1 in the middle of segment 5, timeline 3 leaves 1 in segment 9.
fn forked() -> TimelineGraph {
    graph(&[(2, "1\t0/580000\tx\n"), (3, "1\t0/980000\tx\n")])
}

fn of<'a>(graph: &'a TimelineGraph, onward: &'a [Candidate], alone: &'a [Candidate]) -> WalRoots<'a> {
    WalRoots { graph, size: size(), onward, alone, unfinished: &[], in_use: true, beside: &[] }
}

#[test]
fn a_backup_that_stays_alone_needs_only_what_makes_it_consistent() {
    let (graph, last) = (forked(), [backup(9, (3, 15 * 1024), (3, 15 * 1024 + 5))]);
    let alone = [backup(1, (1, 3 * 1024 + 10), (1, 5 * 1024))];
    let need = WalNeed::of(&of(&graph, &last, &alone));
    assert_eq!(needed(&need, 1), [3, 4], "0/500000 is where segment 5 begins");
    assert_eq!(needed(&need, 3), [15, 16, 17, 18, 19]);
    assert_eq!(needed(&need, 2), [0; 0]);
    assert!(need.needs(tli(4), SegmentNo(0)), "a timeline that appeared meanwhile");
}

#[test]
fn forks_after_a_backup_are_reached_and_others_are_not() {
    let graph = forked();
    let before = [backup(1, (1, 4 * 1024), (1, 4 * 1024 + 9))];
    let need = WalNeed::of(&of(&graph, &before, &[]));
    assert_eq!(needed(&need, 1), (4..20).collect::<Vec<u64>>(), "also what was left behind");
    assert_eq!(needed(&need, 2), (5..20).collect::<Vec<u64>>(), "from the segment of the fork on");
    assert_eq!(needed(&need, 3), (9..20).collect::<Vec<u64>>());
    let between = [backup(1, (1, 7 * 1024), (1, 7 * 1024 + 9))];
    let need = WalNeed::of(&of(&graph, &between, &[]));
    assert_eq!(
        needed(&need, 2),
        [0; 0],
        "it was forked before the backup: the numbers of its segments mean nothing"
    );
    assert_eq!(needed(&need, 3), (9..20).collect::<Vec<u64>>());
}

#[test]
fn what_is_under_way_counts() {
    let graph = forked();
    let done = [backup(1, (3, 18 * 1024), (3, 18 * 1024 + 1))];
    let running = [backup(2, (2, 8 * 1024), (2, 8 * 1024)).id];
    let need = WalNeed::of(&WalRoots { unfinished: &running, ..of(&graph, &done, &[]) });
    assert_eq!(needed(&need, 2), (8..20).collect::<Vec<u64>>());
    // A cluster that archives and has no backup on the timeline it writes.
    let old = [backup(1, (2, 8 * 1024), (2, 8 * 1024 + 1))];
    assert_eq!(needed(&WalNeed::of(&of(&graph, &old, &[])), 3).len(), 20);
    let need = WalNeed::of(&WalRoots { in_use: false, ..of(&graph, &old, &[]) });
    assert_eq!(needed(&need, 3), [0; 0]);
    // A promotion in the middle of a backup of a standby.
    let across = [backup(1, (1, 4 * 1024), (2, 6 * 1024 + 1))];
    let need = WalNeed::of(&WalRoots { in_use: false, ..of(&graph, &across, &[]) });
    assert_eq!(needed(&need, 1), [4, 5]);
    assert_eq!(needed(&need, 2), (5..20).collect::<Vec<u64>>());
    assert!(!need.needs(tli(3), SegmentNo(9)));
}

#[test]
fn a_timeline_without_a_history_may_hang_on_any_older_one() {
    let mut graph = graph(&[]);
    graph.add_known(tli(4));
    let old = [backup(1, (1, 4 * 1024), (1, 4 * 1024 + 9))];
    assert_eq!(needed(&WalNeed::of(&of(&graph, &old, &[])), 4).len(), 20);
    let new = [backup(1, (4, 4 * 1024), (4, 4 * 1024 + 9))];
    assert_eq!(needed(&WalNeed::of(&of(&graph, &new, &[])), 4), (4..20).collect::<Vec<u64>>());
}

/// A chain of forks, each child leaving the parent behind where the parent began.
fn any_graph() -> impl Strategy<Value = TimelineGraph> {
    prop::collection::vec((any::<prop::sample::Index>(), 1u64..6000), 0..4).prop_map(|forks| {
        let mut graph = graph(&[]);
        for (n, (parent, ahead)) in (2u32..).zip(forks) {
            let known: Vec<TimelineId> = graph.ids().collect();
            let parent = parent.get(&known);
            let path = graph.history(*parent).unwrap();
            let switch = path.begin_of(*parent).unwrap() + (ahead << 10);
            let mut text: String =
                path.entries().iter().map(|e| format!("{}\t{}\tx\n", e.parent, e.switch)).collect();
            text += &format!("{parent}\t{switch}\tx\n");
            graph.add(TimelineHistory::parse(tli(n), text.as_bytes()).unwrap());
        }
        graph
    })
}

/// Backups anywhere on a path of the graph.
fn any_backups(most: usize) -> impl Strategy<Value = Vec<(prop::sample::Index, u64, u64)>> {
    prop::collection::vec((any::<prop::sample::Index>(), 1u64..15_000, 1u64..3000), 0..most)
}

fn place(graph: &TimelineGraph, at: &[(prop::sample::Index, u64, u64)], from: u32) -> Vec<Candidate> {
    let ids: Vec<TimelineId> = graph.ids().collect();
    let made = at.iter().zip(from..).map(|((path, start, length), n)| {
        let path = graph.history(*path.get(&ids)).unwrap();
        let on = |kib: u64| path.timeline_at(Lsn(kib << 10)).get();
        let stop = start + length;
        let last = path.timeline_at(Lsn(stop << 10) - 1).get();
        backup(n, (on(*start), *start), (last, stop))
    });
    made.collect()
}

proptest! {
    #[test]
    fn needed_is_exactly_what_some_path_reads(
        graph in any_graph(), onward in any_backups(3), alone in any_backups(3), running in any_backups(2),
    ) {
        let (onward, alone) = (place(&graph, &onward, 0), place(&graph, &alone, 100));
        let unfinished: Vec<BackupId> = place(&graph, &running, 200).iter().map(|b| b.id).collect();
        let need = WalNeed::of(&WalRoots { unfinished: &unfinished, in_use: false, ..of(&graph, &onward, &alone) });
        let mut read = std::collections::BTreeSet::new();
        for timeline in graph.ids() {
            let path = graph.history(timeline).unwrap();
            let starts = |id: BackupId| path.timeline_at(id.start()) == id.timeline();
            // A timeline before the one that holds the start is tried by PostgreSQL, and not needed.
            let mut take = |id: BackupId, until: Lsn| {
                for n in id.start().0 / MIB..=until.0 / MIB {
                    let tried = path.candidates(SegmentNo(n), size());
                    read.extend(tried.filter(|t| *t >= id.timeline()).map(|t| (t, n)));
                }
            };
            for backup in onward.iter().chain(&alone) {
                if starts(backup.id) && path.timeline_at(backup.stop - 1) == backup.stop_timeline {
                    take(backup.id, backup.stop - 1);
                    if onward.contains(backup) {
                        take(backup.id, Lsn(30 * MIB));
                    }
                }
            }
            unfinished.iter().filter(|id| starts(**id)).for_each(|id| take(*id, Lsn(30 * MIB)));
        }
        for (timeline, n) in &read {
            let owner = graph.ids().any(|t| {
                let path = graph.history(t).unwrap();
                path.timeline_at(SegmentNo(*n).end(size()) - 1) == *timeline
            });
            prop_assert!(!owner || need.needs(*timeline, SegmentNo(*n)), "{timeline} {n}");
        }
        // And not much else: nothing before every backup, nothing on a timeline that no backup leads to.
        for timeline in graph.ids() {
            for n in 0..30u64 {
                let wanted = need.needs(timeline, SegmentNo(n));
                let near = read.iter().any(|(_, m)| n.abs_diff(*m) == 0);
                prop_assert!(!wanted || near, "{timeline} {n}");
            }
        }
    }

    #[test]
    fn more_roots_never_need_less(
        graph in any_graph(), onward in any_backups(3), alone in any_backups(3), which: prop::sample::Index,
    ) {
        let (onward, alone) = (place(&graph, &onward, 0), place(&graph, &alone, 100));
        prop_assume!(!alone.is_empty());
        let before = WalNeed::of(&WalRoots { in_use: false, ..of(&graph, &onward, &alone) });
        let mut more = onward.clone();
        more.push(which.get(&alone).clone());
        let after = WalNeed::of(&WalRoots { in_use: false, ..of(&graph, &more, &alone) });
        for timeline in graph.ids() {
            for n in (0..30).map(SegmentNo) {
                prop_assert!(after.needs(timeline, n) || !before.needs(timeline, n));
            }
        }
    }
}
