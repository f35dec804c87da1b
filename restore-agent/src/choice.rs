//! Which of several repositories' answers counts, when one of them lags behind another.

use std::cmp::Ordering;

use walpoint_base::{RecoveryTarget, SegmentName, SegmentSize};
use walpoint_repo::RepoError;
use walpoint_repo::plan::{RestorePlan, Unreachable, Why};

use crate::plan::Planned;

/// The plan that recovers the newest of what the target may mean: of the newest lineage and timeline, furthest in the WAL.
/// Between equals one from which nothing is known to be damaged, then the one that has least to replay, then the first.
pub(crate) fn best(plans: Vec<Planned>) -> Option<Planned> {
    let mut plans = plans.into_iter();
    let mut best = plans.next()?;
    for other in plans {
        let (kept, left) = if rank(&other, &best).is_gt() { (other, best) } else { (best, other) };
        explain(&kept, &left);
        best = kept;
    }
    Some(best)
}

/// Two plans of which each reads a lineage of one name, that of another server.
pub(crate) fn of_two_servers(plans: &[Planned]) -> Option<(&Planned, &Planned)> {
    let (first, others) = plans.split_first()?;
    let another = |other: &&Planned| {
        other.lineage.id == first.lineage.id && !other.lineage.is_same_life(&first.lineage)
    };
    match others.iter().find(another) {
        Some(other) => Some((first, other)),
        None => of_two_servers(others),
    }
}

/// What shows that two repositories hold different WAL under one name, both on the way of a plan: recovery reads from either. The
/// newest segment that both plans need is compared, since what lies before it is on the way to it.
pub(crate) async fn differing(plans: &[Planned]) -> Result<Option<String>, RepoError> {
    let Some((first, others)) = plans.split_first() else { return Ok(None) };
    for other in others.iter().filter(|other| other.lineage.id == first.lineage.id) {
        let Some(name) = newest_common(&first.plan, &other.plan, first.lineage.segment_size) else {
            continue;
        };
        let (one, two) = (
            first.repository.wal_to_read(&first.lineage).await?,
            other.repository.wal_to_read(&other.lineage).await?,
        );
        if one.same_segment(&two, name).await? == Some(false) {
            return Ok(Some(format!(
                "segment {name} of lineage {} has other content in repository \"{}\" than in \"{}\"",
                first.lineage.id,
                first.repository.name(),
                other.repository.name()
            )));
        }
    }
    Ok(None)
}

/// The newest segment that both plans read.
fn newest_common(one: &RestorePlan, other: &RestorePlan, size: SegmentSize) -> Option<SegmentName> {
    let both = one.wal.iter().flat_map(|a| other.wal.iter().map(move |b| (a, b)));
    let common = both.filter_map(|(a, b)| {
        let last = a.last.min(b.last);
        (a.timeline == b.timeline && last >= a.first.max(b.first)).then_some((last, a.timeline))
    });
    common.max().map(|(number, timeline)| number.name(timeline, size))
}

/// Which of two plans goes further.
fn reach(one: &Planned, other: &Planned) -> Ordering {
    // Each repository has its own moment at which a lineage was created there.
    let lineages = match one.lineage.id == other.lineage.id {
        true => Ordering::Equal,
        false => one.lineage.created.cmp(&other.lineage.created),
    };
    let position = |planned: &Planned| {
        let plan = &planned.plan;
        (plan.path.last().map_or(plan.timeline, |step| step.timeline), plan.until)
    };
    lineages.then_with(|| position(one).cmp(&position(other)))
}

fn rank(one: &Planned, other: &Planned) -> Ordering {
    let sound = |planned: &Planned| (planned.damage.is_none(), planned.plan.backup.start());
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
pub(crate) fn ambiguous(refusals: &mut Vec<Unreachable>) -> Option<Unreachable> {
    let count = |refusal: &Unreachable| match &refusal.why {
        Why::SeveralPoints(points) => points.len(),
        Why::SeveralLineages(lineages) => lineages.len(),
        _ => 0,
    };
    let (at, most) = refusals.iter().map(count).enumerate().max_by_key(|(_, count)| *count)?;
    (most > 0).then(|| refusals.swap_remove(at))
}

/// A refusal that proves WAL behind the end of a plan to the latest moment, taken out of the others: recovery asks this
/// repository too, so it would not end where the plan does.
pub(crate) fn contradicting(planned: &Planned, refusals: &mut Vec<Unreachable>) -> Option<Unreachable> {
    let plan = &planned.plan;
    if plan.target != RecoveryTarget::Latest {
        return None;
    }
    let goes_on = |refusal: &Unreachable| match &refusal.why {
        Why::EndsIncomplete { segment, until } => segment.timeline == plan.timeline && *until > plan.until,
        Why::EndsInFork { timeline, until } => *timeline == plan.timeline && *until > plan.until,
        Why::MissingWal { .. } => refusal.missing.first().is_some_and(|range| {
            range.timeline == plan.timeline && range.first.start(refusal.segment_size) >= plan.until
        }),
        _ => false,
    };
    let at = refusals.iter().position(goes_on)?;
    Some(refusals.swap_remove(at))
}

/// The refusal that offers the furthest moment; the first of several.
pub(crate) fn telling(refusals: Vec<Unreachable>) -> Option<Unreachable> {
    let offers =
        |refusal: &Unreachable| refusal.nearest.iter().map(|moment| (moment.timeline, moment.lsn)).max();
    // Of equal ones `max_by_key` would take the last.
    refusals.into_iter().rev().max_by_key(offers)
}
