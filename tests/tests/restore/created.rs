//! Promise 7 and R6: tablespaces that replay creates. The location is the one in the record, which on the original's machine
//! is the original's.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::store::Store;
use walpoint_tests::user;
use walpoint_tests::wait::{self, SOON};

/// A server with a backup, and a tablespace with a table that came after it.
fn bed(major: u32) -> (Archived, PathBuf) {
    let bed = backed_up(major);
    bed.cluster.psql("select pg_create_restore_point('before')");
    let place = create_late(&bed);
    (bed, place)
}

fn backed_up(major: u32) -> Archived {
    let bed = Archived::start(Cluster::builder().major(major).segment_size_mb(1), Store::local());
    bed.cluster.psql("create table t as select i from generate_series(1, 1000) i");
    bed.backup();
    bed.settle();
    bed
}

/// Makes the tablespace and archives its record; where it is.
fn create_late(bed: &Archived) -> PathBuf {
    let place = bed.cluster.create_tablespace("late");
    bed.cluster
        .psql("create table u tablespace late as select i from generate_series(1, 2000) i; checkpoint");
    bed.settle();
    place
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
    beside(19);
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
    let options = ["--target-lsn", lsn, "--target-exclusive", "--target-action", "promote"];
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

/// Starts a server and waits until it has ended by itself or answers the question with `there`; whether it ended.
fn ends_or(server: &mut Cluster, question: &str, there: &str) -> bool {
    server.launch();
    wait::until(SOON * 3, "the server ends or arrives", || {
        if !server.is_running() {
            return Some(true);
        }
        server.try_psql(question).is_ok_and(|answer| answer == there).then_some(false)
    })
}

/// The original keeps its table, also when it has to read its files again.
#[track_caller]
fn the_original_is_whole(bed: &mut Archived) {
    bed.cluster.stop(Shutdown::Fast);
    bed.cluster.start();
    assert_eq!(bed.cluster.psql("select count(*) from u"), "3000");
}

/// What only the original's files hold.
fn write_more(bed: &Archived) {
    bed.cluster.psql("insert into u select generate_series(2001, 3000); checkpoint");
}

fn refused_by_fetch(server: &Cluster, place: &Path) -> String {
    let log = server.log();
    let lines: Vec<&str> = log.lines().skip_while(|line| !line.contains("is withheld")).take(2).collect();
    let [refusal, hint] = lines[..] else { panic!("{log}") };
    assert!(refusal.contains(place.to_str().unwrap()) && refusal.contains("would overwrite"), "{refusal}");
    assert!(hint.contains("HINT: ") && hint.contains("If no server uses it, rename"), "{hint}");
    hint.to_owned()
}

/// A copy that was planned before the tablespace existed recovers to the end of the archive, which holds it by then.
fn archived_after_planning(major: u32) {
    let mut bed = backed_up(major);
    let pgdata = bed.restore("copy", &[]);
    let place = create_late(&bed);
    write_more(&bed);
    let mut copy = Cluster::adopt(Arc::clone(bed.cluster.dir()), major, pgdata.clone(), None);
    let ended = ends_or(&mut copy, "select pg_is_in_recovery()", "f");
    the_original_is_whole(&mut bed);
    assert!(ended, "PostgreSQL {major}");
    let line = refused_by_fetch(&copy, &place);

    // As the message says: up to the record.
    let (_, lsn) = line.split_once("recovery_target_lsn = '").unwrap();
    let (lsn, _) = lsn.split_once('\'').unwrap();
    let path = pgdata.join("postgresql.auto.conf");
    let mut settings = fs::OpenOptions::new().append(true).open(path).unwrap();
    writeln!(
        settings,
        "recovery_target_lsn = '{lsn}'\nrecovery_target_inclusive = off\nrecovery_target_action = promote"
    )
    .unwrap();
    drop(settings);
    copy.start();
    copy.wait_promoted();
    assert_eq!(copy.psql("select count(*) from t"), "1000");
    drop(copy);
    the_original_is_whole(&mut bed);
}

/// Promise 7 and 4a, "tablespaces": WAL that was archived after the restore had planned is not replayed over the original.
#[test]
fn wal_archived_after_planning_does_not_overwrite_the_originals_tablespace() {
    archived_after_planning(17);
}

/// The same on the oldest and the newest version.
#[test]
fn wal_archived_after_planning_does_not_on_the_oldest_and_the_newest_version_either() {
    archived_after_planning(13);
    archived_after_planning(19);
}

/// A standby beside the original stops at the record instead; one on a machine where the location is empty goes on, and
/// recovers the record once more after a crash.
#[test]
fn a_standby_stops_beside_the_original_and_goes_on_elsewhere() {
    let mut bed = backed_up(17);
    let pgdata = bed.restore("standby", &["--standby"]);
    let place = create_late(&bed);
    write_more(&bed);
    let mut standby = Cluster::adopt(Arc::clone(bed.cluster.dir()), 17, pgdata, None);
    let there = "select count(*) from pg_class where relname = 'u'";
    let ended = ends_or(&mut standby, there, "1");
    the_original_is_whole(&mut bed);
    assert!(ended);
    refused_by_fetch(&standby, &place);

    // Another machine: the original's directory is not there.
    bed.cluster.stop(Shutdown::Fast);
    fs::rename(&place, bed.place("the-originals")).unwrap();
    fs::create_dir(&place).unwrap();
    user::give(&place);
    standby.start();
    standby.wait_for("select count(*) from u", "3000");
    standby.crash();
    standby.start();
    standby.wait_for("select count(*) from u", "3000");
}

/// `restore --dry-run` lists the tablespaces that replay creates, and what lies there; it fails where the restore would.
#[test]
fn a_dry_run_reports_tablespaces_that_replay_creates() {
    let (mut bed, place) = bed(17);
    let shown = place.to_str().unwrap();
    let dry_run = |bed: &Archived, more: &[&str]| {
        let pgdata = bed.place("copy");
        bed.agent.restore(&[more, &["restore", "--dry-run", "--pgdata", pgdata.to_str().unwrap()]].concat())
    };
    let first = |output: &str| {
        let report: Value = serde_json::from_str(output).unwrap();
        report["tablespaces"][0].clone()
    };
    let refused = dry_run(&bed, &[]).expect_status(1);
    assert!(refused.stdout.contains("Tablespace") && refused.stdout.contains(shown), "{refused:#?}");
    assert!(refused.stderr.contains("would overwrite"), "{refused:#?}");
    let one = first(&dry_run(&bed, &["--json"]).expect_status(1).stdout);
    assert_eq!((&one["state"], &one["location"]), (&"occupied".into(), &shown.into()), "{one:#}");
    assert!(!bed.place("copy").exists());

    bed.cluster.stop(Shutdown::Fast);
    fs::remove_dir_all(&place).unwrap();
    let one = first(&dry_run(&bed, &["--json"]).expect_success().stdout);
    assert_eq!(one["state"], "missing", "{one:#}");
    fs::create_dir(&place).unwrap();
    let free = dry_run(&bed, &[]).expect_success().stdout;
    assert!(free.contains(&format!("{shown}: free")), "{free}");
}
