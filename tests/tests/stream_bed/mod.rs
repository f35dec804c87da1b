//! What the tests of the WAL stream share.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::builder::ClusterBuilder;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::store::Store;

/// The table that switches the stream on.
pub(crate) const STREAM: &str = "\n[cluster.main.stream]\nenabled = true\n";

pub(crate) fn streaming(builder: ClusterBuilder, more: &str) -> Archived {
    streaming_with(builder, more, |agent| agent)
}

/// The same with an agent that is `set` otherwise.
pub(crate) fn streaming_with(
    builder: ClusterBuilder,
    more: &str,
    set: impl FnOnce(Agent) -> Agent,
) -> Archived {
    Archived::start_with(builder.segment_size_mb(1), Store::local(), |mut agent| {
        agent.tables = format!("{STREAM}{more}");
        set(agent)
    })
}

/// Sets the mode of a directory and of all below it.
pub(crate) fn set_modes(directory: &Path, mode: u32) {
    fs::set_permissions(directory, fs::Permissions::from_mode(mode)).unwrap();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            set_modes(&entry.path(), mode);
        }
    }
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
        _ => {
            // What no commit follows, a restore point for example, is flushed some time later.
            cluster.psql("select pg_logical_emit_message(true, 'walpoint', 'flush')");
            "pg_current_wal_flush_lsn()"
        }
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
