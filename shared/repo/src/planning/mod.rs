//! Planning against a repository: answers the planner's questions until there is a plan or a refusal.
//!
//! | module | owns |
//! |---|---|
//! | `damaged` | what damage means for a plan: to the facts of lineages, and to WAL |
//! | `older` | when an older lineage may be restored than the newest |
//! | `created`, `required` | the tablespaces that replay creates; the settings that it needs |
//! | `marked` | records that the index knows of by marks |
//! | `shared` | a target that several lineages have in common |
//! | `last_record` | where recovery to the end of the archive ends |

mod created;
mod damaged;
mod last_record;
mod marked;
mod older;
mod required;
mod shared;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use walpoint_base::{ClusterName, LineageId, RecoveryTarget, SegmentSize, TargetTimeline};
use walpoint_plan::restore::hint::Hint;
use walpoint_plan::restore::likely::likely;
use walpoint_plan::restore::note::Note;
use walpoint_plan::restore::planner::{Verdict, plan as plan_in};
use walpoint_plan::restore::request::RestoreRequest;
use walpoint_plan::restore::restore_plan::RestorePlan;
use walpoint_plan::restore::stop::SegmentDecoder;
use walpoint_plan::restore::unreachable::{LineageMoment, Unreachable, Why};
use walpoint_storage::error::Result;

pub use self::created::{created_tablespaces, creating_segments};
pub use self::last_record::last_record;
pub use self::required::required_settings;
use crate::Repository;
use crate::catalog::{BrokenChain, Catalog, LineageCatalog};

/// Plans a restore of a cluster. Reads tens of objects, whatever the size of the archive, and writes nothing.
pub async fn plan(
    repository: &Repository,
    cluster: &ClusterName,
    request: &RestoreRequest,
    decoder: &Arc<dyn SegmentDecoder>,
    now: Timestamp,
) -> Result<Verdict> {
    plan_from(&mut Catalog::load(repository, cluster).await?, request, decoder, now).await
}

/// Plans as [`plan`] does, and proves the plan: every segment that it needs is found in a listing of the store itself, not
/// only in the index. One that was deleted without the index is a gap, and the plan is made anew.
/// One more request for each 900 segments to replay. Does without the backups that the request names as unreadable.
pub async fn prove(
    repository: &Repository,
    cluster: &ClusterName,
    request: &RestoreRequest,
    decoder: &Arc<dyn SegmentDecoder>,
    now: Timestamp,
) -> Result<Verdict> {
    prove_from(&mut Catalog::load(repository, cluster).await?, request, decoder, now).await
}

/// Proves a plan with a catalog that was loaded a moment ago.
pub async fn prove_from(
    catalog: &mut Catalog,
    request: &RestoreRequest,
    decoder: &Arc<dyn SegmentDecoder>,
    now: Timestamp,
) -> Result<Verdict> {
    catalog.lineages_mut().iter_mut().for_each(|lineage| lineage.do_without(&request.unreadable));
    loop {
        let verdict = plan_from(catalog, request, decoder, now).await?;
        let Ok(plan) = &verdict else { return Ok(verdict) };
        let lineage = catalog.lineages_mut().iter_mut().find(|lineage| lineage.id() == plan.lineage);
        let confirmed = match lineage {
            Some(lineage) => lineage.confirm(&plan.wal).await?,
            None => true,
        };
        // Every round that is not the last one takes segments out of what is believed to be there.
        if confirmed {
            return Ok(verdict);
        }
    }
}

/// Plans with a catalog that is loaded.
///
/// Lineages that were split off from one another are a family: several servers went on from what they have in common. Which
/// of them is meant only a person knows, so where two members have the target with different content the plan is refused. Where it is the
/// same in both, it is planned in the one that the other was split off from, unless the restored server archives: that is one of the two.
/// The newest family is tried first; an older one only for what the newest cannot have: a moment before it began, a backup
/// of the older one. Where an older one went on after the newest was registered, the plan is refused as well.
///
/// A lineage whose facts are damaged may be the one that "latest" means: that plan is refused, others say so.
pub async fn plan_from(
    catalog: &mut Catalog,
    request: &RestoreRequest,
    decoder: &Arc<dyn SegmentDecoder>,
    now: Timestamp,
) -> Result<Verdict> {
    damaged::unless_asked_for(catalog, request)?;
    let verdict = plan_in_readable(catalog, request, decoder, now).await?;
    Ok(damaged::unless_meant(catalog, request, verdict))
}

async fn plan_in_readable(
    catalog: &mut Catalog,
    request: &RestoreRequest,
    decoder: &Arc<dyn SegmentDecoder>,
    now: Timestamp,
) -> Result<Verdict> {
    let mut refusal: Option<Box<Unreachable>> = None;
    let mut skipped: Vec<(Vec<usize>, Box<Unreachable>)> = Vec::new();
    let mut families = families(catalog, request.lineage).into_iter();
    while let Some(family) = families.next() {
        match plan_in_family(catalog, &family, request, decoder, now).await? {
            Some(Ok(plan)) => {
                let older: Vec<Vec<usize>> = families.collect();
                return match older::unless_newer_is_meant(catalog, request, skipped, plan).await? {
                    Ok(plan) => {
                        unless_older_is_in_use(catalog, (&family, &older), request, plan, decoder, now).await
                    }
                    refused => Ok(refused),
                };
            }
            Some(Err(unreachable)) => {
                if !may_be_older(&unreachable.why) {
                    return Ok(Err(refusal.take().unwrap_or(unreachable)));
                }
                refusal.get_or_insert_with(|| unreachable.clone());
                skipped.push((family, unreachable));
            }
            None => {}
        }
    }
    Ok(Err(match refusal {
        Some(refusal) => refusal,
        None => Box::new(no_lineage(catalog, request).await?),
    }))
}

/// A plan, or the question which lineage is meant: where an older family went on after the plan's was registered, that is no
/// successor. It is a copy that was upgraded, or an upgrade that was abandoned, and each of both has what the other has not. A name that
/// both have means one moment of each, whichever was in use.
async fn unless_older_is_in_use(
    catalog: &mut Catalog,
    (family, older): (&[usize], &[Vec<usize>]),
    request: &RestoreRequest,
    mut plan: RestorePlan,
    decoder: &Arc<dyn SegmentDecoder>,
    now: Timestamp,
) -> Result<Verdict> {
    let created = family.iter().filter_map(|at| catalog.lineages().get(*at));
    let created = created.map(|lineage| lineage.lineage().created).min();
    let Some(created) = created.filter(|_| request.backup.is_none()) else { return Ok(Ok(plan)) };
    for other in older {
        let in_use = older::in_use_since(catalog, other, created).await?;
        let named = older::has_name(catalog, other, &request.target).await?;
        let Some(lineage) = in_use.or(named) else { continue };
        let means_it = |why: &Why| {
            may_be_meant(why, request)
                || matches!(why, Why::SeveralPoints(_) | Why::NameNotUtf8(_) | Why::SharedByLineages(_))
        };
        match plan_in_family(catalog, other, request, decoder, now).await? {
            Some(Ok(other)) => {
                return Ok(Err(Box::new(several_lineages(catalog, request, &[plan, other]))));
            }
            Some(Err(refused)) if means_it(&refused.why) => {
                let mut several = several_lineages(catalog, request, &[plan]);
                several.hints.push(Hint::MayBeMeant { lineage, why: refused.why });
                return Ok(Err(Box::new(several)));
            }
            Some(Err(refused)) => plan.notes.extend(in_use.map(|older| Note::OlderInUse {
                older,
                lineage: plan.lineage,
                why: refused.why,
            })),
            None => {}
        }
    }
    Ok(Ok(plan))
}

/// Plans in the lineages of one family; `None` if it has none.
async fn plan_in_family(
    catalog: &mut Catalog,
    family: &[usize],
    request: &RestoreRequest,
    decoder: &Arc<dyn SegmentDecoder>,
    now: Timestamp,
) -> Result<Option<Verdict>> {
    let (mut plans, mut refused): (Vec<RestorePlan>, Option<Box<Unreachable>>) = (Vec::new(), None);
    let (mut held_back, mut same): (Vec<Hint>, Vec<RestorePlan>) = (Vec::new(), Vec::new());
    let named = family.len() > 1 || request.lineage.is_some();
    let others = catalog.lineages().len() > 1 && request.lineage.is_none();
    for &at in family {
        let Some(lineage) = catalog.lineages_mut().get_mut(at) else { continue };
        let mut verdict = plan_in_lineage(lineage, request, decoder, now).await?;
        if others {
            name_lineage(&mut verdict, lineage.id());
        }
        match verdict {
            // Before the fork it is what the one has that it was split off from.
            Ok(plan) if !plans.is_empty() && has_nothing_own(lineage, &plan) => same.push(plan),
            Ok(plan) => plans.push(plan),
            Err(mut unreachable) => {
                if request.lineage.is_none() && may_be_meant(&unreachable.why, request) {
                    let why = unreachable.why.clone();
                    held_back.push(Hint::MayBeMeant { lineage: lineage.id(), why });
                }
                // What is offered leads there only with the lineage by name.
                if named {
                    unreachable.nearest.iter_mut().for_each(|moment| moment.lineage = Some(lineage.id()));
                }
                refused.get_or_insert(unreachable);
            }
        }
    }
    if plans.len() + held_back.len() > 1 && !plans.is_empty() {
        // Each of them is a server that the restored one may be.
        if request.archives {
            plans.append(&mut same);
        }
        let mut several = several_lineages(catalog, request, &plans);
        several.hints.extend(held_back);
        return Ok(Some(Err(Box::new(several))));
    }
    if let Some(mut plan) = plans.pop() {
        // The end of a server that has archived nothing behind the fork is not the end of this one.
        let has_target = request.target != RecoveryTarget::Latest;
        let others: Vec<LineageId> = same.iter().filter(|_| has_target).map(|other| other.lineage).collect();
        if request.archives && !others.is_empty() {
            return shared::which_server(catalog, request, plan.lineage, others).await.map(Some);
        }
        plan.notes.extend(split_off_note(catalog, family, &plan));
        plan.notes.extend(shared::note(plan.lineage, others));
        return Ok(Some(Ok(plan)));
    }
    Ok(refused.map(Err))
}

/// Has the lineage named with the targets that notes and hints offer: another one may have these positions, too.
fn name_lineage(verdict: &mut Verdict, lineage: LineageId) {
    match verdict {
        Ok(plan) => plan.notes.iter_mut().for_each(|note| match note {
            Note::RemovedBefore(removed) => removed.lineage = Some(lineage),
            Note::Locked(locked) => locked.lineage = Some(lineage),
            Note::Dropped(dropped) => dropped.lineage = Some(lineage),
            _ => {}
        }),
        Err(refusal) => refusal.hints.iter_mut().for_each(|hint| {
            if let Hint::RemovedBefore(removed) = hint {
                removed.lineage = Some(lineage);
            }
        }),
    }
}

/// The lineages that come from one another, as places in a list that is in the order in which they were created: the newest
/// family first, in each the one first that was not split off. Those that were split off from one whose facts are damaged are a family
/// as well. Only `only`, if one is named.
fn families(catalog: &Catalog, only: Option<LineageId>) -> Vec<Vec<usize>> {
    let (lineages, damaged) = (catalog.lineages(), catalog.damaged_lineages());
    let place = |id: LineageId| lineages.iter().position(|lineage| lineage.id() == id);
    if let Some(id) = only {
        return place(id).map(|at| vec![at]).into_iter().collect();
    }
    let root = |mut at: usize| {
        // No more steps than there are lineages: a parent that is its own descendant is nobody's.
        for _ in 0..lineages.len() {
            let parent = lineages.get(at).and_then(|lineage| lineage.lineage().parent);
            let Some(parent) = parent.map(|parent| parent.lineage) else { break };
            match place(parent) {
                Some(parent) => at = parent,
                None if damaged.iter().any(|damaged| damaged.id == parent) => {
                    let of = |lineage: &LineageCatalog| {
                        lineage.lineage().parent.is_some_and(|other| other.lineage == parent)
                    };
                    return lineages.iter().position(of).unwrap_or(at);
                }
                None => break,
            }
        }
        at
    };
    let mut families: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for at in 0..lineages.len() {
        families.entry(root(at)).or_default().push(at);
    }
    families.into_values().rev().collect()
}

async fn plan_in_lineage(
    lineage: &mut LineageCatalog,
    request: &RestoreRequest,
    decoder: &Arc<dyn SegmentDecoder>,
    now: Timestamp,
) -> Result<Verdict> {
    lineage.look_ahead(likely(lineage.facts(), request)).await;
    let mut plan = match lineage.ask(Some(decoder), |facts| plan_in(facts, request, now)).await? {
        Ok(plan) => plan,
        Err(mut refused) => {
            refused.youngest = lineage.youngest();
            refused.lineage = Some(lineage.lineage().into());
            refused.hints.extend(damaged::found(lineage, &refused.missing));
            return Ok(Err(refused));
        }
    };
    let broken = lineage.broken_chain(&plan.wal).await?;
    Ok(match broken.into_iter().next() {
        Some(broken) => {
            let youngest = lineage.youngest();
            Err(Box::new(Unreachable { youngest, ..not_continued(&plan, request, lineage, broken) }))
        }
        None => {
            // Who names a timeline has chosen.
            if request.timeline == TargetTimeline::Latest {
                // Of a timeline that has nothing but its history recovery ends where it begins.
                let went_on = lineage.went_on(plan.leaf).await?;
                let passed = went_on.iter().filter(|one| one.left <= plan.until);
                plan.notes.extend(passed.copied().map(Note::WentOn));
            }
            Ok(plan)
        }
    })
}

/// Whether a plan reads nothing but what the lineage has in common with the one that it was split off from. Names and positions
/// tell nothing: two servers that go on from one write the same ones.
fn has_nothing_own(lineage: &LineageCatalog, plan: &RestorePlan) -> bool {
    let (archive, size) = (lineage.archive(), lineage.lineage().segment_size);
    let forked = plan.fork.and_then(|fork| fork.source_name().segment());
    let last = plan.wal.iter().map(|range| range.last.name(range.timeline, size));
    let mut read = last.chain(forked).peekable();
    read.peek().is_some() && read.all(|segment| archive.inherits(segment))
}

/// What a person has to know of a lineage that alone of its family has the target and was split off from one of them. Where a lineage is
/// named, no other one was asked.
fn split_off_note(catalog: &Catalog, family: &[usize], plan: &RestorePlan) -> Option<Note> {
    let mut asked = family.iter().filter_map(|at| catalog.lineages().get(*at));
    let parent = asked.clone().find(|lineage| lineage.id() == plan.lineage)?.lineage().parent?.lineage;
    let is_asked = asked.any(|lineage| lineage.id() == parent);
    is_asked.then_some(Note::SplitOff { lineage: plan.lineage, parent })
}

/// Several members of a family have the target, each with another content.
fn several_lineages(catalog: &Catalog, request: &RestoreRequest, plans: &[RestorePlan]) -> Unreachable {
    let lineage = |id: LineageId| catalog.lineages().iter().find(|lineage| lineage.id() == id);
    // Each plan is one of a lineage of the catalog.
    let moment = |plan: &RestorePlan| {
        let own = lineage(plan.lineage)?.lineage();
        Some(LineageMoment {
            lineage: plan.lineage,
            parent: own.parent.map(|parent| parent.lineage),
            created: own.created,
            timeline: plan.timeline,
            until: plan.until,
            time: plan.stop.as_ref().and_then(|stop| stop.time),
        })
    };
    let size =
        plans.first().and_then(|plan| lineage(plan.lineage)).map(|lineage| lineage.lineage().segment_size);
    Unreachable {
        target: request.target.clone(),
        timeline: request.timeline,
        lineage: None,
        why: Why::SeveralLineages(plans.iter().filter_map(moment).collect()),
        missing: Vec::new(),
        nearest: Vec::new(),
        hints: vec![Hint::ChooseLineage],
        segment_size: size.unwrap_or(SegmentSize::DEFAULT),
        youngest: None,
    }
}

/// Whether a lineage from which a target cannot be recovered may be the one that is meant: WAL of its own leads there, or leads
/// on.
fn may_be_meant(why: &Why, request: &RestoreRequest) -> bool {
    match why {
        Why::MissingWal { .. }
        | Why::MinimalWal { .. }
        | Why::BrokenChain { .. }
        | Why::EndsInFork { .. }
        | Why::EndsIncomplete { .. }
        | Why::ContradictingCopies { .. }
        | Why::DoubtfulTimeline { .. } => true,
        Why::NoBackup | Why::NoBackupOnPath { .. } | Why::UnusableBackup(..) => {
            request.target == RecoveryTarget::Latest
        }
        _ => false,
    }
}

/// Whether an older lineage may have what this one has not.
fn may_be_older(why: &Why) -> bool {
    match why {
        Why::NoBackup
        | Why::NoBackupOnPath { .. }
        | Why::BeforeFirstBackup { .. }
        | Why::ClockSetBack { .. }
        | Why::UnusableBackup(..)
        | Why::BackupNotOnPath(..)
        | Why::UnknownTimeline(_)
        | Why::XidNotFound
        | Why::XidOfOtherEpoch(_)
        | Why::NameNotFound => true,
        Why::UnknownBackup(_)
        | Why::BackupTooLate(_)
        | Why::MissingWal { .. }
        | Why::MinimalWal { .. }
        | Why::EndsInFork { .. }
        | Why::EndsIncomplete { .. }
        | Why::ContradictingCopies { .. }
        | Why::DoubtfulTimeline { .. }
        | Why::AfterEnd { .. }
        | Why::BrokenChain { .. }
        | Why::SeveralPoints(_)
        | Why::NameNotUtf8(_)
        | Why::NoHistory(_)
        | Why::NewestUnreadable { .. }
        | Why::UnknownLineage(_)
        | Why::SeveralLineages(_)
        | Why::SharedByLineages(_)
        | Why::NewestWithoutBackup { .. }
        | Why::DamagedLineage { .. }
        | Why::LostLineages { .. }
        | Why::NoCluster(_) => false,
    }
}

/// The segments are all there, and recovery cannot pass from one to the next.
fn not_continued(
    plan: &RestorePlan,
    request: &RestoreRequest,
    lineage: &LineageCatalog,
    broken: BrokenChain,
) -> Unreachable {
    let split_brain = broken.is_split_brain();
    let BrokenChain { segment, fault, recorded } = broken;
    let size = lineage.lineage().segment_size;
    let start = segment.number(size).map(|number| number.start(size)).unwrap_or_default();
    let hints =
        vec![Hint::EarlierThan(start), if split_brain { Hint::ListBroken } else { Hint::BackupBehind }];
    Unreachable {
        target: plan.target.clone(),
        timeline: request.timeline,
        lineage: Some(lineage.lineage().into()),
        why: Why::BrokenChain { backup: plan.backup.id, segment, fault, recorded },
        missing: Vec::new(),
        nearest: Vec::new(),
        hints,
        segment_size: size,
        youngest: None,
    }
}

async fn no_lineage(catalog: &Catalog, request: &RestoreRequest) -> Result<Unreachable> {
    let known: Vec<LineageId> = catalog.lineages().iter().map(LineageCatalog::id).collect();
    let stored = match known.is_empty() {
        true => catalog.repository().stored_lineages(catalog.cluster()).await?,
        false => Vec::new(),
    };
    let is_there = !stored.is_empty() || !catalog.backups().is_empty();
    let (why, hint) = match request.lineage.filter(|_| !known.is_empty()) {
        Some(id) => (Why::UnknownLineage(id), Hint::KnownLineages(known)),
        None if known.is_empty() && is_there => {
            let cluster = catalog.cluster().to_string();
            (Why::LostLineages { cluster, stored }, Hint::PutLineagesBack)
        }
        None => {
            let store = catalog.repository().store().name().to_owned();
            (Why::NoCluster(catalog.cluster().to_string()), Hint::CheckCluster { store })
        }
    };
    Ok(Unreachable {
        target: request.target.clone(),
        timeline: request.timeline,
        lineage: None,
        why,
        missing: Vec::new(),
        nearest: Vec::new(),
        hints: vec![hint],
        segment_size: SegmentSize::DEFAULT,
        youngest: None,
    })
}
