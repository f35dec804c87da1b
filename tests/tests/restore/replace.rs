//! R4, `--replace` and `rollback`: the old data directory is moved aside whole, and comes back.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::Rng;
use serde_json::Value;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::faults;
use walpoint_tests::oracle::{self, Contents};
use walpoint_tests::process;
use walpoint_tests::store::Store;
use walpoint_tests::user;

use crate::tree::{contents, differing};

/// A stopped cluster with a tablespace and a pg_wal elsewhere, a backup of it, and what came after the backup.
fn bed() -> (Archived, Contents, Contents) {
    let dir = std::sync::Arc::new(walpoint_tests::dir::TestDir::new());
    let builder = Cluster::builder().in_dir(&dir).segment_size_mb(1).wal_dir(dir.join("wal"));
    let mut bed = Archived::start(builder, Store::local());
    let primary = &bed.cluster;
    primary.create_tablespace("fast");
    primary.psql("create table t as select i from generate_series(1, 5000) i; create table u tablespace fast as select 1");
    bed.backup();
    primary.psql("select pg_create_restore_point('good')");
    let good = Contents::of(primary);
    primary.psql("drop table t; insert into u values (2)");
    let bad = Contents::of(primary);
    bed.settle();
    bed.cluster.stop(Shutdown::Fast);
    (bed, good, bad)
}

const RESTORE: [&str; 5] = ["--replace", "--target-name", "good", "--target-action", "promote"];

/// Data directories that were moved aside.
fn asides(bed: &Archived) -> Vec<PathBuf> {
    let name = format!("{}.walpoint-old-", bed.cluster.pgdata().file_name().unwrap().to_str().unwrap());
    let entries = fs::read_dir(bed.cluster.dir().path()).unwrap().flatten();
    let mut found: Vec<PathBuf> =
        entries.filter(|e| e.file_name().to_str().unwrap().starts_with(&name)).map(|e| e.path()).collect();
    found.sort();
    found
}

#[track_caller]
fn check(bed: &Archived, pgdata: &Path, expected: &Contents) {
    let mut server = Cluster::adopt(bed.cluster.dir().clone(), bed.cluster.major(), pgdata.to_owned(), None);
    server.set("archive_mode", "off");
    server.start();
    server.wait_promoted();
    Contents::of(&server).assert_equal(expected);
    oracle::amcheck(&server);
    server.psql("drop extension amcheck");
    server.stop(Shutdown::Fast);
}

/// R4: the old directory stays a cluster that can be started where it lies, tablespaces and pg_wal included; `rollback` puts
/// it back, and once more the other one.
#[test]
fn a_replaced_data_directory_is_kept_and_comes_back() {
    let (bed, good, bad) = bed();
    let pgdata = bed.cluster.pgdata().to_owned();
    let output = bed
        .agent
        .restore(&[&["--json", "restore", "--pgdata", pgdata.to_str().unwrap()], &RESTORE[..]].concat());
    let report: Value = serde_json::from_str(&output.expect_success().stdout).unwrap();
    let [aside] = &asides(&bed)[..] else { panic!("{:?}", asides(&bed)) };
    assert_eq!(report["previous_pgdata"].as_str(), aside.to_str());
    // Whoever deletes it has to know of all of it.
    let outside = |pgdata: &Path| {
        let space = fs::read_dir(pgdata.join("pg_tblspc")).unwrap().next().unwrap().unwrap().path();
        [space, pgdata.join("pg_wal")].map(|link| fs::read_link(link).unwrap().display().to_string())
    };
    let notes = report["notes"].to_string();
    assert!(outside(aside).iter().all(|directory| notes.contains(directory)), "{notes}");
    assert_eq!(
        fs::read_link(pgdata.join("pg_wal")).unwrap(),
        bed.place("wal"),
        "it follows the one that was there"
    );
    check(&bed, &pgdata, &good);
    check(&bed, aside, &bad);

    let rollback = || bed.agent.restore(&["rollback", "--pgdata", pgdata.to_str().unwrap()]);
    let rolled_back = rollback().expect_success();
    let warned = "HINT: If nothing of timeline 2 is needed, run \"archive-agent lineage settle --timeline 2 --abandoned";
    assert!(rolled_back.stderr.contains(warned), "{rolled_back:#?}");
    let told = rolled_back.stdout;
    assert!(told.contains(aside.to_str().unwrap()), "{told}");
    check(&bed, &pgdata, &bad);
    let [undone] = &asides(&bed)[..] else { panic!("{:?}", asides(&bed)) };
    assert!(told.contains(undone.to_str().unwrap()), "{told}");
    assert!(outside(undone).iter().all(|directory| told.contains(directory)), "{told}");
    assert_eq!(has_successor(undone), Some(true), "what came back is in its place");
    check(&bed, undone, &good);
    let again = rollback().expect_success();
    assert!(!again.stderr.contains("lineage settle"), "the other one is the older: {again:#?}");
    check(&bed, &pgdata, &good);
}

/// R4: a restore that fails at its end has put nothing in the place of the old directory, and its record does not say otherwise.
#[test]
fn a_replacement_that_fails_at_its_end_has_not_succeeded() {
    let mut bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let pgdata = bed.cluster.pgdata().to_owned();
    let (auto, away) = (pgdata.join("postgresql.auto.conf"), bed.place("auto.conf"));
    // The restore cannot write its settings over a directory.
    fs::rename(&auto, &away).unwrap();
    fs::create_dir(&auto).unwrap();
    user::give(&auto);
    bed.backup();
    fs::remove_dir(&auto).unwrap();
    fs::rename(&away, &auto).unwrap();
    bed.settle();
    bed.cluster.stop(Shutdown::Fast);
    let arguments = ["restore", "--replace", "--target-immediate", "--pgdata", pgdata.to_str().unwrap()];
    let output = bed.agent.restore(&arguments).expect_status(1);
    assert!(output.stderr.contains("postgresql.auto.conf cannot be written"), "{output:#?}");
    assert!(!pgdata.join("global/pg_control").exists());
    let [aside] = &asides(&bed)[..] else { panic!("{:?}", asides(&bed)) };
    assert_eq!(has_successor(aside), Some(false));
}

/// What the record of a data directory that was moved aside says about another one in its place.
fn has_successor(aside: &Path) -> Option<bool> {
    let record = fs::read_to_string(aside.join("walpoint-aside.json")).unwrap();
    serde_json::from_str::<Value>(&record).unwrap()["succeeded"].as_bool()
}

/// R4: a tablespace that was not mounted when the restore looked at it is not written over when it is there after all.
#[test]
fn a_tablespace_that_comes_back_meanwhile_is_not_written_over() {
    let (bed, _, bad) = bed();
    let pgdata = bed.cluster.pgdata().to_owned();
    let link = fs::read_dir(pgdata.join("pg_tblspc")).unwrap().next().unwrap().unwrap().path();
    let (space, away) = (fs::read_link(link).unwrap(), bed.place("away"));
    fs::rename(&space, &away).unwrap();
    fs::create_dir(&space).unwrap();
    user::give(&space);
    let mount = format!("rmdir {0} && mv {1} {0}", space.display(), away.display());
    let arguments = ["restore", "--pgdata", pgdata.to_str().unwrap(), "--pre-command", &mount];
    let output = bed.agent.restore(&[&arguments, &RESTORE[..]].concat()).expect_status(1);
    let refusal =
        format!("{} is not what it was when the restore began; nothing was changed", space.display());
    assert!(output.stderr.contains(&refusal), "{output:#?}");
    assert_eq!(asides(&bed), Vec::<PathBuf>::new());
    check(&bed, &pgdata, &bad);
}

/// R4: nothing is put back under a running server, and nothing is invented.
#[test]
fn a_rollback_is_refused_while_a_server_runs() {
    let (mut bed, _, _) = bed();
    let pgdata = bed.cluster.pgdata().to_str().unwrap().to_owned();
    let rollback = |bed: &Archived| bed.agent.restore(&["rollback", "--pgdata", &pgdata]);
    let nothing = rollback(&bed).expect_status(1);
    assert!(nothing.stderr.contains("nothing was changed"), "{nothing:#?}");
    let name = bed.cluster.pgdata().file_name().unwrap().to_str().unwrap().to_owned();
    bed.restore(&name, &RESTORE);
    let server = Cluster::start_restored(bed.cluster.dir(), bed.cluster.major(), &pgdata);
    let output = rollback(&bed).expect_status(1);
    assert!(output.stderr.contains("is running"), "{output:#?}");
    drop(server);
    // Nor while one runs where the old one lies.
    let aside = asides(&bed).remove(0);
    let old = Cluster::adopt(bed.cluster.dir().clone(), bed.cluster.major(), aside, None);
    old.set("archive_mode", "off");
    bed.cluster = old;
    bed.cluster.start();
    let output = rollback(&bed).expect_status(1);
    assert!(output.stderr.contains("is running"), "{output:#?}");
}

/// R5: killed at any rename, link or write, the same command finishes, `restore --replace` and `rollback` alike, and the old
/// directory is always whole.
#[test]
fn an_interrupted_replacement_is_finished_by_the_same_command() {
    let (bed, _, bad) = bed();
    let pgdata = bed.cluster.pgdata().to_owned();
    let before = contents(&pgdata);
    let target = pgdata.to_str().unwrap();
    let restore = [&["restore", "--quiet", "--pgdata", target], &RESTORE[..]].concat();
    let rollback = ["rollback", "--pgdata", target];
    let killed = |arguments: &[&str], call: &str, when: u32| {
        let command = bed.agent.command("restore-agent", arguments);
        let injection = format!("{call}:signal=SIGKILL:when={when}");
        process::run(&mut faults::inject(&command, &[&injection], &[]), Duration::from_secs(60)).status
    };
    let mut random = faults::random();
    let mut cuts = vec![
        ("symlink", 1),
        ("symlink", 2),
        ("pwrite64", random.random_range(1..30)),
        ("fsync", random.random_range(1..60)),
    ];
    cuts.extend((1..=8).map(|when| ("rename", when)));
    let mut interrupted = 0;
    for (call, when) in cuts {
        interrupted += u32::from(killed(&restore, call, when) == 137);
        let finished = || {
            let unfinished = pgdata.join("walpoint-restore.json").exists();
            !unfinished && pgdata.join("global/pg_control").exists() && !asides(&bed).is_empty()
        };
        // One that was not killed in time has replaced it; another one would replace that.
        if !finished() {
            bed.agent.restore(&restore).expect_success();
        }
        assert!(finished());
        let old = asides(&bed).pop().unwrap();
        let mut aside = contents(&old);
        aside.remove(Path::new("walpoint-aside.json"));
        // The link of pg_wal leads to where that lies now.
        let wal = fs::read_link(old.join("pg_wal")).unwrap();
        assert!(wal.is_dir() && wal != bed.place("wal"), "{call} {when}: {}", wal.display());
        aside.insert("pg_wal".into(), before[Path::new("pg_wal")].clone());
        assert!(aside == before, "{call} {when}: {:?}", differing(&aside, &before));

        let call = if call == "symlink" || call == "rename" { call } else { "fsync" };
        interrupted += u32::from(killed(&rollback, call, when) == 137);
        if asides(&bed).contains(&old) {
            bed.agent.restore(&rollback).expect_success();
        } else if pgdata.join("walpoint-aside.json").exists() {
            let told = bed.agent.restore(&rollback).expect_success().stdout;
            assert!(told.contains("is in place"), "{told}");
        }
        let now = contents(&pgdata);
        assert!(now == before, "{call} {when}: {:?}", differing(&now, &before));
        for aside in asides(&bed) {
            remove_with_links(&aside);
        }
    }
    assert!(interrupted >= 12, "only {interrupted} runs were interrupted");
    check(&bed, &pgdata, &bad);
}

/// Removes a data directory and what its links lead to.
fn remove_with_links(pgdata: &Path) {
    let mut links = vec![pgdata.join("pg_wal")];
    links.extend(fs::read_dir(pgdata.join("pg_tblspc")).into_iter().flatten().flatten().map(|e| e.path()));
    for link in links {
        if let Ok(target) = fs::read_link(&link) {
            drop(fs::remove_dir_all(target));
        }
    }
    fs::remove_dir_all(pgdata).unwrap();
}
