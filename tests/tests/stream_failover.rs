//! Failover and switchback with the WAL stream on every candidate: nothing that was acknowledged on either server is lost.

mod stream_bed;

use std::time::Duration;

use stream_bed::{STREAM, major, streaming, wait_durable};
use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::process;

/// Inserts a thousand rows; they are stored then.
#[track_caller]
fn insert(cluster: &Cluster, thousand: usize) {
    let (from, to) = (thousand * 1000 + 1, (thousand + 1) * 1000);
    cluster.psql(&format!("insert into t select generate_series({from}, {to})"));
    wait_durable(cluster);
}

/// Makes a server that crashed a standby of the one that was promoted in its place.
#[track_caller]
fn rewind(old: &Cluster, new: &Cluster) {
    let mut command = new.tool("pg_rewind");
    command
        .arg("--target-pgdata")
        .arg(old.pgdata())
        .arg("--source-server")
        .arg(new.conninfo())
        .arg("--no-sync");
    process::run(&mut command, Duration::from_secs(120)).expect_success();
    old.follow(new);
}

#[test]
fn a_failover_and_the_way_back_lose_nothing() {
    let mut bed = streaming(major(17), "on_standby = true\n");
    bed.cluster.psql("create table t (n int)");
    insert(&bed.cluster, 0);
    bed.backup();
    bed.settle();
    let mut other = bed.cluster.standby();
    let mut agent = Agent::with(&other, &bed.store);
    agent.tables = format!("{STREAM}on_standby = true\n");
    agent.archive_from(&other);
    other.start();
    let daemon = agent.daemon();
    other.wait_replayed(&bed.cluster);
    insert(&bed.cluster, 1);
    other.wait_replayed(&bed.cluster);

    // The primary dies, and comes back as a standby of the one that was promoted.
    bed.cluster.crash();
    bed.kill_daemon();
    other.promote();
    insert(&other, 2);
    rewind(&bed.cluster, &other);
    bed.agent.archive_from(&bed.cluster);
    bed.cluster.start();
    bed.start_daemon();
    insert(&other, 3);
    bed.cluster.wait_replayed(&other);

    // And back.
    other.crash();
    daemon.kill();
    bed.cluster.promote();
    insert(&bed.cluster, 4);
    bed.agent.run(&["verify"]).expect_success();
    stream_bed::disaster(&mut bed);
    let restored = bed.restore_and_start("latest", &["--target-action", "promote"]);
    restored.wait_promoted();
    assert_eq!(restored.psql("select count(*), count(distinct n), max(n) from t"), "5000|5000|5000");
}
