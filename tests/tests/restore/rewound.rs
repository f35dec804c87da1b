//! F5: PostgreSQL's own tools take a server as their source while a prefetcher serves it.

use std::fs;
use std::time::Duration;

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::process::{self, Background};
use walpoint_tests::store::Store;
use walpoint_tests::wait;

/// F5: `pg_rewind` and `pg_basebackup` read a data directory file by file over a connection, and no socket can be read. The
/// prefetcher's lies where both leave out what they find.
#[test]
fn a_server_with_a_prefetcher_can_be_copied_and_rewound_to() {
    rewound(17);
}

/// The same on an older and the newest version (13 comes without these programs).
#[test]
fn an_older_and_the_newest_version_can_be_copied_and_rewound_to() {
    rewound(14);
    rewound(19);
}

fn rewound(major: u32) {
    let builder = Cluster::builder().major(major).segment_size_mb(1).conf("wal_log_hints", "on");
    let mut bed = Archived::start(builder.conf("wal_keep_size", "64MB"), Store::local());
    bed.cluster.psql("create table t as select generate_series(1, 1000) as n");
    bed.backup();
    bed.settle();
    let new = bed.restore_and_start("new", &["--standby"]);
    new.wait_for("select count(*) from t", "1000");
    let command = new.psql("show restore_command");
    new.promote();
    new.psql("create table kept as select generate_series(1, 100) as n; checkpoint");
    bed.cluster.psql("create table lost as select 1; checkpoint");
    bed.cluster.stop(Shutdown::Fast);

    // A sidecar keeps serving where the restored server's command asks.
    let (_, socket) = command.split_once("--socket ").unwrap();
    let socket = new.pgdata().join(socket.split_whitespace().next().unwrap());
    wait::until_true(wait::SOON, "the recovery's prefetcher ends", || !socket.exists());
    let pgdata = new.pgdata().to_str().unwrap();
    let mut sidecar = bed.agent.command("restore-agent", ["prefetch", "--persistent", "--pgdata", pgdata]);
    let log = bed.agent.place().join("prefetch.log");
    let _sidecar = Background::start(&mut sidecar, &log);
    wait::until_true(wait::SOON, "the sidecar listens", || socket.exists());

    let copy = new.base_backup(&["-X", "stream"]);
    assert!(!copy.join("pg_dynshmem").read_dir().unwrap().flatten().any(|_| true));
    let mut rewind = new.tool("pg_rewind");
    rewind.arg("--source-server").arg(new.conninfo());
    rewind.arg("--no-sync").arg("-D").arg(bed.cluster.pgdata());
    let output = process::run(&mut rewind, Duration::from_secs(120));
    assert_eq!(output.status, 0, "PostgreSQL {major}: {output:#?}");
    let old = &mut bed.cluster;
    old.follow(&new);
    old.start();
    old.wait_replayed(&new);
    assert_eq!(old.psql("select count(*) from kept"), "100");
    assert_eq!(old.psql("select to_regclass('lost') is null"), "t");
    fs::remove_dir_all(copy).unwrap();
}
