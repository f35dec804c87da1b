//! Plans in a lineage that was split off from another one.

use std::sync::Arc;

use jiff::Timestamp;
use walpoint_base::{SegmentNo, TimelineId};
use walpoint_plan::restore::{Note, RestorePlan, RestoreRequest, SegmentDecoder};

use super::decoder::Decoder;
use crate::catalog::Catalog;
use crate::expire::tests::cluster;
use crate::index::tests::like;
use crate::lineage::{LineageFork, ParentLineage};
use crate::planning::{plan, split_off_note};
use crate::verify::tests::readable_world;

/// A lineage that is named was chosen: whether its parent has the target too is not looked at, so nothing is said of that. Where both were
/// asked and the plan is of the one that was split off, the other one does not have the target.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_lineage_that_is_named_nothing_is_said_of_its_parent() {
    let (bed, _) = readable_world().await;
    let (repository, own) = (bed.archive.repository(), bed.archive.lineage());
    let fork = LineageFork { timeline: TimelineId::FIRST, lsn: SegmentNo(20).start(own.segment_size) };
    let parent = ParentLineage { lineage: own.id, fork: Some(fork), began: None, life: None };
    let copy = repository.split_lineage(&cluster(), like(own), Some(parent), 0).await.unwrap();
    let decoder: Arc<dyn SegmentDecoder> = Arc::new(Decoder);
    let request = RestoreRequest { lineage: Some(copy.id), ..RestoreRequest::default() };
    let planned = plan(repository, &cluster(), &request, &decoder, Timestamp::now()).await.unwrap();
    let plan = planned.unwrap_or_else(|refused| panic!("{refused:?}"));
    assert_eq!(plan.lineage, copy.id);
    let told = plan.notes.iter().any(|note| matches!(note, Note::SplitOff { .. }));
    assert!(!told, "{:?}", plan.notes);

    let catalog = Catalog::load(repository, &cluster()).await.unwrap();
    let place = |id| catalog.lineages().iter().position(|lineage| lineage.id() == id).unwrap();
    let (own, copied) = (own.id, copy.id);
    let note = split_off_note(&catalog, &[place(own), place(copied)], &plan);
    assert_eq!(note, Some(Note::SplitOff { lineage: copied, parent: own }));
    assert_eq!(split_off_note(&catalog, &[place(copied)], &plan), None);
    let parents = RestorePlan { lineage: own, ..plan };
    assert_eq!(split_off_note(&catalog, &[place(own), place(copied)], &parents), None);
}
