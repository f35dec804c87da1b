//! The harness itself: clusters of every version start, archive, crash, stream and are gone afterwards.

use std::time::Duration;

use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::{process, testbed};

#[test]
fn every_version_starts_and_stops() {
    for major in testbed::MAJORS {
        let mut cluster = Cluster::builder().major(major).start();
        let version = cluster.psql("show server_version");
        // "18.6", and of a release candidate "19rc1".
        let rest = version.strip_prefix(&major.to_string()).unwrap_or_default();
        assert!(rest.starts_with(['.', 'r']), "{version}");
        assert_eq!(cluster.psql("show data_checksums"), "on");
        cluster.stop(Shutdown::Fast);
        assert!(!cluster.pgdata().join("postmaster.pid").exists());
    }
}

#[test]
fn archives_with_cp_on_the_oldest_and_the_newest() {
    for major in [13, 18, 19] {
        let cluster = Cluster::builder().major(major).segment_size_mb(1).init();
        let archive = cluster.dir().mkdir("archive");
        let mut cluster = cluster;
        cluster.set("archive_mode", "on");
        cluster.set("archive_command", format!("cp %p {}/%f", archive.display()));
        cluster.start();
        let name = cluster.switch_wal();
        cluster.wait_archived(&name);
        assert_eq!(archive.join(&name).metadata().unwrap().len(), 1 << 20);
        cluster.wait_done(&name);
    }
}

#[test]
fn a_crash_loses_nothing_committed() {
    let mut cluster = Cluster::builder().major(18).checksums(false).start();
    assert_eq!(cluster.psql("show data_checksums"), "off");
    cluster.psql("create table t as select generate_series(1, 1000) as n");
    let mut open = cluster.session();
    open.run("begin; insert into t values (-1)");
    cluster.crash();
    cluster.start();
    assert_eq!(cluster.psql("select count(*), min(n) from t"), "1000|1");
    assert!(cluster.log().contains("database system was not properly shut down"));
}

#[test]
fn dropping_a_cluster_ends_its_server() {
    let cluster = Cluster::builder().start();
    let (pid, dir) = (cluster.pid().unwrap(), cluster.dir().path().to_owned());
    drop(cluster);
    assert!(!process::alive(pid));
    assert!(!dir.exists());
}

#[test]
fn a_standby_streams_and_is_promoted() {
    let primary = Cluster::builder().major(17).start();
    primary.psql("create table t (n int)");
    primary.create_tablespace("elsewhere");
    let standby = primary.streaming_standby();
    primary.psql("insert into t select generate_series(1, 10)");
    standby.wait_replayed(&primary);
    assert_eq!(standby.psql("select count(*) from t"), "10");
    standby.promote();
    standby.psql("insert into t values (11); checkpoint");
    assert_eq!(standby.timeline(), 2);
}

#[test]
fn the_oldest_version_streams_too() {
    let primary = Cluster::builder().major(13).start();
    let standby = primary.streaming_standby();
    standby.wait_replayed(&primary);
}

#[test]
fn a_copy_starts_as_a_restored_cluster() {
    let source = Cluster::builder().major(16).tcp().start();
    source.psql("create table t as select 42 as n");
    let copy = source.base_backup(&["-X", "stream"]);
    let mut restored = Cluster::start_restored(source.dir(), 16, copy);
    assert_eq!(restored.psql("select n from t"), "42");
    assert_eq!(restored.system_id(), source.system_id());
    restored.stop(Shutdown::Immediate);
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let mut cluster = Cluster::builder().conf("wal_level", "nonsense").init();
    cluster.try_start(Duration::from_secs(20)).unwrap_err();
    assert!(cluster.log().contains("nonsense"), "{}", cluster.log());
}
