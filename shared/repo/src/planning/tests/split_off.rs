//! Plans in a lineage that was split off from another one.

use std::sync::Arc;

use jiff::Timestamp;
use walpoint_base::{LineageId, RecoveryTarget, SegmentNo, TimelineId};
use walpoint_plan::restore::{Note, RestorePlan, RestoreRequest, SegmentDecoder, Verdict, Why};

use super::decoder::Decoder;
use crate::catalog::Catalog;
use crate::expire::tests::cluster;
use crate::index::tests::{Bed, like};
use crate::lineage::{LineageFork, ParentLineage};
use crate::planning::{plan, split_off_note};
use crate::verify::tests::readable_world;
use crate::{Lineage, Repository};

/// Splits a lineage off at the beginning of a segment.
async fn split_off(repository: &Repository, from: &Lineage, at: u64) -> Lineage {
    let fork = LineageFork { timeline: TimelineId::FIRST, lsn: SegmentNo(at).start(from.segment_size) };
    let parent = ParentLineage { lineage: from.id, fork: Some(fork), began: None, life: None };
    repository.split_lineage(&cluster(), like(from), Some(parent), 0).await.unwrap()
}

async fn planned(repository: &Repository, lineage: Option<LineageId>, archives: bool) -> Verdict {
    planned_to(RecoveryTarget::Latest, repository, lineage, archives).await
}

async fn planned_to(
    target: RecoveryTarget,
    repository: &Repository,
    lineage: Option<LineageId>,
    archives: bool,
) -> Verdict {
    let decoder: Arc<dyn SegmentDecoder> = Arc::new(Decoder);
    let request = RestoreRequest { target, lineage, archives, ..RestoreRequest::default() };
    plan(repository, &cluster(), &request, &decoder, Timestamp::now()).await.unwrap()
}

/// The lineages that a refusal asks to choose from.
fn asked(verdict: Verdict) -> Vec<LineageId> {
    match verdict.unwrap_err().why {
        Why::SharedByLineages(all) => all.iter().map(|one| one.lineage).collect(),
        Why::SeveralLineages(all) => all.iter().map(|one| one.lineage).collect(),
        other => panic!("{other:?}"),
    }
}

/// What several servers have in common is read from the lineage of the first one. The lineage in which one of them archives behind it is
/// nothing that a plan decides, and each can be named, the one in the middle, too.
#[tokio::test(flavor = "multi_thread")]
async fn of_servers_that_have_a_target_in_common_a_person_chooses_the_one_that_archives() {
    let (bed, _) = readable_world().await;
    let (repository, own) = (bed.archive.repository(), bed.archive.lineage());
    let copy = split_off(repository, own, 25).await;
    let again = split_off(repository, &copy, 28).await;
    let all = [own.id, copy.id, again.id];

    let is_shared = |note: &Note| matches!(note, Note::AlsoInLineages { .. });
    let common =
        async |lineage, archives| planned_to(RecoveryTarget::Immediate, repository, lineage, archives).await;
    let plan = common(None, false).await.unwrap();
    assert_eq!(plan.lineage, own.id);
    let note = Note::AlsoInLineages { lineage: own.id, others: vec![copy.id, again.id] };
    assert!(plan.notes.contains(&note), "{:?}", plan.notes);
    assert_eq!(asked(common(None, true).await), all);
    for id in all {
        let plan = common(Some(id), true).await.unwrap();
        assert_eq!(plan.lineage, id);
        assert!(!plan.notes.iter().any(is_shared), "{plan:?}");
    }
    // The others have archived nothing of their own: the end of the archive is the first one's.
    let plan = planned(repository, None, true).await.unwrap();
    assert!(plan.lineage == own.id && !plan.notes.iter().any(is_shared), "{plan:?}");

    // The copy goes on, and the one that was split off from it has what lies before its own fork.
    let copys = Bed { archive: repository.wal(&copy), dir: tempfile::tempdir().unwrap() };
    for number in 25..29 {
        copys.store_whole(number).await;
    }
    assert_eq!(asked(planned(repository, None, false).await), all[..2]);
    assert_eq!(asked(planned(repository, None, true).await), all);
    assert_eq!(planned(repository, Some(copy.id), true).await.unwrap().lineage, copy.id);
}

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
