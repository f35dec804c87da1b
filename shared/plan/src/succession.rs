//! Which backup came after which, when clocks were wrong.
//!
//! A backup carries the time of the machine that made it, and that may have been set forward or back in between. Positions
//! in the WAL only ever grow along the path to a timeline, so they tell the order there; times are only brought in line with
//! them. Where all clocks were right nothing changes.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use walpoint_base::{BackupId, Lsn, TimelineId};

use crate::graph::TimelineGraph;
use crate::retention::CLOCK_LIMIT;

/// Brings the times of backups of one lineage in line with their positions: a time in the future becomes that of what came
/// next on the path, or `now`; and nothing is older than what came before it. So a clock that was behind never makes
/// anything older than it can be.
pub fn settle(graph: &TimelineGraph, moments: &mut BTreeMap<BackupId, Timestamp>, now: Timestamp) {
    let mut lines: BTreeMap<TimelineId, Vec<(Lsn, Timestamp, BackupId)>> = BTreeMap::new();
    for (id, at) in moments.iter() {
        lines.entry(id.timeline()).or_default().push((id.start(), *at, *id));
    }
    lines.values_mut().for_each(|line| line.sort_unstable());

    // Children have higher ids than their parents. What comes first on a timeline, or after it if that has none.
    let mut first: BTreeMap<TimelineId, Timestamp> = BTreeMap::new();
    for timeline in graph.ids().rev() {
        let children = of_children(graph, timeline, &first);
        let mut next = None;
        for (start, at, _) in lines.get_mut(&timeline).into_iter().flatten().rev() {
            if *at > now {
                let after = children.iter().filter(|(_, switch)| *start < *switch).map(|(at, _)| *at);
                *at = after.chain(next).min().unwrap_or(now);
            }
            next = Some(*at);
        }
        if let Some(at) = next.or_else(|| children.iter().map(|(at, _)| *at).min()) {
            first.insert(timeline, at);
        }
    }

    let mut floors: BTreeMap<TimelineId, Timestamp> = BTreeMap::new();
    for timeline in graph.ids() {
        let parent = graph.history(timeline).and_then(|history| history.parent());
        let mut floor = parent.and_then(|fork| {
            let line = lines.get(&fork.parent).map_or(&[][..], Vec::as_slice);
            let before = line.iter().rev().find(|(start, ..)| *start < fork.switch).map(|(_, at, _)| *at);
            before.max(floors.get(&fork.parent).copied())
        });
        floors.extend(floor.map(|at| (timeline, at)));
        for (_, at, id) in lines.get_mut(&timeline).into_iter().flatten() {
            *at = floor.map_or(*at, |floor| floor.max(*at));
            floor = Some(*at);
            moments.insert(*id, *at);
        }
    }
}

/// What comes first on each child of a timeline that has anything, and where the child begins.
fn of_children(
    graph: &TimelineGraph,
    timeline: TimelineId,
    first: &BTreeMap<TimelineId, Timestamp>,
) -> Vec<(Timestamp, Lsn)> {
    let children = graph.children(timeline).into_iter();
    children.filter_map(|(child, switch)| Some((*first.get(&child)?, switch))).collect()
}

/// What is known of when a backup ended, beside the time that it says itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SeenServers {
    /// When the store had its manifest, by the store's clock.
    pub(crate) stored: Timestamp,
    /// The latest time at which a transaction ended that it holds, if it notes one.
    pub(crate) latest_commit: Option<Timestamp>,
    /// Where it ends.
    pub(crate) stop: Lsn,
}

/// The latest times at which backups of one lineage can have ended: none is later than that of what came after it on the path, and
/// none is earlier than the `settled` time. Where the store had the manifest by a clock of its own, a server's clock that was behind
/// makes no backup older than it is. The store's clock may have been behind as well, if it is that of the same machine: a time before
/// that of a backup which ended before this one began says nothing, and a transaction that it holds did not end after it. What
/// lies in the future proves nothing of another.
pub(crate) fn settle_latest(
    graph: &TimelineGraph,
    settled: &BTreeMap<BackupId, Timestamp>,
    told: &BTreeMap<BackupId, SeenServers>,
    now: Timestamp,
) -> BTreeMap<BackupId, Timestamp> {
    let mut lines: BTreeMap<TimelineId, Vec<(Lsn, BackupId, SeenServers)>> = BTreeMap::new();
    for (id, one) in told {
        lines.entry(id.timeline()).or_default().push((id.start(), *id, *one));
    }
    lines.values_mut().for_each(|line| line.sort_unstable_by_key(|(start, id, _)| (*start, *id)));
    let doubtful = stored_too_early(graph, &lines, now);
    let mut latest = BTreeMap::new();
    let mut first: BTreeMap<TimelineId, Timestamp> = BTreeMap::new();
    for timeline in graph.ids().rev() {
        let children = of_children(graph, timeline, &first);
        let mut next = None;
        for (start, id, SeenServers { stored, latest_commit, .. }) in
            lines.get(&timeline).into_iter().flatten().rev()
        {
            let after = children.iter().filter(|(_, switch)| start < switch).map(|(at, _)| *at);
            let own = match doubtful.contains(id) {
                true => now,
                false => latest_commit.filter(|at| *at <= now).max(Some(*stored)).unwrap_or(*stored).min(now),
            };
            let at = after.chain(next).chain([own]).min().unwrap_or(own);
            let at = settled.get(id).map_or(at, |settled| *settled.max(&at));
            latest.insert(*id, at);
            next = Some(at);
        }
        if let Some(at) = next.or_else(|| children.iter().map(|(at, _)| *at).min()) {
            first.insert(timeline, at);
        }
    }
    latest
}

/// The backups that the store had, by its clock, before others that had ended before they began.
fn stored_too_early(
    graph: &TimelineGraph,
    lines: &BTreeMap<TimelineId, Vec<(Lsn, BackupId, SeenServers)>>,
    now: Timestamp,
) -> BTreeSet<BackupId> {
    let mut doubtful = BTreeSet::new();
    // What came before the first byte of a timeline, of what has a parent.
    let mut floors: BTreeMap<TimelineId, Timestamp> = BTreeMap::new();
    let proves = |told: &SeenServers| told.stored <= now;
    for timeline in graph.ids() {
        let parent = graph.history(timeline).and_then(|history| history.parent());
        let mut floor = parent.and_then(|fork| {
            let line = lines.get(&fork.parent).map_or(&[][..], Vec::as_slice);
            let before = line.iter().filter(|(_, _, told)| told.stop <= fork.switch && proves(told));
            before.map(|(_, _, told)| told.stored).max().max(floors.get(&fork.parent).copied())
        });
        floors.extend(floor.map(|at| (timeline, at)));
        // Those that have begun and not ended.
        let mut running: Vec<SeenServers> = Vec::new();
        for (start, id, told) in lines.get(&timeline).into_iter().flatten() {
            let (ended, rest): (Vec<SeenServers>, Vec<SeenServers>) =
                running.drain(..).partition(|one| one.stop <= *start);
            running = rest;
            floor = floor.max(ended.iter().map(|one| one.stored).max());
            if floor.is_some_and(|floor| floor.duration_since(told.stored) > CLOCK_LIMIT) {
                doubtful.insert(*id);
            }
            running.extend(Some(*told).filter(proves));
        }
    }
    doubtful
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use walpoint_base::TimelineHistory;

    use super::*;

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(1_780_000_000 + hour * 3600).unwrap()
    }

    fn tli(id: u32) -> TimelineId {
        TimelineId::new(id).unwrap()
    }

    /// A backup at a position, by its timeline; the time in its name does not matter.
    fn id(timeline: u32, lsn: u64) -> BackupId {
        BackupId::new(at(0), tli(timeline), Lsn(lsn), 0)
    }

    /// Timeline 2 leaves 1 at 30, 3 leaves 2 at 50.
    fn graph() -> TimelineGraph {
        let mut graph = TimelineGraph::default();
        graph.add(TimelineHistory::parse(tli(3), b"1\t0/1E\tx\n2\t0/32\tx\n").unwrap());
        graph
    }

    fn settled(of: &[(u32, u64, i64)], now: i64) -> Vec<i64> {
        let mut moments = of.iter().map(|(timeline, lsn, hour)| (id(*timeline, *lsn), at(*hour))).collect();
        settle(&graph(), &mut moments, at(now));
        let hour = |id: BackupId| (moments[&id].as_second() - at(0).as_second()) / 3600;
        of.iter().map(|(timeline, lsn, _)| hour(id(*timeline, *lsn))).collect()
    }

    #[test]
    fn positions_tell_the_order_and_times_follow() {
        // Right clocks, an abandoned branch among them.
        let right = [(1, 10, 1), (1, 20, 2), (1, 40, 4), (2, 35, 5), (3, 60, 6)];
        assert_eq!(settled(&right, 6), [1, 2, 4, 5, 6]);
        // A day ahead, then back; behind, then right again.
        assert_eq!(settled(&[(1, 10, 1), (1, 20, 26), (1, 40, 3)], 4), [1, 3, 3]);
        assert_eq!(settled(&[(1, 10, 10), (1, 20, -14), (1, 40, 12)], 12), [10, 10, 12]);
        // When the day is over, nobody can tell any more which of two was wrong: the later one counts as young.
        assert_eq!(settled(&[(1, 10, 1), (1, 20, 26), (1, 40, 3)], 30), [1, 26, 26]);
        // Across forks, and across a timeline that has no backup; what was abandoned before is not in between.
        assert_eq!(settled(&[(1, 20, 90), (1, 40, 2), (3, 60, 3)], 5), [2, 2, 3]);
        assert_eq!(settled(&[(1, 20, 90), (3, 60, 3)], 5), [3, 3]);
        assert_eq!(settled(&[(1, 20, 4), (3, 60, 3)], 5), [4, 4]);
        assert_eq!(settled(&[(1, 40, 4), (2, 35, 3)], 5), [4, 3]);
        assert_eq!(settled(&[(1, 20, 90)], 5), [5]);
    }

    /// Backups by timeline, position, the hour that they say, the hour at which the store had them, and the latest commit.
    fn latest(of: &[(u32, u64, i64, i64, Option<i64>)], now: i64) -> Vec<i64> {
        let mut moments =
            of.iter().map(|(timeline, lsn, hour, ..)| (id(*timeline, *lsn), at(*hour))).collect();
        settle(&graph(), &mut moments, at(now));
        let told = of.iter().map(|(timeline, lsn, _, stored, commit)| {
            let (stop, latest_commit) = (Lsn(lsn + 1), commit.map(at));
            (id(*timeline, *lsn), SeenServers { stored: at(*stored), latest_commit, stop })
        });
        let latest = settle_latest(&graph(), &moments, &told.collect(), at(now));
        let hour = |id: BackupId| (latest[&id].as_second() - at(0).as_second()) / 3600;
        of.iter().map(|(timeline, lsn, ..)| hour(id(*timeline, *lsn))).collect()
    }

    #[test]
    fn the_store_tells_how_late_a_backup_can_have_ended() {
        let latest = |of: &[(u32, u64, i64, i64)], now| {
            latest(
                &of.iter()
                    .map(|(tli, lsn, hour, stored)| (*tli, *lsn, *hour, *stored, None))
                    .collect::<Vec<_>>(),
                now,
            )
        };
        // Right clocks.
        assert_eq!(latest(&[(1, 10, 1, 1), (1, 20, 2, 2), (1, 40, 4, 4), (2, 35, 5, 5)], 6), [1, 2, 4, 5]);
        // Clocks that were behind, once and twice in a row.
        assert_eq!(latest(&[(1, 10, 10, 10), (1, 20, -14, 20), (1, 40, 30, 30)], 31), [10, 20, 30]);
        assert_eq!(latest(&[(1, 10, 10, 10), (1, 15, -14, 18), (1, 20, -10, 20)], 31), [10, 18, 20]);
        // A copy of the repository whose store tells when the copy was made; a clock that was ahead.
        assert_eq!(latest(&[(1, 10, 1, 50), (1, 20, 2, 50), (2, 35, 3, 50)], 60), [50, 50, 50]);
        assert_eq!(latest(&[(1, 10, 1, 1), (1, 20, 26, 2), (1, 40, 3, 3)], 4), [1, 3, 3]);
    }

    /// A store whose clock is that of the host: where it was behind, only other times show it.
    #[test]
    fn a_store_that_contradicts_itself_makes_no_backup_old() {
        // Before the one that came before it: it may have ended as late as the next one, or now.
        assert_eq!(
            latest(&[(1, 10, 10, 10, None), (1, 20, 4, 4, None), (1, 40, 30, 30, None)], 31),
            [10, 30, 30]
        );
        assert_eq!(latest(&[(1, 10, 10, 10, None), (1, 20, 4, 4, None)], 31), [10, 31]);
        assert_eq!(latest(&[(1, 20, 10, 10, None), (3, 60, 4, 4, None)], 31), [10, 31]);
        // Which of two clocks was wrong is not known: both count as young as they can be.
        assert_eq!(
            latest(&[(1, 10, 1, 50, None), (1, 20, 2, 2, None), (3, 60, 55, 55, None)], 60),
            [50, 55, 55]
        );
        // A branch that left before says nothing, nor what lies in the future.
        assert_eq!(latest(&[(1, 40, 10, 10, None), (2, 35, 4, 4, None)], 31), [10, 4]);
        assert_eq!(latest(&[(1, 10, 90, 90, None), (1, 20, 4, 4, None), (1, 40, 6, 6, None)], 31), [4, 4, 6]);
        // What it holds: behind the one before it by less than the clock was wrong.
        assert_eq!(
            latest(&[(1, 10, 10, 10, None), (1, 20, 12, 12, Some(18)), (1, 40, 30, 30, None)], 31),
            [10, 18, 30]
        );
        assert_eq!(latest(&[(1, 20, 12, 12, Some(18)), (1, 40, 30, 30, Some(90))], 31), [18, 30]);
        assert_eq!(latest(&[(1, 20, 12, 12, Some(28)), (1, 40, 20, 20, None)], 31), [20, 20]);
    }

    proptest! {
        #[test]
        fn no_time_goes_back_along_a_path_and_none_lies_in_the_future(
            made in prop::collection::btree_map((1u32..4, 1u64..80), 0i64..100, 0..12), now in 0i64..100,
        ) {
            let graph = graph();
            let moments: BTreeMap<BackupId, Timestamp> =
                made.iter().map(|((timeline, lsn), hour)| (id(*timeline, *lsn), at(*hour))).collect();
            let mut settled = moments.clone();
            settle(&graph, &mut settled, at(now));
            prop_assert_eq!(settled.len(), moments.len());
            for (one, time) in &settled {
                prop_assert!(*time <= at(now));
                prop_assert!(*time >= moments[one].min(at(now)) || moments[one] > at(now));
                for (other, later) in &settled {
                    let path = graph.history(other.timeline()).unwrap();
                    if one.start() < other.start() && path.timeline_at(one.start()) == one.timeline() {
                        prop_assert!(time <= later, "{one} {other}");
                    }
                }
            }
            let mut again = settled.clone();
            settle(&graph, &mut again, at(now));
            prop_assert_eq!(again, settled);
        }
    }
}
