//! A small world: a backup an hour apart from the next, on timelines that fork.

use jiff::{SignedDuration, Timestamp};
use walpoint_base::{BackupId, LineageId, Lsn, TimelineHistory, TimelineId};

use super::super::{
    Candidate, Damage, Decision, HoldFacts, RetainedLineage, RetainedTimeline, RetentionFacts,
};
use crate::graph::TimelineGraph;

pub(super) fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

pub(super) fn tli(id: u32) -> TimelineId {
    TimelineId::new(id).unwrap()
}

pub(super) fn lineage(n: u32) -> LineageId {
    format!("7-{n}").parse().unwrap()
}

/// A backup that ended then, at that position in MiB.
pub(super) fn backup(ended: &str, timeline: u32, mib: u64) -> Candidate {
    let started = at(ended) - SignedDuration::from_mins(10);
    let start = Lsn(mib << 20);
    Candidate {
        id: BackupId::new(started, tli(timeline), start, u32::try_from(mib).unwrap()),
        lineage: lineage(1),
        ended: at(ended),
        complete_by: at(ended),
        latest_commit: None,
        stop: start + 100,
        stop_timeline: tli(timeline),
        label: String::new(),
        damage: Damage::default(),
    }
}

pub(super) fn labelled(mut backup: Candidate, label: &str) -> Candidate {
    label.clone_into(&mut backup.label);
    backup
}

/// A lineage with one timeline, in use now.
pub(super) fn life() -> RetainedLineage {
    let mut graph = TimelineGraph::default();
    graph.add_known(tli(1));
    let timelines = [(tli(1), RetainedTimeline::default())].into();
    RetainedLineage {
        lineage: lineage(1),
        graph,
        succeeds: None,
        superseded: None,
        timelines,
        inherits: [].into(),
        may_inherit: [].into(),
        beside: [].into(),
        gaps: [].into(),
    }
}

/// Adds a timeline that left `parent` at that position and that time.
pub(super) fn fork(life: &mut RetainedLineage, child: u32, parent: u32, mib: u64, when: &str) {
    let mut text: String = life.graph.history(tli(parent)).map_or(String::new(), |history| {
        history.entries().iter().map(|e| format!("{}\t{}\tx\n", e.parent, e.switch)).collect()
    });
    text += &format!("{parent}\t{}\tx\n", Lsn(mib << 20));
    life.graph.add(TimelineHistory::parse(tli(child), text.as_bytes()).unwrap());
    for (id, other) in &mut life.timelines {
        if id.get() < child {
            other.superseded.get_or_insert(at(when));
        }
    }
    life.timelines.insert(tli(child), RetainedTimeline::default());
}

pub(super) fn hold(number: u64, on: &Candidate, until: Option<&str>) -> HoldFacts {
    let (reason, who) = ("audit".to_owned(), "dba".to_owned());
    HoldFacts { number, backup: Some(on.id), label: None, reason, who, until: until.map(at) }
}

pub(super) fn facts(backups: Vec<Candidate>) -> RetentionFacts {
    RetentionFacts { backups, lives: vec![life()], holds: Vec::new(), ..RetentionFacts::default() }
}

/// What stays, by the number of its position; `+` for those that lead onward.
pub(super) fn kept(decisions: &[Decision]) -> String {
    use super::super::RetentionVerdict;
    let staying = decisions.iter().filter(|decision| decision.stays());
    let names = staying.map(|decision| {
        let sign = if decision.verdict == RetentionVerdict::Onward { "+" } else { "" };
        format!("{}{sign}", decision.backup.id.start().0 >> 20)
    });
    names.collect::<Vec<_>>().join(" ")
}
