//! Promise 7 and R6: tablespaces that replay creates. The location is the one in the record, which on the original's machine
//! is the original's.

use std::fs;
use std::path::{Path, PathBuf};

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::store::Store;
use walpoint_tests::user;

/// A server with a backup, and a tablespace with a table that came after it.
fn bed(major: u32) -> (Archived, PathBuf) {
    let bed = Archived::start(Cluster::builder().major(major).segment_size_mb(1), Store::local());
    bed.cluster.psql("create table t as select i from generate_series(1, 1000) i");
    bed.backup();
    bed.cluster.psql("select pg_create_restore_point('before')");
    bed.cluster.create_tablespace("late");
    bed.cluster
        .psql("create table u tablespace late as select i from generate_series(1, 2000) i; checkpoint");
    bed.settle();
    let (_, place) = bed.cluster.tablespaces().pop().unwrap();
    (bed, place)
}

/// The directories of PostgreSQL's versions in a tablespace.
fn versions(place: &Path) -> Vec<String> {
    let entries = fs::read_dir(place).unwrap().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Promise 7: beside the original a restore over a `CREATE TABLESPACE` is refused before anything is written, with the moment
/// up to which it works; the original keeps its rows.
#[test]
fn a_copy_does_not_overwrite_the_originals_new_tablespace() {
    beside(17);
}

/// The same on the oldest and the newest version.
#[test]
fn a_copy_of_the_oldest_and_the_newest_version_does_not_either() {
    beside(13);
    beside(18);
}

fn beside(major: u32) {
    let (mut bed, place) = bed(major);
    let refused = bed.try_restore("copy", &[]);
    if refused.success() {
        // What is lost then shows in the original.
        let copy = Cluster::start_restored(bed.cluster.dir(), major, bed.place("copy"));
        copy.wait_promoted();
    }
    // From disk, not from the buffers, which do not notice what another server wrote there.
    let rows = "select count(*) from u";
    bed.cluster.stop(Shutdown::Fast);
    bed.cluster.start();
    assert_eq!(bed.cluster.psql(rows), "2000");
    let refused = refused.expect_status(1);
    let shown = place.display().to_string();
    for says in ["would overwrite", &shown, "nothing was changed", "--target-lsn"] {
        assert!(refused.stderr.contains(says), "{says}: {refused:#?}");
    }
    assert!(!bed.place("copy").exists());

    // Up to the record it can be done, as the message says.
    let (_, lsn) = refused.stderr.split_once("--target-lsn ").unwrap();
    let lsn = lsn.split_whitespace().next().unwrap();
    let options = ["--target-lsn", lsn, "--exclusive", "--target-action", "promote"];
    let copy = bed.restore_and_start("until", &options);
    copy.wait_promoted();
    assert_eq!(copy.psql("select count(*) from t"), "1000");
    drop(copy);
    let named = bed.restore_and_start("named", &["--target-name", "before", "--target-action", "promote"]);
    named.wait_promoted();
    drop(named);
    assert_eq!(bed.cluster.psql(rows), "2000");
    assert_eq!(versions(&place).len(), 1);
}

/// The original is gone with its tablespace's directory: which one is missing is told before the restore, and with it there
/// the restore recovers to the end.
#[test]
fn a_missing_location_is_listed_beforehand() {
    let (mut bed, place) = bed(17);
    bed.cluster.stop(Shutdown::Fast);
    fs::remove_dir_all(&place).unwrap();
    let restored = bed.try_restore("copy", &[]).expect_success();
    let shown = place.display().to_string();
    assert!(restored.stdout.contains(&shown) && restored.stdout.contains("does not exist"), "{restored:#?}");
    fs::create_dir(&place).unwrap();
    user::give(&place);
    let copy = Cluster::start_restored(bed.cluster.dir(), 17, bed.place("copy"));
    copy.wait_promoted();
    assert_eq!(copy.psql("select count(*) from u"), "2000");
}

/// Tablespaces in place have no location: they are restored.
#[test]
fn a_tablespace_in_place_is_created_by_replay() {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    bed.backup();
    bed.cluster.psql("set allow_in_place_tablespaces = on; create tablespace inside location ''");
    bed.cluster.psql("create table u tablespace inside as select i from generate_series(1, 2000) i");
    bed.settle();
    let copy = bed.restore_and_start("copy", &[]);
    copy.wait_promoted();
    assert_eq!(copy.psql("select count(*) from u"), "2000");
}

/// R4: over the stopped original its own tablespace is kept under another name, and replay creates it once more; `rollback`
/// puts the replaced one back, and names what a repair kept.
#[test]
fn the_originals_own_tablespace_is_kept_when_it_is_repaired_or_replaced() {
    let (mut bed, place) = bed(17);
    bed.cluster.stop(Shutdown::Fast);
    let pgdata = bed.cluster.pgdata().to_owned();
    let rollback = || bed.agent.restore(&["rollback", "--pgdata", pgdata.to_str().unwrap()]);
    let check = || {
        let dir = bed.cluster.dir().clone();
        let mut server = Cluster::adopt(dir, 17, pgdata.clone(), None);
        server.set("archive_mode", "off");
        server.start();
        server.wait_promoted();
        assert_eq!(server.psql("select count(*) from u"), "2000");
        server.stop(Shutdown::Fast);
    };
    bed.try_restore("data", &["--replace"]).expect_success();
    check();
    rollback().expect_success();
    check();

    let before = versions(&place).len();
    let repaired = bed.try_restore("data", &["--delta"]).expect_success();
    assert!(repaired.stdout.contains(".walpoint-old-"), "{repaired:#?}");
    check();
    assert_eq!(versions(&place).len(), before + 1, "{:?}", versions(&place));
    let told = rollback().expect_success().stdout;
    assert!(told.contains("restore --delta kept") && told.contains(place.to_str().unwrap()), "{told}");
}
