//! A target that several lineages of a family have in common: it lies before they parted. To read it, any of them will do. A server that
//! archives behind it is one of those servers, and only a person knows which.

use walpoint_base::{LineageId, SegmentSize, TargetTimeline};
use walpoint_plan::restore::hint::Hint;
use walpoint_plan::restore::note::Note;
use walpoint_plan::restore::planner::Verdict;
use walpoint_plan::restore::request::RestoreRequest;
use walpoint_plan::restore::unreachable::{SharingLineage, Unreachable, Why};
use walpoint_storage::error::Result;

use super::older;
use crate::catalog::Catalog;

/// What a person has to know of a plan whose target `others` have, too.
pub(super) fn note(lineage: LineageId, others: Vec<LineageId>) -> Option<Note> {
    (!others.is_empty()).then_some(Note::AlsoInLineages { lineage, others })
}

/// The question which of the servers the restored one is.
pub(super) async fn which_server(
    catalog: &mut Catalog,
    request: &RestoreRequest,
    first: LineageId,
    others: Vec<LineageId>,
) -> Result<Verdict> {
    let (mut sharing, mut segment_size) = (Vec::new(), SegmentSize::DEFAULT);
    for id in std::iter::once(first).chain(others) {
        let lineage = catalog.lineages_mut().iter_mut().find(|lineage| lineage.id() == id);
        let Some(lineage) = lineage else { continue };
        let newest = older::last_wal(lineage, TargetTimeline::Latest).await?;
        let facts = lineage.lineage();
        segment_size = facts.segment_size;
        let parent = facts.parent.map(|parent| parent.lineage);
        sharing.push(SharingLineage { lineage: id, parent, created: facts.created, newest });
    }
    Ok(Err(Box::new(Unreachable {
        target: request.target.clone(),
        timeline: request.timeline,
        lineage: None,
        why: Why::SharedByLineages(sharing),
        missing: Vec::new(),
        nearest: Vec::new(),
        hints: vec![Hint::ChooseServer],
        segment_size,
        youngest: None,
    })))
}
