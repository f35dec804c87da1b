//! R4: `--if-empty` restores where nothing is, begins an interrupted restore anew, and leaves a cluster alone that is present.

use std::fs;

use serde_json::Value;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::Store;

use crate::tree::snapshot;

const IF_EMPTY: [&str; 1] = ["--if-empty"];

#[test]
fn a_cluster_that_is_present_is_left_alone_though_the_store_is_away() {
    let mut bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    ledger.append(&bed.cluster);
    bed.backup();
    let newest = ledger.append(&bed.cluster);
    bed.settle();
    let id = bed.cluster.psql("select system_identifier from pg_control_system()");
    bed.cluster.stop(Shutdown::Fast);

    let pgdata = bed.restore("data2", &IF_EMPTY);
    fs::remove_file(pgdata.join("global/pg_control")).unwrap();
    let refused = bed.try_restore("data2", &IF_EMPTY).expect_status(1);
    assert!(
        refused.stderr.contains("is not empty"),
        "neither a cluster nor an unfinished restore: {refused:#?}"
    );
    fs::remove_dir_all(&pgdata).unwrap();
    let mut restored = bed.restore_and_start("data2", &IF_EMPTY);
    restored.wait_promoted();
    assert_eq!(ledger.highest(&restored), newest.n);

    let root = bed.store.root().unwrap().to_owned();
    fs::rename(&root, bed.place("away")).unwrap();
    let running = bed.try_restore("data2", &IF_EMPTY).expect_success();
    assert!(running.stdout.contains("nothing to restore"), "{running:#?}");
    restored.stop(Shutdown::Fast);
    let before = snapshot(&pgdata);
    let stopped = bed.try_restore("data2", &["--if-empty", "--json"]).expect_success();
    let document: Value = serde_json::from_str(&stopped.stdout).unwrap();
    assert_eq!((&document["result"], &document["system_identifier"]), (&"present".into(), &id.into()));
    assert_eq!(snapshot(&pgdata), before, "nothing was changed");
    for over in ["--delta", "--replace"] {
        bed.try_restore("data2", &["--if-empty", over]).expect_status(2);
    }
}
