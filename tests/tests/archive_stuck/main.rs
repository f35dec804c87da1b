//! A3, A8, A12: a file that cannot be archived as it is, and the two ways past it; a daemon that hangs.

#[path = "../archive_bed/mod.rs"]
mod archive_bed;
mod damaged;
mod full;
mod gaps;
mod hanging;

use std::path::Path;
use std::time::Duration;

use archive_bed::Bed;
use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::store::Store;
use walpoint_tests::wait;

const SOON: Duration = Duration::from_secs(60);

/// A cluster with a backup and two segments behind it that wait. No daemon runs, and PostgreSQL asks for nothing until it gets the
/// command back that it asks with.
fn waiting(agent: impl FnOnce(&Cluster, &Store, Agent) -> Agent) -> (Bed, [String; 2], String) {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.agent = agent(&bed.cluster, &bed.store, bed.agent);
    bed.agent.archive_from(&bed.cluster);
    bed.cluster.start();
    bed.cluster.psql("create table t (n int)");
    bed.agent.run(&["backup"]).expect_success();
    let command = bed.cluster.psql("show archive_command");
    // Without a command PostgreSQL neither archives nor counts failures, after three of which it would rest for a minute.
    bed.cluster.set("archive_command", "");
    bed.cluster.reload();
    let names = [(); 2].map(|()| {
        bed.cluster.psql("insert into t select generate_series(1, 5000)");
        bed.cluster.switch_wal()
    });
    (bed, names, command)
}

/// A cluster with a daemon whose archiver is stuck at a segment that was changed on disk; behind it another one waits.
fn stuck(change: impl FnOnce(&Path)) -> (Bed, [String; 2]) {
    let (bed, names, command) = waiting(|_, _, agent| agent);
    change(&bed.cluster.wal_dir().join(&names[0]));
    bed.cluster.set("archive_command", command);
    bed.cluster.reload();
    (bed, names)
}

fn refused_at(bed: &Bed, name: &str, says: &str) {
    let refused = format!("could not archive \"{name}\"");
    wait::until_true(SOON, "the segment is refused", || {
        let log = bed.cluster.log();
        log.lines().any(|line| line.contains(&refused) && line.contains(says))
    });
    assert!(bed.ready().contains(&name.to_owned()));
}
