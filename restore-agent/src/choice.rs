//! Which of several repositories' answers counts, when one of them lags behind another.

use std::cmp::Ordering;
use std::collections::VecDeque;

use futures_util::TryStreamExt;
use walpoint_base::{
    Lsn, RecoveryTarget, SegmentName, SegmentNo, SegmentSize, TargetTimeline, TimelineId, WalFileName,
};
use walpoint_repo::layout::WalEntry;
use walpoint_repo::plan::{Doubt, RestorePlan, Unreachable, Why};
use walpoint_repo::{Lineage, RepoError, Repository};

use crate::plan::Planned;

/// The setting with which a plan keeps recovery from reading ahead.
const LOOK_AHEAD: &str = "recovery_prefetch";

/// How many segments are compared at most until two repositories have one that can be.
const COMPARED: usize = 16;

/// What a repository does not have.
#[derive(Debug)]
pub(crate) struct Refused {
    /// The repository.
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

/// What shows that two repositories hold different WAL under one name, both on the way of a plan: recovery reads from either. Their
/// timelines have to begin where they do in the other, and the newest segment that both plans need is compared, since what lies
/// before it is on the way to it, and so is what both build of incomplete copies. What cannot be read shows nothing.
pub(crate) async fn differing(plans: &[Planned], refusals: &[Refused]) -> Option<String> {
    let pairs = plans.iter().enumerate().flat_map(|(at, one)| {
        plans
            .iter()
            .skip(at + 1)
            .filter(|other| other.lineage.id == one.lineage.id)
            .map(move |other| (one, other))
    });
    for (one, other) in pairs {
        let (here, there) = (one.repository.name(), other.repository.name());
        let begins = |timeline| {
            let steps = other.plan.path.iter().filter(|step| step.end.is_none_or(|end| end > step.begin));
            steps.clone().find(|step| step.timeline == timeline).map(|step| step.begin)
        };
        if let Some(what) = begins_elsewhere(&one.plan, (here, there), begins) {
            return Some(what);
        }
        match same_copies(one, other).await {
            Ok(true) => {}
            Ok(false) => {
                let name = one.plan.fork.map(|fork| fork.name.to_string()).unwrap_or_default();
                return Some(format!(
                    "the incomplete copy of segment {name} of lineage {} has other content in repository \"{here}\" than in \"{there}\"",
                    one.lineage.id
                ));
            }
            Err(error) => {
                tracing::warn!(
                    "incomplete copies are not compared between \"{here}\" and \"{there}\": {error}"
                )
            }
        }
        for name in common(&one.plan, &other.plan, one.lineage.segment_size) {
            match same(one, other, name).await {
                Ok(Some(false)) => {
                    return Some(format!(
                        "segment {name} of lineage {} has other content in repository \"{here}\" than in \"{there}\"",
                        one.lineage.id
                    ));
                }
                Ok(Some(true)) => break,
                // Damaged in one of them: an older one shows it, too.
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(
                        "segment {name} is not compared between \"{here}\" and \"{there}\": {error}"
                    );
                    break;
                }
            }
        }
    }
    for planned in plans {
        for refused in refusals.iter().filter(|refused| refused.is_of(&planned.lineage)) {
            if let Some(what) = differs_from_refused(planned, refused).await {
                return Some(what);
            }
        }
    }
    None
}

impl Refused {
    fn is_of(&self, lineage: &Lineage) -> bool {
        self.refusal.lineage.as_ref().is_some_and(|of| of.id == lineage.id)
    }
}

/// As [`differing`], of a plan and a repository without one: recovery reads from that, too.
async fn differs_from_refused(planned: &Planned, refused: &Refused) -> Option<String> {
    let (here, there) = (planned.repository.name(), refused.repository.name());
    if let Some(history) = refused.refusal.youngest.as_ref().and_then(|youngest| youngest.history.as_ref()) {
        let begins = |timeline| {
            let begin = history.begin_of(timeline)?;
            history.end_of(timeline).is_none_or(|end| end > begin).then_some(begin)
        };
        if let Some(what) = begins_elsewhere(&planned.plan, (here, there), begins) {
            return Some(what);
        }
    }
    match newest_that_differs(planned, refused).await {
        Ok(name) => name.map(|name| {
            format!(
                "segment {name} of lineage {} has other content in repository \"{here}\" than in \"{there}\"",
                planned.lineage.id
            )
        }),
        Err(error) => {
            tracing::warn!("WAL is not compared between \"{here}\" and \"{there}\": {error}");
            None
        }
    }
}

/// The newest segment that a plan reads and another repository has, if that has other content there. A listing.
async fn newest_that_differs(planned: &Planned, refused: &Refused) -> Result<Option<SegmentName>, RepoError> {
    let Some(lineage) = &refused.refusal.lineage else { return Ok(None) };
    let size = planned.lineage.segment_size;
    let here = planned.repository.wal_to_read(&planned.lineage).await?;
    let there = refused.repository.wal_to_read(lineage).await?;
    for range in planned.plan.wal.iter().rev() {
        let (first, last) = range.names(size);
        let (mut newest, mut entries) = (VecDeque::new(), there.list(range.timeline, Some(first)));
        while let Some((entry, _)) = entries.try_next().await? {
            match entry {
                WalEntry::File(WalFileName::Segment(segment)) if segment > last => break,
                WalEntry::File(WalFileName::Segment(segment)) => {
                    newest.push_front(segment);
                    newest.truncate(COMPARED);
                }
                _ => {}
            }
        }
        for name in newest {
            // Where it is damaged in one of them, an older one shows it, too.
            if let Some(same) = here.same_segment(&there, name).await? {
                return Ok((!same).then_some(name));
            }
        }
    }
    Ok(None)
}

/// What shows that a timeline of a plan is another server's in another repository, where `begins` says at which position a timeline
/// with WAL of its own begins: two servers took the same number.
fn begins_elsewhere(
    plan: &RestorePlan,
    (here, there): (&str, &str),
    begins: impl Fn(TimelineId) -> Option<Lsn>,
) -> Option<String> {
    let steps = plan.path.iter().filter(|step| step.end.is_none_or(|end| end > step.begin));
    steps.filter_map(|step| Some((step, begins(step.timeline)?))).find(|(step, begin)| *begin != step.begin).map(
        |(step, begin)| {
            format!(
                "timeline {} of lineage {} begins at {} in repository \"{here}\" and at {begin} in \"{there}\"",
                step.timeline, plan.lineage, step.begin
            )
        },
    )
}

/// Whether the bytes of which two plans build the same segment are the same, as far as both go.
async fn same_copies(one: &Planned, other: &Planned) -> Result<bool, RepoError> {
    let (Some(ours), Some(theirs)) = (one.plan.fork, other.plan.fork) else { return Ok(true) };
    let size = one.lineage.segment_size;
    let Some(number) = ours.name.number(size).filter(|_| ours.name == theirs.name) else { return Ok(true) };
    let length = ours.cut.min(theirs.cut).since(number.start(size));
    let here = one.repository.wal_to_read(&one.lineage).await?;
    let there = other.repository.wal_to_read(&other.lineage).await?;
    let here = here.beginning(ours.source_name(), length).await?;
    let there = there.beginning(theirs.source_name(), length).await?;
    Ok(here.zip(there).is_none_or(|(here, there)| here == there))
}

/// Whether the repositories of two plans hold the same content of a segment.
async fn same(one: &Planned, other: &Planned, name: SegmentName) -> Result<Option<bool>, RepoError> {
    let here = one.repository.wal_to_read(&one.lineage).await?;
    let there = other.repository.wal_to_read(&other.lineage).await?;
    here.same_segment(&there, name).await
}

/// The segments that both plans read, the newest first, and no more than [`COMPARED`].
fn common(one: &RestorePlan, other: &RestorePlan, size: SegmentSize) -> Vec<SegmentName> {
    let both = one.wal.iter().flat_map(|a| other.wal.iter().map(move |b| (a, b)));
    let mut ranges: Vec<(SegmentNo, SegmentNo, TimelineId)> = both
        .filter(|(a, b)| a.timeline == b.timeline)
        .map(|(a, b)| (a.last.min(b.last), a.first.max(b.first), a.timeline))
        .filter(|(last, first, _)| last >= first)
        .collect();
    ranges.sort_unstable_by(|a, b| b.cmp(a));
    let names = ranges.into_iter().flat_map(|(last, first, timeline)| {
        (first.0..=last.0).rev().map(move |number| SegmentNo(number).name(timeline, size))
    });
    names.take(COMPARED).collect()
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
        Why::SeveralPoints(points) => points.len(),
        Why::SeveralLineages(lineages) => lineages.len(),
        _ => 0,
    };
    let (at, most) = refusals.iter().map(count).enumerate().max_by_key(|(_, count)| *count)?;
    (most > 0).then(|| refusals.swap_remove(at).refusal)
}

/// A refusal that shows that a plan is not the answer, taken out of the others: its repository proves WAL behind the end of a plan
/// to the latest moment, where recovery, which asks this repository too, would not end; or it knows a younger timeline, or a newer
/// lineage, that the plan's repository lacks.
pub(crate) fn contradicting(planned: &Planned, refusals: &mut Vec<Refused>) -> Option<Unreachable> {
    let at = refusals
        .iter()
        .position(|one| goes_on(&planned.plan, &one.refusal) || leads_elsewhere(planned, &one.refusal))?;
    let Refused { repository, mut refusal } = refusals.swap_remove(at);
    if leads_elsewhere(planned, &refusal) {
        let (plan, name) = (&planned.plan, planned.repository.name());
        let hint = format!(
            "Repository \"{}\" has a younger timeline or lineage. Repository \"{name}\" lags behind it, and would recover to \
             {} on timeline {}: to have that, give \"--lineage {} --target-timeline {}\".",
            repository.name(),
            plan.until,
            plan.timeline,
            plan.lineage,
            plan.timeline
        );
        refusal.hints.push(hint);
    }
    Some(refusal)
}

/// Whether a refusal in a plan's lineage proves WAL that a plan to the latest moment does not lead to.
fn goes_on(plan: &RestorePlan, refusal: &Unreachable) -> bool {
    if plan.target != RecoveryTarget::Latest
        || refusal.lineage.as_ref().is_some_and(|lineage| lineage.id != plan.lineage)
    {
        return false;
    }
    match &refusal.why {
        // Of one that is damaged not even its first record can be had, and recovery asks for it all the same.
        Why::EndsIncomplete { segment, until, damaged } => {
            segment.timeline == plan.timeline
                && (*until > plan.until || damaged.is_some() && *until >= plan.until)
        }
        Why::EndsInFork { timeline, until } => *timeline == plan.timeline && *until > plan.until,
        Why::MissingWal { .. } => refusal.missing.first().is_some_and(|range| {
            range.timeline == plan.timeline && range.first.start(refusal.segment_size) >= plan.until
        }),
        // The plan's repository knows nothing of the second server that claims its timeline.
        Why::DoubtfulTimeline { timeline, doubt, .. } => {
            *timeline == plan.timeline && *doubt == Doubt::Refused
        }
        _ => false,
    }
}

/// Whether a refusal comes from a repository with a younger timeline, or a newer lineage with WAL of its own, that the plan's
/// repository does not know, and the plan ends where that is not known to have led.
fn leads_elsewhere(planned: &Planned, refusal: &Unreachable) -> bool {
    let (plan, latest) = (&planned.plan, planned.plan.target == RecoveryTarget::Latest);
    if let Some(lineage) = refusal.lineage.as_ref().filter(|lineage| lineage.id != plan.lineage) {
        return latest && lineage.created > planned.lineage.created && proves_wal(&refusal.why);
    }
    let Some(youngest) = refusal.youngest.as_ref().filter(|_| refusal.timeline == TargetTimeline::Latest)
    else {
        return false;
    };
    let followed = plan.path.last().map_or(plan.timeline, |step| step.timeline);
    let on_its_way = youngest.history.as_ref().is_some_and(|history| {
        // Before the position there is the last byte that recovery replays.
        plan.until.0 > 0 && history.timeline_at(plan.until - 1) == plan.timeline
    });
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
