//! Objects are judged by what they are.

use walpoint_base::{BackupId, Lsn, SegmentName, SegmentSize, TimelineHistory, TimelineId, WalFileName};
use walpoint_plan::graph::TimelineGraph;
use walpoint_plan::reach::{WalNeed, WalRoots};
use walpoint_plan::retention::{Candidate, Damage};
use walpoint_storage::layout::{ClusterObject, ClusterPaths, Key, NameHash, WalEntry};

use super::*;

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

/// Timeline 2 leaves 1 in the middle of segment 5, timeline 3 leaves 1 in segment 9.
fn forked() -> TimelineGraph {
    graph(&[(2, "1\t0/580000\tx\n"), (3, "1\t0/980000\tx\n")])
}

fn of<'a>(graph: &'a TimelineGraph, onward: &'a [Candidate], alone: &'a [Candidate]) -> WalRoots<'a> {
    WalRoots { graph, size: size(), onward, alone, unfinished: &[], in_use: true, beside: &[] }
}

#[test]
fn objects_are_judged_by_what_they_are() {
    let (graph, last) = (forked(), [backup(9, (3, 12 * 1024), (3, 12 * 1024 + 5))]);
    let lineage = "7-1".parse().unwrap();
    let mut roots = Roots::default();
    roots.keep_wal(lineage, size(), WalNeed::of(&of(&graph, &last, &[])));
    let ids = [1, 2, 3].map(|n| backup(n, (1, 1024), (1, 1024)).id);
    roots.keep_backup(ids[0]);
    roots.keep_pack(ids[1], 4);
    roots.keep_all_packs(ids[2]);
    let paths = ClusterPaths::new(&"main".parse().unwrap());
    let wal = paths.wal(lineage);
    let name = |timeline: u32, segment: u32| SegmentName { timeline: tli(timeline), log: 0, segment };
    let (gone, kept) = (name(1, 3), name(3, 12));
    let judge = |roots: &Roots, key: Key| roots.judge(&paths.parse(&key).unwrap());
    for (key, expected) in [
        (paths.intent(ids[0]), Judgement::Needed(Class::Backup)),
        (paths.manifest(ids[1]), Judgement::Unneeded(Class::Backup)),
        (paths.progress(ids[1], 0), Judgement::Unneeded(Class::Backup)),
        (paths.pack(ids[1], 4), Judgement::Needed(Class::Pack)),
        (paths.pack(ids[1], 5), Judgement::Unneeded(Class::Pack)),
        (paths.pack(ids[0], 0), Judgement::Unneeded(Class::Pack)),
        (paths.pack(ids[2], 77), Judgement::Needed(Class::Pack)),
        (wal.segment(gone), Judgement::Unneeded(Class::Segment)),
        (wal.segment(kept), Judgement::Needed(Class::Segment)),
        (wal.ended(gone, Lsn(5), NameHash([1; 16])), Judgement::Unneeded(Class::Segment)),
        (wal.slice(gone, Lsn(5), Lsn(6), 7), Judgement::Unneeded(Class::Segment)),
        (wal.partial(gone, NameHash([1; 16])), Judgement::Unneeded(Class::Segment)),
        (wal.part(WalFileName::Segment(gone), "00ff", 0), Judgement::Unneeded(Class::Segment)),
        (wal.file(WalFileName::Backup(gone, 1)), Judgement::Unneeded(Class::BackupHistory)),
        (wal.file(WalFileName::Backup(kept, 1)), Judgement::Needed(Class::BackupHistory)),
        (wal.file(WalFileName::History(tli(2))), Judgement::Kept),
        (wal.index_object(tli(1), 1, 0, 1), Judgement::Unneeded(Class::Index)),
        (wal.index_object(tli(3), 1, 0, 1), Judgement::Needed(Class::Index)),
        (wal.index_object(tli(3), 2, 0, 1), Judgement::Needed(Class::Index)),
        (wal.point("x", tli(1), Lsn(3 * MIB + 5)), Judgement::Unneeded(Class::RestorePoint)),
        (wal.point("x", tli(3), Lsn(13 * MIB)), Judgement::Needed(Class::RestorePoint)),
        (paths.lineage(lineage), Judgement::Kept),
        (paths.hold(1), Judgement::Kept),
        (paths.announcement(1), Judgement::Kept),
        (paths.evidence(1), Judgement::Kept),
        (paths.evidence_head(), Judgement::Kept),
    ] {
        assert_eq!(judge(&roots, key.clone()), expected, "{key}");
    }
    let other = paths.wal("7-2".parse().unwrap()).segment(gone);
    assert_eq!(judge(&roots, other), Judgement::Needed(Class::Segment), "a lineage that appeared meanwhile");
    let stranger = ClusterObject::Wal(lineage, WalEntry::File(WalFileName::Segment(name(9, 0))));
    assert_eq!(roots.judge(&stranger), Judgement::Needed(Class::Segment));
    roots.keep_packs_until(ids[1]);
    assert_eq!(
        judge(&roots, paths.pack(ids[0], 0)),
        Judgement::Needed(Class::Pack),
        "older than what cannot be read"
    );
    let ahead = BackupId::new(
        ids[1].started().unwrap() + jiff::SignedDuration::from_hours(48),
        TimelineId::FIRST,
        ids[0].start(),
        9,
    );
    assert_eq!(
        judge(&roots, paths.pack(ahead, 0)),
        Judgement::Needed(Class::Pack),
        "its clock was ahead: its position is older"
    );
}
