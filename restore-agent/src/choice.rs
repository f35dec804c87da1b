//! Which of several repositories' answers counts, when one of them lags behind another.

use std::cmp::Ordering;

use walpoint_base::{LineageId, RecoveryTarget, TargetTimeline, TimelineHistory};
use walpoint_plan::restore::{Hint, Note, RestorePlan, Unreachable, Why};
use walpoint_repo::catalog::Catalog;
use walpoint_repo::{Lineage, Repository};

use crate::plan::Planned;

/// The setting with which a plan keeps recovery from reading ahead.
const LOOK_AHEAD: &str = "recovery_prefetch";

/// What a repository does not have.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) repository: Repository,
    /// What it says.
    pub(crate) refusal: Unreachable,
}

/// The plan that recovers the newest of what the target may mean: of the newest lineage and timeline, furthest in the WAL.
/// Between equals one from which nothing is known to be damaged, then the one that has least to replay, then the one that knows
/// most timelines on the way, then the first.
pub(crate) fn best(plans: Vec<Planned>) -> Option<Planned> {
    // Recovery asks every repository, so what keeps it from reading ahead into a gap of one of them counts for all.
    let ahead = |planned: &Planned| planned.plan.settings.iter().find(|s| s.name == LOOK_AHEAD).cloned();
    let without_look_ahead = plans.iter().find_map(ahead);
    // One that does not know a lineage says nothing of what that has, too.
    let is_shared = |note: &&Note| matches!(note, Note::AlsoInLineages { .. });
    let shared = plans.iter().flat_map(|planned| planned.plan.notes.iter().filter(is_shared).cloned());
    let shared: Vec<Note> = shared.collect();
    let mut plans = plans.into_iter();
    let mut best = plans.next()?;
    for other in plans {
        let (kept, left) = if rank(&other, &best).is_gt() { (other, best) } else { (best, other) };
        explain(&kept, &left);
        best = kept;
    }
    if let Some(setting) = without_look_ahead.filter(|_| ahead(&best).is_none()) {
        best.plan.settings.insert(0, setting);
    }
    for note in shared {
        let is_its = matches!(&note, Note::AlsoInLineages { lineage, .. } if *lineage == best.plan.lineage);
        if is_its && !best.plan.notes.contains(&note) {
            best.plan.notes.push(note);
        }
    }
    Some(best)
}

/// Which of two plans goes further.
pub(crate) fn reach(one: &Planned, other: &Planned) -> Ordering {
    let lineages = newer(&one.lineage, &other.lineage);
    let position = |planned: &Planned| {
        let plan = &planned.plan;
        (plan.path.last().map_or(plan.timeline, |step| step.timeline), plan.until)
    };
    lineages.then_with(|| position(one).cmp(&position(other)))
}

/// Which of two lineages is newer. Each repository has its own moment at which a lineage was created there: in one that was added later, an
/// older lineage has a later one.
fn newer(one: &Lineage, other: &Lineage) -> Ordering {
    match (comes_from(one, other.id), comes_from(other, one.id)) {
        _ if one.id == other.id => Ordering::Equal,
        (true, _) => Ordering::Greater,
        (_, true) => Ordering::Less,
        (false, false) => one.created.cmp(&other.created),
    }
}

/// Whether a lineage was split off from that one.
fn comes_from(lineage: &Lineage, id: LineageId) -> bool {
    lineage.parent.is_some_and(|parent| parent.lineage == id)
}

fn rank(one: &Planned, other: &Planned) -> Ordering {
    let sound = |planned: &Planned| {
        let plan = &planned.plan;
        // A repository that lost a history does not know where the timeline comes from.
        (planned.damage.is_none(), plan.backup.start(), plan.path.len())
    };
    reach(one, other).then_with(|| sound(one).cmp(&sound(other)))
}

/// Says why a repository was left out, if its answer was another one.
fn explain(kept: &Planned, left: &Planned) {
    let (name, other) = (kept.repository.name(), left.repository.name());
    let (plan, left_plan) = (&kept.plan, &left.plan);
    if reach(kept, left).is_eq() {
        if plan.backup.id != left_plan.backup.id {
            tracing::info!(
                "repository \"{other}\" would begin with backup {}; \"{name}\" has {} and is used",
                left_plan.backup.id,
                plan.backup.id
            );
        }
        return;
    }
    match plan.target {
        RecoveryTarget::Latest => tracing::warn!(
            "repository \"{other}\" ends at {} on timeline {}; \"{name}\" goes on to {} on timeline {} and is used",
            left_plan.until,
            left_plan.timeline,
            plan.until,
            plan.timeline
        ),
        _ => tracing::warn!(
            "repository \"{other}\" lags behind: it would recover to {} on timeline {}; \"{name}\" recovers to {} on timeline {} \
             and is used",
            left_plan.until,
            left_plan.timeline,
            plan.until,
            plan.timeline
        ),
    }
}

/// A refusal because the target may mean several moments, of one lineage or of several, taken out of the others.
pub(crate) fn ambiguous(refusals: &mut Vec<Refused>) -> Option<Unreachable> {
    let count = |refused: &Refused| match &refused.refusal.why {
        Why::SeveralPoints(points) | Why::NameNotUtf8(points) => points.len(),
        Why::SeveralLineages(lineages) => lineages.len(),
        Why::SharedByLineages(lineages) => lineages.len(),
        _ => 0,
    };
    let (at, most) = refusals.iter().map(count).enumerate().max_by_key(|(_, count)| *count)?;
    (most > 0).then(|| refusals.swap_remove(at).refusal)
}

/// A refusal that shows that a plan is not the answer, taken out of the others: its repository proves WAL behind the end of a plan
/// to the latest moment, where recovery, which asks this repository too, would not end; or it knows a younger timeline, or a newer
/// lineage, that the plan's repository lacks; or it has a lineage that may be meant and that can be read in no repository.
pub(crate) fn contradicting(
    planned: &Planned,
    refusals: &mut Vec<Refused>,
    catalogs: &[Catalog],
) -> Option<Unreachable> {
    let at = refusals.iter().position(|one| {
        goes_on(&planned.plan, &one.refusal)
            || leads_elsewhere(planned, &one.refusal, catalogs)
            || is_unreadable(&one.refusal, catalogs)
            || has_a_newer_end(&planned.plan, &one.refusal)
    })?;
    let Refused { repository, mut refusal } = refusals.swap_remove(at);
    if leads_elsewhere(planned, &refusal, catalogs) {
        let plan = &planned.plan;
        refusal.hints.push(Hint::LagsBehind {
            ahead: repository.name().to_owned(),
            behind: planned.repository.name().to_owned(),
            until: plan.until,
            timeline: plan.timeline,
            lineage: plan.lineage,
        });
    }
    Some(refusal)
}

/// Whether a refusal names a backup that no repository can read and that ended later than the one whose end is planned.
fn has_a_newer_end(plan: &RestorePlan, refusal: &Unreachable) -> bool {
    let Why::NewestUnreadable { backup, .. } = &refusal.why else { return false };
    plan.target == RecoveryTarget::Immediate && plan.backup.id.start() < backup.start()
}

/// Whether a refusal is for a lineage whose facts no repository has undamaged.
fn is_unreadable(refusal: &Unreachable, catalogs: &[Catalog]) -> bool {
    let Why::DamagedLineage { lineage: damaged, .. } = &refusal.why else { return false };
    !catalogs.iter().flat_map(Catalog::lineages).any(|lineage| lineage.id() == *damaged)
}

/// Whether a refusal in a plan's lineage proves WAL that a plan to the latest moment does not lead to.
fn goes_on(plan: &RestorePlan, refusal: &Unreachable) -> bool {
    if plan.target != RecoveryTarget::Latest
        || refusal.lineage.as_ref().is_some_and(|lineage| lineage.id != plan.lineage)
    {
        return false;
    }
    // On the timeline that recovery follows, and on the one that it would follow if this repository had anything of it.
    let ends = [(plan.timeline, plan.until), (plan.leaf, plan.end())];
    ends.into_iter().any(|(on, end)| match &refusal.why {
        // Of one that is damaged not even its first record can be had, and recovery asks for it all the same.
        Why::EndsIncomplete { segment, until, damaged } => {
            segment.timeline == on && (*until > end || damaged.is_some() && *until >= end)
        }
        Why::EndsInFork { timeline, until } => *timeline == on && *until > end,
        Why::MissingWal { .. } => refusal.missing.first().is_some_and(|range| {
            let begins = range.first.start(refusal.segment_size);
            // The leaf begins inside a segment.
            let behind = begins >= end || on != plan.timeline && range.first.end(refusal.segment_size) > end;
            range.timeline == on && behind
        }),
        // The plan's repository knows nothing of the second server that claims its timeline.
        Why::DoubtfulTimeline { timeline, doubt, .. } => *timeline == on && doubt.is_of_two_servers(),
        _ => false,
    })
}

/// Whether a refusal comes from a repository with a younger timeline, or a newer lineage with WAL of its own, that the plan's
/// repository does not know, and the plan ends where that is not known to have led, by what any repository knows of it.
fn leads_elsewhere(planned: &Planned, refusal: &Unreachable, catalogs: &[Catalog]) -> bool {
    let (plan, latest) = (&planned.plan, planned.plan.target == RecoveryTarget::Latest);
    if let Some(lineage) = refusal.lineage.as_ref().filter(|lineage| lineage.id != plan.lineage) {
        let is_newer = lineage.created > planned.lineage.created && !comes_from(&planned.lineage, lineage.id);
        return latest && is_newer && proves_wal(&refusal.why);
    }
    let Some(youngest) = refusal.youngest.as_ref().filter(|_| refusal.timeline == TargetTimeline::Latest)
    else {
        return false;
    };
    let followed = plan.path.last().map_or(plan.timeline, |step| step.timeline);
    // Where the refusing repository's own copy of the history is lost or damaged, another one's says where the timeline comes from.
    let lineages = catalogs.iter().flat_map(Catalog::lineages).filter(|lineage| lineage.id() == plan.lineage);
    let known = lineages.filter_map(|lineage| lineage.sound_history(youngest.timeline));
    let histories: Vec<&TimelineHistory> = youngest.history.iter().chain(known).collect();
    // Before the position there is the last byte that recovery replays.
    let leads_there =
        |history: &&TimelineHistory| plan.until.0 > 0 && history.timeline_at(plan.until - 1) == plan.timeline;
    let on_its_way = !histories.is_empty() && histories.iter().all(leads_there);
    youngest.timeline > followed && (latest || !on_its_way)
}

/// Whether a refusal says that WAL of the lineage leads to the latest moment, or leads there but for something that is wrong.
fn proves_wal(why: &Why) -> bool {
    matches!(
        why,
        Why::MissingWal { .. }
            | Why::MinimalWal { .. }
            | Why::BrokenChain { .. }
            | Why::EndsInFork { .. }
            | Why::EndsIncomplete { .. }
            | Why::ContradictingCopies { .. }
            | Why::DoubtfulTimeline { .. }
            | Why::NoHistory(_)
            | Why::NewestWithoutBackup { .. }
    )
}

/// The refusal that offers the furthest moment; the first of several.
pub(crate) fn telling(refusals: Vec<Refused>) -> Option<Unreachable> {
    let offers =
        |refused: &Refused| refused.refusal.nearest.iter().map(|moment| (moment.timeline, moment.lsn)).max();
    // Of equal ones `max_by_key` would take the last.
    refusals.into_iter().rev().max_by_key(offers).map(|refused| refused.refusal)
}

#[cfg(test)]
mod tests {
    use walpoint_base::{PgMajor, SegmentSize, SystemId};
    use walpoint_repo::lineage::{LineageUid, ParentLineage};

    use super::*;

    fn lineage(n: u32, created: i64, parent: Option<u32>) -> Lineage {
        let id = |n| LineageId { system_id: SystemId(7), n };
        Lineage {
            cluster: "main".parse().unwrap(),
            id: id(n),
            uid: LineageUid::random(),
            major: PgMajor::new(17).unwrap(),
            segment_size: SegmentSize::DEFAULT,
            wal_block_size: 8192,
            block_size: 8192,
            relation_segment_blocks: 131_072,
            created: jiff::Timestamp::from_second(created).unwrap(),
            ack: Vec::new(),
            parent: parent.map(|n| ParentLineage { lineage: id(n), fork: None, began: None, life: None }),
        }
    }

    /// A repository that was added later has the older lineage with a later time.
    #[test]
    fn a_lineage_is_newer_than_the_one_that_it_was_split_off_from() {
        let (first, late) = (lineage(1, 100, None), lineage(1, 300, None));
        let (child, other) = (lineage(2, 200, Some(1)), lineage(3, 150, None));
        for older in [&first, &late] {
            assert_eq!((newer(&child, older), newer(older, &child)), (Ordering::Greater, Ordering::Less));
        }
        assert_eq!(newer(&first, &late), Ordering::Equal);
        assert_eq!((newer(&child, &other), newer(&other, &late)), (Ordering::Greater, Ordering::Less));
    }
}
