//! A lineage that begins while WAL is archived: what is acknowledged from then on is in it.

use std::time::Duration;

use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::proxy::{Fault, Proxy};
use walpoint_tests::store::Store;
use walpoint_tests::{user, wait};

use super::{SOON, archived, segment};
use crate::archive_bed::{Bed, register};

fn bind(cluster: &Cluster, binding: &str) {
    let path = cluster.pgdata().join("walpoint.lineage");
    std::fs::write(&path, binding).unwrap();
    user::give(&path);
}

/// Begins two lineages, and binds the data directory to the first of them; the binding to the second.
fn begin_two(bed: &Bed) -> String {
    let binding = || std::fs::read_to_string(bed.cluster.pgdata().join("walpoint.lineage")).unwrap();
    bed.agent.init(&["--new-lineage", "--even-if-bound"]).expect_success();
    let first = binding();
    bed.agent.init(&["--new-lineage", "--even-if-bound"]).expect_success();
    let second = binding();
    bind(&bed.cluster, &first);
    second
}

/// Whether the lineage of that number has a segment.
fn has(bed: &Bed, lineage: u32, segment: &str) -> bool {
    let folder = format!("clusters/main/{}-{lineage}/wal", bed.cluster.system_id());
    bed.store.back_door().list(&folder).iter().any(|key| key.ends_with(segment))
}

#[track_caller]
fn wait_for(bed: &Bed, lineage: u32, segment: &str) {
    wait::until_true(SOON, &format!("{segment} is in lineage {lineage}"), || has(bed, lineage, segment));
}

/// What a daemon stored ahead of PostgreSQL's question is no answer to it, once the data directory is bound to another lineage.
#[test]
fn what_was_stored_ahead_in_the_lineage_before_is_not_acknowledged_for_the_next_one() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.set("wal_keep_size", "64MB");
    let gate = bed.cluster.dir().join("gate");
    let command =
        format!("while test -e {}; do sleep 0.1; done; {}", gate.display(), bed.agent.archive_command());
    bed.cluster.set("archive_command", command);
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    bed.cluster.psql("create table t (who text)");
    archived(&bed.cluster, &segment(&bed.cluster, "before"));
    let next = begin_two(&bed);

    std::fs::write(&gate, "").unwrap();
    let names = [1, 2, 3].map(|_| segment(&bed.cluster, "ahead"));
    names.iter().for_each(|name| wait_for(&bed, 2, name));
    bind(&bed.cluster, &next);
    std::fs::remove_file(&gate).unwrap();
    for name in &names {
        archived(&bed.cluster, name);
        assert!(has(&bed, 3, name), "{name}\n{}", daemon.log());
    }
    assert_eq!(daemon.stop(), 0);
}

/// A command that waits for a repository outside `ack` looks once more to which lineage the data directory is bound.
#[test]
fn a_lineage_that_begins_while_a_push_waits_for_another_repository_has_its_segment() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let far = Store::s3();
    register(&far, bed.cluster.pgdata(), bed.cluster.major());
    let proxy = Proxy::to(far.port().unwrap());
    bed.agent = Agent::with(&bed.cluster, &bed.store)
        .repository_via("far", &far, &proxy)
        .cluster_line("ack = [\"main\"]");
    bed.agent.write();
    bed.cluster.set("archive_command", "false");
    bed.cluster.start();
    bed.cluster.psql("create table t (who text)");
    let name = segment(&bed.cluster, "before");
    let next = begin_two(&bed);

    proxy.set(Fault::Blackhole);
    std::thread::scope(|scope| {
        let pushed = scope.spawn(|| bed.direct(&bed.cluster.wal_dir().join(&name)));
        wait_for(&bed, 2, &name);
        // Long enough for the upload to end, and far less than the repository is waited for.
        std::thread::sleep(Duration::from_millis(500));
        bind(&bed.cluster, &next);
        pushed.join().unwrap().expect_success();
    });
    assert!(has(&bed, 3, &name));
}
