//! R6: who owns what is restored. These tests are root's.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::oracle::Contents;
use walpoint_tests::process::Output;
use walpoint_tests::store::Store;
use walpoint_tests::{faults, needs_root, process, user, wait};

use crate::tree::{contents, modes};

/// Runs `restore-agent restore` as root.
fn as_root(bed: &Archived, arguments: &[&str]) -> Output {
    use std::os::unix::process::CommandExt;
    let mut command = bed.agent.command("restore-agent", arguments);
    process::run(command.uid(0).gid(0), wait::SOON)
}

/// R6: root restores for PostgreSQL's user: everything is that user's, in directories that it can reach.
#[test]
fn root_restores_for_postgresqls_user() {
    needs_root!();
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let primary = &bed.cluster;
    primary.create_tablespace("fast");
    primary.psql("create table t tablespace fast as select i from generate_series(1, 1000) i");
    bed.backup();
    let contents = Contents::of(primary);
    bed.settle();
    let ids = user::ids();

    let owned = |directory: &std::path::Path| {
        for (path, (_, uid, gid)) in modes(directory) {
            assert_eq!((uid, gid), (ids.uid, ids.gid), "{} in {}", path.display(), directory.display());
        }
    };
    // The parents do not exist either.
    let (pgdata, wal, spaces) = (bed.place("new/pg/data"), bed.place("other/wal"), bed.place("third/spaces"));
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let (data, wal_text, spaces_text) = (text(&pgdata), text(&wal), text(&spaces));
    let arguments = ["restore", "--pgdata", &data, "--wal-dir", &wal_text, "--tablespace-dir", &spaces_text];
    let told = as_root(&bed, &arguments).expect_success().stdout;
    // Root cannot run pg_ctl.
    let start = format!("start it: runuser -u {} -- pg_ctl -D {data} -w -t 3600 start", user::name());
    assert!(told.contains(&start), "{told}");
    [&pgdata, &wal, &spaces].into_iter().for_each(|directory| owned(directory));
    let restored = Cluster::start_restored(primary.dir(), primary.major(), &pgdata);
    restored.wait_promoted();
    Contents::of(&restored).assert_equal(&contents);
    drop(restored);

    // A directory that is root's so far.
    let mine = bed.place("mine");
    std::fs::create_dir(&mine).unwrap();
    as_root(&bed, &["restore", "--pgdata", &text(&mine), "--flatten-tablespaces"]).expect_success();
    owned(&mine);
    assert_eq!(std::fs::metadata(&mine).unwrap().mode() & 0o777, 0o700);
    let restored = Cluster::start_restored(primary.dir(), primary.major(), &mine);
    restored.wait_promoted();
    Contents::of(&restored).assert_equal(&contents);
}

/// R6, F1: recovery would stop at once where PostgreSQL's user cannot read the repository: found out before anything is
/// written.
#[test]
fn root_proves_first_that_postgresqls_user_can_read_the_repository() {
    needs_root!();
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    bed.backup();
    bed.settle();
    let pgdata = bed.place("target").display().to_string();
    let root = bed.store.root().unwrap();
    std::os::unix::fs::chown(root, Some(0), Some(0)).unwrap();
    let output = as_root(&bed, &["restore", "--pgdata", &pgdata]).expect_status(1);
    assert!(output.stderr.contains(&format!("uid {}", user::ids().uid)), "{output:#?}");
    assert!(!bed.place("target").exists(), "something was written");
    user::give(root);
    as_root(&bed, &["restore", "--pgdata", &pgdata]).expect_success();
}

/// R6: nor can a server start below a directory that its user cannot enter.
#[test]
fn root_proves_first_that_postgresqls_user_can_enter_the_place() {
    needs_root!();
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    bed.backup();
    bed.settle();
    let closed = bed.place("closed");
    std::fs::create_dir_all(closed.join("open")).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    let text = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    let (below, good) = (text(closed.join("open/new/data")), text(bed.place("good")));
    for options in [["--pgdata", &below, "--wal-dir", &good], ["--pgdata", &good, "--wal-dir", &below]] {
        let output = as_root(&bed, &[&["restore"], &options[..]].concat()).expect_status(1);
        let told = format!("{} cannot be entered", closed.display());
        assert!(
            output.stderr.contains(&told) && output.stderr.contains("nothing was written"),
            "{output:#?}"
        );
        assert!(!closed.join("open/new").exists() && !bed.place("good").exists(), "something was written");
    }
    // A directory that is root's and closed will be that user's.
    let mine = bed.place("mine");
    std::fs::create_dir(&mine).unwrap();
    std::fs::set_permissions(&mine, std::fs::Permissions::from_mode(0o700)).unwrap();
    as_root(&bed, &["restore", "--pgdata", &text(mine)]).expect_success();
}

/// R5, R6: while a restore of root's runs, a `pg_wal` outside is root's. Killed again and again, the same command finishes it, and another
/// one gives back what it does not write to.
#[test]
fn a_killed_replacement_of_roots_is_finished_though_pg_wal_lies_outside() {
    needs_root!();
    let dir = std::sync::Arc::new(walpoint_tests::dir::TestDir::new());
    let builder = Cluster::builder().in_dir(&dir).segment_size_mb(1).wal_dir(dir.join("wal"));
    let mut bed = Archived::start(builder, Store::local());
    bed.cluster.create_tablespace("fast");
    bed.cluster.psql("create table t tablespace fast as select 1 as i");
    bed.backup();
    bed.settle();
    bed.cluster.stop(Shutdown::Fast);
    let (wal, pgdata) = (bed.place("wal"), bed.cluster.pgdata().to_owned());
    let uid = || std::fs::metadata(&wal).unwrap().uid();
    let target = ["--target-immediate", "--target-action", "promote"];
    let restore = [&["restore", "--replace", "--pgdata", pgdata.to_str().unwrap()], &target[..]].concat();
    let kill = || {
        use std::os::unix::process::CommandExt;
        let command = bed.agent.command("restore-agent", &restore);
        let mut command = faults::inject(&command, &["pwrite64:signal=SIGKILL:when=1"], &[]);
        process::run(command.uid(0).gid(0), wait::SOON).expect_status(137);
        assert!(uid() == 0 && wal.join("walpoint-restore.json").exists(), "pg_wal was not taken yet");
    };
    (0..3).for_each(|_| kill());
    as_root(&bed, &restore).expect_success();
    assert!(uid() == user::ids().uid && !wal.join("walpoint-restore.json").exists());
    let mut restored = Cluster::start_restored(bed.cluster.dir(), bed.cluster.major(), &pgdata);
    restored.wait_promoted();
    assert_eq!(restored.psql("select i from t"), "1");
    restored.stop(Shutdown::Fast);

    kill();
    let other = bed.place("other").display().to_string();
    as_root(&bed, &[&restore[..], &["--wal-dir", &other]].concat()).expect_success();
    assert_eq!((uid(), std::fs::read_dir(&wal).unwrap().count()), (user::ids().uid, 0));
}

/// R4, R6: what root moved aside PostgreSQL's user can put back; a record that it cannot read is no missing one.
#[test]
fn what_root_moved_aside_postgresqls_user_puts_back() {
    needs_root!();
    let mut bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    bed.cluster.create_tablespace("fast");
    bed.cluster.psql("create table t tablespace fast as select 1 as i");
    let space = bed.cluster.tablespaces()[0].1.clone();
    bed.backup();
    bed.settle();
    bed.cluster.stop(Shutdown::Fast);
    let pgdata = bed.cluster.pgdata().to_str().unwrap().to_owned();
    let replace = || {
        let output = as_root(&bed, &["--json", "restore", "--replace", "--pgdata", &pgdata]).expect_success();
        let report: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
        std::path::PathBuf::from(report["previous_pgdata"].as_str().unwrap())
    };
    let rollback = || bed.agent.restore(&["rollback", "--pgdata", &pgdata]);
    replace();
    let latest = replace();
    let record = latest.join("walpoint-aside.json");
    let meta = std::fs::metadata(&record).unwrap();
    // Its word counts for root, and PostgreSQL's user can read it.
    assert_eq!((meta.uid(), meta.mode() & 0o777), (0, 0o644));

    let mode = |mode| std::fs::set_permissions(&record, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o600);
    let before = contents(bed.cluster.pgdata());
    for arguments in [&["rollback", "--pgdata", &pgdata][..], &["restore", "--replace", "--pgdata", &pgdata]]
    {
        // A restore asks only where no data directory is in the place.
        if arguments[0] == "restore" {
            std::fs::rename(&pgdata, bed.place("away")).unwrap();
        }
        let output = bed.agent.restore(arguments).expect_status(1);
        assert!(output.stderr.contains(record.to_str().unwrap()), "{output:#?}");
    }
    std::fs::rename(bed.place("away"), &pgdata).unwrap();
    assert!(contents(bed.cluster.pgdata()) == before, "something was touched");
    mode(0o644);
    let told = rollback().expect_success().stdout;
    assert!(told.contains(latest.to_str().unwrap()), "{told}");
    // And what root puts back, once more.
    as_root(&bed, &["rollback", "--pgdata", &pgdata]).expect_success();
    rollback().expect_success();
    assert!(space.is_dir());
    bed.cluster.start();
    assert_eq!(bed.cluster.psql("select i from t"), "1");
}
