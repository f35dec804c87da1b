//! What the tests of the WAL stream share.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs;

use walpoint_tests::archived::Archived;
use walpoint_tests::builder::ClusterBuilder;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::store::Store;

/// The table that switches the stream on.
pub(crate) const STREAM: &str = "\n[cluster.main.stream]\nenabled = true\n";

pub(crate) fn streaming(builder: ClusterBuilder, more: &str) -> Archived {
    Archived::start_with(builder.segment_size_mb(1), Store::local(), |mut agent| {
        agent.tables = format!("{STREAM}{more}");
        agent
    })
}

pub(crate) fn major(major: u32) -> ClusterBuilder {
    Cluster::builder().major(major)
}

/// The slices in the repository.
pub(crate) fn slices(bed: &Archived) -> Vec<String> {
    let mut keys = bed.back_door().list("clusters/main");
    keys.retain(|key| key.contains(".slices/"));
    keys.sort();
    keys
}

/// Waits until the stream has reported everything so far as durable.
#[track_caller]
pub(crate) fn wait_durable(cluster: &Cluster) {
    let function = match cluster.psql("select pg_is_in_recovery()").trim() {
        "t" => "pg_last_wal_receive_lsn()",
        _ => "pg_current_wal_flush_lsn()",
    };
    let end = cluster.psql(&format!("select {function}"));
    let durable = format!(
        "select coalesce(bool_or(flush_lsn >= '{}'), false) from pg_stat_replication where application_name = 'walpoint'",
        end.trim()
    );
    cluster.wait_for(&durable, "t");
}

/// Loses everything but the repository.
pub(crate) fn disaster(bed: &mut Archived) {
    bed.cluster.crash();
    bed.kill_daemon();
    fs::remove_dir_all(bed.cluster.pgdata()).unwrap();
}
