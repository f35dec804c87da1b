//! R4 where directories have several names: a directory is compared by what it is and not by how its path is spelled.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::dir::TestDir;
use walpoint_tests::store::Store;
use walpoint_tests::{faults, process, user};

use crate::tree::{contents, differing};

/// A directory `real` with the other name `alias`.
fn alias(dir: &TestDir) {
    dir.mkdir("real");
    symlink(dir.join("real"), dir.join("alias")).unwrap();
}

/// R4: `--delta` and `--replace` where a tablespace's location and `pg_wal` run through a link. What the backup does not have
/// there goes: a visibility map that stayed would make rows visible that were deleted.
#[test]
fn a_location_that_runs_through_a_link_is_repaired_and_replaced() {
    let dir = Arc::new(TestDir::new());
    alias(&dir);
    fs::create_dir(dir.join("real/fast")).unwrap();
    user::give_tree(&dir.join("real"));
    let builder = Cluster::builder()
        .in_dir(&dir)
        .segment_size_mb(1)
        .conf("autovacuum", "off")
        .wal_dir(dir.join("alias/wal"));
    let mut bed = Archived::start(builder, Store::local());
    bed.cluster.psql(&format!("create tablespace fast location '{}'", dir.join("alias/fast").display()));
    bed.cluster.psql("create table t (i int primary key using index tablespace fast) tablespace fast");
    bed.cluster.psql("insert into t select generate_series(1, 5000)");
    bed.backup();
    bed.cluster.psql("delete from t where i > 1000");
    bed.cluster.psql("select pg_create_restore_point('good')");
    bed.cluster.psql("insert into t select generate_series(1001, 5000)");
    bed.cluster.psql("vacuum t");
    bed.settle();
    bed.cluster.stop(Shutdown::Fast);
    let pgdata = bed.cluster.pgdata().to_owned();
    let stray = fs::read_dir(pgdata.join("pg_tblspc")).unwrap().next().unwrap().unwrap().path();
    let stray = fs::read_dir(stray).unwrap().next().unwrap().unwrap().path().join("stray");
    fs::write(&stray, "of nobody").unwrap();
    fs::write(pgdata.join("pg_wal/0000000100000000000000FF"), vec![1; 1 << 20]).unwrap();

    let target = ["--target-name", "good", "--target-action", "promote"];
    let spaces = bed.place("spaces").display().to_string();
    let fresh = bed.restore("fresh", &[&["--tablespace-dir", &spaces], &target[..]].concat());
    bed.restore("data", &[&["--delta"], &target[..]].concat());
    assert!(!stray.exists() && !pgdata.join("pg_wal/0000000100000000000000FF").exists());
    assert_same(&pgdata, &fresh);
    check(&bed, &pgdata);

    // What is there once more goes along when it is moved aside, and comes back.
    bed.restore("data", &[&["--replace"], &target[..]].concat());
    check(&bed, &pgdata);
    bed.agent.restore(&["rollback", "--pgdata", pgdata.to_str().unwrap()]).expect_success();
    check(&bed, &pgdata);
}

/// The same files with the same content, wherever `pg_wal` is.
#[track_caller]
fn assert_same(one: &Path, other: &Path) {
    let [one, other] = [one, other].map(|pgdata| {
        let mut contents = contents(pgdata);
        contents.retain(|path, _| !path.starts_with("pg_wal"));
        contents
    });
    assert!(differing(&one, &other).is_empty(), "{:#?}", differing(&one, &other));
}

/// Both ways to count see the same.
#[track_caller]
fn check(bed: &Archived, pgdata: &Path) {
    let mut server = Cluster::adopt(bed.cluster.dir().clone(), bed.cluster.major(), pgdata.to_owned(), None);
    server.start();
    server.wait_promoted();
    let count = |with: &str| {
        server.psql(&format!(
            "set enable_seqscan = {with}; set enable_bitmapscan = off; select count(*) from t where i > 0"
        ))
    };
    assert_eq!((count("on").as_str(), count("off").as_str()), ("1000", "1000"));
    server.stop(Shutdown::Fast);
}

/// R4: tablespaces that change places, and a link that leads to another directory than the restore is to write to: nothing
/// that lay in either directory stays.
#[test]
fn tablespaces_that_change_places_leave_nothing_behind() {
    let mut bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    bed.cluster.create_tablespace("fast");
    bed.cluster.create_tablespace("slow");
    bed.cluster.psql("create table f tablespace fast as select i from generate_series(1, 1000) i");
    bed.cluster.psql("create table s tablespace slow as select i from generate_series(1, 2000) i");
    bed.backup();
    bed.cluster.psql("create table late tablespace fast as select 1 as i");
    bed.settle();
    bed.cluster.stop(Shutdown::Fast);
    let [(fast, fast_place), (slow, slow_place)] = &links(bed.cluster.pgdata())[..] else { panic!() };
    let swapped = [format!("{fast}={}", slow_place.display()), format!("{slow}={}", fast_place.display())];
    let swapped = ["--tablespace", &swapped[0], "--tablespace", &swapped[1]];
    bed.restore("data", &[&["--delta", "--target-immediate"], &swapped[..]].concat());
    let spaces = bed.place("spaces").display().to_string();
    let fresh = bed.restore("fresh", &["--target-immediate", "--tablespace-dir", &spaces]);
    assert_same(bed.cluster.pgdata(), &fresh);

    // A directory that holds something and that no link leads to is not this cluster's.
    let stranger = bed.place("stranger");
    fs::create_dir(&stranger).unwrap();
    fs::write(stranger.join("file"), "of somebody else").unwrap();
    user::give_tree(&stranger);
    let mapped = format!("{fast}={}", stranger.display());
    let refused = bed.try_restore("data", &["--delta", "--tablespace", &mapped]).expect_status(1);
    assert!(refused.stderr.contains("is not empty") && refused.stderr.contains("nothing was changed"));
    assert!(stranger.join("file").exists());
}

/// The tablespaces of a data directory, by oid.
fn links(pgdata: &Path) -> Vec<(u32, PathBuf)> {
    let entries = fs::read_dir(pgdata.join("pg_tblspc")).unwrap().flatten();
    let mut links: Vec<_> = entries
        .map(|entry| {
            let oid = entry.file_name().to_str().unwrap().parse().unwrap();
            (oid, fs::read_link(entry.path()).unwrap())
        })
        .collect();
    links.sort();
    links
}

/// What a data directory holds once it is started, and what it calls the location of its tablespace.
fn rows_and_location(bed: &Archived, pgdata: &Path) -> (String, String) {
    let mut server = Cluster::adopt(bed.cluster.dir().clone(), bed.cluster.major(), pgdata.to_owned(), None);
    server.set("archive_mode", "off");
    server.start();
    server.wait_promoted();
    let rows = server.psql("select string_agg(i::text, ' ' order by i) from t");
    let location =
        server.psql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'fast'");
    server.stop(Shutdown::Fast);
    (rows, location)
}

/// R4: `--replace` and `rollback` where a tablespace's location, and that of `pg_wal`, are links themselves: the directories that
/// they lead to are moved, the links stay, and each data directory calls them what it did.
#[test]
fn a_location_that_is_a_link_stays_one() {
    let dir = Arc::new(TestDir::new());
    for (name, real) in [("fast", "disk1/fast"), ("wal", "disk2/wal")] {
        fs::create_dir_all(dir.join(real)).unwrap();
        symlink(real, dir.join(name)).unwrap();
    }
    ["disk1", "disk2"].iter().for_each(|disk| user::give_tree(&dir.join(disk)));
    let builder = Cluster::builder().in_dir(&dir).segment_size_mb(1).wal_dir(dir.join("wal"));
    let mut bed = Archived::start(builder, Store::local());
    bed.cluster.psql(&format!("create tablespace fast location '{}'", dir.join("fast").display()));
    bed.cluster.psql("create table t tablespace fast as select 1 as i");
    bed.backup();
    bed.cluster.psql("select pg_create_restore_point('good')");
    bed.cluster.psql("insert into t values (2)");
    bed.settle();
    bed.cluster.stop(Shutdown::Fast);
    let pgdata = bed.cluster.pgdata().to_owned();
    let named = |pgdata: &Path| {
        let space = fs::read_dir(pgdata.join("pg_tblspc")).unwrap().next().unwrap().unwrap().path();
        [space, pgdata.join("pg_wal")].map(|link| fs::read_link(link).unwrap())
    };
    let assert_named = |after: &str| {
        assert_eq!(named(&pgdata), [dir.join("fast"), dir.join("wal")], "{after}");
        for (name, real) in [("fast", "disk1/fast"), ("wal", "disk2/wal")] {
            assert_eq!(fs::read_link(dir.join(name)).unwrap(), Path::new(real), "{after}");
            assert!(dir.join(real).is_dir(), "{after}");
        }
    };
    let rows = |pgdata: &Path| rows_and_location(&bed, pgdata);
    let fast = dir.join("fast").display().to_string();
    let restore = ["restore", "--replace", "--quiet", "--target-name", "good", "--target-action", "promote"];
    let restore = [&restore[..], &["--pgdata", pgdata.to_str().unwrap()]].concat();
    let rollback = ["rollback", "--pgdata", pgdata.to_str().unwrap()];
    let before = contents(&pgdata);
    bed.agent.restore(&restore).expect_success();
    assert_named("replaced");
    let aside = asides(&bed).remove(0);
    let moved = named(&aside);
    for (link, disk) in moved.iter().zip(["disk1", "disk2"]) {
        assert!(link.starts_with(dir.join(disk)) && link.is_dir(), "{}", link.display());
    }
    assert_eq!(rows(&pgdata), ("1".to_owned(), fast.clone()));
    bed.agent.restore(&rollback).expect_success();
    assert_named("rolled back");
    let now = contents(&pgdata);
    assert!(now == before, "{:?}", differing(&now, &before));
    bed.agent.restore(&rollback).expect_success();
    assert_named("rolled back twice");
    assert_eq!(rows(&pgdata), ("1".to_owned(), fast.clone()));
    bed.agent.restore(&rollback).expect_success();
    assert_eq!(rows(&pgdata), ("1 2".to_owned(), fast.clone()));

    // Killed at any rename, the same command finishes.
    let before = contents(&pgdata);
    let mut interrupted = 0;
    for when in 1..=6 {
        let kill = format!("rename:signal=SIGKILL:when={when}");
        for arguments in [&restore[..], &rollback[..]] {
            let command = bed.agent.command("restore-agent", arguments);
            let run = process::run(&mut faults::inject(&command, &[&kill], &[]), Duration::from_secs(60));
            if run.status == 137 {
                interrupted += 1;
                bed.agent.restore(arguments).expect_success();
            }
            assert_named(&format!("{} killed at rename {when}", arguments[0]));
        }
        let now = contents(&pgdata);
        assert!(now == before, "{when}: {:?}", differing(&now, &before));
    }
    assert!(interrupted >= 8, "only {interrupted} runs were interrupted");
}

/// Data directories that were moved aside.
fn asides(bed: &Archived) -> Vec<PathBuf> {
    let entries = fs::read_dir(bed.cluster.dir().path()).unwrap().flatten().map(|entry| entry.path());
    entries.filter(|path| path.display().to_string().contains("/data.walpoint-old-")).collect()
}
