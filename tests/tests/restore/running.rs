//! R4: no server is ever overwritten, wherever it runs, and a crashed one can be repaired. A `postmaster.pid` is disbelieved
//! only where no server can hide, or when someone vouches for it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::process::{self, Background, Output};
use walpoint_tests::store::Store;
use walpoint_tests::{faults, needs_root, testbed, user, wait};

use crate::tree::snapshot;

/// A running server with a backup and with rows that came after it.
fn bed() -> Archived {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    bed.cluster.psql("create table t as select i from generate_series(1, 1000) i");
    bed.backup();
    bed.cluster.psql("insert into t select generate_series(1001, 2000)");
    bed.settle();
    bed
}

#[track_caller]
fn in_container(bed: &Archived, arguments: &[&str]) -> Output {
    process::run(&mut faults::in_pid_namespace(&bed.agent.command("restore-agent", arguments)), wait::SOON)
}

fn as_root(bed: &Archived, arguments: &[&str]) -> Output {
    process::run(bed.agent.command("restore-agent", arguments).uid(0).gid(0), wait::SOON)
}

/// Whether the tests themselves run outside all containers.
fn on_a_host() -> bool {
    fs::metadata("/proc/self/ns/pid").unwrap().ino() == 0xEFFF_FFFC
}

/// R4: the server runs in one PID namespace and the restore in another one. Without the flag nothing is written, whatever the
/// way; the same server stays as it is.
#[test]
fn a_server_that_cannot_be_seen_is_not_overwritten() {
    needs_root!();
    let mut bed = bed();
    let pgdata = bed.cluster.pgdata().to_str().unwrap().to_owned();
    for way in [
        &["--delta"][..],
        &["--delta", "--discard-unarchived-wal", "--overwrite-other-cluster"],
        &["--replace"],
        &[],
    ] {
        let output = in_container(&bed, &[&["restore", "--pgdata", &pgdata], way].concat()).expect_status(1);
        for says in ["may be running", "postmaster.pid", "--server-is-down", "nothing was changed"] {
            assert!(output.stderr.contains(says), "{way:?}: {output:#?}");
        }
    }
    let output = in_container(&bed, &["rollback", "--pgdata", &pgdata]).expect_status(1);
    assert!(output.stderr.contains("may be running"), "{output:#?}");
    assert_eq!(bed.cluster.psql("select count(*) from t"), "2000");

    // What it left cannot be told from a server there; the flag can.
    let pid = bed.cluster.pid().unwrap().to_string();
    bed.cluster.crash();
    let before = snapshot(Path::new(&pgdata));
    in_container(&bed, &["restore", "--delta", "--pgdata", &pgdata]).expect_status(1);
    assert_eq!(snapshot(Path::new(&pgdata)), before);
    let output =
        in_container(&bed, &["restore", "--delta", "--server-is-down", "--pgdata", &pgdata]).expect_success();
    assert!(output.stderr.contains(&format!("pid {pid}, started 20")), "{output:#?}");
    bed.cluster.start();
    bed.cluster.wait_promoted();
    assert_eq!(bed.cluster.psql("select count(*) from t"), "2000");
}

/// R4: the server runs in a container, and the restore beside it or on the host: it is seen, so no flag helps.
#[test]
fn a_server_that_can_be_seen_is_running_whatever_the_flag_says() {
    needs_root!();
    let mut bed = bed();
    bed.cluster.stop(Shutdown::Fast);
    let pgdata = bed.cluster.pgdata().to_str().unwrap().to_owned();
    let mut server = Command::new(testbed::pg_program(bed.cluster.major(), "postgres"));
    server.args(["-D", &pgdata, "-c", "listen_addresses=", "-c", "archive_mode=off"]);
    server.args(["-c", &format!("unix_socket_directories={}", bed.cluster.socket_dir().display())]);
    let log = bed.agent.place().join("server.log");
    let server = Background::start(&mut faults::in_pid_namespace(server.current_dir("/")), &log);
    let file = bed.cluster.pgdata().join("postmaster.pid");
    wait::until_true(wait::SOON, "the server in the container is ready", || {
        fs::read_to_string(&file).is_ok_and(|text| text.contains("ready"))
    });
    for flag in [&[][..], &["--server-is-down"]] {
        let command = [&["restore", "--delta", "--pgdata", &pgdata], flag].concat();
        let output = as_root(&bed, &command).expect_status(1);
        assert!(output.stderr.contains("is running"), "{output:#?}");
        let output = bed.agent.restore(&command).expect_status(1);
        assert!(output.stderr.contains("is running"), "{output:#?}");
    }
    assert_eq!(bed.cluster.psql("select count(*) from t"), "2000");
    drop(server);
}

/// R4: over what a crashed server left, on the host it ran on: root sees that it is gone, and needs no flag; in a container
/// the flag is needed.
#[test]
fn a_crashed_servers_directory_is_repaired() {
    needs_root!();
    let mut bed = bed();
    bed.cluster.crash();
    let pgdata = bed.cluster.pgdata().to_str().unwrap().to_owned();
    // Another process has the number by now, and even the server's user.
    let mut other = Command::new("sleep");
    let other = Background::start(user::become_user(other.arg("600")), &bed.agent.place().join("other.log"));
    let text = fs::read_to_string(bed.cluster.pgdata().join("postmaster.pid")).unwrap();
    let (_, rest) = text.split_once('\n').unwrap();
    fs::write(bed.cluster.pgdata().join("postmaster.pid"), format!("{}\n{rest}", other.pid())).unwrap();

    let command = ["restore", "--delta", "--pgdata", &pgdata];
    if on_a_host() {
        let output = as_root(&bed, &command).expect_success();
        assert!(output.stderr.contains("treating the server as crashed"), "{output:#?}");
    } else {
        as_root(&bed, &command).expect_status(1);
        as_root(&bed, &[&command[..], &["--server-is-down"]].concat()).expect_success();
    }
    bed.cluster.start();
    bed.cluster.wait_promoted();
    assert_eq!(bed.cluster.psql("select count(*) from t"), "2000");
}

/// R4: a copy of a data directory has the original's links, and no `postmaster.pid`. Where the original's server could hide,
/// its tablespaces are neither repaired nor moved; where it is in view, it is named.
#[test]
fn a_copys_links_prove_nothing_where_a_server_could_hide() {
    needs_root!();
    let mut bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let space = bed.cluster.create_tablespace("fast");
    bed.cluster.psql("create table t tablespace fast as select i from generate_series(1, 100) i");
    bed.backup();
    bed.settle();
    bed.cluster.psql("insert into t select generate_series(101, 2102); checkpoint");
    let copy = bed.place("copy");
    process::run(Command::new("cp").arg("-a").arg(bed.cluster.pgdata()).arg(&copy), wait::SOON);
    fs::remove_file(copy.join("postmaster.pid")).unwrap();
    let copy = copy.to_str().unwrap();
    for way in ["--delta", "--replace"] {
        let command = ["restore", way, "--target-immediate", "--pgdata", copy];
        let output = in_container(&bed, &command).expect_status(1);
        for says in [space.to_str().unwrap(), "may be using it", "--server-is-down", "nothing was changed"] {
            assert!(output.stderr.contains(says), "{way}: {output:#?}");
        }
        let output = bed.agent.restore(&command).expect_status(1);
        let says = if on_a_host() { "in use by the server that runs on" } else { "may be using it" };
        assert!(output.stderr.contains(says), "{way}: {output:#?}");
    }
    bed.cluster.psql("checkpoint; discard all");
    assert_eq!(bed.cluster.psql("select count(*), sum(i) from t"), "2102|2210253");

    // What a server has whose data directory is known is its own while it is down, too.
    bed.cluster.crash();
    let unseen = if on_a_host() { "belongs to the data directory" } else { "may be using it" };
    for way in [&["--delta"][..], &["--delta", "--server-is-down"], &["--replace", "--server-is-down"]] {
        let command = [&["restore", "--target-immediate", "--pgdata", copy], way].concat();
        let output = bed.agent.restore(&command).expect_status(1);
        let says = if way.len() > 1 { "belongs to the data directory" } else { unseen };
        for says in [space.to_str().unwrap(), says, "nothing was changed"] {
            assert!(output.stderr.contains(says), "{way:?}: {output:#?}");
        }
    }
    bed.cluster.start();
    assert_eq!(bed.cluster.psql("select count(*), sum(i) from t"), "2102|2210253");
}

/// R4: a server whose `postmaster.pid` was removed runs all the same.
#[test]
fn a_server_without_its_file_is_running() {
    let mut bed = bed();
    fs::remove_file(bed.cluster.pgdata().join("postmaster.pid")).unwrap();
    let pgdata = bed.cluster.pgdata().to_str().unwrap().to_owned();
    for way in [&["--delta"][..], &["--delta", "--server-is-down"], &["--replace"]] {
        let output = bed.agent.restore(&[&["restore", "--pgdata", &pgdata], way].concat()).expect_status(1);
        for says in ["is running there", "postmaster.pid is missing", "nothing was changed"] {
            assert!(output.stderr.contains(says), "{way:?}: {output:#?}");
        }
    }
    assert_eq!(bed.cluster.psql("select count(*) from t"), "2000");
    bed.cluster.crash();
}
