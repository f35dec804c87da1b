//! What a planner will most likely ask for, known before it asks: which backup and which timelines. Pure; right or wrong, it
//! decides nothing but how many answers are fetched at the same time.

use walpoint_base::{BackupId, Lsn, PgTimestamp, RecoveryTarget, TargetTimeline, TimelineId};

use super::facts::Facts;
use super::request::RestoreRequest;
use super::stop::StopRule;

/// Backups that are looked at ahead: the newest before the target may end behind it.
const BACKUPS: usize = 2;

/// What will most likely be asked for.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Likely {
    /// The backups that will be looked at.
    pub backups: Vec<BackupId>,
    /// The timelines on whose WAL the plan depends, oldest first.
    pub timelines: Vec<TimelineId>,
    /// Where replay will begin.
    pub start: Option<Lsn>,
    /// What will end it.
    pub rule: Option<StopRule>,
}

/// What planning `request` will most likely ask for.
pub fn likely(facts: &Facts, request: &RestoreRequest) -> Likely {
    let newest = || facts.graph.ids().next_back();
    let leaf = match (request.timeline, request.backup) {
        (TargetTimeline::Id(timeline), _) => Some(timeline),
        (TargetTimeline::Current, Some(id)) => Some(id.timeline()),
        (TargetTimeline::Current, None) => facts.backups.last().map(|id| id.timeline()),
        (TargetTimeline::Latest, _) => newest(),
    };
    let Some(history) = leaf.and_then(|leaf| facts.graph.history(leaf)) else { return Likely::default() };
    let before_target = |id: &BackupId| match request.target {
        RecoveryTarget::Time(time) => id.started().is_none_or(|at| PgTimestamp::from_time(at) <= time),
        RecoveryTarget::Lsn(lsn) => id.start() <= lsn,
        _ => true,
    };
    let mut backups: Vec<BackupId> = match request.backup {
        Some(id) => facts.backups.iter().filter(|known| **known == id).copied().collect(),
        None => {
            let on_path = |id: &BackupId| history.timeline_at(id.start()) == id.timeline();
            let may_do = |id: &BackupId| on_path(id) && before_target(id) && !facts.is_ruled_out(*id);
            facts.backups.iter().copied().filter(may_do).collect()
        }
    };
    backups.sort_by_key(|id| std::cmp::Reverse((id.start(), *id)));
    let needed = match request.target {
        RecoveryTarget::Latest => 1,
        _ => BACKUPS,
    };
    backups.truncate(needed);
    let start = backups.first().map(|id| id.start());
    let with_bytes = |timeline: &TimelineId| history.begin_of(*timeline).is_some();
    let rule = StopRule::of(&request.target, request.inclusive);
    Likely { backups, timelines: history.path().filter(with_bytes).collect(), start, rule }
}
