//! A9, A11, promise 1: a repository that does not have to acknowledge gets the same segments, and no acknowledgement waits for it.

mod archive_bed;

use std::time::{Duration, Instant};

use rustix::process::Signal;

use archive_bed::{Archive, Bed, forget, register};
use walpoint_tests::agent::{Agent, Daemon};
use walpoint_tests::cluster::Cluster;
use walpoint_tests::proxy::{Fault, Proxy};
use walpoint_tests::store::Store;
use walpoint_tests::wait;

/// For a slow repository to get everything, on a busy machine.
const LONG: Duration = Duration::from_secs(240);

/// Segments of a burst.
const BURST: usize = 48;

/// A cluster whose WAL goes to two repositories, of which the one that is far away does not have to acknowledge.
struct TwoPlaces {
    bed: Bed,
    far: Store,
    proxy: Proxy,
}

impl TwoPlaces {
    fn new() -> TwoPlaces {
        let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), Store::s3());
        let far = Store::s3();
        register(&far, bed.cluster.pgdata(), bed.cluster.major());
        let proxy = Proxy::to(far.port().unwrap());
        bed.agent = Agent::with(&bed.cluster, &bed.store)
            .repository_via("far", &far, &proxy)
            .cluster_line("ack = [\"main\"]");
        bed.agent.write();
        // What is archived is recycled at the next checkpoint.
        bed.cluster.set("max_wal_size", "2MB");
        bed.cluster.set("min_wal_size", "2MB");
        bed.cluster.start();
        TwoPlaces { bed, far, proxy }
    }

    /// Lets so many segments wait, and then PostgreSQL archive them; which they are, and how long it took.
    fn burst(&self, count: usize) -> (Vec<String>, Duration) {
        let cluster = &self.bed.cluster;
        self.archive_with("false");
        let names: Vec<String> = (0..count)
            .map(|n| {
                cluster.psql(&format!("select pg_logical_emit_message(false, 'n', '{n}')"));
                cluster.switch_wal()
            })
            .collect();
        let begun = Instant::now();
        self.archive_with(&self.bed.agent.archive_command());
        // Wakes the archiver.
        let last = cluster.switch_wal();
        let done = cluster.wal_dir().join(format!("archive_status/{}.done", names.last().unwrap()));
        wait::until_true(LONG, &format!("{last} is archived"), || {
            done.exists() || !cluster.wal_dir().join(names.last().unwrap()).exists()
        });
        (names, begun.elapsed())
    }

    fn archive_with(&self, command: &str) {
        self.bed.cluster.set("archive_command", command);
        self.bed.cluster.reload();
        self.bed.cluster.wait_for("show archive_command", command);
    }

    fn far(&self) -> Archive {
        Archive::of(&self.far, self.bed.cluster.pgdata())
    }

    /// How many of these the far one has.
    fn count(&self, names: &[String]) -> usize {
        let stored = self.far.back_door().list("clusters");
        names.iter().filter(|name| stored.iter().any(|key| key.ends_with(*name))).count()
    }

    /// Both hold the same, though the server has it no more, and neither was taken for another server's.
    #[track_caller]
    fn same_in_both(&self, names: &[String], daemon: &Daemon) {
        wait::until_true(LONG, &format!("the far one has them\n{}", daemon.log()), || {
            self.count(names) == names.len()
        });
        forget(&self.bed.cluster, names.last().unwrap());
        let (main, far) = (self.bed.archive(), self.far());
        for name in names {
            assert!(main.get(name).is_some() && main.get(name) == far.get(name), "{name}");
        }
        let log = self.bed.cluster.log();
        assert!(!log.contains("split brain") && !daemon.log().contains("split brain"), "{}", daemon.log());
        wait::until_true(LONG, "nothing is wrong", || self.bed.agent.run(&["health"]).stderr.is_empty());
    }
}

/// A burst is acknowledged as fast as without the slow repository, which has the same in the end.
#[test]
fn a_slow_repository_outside_ack_slows_no_acknowledgement() {
    let two = TwoPlaces::new();
    let daemon = two.bed.agent.daemon();
    let (names, usual) = two.burst(BURST);
    two.same_in_both(&names, &daemon);
    two.proxy.set(Fault::Latency(Duration::from_secs(1)));
    let (names, took) = two.burst(BURST);
    let there = two.count(&names);
    println!(
        "{BURST} segments: usually {usual:?}, {took:?} beside a slow one, which had {there} of them then"
    );
    assert!(took < usual * 2 + Duration::from_secs(3), "{took:?} instead of {usual:?}: {}", daemon.log());
    two.same_in_both(&names, &daemon);
    two.proxy.heal();
    two.same_in_both(&two.burst(2).0, &daemon);
    assert_eq!(daemon.stop(), 0);
}

/// What it missed, and what came behind that, is copied; then it gets what is archived as before. Whether the server has the
/// segments before still makes no difference.
#[test]
fn nothing_is_stored_behind_what_a_repository_missed() {
    let two = TwoPlaces::new();
    let daemon = two.bed.agent.daemon();
    let mut names = two.burst(8).0;
    two.same_in_both(&names, &daemon);
    for _ in 0..2 {
        // It is gone in the middle of a burst.
        two.proxy.set(Fault::Latency(Duration::from_millis(100)));
        names.extend(two.burst(24).0);
        two.proxy.set(Fault::Refuse);
        names.extend(two.burst(24).0);
        forget(&two.bed.cluster, names.last().unwrap());
        let had = two.count(&names);
        assert!(had < names.len(), "it is not gone");
        two.proxy.heal();
        names.extend(two.burst(8).0);
        two.same_in_both(&names, &daemon);
    }
    assert!(daemon.log().contains("caught up"), "{}", daemon.log());
    assert_eq!(daemon.stop(), 0);
}

/// Another process acknowledges what the repository misses: a command while the daemon hangs, or another daemon. Neither stores anything
/// behind it.
#[test]
fn what_another_process_acknowledged_is_copied_as_well() {
    let two = TwoPlaces::new();
    let daemon = two.bed.agent.daemon();
    let mut names = two.burst(4).0;
    two.same_in_both(&names, &daemon);
    daemon.process.signal(Signal::STOP);
    two.proxy.set(Fault::Refuse);
    names.extend(two.burst(3).0);
    two.proxy.heal();
    daemon.process.signal(Signal::CONT);
    names.extend(two.burst(3).0);
    two.same_in_both(&names, &daemon);

    let next = two.bed.agent.launch();
    // It compares the repositories, and waits for the socket.
    std::thread::sleep(Duration::from_secs(5));
    two.proxy.set(Fault::Refuse);
    names.extend(two.burst(3).0);
    assert!(two.count(&names) < names.len(), "it is not gone");
    assert_eq!(daemon.stop(), 0);
    two.proxy.heal();
    names.extend(two.burst(3).0);
    two.same_in_both(&names, &next);
    assert_eq!(next.stop(), 0);
}

/// The same without a daemon: commands store nothing behind a gap, and the daemon that comes copies all of it.
#[test]
fn commands_store_nothing_behind_what_a_repository_missed() {
    let two = TwoPlaces::new();
    let mut names = two.burst(3).0;
    assert_eq!(two.count(&names), names.len());
    two.proxy.set(Fault::Refuse);
    names.extend(two.burst(2).0);
    two.proxy.heal();
    // As after the minute for which it is left out.
    std::fs::remove_file(two.bed.cluster.wal_dir().join("walpoint-resting")).unwrap();
    let behind = two.burst(2).0;
    assert_eq!(two.count(&behind), 0, "{}", two.bed.cluster.log());
    two.archive_with("false");
    let left = two.bed.cluster.switch_wal();
    let once = two.bed.agent.run(&["run", "--once"]).expect_success();
    assert!(once.stderr.contains("it lacks 0000000"), "{once:?}");
    two.archive_with(&two.bed.agent.archive_command());
    names.extend(behind);
    names.push(left);
    let daemon = two.bed.agent.daemon();
    two.same_in_both(&names, &daemon);
    // And once nothing is missing, all that waits goes everywhere, several at a time.
    assert_eq!(daemon.stop(), 0);
    two.archive_with("false");
    let more: Vec<String> = (0..8).map(|_| two.bed.cluster.switch_wal()).collect();
    two.bed.agent.run(&["run", "--once"]).expect_success();
    assert_eq!(two.count(&more), more.len());
}

/// A daemon that is stopped stores what waits, and one that is killed leaves it to the next one.
#[test]
fn what_waits_for_a_slow_repository_survives_the_daemon() {
    let two = TwoPlaces::new();
    let daemon = two.bed.agent.daemon();
    let mut names = two.burst(4).0;
    two.same_in_both(&names, &daemon);
    two.proxy.set(Fault::Latency(Duration::from_millis(100)));
    names.extend(two.burst(16).0);
    assert_eq!(daemon.stop(), 0);
    assert_eq!(two.count(&names), names.len(), "it was stopped, not killed");
    let daemon = two.bed.agent.daemon();
    names.extend(two.burst(32).0);
    daemon.kill();
    let had = two.count(&names);
    println!("{had} of {} when it was killed", names.len());
    let daemon = two.bed.agent.daemon();
    names.extend(two.burst(4).0);
    two.same_in_both(&names, &daemon);
    assert_eq!(daemon.stop(), 0);
}

/// A11: a repository whose object is damaged is not caught up, for the next daemon either, until the object is moved away.
#[test]
fn a_damaged_object_in_a_repository_is_reported_until_it_is_moved_away() {
    let two = TwoPlaces::new();
    // What is archived stays in pg_wal until it is stored there, too.
    two.bed.cluster.set("max_wal_size", "64MB");
    two.archive_with("false");
    let switch = || {
        two.bed.cluster.psql("select pg_logical_emit_message(false, 'n', 'n')");
        two.bed.cluster.switch_wal()
    };
    let name = switch();
    two.bed.direct(&two.bed.cluster.wal_dir().join(&name)).expect_success();
    let door = two.far.back_door();
    let keys = door.list("clusters");
    let key = keys.iter().find(|key| key.ends_with(&name)).expect("it is stored in both");
    door.flip_bit(key, door.get(key).unwrap().len() - 1);
    let reports = |daemon: &Daemon| {
        let what = format!("the daemon says so\n{}", daemon.log());
        wait::until_true(LONG, &what, || {
            let health = two.bed.agent.run(&["health"]).stderr;
            health.contains("repository far is not caught up: 1 file cannot be stored")
                && health.contains(&name)
                && health.contains("Move that object away.")
        });
    };
    let daemon = two.bed.agent.daemon();
    two.archive_with(&two.bed.agent.archive_command());
    // Wakes the archiver.
    two.bed.cluster.wait_done(&switch());
    reports(&daemon);
    assert_eq!(daemon.stop(), 0);
    let daemon = two.bed.agent.daemon();
    reports(&daemon);
    door.delete(key);
    two.same_in_both(&[name], &daemon);
    assert_eq!(daemon.stop(), 0);
}

/// A11: a repository that did not have to acknowledge and has to from a restart on, gets what it missed before, whatever is stored
/// behind that meanwhile.
#[test]
fn a_repository_that_has_to_acknowledge_from_now_on_gets_what_it_missed_before() {
    let mut two = TwoPlaces::new();
    let daemon = two.bed.agent.daemon();
    let mut names = two.burst(4).0;
    two.same_in_both(&names, &daemon);
    two.proxy.set(Fault::Refuse);
    names.extend(two.burst(8).0);
    assert_eq!(daemon.stop(), 0);
    assert!(two.count(&names) < names.len(), "it is not gone");
    two.proxy.heal();
    let agent = Agent::with(&two.bed.cluster, &two.bed.store);
    two.bed.agent = agent.repository_via("far", &two.far, &two.proxy);
    two.bed.agent.write();
    let daemon = two.bed.agent.daemon();
    names.extend(two.burst(4).0);
    two.same_in_both(&names, &daemon);
    let (log, says) = (daemon.log(), "missing in this repository, which has to acknowledge");
    assert_eq!(log.matches(says).count(), 1, "it is said of the first one: {log}");
    assert_eq!(daemon.stop(), 0);
}
