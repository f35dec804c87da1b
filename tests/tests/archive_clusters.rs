//! One daemon for several clusters, and when it is ready.

mod archive_bed;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use archive_bed::{Bed, register_as};
use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::{testbed, user, wait};

const SOON: Duration = Duration::from_secs(60);

/// What systemd would listen on; the bed's daemon talks to it.
fn manager(bed: &mut Bed) -> UnixDatagram {
    let path = bed.agent.place().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    user::give(&path);
    manager.set_read_timeout(Some(SOON)).unwrap();
    bed.agent.env.push(("NOTIFY_SOCKET".to_owned(), path.display().to_string()));
    manager
}

fn hear(manager: &UnixDatagram) -> std::io::Result<String> {
    let mut buffer = [0; 512];
    let length = manager.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Another cluster in the bed's configuration and repository, `other`, and its push socket. It archives nothing yet.
fn with_other(bed: &mut Bed, major: u32) -> (Cluster, PathBuf) {
    let other = Cluster::builder().major(major).segment_size_mb(4).init();
    register_as("other", &bed.store, other.pgdata(), major);
    let socket = bed.agent.place().join("other.push");
    bed.agent.tables = format!(
        "\n[cluster.other]\nrepositories = [\"main\"]\npgdata = \"{}\"\npush_socket = \"{}\"\n",
        other.pgdata().display(),
        socket.display()
    );
    other.set("archive_mode", "on");
    (other, socket)
}

fn command(bed: &Bed, socket: &Path) -> String {
    let push = testbed::under_test("archive-push").display().to_string();
    format!("{push} --config {} --socket {} %p", bed.agent.config().display(), socket.display())
}

/// The service manager hears when the daemon is ready and when it stops.
#[test]
fn the_service_manager_is_told() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let manager = manager(&mut bed);
    bed.agent.env.push(("WATCHDOG_USEC".to_owned(), "3000000".to_owned()));
    let told = || hear(&manager).unwrap();
    let daemon = bed.agent.daemon();
    assert!(told().contains("READY=1"));
    for _ in 0..2 {
        assert!(told().contains("WATCHDOG=1"));
    }
    // A daemon that hangs says nothing.
    daemon.process.signal(rustix::process::Signal::STOP);
    std::thread::sleep(Duration::from_secs(2));
    manager.set_nonblocking(true).unwrap();
    while manager.recv(&mut [0; 512]).is_ok() {}
    std::thread::sleep(Duration::from_secs(2));
    assert!(manager.recv(&mut [0; 512]).is_err(), "a daemon that hangs says that it lives");
    manager.set_nonblocking(false).unwrap();
    daemon.process.signal(rustix::process::Signal::CONT);
    let told = || loop {
        let told = told();
        if !told.contains("WATCHDOG=1") {
            return told;
        }
    };
    daemon.process.signal(rustix::process::Signal::HUP);
    assert!(told().contains("RELOADING=1"));
    assert!(told().contains("READY=1"));
    assert_eq!(daemon.stop(), 0);
    assert!(told().contains("STOPPING=1"));
}

/// One process for several clusters: each has its socket, and what goes to the wrong one is refused.
#[test]
fn one_daemon_serves_several_clusters() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let (mut other, socket) = with_other(&mut bed, 14);
    let daemon = bed.agent.daemon();
    other.set("archive_command", command(&bed, &socket));
    bed.cluster.start();
    other.start();
    let (one, two) = (bed.cluster.switch_wal(), other.switch_wal());
    bed.cluster.wait_done(&one);
    other.wait_done(&two);
    let keys = bed.store.back_door().list("clusters");
    assert!(keys.iter().any(|key| key.starts_with("clusters/main/") && key.ends_with(&one)), "{keys:?}");
    assert!(keys.iter().any(|key| key.starts_with("clusters/other/") && key.ends_with(&two)), "{keys:?}");

    other.set("archive_command", command(&bed, &bed.agent.push_socket()));
    other.reload();
    other.wait_for("show archive_command", &command(&bed, &bed.agent.push_socket()));
    let stray = other.switch_wal();
    wait::until_true(SOON, "the wrong socket is told", || other.log().contains("could not archive"));
    assert!(other.log().contains("HINT: "), "{}", other.log());
    assert!(!other.wal_dir().join(format!("archive_status/{stray}.done")).exists());

    // Without a daemon the right cluster is found by where the file lies.
    assert_eq!(daemon.stop(), 0);
    other.set("archive_command", command(&bed, &socket));
    other.reload();
    other.wait_done(&stray);
}

/// A8: a data directory that hangs while more of its segments are read than there are cores keeps no other cluster from
/// archiving, and the daemon says what it waits for.
#[test]
fn a_data_directory_that_hangs_keeps_no_other_cluster_from_archiving() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let (mut other, socket) = with_other(&mut bed, 17);
    let daemon = bed.agent.daemon();
    other.set("archive_command", command(&bed, &socket));
    bed.cluster.start();
    other.start();
    let first = other.switch_wal();
    other.wait_done(&first);
    // Opening a pipe into which nothing is ever written does not return.
    let pipes = ["0000000100000000000000E1", "0000000100000000000000E2", "0000000100000000000000E3"];
    for name in pipes {
        let path = other.wal_dir().join(name);
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        user::give(&path);
        let mark = other.wal_dir().join(format!("archive_status/{name}.ready"));
        std::fs::write(&mark, "").unwrap();
        user::give(&mark);
    }
    std::thread::sleep(Duration::from_secs(4));
    for _ in 0..3 {
        let name = bed.cluster.switch_wal();
        bed.cluster.wait_done(&name);
    }
    assert_eq!(bed.cluster.archive_failures().0, 0, "{}", bed.cluster.log());
    for name in pipes {
        std::fs::remove_file(other.wal_dir().join(format!("archive_status/{name}.ready"))).unwrap();
        // A writer that comes and goes ends the read.
        let path = other.wal_dir().join(name);
        drop(std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap());
        std::fs::remove_file(path).unwrap();
    }
    drop(daemon);
}

/// A8: nothing that is asked of a data directory that hangs, however small, keeps the daemon from the other clusters.
#[test]
fn a_data_directory_that_answers_nothing_keeps_no_other_cluster_from_archiving() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let (other, _) = with_other(&mut bed, 17);
    // Opening a pipe into which nothing is ever written does not return.
    let pipe = other.pgdata().join("postmaster.pid");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    user::give(&pipe);
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    std::thread::sleep(Duration::from_secs(4));
    for _ in 0..3 {
        let name = bed.cluster.switch_wal();
        bed.cluster.wait_done(&name);
    }
    let log = bed.cluster.log();
    assert!(bed.cluster.archive_failures().0 == 0 && !log.contains("without the daemon"), "{log}");
    let health = || bed.agent.run(&["health"]).stderr;
    let silent = format!("{:?} does not answer within", other.pgdata());
    wait::until_true(SOON, "health names it", || health().contains(&silent));
    // A writer that comes and goes ends the reads.
    drop(std::fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap());
    std::fs::remove_file(&pipe).unwrap();
    drop(daemon);
}

/// A8: a data directory that is not there keeps no other cluster from archiving, and is taken up when it comes.
#[test]
fn a_missing_data_directory_keeps_no_other_cluster_from_archiving() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let manager = manager(&mut bed);
    let (mut other, socket) = with_other(&mut bed, 17);
    other.set("archive_command", command(&bed, &socket));
    let elsewhere = other.pgdata().with_extension("unmounted");
    std::fs::rename(other.pgdata(), &elsewhere).unwrap();

    let daemon = bed.agent.daemon();
    assert!(hear(&manager).unwrap().contains("READY=1"));
    let log = daemon.log();
    assert!(log.contains("1 of 2 push sockets do not answer: other: push socket"), "{log}");
    let missing = format!("the data directory {} cannot be read", other.pgdata().display());
    assert!(log.contains(&missing), "{log}");
    bed.cluster.start();
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    assert!(bed.archive().get(&name).is_some());
    assert_eq!(bed.cluster.archive_failures().0, 0, "{}", bed.cluster.log());
    assert!(!bed.cluster.log().contains("without the daemon"), "{}", bed.cluster.log());
    // It says which one, once, and a restart would not help; asked for that one alone, nothing answers.
    let health = bed.agent.run(&["health"]).expect_success().stderr;
    assert_eq!(health.matches("other: push socket: failing since").count(), 1, "{health}");
    let more = |line: &&str| line.starts_with("DETAIL: ") || line.starts_with("HINT: ");
    let messages = health.lines().filter(|line| !more(line)).count();
    assert!(health.contains(&missing) && messages == 1, "{health}");
    let alone = bed.agent.run(&["health", "--cluster", "other"]).expect_status(1).stderr;
    assert!(alone.contains("cluster other") && alone.contains("no process listens"), "{alone}");
    let once = bed.agent.run(&["run", "--once"]).expect_status(1).stderr;
    assert!(once.contains(&missing) && !once.contains("cluster main:"), "{once}");
    // A reload changes nothing.
    daemon.process.signal(rustix::process::Signal::HUP);
    assert!(hear(&manager).unwrap().contains("RELOADING=1"));
    assert!(hear(&manager).unwrap().contains("READY=1"));

    std::fs::rename(&elsewhere, other.pgdata()).unwrap();
    other.start();
    wait::until_true(SOON, "its push socket answers", || socket.exists());
    let name = other.switch_wal();
    other.wait_done(&name);
    let logged = other.log();
    assert!(!logged.contains("without the daemon"), "{logged}");
    wait::until_true(SOON, "nothing is wrong any more", || {
        bed.agent.run(&["health"]).expect_success().stderr.is_empty()
    });
    assert_eq!(daemon.stop(), 0);

    // Where the data directory cannot be seen, status says why the waiting files are not counted.
    let elsewhere = Agent::at(bed.cluster.dir(), &elsewhere, &bed.cluster.conninfo());
    let elsewhere = elsewhere.repository("main", &bed.store);
    let status = elsewhere.run(&["status"]).expect_success().stdout;
    assert!(
        status.contains("cannot determine from here how many files are waiting (No such file or directory"),
        "{status}"
    );
    let status: serde_json::Value =
        serde_json::from_str(&elsewhere.run(&["status", "--json"]).expect_success().stdout).unwrap();
    let server = &status["clusters"][0]["server"];
    assert!(server["ready_error"]["message"].is_string() && server["ready_count"].is_null(), "{server}");
}

/// A8: "ready" is said when a push socket answers, not when all were refused.
#[test]
fn ready_waits_for_a_push_socket_that_answers() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let manager = manager(&mut bed);
    let mode = |mode| {
        std::fs::set_permissions(bed.agent.place(), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o777);
    let daemon = bed.agent.launch();
    wait::until_true(SOON, "the socket is refused", || daemon.log().contains("must not be below"));
    wait::until_true(SOON, "it says that it is not ready", || {
        daemon.log().contains("not ready: no push socket answers")
    });
    manager.set_read_timeout(Some(Duration::from_secs(7))).unwrap();
    assert!(hear(&manager).is_err(), "no socket answers: {}", daemon.log());
    assert!(!daemon.log().contains(" ready "), "{}", daemon.log());
    assert!(bed.agent.run(&["health"]).expect_status(1).stderr.contains("no process listens"));
    mode(0o755);
    manager.set_read_timeout(Some(SOON)).unwrap();
    assert!(hear(&manager).unwrap().contains("READY=1"));
    assert!(daemon.log().contains(" ready "), "{}", daemon.log());
    bed.agent.run(&["health"]).expect_success();
    assert_eq!(daemon.stop(), 0);
}
