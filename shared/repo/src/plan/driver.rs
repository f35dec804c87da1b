//! Planning against a repository: answers the planner's questions until there is a plan or a refusal.

use std::sync::Arc;

use jiff::Timestamp;
use walpoint_base::{ClusterName, SegmentSize};

use super::planner::{Verdict, plan as plan_in};
use super::request::Request;
use super::restore_plan::RestorePlan;
use super::stop::SegmentDecoder;
use super::unreachable::{Unreachable, Why};
use crate::Repository;
use crate::catalog::{BrokenChain, Catalog, LineageCatalog};
use crate::error::Result;

/// Plans a restore of a cluster. Reads tens of objects, whatever the size of the archive, and writes nothing.
pub async fn plan(
    repository: &Repository,
    cluster: &ClusterName,
    request: &Request,
    decoder: &Arc<dyn SegmentDecoder>,
    now: Timestamp,
) -> Result<Verdict> {
    plan_from(&mut Catalog::load(repository, cluster).await?, request, decoder, now).await
}

/// Plans as [`plan`] does, and proves the plan: every segment that it needs is found in a listing of the store itself, not
/// only in the index. One that somebody deleted behind the index's back counts as missing, and the plan is made anew.
/// One more request for each thousand segments to replay.
pub async fn prove(
    repository: &Repository,
    cluster: &ClusterName,
    request: &Request,
    decoder: &Arc<dyn SegmentDecoder>,
    now: Timestamp,
) -> Result<Verdict> {
    let mut catalog = Catalog::load(repository, cluster).await?;
    loop {
        let verdict = plan_from(&mut catalog, request, decoder, now).await?;
        let Ok(plan) = &verdict else { return Ok(verdict) };
        let lineage = catalog.lineages_mut().iter_mut().find(|lineage| lineage.id() == plan.lineage);
        let confirmed = match lineage {
            Some(lineage) => lineage.confirm(&plan.wal).await?,
            None => true,
        };
        // Every round that is not the last one takes a segment out of what is believed to be there.
        if confirmed {
            return Ok(verdict);
        }
    }
}

/// Plans with a catalog that is loaded. The newest lineage is tried first; an older one only for what the newest cannot
/// have: a moment before it began, a backup of the older one.
pub async fn plan_from(
    catalog: &mut Catalog,
    request: &Request,
    decoder: &Arc<dyn SegmentDecoder>,
    now: Timestamp,
) -> Result<Verdict> {
    let mut refusal: Option<Box<Unreachable>> = None;
    for lineage in catalog.lineages_mut().iter_mut().rev() {
        match lineage.ask(Some(decoder), |facts| plan_in(facts, request, now)).await? {
            Ok(plan) => {
                let broken = lineage.broken_chain(&plan.wal).await?;
                return Ok(match broken.into_iter().next() {
                    Some(broken) => Err(Box::new(not_continued(&plan, request, lineage, broken))),
                    None => Ok(plan),
                });
            }
            Err(unreachable) => {
                let final_word = !may_be_older(&unreachable.why);
                let unreachable = refusal.take().unwrap_or(unreachable);
                if final_word {
                    return Ok(Err(unreachable));
                }
                refusal = Some(unreachable);
            }
        }
    }
    Ok(Err(refusal.unwrap_or_else(|| Box::new(no_lineage(catalog, request)))))
}

/// Whether an older lineage may have what this one has not.
fn may_be_older(why: &Why) -> bool {
    match why {
        Why::NoBackup
        | Why::NoBackupOnPath { .. }
        | Why::BeforeFirstBackup { .. }
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
        | Why::DoubtfulTimeline { .. }
        | Why::AfterEnd { .. }
        | Why::BrokenChain { .. }
        | Why::SeveralPoints(_)
        | Why::NoCluster(_) => false,
    }
}

/// The segments are all there, and recovery cannot pass from one to the next.
fn not_continued(
    plan: &RestorePlan,
    request: &Request,
    lineage: &LineageCatalog,
    broken: BrokenChain,
) -> Unreachable {
    let BrokenChain { segment, fault } = broken;
    let size = lineage.lineage().segment_size;
    let start = segment.number(size).map(|number| number.start(size)).unwrap_or_default();
    let mut hints = vec![format!(
        "What lies before {start} can be recovered: give an earlier target, or \"--target-lsn\" with a position before it."
    )];
    if fault.is_split_brain() {
        hints.push("\"archive-agent verify\" lists every such place.".to_owned());
    }
    Unreachable {
        target: plan.target.clone(),
        timeline: request.timeline,
        why: Why::BrokenChain { backup: plan.backup.id, segment, fault },
        missing: Vec::new(),
        nearest: Vec::new(),
        hints,
        segment_size: size,
    }
}

fn no_lineage(catalog: &Catalog, request: &Request) -> Unreachable {
    Unreachable {
        target: request.target.clone(),
        timeline: request.timeline,
        why: Why::NoCluster(catalog.cluster().to_string()),
        missing: Vec::new(),
        nearest: Vec::new(),
        hints: vec![format!(
            "Check the name of the cluster and that {} is the right repository.",
            catalog.repository().store().name()
        )],
        segment_size: SegmentSize::DEFAULT,
    }
}
