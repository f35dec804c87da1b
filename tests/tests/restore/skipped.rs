//! A repository that could not be read while a restore to the latest moment was planned, and can be when PostgreSQL recovers.

use std::fs;
use std::sync::Arc;

use serde_json::Value;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::Store;
use walpoint_tests::wait;

use crate::forks::lose_and_restore;

/// Promise 4: it has a younger timeline, and the other lags behind it. Recovery does not end on the older one; where that was asked
/// for by name, it does.
#[test]
fn recovery_does_not_end_on_an_older_timeline_because_a_repository_was_skipped() {
    let second = Store::local();
    let builder = Cluster::builder().major(17).segment_size_mb(1);
    let mut bed = Archived::start_with(builder, Store::local(), |agent| {
        agent.repository("second", &second).cluster_line("fetch_timeout = \"10m\"")
    });
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    ledger.append_as(&bed.cluster, "a1");
    lose_and_restore(&mut bed, "lost", &[], None);
    ledger.append_as(&bed.cluster, "b1");
    bed.settle();
    let younger =
        |key: &String| key.contains("00000002") && (key.contains("/wal/") || key.contains("history"));
    let of = |store: &Store| store.back_door().list("clusters/main").into_iter().filter(younger).count();
    wait::until_true(wait::SOON, "both have everything", || of(&second) > 1 && of(&second) == of(&bed.store));
    bed.stop_daemon();
    let main = bed.back_door();
    for key in main.list("clusters/main").iter().filter(|key| younger(key) || key.contains("/index/")) {
        main.delete(key);
        if let Some((lineage, _)) = key.split_once("/wal/00000002/") {
            // Empty directories would still be a timeline.
            fs::remove_dir_all(bed.store.root().unwrap().join(lineage).join("wal/00000002")).ok();
        }
    }

    let (root, aside) = (second.root().unwrap(), second.root().unwrap().with_extension("aside"));
    fs::rename(root, &aside).unwrap();
    let pgdata = bed.place("latest");
    let restored = bed.agent.restore(&["--json", "restore", "--pgdata", pgdata.to_str().unwrap()]);
    let report: Value = serde_json::from_str(&restored.expect_success().stdout).unwrap();
    let named = bed.restore("named", &["--target-timeline", "1"]);
    fs::rename(&aside, root).unwrap();
    let notes = report["notes"].to_string();
    assert!(notes.contains("second") && notes.contains("was skipped"), "{report:#}");

    let mut server = Cluster::adopt(Arc::clone(bed.cluster.dir()), 17, pgdata, None);
    server.launch();
    assert_ne!(server.wait_for_end(wait::SOON), 0);
    let log = server.log();
    assert!(log.contains("a younger timeline, 2, is in repository second"), "{log}");
    assert!(log.contains("Restore again") && !log.contains("recovery continues"), "{log}");
    assert!(!log.contains("selected new timeline"), "{log}");
    let server = Cluster::start_restored(bed.cluster.dir(), 17, named);
    server.wait_promoted();
    assert_eq!(ledger.labels(&server), "a1");
    drop(server);
    let server = bed.restore_and_start("again", &[]);
    server.wait_promoted();
    assert_eq!(ledger.labels(&server), "a1 b1");
}
