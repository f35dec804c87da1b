//! What damage means for a plan: to the facts of lineages, and to WAL.
//!
//! Nothing of a lineage whose facts are damaged can be planned, and whether it has what was asked for is not known. Where it is asked
//! for by name there is no answer. Where "latest" may mean it, only a person knows which lineage is meant.

use walpoint_base::{LineageId, RecoveryTarget};
use walpoint_plan::restore::SegmentRange;
use walpoint_plan::restore::hint::Hint;
use walpoint_plan::restore::note::Note;
use walpoint_plan::restore::planner::Verdict;
use walpoint_plan::restore::request::RestoreRequest;
use walpoint_plan::restore::unreachable::{Unreachable, Why};
use walpoint_storage::error::Result;

use crate::catalog::{Catalog, LineageCatalog};
use crate::lineage::{DamagedLineage, Lineage};

/// An error if a damaged lineage is asked for, or if there is no other.
pub(super) fn unless_asked_for(catalog: &Catalog, request: &RestoreRequest) -> Result<()> {
    let alone = catalog.lineages().is_empty();
    let asked = |damaged: &&DamagedLineage| request.lineage.map_or(alone, |id| id == damaged.id);
    catalog.damaged_lineages().iter().find(asked).map_or(Ok(()), |damaged| Err(damaged.error()))
}

/// A plan, or the refusal because a damaged lineage may be meant; either says which are damaged.
pub(super) fn unless_meant(catalog: &Catalog, request: &RestoreRequest, verdict: Verdict) -> Verdict {
    let of = |id: LineageId| {
        let lineages = catalog.lineages().iter().map(|lineage| lineage.lineage());
        lineages.into_iter().find(|lineage| lineage.id == id)
    };
    let mut plan = match verdict {
        Ok(plan) => plan,
        Err(mut refusal) => {
            let others = catalog.damaged_lineages().iter().filter(|_| request.lineage.is_none());
            let hint =
                |one: &DamagedLineage| Hint::DamagedLineage { lineage: one.id, what: one.what.clone() };
            refusal.hints.extend(others.map(hint));
            return Err(refusal);
        }
    };
    // Who names a lineage, or a backup of it, has chosen.
    let open = request.lineage.is_none() && request.backup.is_none();
    let meant = |lineage: &Lineage, damaged: &&DamagedLineage| {
        open && request.target == RecoveryTarget::Latest && damaged.may_be_meant_beside(lineage)
    };
    if let Some(lineage) = of(plan.lineage)
        && let Some(damaged) = catalog.damaged_lineages().iter().find(|damaged| meant(lineage, damaged))
    {
        return Err(Box::new(refused(request, lineage, damaged)));
    }
    let note = |one: &DamagedLineage| Note::DamagedLineage { lineage: one.id, what: one.what.clone() };
    plan.notes.extend(catalog.damaged_lineages().iter().filter(|_| open).map(note));
    Ok(plan)
}

fn refused(request: &RestoreRequest, instead: &Lineage, damaged: &DamagedLineage) -> Unreachable {
    let (lineage, what) = (damaged.id, damaged.what.clone());
    Unreachable {
        target: request.target.clone(),
        timeline: request.timeline,
        lineage: Some(instead.into()),
        why: Why::DamagedLineage { lineage, what, instead: instead.id },
        missing: Vec::new(),
        nearest: Vec::new(),
        hints: vec![
            Hint::BesideDamaged { lineage: instead.id, damaged: lineage },
            Hint::PutLineageBack(lineage),
        ],
        segment_size: instead.segment_size,
        youngest: None,
    }
}

/// That a missing segment was found damaged, if that is why it counts as missing.
pub(super) fn found(lineage: &LineageCatalog, missing: &[SegmentRange]) -> Option<Hint> {
    let size = lineage.lineage().segment_size;
    let name = missing.iter().find_map(|range| {
        let wal = lineage.wal(range.timeline)?;
        Some(wal.first_found_damaged(range.first, range.last)?.name(range.timeline, size))
    })?;
    Some(Hint::FoundDamaged(name))
}
