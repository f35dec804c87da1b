//! What a program gets to see.

use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use walpoint_base::SegmentNo;
use walpoint_plan::restore::testing::forked::world;
use walpoint_plan::restore::testing::world::*;
use walpoint_plan::restore::*;

use super::archived::{archive, open};
use super::decoder::Decoder;
use crate::catalog::Catalog;
use crate::index::tests::bed;
use crate::planning;

#[tokio::test]
async fn status_shows_windows_gaps_and_forks() {
    let (mut world, [first, ..]) = world();
    world.files.remove(&(tli(1), SegmentNo(13)));
    let bed = bed().await;
    archive(&world, &bed, &mut StdRng::seed_from_u64(1)).await;
    let mut lineage = open(&world, &bed).await;
    let decoder: Arc<dyn SegmentDecoder> = Arc::new(Decoder);
    lineage.ask(Some(&decoder), |facts| windows::on_path(facts, tli(1))).await.unwrap();
    let parts = lineage.parts().await.unwrap();
    assert_eq!(parts.len(), 3);
    assert_eq!(parts[0].windows[0].oldest, first);
    assert_eq!((parts[0].gaps.len(), parts[1].gaps.len()), (1, 0));

    // No backup is really there, so all that a repository can tell is WAL.
    let (repository, cluster) = (bed.archive.repository(), bed.archive.lineage().cluster.clone());
    let mut catalog = Catalog::load(repository, &cluster).await.unwrap();
    let known = catalog.status().await.unwrap();
    let status = serde_json::to_value(&known).unwrap();
    let timeline = &status["lineages"][0]["timelines"][1];
    assert_eq!(timeline["parent"], serde_json::json!({ "timeline": 1, "lsn": "0/A80000", "reason": "x" }));
    assert_eq!(timeline["first_segment"], "00000002000000000000000A");
    assert_eq!(timeline["segment_count"], 5);
    assert_eq!(timeline["windows"], serde_json::json!([]), "no backup is there");
    let first = &status["lineages"][0]["timelines"][0];
    let gap = "00000001000000000000000D";
    let range = serde_json::json!({ "first_segment": gap, "last_segment": gap, "segment_count": 1 });
    assert_eq!(first["gaps"], serde_json::json!([range]));

    let mut unknown = Catalog::load(repository, &"nobody".parse().unwrap()).await.unwrap();
    let nothing = unknown.status().await.unwrap();
    assert!(nothing.lineages.is_empty() && nothing.backups.is_empty());
    let (nobody, request) = ("nobody".parse().unwrap(), RestoreRequest::default());
    let refused = planning::plan(repository, &nobody, &request, &decoder, at(0).to_time()).await.unwrap();
    assert_eq!(refused.unwrap_err().why, Why::NoCluster("nobody".to_owned()));
}

/// Timeline 1 has nothing of its own behind what is missing: it is a gap on the way to timeline 2.
#[tokio::test]
async fn status_shows_what_is_missing_before_a_fork() {
    let (mut world, _) = world();
    world.files.retain(|(timeline, number)| *timeline != tli(1) || number.0 < 8);
    let bed = bed().await;
    archive(&world, &bed, &mut StdRng::seed_from_u64(1)).await;
    let parts = open(&world, &bed).await.parts().await.unwrap();
    let missing = SegmentRange { timeline: tli(1), first: SegmentNo(8), last: SegmentNo(9) };
    assert_eq!(parts[0].gaps, [missing]);
    assert!(parts[1].gaps.is_empty() && parts[2].gaps.is_empty(), "{parts:?}");
}
