//! F4 and F6: fetching ahead, on real WAL and without a server.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use walpoint_tests::process;
use walpoint_tests::store::Store;
use walpoint_tests::waldata::{self, WalData};
use walpoint_tests::{user, wait};

use crate::archive::Archive;
use crate::target::{Target, kill_prefetchers, prefetchers};

fn names(wal: &WalData, timeline: u32) -> Vec<String> {
    let prefix = format!("{timeline:08X}");
    let names = wal.segments().into_iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_owned());
    names.filter(|name| name.starts_with(&prefix)).collect()
}

struct Bed {
    wal: WalData,
    store: Store,
}

impl Bed {
    fn new() -> Bed {
        let (wal, store) = (waldata::promotion(17), Store::local());
        let archive = Archive::create(wal.pg_wal.parent().unwrap(), &[("main", &store)]);
        archive.put_all(&wal.archive, |_| true);
        drop(archive);
        Bed { wal, store }
    }

    fn target(&self) -> Target {
        let target = Target::like(self.wal.pg_wal.parent().unwrap());
        target
            .configure(|agent| agent.repository("main", &self.store).cluster_line("prefetch_max = \"4MiB\""))
    }

    #[track_caller]
    fn check(&self, target: &Target, name: &str) {
        let output = target.fetch(name);
        assert_eq!(output.status, 0, "{name}: {output:#?}");
        let expected = fs::read(self.wal.archive.join(name)).unwrap();
        assert!(target.file().is_some_and(|content| content == expected), "{name} is not what was archived");
    }
}

/// F4: what comes next is there, also across a timeline switch, and nothing beyond the depth.
#[test]
fn the_next_segments_wait_also_across_timelines() {
    let bed = Bed::new();
    let target = bed.target();
    let (first, second) = (names(&bed.wal, 1), names(&bed.wal, 2));
    bed.check(&target, "00000002.history");
    let last_but_one = &first[first.len() - 2];
    bed.check(&target, last_but_one);
    let mut expected = vec![first.last().unwrap().clone()];
    expected.extend_from_slice(&second[..3]);
    wait::until_true(wait::SOON, "the next segments wait", || target.ready() == expected);
    for name in &expected {
        bed.check(&target, name);
    }
    // What was passed is gone, and so is what the client took.
    wait::until_true(wait::SOON, "nothing old waits", || target.ready().iter().all(|name| *name > second[2]));
}

/// F4: nothing is fetched beyond the target that `restore` left, wherever the spool lies.
#[test]
fn it_stops_at_the_target() {
    let bed = Bed::new();
    let second = names(&bed.wal, 2);
    for elsewhere in [false, true] {
        let mut target = bed.target();
        let (left, mut spool) = (target.spool(), target.spool());
        fs::create_dir(&left).unwrap();
        let note = format!(r#"{{"timeline":2,"last":"{}"}}"#, second[2]);
        fs::write(left.join("target"), note).unwrap();
        user::give_tree(&left);
        if elsewhere {
            spool = target.pgdata.join("elsewhere");
            target = target.configure(|agent| agent.cluster_line(&format!("spool = {spool:?}")));
        }
        let waits = |name: &str| spool.join("ready").join(name).exists();
        bed.check(&target, &second[0]);
        wait::until_true(wait::SOON, "the target waits", || waits(&second[2]));
        wait::holds_for(Duration::from_millis(500), "nothing behind it", || !waits(&second[3]));
        // What PostgreSQL asks for it gets all the same.
        bed.check(&target, &second[4]);
    }
}

/// F4: what a killed prefetcher left, or anybody put there, is not believed.
#[test]
fn a_spool_that_was_left_is_not_believed() {
    let bed = Bed::new();
    let target = bed.target();
    let second = names(&bed.wal, 2);
    for round in 0..4 {
        bed.check(&target, &second[round]);
        wait::until_true(wait::SOON, "something waits", || !target.ready().is_empty());
        assert_eq!(kill_prefetchers(&target.agent), 1);
        let ready = target.spool().join("ready");
        fs::write(ready.join(&second[round + 1]), b"short").unwrap();
        fs::write(ready.join(&second[round + 2]), vec![7; 1 << 20]).unwrap();
        fs::write(ready.join(".walpoint-tmp-x"), b"half").unwrap();
        fs::write(target.pgdata.join("pg_wal/.walpoint-tmp-x"), b"half").unwrap();
        user::give_tree(&target.spool());
        bed.check(&target, &second[round + 1]);
        bed.check(&target, &second[round + 2]);
        wait::until_true(wait::SOON, "what was left is removed", || {
            let left = fs::read_dir(target.spool()).unwrap().flatten();
            !left.into_iter().any(|e| e.file_name().to_string_lossy().starts_with("discarded"))
                && !target.pgdata.join("pg_wal/.walpoint-tmp-x").exists()
        });
    }
}

/// F4: a spool that cannot be written slows recovery down and does not stop it. PostgreSQL's log has it once.
#[test]
fn a_spool_that_cannot_be_written_is_done_without() {
    let bed = Bed::new();
    let target = bed.target();
    let second = names(&bed.wal, 2);
    bed.check(&target, &second[0]);
    wait::until_true(wait::SOON, "something waits", || !target.ready().is_empty());
    let ready = target.spool().join("ready");
    let set_mode = |mode| fs::set_permissions(&ready, fs::Permissions::from_mode(mode)).unwrap();
    set_mode(0o500);
    let name = &second[5];
    for told in [true, false] {
        let output = target.fetch(name);
        assert_eq!(output.status, 0, "{output:#?}");
        assert!(
            target.file() == fs::read(bed.wal.archive.join(name)).ok(),
            "{name} is not what was archived"
        );
        assert_eq!(output.stderr.contains("the spool cannot be used"), told, "{output:#?}");
    }
    set_mode(0o700);
}

/// F4: it ends when nobody asks, and leaves nothing.
#[test]
fn it_ends_by_itself_and_cleans_up() {
    let bed = Bed::new();
    let target = bed.target().configure(|agent| agent.cluster_line("prefetch_idle_timeout = \"1s\""));
    bed.check(&target, &names(&bed.wal, 2)[0]);
    assert_eq!(prefetchers(&target.agent).len(), 1);
    wait::until_true(wait::SOON, "the prefetcher ends", || prefetchers(&target.agent).is_empty());
    assert!(!target.spool().exists() && !target.agent.fetch_socket().exists());
    bed.check(&target, &names(&bed.wal, 2)[1]);
}

/// F4: it ends when the data directory goes, and does not touch the one that comes in its place.
#[test]
fn it_ends_with_its_data_directory() {
    let bed = Bed::new();
    let target = bed.target();
    let second = names(&bed.wal, 2);
    bed.check(&target, &second[0]);
    let wal = target.pgdata.join("pg_wal");
    fs::rename(&wal, target.pgdata.join("old")).unwrap();
    fs::create_dir(&wal).unwrap();
    user::give(&wal);
    // At once, while the old one still runs: it must not answer for another directory.
    bed.check(&target, &second[1]);
    wait::until_true(wait::SOON, "the old prefetcher ends", || prefetchers(&target.agent).len() <= 1);
    bed.check(&target, &second[2]);
}

/// F4: two data directories with one socket by mistake: each gets its own files.
#[test]
fn a_socket_of_another_data_directory_is_not_believed() {
    let bed = Bed::new();
    let (one, two) = (bed.target(), bed.target());
    let second = names(&bed.wal, 2);
    bed.check(&one, &second[0]);
    let mut command = two.agent.command("restore-fetch", ["--socket"]);
    command.arg(one.agent.fetch_socket()).arg("--config").arg(two.agent.config());
    command.args([second[1].as_str(), "pg_wal/RECOVERYXLOG"]).current_dir(&two.pgdata);
    let output = process::run(&mut command, wait::SOON).expect_success();
    assert!(output.stderr.contains("its own socket"), "{}", output.stderr);
    assert_eq!(two.file(), fs::read(bed.wal.archive.join(&second[1])).ok());
}

/// F4: clients that start at the same moment start one prefetcher, and all are served.
#[test]
fn many_clients_at_once() {
    let bed = Bed::new();
    let target = bed.target();
    let second = names(&bed.wal, 2);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (target, name, bed) = (&target, &second[n % 4], &bed);
            scope.spawn(move || {
                let path = format!("pg_wal/client{n}");
                target.agent.fetch(name, &path).expect_success();
                let expected = fs::read(bed.wal.archive.join(name)).unwrap();
                assert!(fs::read(target.pgdata.join(path)).unwrap() == expected);
            });
        }
    });
    // One that came second is on its way out.
    wait::until_true(wait::SOON, "one prefetcher stays", || prefetchers(&target.agent).len() == 1);
}

/// A sidecar's prefetcher stays, also through a new data directory.
#[test]
fn a_kept_prefetcher_serves_what_comes_next() {
    let bed = Bed::new();
    let target = bed.target().configure(|agent| agent.cluster_line("prefetch_idle_timeout = \"1s\""));
    let second = names(&bed.wal, 2);
    let mut kept = target.prefetcher_with(&["--persistent"]);
    bed.check(&target, &second[0]);
    wait::holds_for(Duration::from_secs(2), "the prefetcher stays", || kept.try_status().is_none());
    let wal = target.pgdata.join("pg_wal");
    fs::rename(&wal, target.pgdata.join("old")).unwrap();
    fs::create_dir(&wal).unwrap();
    user::give(&wal);
    wait::until_true(wait::SOON, "it serves the new directory", || target.spool().join("ready").exists());
    bed.check(&target, &second[1]);
    assert_eq!(prefetchers(&target.agent), [kept.pid()]);
    kept.signal(rustix::process::Signal::TERM);
    assert_eq!(kept.wait(wait::SOON), 0);
    assert!(!target.spool().exists());
}

/// F6: thousands of files do not delay the first answer.
#[test]
fn a_spool_of_thousands_of_files_answers_at_once() {
    let bed = Bed::new();
    let target = bed.target();
    let ready = target.spool().join("ready");
    fs::create_dir_all(&ready).unwrap();
    for n in 0..5000 {
        fs::write(ready.join(format!("0000000200000009{n:08X}")), b"left").unwrap();
    }
    user::give_tree(&target.spool());
    let second = names(&bed.wal, 2);
    let begun = Instant::now();
    bed.check(&target, &second[0]);
    let cold = begun.elapsed();
    wait::until_true(wait::SOON, "the next segment waits", || target.ready().contains(&second[1]));
    let begun = Instant::now();
    bed.check(&target, &second[1]);
    let warm = begun.elapsed();
    println!("cold {cold:?}, warm {warm:?}");
    // Generous, for a machine that does much else: reading 5000 names and deleting them takes longer.
    assert!(cold < Duration::from_millis(1500) && warm < Duration::from_millis(500), "{cold:?} {warm:?}");
}

/// Promise 9: at full speed, with segments that do not compress, the prefetcher stays within 64 MiB.
#[test]
fn memory_is_bounded() {
    let cluster = walpoint_tests::cluster::Cluster::builder().conf("wal_compression", "off").start();
    let first = cluster.switch_wal();
    for _ in 0..14 {
        cluster.psql(
            "select count(pg_logical_emit_message(false, 'x', (select string_agg(sha512((random() * n)::text::bytea), '') \
             from generate_series(1, 14000) n))) from generate_series(1, 18)",
        );
    }
    let last = cluster.switch_wal();
    let mut stored: Vec<String> = cluster.segments();
    stored.retain(|name| *name >= first && *name <= last);
    for store in Store::all_good() {
        let archive = Archive::create(cluster.pgdata(), &[("main", &store)]);
        archive.put_all(&cluster.wal_dir(), |name| stored.iter().any(|segment| segment == name));
        let target = Target::like(cluster.pgdata()).configure(|agent| agent.repository("main", &store));
        for name in &stored {
            target.fetch(name).expect_success();
        }
        let pid = prefetchers(&target.agent)[0];
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let size = |name: &str| {
            let size = status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
            size.trim_end_matches(" kB").trim().parse::<u64>().unwrap()
        };
        // Without the program itself, which is larger while it is not optimised, and which others share.
        let peak = size("VmHWM:") - size("RssFile:");
        println!("{}: {} segments, peak {} MiB", store.url(), stored.len(), peak >> 10);
        // The 17th field after the name: it comes after PostgreSQL.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let nice = stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap().parse::<i32>().unwrap();
        let own = rustix::process::getpriority_process(None).unwrap();
        assert!(nice >= 5 && nice >= own, "nice {nice}, the test's own is {own}");
        assert!(stored.len() >= 12 && peak < 64 << 10, "{peak} kB over {} segments", stored.len());
    }
}
