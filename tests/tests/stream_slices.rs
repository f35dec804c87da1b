//! Slices of slow and of large segments: few, and never in memory as a whole.

mod stream_bed;

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use stream_bed::{STREAM, disaster, major, slices, wait_durable};
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::store::Store;
use walpoint_tests::wait;

/// A cluster whose WAL is stored every `interval`.
fn flushing(interval: &str, segment_size_mb: u32) -> Archived {
    Archived::start_with(major(17).segment_size_mb(segment_size_mb), Store::local(), |mut agent| {
        agent.tables = format!("{STREAM}flush_interval = \"{interval}\"\n");
        agent
    })
}

/// Resident bytes of a process that are not pages of a file.
fn own_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Commits rows one by one, so slowly that each is in a slice of its own.
fn commit_slowly(cluster: &Cluster, rows: RangeInclusive<u32>) {
    let (first, last) = rows.into_inner();
    cluster.psql(&format!(
        "do $$ begin for n in {first}..{last} loop insert into t values (n); commit; perform pg_sleep(0.012); end loop; end $$"
    ));
}

/// Hundreds of flushes of one segment leave a few slices, and a restore reads all of them, also if the daemon was killed while it put
/// one in the place of many.
#[test]
fn a_segment_that_takes_long_has_few_slices() {
    let mut bed = flushing("10ms", 16);
    bed.cluster.psql("create table t as select 0 as n");
    bed.backup();
    bed.settle();
    wait_durable(&bed.cluster);
    let segment = bed.cluster.current_segment();
    commit_slowly(&bed.cluster, 1..=250);
    wait_durable(&bed.cluster);
    let mut few = Vec::new();
    wait::until_true(Duration::from_secs(20), "small slices became large ones", || {
        few = slices(&bed);
        few.len() < 100
    });
    assert!(few.len() > 3 && few.iter().all(|key| key.contains(&segment)), "{few:?}");
    // Another session continues behind the one before it, and has stored about as many slices as become one.
    let mut last = 250;
    for more in [62, 66, 70] {
        bed.kill_daemon();
        bed.start_daemon();
        bed.cluster.psql(&format!("insert into t values ({})", last + 1));
        wait_durable(&bed.cluster);
        commit_slowly(&bed.cluster, last + 2..=last + more);
        last += more;
    }
    bed.kill_daemon();
    bed.start_daemon();
    bed.cluster.psql(&format!("insert into t values ({})", last + 1));
    wait_durable(&bed.cluster);
    assert_eq!(bed.cluster.current_segment(), segment, "one segment holds it all");
    disaster(&mut bed);
    let restored = bed.restore_and_start("latest", &["--target-action", "promote"]);
    restored.wait_promoted();
    let rows = last + 2;
    let counted = restored.psql("select count(*), count(distinct n), max(n) from t");
    assert_eq!(counted, format!("{rows}|{rows}|{}", last + 1));
}

/// The session, and the end of the last slice, of these.
fn last_slice(slices: &[String]) -> (String, u64) {
    let parsed = slices.iter().map(|key| {
        let name: Vec<&str> = key.rsplit('/').next().unwrap().split('-').collect();
        (name[2].to_owned(), u64::from_str_radix(name[1], 16).unwrap())
    });
    parsed.max_by_key(|(_, end)| *end).unwrap()
}

/// Promise 1: what a store left damaged under the name of a slice, when it failed in the middle of a create, ends the session. The next
/// one stores the segment under other names, and commits wait no longer.
#[test]
fn a_damaged_slice_under_a_live_session_costs_nothing_but_time() {
    let bed = flushing("10ms", 1);
    bed.cluster.psql("create table t as select 0 as n");
    bed.settle();
    let over = || bed.daemon().log().contains("The stream starts over");
    for _ in 0..10 {
        bed.cluster.psql("insert into t values (1)");
        wait_durable(&bed.cluster);
        let all = slices(&bed);
        let (session, start) = last_slice(&all);
        let (directory, _) = all[0].rsplit_once('/').unwrap();
        // Wherever the next slice ends.
        for end in (1..=512).map(|n| start + 8 * n) {
            bed.back_door()
                .put(&format!("{directory}/{start:016X}-{end:016X}-{session}"), b"damaged".to_vec());
        }
        bed.cluster.psql("insert into t values (2)");
        wait_durable(&bed.cluster);
        if over() {
            break;
        }
    }
    assert!(over(), "{}", bed.daemon().log());
    // The segment is stored as a whole behind it, too.
    bed.settle();
}

/// The daemon that continues a large segment reads all slices of it, and holds a few.
#[test]
#[ignore = "hundreds of megabytes: make soak"]
fn a_segment_of_256_mib_is_put_together_within_the_bounds() {
    let mut bed = flushing("1s", 256);
    bed.cluster.psql("create table t (n int, filler text)");
    bed.backup();
    bed.settle();
    // What does not compress.
    let insert = "insert into t select n, (select string_agg(md5(i::text || random()), '') from generate_series(1, 60) i) \
                  from generate_series(1, 20000) n";
    for _ in 0..5 {
        bed.cluster.psql(insert);
        wait_durable(&bed.cluster);
    }
    assert!(slices(&bed).len() > 15, "{:?}", slices(&bed));
    bed.kill_daemon();
    bed.start_daemon();
    let (done, daemon) = (AtomicBool::new(false), bed.daemon().process.pid());
    let peak = thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = own_memory(daemon).max(most);
                thread::sleep(Duration::from_millis(2));
            }
            most
        });
        bed.cluster.psql("insert into t values (0, '')");
        wait_durable(&bed.cluster);
        done.store(true, Ordering::Relaxed);
        watch.join().unwrap()
    });
    assert!((1 << 20..64 << 20).contains(&peak), "the daemon took {peak} bytes");
    eprintln!("{} slices put together with {} MiB", slices(&bed).len(), peak >> 20);
}
