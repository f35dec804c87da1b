//! A daemon that hangs, or has no room left in its queue, holds nothing up.

use std::time::Duration;

use rustix::process::Signal;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::wait;

use super::SOON;
use crate::archive_bed::Bed;

/// A8: a daemon that hangs is gone round, and `check` and `health` say so.
#[test]
fn a_daemon_that_hangs_holds_nothing_up() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    daemon.process.signal(Signal::STOP);
    let begun = std::time::Instant::now();
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert!(bed.cluster.log().contains("hangs: it has not responded"), "{}", bed.cluster.log());
    let checked = bed.agent.run(&["check", "--no-switch"]).expect_status(3);
    assert!(checked.stdout.contains("gave no answer"), "{checked:#?}");
    let health = bed.agent.run(&["health"]).expect_status(1);
    assert!(health.stderr.contains("gave no answer"), "{health:#?}");
    daemon.process.signal(Signal::CONT);
    bed.agent.run(&["health"]).expect_success();
    assert!(bed.archive().get(&name).is_some());
}

/// A8: a daemon that was killed and cannot end, since a thread of it is in a filesystem that hangs, keeps its lock and its socket. Here it
/// is stopped. The next one takes its place.
#[test]
fn a_daemon_that_hangs_is_replaced_by_the_next_one() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    let first = bed.agent.daemon();
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    first.process.signal(Signal::STOP);
    let second = bed.agent.launch();
    wait::until_true(SOON, "the second one answers", || bed.agent.run(&["health"]).success());
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    assert!(!bed.cluster.log().contains("without the daemon"), "{}", bed.cluster.log());
    // Both at once do no harm.
    first.process.signal(Signal::CONT);
    let names = [(); 3].map(|()| bed.cluster.switch_wal());
    names.iter().for_each(|name| bed.cluster.wait_done(name));
    assert!(names.iter().all(|name| bed.archive().get(name).is_some()));
    drop(first);
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    assert!(!bed.cluster.log().contains("without the daemon"), "{}", bed.cluster.log());
    drop(second);
}

/// A8: a daemon that hangs has lost its place to another, which has ended, and still has the lock. The next one takes the place; the one
/// that gets on waits, and takes it again in the end.
#[test]
fn a_daemon_that_lost_its_place_keeps_no_other_from_it() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    let first = bed.agent.daemon();
    first.process.signal(Signal::STOP);
    let healthy = || bed.agent.run(&["health"]).success();
    let second = bed.agent.launch();
    wait::until_true(SOON, "the second one answers", healthy);
    assert_eq!(second.stop(), 0);
    assert!(!bed.agent.push_socket().exists());
    let third = bed.agent.launch();
    wait::until_true(SOON, "the third one answers", healthy);
    let archives = || {
        let name = bed.cluster.switch_wal();
        bed.cluster.wait_done(&name);
        assert!(bed.archive().get(&name).is_some());
        assert!(!bed.cluster.log().contains("without the daemon"), "{}", bed.cluster.log());
    };
    archives();
    // The daemons write the same log.
    first.process.signal(Signal::CONT);
    wait::until_true(SOON, "the first one notices", || {
        third.log().contains("leads to no socket, or to another")
    });
    assert!(healthy());
    archives();
    assert_eq!(third.stop(), 0);
    wait::until_true(SOON, "the first one answers again", healthy);
    archives();
    // A socket that was removed is made anew.
    std::fs::remove_file(bed.agent.push_socket()).unwrap();
    wait::until_true(SOON, "it listens anew", healthy);
    archives();
    assert_eq!(first.stop(), 0);
}

/// A8: beside a daemon that hangs only the first file waits as long as the daemon may be silent.
#[test]
fn beside_a_daemon_that_hangs_files_are_archived_at_a_fair_pace() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    daemon.process.signal(Signal::STOP);
    bed.cluster.psql("create table t (n int)");
    let begun = std::time::Instant::now();
    let names = [(); 8].map(|()| {
        bed.cluster.psql("insert into t values (1)");
        bed.cluster.switch_wal()
    });
    wait::until_true(SOON * 4, "all are archived", || bed.ready().is_empty());
    let took = begun.elapsed();
    println!("8 segments beside a daemon that hangs: {took:?}");
    assert!(took < Duration::from_secs(50), "{took:?}");
    assert!(names.iter().all(|name| bed.archive().get(name).is_some()));
    let mark = bed.cluster.wal_dir().join("walpoint-hung");
    assert!(mark.exists());
    // It gets on, and archives again.
    daemon.process.signal(Signal::CONT);
    let alone = bed.cluster.log().matches("without the daemon").count();
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    assert_eq!(bed.cluster.log().matches("without the daemon").count(), alone, "{}", bed.cluster.log());
    assert!(!mark.exists() && bed.archive().get(&name).is_some());
    assert_eq!(daemon.stop(), 0);
}

/// A12: what is too much of what waits goes at the same pace without a daemon, and beside one that hangs.
#[test]
fn without_a_daemon_too_only_the_first_file_beyond_queue_max_is_tried_long() {
    for hangs in [false, true] {
        let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
        bed.agent.cluster_lines.push("queue_max = \"2MiB\"".to_owned());
        bed.agent.archive_from(&bed.cluster);
        bed.cluster.start();
        let daemon = hangs.then(|| bed.agent.daemon());
        let command = bed.cluster.psql("show archive_command");
        bed.cluster.set("archive_command", "");
        bed.cluster.reload();
        bed.cluster.psql("create table t (n int)");
        let names = [(); 16].map(|()| {
            bed.cluster.psql("insert into t values (1)");
            bed.cluster.switch_wal()
        });
        let root = bed.store.root().unwrap();
        let away = root.with_extension("away");
        walpoint_base::durable::rename(root, &away).unwrap();
        if let Some(daemon) = &daemon {
            daemon.process.signal(Signal::STOP);
        }
        bed.cluster.set("archive_command", command);
        bed.cluster.reload();
        wait::until_true(SOON * 2, "the first one goes", || !bed.ready().contains(&names[0]));
        let begun = std::time::Instant::now();
        wait::until_true(SOON * 5, "what is too much goes", || bed.ready().len() <= 2);
        let took = begun.elapsed();
        println!("13 more segments, beside a daemon that hangs: {hangs}: {took:?}");
        assert!(took < Duration::from_secs(60), "{took:?}");
        // The store is back: nothing more goes.
        walpoint_base::durable::rename(&away, root).unwrap();
        let next = bed.cluster.switch_wal();
        bed.cluster.wait_done(&next);
        assert!(names[14..].iter().chain([&next]).all(|name| bed.archive().get(name).is_some()));
    }
}

/// A8: one that hangs for so long that it takes no more connections, because those of clients that left fill its queue.
#[test]
fn a_daemon_whose_queue_is_full_holds_nothing_up() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    daemon.process.signal(Signal::STOP);
    let socket = bed.agent.push_socket();
    while walpoint_base::socket::connect(&socket, Duration::from_millis(100)).is_ok() {}
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    assert!(bed.cluster.log().contains("hangs: it has not responded"), "{}", bed.cluster.log());
    let begun = std::time::Instant::now();
    let checked = bed.agent.run(&["check", "--no-switch"]).expect_status(3);
    assert!(checked.stdout.contains("gave no answer"), "{checked:#?}");
    let health = bed.agent.run(&["health"]).expect_status(1);
    assert!(health.stderr.contains("gave no answer"), "{health:#?}");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    daemon.process.signal(Signal::CONT);
    wait::until_true(SOON, "it answers again", || bed.agent.run(&["health"]).success());
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    assert!(bed.archive().get(&name).is_some());
}
