//! R4: WAL of a crashed server that no archive has is not lost when its directory is repaired.

use std::fs;

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::store::Store;

/// R4: the segment that was being written when the server crashed is kept beside the directory, whole, and named by the
/// restore and by `rollback`.
#[test]
fn the_last_segment_of_a_crashed_server_is_kept() {
    let mut bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    bed.cluster.psql("create table t as select i from generate_series(1, 1000) i");
    bed.backup();
    bed.settle();
    bed.cluster.psql("insert into t select generate_series(1001, 2000)");
    let open = bed.cluster.psql("select pg_walfile_name(pg_current_wal_lsn())");
    bed.cluster.crash();
    let pgdata = bed.cluster.pgdata().to_owned();
    let content = fs::read(pgdata.join("pg_wal").join(&open)).unwrap();
    let restored = bed.try_restore("data", &["--delta", "--server-is-down"]).expect_success();
    let kept: Vec<_> = fs::read_dir(bed.cluster.dir().path())
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_str().unwrap().contains(".walpoint-kept-"))
        .collect();
    let [kept] = &kept[..] else { panic!("{kept:?}") };
    assert_eq!(fs::read(kept.path().join(&open)).unwrap(), content);
    assert_eq!(fs::read_dir(kept.path()).unwrap().count(), 2, "what the archive has is not kept");
    assert!(restored.stdout.contains(&open), "{restored:#?}");
    let told = bed.agent.restore(&["rollback", "--pgdata", pgdata.to_str().unwrap()]).expect_status(1).stderr;
    assert!(told.contains(&open) && told.contains(kept.path().to_str().unwrap()), "{told}");
    bed.cluster.start();
    bed.cluster.wait_promoted();
    assert_eq!(bed.cluster.psql("select count(*) from t"), "1000");
}
