//! A6, A9, promise 9: archiving under load. A store that is slow or fails, a backlog, a daemon that restarts in the middle,
//! two clusters at once, a core that starves. Each time: what was acknowledged is read back and compared, and the daemon's
//! memory stays within its bounds.

mod archive_bed;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use archive_bed::{Archive, Bed, register, register_as};
use rustix::process::Signal;
use walpoint_tests::agent::{Agent, Daemon};
use walpoint_tests::cluster::Cluster;
use walpoint_tests::http_faults::{FaultRule, HttpProxy};
use walpoint_tests::process::{self, Background};
use walpoint_tests::proxy::{Fault, Proxy};
use walpoint_tests::store::Store;
use walpoint_tests::{faults, testbed, wait};

/// For a backlog to drain, on a busy machine.
const LONG: Duration = Duration::from_secs(240);

const MIB: u64 = 1 << 20;

/// The most that the daemon may ever hold while it archives at full speed.
const BUSY: u64 = 64 * MIB;

/// The most that it may hold of its own before it has had anything to do. Its program comes on top, whose pages the kernel
/// may drop: 14 MiB of it when it is optimised, which makes less than 20 MB.
const IDLE: u64 = 5 * MIB;

/// The same when it rests after its work: connections stay open for a while.
const RESTED: u64 = 8 * MIB;

/// The same after hundreds of thousands of small allocations, between which freed memory stays.
const RESTED_IN_PIECES: u64 = 12 * MIB;

/// A cluster whose `archive_command` fails, with this much WAL that does not compress waiting in `pg_wal`.
fn backlog(bed: &mut Bed, mb: u32) -> Vec<String> {
    bed.cluster.set("archive_command", "false");
    hold_wal(&bed.cluster);
    bed.cluster.start();
    noise(&bed.cluster, mb);
    bed.ready()
}

/// No checkpoint removes WAL that the test wants to compare.
fn hold_wal(cluster: &Cluster) {
    cluster.set("max_wal_size", "20GB");
    cluster.set("checkpoint_timeout", "1d");
    cluster.set("wal_recycle", "off");
}

/// Writes WAL that does not compress, and ends its last segment.
fn noise(cluster: &Cluster, mb: u32) {
    // The same megabyte again and again: a frame of one megabyte does not see the one before it.
    cluster.psql(&format!(
        "do $$ declare noise bytea; begin
           select string_agg(sha256((random() * n)::text::bytea), ''::bytea) into noise from generate_series(1, 32000) n;
           for i in 1..{mb} loop perform pg_logical_emit_message(false, 'noise', noise); end loop;
         end $$"
    ));
    cluster.switch_wal();
}

/// Lets PostgreSQL archive, and waits until `last` is done; how long that took.
#[track_caller]
fn drain(cluster: &Cluster, archive_command: &str, last: &str) -> Duration {
    let begun = Instant::now();
    cluster.set("archive_command", archive_command);
    cluster.reload();
    let done = cluster.wal_dir().join("archive_status").join(format!("{last}.done"));
    // Asks PostgreSQL to look, in case it rests after a failure.
    wait::until_true(Duration::from_secs(30), "the new setting is in force", || {
        cluster.psql("show archive_command") == archive_command
    });
    cluster.switch_wal();
    wait::until_true(LONG, &format!("{last} is archived"), || done.exists());
    begun.elapsed()
}

/// Everything that PostgreSQL was told is stored is stored, byte by byte.
#[track_caller]
fn compare(archive: &Archive, wal: &Path) -> usize {
    let status = std::fs::read_dir(wal.join("archive_status")).unwrap().flatten();
    let done = status.filter_map(|entry| entry.file_name().into_string().ok());
    let done: Vec<String> = done.filter_map(|name| name.strip_suffix(".done").map(str::to_owned)).collect();
    for name in &done {
        let stored = archive.get(name).unwrap_or_else(|| panic!("{name} was acknowledged and is not there"));
        assert!(stored == std::fs::read(wal.join(name)).unwrap(), "{name}");
    }
    done.len()
}

/// Resident bytes that are not pages of a file, such as its program.
fn own_memory(daemon: &Daemon) -> u64 {
    resident(daemon, "RssAnon:")
}

fn resident(daemon: &Daemon, kind: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.process.pid())).unwrap();
    process::memory(&status, kind).unwrap()
}

#[track_caller]
fn within_bounds(daemon: &Daemon, what: &str) {
    let (now, highest) = daemon.memory();
    // The pages of the program are counted as those of the one that is released: unoptimised it is several times as large.
    let program = resident(daemon, "RssFile:");
    let own = highest.saturating_sub(program);
    println!(
        "{what}: {} MiB now, {} MiB at the most, {} MiB of it the program",
        now / MIB,
        highest / MIB,
        program / MIB
    );
    assert!(
        0 < own && own + process::PROGRAM <= BUSY,
        "{what}: {highest} bytes were resident, {program} of them the program"
    );
}

/// Promise 9: the bounds hold for small and large segments, and an idle daemon is small, before its work and after it.
#[test]
fn memory_does_not_grow_with_segments_or_backlog() {
    for (size, mb) in [(16, 160), (64, 192)] {
        bounded(size, mb, &Store::s3);
    }
}

/// Promise 9: every size there is.
#[test]
#[ignore = "gigabytes of WAL: make soak"]
fn memory_does_not_grow_with_segments_of_any_size() {
    for (size, mb) in [(1, 200), (4, 200), (32, 640), (128, 1024), (1024, 3000)] {
        bounded(size, mb, &Store::s3);
        bounded(size, mb, &Store::local);
    }
}

fn bounded(size: u32, mb: u32, store: &dyn Fn() -> Store) {
    let mut bed = Bed::new(Cluster::builder().segment_size_mb(size), store());
    let ready = backlog(&mut bed, mb);
    bed.agent.cluster_lines.push("look_ahead = 0".to_owned());
    let idle = bed.agent.daemon();
    wait::until_true(LONG, "the index was looked at", || idle.log().contains("opened"));
    let own = own_memory(&idle);
    println!("{size} MB segments, idle before: {own} bytes of its own, {} resident", idle.memory().0);
    assert!(0 < own && own <= IDLE, "{own} bytes of its own in a daemon that has done nothing");
    assert_eq!(idle.stop(), 0);
    bed.agent.cluster_lines.clear();
    let daemon = bed.agent.daemon();
    let took = drain(&bed.cluster, &bed.agent.archive_command(), ready.last().unwrap());
    let what = format!("{} segments of {size} MB to {} in {took:?}", ready.len(), bed.store.url());
    within_bounds(&daemon, &what);
    wait::until_true(Duration::from_secs(30), "memory is given back", || own_memory(&daemon) <= RESTED);
    let (own, resident) = (own_memory(&daemon), daemon.memory().0);
    println!("{size} MB segments, idle after: {own} bytes of its own, {resident} resident");
    assert!(compare(&bed.archive(), &bed.cluster.wal_dir()) >= ready.len());
    assert_eq!(daemon.stop(), 0);
}

/// A6, promise 9: segments full of restore points take no more memory than others, and each of these points is found.
#[test]
fn memory_does_not_grow_with_restore_points() {
    const POINTS: u32 = 480_000;
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(16));
    hold_wal(&bed.cluster);
    // The server logs each of them.
    bed.cluster.set("log_min_messages", "fatal");
    bed.cluster.start();
    let first = bed.agent.daemon();
    bed.agent.run(&["backup"]).expect_success();
    assert_eq!(first.stop(), 0);
    bed.cluster.set("archive_command", "false");
    bed.cluster.reload();
    let name = |n: u32| format!("{:.<60}", format!("point {n} "));
    bed.cluster.psql(&format!(
        "select count(*) from (select pg_create_restore_point(rpad('point ' || n || ' ', 60, '.')) \
         from generate_series(1, {POINTS}) n offset 0) s"
    ));
    bed.cluster.switch_wal();
    let ready = bed.ready();
    let daemon = bed.agent.daemon();
    let took = drain(&bed.cluster, &bed.agent.archive_command(), ready.last().unwrap());
    within_bounds(&daemon, &format!("{} segments full of restore points in {took:?}", ready.len()));
    wait::until_true(Duration::from_secs(30), "memory is given back", || {
        own_memory(&daemon) <= RESTED_IN_PIECES
    });
    println!("idle after: {} bytes of its own", own_memory(&daemon));
    for n in [1, 8193, POINTS / 2, POINTS] {
        bed.agent.restore(&["plan", "--target-name", &name(n)]).expect_success();
    }
    assert!(!bed.agent.restore(&["plan", "--target-name", &name(POINTS + 1)]).success());
    assert_eq!(daemon.stop(), 0);
}

/// A6: what a daemon indexes from what it stored is what the headers of the stored segments say.
#[test]
fn the_index_says_what_the_segments_say() {
    for store in Store::all_good() {
        let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), store);
        let ready = backlog(&mut bed, 80);
        let daemon = bed.agent.daemon();
        drain(&bed.cluster, &bed.agent.archive_command(), ready.last().unwrap());
        let archive = bed.archive();
        // It is written for every 32 segments, after they are acknowledged.
        wait::until_true(LONG, "two steps are indexed", || archive.indexed().len() >= 64);
        for (indexed, own) in archive.indexed() {
            assert_eq!(Some(indexed), own);
        }
        assert_eq!(daemon.stop(), 0);
    }
}

/// A9: a store behind a slow line, then one that drops connections.
#[test]
fn a_slow_or_broken_line_slows_archiving_down_and_nothing_else() {
    let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), Store::s3());
    let proxy = Proxy::to(bed.store.port().unwrap());
    bed.agent = Agent::new(&bed.cluster).repository_via("main", &bed.store, &proxy);
    bed.agent.write();
    let mut ready = backlog(&mut bed, 24);
    let daemon = bed.agent.daemon();
    for fault in [Fault::Latency(Duration::from_millis(100)), Fault::Bandwidth(5_000_000)] {
        proxy.set(fault);
        let took = drain(&bed.cluster, &bed.agent.archive_command(), ready.last().unwrap());
        within_bounds(&daemon, &format!("{fault:?}, {} segments in {took:?}", ready.len()));
        bed.cluster.set("archive_command", "false");
        bed.cluster.reload();
        bed.cluster.wait_for("show archive_command", "false");
        noise(&bed.cluster, 24);
        ready = bed.ready();
    }
    proxy.heal();
    bed.cluster.set("archive_command", bed.agent.archive_command());
    bed.cluster.reload();
    // Connections die under it for as long as there is something to send.
    let last = bed.cluster.wal_dir().join(format!("archive_status/{}.done", ready.last().unwrap()));
    let begun = Instant::now();
    while !last.exists() {
        assert!(begun.elapsed() < LONG, "not drained: {}", daemon.log());
        if begun.elapsed() < Duration::from_secs(3) {
            proxy.cut();
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    within_bounds(&daemon, &format!("dropped connections, {:?}", begun.elapsed()));
    assert!(compare(&bed.archive(), &bed.cluster.wal_dir()) >= 72);
    assert_eq!(daemon.stop(), 0);
}

/// A9: a store that throttles. Every segment costs the requests that were refused and one more; nothing is listed.
#[test]
fn throttling_is_waited_out_and_costs_no_more_requests_than_were_refused() {
    let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), Store::s3());
    let http = HttpProxy::to(bed.store.port().unwrap());
    bed.agent = Agent::new(&bed.cluster).repository_via_port("main", &bed.store, http.port());
    bed.agent.write();
    let ready = backlog(&mut bed, 40);
    let daemon = bed.agent.daemon();
    wait::until_true(LONG, "the repository is open", || daemon.log().contains("opened"));
    const REFUSED: usize = 20;
    let refuse = || FaultRule::new("PUT", "/wal/", 503, "SlowDown").after(2).times(1);
    http.set((0..REFUSED).map(|_| refuse()).collect());
    let took = drain(&bed.cluster, &bed.agent.archive_command(), ready.last().unwrap());
    within_bounds(&daemon, &format!("throttled, {} segments in {took:?}", ready.len()));
    let requests = http.requests();
    let count = |what: &dyn Fn(&&String) -> bool| requests.iter().filter(what).count();
    let puts = count(&|request| request.starts_with("PUT") && request.contains("/wal/"));
    let stored = compare(&bed.archive(), &bed.cluster.wal_dir());
    println!("{puts} PUTs of WAL for {stored} segments, {} requests in all", requests.len());
    assert!(puts <= stored + REFUSED + 3, "{puts} PUTs for {stored} segments: {requests:?}");
    assert_eq!(daemon.stop(), 0);
}

/// A6: the daemon dies, and comes back, while it works on a backlog.
#[test]
fn a_daemon_that_is_killed_in_the_middle_of_a_backlog_loses_nothing() {
    let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), Store::s3());
    let ready = backlog(&mut bed, 60);
    let middle = bed.cluster.wal_dir().join(format!("archive_status/{}.done", ready[20]));
    let first = bed.agent.daemon();
    bed.cluster.set("archive_command", bed.agent.archive_command());
    bed.cluster.reload();
    bed.cluster.switch_wal();
    wait::until_true(LONG, "a third is archived", || middle.exists());
    first.kill();
    let second = bed.agent.daemon();
    drain(&bed.cluster, &bed.agent.archive_command(), ready.last().unwrap());
    within_bounds(&second, "after a restart");
    assert!(compare(&bed.archive(), &bed.cluster.wal_dir()) >= ready.len());
    // What failed, failed before there was a daemon.
    assert!(bed.cluster.archive_failures().1 <= ready[0], "{}", bed.cluster.log());
    assert_eq!(second.stop(), 0);
}

/// A6, promise 9: two clusters share one daemon, and its bounds.
#[test]
fn two_clusters_at_full_speed_share_one_daemons_memory() {
    let mut bed = Bed::new(Cluster::builder().segment_size_mb(16), Store::s3());
    let mut other = Cluster::builder().major(14).segment_size_mb(16).init();
    register_as("other", &bed.store, other.pgdata(), 14);
    let socket = bed.agent.place().join("other.push");
    bed.agent.tables = format!(
        "\n[cluster.other]\nrepositories = [\"main\"]\npgdata = \"{}\"\npush_socket = \"{}\"\n",
        other.pgdata().display(),
        socket.display()
    );
    bed.agent.write();
    let one = backlog(&mut bed, 128);
    other.set("archive_mode", "on");
    other.set("archive_command", "false");
    hold_wal(&other);
    other.start();
    noise(&other, 128);
    let two = other.switch_wal();
    let daemon = bed.agent.daemon();
    let (push, config) = (testbed::under_test("archive-push"), bed.agent.config());
    let command =
        format!("{} --config {} --socket {} %p", push.display(), config.display(), socket.display());
    let took = std::thread::scope(|scope| {
        let first = scope.spawn(|| drain(&bed.cluster, &bed.agent.archive_command(), one.last().unwrap()));
        let second = drain(&other, &command, &two);
        (first.join().unwrap(), second)
    });
    within_bounds(&daemon, &format!("two clusters, {took:?}"));
    assert!(compare(&bed.archive(), &bed.cluster.wal_dir()) >= one.len());
    assert_eq!(daemon.stop(), 0);
}

/// The directory in which a repository's segments lie, once there are some.
fn segments_of(store: &Store, some: &str) -> PathBuf {
    let key = wait::until(LONG, &format!("{some} is stored"), || {
        store.back_door().list("clusters").into_iter().find(|key| key.ends_with(some))
    });
    store.root().unwrap().join(key).parent().unwrap().to_owned()
}

/// From now on no name in that directory gets durable: the call hangs, as that of a file server that is gone does.
fn hang(bed: &Bed, daemon: &Daemon, directory: &Path) -> Background {
    faults::attach(bed.cluster.dir(), daemon.process.pid(), &["fsync:delay_enter=3600s"], &[directory])
}

#[track_caller]
fn few_threads(daemon: &Daemon) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Threads:")).unwrap();
    println!("{} threads", line.trim());
    assert!(line.trim().parse::<u32>().unwrap() <= 40, "{line}");
}

/// A9, promise 9: a directory outside `ack` that hangs takes neither memory nor time from archiving, is named, and gets what it
/// missed when it answers again.
#[test]
fn a_directory_outside_ack_that_hangs_slows_nothing_down_and_holds_a_bounded_share() {
    let mut bed = Bed::new(Cluster::builder().segment_size_mb(16), Store::s3());
    let far = Store::local();
    register(&far, bed.cluster.pgdata(), bed.cluster.major());
    bed.agent =
        Agent::with(&bed.cluster, &bed.store).repository("far", &far).cluster_line("ack = [\"main\"]");
    let ready = backlog(&mut bed, 96);
    let daemon = bed.agent.daemon();
    let usual = drain(&bed.cluster, &bed.agent.archive_command(), ready.last().unwrap());
    let directory = segments_of(&far, ready.last().unwrap());
    within_bounds(&daemon, "two directories that answer");
    bed.cluster.set("archive_command", "false");
    bed.cluster.reload();
    bed.cluster.wait_for("show archive_command", "false");
    let tracer = hang(&bed, &daemon, &directory);
    noise(&bed.cluster, 240);
    let ready = bed.ready();
    let took = drain(&bed.cluster, &bed.agent.archive_command(), ready.last().unwrap());
    println!("usually {usual:?} for 96 MB, {took:?} for 240 MB");
    // The tracer takes its time as well.
    assert!(took < usual * 10 + Duration::from_secs(20), "{took:?} instead of {usual:?}");
    within_bounds(&daemon, &format!("{} segments beside a directory that hangs", ready.len()));
    few_threads(&daemon);
    let health = || bed.agent.run(&["health"]).stderr;
    let named = || health().lines().any(|line| line.contains("repository far") && line.contains("timed out"));
    wait::until_true(LONG, "the one that hangs is named", named);
    drop(tracer);
    let other = Archive::of(&far, bed.cluster.pgdata());
    wait::until_true(LONG, "it is caught up", || ready.iter().all(|name| other.get(name).is_some()));
    wait::until_true(LONG, "nothing is wrong any more", || health().is_empty());
    within_bounds(&daemon, "after it was caught up");
    assert!(compare(&bed.archive(), &bed.cluster.wal_dir()) >= ready.len());
    assert_eq!(daemon.stop(), 0);
}

/// The same of one that has to acknowledge: archiving stops with a reason, holds what it held, and goes on by itself.
#[test]
fn a_directory_that_has_to_acknowledge_and_hangs_is_named_and_waited_for() {
    let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), Store::local());
    bed.agent = Agent::with(&bed.cluster, &bed.store)
        .repository_line("main", "read_timeout = \"1s\"")
        .cluster_line("push_timeout = \"25s\"");
    let first = backlog(&mut bed, 4);
    let daemon = bed.agent.daemon();
    drain(&bed.cluster, &bed.agent.archive_command(), first.last().unwrap());
    let directory = segments_of(&bed.store, first.last().unwrap());
    let tracer = hang(&bed, &daemon, &directory);
    noise(&bed.cluster, 64);
    let ready = bed.ready();
    let says = |what: &str| wait::until_true(LONG, what, || bed.cluster.log().contains(what));
    says("repository main: a write that timed out has not returned");
    let health = || bed.agent.run(&["health"]).stderr;
    wait::until_true(LONG, "it is named", || health().contains("repository main: a write that timed out"));
    within_bounds(&daemon, "a directory that hangs");
    few_threads(&daemon);
    assert_eq!(bed.ready().first(), ready.first(), "nothing is acknowledged");
    drop(tracer);
    let done = bed.cluster.wal_dir().join(format!("archive_status/{}.done", ready.last().unwrap()));
    wait::until_true(LONG, "archiving goes on", || {
        bed.cluster.switch_wal();
        std::thread::sleep(Duration::from_secs(1));
        done.exists()
    });
    wait::until_true(LONG, "nothing is wrong any more", || health().is_empty());
    assert!(compare(&bed.archive(), &bed.cluster.wal_dir()) >= ready.len());
    assert_eq!(daemon.stop(), 0);
}

/// Promise 9: a segment that compresses less than those before it takes more memory than it began with, or begins anew with
/// all that it may take; either way it is stored, within the bounds.
#[test]
fn wal_that_compresses_less_than_what_came_before_it_stays_within_the_bounds() {
    let mut bed = Bed::new(Cluster::builder().segment_size_mb(16), Store::s3());
    bed.agent.env.push(("WALPOINT_LOG".to_owned(), "debug".to_owned()));
    bed.cluster.set("archive_command", "false");
    hold_wal(&bed.cluster);
    bed.cluster.start();
    bed.cluster.psql(
        "do $$ begin
           for i in 1..96 loop perform pg_logical_emit_message(false, 'x', repeat('x', 1048576)); end loop;
         end $$",
    );
    bed.cluster.switch_wal();
    let daemon = bed.agent.daemon();
    drain(&bed.cluster, &bed.agent.archive_command(), bed.ready().last().unwrap());
    bed.cluster.set("archive_command", "false");
    bed.cluster.reload();
    bed.cluster.wait_for("show archive_command", "false");
    // All of it is there when the daemon looks again, so that several begin with as little as those before them took.
    daemon.process.signal(Signal::STOP);
    noise(&bed.cluster, 160);
    daemon.process.signal(Signal::CONT);
    let ready = bed.ready();
    let took = drain(&bed.cluster, &bed.agent.archive_command(), ready.last().unwrap());
    within_bounds(&daemon, &format!("{} segments in {took:?}", ready.len()));
    assert!(daemon.log().contains("starting over with more memory"), "{}", daemon.log());
    assert!(compare(&bed.archive(), &bed.cluster.wal_dir()) >= ready.len());
    assert_eq!(daemon.stop(), 0);
}

/// A6: a daemon that hardly gets a core makes progress all the same.
#[test]
fn a_starving_core_only_makes_it_slower() {
    let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), Store::s3());
    let ready = backlog(&mut bed, 30);
    let daemon = bed.agent.daemon();
    // All of its threads on one core, beside somebody who wants all of that core.
    let pin = |pid: u32| {
        let mut command = Command::new("taskset");
        command.args(["-acp", "0", &pid.to_string()]);
        process::run(&mut command, LONG).expect_success();
    };
    pin(daemon.process.pid());
    let mut hog = Command::new("sh");
    hog.args(["-c", "while :; do :; done"]);
    let hog = Background::start(&mut hog, &bed.cluster.dir().join("hog.log"));
    pin(hog.pid());
    let took = drain(&bed.cluster, &bed.agent.archive_command(), ready.last().unwrap());
    within_bounds(&daemon, &format!("one starving core, {} segments in {took:?}", ready.len()));
    assert!(compare(&bed.archive(), &bed.cluster.wal_dir()) >= ready.len());
    assert!(bed.cluster.archive_failures().1 <= ready[0], "{}", bed.cluster.log());
    assert_eq!(daemon.stop(), 0);
}

/// A6: thousands of segments.
#[test]
#[ignore = "a backlog of five thousand segments: make soak"]
fn a_backlog_of_five_thousand_segments_drains() {
    for store in [Store::local(), Store::s3()] {
        let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), store);
        bed.cluster.set("archive_command", "false");
        hold_wal(&bed.cluster);
        // Segments that are mostly holes: it is their number that counts.
        bed.cluster.set("wal_init_zero", "off");
        bed.cluster.start();
        for _ in 0..50 {
            bed.cluster.psql(
                "do $$ begin for i in 1..100 loop
                   perform pg_logical_emit_message(false, 'n', repeat(i::text, 1000)); perform pg_switch_wal();
                 end loop; end $$",
            );
        }
        let ready = bed.ready();
        assert!(ready.len() >= 5000, "{}", ready.len());
        let daemon = bed.agent.daemon();
        let took = drain(&bed.cluster, &bed.agent.archive_command(), ready.last().unwrap());
        within_bounds(&daemon, &format!("{} segments to {} in {took:?}", ready.len(), bed.store.url()));
        assert!(compare(&bed.archive(), &bed.cluster.wal_dir()) >= ready.len());
        assert_eq!(daemon.stop(), 0);
    }
}
