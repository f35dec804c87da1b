//! Promise 12, for the stream: a server that was reset to an earlier state, or is a copy, is confirmed nothing in a segment of which other
//! WAL is stored.

mod stream_bed;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{fs, thread};

use stream_bed::{major, slices, streaming, wait_durable};
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Shutdown;
use walpoint_tests::wait;

const SOON: Duration = Duration::from_secs(90);

const WAITING: &str = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";

/// A cluster whose commits wait for the stream, with a copy of its data directory ([`before`]) of the time when it had 10 rows. `whole`: since
/// then it has finished the segment that comes next, or else written of it. 20 rows are stored.
fn ahead_of_a_copy(whole: bool) -> (Archived, String) {
    let builder = major(17).conf("synchronous_standby_names", "walpoint");
    let mut bed = streaming(builder, "synchronous = true\n");
    bed.cluster.psql("create table t as select generate_series(1, 10) as n");
    bed.backup();
    bed.settle();
    bed.stop_daemon();
    bed.cluster.stop(Shutdown::Fast);
    copy(bed.cluster.pgdata(), &before(&bed));
    bed.cluster.start();
    bed.start_daemon();
    bed.cluster.psql("insert into t select generate_series(11, 20)");
    wait_durable(&bed.cluster);
    let segment = bed.cluster.current_segment();
    if whole {
        assert_eq!(bed.cluster.switch_wal(), segment);
        bed.cluster.wait_archived(&segment);
        wait::until_true(SOON, "its slices are gone", || {
            slices(&bed).iter().all(|key| !key.contains(&segment))
        });
    } else {
        assert!(slices(&bed).iter().any(|key| key.contains(&segment)), "{:?}", slices(&bed));
    }
    (bed, segment)
}

/// Where the copy of the data directory lies.
fn before(bed: &Archived) -> PathBuf {
    bed.cluster.pgdata().with_file_name("before")
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// It is confirmed nothing, the daemon says why, and what was stored before is what a restore brings back.
#[test]
fn a_server_that_was_reset_is_confirmed_nothing_in_a_segment_that_is_stored() {
    for whole in [true, false] {
        let (mut bed, segment) = ahead_of_a_copy(whole);
        bed.cluster.crash();
        bed.kill_daemon();
        fs::remove_dir_all(bed.cluster.pgdata()).unwrap();
        copy(&before(&bed), bed.cluster.pgdata());
        bed.cluster.start();
        bed.start_daemon();
        let mut session = bed.cluster.session();
        session.send("insert into t select generate_series(101, 200) returning n");
        bed.cluster.wait_for(WAITING, "1");
        let health = || bed.agent.run(&["health"]).stderr;
        wait::until_true(SOON, "the daemon says so", || {
            let says = health();
            says.contains(&segment)
                && (says.contains("another server wrote it") || says.contains("split brain"))
        });
        thread::sleep(Duration::from_secs(2));
        assert_eq!(bed.cluster.psql(WAITING), "1", "whole: {whole}");
        drop(session);
        bed.cluster.crash();
        bed.kill_daemon();
        let restored = bed.restore_and_start("latest", &["--target-action", "promote"]);
        restored.wait_promoted();
        assert_eq!(restored.psql("select count(*), max(n) from t"), "20|20", "whole: {whole}");
    }
}

/// A server that was killed streams from an older segment on: what it stored of the open one is its own, and goes when that is whole.
#[test]
fn what_a_server_stored_of_a_later_segment_before_a_crash_is_its_own() {
    let mut bed = streaming(major(17), "");
    bed.cluster.psql("create table t as select generate_series(1, 1000) as n");
    bed.backup();
    bed.settle();
    bed.cluster.psql("checkpoint");
    for rows in ["1001, 2000", "2001, 3000"] {
        bed.settle();
        bed.cluster.psql(&format!("insert into t select generate_series({rows})"));
        wait_durable(&bed.cluster);
    }
    let segment = bed.cluster.current_segment();
    let held = slices(&bed);
    assert!(held.iter().any(|key| key.contains(&segment)), "{held:?}");
    bed.cluster.crash();
    bed.kill_daemon();
    bed.cluster.start();
    bed.start_daemon();
    bed.cluster.psql("insert into t select generate_series(3001, 4000)");
    wait_durable(&bed.cluster);
    let last = bed.cluster.switch_wal();
    bed.cluster.wait_archived(&last);
    wait::until_true(SOON, "slices of whole segments are gone", || {
        slices(&bed).iter().all(|key| !key.contains(&segment) && !key.contains(&last))
    });
    wait::until_true(SOON, "all is well", || bed.agent.run(&["health"]).success());
}

/// The daemon dies, and PostgreSQL archives the segment without it: the next daemon deletes the slices that the whole segment holds, and no
/// other.
#[test]
fn slices_that_a_killed_daemon_left_beside_a_whole_segment_are_deleted() {
    let mut bed = streaming(major(17), "");
    bed.cluster.psql("create table t as select generate_series(1, 1000) as n");
    bed.backup();
    bed.settle();
    bed.cluster.psql("insert into t select generate_series(1001, 2000)");
    wait_durable(&bed.cluster);
    let segment = bed.cluster.current_segment();
    bed.kill_daemon();
    assert_eq!(bed.cluster.switch_wal(), segment);
    bed.cluster.wait_archived(&segment);
    let left = |bed: &Archived| slices(bed).into_iter().filter(|key| key.contains(&segment)).count();
    assert!(left(&bed) > 0);
    bed.start_daemon();
    bed.cluster.psql("insert into t select generate_series(2001, 3000)");
    wait_durable(&bed.cluster);
    wait::until_true(SOON, "they are gone", || left(&bed) == 0);
    wait::until_true(SOON, "all is well", || bed.agent.run(&["health"]).success());
}
