//! The WAL stream: what the server has flushed of the open segment is stored within seconds, and a disaster costs no more.

mod stream_bed;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use stream_bed::{STREAM, disaster, major, set_modes, slices, streaming, wait_durable};
use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::store::Store;
use walpoint_tests::wait;

const SOON: Duration = Duration::from_secs(60);

fn rows(cluster: &Cluster) -> String {
    cluster.psql("select count(*) from t")
}

#[test]
fn the_open_segment_is_stored_in_slices_until_it_is_complete() {
    for version in [13, 15, 17, 19] {
        let mut bed = streaming(major(version), "");
        bed.cluster.psql("create table t as select generate_series(1, 100)");
        wait_durable(&bed.cluster);
        let open = bed.cluster.current_segment();
        assert!(
            slices(&bed).iter().any(|key| key.contains(&open)),
            "PostgreSQL {version}: {:?}",
            slices(&bed)
        );
        let applied = "select bool_and(replay_lsn is null) from pg_stat_replication";
        assert_eq!(bed.cluster.psql(applied), "t", "nothing is ever applied");
        let slot = "select active and restart_lsn is not null from pg_replication_slots where slot_name = 'walpoint'";
        assert_eq!(bed.cluster.psql(slot), "t");

        // An idle server costs nothing.
        bed.cluster.psql("checkpoint");
        thread::sleep(Duration::from_secs(3));
        let before = slices(&bed);
        thread::sleep(Duration::from_secs(3));
        assert_eq!(slices(&bed), before);

        // Another session continues behind what the first one stored, and the complete segment replaces both.
        bed.kill_daemon();
        bed.cluster.psql("insert into t select generate_series(1, 100)");
        bed.start_daemon();
        wait_durable(&bed.cluster);
        let both = slices(&bed);
        assert!(
            before.iter().all(|key| both.contains(key)) && both.len() > before.len(),
            "{before:?} {both:?}"
        );
        let segment = bed.cluster.switch_wal();
        bed.cluster.wait_archived(&segment);
        wait::until_true(SOON, "the slices of a complete segment are gone", || {
            slices(&bed).iter().all(|key| !key.contains(&segment))
        });
        bed.agent.run(&["health"]).expect_success();
        bed.agent.run(&["verify"]).expect_success();
    }
}

#[test]
fn nothing_is_streamed_unless_it_is_asked_for() {
    let bed = Archived::start_with(major(17).segment_size_mb(1), Store::local(), |mut agent| {
        agent.tables = "\n[cluster.main.stream]\nsynchronous = true\n".to_owned();
        agent
    });
    bed.cluster.psql("create table t as select generate_series(1, 100)");
    bed.settle();
    assert_eq!(bed.cluster.psql("select count(*) from pg_replication_slots"), "0");
    assert_eq!(slices(&bed), [""; 0]);
}

/// Server, daemon and data directory are lost under load: what was durable is there, and each kind of target leads to it.
#[test]
fn a_restore_reaches_the_last_slice() {
    for version in [13, 17, 19] {
        let mut bed = streaming(major(version), "");
        bed.cluster.psql("create table t as select generate_series(1, 1000)");
        bed.backup();
        bed.settle();
        bed.cluster.psql("insert into t select generate_series(1001, 2000)");
        let time = bed.cluster.psql("select pg_sleep(1.1) is null, clock_timestamp()");
        let time = time.trim().rsplit('|').next().unwrap().to_owned();
        let lsn = bed.cluster.psql("select pg_create_restore_point('before')");
        bed.cluster.psql("select pg_sleep(0.1)");
        let insert =
            "begin; insert into t select generate_series(2001, 3000); select pg_current_xact_id(); commit";
        let xid = bed.cluster.psql(insert);
        wait_durable(&bed.cluster);
        disaster(&mut bed);

        let plan = bed.agent.restore(&["plan"]).expect_success().stdout;
        let restored = bed.restore_and_start("latest", &["--target-action", "promote"]);
        restored.wait_promoted();
        assert_eq!(rows(&restored), "3000", "PostgreSQL {version}: {plan}");
        let targets: [&[&str]; 4] = [
            &["--target-time", &time],
            &["--target-name", "before"],
            &["--target-lsn", lsn.trim(), "--target-exclusive"],
            &["--target-xid", xid.trim(), "--target-exclusive"],
        ];
        for target in targets {
            let options = [target, &["--target-action", "promote"]].concat();
            let restored = bed.restore_and_start(target[0].trim_start_matches('-'), &options);
            restored.wait_promoted();
            assert_eq!(rows(&restored), "2000", "PostgreSQL {version}, {target:?}");
        }
    }
}

/// The server writes on while a copy is restored: recovery to the latest moment follows, though its plan ended in an earlier segment.
#[test]
fn a_recovery_goes_as_far_as_the_stream_is_by_then() {
    let bed = streaming(major(17), "");
    bed.cluster.psql("create table t as select generate_series(1, 1000)");
    bed.backup();
    bed.settle();
    bed.cluster.psql("insert into t select generate_series(1001, 2000)");
    wait_durable(&bed.cluster);
    let within = bed.restore("within", &["--target-action", "promote"]);
    let behind = bed.restore("behind", &["--target-action", "promote"]);
    // More of the segment in which the plans end.
    bed.cluster.psql("insert into t select generate_series(2001, 2500)");
    wait_durable(&bed.cluster);
    let restored = Cluster::start_restored(bed.cluster.dir(), 17, within);
    restored.wait_promoted();
    assert_eq!(rows(&restored), "2500");
    bed.settle();
    bed.cluster.psql("insert into t select generate_series(2501, 3000)");
    wait_durable(&bed.cluster);
    let restored = Cluster::start_restored(bed.cluster.dir(), 17, behind);
    restored.wait_promoted();
    assert_eq!(rows(&restored), "3000");
    let status = bed.agent.run(&["status"]).expect_success().stdout;
    assert!(status.contains("all WAL up to"), "{status}");
}

/// The server writes on all the time: the latest moment is the one at which recovery asks, and what comes later is no reason against it.
#[test]
fn a_recovery_ends_although_its_source_writes_on() {
    let bed = streaming(major(17).conf("synchronous_standby_names", "walpoint"), "synchronous = true\n");
    bed.cluster.wait_for("select count(*) from pg_stat_replication where sync_state = 'sync'", "1");
    bed.cluster.psql("create table t (n int)");
    bed.backup();
    let (over, begin) = (AtomicBool::new(false), Instant::now());
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) && begin.elapsed() < SOON {
                bed.cluster.psql("insert into t values (1)");
            }
        });
        thread::sleep(Duration::from_secs(2));
        let before: u64 = rows(&bed.cluster).trim().parse().unwrap();
        let restored = bed.restore_and_start("latest", &["--target-action", "promote"]);
        restored.wait_promoted();
        let written = rows(&bed.cluster);
        bed.cluster.wait_for(&format!("select count(*) > {} from t", written.trim()), "t");
        over.store(true, Ordering::Relaxed);
        let after: u64 = rows(&restored).trim().parse().unwrap();
        assert!(before > 0 && after >= before, "{before} {after}");
    });
}

/// A daemon that is killed may have stored a slice and not the one before it; another one may be damaged. Nothing behind either is
/// confirmed or read, and what lies before it is recovered.
#[test]
fn what_lies_before_a_slice_that_is_missing_or_damaged_is_recovered() {
    let mut bed = streaming(major(17), "");
    bed.cluster.psql("create table t as select generate_series(1, 1000)");
    bed.backup();
    bed.settle();
    bed.cluster.psql("insert into t select generate_series(1001, 1100)");
    bed.cluster.psql("select pg_create_restore_point('before')");
    wait_durable(&bed.cluster);
    bed.cluster.psql("insert into t select generate_series(1101, 1200)");
    wait_durable(&bed.cluster);
    disaster(&mut bed);
    let (stored, store) = (slices(&bed), bed.back_door());
    let (first, last) = (stored.first().unwrap(), stored.last().unwrap());
    assert_ne!(first, last, "{stored:?}");

    store.flip_bit(last, 120);
    let refused = bed.try_restore("damaged", &[]).expect_status(1).stderr;
    assert!(refused.contains(last.rsplit('/').next().unwrap()), "{refused}");
    let restored = bed.restore_and_start("named", &["--target-name", "before", "--target-action", "promote"]);
    restored.wait_promoted();
    assert_eq!(rows(&restored), "1100");
    store.flip_bit(last, 120);

    store.delete(first);
    let plan = bed.agent.restore(&["plan"]).expect_success().stdout;
    let restored = bed.restore_and_start("orphans", &["--target-action", "promote"]);
    restored.wait_promoted();
    assert_eq!(rows(&restored), "1000", "{plan}");
}

/// While nothing can be stored, signs of life are answered; a server that is stopped does not wait, and the stream continues when both
/// are back.
#[test]
fn a_fast_shutdown_does_not_wait_for_a_store_that_is_away() {
    let mut bed = streaming(major(17).conf("wal_sender_timeout", "2s"), "");
    bed.cluster.psql("create table t as select generate_series(1, 1000)");
    wait_durable(&bed.cluster);
    let session = || bed.cluster.psql("select pid from pg_stat_replication");
    let before = session();
    let clusters = bed.store.root().unwrap().join("clusters");
    set_modes(&clusters, 0o555);
    bed.cluster.psql("insert into t select generate_series(1001, 2000)");
    thread::sleep(Duration::from_secs(6));
    assert_eq!(session(), before, "signs of life are answered while nothing can be stored");
    let health = bed.agent.run(&["health"]);
    assert!(health.stdout.contains("WAL stream") || health.stderr.contains("WAL stream"), "{health:#?}");
    let begun = Instant::now();
    bed.cluster.stop(Shutdown::Fast);
    assert!(begun.elapsed() < Duration::from_secs(50), "{:?}", begun.elapsed());
    let log = bed.daemon().log();
    assert!(log.contains("the server is shutting down and waits for the stream"), "{log}");
    set_modes(&clusters, 0o755);
    bed.cluster.start();
    bed.cluster.psql("insert into t select generate_series(2001, 3000)");
    wait_durable(&bed.cluster);
    wait::until_true(SOON, "the stream is well", || bed.agent.run(&["health"]).success());
}

/// A slot whose WAL the server has removed is made anew, and what was archived meanwhile is not missing.
#[test]
fn a_slot_that_lost_its_wal_is_made_anew() {
    let mut bed = streaming(major(17).conf("max_slot_wal_keep_size", "1MB"), "");
    bed.cluster.psql("create table t as select generate_series(1, 1000)");
    bed.backup();
    wait_durable(&bed.cluster);
    bed.kill_daemon();
    for _ in 0..5 {
        bed.cluster.fill_wal_mb(3);
        bed.settle();
        bed.cluster.psql("checkpoint");
    }
    bed.cluster.wait_for("select wal_status from pg_replication_slots", "lost");
    bed.start_daemon();
    bed.cluster.psql("insert into t select generate_series(1001, 2000)");
    wait_durable(&bed.cluster);
    disaster(&mut bed);
    let restored = bed.restore_and_start("latest", &["--target-action", "promote"]);
    restored.wait_promoted();
    assert_eq!(rows(&restored), "2000");
}

/// A standby that streams is promoted: the stream follows the new timeline, whose history is stored before its slices.
#[test]
fn the_stream_follows_a_promotion() {
    for version in [13, 18] {
        let mut bed = streaming(major(version), "");
        bed.cluster.psql("create table t as select generate_series(1, 1000)");
        bed.backup();
        bed.settle();
        let mut standby = bed.cluster.standby();
        let mut agent = Agent::with(&standby, &bed.store);
        agent.tables = format!("{STREAM}on_standby = true\n");
        agent.archive_from(&standby);
        standby.start();
        standby.wait_replayed(&bed.cluster);
        let daemon = agent.daemon();
        wait::until_true(SOON, "the standby's WAL is streamed", || daemon.log().contains("streaming WAL"));
        bed.cluster.psql("insert into t select generate_series(1001, 2000)");
        standby.wait_replayed(&bed.cluster);
        disaster(&mut bed);
        standby.promote();
        standby.wait_promoted();
        standby.psql("insert into t select generate_series(2001, 3000)");
        wait_durable(&standby);
        let of_two: Vec<String> = slices(&bed).into_iter().filter(|key| key.contains("/00000002")).collect();
        assert!(!of_two.is_empty(), "PostgreSQL {version}: {:?}\n{}", slices(&bed), daemon.log());
        standby.crash();
        daemon.kill();
        let restored = bed.restore_and_start("latest", &["--target-action", "promote"]);
        restored.wait_promoted();
        assert_eq!(rows(&restored), "3000", "PostgreSQL {version}");
    }
}

/// The primary commits for a moment longer than its standby receives: what was confirmed then is on its own timeline, behind the fork.
#[test]
fn an_old_timeline_has_its_confirmed_commits_after_a_failover() {
    let builder = major(17).conf("synchronous_standby_names", "walpoint");
    let mut bed = streaming(builder, "synchronous = true\n");
    bed.cluster.wait_for("select count(*) from pg_stat_replication where sync_state = 'sync'", "1");
    bed.cluster.psql("create table t as select generate_series(1, 1000)");
    bed.backup();
    let mut standby = bed.cluster.standby();
    standby.set("synchronous_standby_names", "");
    let agent = Agent::with(&standby, &bed.store);
    agent.archive_from(&standby);
    standby.start();
    let _daemon = agent.daemon();
    bed.settle();
    bed.cluster.psql("insert into t select generate_series(1001, 2000)");
    standby.wait_replayed(&bed.cluster);
    standby.set("primary_conninfo", "");
    standby.reload();
    standby.wait_for("select count(*) from pg_stat_wal_receiver", "0");
    let received = bed.cluster.psql("select pg_current_wal_lsn()");
    bed.cluster.psql("insert into t select generate_series(2001, 3000)");
    disaster(&mut bed);
    standby.promote();
    standby.psql("insert into t select generate_series(5001, 5500)");
    let first = standby.switch_wal();
    standby.wait_done(&first);
    assert!(first.starts_with("00000002") && slices(&bed).iter().any(|key| key.contains("/00000001")));

    let list = bed.agent.restore(&["list", "--json"]).expect_success().stdout;
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let until = &list["repositories"][0]["windows"][0]["until_lsn"];
    let goes_on = format!("select '{}'::pg_lsn > '{}'", until.as_str().unwrap(), received.trim());
    assert_eq!(standby.psql(&goes_on), "t", "{list:#}");
    for (name, timeline, expected) in [("old", "1", "3000"), ("new", "latest", "2500")] {
        let options = ["--target-timeline", timeline, "--target-action", "promote"];
        let restored = bed.restore_and_start(name, &options);
        restored.wait_promoted();
        assert_eq!(rows(&restored), expected, "timeline {timeline}");
    }
}
