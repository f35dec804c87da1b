//! What a person and a program get to see.

use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use walpoint_base::{Lsn, RecoveryTarget, SegmentNo};
use walpoint_plan::restore::testing::forked::{on, world};
use walpoint_plan::restore::testing::world::*;
use walpoint_plan::restore::*;

use super::archived::{archive, open};
use super::decoder::Decoder;
use crate::catalog::Catalog;
use crate::index::tests::bed;
use crate::planning;

fn json(verdict: &Verdict) -> serde_json::Value {
    serde_json::to_value(PlanReport::of(verdict, size())).unwrap()
}

#[test]
fn a_plan_as_json_and_as_text() {
    let (world, [_, second, _]) = world();
    let request = Request {
        inclusive: false,
        action: TargetAction::Pause,
        backup: Some(second),
        ..on(2, RecoveryTarget::Time(at(11_200)))
    };
    let verdict = world.plan(&request);
    let expected = serde_json::json!({
        "result": "plan",
        "lineage": "7-1",
        "target": { "kind": "time", "value": "2000-01-01T03:06:40Z", "inclusive": false },
        "options": [
            "--target-time", "2000-01-01 03:06:40.000000+00", "--exclusive", "--lineage", "7-1", "--target-timeline", "2",
            "--backup",
            second.to_string(),
        ],
        "backup": {
            "id": second.to_string(),
            "label": "",
            "timeline": 1,
            "start_lsn": "0/800000",
            "end_lsn": "0/880000",
            "started": "2000-01-01T00:13:20Z",
            "ended": "2000-01-01T00:14:20Z",
            "damaged_pages": 0,
        },
        "path": [
            { "timeline": 1, "begin_lsn": "0/0", "end_lsn": "0/A80000" },
            { "timeline": 2, "begin_lsn": "0/A80000" },
        ],
        "timeline": 2,
        "stop": {
            "timeline": 2,
            "lsn": "0/C00000",
            "end_lsn": "0/C80000",
            "replayed": false,
            "time": "2000-01-01T03:06:40Z",
            "xid": 2024,
        },
        "until_lsn": "0/C80000",
        "wal": [
            { "first": "000000010000000000000008", "last": "000000010000000000000009", "count": 2 },
            { "first": "00000002000000000000000A", "last": "00000002000000000000000C", "count": 3 },
        ],
        "histories": ["00000002.history"],
        "signal_file": "recovery.signal",
        "settings": [
            { "name": "recovery_prefetch", "value": "off" },
            { "name": "recovery_target", "value": "" },
            { "name": "recovery_target_lsn", "value": "" },
            { "name": "recovery_target_name", "value": "" },
            { "name": "recovery_target_xid", "value": "" },
            { "name": "recovery_target_timeline", "value": "2" },
            { "name": "recovery_target_inclusive", "value": "off" },
            { "name": "recovery_target_action", "value": "pause" },
            { "name": "recovery_target_time", "value": "2000-01-01 03:06:40.000000+00" },
        ],
        "estimate": {
            "file_bytes": 1000,
            "block_bytes": 500,
            "wal_segments": 5,
            "wal_bytes": 5 << 20,
            "wal_stored_bytes": 500,
            "seconds": 1,
        },
        "notes": [],
    });
    assert_eq!(json(&verdict), expected);
    let text = text::plan(&verdict.unwrap(), size());
    for line in [
        "Restore to  time 2000-01-01 03:06:40.000000+00, on timeline 2\n",
        "Path        timeline 1 up to 0/A80000, then timeline 2\n",
        "WAL         5 segments, 5.0 MiB, from 0/800000 to 0/C80000\n",
        "            000000010000000000000008 to 000000010000000000000009 (2 segments)\n",
        "Ends        before the end of transaction 2024 of 2000-01-01 03:06:40.000000+00 at 0/C00000\n",
        "            recovery_target_time = '2000-01-01 03:06:40.000000+00'\n",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    let again = format!(
        "Again by    --target-time '2000-01-01 03:06:40.000000+00' --exclusive --lineage 7-1 --target-timeline 2 --backup {second}\n"
    );
    assert!(text.contains(&again), "{text}");
}

#[test]
fn a_refusal_as_json_and_as_text() {
    let (mut world, [_, second, _]) = world();
    world.files.remove(&(tli(1), SegmentNo(5)));
    let verdict = world.plan(&on(1, RecoveryTarget::Lsn(Lsn(6 * SIZE))));
    let expected = serde_json::json!({
        "result": "unreachable",
        "target": { "kind": "lsn", "value": "0/600000" },
        "timeline": "1",
        "reason": "missing-wal",
        "message": format!(
            "LSN 0/600000 (timeline 1) cannot be reached: WAL is missing between backup {} and the target",
            world.backups[0].id
        ),
        "missing": [{ "first": "000000010000000000000005", "last": "000000010000000000000005", "count": 1 }],
        "nearest": [
            {
                "earlier": true,
                "timeline": 1,
                "lsn": "0/480000",
                "time": "2000-01-01T00:07:30Z",
                "options": ["--target-timeline", "1", "--target-lsn", "0/480000"],
            },
            {
                "earlier": false,
                "timeline": 1,
                "lsn": "0/880000",
                "time": "2000-01-01T00:14:20Z",
                "options": ["--target-timeline", "1", "--target-immediate", "--backup", second.to_string()],
            },
        ],
        "hints": json(&verdict)["hints"],
    });
    assert_eq!(json(&verdict), expected);
    let text = text::unreachable(&verdict.unwrap_err());
    assert!(text.contains("Missing     000000010000000000000005\n"), "{text}");
    assert!(text.contains("reached by --target-timeline 1 --target-lsn 0/480000\n"), "{text}");
}

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
    assert_eq!(timeline["segments"], 5);
    let text = catalog.status_text(&known).await.unwrap();
    assert!(
        text.contains("    gap     00000001000000000000000D to 00000001000000000000000D (1 segments)\n"),
        "{text}"
    );
    assert!(text.contains("  timeline 2 ") && text.contains("nothing can be recovered"), "{text}");

    let mut unknown = Catalog::load(repository, &"nobody".parse().unwrap()).await.unwrap();
    let nothing = unknown.status().await.unwrap();
    let nobody = unknown.status_text(&nothing).await.unwrap();
    assert!(nobody.contains("Nothing was archived yet."), "{nobody}");
    let (nobody, request) = ("nobody".parse().unwrap(), Request::default());
    let refused = planning::plan(repository, &nobody, &request, &decoder, at(0).to_time()).await.unwrap();
    assert_eq!(refused.unwrap_err().why, Why::NoCluster("nobody".to_owned()));
}
