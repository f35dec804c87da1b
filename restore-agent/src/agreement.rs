//! Whether the repositories that plans and refusals come from hold one server's WAL.

use std::collections::VecDeque;

use futures_util::TryStreamExt;
use walpoint_base::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId, WalFileName};
use walpoint_repo::layout::WalEntry;
use walpoint_repo::plan::RestorePlan;
use walpoint_repo::{Lineage, RepoError};

use crate::choice::Refused;
use crate::plan::Planned;

/// How many segments are compared at most until two repositories have one that can be.
const COMPARED: usize = 16;

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
