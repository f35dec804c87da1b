//! A segment that is skipped leaves a gap, which stays on record until a backup makes up for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use walpoint_tests::cluster::Cluster;
use walpoint_tests::process::Background;
use walpoint_tests::seaweed::Credentials;
use walpoint_tests::store::Store;
use walpoint_tests::wait;

use super::{SOON, refused_at, stuck};
use crate::archive_bed::Bed;

/// Promise 7: while the first backup is under way no gap is told.
#[test]
fn a_first_backup_that_is_under_way_is_no_gap() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    bed.cluster.psql("create table t (n int)");
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    bed.cluster.set("archive_command", "false");
    bed.cluster.reload();
    let log = bed.agent.place().join("backup.log");
    let backup = Background::start(&mut bed.agent.command("archive-agent", ["backup"]), &log);
    wait::until_true(SOON, "it waits for its WAL", || backup.log().contains("the backup needs WAL up to"));
    let checked = bed.agent.run(&["check", "--no-switch"]);
    assert!(!checked.stdout.contains("no backup leads"), "{checked:#?}");
    drop(backup);
}

/// Promise 7: `check` and `health` know of a gap by what is stored, whether or not anything here is on record of it.
#[test]
fn a_gap_that_is_on_no_record_is_no_secret() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    bed.cluster.psql("create table t (n int)");
    bed.agent.run(&["backup"]).expect_success();
    let names = [(); 3].map(|()| {
        bed.cluster.psql("insert into t select generate_series(1, 5000)");
        let name = bed.cluster.switch_wal();
        bed.cluster.wait_done(&name);
        name
    });
    bed.agent.run(&["check", "--no-switch"]).expect_success();
    let door = bed.store.back_door();
    let keys = door.list("clusters");
    door.delete(keys.iter().find(|key| key.ends_with(&names[1])).unwrap());
    let gap = format!("cannot pass segment {}", names[1]);
    let checked = bed.agent.run(&["check", "--no-switch"]).expect_status(3);
    assert!(checked.stdout.contains(&gap), "{checked:#?}");
    assert_eq!(daemon.stop(), 0);
    let daemon = bed.agent.daemon();
    let health = || bed.agent.run(&["health"]);
    wait::until_true(SOON, "the daemon says so", || health().stderr.contains(&gap));
    bed.agent.run(&["backup"]).expect_success();
    bed.agent.run(&["check", "--no-switch"]).expect_success();
    wait::until_true(SOON * 2, "a backup makes up for it", || health().success());
    drop(daemon);
}

/// Promise 7: `health` tells of a gap on a server that archives a segment between any two looks, and does not forget it.
#[test]
fn a_gap_is_no_secret_on_a_busy_server() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    bed.agent.run(&["backup"]).expect_success();
    let switch = || {
        bed.cluster.psql("select pg_logical_emit_message(false, 'n', 'n')");
        bed.cluster.switch_wal()
    };
    let names = [(); 3].map(|()| {
        let name = switch();
        bed.cluster.wait_done(&name);
        name
    });
    let door = bed.store.back_door();
    let keys = door.list("clusters");
    door.delete(keys.iter().find(|key| key.ends_with(&names[1])).unwrap());
    assert_eq!(daemon.stop(), 0);
    let gap = format!("cannot pass segment {}", names[1]);
    let busy = AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while busy.load(Ordering::Relaxed) {
                switch();
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        let daemon = bed.agent.daemon();
        let tells = || bed.agent.run(&["health"]).stderr.contains(&gap);
        let end = Instant::now() + SOON / 2;
        while !tells() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
        }
        // While its task is started again and again.
        let told = (0..20).filter(|_| {
            std::thread::sleep(Duration::from_millis(500));
            tells()
        });
        let told = told.count();
        busy.store(false, Ordering::Relaxed);
        assert_eq!(told, 20, "{}", daemon.log());
        let log = daemon.log();
        assert_eq!(log.matches(&gap).count(), 1, "it is logged once: {log}");
    });
}

/// A12: a file that cannot be stored at all is skipped on request: on record, with a warning until the next backup.
#[test]
fn a_skipped_segment_is_a_gap_until_the_next_backup() {
    for with_daemon in [true, false] {
        let (bed, names) = stuck(|path| {
            let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(300_000).unwrap();
        });
        let daemon = with_daemon.then(|| bed.agent.daemon());
        refused_at(&bed, &names[0], "300000 bytes");
        let place = |name: &str| bed.cluster.wal_dir().join(name).display().to_string();
        // Only what PostgreSQL waits for.
        let copy = bed.copy(&names[0], "elsewhere").display().to_string();
        for path in [copy, place("0000000100000000000000F0")] {
            let refused = bed.agent.run(&["push", "--skip", &path]).expect_status(1);
            assert!(refused.stderr.contains("is not waiting to be archived"), "{refused:#?}");
        }
        let skipped = bed.agent.run(&["push", "--skip", &place(&names[0])]).expect_success();
        assert!(skipped.stderr.contains("recovery cannot pass"), "{skipped:#?}");
        let next = bed.cluster.switch_wal();
        bed.cluster.wait_done(&next);
        assert!(bed.ready().is_empty(), "with a daemon: {with_daemon}: {:?}", bed.ready());
        assert!(bed.archive().get(&names[0]).is_none() && bed.archive().get(&names[1]).is_some());
        let gap = format!("{} was dropped, ", names[0]);
        let status = bed.agent.run(&["status"]).expect_success().stdout;
        assert!(status.contains(&gap) && status.contains("push --skip"), "{status}");
        if with_daemon {
            let health = || bed.agent.run(&["health"]);
            wait::until_true(SOON, "the daemon says so", || health().stderr.contains(&gap));
            let checked = bed.agent.run(&["check", "--no-switch"]).expect_status(3);
            assert_eq!(checked.stdout.matches(&gap).count(), 1, "{checked:#?}");
            bed.agent.run(&["backup"]).expect_success();
            wait::until_true(SOON * 2, "a backup makes up for it", || health().success());
        }
        drop(daemon);
    }
}

/// A12: a backup that `verify` found damaged makes up for no gap.
#[test]
fn a_damaged_backup_makes_up_for_no_gap() {
    let (bed, names) = stuck(|path| {
        std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(300_000).unwrap();
    });
    let daemon = bed.agent.daemon();
    refused_at(&bed, &names[0], "300000 bytes");
    let place = bed.cluster.wal_dir().join(&names[0]).display().to_string();
    bed.agent.run(&["push", "--skip", &place]).expect_success();
    let next = bed.cluster.switch_wal();
    bed.cluster.wait_done(&next);
    let packs = || {
        let mut keys = bed.store.back_door().list("clusters");
        keys.retain(|key| key.ends_with(".pack"));
        keys
    };
    let before = packs();
    bed.cluster.psql("create table more as select i, repeat('x', 500) from generate_series(1, 5000) i");
    bed.agent.run(&["backup"]).expect_success();
    let gap = format!("{} was dropped, ", names[0]);
    let health = || bed.agent.run(&["health"]);
    wait::until_true(SOON * 2, "a backup makes up for it", || health().success());
    let new: Vec<String> = packs().into_iter().filter(|key| !before.contains(key)).collect();
    let door = bed.store.back_door();
    assert!(!new.is_empty(), "{before:?}");
    for key in new {
        let middle = door.get(&key).unwrap().len() / 2;
        door.flip_bit(&key, middle);
    }
    assert!(!bed.agent.run(&["verify"]).success());
    wait::until_true(SOON * 2, "the daemon says so", || health().stderr.contains(&gap));
    let checked = bed.agent.run(&["check", "--no-switch"]).expect_status(3);
    assert!(checked.stdout.contains(&gap), "{checked:#?}");
    // What is on no record here shows in the repository.
    std::fs::remove_file(bed.cluster.wal_dir().join("walpoint-dropped")).unwrap();
    let checked = bed.agent.run(&["check", "--no-switch"]).expect_status(3);
    let passes = format!("cannot pass segment {}", names[0]);
    assert!(checked.stdout.contains(&passes), "{checked:#?}");
    bed.agent.run(&["backup"]).expect_success();
    bed.agent.run(&["check", "--no-switch"]).expect_success();
    drop(daemon);
}

/// A12: with `queue_max` no file is kept for ever: neither one that was cut short nor one that cannot be read.
#[test]
fn what_has_not_the_length_of_a_segment_is_dropped_like_any_other() {
    let (mut bed, names) = stuck(|path| {
        std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(300_000).unwrap();
    });
    bed.agent.cluster_lines.push("queue_max = \"2MiB\"".to_owned());
    let daemon = bed.agent.daemon();
    refused_at(&bed, &names[0], "300000 bytes");
    assert!(!bed.cluster.log().contains("dropped"), "{}", bed.cluster.log());
    for _ in 0..3 {
        bed.cluster.psql("insert into t select generate_series(1, 5000)");
        bed.cluster.switch_wal();
    }
    wait::until_true(SOON * 2, "nothing waits", || bed.ready().is_empty());
    let log = bed.cluster.log();
    assert_eq!(log.matches("was dropped and not archived: ").count(), 1, "{log}");
    assert!(bed.archive().get(&names[0]).is_none() && bed.archive().get(&names[1]).is_some());
    drop(daemon);
}

/// A12: a segment of which not even the first page can be read is skipped on request, by the daemon or without one, and is no gap once it
/// can be read and was archived after all.
#[test]
fn a_segment_that_cannot_be_read_is_skipped() {
    for with_daemon in [true, false] {
        // What is opened and cannot be read.
        let (bed, names) = stuck(|path| {
            std::fs::rename(path, path.with_extension("aside")).unwrap();
            std::fs::create_dir(path).unwrap();
        });
        let daemon = with_daemon.then(|| bed.agent.daemon());
        refused_at(&bed, &names[0], "");
        let place = bed.cluster.wal_dir().join(&names[0]);
        bed.agent.run(&["push", "--skip", &place.display().to_string()]).expect_success();
        bed.cluster.wait_done(&names[1]);
        assert!(bed.archive().get(&names[0]).is_none() && bed.archive().get(&names[1]).is_some());
        std::fs::remove_dir(&place).unwrap();
        std::fs::rename(place.with_extension("aside"), &place).unwrap();
        let is_gap = || bed.agent.run(&["status"]).expect_success().stdout.contains("DROPPED");
        assert!(is_gap());
        bed.agent.push(format!("pg_wal/{}", names[0])).expect_success();
        assert!(!is_gap(), "with a daemon: {with_daemon}");
        drop(daemon);
    }
}

/// A12: what is refused for good and accepted three seconds later is not dropped, by the daemon or without one.
#[test]
fn a_refusal_of_three_seconds_drops_nothing() {
    for with_daemon in [true, false] {
        let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), Store::s3());
        bed.agent.cluster_lines.push("push_timeout = \"2s\"".to_owned());
        bed.agent.cluster_lines.push("queue_max = \"2MiB\"".to_owned());
        bed.agent.archive_from(&bed.cluster);
        bed.cluster.start();
        let command = bed.cluster.psql("show archive_command");
        bed.cluster.set("archive_command", "");
        bed.cluster.reload();
        let names = [(); 8].map(|()| {
            bed.cluster.psql("create table if not exists t (n int); insert into t values (1)");
            bed.cluster.switch_wal()
        });
        let write = |who: &Credentials| {
            for (name, value) in [("access_key_id", &who.key), ("secret_access_key", &who.secret)] {
                std::fs::write(bed.agent.place().join(format!("main.{name}")), value).unwrap();
            }
        };
        write(&Credentials::unknown());
        let daemon = with_daemon.then(|| bed.agent.daemon());
        bed.cluster.set("archive_command", command);
        bed.cluster.reload();
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(bed.ready(), names);
        write(&Credentials::full());
        bed.cluster.wait_done(&names[7]);
        let log = bed.cluster.log();
        assert!(!log.contains("dropped"), "with a daemon: {with_daemon}: {log}");
        assert!(names.iter().all(|name| bed.archive().get(name).is_some()));
        drop(daemon);
    }
}
