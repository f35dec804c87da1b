//! Plans in a lineage that was split off from another one.

use std::sync::Arc;

use jiff::Timestamp;
use walpoint_base::{SegmentNo, TimelineId};
use walpoint_plan::restore::{Note, RestoreRequest, SegmentDecoder};

use super::decoder::Decoder;
use crate::expire::tests::cluster;
use crate::index::tests::like;
use crate::lineage::{LineageFork, ParentLineage};
use crate::planning::plan;
use crate::verify::tests::readable_world;

/// Who names a lineage has chosen: whether its parent has the target too is not looked at, so nothing is said of that.
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
}
