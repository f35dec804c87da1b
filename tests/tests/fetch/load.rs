//! F4 and F6 on bad days: a store that is slow, narrow, throttling or dropping connections, and a starved processor. Nothing
//! short or stale is served, nothing is taken for the end of WAL, memory stays bounded, and what waits in the spool is handed
//! over whatever the store does.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use walpoint_tests::cluster::Cluster;
use walpoint_tests::http_faults::{FaultRule, HttpProxy};
use walpoint_tests::process::Background;
use walpoint_tests::proxy::{Fault, Proxy};
use walpoint_tests::store::Store;
use walpoint_tests::{user, wait};

use crate::archive::Archive;
use crate::target::{Target, prefetchers};

/// The most that the prefetcher may have resident, in kB.
const MEMORY: u64 = 64 << 10;

/// Consecutive segments in an S3 store.
struct Bed {
    cluster: Cluster,
    store: Store,
    segments: BTreeMap<String, Vec<u8>>,
}

impl Bed {
    /// Some segments of that many MiB, filled with what does not compress.
    fn new(segment_mb: u32, count: u32) -> Bed {
        let builder = Cluster::builder().segment_size_mb(segment_mb).conf("wal_compression", "off");
        let cluster = builder.conf("max_wal_size", "4GB").conf("wal_keep_size", "4GB").start();
        let first = cluster.switch_wal();
        let mb = segment_mb * count;
        cluster.psql(&format!(
            "select count(pg_logical_emit_message(false, 'x', (select string_agg(sha512((random() * n)::text::bytea), '') \
             from generate_series(1, 16000) n))) from generate_series(1, {})",
            mb + 1
        ));
        let last = cluster.switch_wal();
        let mut names = cluster.segments();
        names.retain(|name| *name >= first && *name <= last);
        names.truncate(usize::try_from(count).unwrap());
        assert!(names.len() >= usize::try_from(count).unwrap() - 2, "{} segments", names.len());
        let store = Store::s3();
        let archive = Archive::create(cluster.pgdata(), &[("main", &store)]);
        archive.put_all(&cluster.wal_dir(), |name| names.iter().any(|segment| segment == name));
        let read = |name: String| {
            let content = fs::read(cluster.wal_dir().join(&name)).unwrap();
            (name, content)
        };
        let segments = names.into_iter().map(read).collect();
        drop(archive);
        Bed { cluster, store, segments }
    }

    /// A data directory whose prefetcher reaches the store through that port, and which waits for it as long as it takes.
    fn target(&self, port: u16) -> Target {
        Target::like(self.cluster.pgdata()).configure(|mut agent| {
            agent.cluster_lines.clear();
            agent.repository_via_port("main", &self.store, port).cluster_line("fetch_timeout = \"2m\"")
        })
    }

    /// Fetches every segment as recovery does, one after the other.
    #[track_caller]
    fn fetch_all(&self, target: &Target, day: &str) {
        let (begun, mut times) = (Instant::now(), Vec::new());
        for (name, expected) in &self.segments {
            let asked = Instant::now();
            let output = target.fetch(name);
            times.push(asked.elapsed());
            assert_eq!(output.status, 0, "{day}, {name}: {output:#?}");
            assert!(
                target.file().is_some_and(|content| content == *expected),
                "{day}: {name} is not what was archived"
            );
        }
        let took = begun.elapsed();
        times.sort();
        let peak = peak(target);
        println!(
            "{day}: {} segments in {took:.1?}, p50 {:.1?}, max {:.1?}, peak {} MiB",
            times.len(),
            times[times.len() / 2],
            times[times.len() - 1],
            peak >> 10
        );
        assert!(peak < MEMORY, "{day}: {peak} kB");
    }
}

/// The most that the prefetcher ever had resident, in kB.
#[track_caller]
fn peak(target: &Target) -> u64 {
    let found = prefetchers(&target.agent);
    let [pid] = found[..] else { panic!("prefetchers: {found:?}") };
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim();
    peak.trim_end_matches(" kB").trim().parse().unwrap()
}

/// Every kind of bad day, one after the other.
fn bad_days(bed: &Bed) {
    let port = bed.store.port().unwrap();
    let proxy = Proxy::to(port);
    for (day, fault) in [
        ("at 100 ms", Fault::Latency(Duration::from_millis(100))),
        ("at 5 MB/s", Fault::Bandwidth(5 << 20)),
        ("answers cut short", Fault::TruncateAnswerAfter(3 << 20)),
    ] {
        let target = bed.target(proxy.port());
        proxy.set(fault);
        bed.fetch_all(&target, day);
        proxy.heal();
    }

    // Connections are reset again and again, in the middle of whatever they carry.
    let target = bed.target(proxy.port());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(120));
                proxy.cut();
            }
        });
        bed.fetch_all(&target, "dropping connections");
        done.store(true, Ordering::Relaxed);
    });

    // Every other request is told to slow down.
    let throttling = HttpProxy::to(port);
    throttling
        .set((0..400).map(|n| FaultRule::new("GET", "/wal/", 503, "SlowDown").after(n).times(1)).collect());
    let target = bed.target(throttling.port());
    bed.fetch_all(&target, "throttling");
    let refused = throttling.requests().len() - bed.segments.len();
    assert!(refused > 5, "only {refused} requests were refused");

    // One core for everything, which others use too.
    let _busy = Busy::start(&target);
    let target = bed.target(port);
    bed.fetch_all(&target, "a starving core");
}

/// This thread and all it starts confined to one core, beside two loops that use it. The core is given back at the end.
struct Busy {
    before: rustix::thread::CpuSet,
    _loops: Vec<Background>,
}

impl Busy {
    fn start(target: &Target) -> Busy {
        let before = rustix::thread::sched_getaffinity(None).unwrap();
        let mut one = rustix::thread::CpuSet::new();
        one.set((0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| before.is_set(*cpu)).unwrap());
        rustix::thread::sched_setaffinity(None, &one).unwrap();
        let loops = (0..2).map(|n| {
            let mut command = std::process::Command::new("sh");
            command.args(["-c", "while :; do :; done"]);
            Background::start(&mut command, &target.agent.place().join(format!("loop{n}.log")))
        });
        let loops = loops.collect();
        Busy { before, _loops: loops }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        rustix::thread::sched_setaffinity(None, &self.before).unwrap();
    }
}

/// F4 under load: dozens of small segments through every kind of bad day.
#[test]
fn bad_days_only_slow_it_down() {
    bad_days(&Bed::new(1, 32));
}

/// F4 under load: the same with segments of the usual size, more than the prefetcher may hold in memory.
#[test]
#[ignore = "takes minutes: make soak"]
fn bad_days_only_slow_it_down_with_segments_of_16_mib() {
    bad_days(&Bed::new(16, 40));
}

/// F6 under load: with thousands of files left in the spool and a store that cannot be reached any more, what was prefetched is
/// handed over at once; what was not is waited for and never taken for absent.
#[test]
fn what_waits_in_the_spool_does_not_need_the_store() {
    let bed = Bed::new(1, 24);
    let proxy = Proxy::to(bed.store.port().unwrap());
    let mut target =
        bed.target(proxy.port()).configure(|agent| agent.cluster_line("prefetch_max = \"16MiB\""));
    target.agent.cluster_lines.retain(|line| !line.starts_with("fetch_timeout"));
    let target = target.configure(|agent| agent.cluster_line("fetch_timeout = \"3s\""));
    let ready = target.spool().join("ready");
    fs::create_dir_all(&ready).unwrap();
    for n in 0..5000 {
        fs::write(ready.join(format!("0000000100000009{n:08X}")), b"left").unwrap();
    }
    user::give_tree(&target.spool());
    let names: Vec<&String> = bed.segments.keys().collect();
    assert_eq!(target.fetch(names[0]).status, 0);
    wait::until_true(wait::SOON, "the next sixteen wait", || {
        let ready = target.ready();
        names[1..=16].iter().all(|name| ready.contains(name))
    });
    proxy.set(Fault::Refuse);
    for name in &names[1..=16] {
        let output = target.fetch(name);
        assert_eq!(output.status, 0, "{name}: {output:#?}");
        assert!(target.file().is_some_and(|content| content == bed.segments[*name]), "{name}");
        assert!(output.stderr.is_empty(), "it did not wait for the store: {output:#?}");
    }
    let output = target.fetch(names[17]);
    assert_eq!(output.status, 255, "{output:#?}");
    proxy.heal();
    let output = target.fetch(names[17]);
    assert_eq!(output.status, 0, "{output:#?}");
}
