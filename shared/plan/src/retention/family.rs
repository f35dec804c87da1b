//! Which lineages are one cluster's lives, one after the other.
//!
//! What `pg_upgrade` makes goes on from the lineage before it: together they are a family, within which backups compete for
//! what a rule keeps. A lineage that was split off is another server's, whatever became of the one that it left: it begins
//! a family of its own and takes nothing from its parent's. Which of the two is production is not known here, so neither
//! is ever taken for the end of the other.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use walpoint_base::LineageId;

use super::facts::RetainedLineage;

/// A lineage that goes on archiving this long after another was registered is in use beside it.
const BESIDE: SignedDuration = SignedDuration::from_hours(24);

/// A lineage as it was registered, and what it was used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegisteredLineage {
    /// Which one.
    pub lineage: LineageId,
    /// When it was registered.
    pub created: Timestamp,
    /// Whether it was split off from another one.
    pub split_off: bool,
    /// When its newest WAL was stored.
    pub written: Option<Timestamp>,
    /// When its first backup ended.
    pub first_backup: Option<Timestamp>,
}

/// Where a lineage stands among the others of its cluster.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LineageStanding {
    /// The one that it goes on from.
    pub succeeds: Option<LineageId>,
    /// When the cluster went on in another one; `None` for one that is in use.
    pub superseded: Option<Timestamp>,
}

/// Where each of them stands. A lineage that archives beside a later one is not superseded by it.
pub fn standings(registered: &[RegisteredLineage]) -> BTreeMap<LineageId, LineageStanding> {
    let mut standings: BTreeMap<LineageId, LineageStanding> =
        registered.iter().map(|one| (one.lineage, LineageStanding::default())).collect();
    let mut line: Vec<&RegisteredLineage> = registered.iter().filter(|one| !one.split_off).collect();
    line.sort_by_key(|one| (one.created, one.lineage));
    for pair in line.windows(2) {
        let [before, after] = pair else { continue };
        if is_beside(before, after) {
            continue;
        }
        standings.entry(before.lineage).or_default().superseded = Some(after.created);
        standings.entry(after.lineage).or_default().succeeds = Some(before.lineage);
    }
    standings
}

/// Whether the earlier one was still in use when the later one was.
fn is_beside(before: &RegisteredLineage, after: &RegisteredLineage) -> bool {
    before.written.is_some_and(|written| {
        written > after.created + BESIDE || after.first_backup.is_some_and(|backup| written > backup)
    })
}

/// The family of each lineage, named by its first one.
pub(super) fn families(lives: &[RetainedLineage]) -> BTreeMap<LineageId, LineageId> {
    let succeeds: BTreeMap<LineageId, LineageId> =
        lives.iter().filter_map(|life| Some((life.lineage, life.succeeds?))).collect();
    let first = |lineage: LineageId| {
        // As many steps as there are lineages: what goes in a circle ends somewhere.
        let steps = std::iter::successors(Some(lineage), |one| succeeds.get(one).copied());
        steps.take(lives.len()).last().unwrap_or(lineage)
    };
    lives.iter().map(|life| (life.lineage, first(life.lineage))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_second(1_780_000_000 + hour * 3600).unwrap()
    }

    fn lineage(name: &str) -> LineageId {
        name.parse().unwrap()
    }

    fn registered(name: &str, created: i64, written: i64, first_backup: Option<i64>) -> RegisteredLineage {
        RegisteredLineage {
            lineage: lineage(name),
            created: at(created),
            split_off: !name.ends_with("-1"),
            written: Some(at(written)),
            first_backup: first_backup.map(at),
        }
    }

    fn standing(of: &str, all: &[RegisteredLineage]) -> LineageStanding {
        standings(all)[&lineage(of)]
    }

    #[test]
    fn an_upgrade_goes_on_from_the_lineage_before_it() {
        let all = [registered("7-1", 0, 100, Some(1)), registered("8-1", 101, 900, Some(102))];
        assert_eq!(standing("7-1", &all), LineageStanding { succeeds: None, superseded: Some(at(101)) });
        assert_eq!(
            standing("8-1", &all),
            LineageStanding { succeeds: Some(lineage("7-1")), superseded: None }
        );
    }

    #[test]
    fn what_was_split_off_supersedes_nothing_and_is_superseded_by_nothing() {
        let all = [
            registered("7-1", 0, 100, Some(1)),
            registered("7-2", 50, 100, Some(51)),
            registered("8-1", 101, 900, Some(102)),
        ];
        assert_eq!(standing("7-2", &all), LineageStanding::default());
        assert_eq!(standing("7-1", &all).superseded, Some(at(101)));
        assert_eq!(standing("8-1", &all).succeeds, Some(lineage("7-1")));
        assert_eq!(standing("7-1", &all[..2]), LineageStanding::default());
    }

    #[test]
    fn a_lineage_that_archives_beside_a_later_one_is_not_superseded() {
        // The upgraded one is a copy's: the first one goes on.
        let beside = |written, first_backup| {
            let all = [registered("7-1", 0, written, Some(1)), registered("8-1", 100, 900, first_backup)];
            assert_eq!(standing("7-1", &all).superseded.is_none(), standing("8-1", &all).succeeds.is_none());
            standing("7-1", &all).superseded.is_none()
        };
        assert!(beside(125, None) && beside(103, Some(102)));
        // The last segments are late.
        assert!(!beside(123, None) && !beside(101, Some(102)));
    }
}
