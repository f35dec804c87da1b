//! A7: whatever dies at whatever moment, nothing acknowledged is missing and nothing half-written is served.

mod archive_bed;

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use archive_bed::{Archive, Bed};
use rand::Rng;
use rustix::process::Signal;
use walpoint_tests::agent::Daemon;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::process::{self, Background};
use walpoint_tests::store::Store;
use walpoint_tests::{faults, wait};

const SOON: Duration = Duration::from_secs(60);

/// Kills the daemon, the client, what stands in for the daemon, or several of them, at random moments under load; then compares
/// every segment that was acknowledged with the copy that was saved right after the acknowledgement.
fn killed_under_load(store: Store, kills: usize) {
    let mut random = faults::random();
    let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), store);
    let saved = bed.cluster.dir().mkdir("saved");
    // A copy is saved only of what archive-push has acknowledged. A killed client counts as an ordinary failure: otherwise
    // PostgreSQL's archiver would end as well, and start again only ten seconds later.
    let push = bed.agent.archive_command();
    bed.cluster.set("archive_command", format!("{push} || exit 1; cp %p {}/%f", saved.display()));
    bed.cluster.start();
    let stop = AtomicBool::new(false);
    let mut hits = BTreeMap::<&str, usize>::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Enough that something always waits, not more than a disk can hold.
                if bed.ready().len() < 40 {
                    bed.cluster.fill_wal_mb(3);
                } else {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        });
        // The load must end whatever happens here.
        let _ended = Ended(&stop);
        let mut daemon: Option<Daemon> = Some(bed.agent.daemon());
        let mut done = 0;
        let mut round = 0;
        while done < kills {
            round += 1;
            assert!(round < kills * 20, "hardly anything to kill: {hits:?}");
            std::thread::sleep(Duration::from_millis(random.random_range(0..120)));
            let (kill_daemon, kill_clients) =
                [(true, false), (false, true), (true, true)][random.random_range(0..3)];
            if kill_clients {
                for (pid, name) in wait_for_clients(&bed) {
                    process::kill_pid(pid, Signal::KILL);
                    *hits.entry(name).or_default() += 1;
                    done += 1;
                }
            }
            if kill_daemon && let Some(daemon) = daemon.take() {
                daemon.kill();
                *hits.entry("daemon").or_default() += 1;
                done += 1;
            }
            // Sometimes the client has to do without.
            if daemon.is_none() && random.random_bool(0.8) {
                daemon = Some(bed.agent.launch());
            }
        }
    });
    println!("killed: {hits:?}, {} segments wait", bed.ready().len());
    let begun = std::time::Instant::now();
    let _daemon = bed.agent.daemon();
    bed.cluster.psql("select pg_stat_reset_shared('archiver')");
    let last = bed.cluster.switch_wal();
    bed.cluster.wait_done(&last);
    let archive = bed.archive();
    let compared = compare(&archive, &saved);
    println!("{compared} acknowledged segments compared; the rest was archived in {:?}", begun.elapsed());
    assert!(compared > 20, "{compared}");
    // What lies under a name is whole, acknowledged or not: it can be read, and reading verifies it.
    for key in bed.store.back_door().list("clusters") {
        let name = key.rsplit('/').next().unwrap();
        if key.contains("/wal/") && name.len() == 24 {
            assert_eq!(archive.get(name).map(|content| content.len()), Some(1 << 20), "{key}");
        }
    }
}

struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Looks for clients until there are some; they live for milliseconds.
fn wait_for_clients(bed: &Bed) -> Vec<(u32, &'static str)> {
    let begun = std::time::Instant::now();
    loop {
        let clients = clients(bed);
        if !clients.is_empty() || begun.elapsed() > Duration::from_millis(500) {
            return clients;
        }
    }
}

/// The processes of `archive_command` that are ours.
fn clients(bed: &Bed) -> Vec<(u32, &'static str)> {
    let name = |pid: &u32| {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        match comm.trim() {
            "archive-push" => Some((*pid, "archive-push")),
            "archive-agent" => Some((*pid, "archive-agent push")),
            _ => None,
        }
    };
    process::descendants(bed.cluster.pid().unwrap()).iter().filter_map(name).collect()
}

fn compare(archive: &Archive, saved: &Path) -> usize {
    let mut compared = 0;
    for entry in std::fs::read_dir(saved).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let stored = archive.get(&name);
        assert!(stored.is_some(), "{name} was acknowledged and is missing");
        assert!(
            stored.unwrap() == std::fs::read(entry.path()).unwrap(),
            "{name} is not what was acknowledged"
        );
        compared += 1;
    }
    compared
}

#[test]
fn fifty_kills_under_load_lose_nothing_on_a_directory() {
    killed_under_load(Store::local(), 60);
}

#[test]
fn fifty_kills_under_load_lose_nothing_on_s3() {
    killed_under_load(Store::s3(), 50);
}

#[test]
#[ignore = "a thousand kills take minutes: make soak"]
fn a_thousand_kills_under_load_lose_nothing() {
    killed_under_load(Store::local(), 1000);
}

/// One segment and a copy of it, pushed again and again with death at another system call each time.
struct Victim {
    bed: Bed,
    name: String,
    path: PathBuf,
    content: Vec<u8>,
}

impl Victim {
    fn new() -> Victim {
        let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
        bed.cluster.set("archive_command", "false");
        bed.agent.cluster_lines.push("look_ahead = 0".to_owned());
        bed.cluster.start();
        let name = bed.cluster.switch_wal();
        let path = bed.cluster.wal_dir().join(&name);
        let content = std::fs::read(&path).unwrap();
        Victim { bed, name, path, content }
    }

    /// After a death: the segment is there whole or not at all; then a push succeeds, and it is there. Then it goes, for
    /// the next death.
    fn check_and_reset(&self, archive: &Archive, when: &str) {
        if let Some(content) = archive.get(&self.name) {
            assert!(content == self.content, "half-written after {when}");
        }
        self.bed.direct(&self.path).expect_success();
        assert!(archive.get(&self.name).is_some_and(|content| content == self.content), "{when}");
        let door = self.bed.store.back_door();
        for key in door.list("clusters") {
            if key.contains("/wal/") {
                door.delete(&key);
            }
        }
    }
}

/// Death at each call that changes or sends anything, one after the other, until the push survives.
fn die_at_every(victim: &Victim, calls: &[&str], at_least: usize, mut attempt: impl FnMut(&str) -> bool) {
    let archive = victim.bed.archive();
    let mut deaths = 0;
    for call in calls {
        for n in 1.. {
            let when = format!("{call}:signal=SIGKILL:when={n}");
            let survived = attempt(&when);
            victim.check_and_reset(&archive, &when);
            if survived {
                break;
            }
            deaths += 1;
            assert!(n < 100, "{call} never ends");
        }
    }
    println!("{deaths} deaths");
    assert!(deaths >= at_least, "only {deaths} deaths: the calls {calls:?} are not made any more");
}

#[test]
fn a_push_that_dies_at_any_system_call_leaves_it_whole_or_absent() {
    let victim = Victim::new();
    let calls = [
        "write",
        "writev",
        "pwrite64",
        "fsync",
        "fdatasync",
        "link",
        "linkat",
        "rename",
        "renameat2",
        "unlink",
        "mkdir",
    ];
    die_at_every(&victim, &calls, 4, |when| {
        let command = victim.bed.agent.command("archive-agent", ["push", victim.path.to_str().unwrap()]);
        let mut traced = faults::inject(&command, &[when], &[]);
        process::run(&mut traced, SOON).success()
    });
}

/// Promise 5: with any amount of memory that lets the client start at all, it ends with a status that PostgreSQL takes for a
/// failed command, whatever becomes of the agent that stands in for the daemon, and with 0 only for what is stored.
#[test]
fn short_of_memory_the_client_never_exits_above_125() {
    const STEP: u64 = 128 << 10;
    let victim = Victim::new();
    let archive = victim.bed.archive();
    let version = victim.bed.agent.command("archive-push", ["--version"]);
    let starts = |limit: &u64| process::run(&mut faults::limit_memory(&version, *limit), SOON).success();
    let least = (1..1000).map(|n| n * STEP).find(starts).expect("it starts with 128 MB");
    let push = victim.bed.agent.push_command(format!("pg_wal/{}", victim.name));
    let (mut limit, mut ended, mut tried) = (least, 0, 0);
    // The many limits in between take minutes.
    let share = if std::env::var_os("WALPOINT_SOAK").is_some() { 24 } else { 4 };
    loop {
        let output = process::run(&mut faults::limit_memory(&push, limit), SOON);
        let shown = limit >> 10;
        assert!(output.status <= 125, "with {shown} KiB: {output:#?}");
        ended += u32::from(output.stderr.contains("was terminated by signal"));
        tried += 1;
        if output.success() {
            println!(
                "starts with {} KiB, stores with {shown} KiB; {tried} tried, {ended} agents died",
                least >> 10
            );
            break;
        }
        assert!(archive.get(&victim.name).is_none_or(|content| content == victim.content), "{shown} KiB");
        assert!(limit < 16 << 30, "it is never enough: {output:#?}");
        // In small steps where the client itself has little, then faster, where the agent has.
        limit += STEP.max((limit - least) * 2 / share / STEP * STEP);
    }
    assert!(archive.get(&victim.name).is_some_and(|content| content == victim.content));
    assert!(ended > 0, "no agent died for want of memory: this proves nothing");
}

#[test]
fn a_client_that_dies_at_any_system_call_leaves_it_whole_or_absent() {
    let victim = Victim::new();
    let _daemon = victim.bed.agent.daemon();
    let calls = ["connect", "write", "sendto", "sendmsg", "read", "recvfrom"];
    die_at_every(&victim, &calls, 3, |when| {
        let command = victim.bed.agent.push_command(&victim.path);
        process::run(&mut faults::inject(&command, &[when], &[]), SOON).success()
    });
}

#[test]
fn a_daemon_that_dies_at_any_system_call_leaves_it_whole_or_absent_and_the_client_goes_on() {
    let victim = Victim::new();
    let calls = ["write", "sendto", "fsync", "fdatasync", "link", "linkat", "rename", "unlink"];
    die_at_every(&victim, &calls, 4, |when| {
        let command = victim.bed.agent.command("archive-agent", ["run"]);
        let log = victim.bed.agent.place().join("daemon.log");
        let mut traced = Traced(Background::start(&mut faults::inject(&command, &[when], &[]), &log));
        let socket = victim.bed.agent.push_socket();
        wait::until_true(SOON, "the daemon answers or is dead", || {
            traced.0.try_status().is_some() || UnixStream::connect(&socket).is_ok()
        });
        // A client that waits when the daemon dies is served by the next one; it does not have to wait long.
        let push = &mut victim.bed.agent.push_command(&victim.path);
        let mut push = Background::start(push, &victim.bed.agent.place().join("push.log"));
        let mut next = None;
        let status = wait::until(SOON, "the push ends", || {
            if next.is_none() && traced.0.try_status().is_some() {
                next = Some(victim.bed.agent.launch());
            }
            push.try_status()
        });
        assert_eq!(status, 0, "{}", push.log());
        traced.0.try_status().is_none()
    });
}

/// A daemon below strace: when strace is killed, what it traced would go on.
struct Traced(Background);

impl Drop for Traced {
    fn drop(&mut self) {
        process::descendants(self.0.pid()).into_iter().for_each(|pid| process::kill_pid(pid, Signal::KILL));
    }
}

/// PostgreSQL's own crash in the middle of archiving: afterwards everything ready is archived, and nothing twice.
#[test]
fn postgresql_crashes_with_everything_and_goes_on_after_it() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    for _ in 0..4 {
        let daemon = bed.agent.daemon();
        bed.cluster.fill_wal_mb(8);
        bed.cluster.crash();
        daemon.kill();
        bed.cluster.start();
    }
    let _daemon = bed.agent.daemon();
    let last = bed.cluster.switch_wal();
    bed.cluster.wait_done(&last);
    let archive = bed.archive();
    for name in bed.cluster.segments().into_iter().filter(|name| *name <= last) {
        let ours = std::fs::read(bed.cluster.wal_dir().join(&name)).unwrap();
        assert!(archive.get(&name).is_some_and(|stored| stored == ours), "{name}");
    }
    wait::until_true(SOON, "nothing is left", || bed.ready().is_empty());
}
