//! Promise 10: WAL that is damaged in one repository is read from another one, by everything that a restore reads of it.

use std::collections::BTreeSet;

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::store::{BackDoor, Store};
use walpoint_tests::wait;

/// The objects of segments and histories.
fn wal(door: &BackDoor) -> BTreeSet<String> {
    let keys = door.list("clusters/main").into_iter();
    keys.filter(|key| key.contains("/wal/") || key.contains("/history/")).collect()
}

/// A server that archives into "main" and "second".
fn bed(second: &Store) -> Archived {
    let builder = Cluster::builder().segment_size_mb(1).conf("max_prepared_transactions", 5);
    let bed = Archived::start_with(builder, Store::local(), |agent| agent.repository("second", second));
    bed.cluster.psql("create table t as select i from generate_series(1, 1000) i");
    bed
}

#[track_caller]
fn both_have_it(main: &BackDoor, second: &BackDoor) {
    wait::until_true(wait::SOON, "both have the WAL", || wal(main) == wal(second));
}

/// The ways in which an object is damaged; its name and what it holds then.
fn damages(whole: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let flipped = |at: usize| {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    vec![
        ("header", flipped(10)),
        ("body", flipped(whole.len() / 2)),
        ("empty", Vec::new()),
        ("cut", whole[..whole.len() / 2].to_vec()),
    ]
}

/// Whatever of one repository's WAL is damaged, plan and restore do without it while the other one has it, and name it.
#[test]
fn damaged_wal_in_one_of_two_repositories_stops_no_restore() {
    let second = Store::local();
    let bed = bed(&second);
    bed.backup();
    // Replay of such a segment is looked at beforehand, with its neighbors.
    bed.settle();
    bed.cluster.create_tablespace("fast");
    bed.cluster.psql("drop tablespace fast");
    for n in 1..=3 {
        bed.cluster.psql(&format!("insert into t select generate_series({n}001, {n}500)"));
        bed.settle();
    }
    let (main, other) = (bed.back_door(), second.back_door());
    both_have_it(&main, &other);
    let mut named = 0;
    for door in [&main, &other] {
        for key in wal(door) {
            let whole = door.get(&key).unwrap();
            for (how, bytes) in damages(&whole) {
                door.put(&key, bytes);
                bed.agent.restore(&["plan"]).expect_success();
                let output = bed.try_restore("target", &[]);
                assert_eq!(output.status, 0, "{how} {key}: {output:#?}");
                named += usize::from(output.stderr.contains(&key) && output.stderr.contains("WARN"));
                std::fs::remove_dir_all(bed.place("target")).unwrap();
            }
            door.put(&key, whole);
        }
    }
    assert!(named > 0, "no damage was named");

    // Sound in none: the last one that replay reads and that creates the tablespace.
    let created = wal(&main).into_iter().rev().find(|key| {
        let whole = main.get(key).unwrap();
        // A damaged header is a missing segment; this one is found when it is read.
        for door in [&main, &other] {
            door.flip_bit(key, whole.len() / 2);
        }
        let output = bed.try_restore("target", &[]);
        let found = output.status == 1 && output.stderr.contains("No repository that was read");
        if found {
            for says in [key.as_str(), "nothing was touched", "\nHINT: ", "--target-lsn"] {
                assert!(output.stderr.contains(says), "{says}: {output:#?}");
            }
            assert!(!bed.place("target").exists());
        } else {
            std::fs::remove_dir_all(bed.place("target")).ok();
        }
        for door in [&main, &other] {
            door.put(key, whole.clone());
        }
        found
    });
    assert!(created.is_some(), "nothing was sound in none");
    let copy = bed.restore_and_start("copy", &[]);
    copy.wait_promoted();
    assert_eq!(copy.psql("select count(*) from t"), "2500");
}

/// A damaged segment, header or body, is in the way of what needs it only: targets before it are reached, though PostgreSQL would
/// read ahead into it, and those behind a newer backup are planned.
#[test]
fn a_damaged_segment_is_in_the_way_of_no_target_before_it_or_behind_a_newer_backup() {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    bed.cluster.psql("create table t as select i from generate_series(1, 1000) i");
    bed.backup();
    bed.cluster.psql("select pg_create_restore_point('early')");
    let early = bed.cluster.lsn();
    bed.settle();
    let door = bed.back_door();
    let before = wal(&door);
    bed.cluster.psql("insert into t select generate_series(1001, 1500)");
    bed.settle();
    let key = wal(&door).into_iter().rfind(|key| !before.contains(key)).unwrap();
    bed.backup();
    bed.cluster.psql("select pg_create_restore_point('late')");
    let late = bed.cluster.lsn();
    bed.settle();
    let whole = door.get(&key).unwrap();
    for (at, name) in [(60, "header"), (whole.len() / 2, "body")] {
        door.flip_bit(&key, at);
        for target in [
            ["--target-name", "early"],
            ["--target-lsn", &early],
            ["--target-name", "late"],
            ["--target-lsn", &late],
        ] {
            bed.agent.restore(&[&["plan"], &target[..]].concat()).expect_success();
        }
        let copy = bed.restore_and_start(name, &["--target-name", "early"]);
        copy.wait_for("select pg_is_wal_replay_paused()", "t");
        assert_eq!(copy.psql("select count(*) from t"), "1000", "{name}");
        door.put(&key, whole.clone());
    }
}

/// The same across a fork, where the restore itself writes a segment, and over a crashed server's directory, whose WAL is
/// compared with what is stored.
#[test]
fn damaged_wal_stops_neither_a_fork_nor_a_repair() {
    let second = Store::local();
    let mut bed = bed(&second);
    bed.backup();
    bed.cluster.psql("begin; insert into t values (0); prepare transaction 'open'");
    bed.settle();
    let mut standby = bed.cluster.streaming_standby();
    standby.wait_replayed(&bed.cluster);
    bed.cluster.stop(Shutdown::Fast);
    bed.stop_daemon();
    standby.promote();
    let agent = walpoint_tests::agent::Agent::with(&standby, &bed.store).repository("second", &second);
    agent.archive_from(&standby);
    let daemon = agent.daemon();
    standby.set("archive_command", agent.archive_command());
    standby.reload();
    standby.psql("insert into t select generate_series(2001, 2500)");
    let last = standby.switch_wal();
    standby.wait_archived(&last);
    standby.psql("insert into t values (3000)");
    let (main, other) = (bed.back_door(), second.back_door());
    both_have_it(&main, &other);
    standby.crash();
    assert_eq!(daemon.stop(), 0);
    let name = standby.pgdata().file_name().unwrap().to_str().unwrap().to_owned();
    let before = bed.place("before");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
        assert!(copied.unwrap().success());
    };
    copy(standby.pgdata(), &before);
    for key in wal(&main).into_iter().filter(|key| key.contains("/00000002")) {
        let whole = main.get(&key).unwrap();
        for (how, bytes) in damages(&whole) {
            main.put(&key, bytes);
            let output = bed.try_restore("target", &[]);
            assert_eq!(output.status, 0, "{how} {key}: {output:#?}");
            std::fs::remove_dir_all(bed.place("target")).unwrap();
            let output = bed.try_restore(&name, &["--delta", "--server-is-down"]);
            assert_eq!(output.status, 0, "{how} {key}: {output:#?}");
            std::fs::remove_dir_all(standby.pgdata()).unwrap();
            copy(&before, standby.pgdata());
        }
        main.put(&key, whole);
    }
}
