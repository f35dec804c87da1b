//! B7: `pg_upgrade`. The cluster goes on in another lineage, under the same name; what it did not rewrite is not stored again.

use std::time::Duration;

use serde_json::Value;
use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::oracle::{self, Contents};
use walpoint_tests::{process, testbed};

use crate::bed::{Bed, report};

/// Runs `pg_upgrade` from one stopped cluster into a new one.
fn pg_upgrade(old: &Cluster, new: &Cluster, mode: &str) {
    let bin = |cluster: &Cluster| testbed::root().join(format!("pg{}/bin", cluster.major()));
    let mut command = new.tool("pg_upgrade");
    // It is told everything, and would believe the environment.
    for name in ["PGHOST", "PGPORT", "PGUSER", "PGDATABASE"] {
        command.env_remove(name);
    }
    command.arg("--old-bindir").arg(bin(old)).arg("--new-bindir").arg(bin(new));
    command.arg("--old-datadir").arg(old.pgdata()).arg("--new-datadir").arg(new.pgdata());
    command.arg("--socketdir").arg(new.socket_dir()).args(["--username", "postgres", mode]);
    process::run(&mut command, Duration::from_secs(240)).expect_success();
}

/// Upgrades from 17 to a later version with a backup before and one after.
fn upgraded(mode: &str, to: u32) {
    let mut bed = Bed::local(Cluster::builder().major(17).segment_size_mb(1).conf("max_wal_size", "200MB"));
    bed.cluster.psql(
        "create table big as select i, md5(random()::text) as t from generate_series(1, 300000) i;
         create index on big (i); vacuum freeze big; create table small as select 1 as one; checkpoint",
    );
    let before = bed.backup(&[]);
    let first = before["backup"].as_str().unwrap();
    bed.cluster.psql("insert into small values (2)");
    let old = Contents::of(&bed.cluster);
    let segment = bed.cluster.switch_wal();
    bed.cluster.wait_archived(&segment);
    bed.cluster.stop(Shutdown::Fast);

    let builder = Cluster::builder().major(to).segment_size_mb(1).in_dir(bed.cluster.dir());
    let mut new = builder.init();
    pg_upgrade(&bed.cluster, &new, mode);
    let agent = Agent::with(&new, &bed.store);
    agent.archive_from(&new);
    // Under the name of another cluster nothing is registered by accident.
    let refused = agent.init(&[]).expect_status(1);
    assert!(
        refused.stderr.contains("pg_upgrade") && refused.stderr.contains("--new-lineage"),
        "{refused:#?}"
    );
    agent.init(&["--new-lineage"]).expect_success();
    let _daemon = agent.daemon();
    new.start();
    new.psql("insert into small values (3); create table later as select generate_series(1, 100) i");
    let after = report(&agent.run(&["backup", "--json"]).expect_success());
    let second = after["backup"].as_str().unwrap();

    // Relations have kept their paths, so what was not rewritten is found at its place.
    let copy = &after["repositories"][0];
    assert_eq!(copy["parent"].as_str(), Some(first), "{after}");
    let (stored, reused) = (copy["new_bytes"].as_u64().unwrap(), copy["reused_bytes"].as_u64().unwrap());
    let big: u64 = new.psql("select pg_total_relation_size('big')").parse().unwrap();
    println!("{mode}: {stored} bytes are new, {reused} were there; the large table has {big}");
    // Pages that PostgreSQL added to the table and has not used yet are zero, and count as neither.
    assert!(reused > big / 20 * 19, "{after}");

    new.psql("insert into small values (4)");
    let source = Contents::of(&new);
    let segment = new.switch_wal();
    new.wait_archived(&segment);
    for (major, id, expected) in [(to, second, &source), (17, first, &old)] {
        let place = bed.cluster.dir().join(format!("restored{major}"));
        agent.restore(&["restore", "--backup", id, "--pgdata", place.to_str().unwrap()]).expect_success();
        let restored = Cluster::start_restored(bed.cluster.dir(), major, place);
        restored.wait_promoted();
        expected.assert_equal(&Contents::of(&restored));
        oracle::amcheck(&restored);
    }
    agent.run(&["verify"]).expect_success();
    // Without a name the newest life is meant, and `status` shows both.
    let plan = agent.restore(&["plan", "--json"]).expect_success();
    assert!(plan.stdout.contains(second), "{plan:#?}");
    let status: Value =
        serde_json::from_str(&agent.run(&["status", "--json"]).expect_success().stdout).unwrap();
    let lives = status["clusters"][0]["repositories"][0]["status"]["lineages"].as_array().unwrap();
    let majors: Vec<u64> = lives.iter().map(|life| life["postgresql_major"].as_u64().unwrap()).collect();
    assert_eq!(majors, [17, u64::from(to)], "{status:#}");
}

/// B7: files are copied: the old cluster stays.
#[test]
fn the_first_backup_after_pg_upgrade_is_incremental() {
    upgraded("--copy", 18);
}

/// B7: files are linked: the two clusters share them. 19 writes all of its multixacts anew.
#[test]
fn the_first_backup_after_pg_upgrade_by_links_is_incremental() {
    upgraded("--link", 19);
}
