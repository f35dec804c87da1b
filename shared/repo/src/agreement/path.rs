//! Two repositories along the path of a plan, by what their catalogs know: which segments both have needs no request.

use std::collections::{BTreeMap, BTreeSet};

use walpoint_base::{Lsn, RecoveryTarget, SegmentName, SegmentNo, TimelineId};
use walpoint_plan::restore::{DoubtfulEnd, ForkSource, PathStep, RestorePlan, SegmentRange};
use walpoint_storage::error::Result;

use super::segments::{contradicting, damaged_beyond};
use super::{Agreement, COMPARED, begins_on, incomplete, newest, of_begins, of_lives};
use crate::catalog::LineageCatalog;

/// What a comparison along the path of a plan shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Along {
    /// Whether both hold one server's WAL on the way of the plan.
    pub agreement: Agreement,
    /// Why the incomplete copy that a plan ends in is not known to be that end, although nothing shows that the other repository's is
    /// another server's: what is damaged there may hold more, or may be the copy of the server that is meant; or it has that copy and
    /// another server's.
    pub end: Option<DoubtfulEnd>,
}

/// Compares the repository that a plan reads from with another one of its lineage: two ranged requests at the same time, unless what
/// they have in common is damaged, or one has incomplete copies of what the other has. What was not looked at of the other's WAL is
/// not compared ([`LineageCatalog::look_at`]).
pub async fn along(plan: &RestorePlan, one: &LineageCatalog, other: &LineageCatalog) -> Result<Along> {
    let (ours, theirs) = (one.archive(), other.archive());
    let (here, there) = (ours.repository().name(), theirs.repository().name());
    let done = |agreement| Ok(Along { agreement, end: None });
    let lives = of_lives((one.lineage(), here), (other.lineage(), there));
    if lives != Agreement::Same {
        return done(lives);
    }
    let begins = of_begins(one.lineage(), (&begins_of(plan, one), here), (&begins_of(plan, other), there));
    if begins != Agreement::Same {
        return done(begins);
    }
    let both = common(plan, one, other);
    let newest_common = both.first().and_then(|name| name.number(one.lineage().segment_size));
    let agreement = newest(ours, theirs, &both).await?;
    if let Agreement::Different(_) = agreement {
        return done(agreement);
    }
    let mut along = Along { agreement, end: None };
    for (name, step) in beginnings(plan, one, other, newest_common) {
        let found = incomplete(ours, theirs, name, step.end).await?;
        if let Agreement::Different(_) = found {
            return done(found);
        }
        let is_end = plan.fork.is_some_and(|fork| {
            matches!(fork.source, ForkSource::Partial(timeline) if SegmentName { timeline, ..fork.name } == name)
        });
        if let (Some(fork), true) = (plan.fork, is_end) {
            let more = match plan.target {
                RecoveryTarget::Latest if step.end.is_none() => {
                    damaged_beyond(ours, theirs, name, fork.cut).await?
                }
                _ => None,
            };
            let damaged = more.or(match &found {
                Agreement::Unknown(why) => Some(why.clone()),
                _ => None,
            });
            // One of the two may have a copy of each server, and the other only one of them.
            let copies = contradicting(ours, theirs, name).await?;
            along.end = match copies.is_empty() {
                true => damaged.map(DoubtfulEnd::Damaged),
                false => Some(DoubtfulEnd::Contradicting(copies)),
            };
        }
        if let Agreement::Unknown(why) = found {
            tracing::warn!("{why}");
        }
    }
    Ok(along)
}

/// Where the timelines of the plan's path begin, as one of the repositories knows it.
fn begins_of(plan: &RestorePlan, lineage: &LineageCatalog) -> BTreeMap<TimelineId, Lsn> {
    let facts = lineage.facts();
    let own = plan.path.iter().filter(|step| step.end.is_none_or(|end| end > step.begin));
    let known = own.filter(|step| !facts.doubts.contains_key(&step.timeline));
    known
        .filter_map(|step| {
            let begins = begins_on(facts.graph.history(step.timeline)?);
            Some((step.timeline, *begins.get(&step.timeline)?))
        })
        .collect()
}

/// The newest whole segment that a plan reads and that both have.
pub fn newest_in_common(
    plan: &RestorePlan,
    one: &LineageCatalog,
    other: &LineageCatalog,
) -> Option<SegmentName> {
    common(plan, one, other).into_iter().next()
}

/// The whole segments that a plan reads and that both have, the newest first.
fn common(plan: &RestorePlan, one: &LineageCatalog, other: &LineageCatalog) -> Vec<SegmentName> {
    let size = one.lineage().segment_size;
    let mut names = Vec::new();
    for range in plan.wal.iter().rev() {
        let (Ok(ours), Ok(theirs)) = (one.facts().wal(range.timeline), other.facts().wal(range.timeline))
        else {
            continue;
        };
        for run in ours.iter().rev() {
            for other in theirs.iter().rev() {
                let first = range.first.max(run.first).max(other.first);
                let last = range.last.min(run.last).min(other.last);
                let left = COMPARED.saturating_sub(names.len());
                let numbers = (first.0..=last.0).rev().take(left).map(SegmentNo);
                names.extend(numbers.map(|number| number.name(range.timeline, size)));
            }
        }
    }
    names
}

/// The segments on the path behind the newest one that both have of which one has an incomplete copy, and the other anything, with the
/// timeline's part of the path; the newest ones.
fn beginnings<'a>(
    plan: &'a RestorePlan,
    one: &LineageCatalog,
    other: &LineageCatalog,
    newest_common: Option<SegmentNo>,
) -> Vec<(SegmentName, &'a PathStep)> {
    let size = one.lineage().segment_size;
    let last = SegmentNo::before(plan.until, size);
    let mut found = Vec::new();
    for step in plan.path.iter().rev() {
        let begins = SegmentNo::of(step.begin, size);
        let ends = step.end.map_or(last, |end| SegmentNo::before(end, size).min(last));
        let from =
            newest_common.map_or(SegmentNo::of(plan.backup.start(), size), SegmentNo::next).max(begins);
        if ends < from {
            continue;
        }
        let range = SegmentRange { timeline: step.timeline, first: from, last: ends };
        let (ours, theirs) = (one.incomplete_in(&range), other.incomplete_in(&range));
        let any = |lineage: &LineageCatalog, incomplete: &BTreeSet<SegmentNo>, number| {
            let whole = lineage.facts().wal(step.timeline).is_ok_and(|runs| runs.contains(number));
            whole || incomplete.contains(&number)
        };
        let either: BTreeSet<SegmentNo> = ours.union(&theirs).copied().collect();
        let of_both = either
            .into_iter()
            .rev()
            .filter(|number| any(one, &ours, *number) && any(other, &theirs, *number));
        found.extend(of_both.map(|number| (number.name(step.timeline, size), step)));
    }
    found.truncate(COMPARED);
    found
}
