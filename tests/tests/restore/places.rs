//! R6: where the parts of a cluster go: tablespaces, pg_wal, what lay outside the data directory; and their modes.

use std::path::Path;

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::oracle::Contents;
use walpoint_tests::store::Store;
use walpoint_tests::{oracle, process, user, wait};

use crate::tree::modes;

fn builder() -> walpoint_tests::builder::ClusterBuilder {
    Cluster::builder().segment_size_mb(1)
}

/// Two tablespaces with something in each, and a database that lives in one.
fn fill(primary: &Cluster) {
    primary.create_tablespace("fast");
    primary.create_tablespace("slow");
    primary.psql(
        "create table t (n int primary key using index tablespace slow, text text) tablespace fast;
         insert into t select i, md5(i::text) from generate_series(1, 5000) i;
         create unlogged table u tablespace slow as select 1 as one",
    );
    primary.psql("create database other tablespace slow");
    primary.psql_in("other", "create table o as select i from generate_series(1, 100) i");
}

#[track_caller]
fn check(restored: &Cluster, contents: &Contents) {
    restored.wait_promoted();
    // What is unlogged is empty after a recovery.
    assert_eq!(restored.psql("insert into u values (1) returning one"), "1");
    assert_eq!(restored.psql("select count(*) from u"), "1");
    Contents::of(restored).assert_equal(contents);
    assert_eq!(restored.psql_in("other", "select count(*) from o"), "100");
    oracle::amcheck(restored);
}

/// R6: tablespaces one by one, all at once, or inside the data directory.
#[test]
fn tablespaces_go_where_they_are_told() {
    tablespaces_of(17);
}

/// R6: the same on the oldest version, and on the newest.
#[test]
fn tablespaces_of_the_oldest_and_the_newest_version() {
    tablespaces_of(13);
    tablespaces_of(19);
}

fn tablespaces_of(major: u32) {
    let bed = Archived::start(builder().major(major), Store::local());
    let primary = &bed.cluster;
    fill(primary);
    bed.backup();
    primary.psql("insert into t select i, 'late' from generate_series(5001, 6000) i");
    let contents = Contents::of(primary);
    bed.settle();
    let [(fast, fast_place), (slow, slow_place)] = &primary.tablespaces()[..] else { panic!() };

    // One by its oid, one by its directory.
    let (near, far) = (bed.place("near"), bed.place("new/far"));
    let by_oid = format!("{fast}={}", near.display());
    let by_place = format!("{}={}", slow_place.display(), far.display());
    let restored = bed.restore_and_start("one-by-one", &["--tablespace", &by_oid, "--tablespace", &by_place]);
    let link =
        |pgdata: &Path, oid: &u32| std::fs::read_link(pgdata.join(format!("pg_tblspc/{oid}"))).unwrap();
    assert_eq!((link(restored.pgdata(), fast), link(restored.pgdata(), slow)), (near, far));
    check(&restored, &contents);
    drop(restored);

    // One of them, and all others below a directory.
    let (one, rest) = (format!("{fast}={}", bed.place("one").display()), bed.place("rest"));
    let restored =
        bed.restore_and_start("below", &["--tablespace", &one, "--tablespace-dir", rest.to_str().unwrap()]);
    assert_eq!(link(restored.pgdata(), slow), rest.join(slow.to_string()));
    assert_eq!(link(restored.pgdata(), fast), bed.place("one"));
    check(&restored, &contents);
    drop(restored);

    // Inside.
    let mut restored = bed.restore_and_start("inside", &["--flatten-tablespaces"]);
    for oid in [fast, slow] {
        let place = restored.pgdata().join(format!("pg_tblspc/{oid}"));
        assert!(std::fs::symlink_metadata(&place).unwrap().is_dir(), "{} is no directory", place.display());
    }
    check(&restored, &contents);
    // Not only recovery takes them as they are.
    restored.stop(Shutdown::Fast);
    restored.start();
    check_again(&restored);
    drop(restored);

    // The source was not touched, and is in nobody's way.
    assert!(fast_place.is_dir() && slow_place.is_dir());
    assert_eq!(Contents::of(primary), contents);

    // Nonsense is refused before anything is written.
    let inside = format!("{fast}={}/below", bed.place("bad").display());
    let within = format!("{slow}={}", bed.place("one/within").display());
    for (options, says) in [
        (vec!["--tablespace", "1=/nowhere"], "no such tablespace"),
        (vec!["--tablespace", &inside], "overlap"),
        (vec!["--tablespace", &one, "--tablespace", &within], "overlap"),
        (vec!["--tablespace", "16400"], "OLD=NEW"),
        (vec!["--tablespace", "16400=relative"], "absolute"),
        (vec!["--flatten-tablespaces", "--tablespace-dir", "/x"], "cannot be used with"),
    ] {
        let output = bed.try_restore("bad", &options);
        assert!(output.status != 0 && output.stderr.contains(says), "{options:?}: {output:#?}");
        assert!(!bed.place("bad").exists(), "{options:?} touched something");
    }
}

fn check_again(restored: &Cluster) {
    assert_eq!(restored.psql("select count(*) from t"), "6000");
    assert_eq!(restored.psql_in("other", "select count(*) from o"), "100");
}

/// R6: the source is gone: without options everything goes back to where it was.
#[test]
fn tablespaces_go_back_to_their_own_places_when_these_are_free() {
    let mut bed = Archived::start(builder(), Store::local());
    fill(&bed.cluster);
    let places = bed.cluster.tablespaces();
    bed.backup();
    let contents = Contents::of(&bed.cluster);
    bed.settle();
    bed.cluster.crash();
    let pgdata = bed.cluster.pgdata().to_owned();
    std::fs::remove_dir_all(&pgdata).unwrap();
    // One place is an empty directory, the other is gone.
    for (n, (_, place)) in places.iter().enumerate() {
        std::fs::remove_dir_all(place).unwrap();
        if n == 0 {
            bed.cluster.dir().mkdir(place.file_name().unwrap());
        }
    }
    bed.restore(pgdata.file_name().unwrap().to_str().unwrap(), &["--resume-archiving"]);
    bed.cluster.start();
    check(&bed.cluster, &contents);
    assert_eq!(bed.cluster.tablespaces(), places);
}

/// R6: a linked pg_wal becomes a directory or a link to where it is wanted; paths outside the data directory come along;
/// every file has the mode it had.
#[test]
fn wal_directory_extra_paths_and_modes() {
    let dir = std::sync::Arc::new(walpoint_tests::dir::TestDir::new());
    let conf = dir.mkdir("etc");
    dir.write("etc/hba.conf", "# of my own\n");
    dir.mkdir("etc/conf.d");
    dir.write("etc/conf.d/memory.conf", "work_mem = '7MB'\n");
    std::os::unix::fs::symlink("conf.d/memory.conf", conf.join("link")).unwrap();
    let single = dir.write("single file.conf", "one\n");
    let extra = format!("extra_paths = [\"{}\", \"{}\"]", conf.display(), single.display());
    let builder = builder().in_dir(&dir).wal_dir(dir.join("wal")).initdb("--allow-group-access");
    let bed = Archived::start_with(builder, Store::local(), |agent| agent.cluster_line(&extra));
    let primary = &bed.cluster;
    primary.create_tablespace("fast");
    primary.psql("create table t tablespace fast as select i from generate_series(1, 1000) i");
    primary.psql("checkpoint");
    bed.backup();
    let contents = Contents::of(primary);
    bed.settle();

    let spaces = bed.place("spaces").display().to_string();
    let pgdata = bed.restore("plain", &["--tablespace-dir", &spaces]);
    assert!(std::fs::symlink_metadata(pgdata.join("pg_wal")).unwrap().is_dir());
    let beside = bed.place("plain.extra");
    let side = |place: &Path, n: u32, original: &Path| {
        place.join(format!("{n}-{}", original.file_name().unwrap().to_str().unwrap()))
    };
    let compare = |beside: &Path| {
        let etc = side(beside, 0, &conf);
        for file in ["hba.conf", "conf.d/memory.conf"] {
            assert_eq!(
                std::fs::read(etc.join(file)).unwrap(),
                std::fs::read(conf.join(file)).unwrap(),
                "{file}"
            );
        }
        assert_eq!(std::fs::read_link(etc.join("link")).unwrap(), Path::new("conf.d/memory.conf"));
        assert_eq!(std::fs::read(side(beside, 1, &single)).unwrap(), b"one\n");
    };
    compare(&beside);

    // Modes: of everything that the source had at the time and that is not written by the restore.
    let source = modes(primary.pgdata());
    let restored = modes(&pgdata);
    let mut compared = 0;
    for (path, (mode, uid, gid)) in &restored {
        let written = ["postgresql.auto.conf", "backup_label", "tablespace_map", "recovery.signal"];
        let text = path.to_string_lossy();
        if written.contains(&&*text) || text.starts_with("pg_wal") || text.starts_with("pg_tblspc/") {
            continue;
        }
        if let Some(source) = source.get(path) {
            assert_eq!((mode, uid, gid), (&source.0, &source.1, &source.2), "{text}");
            compared += 1;
        }
    }
    assert!(compared > 200, "only {compared} files were compared");
    assert!(restored.values().all(|(_, uid, gid)| (*uid, *gid) == (user::ids().uid, user::ids().gid)));
    let restored = Cluster::start_restored(&dir, primary.major(), pgdata);
    restored.wait_promoted();
    Contents::of(&restored).assert_equal(&contents);
    drop(restored);

    let (wal, extra) = (bed.place("new/wal"), bed.place("new/extra"));
    let options =
        ["--wal-dir", wal.to_str().unwrap(), "--extra-dir", extra.to_str().unwrap(), "--flatten-tablespaces"];
    let restored = bed.restore_and_start("linked", &options);
    assert_eq!(std::fs::read_link(restored.pgdata().join("pg_wal")).unwrap(), wal);
    compare(&extra);
    restored.wait_promoted();
    assert!(wal.join(restored.current_segment()).exists());
    Contents::of(&restored).assert_equal(&contents);
}

/// R6: where the configuration lay outside the data directory, as Debian's does, the command that a restore names starts the server.
#[test]
fn a_configuration_from_elsewhere_starts_by_the_command_that_is_named() {
    let dir = std::sync::Arc::new(walpoint_tests::dir::TestDir::new());
    let conf = dir.mkdir("etc pg");
    let extra = format!("extra_paths = [\"{}\"]", conf.display());
    let bed =
        Archived::start_with(builder().in_dir(&dir), Store::local(), |agent| agent.cluster_line(&extra));
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        let (from, to) = (bed.cluster.pgdata().join(name), conf.join(name));
        std::fs::copy(&from, &to).unwrap();
        user::give(&to);
        std::fs::remove_file(&from).unwrap();
    }
    bed.backup();
    bed.settle();
    let pgdata = bed.place("copy");
    let told = bed.try_restore("copy", &["--json"]).expect_success();
    let document: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    let start = document["start_command"].as_str().unwrap();

    starts_by(&bed, start, &pgdata);
}

/// Starts a restored server by the command that the restore names, beside the original, and stops it again.
#[track_caller]
fn starts_by(bed: &Archived, start: &str, pgdata: &Path) {
    let pg_ctl = bed.cluster.tool("pg_ctl");
    let bin = Path::new(pg_ctl.get_program()).parent().unwrap().display();
    let (sockets, log) = (bed.cluster.dir().mkdir("sockets"), bed.place("copy.log"));
    let line = format!(
        "PATH={bin}:$PATH; {start} -w -t 60 -l {} -o '-k {} -c listen_addresses='",
        log.display(),
        sockets.display()
    );
    let mut shell = std::process::Command::new("sh");
    process::run(user::become_user(shell.arg("-c").arg(line)), wait::SOON).expect_success();
    let mut stop = bed.cluster.tool("pg_ctl");
    stop.args(["stop", "-m", "immediate", "-D"]).arg(pgdata);
    process::run(&mut stop, wait::SOON).expect_success();
}

/// R6: where the configuration names the original as data_directory, the command that a restore names starts the copy. With hot_standby
/// off, PostgreSQL shuts down where it would pause, and the restore says that.
#[test]
fn a_configuration_that_names_the_original_starts_the_copy() {
    let bed = Archived::start_with(builder(), Store::local(), |agent| agent);
    // In force with the next start.
    bed.cluster.set("data_directory", bed.cluster.pgdata().display());
    bed.cluster.set("hot_standby", "off");
    bed.backup();
    let target = bed.cluster.psql("select pg_current_wal_lsn()");
    bed.cluster.psql("create table t (i int)");
    bed.settle();
    let told = bed.try_restore("copy", &["--json"]).expect_success();
    let document: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    let notes = document["notes"].to_string();
    assert!(notes.contains("sets data_directory to") && !notes.contains("hot_standby"), "{notes}");
    // Were it the original, that would be running already.
    starts_by(&bed, document["start_command"].as_str().unwrap(), &bed.place("copy"));

    let told = bed.try_restore("paused", &["--target-lsn", &target]).expect_success().stdout;
    assert!(told.contains("hot_standby is off") && !told.contains("pg_is_wal_replay_paused"), "{told}");
}
