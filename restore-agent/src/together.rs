//! A plan over the WAL of all repositories together, where none of them alone leads to the target: each may lack what another one has,
//! and recovery asks them all.
//!
//! It costs another plan for each repository, all at the same time, and is made only where the answer without it is a refusal for WAL
//! that is missing, or a plan to the latest moment although another repository has more.

use std::sync::Arc;

use futures_util::future::join_all;
use jiff::Timestamp;
use walpoint_base::{RecoveryTarget, SegmentNo};
use walpoint_plan::restore::{Hint, RestoreRequest, SegmentDecoder, SegmentRange, Unreachable, Why};
use walpoint_repo::catalog::{Catalog, LineageCatalog};
use walpoint_repo::planning;
use walpoint_storage::RepoError;

use crate::choice::Refused;
use crate::plan::{self, Planned};

/// What the repositories lead to together.
#[derive(Debug, Default)]
pub(crate) struct Together {
    /// The plans from each one's backups.
    pub(crate) plans: Vec<Planned>,
    /// Why there is none.
    pub(crate) refusals: Vec<Refused>,
}

/// Whether what one repository lacks may be in another one.
pub(crate) fn may_help(refusals: &[Refused]) -> bool {
    let lacks_wal = |refused: &Refused| {
        matches!(
            refused.refusal.why,
            Why::MissingWal { .. }
                | Why::AfterEnd { .. }
                | Why::EndsInFork { .. }
                | Why::EndsIncomplete { .. }
                | Why::ContradictingCopies { .. }
                | Why::UnknownTimeline(_)
                | Why::NoHistory(_)
                | Why::NoBackupOnPath { .. }
                | Why::XidNotFound
                | Why::NameNotFound
        )
    };
    refusals.iter().any(lacks_wal)
}

/// Whether a repository has something behind the end of a plan to the latest moment, on the timeline that it leads to.
pub(crate) fn is_outreached(planned: &Planned, catalogs: &[Catalog]) -> bool {
    let (plan, size) = (&planned.plan, planned.lineage.segment_size);
    if plan.target != RecoveryTarget::Latest {
        return false;
    }
    // One that recovery does not follow may begin in the segment in which the plan ends.
    let next = match plan.leaf == plan.timeline {
        true => SegmentNo::before(plan.until, size).next(),
        false => SegmentNo::of(plan.end(), size),
    };
    let others = catalogs.iter().filter(|catalog| catalog.repository().name() != planned.repository.name());
    let lineages = others.flat_map(Catalog::lineages).filter(|lineage| lineage.id() == plan.lineage);
    lineages.filter_map(|lineage| lineage.wal(plan.leaf)).any(|wal| wal.reaches(next))
}

/// Plans from the backups of each repository over the WAL of all of them.
pub(crate) async fn plan(
    catalogs: &[Catalog],
    request: &RestoreRequest,
    decoder: &Arc<dyn SegmentDecoder>,
) -> Together {
    let plans = catalogs.iter().map(|home| async move {
        let name = home.repository().name();
        let others = catalogs.iter().filter(|other| other.repository().name() != name);
        let found = plan_from(home.joined(others), request, decoder).await;
        (home, found)
    });
    let mut together = Together::default();
    for (home, found) in join_all(plans).await {
        match found {
            Ok(Ok(mut planned)) => {
                planned.together = true;
                planned.remarks.extend(borrowed(&planned, home));
                together.plans.push(planned);
            }
            Ok(Err(refusal)) => {
                together.refusals.push(Refused { repository: home.repository().clone(), refusal });
            }
            Err(error) => tracing::warn!(
                "no plan was made from the backups in repository \"{}\" with the WAL of the others: {}",
                home.repository().name(),
                walpoint_words::error(&error)
            ),
        }
    }
    together
}

/// Why a plan to the latest moment from one repository is none, because of what others have behind its end: recovery, which asks all,
/// would not end there.
pub(crate) fn refusal_of(planned: &Planned, refusals: Vec<Refused>) -> Option<Unreachable> {
    let own = refusals.into_iter().find(|one| one.repository.name() == planned.repository.name())?;
    let leads_on = matches!(
        own.refusal.why,
        Why::MissingWal { .. } | Why::EndsIncomplete { .. } | Why::ContradictingCopies { .. }
    );
    leads_on.then_some(own.refusal)
}

/// Takes over what is missing in all repositories, where each one's refusal says what it lacks itself, and which copies of the last
/// segment contradict each other, of which each one may have one.
pub(crate) fn explain(refusals: &mut [Refused], together: Vec<Refused>) {
    for one in together {
        let alone = refusals.iter_mut().find(|refused| refused.repository.name() == one.repository.name());
        let Some(alone) = alone else { continue };
        match (&alone.refusal.why, &one.refusal.why) {
            (Why::MissingWal { .. }, Why::MissingWal { .. }) => {
                alone.refusal = one.refusal;
                alone.refusal.hints.push(Hint::MissingEverywhere);
            }
            (_, Why::ContradictingCopies { .. }) => alone.refusal = one.refusal,
            _ => {}
        }
    }
}

async fn plan_from(
    mut joined: Catalog,
    request: &RestoreRequest,
    decoder: &Arc<dyn SegmentDecoder>,
) -> Result<Result<Planned, Unreachable>, RepoError> {
    match planning::prove_from(&mut joined, request, decoder, Timestamp::now()).await? {
        Ok(plan) => plan::planned(&mut joined, plan).await.map(Ok),
        Err(refusal) => Ok(Err(*refusal)),
    }
}

/// What a plan reads from other repositories than the one of its backup.
fn borrowed(planned: &Planned, home: &Catalog) -> Option<String> {
    let plan = &planned.plan;
    let lineage = home.lineages().iter().find(|lineage| lineage.id() == plan.lineage)?;
    let lacks: Vec<String> = plan
        .wal
        .iter()
        .flat_map(|range| missing_of(lineage, range))
        .map(|range| range.describe(planned.lineage.segment_size))
        .collect();
    let name = planned.repository.name();
    (!lacks.is_empty()).then(|| {
        format!(
            "Repository \"{name}\" has the backup and lacks {}: recovery reads that from another repository, so each of them has to be \
             in reach until it ends.",
            lacks.join(", ")
        )
    })
}

/// The parts of a range that a repository does not have.
fn missing_of(lineage: &LineageCatalog, range: &SegmentRange) -> Vec<SegmentRange> {
    let Ok(runs) = lineage.facts().wal(range.timeline) else { return vec![*range] };
    let (mut missing, mut from) = (Vec::new(), range.first);
    for run in runs.iter().filter(|run| run.last >= range.first && run.first <= range.last) {
        if run.first > from {
            missing.push(SegmentRange { first: from, last: SegmentNo(run.first.0 - 1), ..*range });
        }
        from = run.last.next();
    }
    if from <= range.last {
        missing.push(SegmentRange { first: from, ..*range });
    }
    missing
}
