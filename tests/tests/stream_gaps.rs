//! What was streamed of a segment that is never stored as a whole: it is recovered, the stream continues where an operator went on without
//! the segment, and confirms nothing that was dropped.

mod stream_bed;

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;
use std::{fs, thread};

use stream_bed::{disaster, major, set_modes, slices, streaming, streaming_with, wait_durable};
use walpoint_tests::archived::Archived;
use walpoint_tests::builder::ClusterBuilder;
use walpoint_tests::session::Session;
use walpoint_tests::wait;

const SOON: Duration = Duration::from_secs(60);

const WAITING: &str = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";

/// A cluster whose last finished segment was streamed up to a restore point ("within", 1,500 rows), and is damaged on its disk since, so
/// that it cannot be archived. Its name.
fn damaged_after_it_was_streamed(version: u32) -> (Archived, String) {
    let bed = streaming(major(version), "");
    bed.cluster.psql("create table t (n int, filler text)");
    bed.cluster.psql("insert into t select n, repeat('x', 80) from generate_series(1, 1000) n");
    bed.backup();
    bed.settle();
    bed.cluster.psql("insert into t select n, repeat('x', 80) from generate_series(1001, 1500) n");
    bed.cluster.psql("select pg_create_restore_point('within')");
    wait_durable(&bed.cluster);
    let segment = bed.cluster.current_segment();
    let file = fs::File::options().read(true).write(true).open(path(&bed, &segment)).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 20_000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 20_000).unwrap();
    assert_eq!(bed.cluster.switch_wal(), segment);
    (bed, segment)
}

fn path(bed: &Archived, segment: &str) -> PathBuf {
    bed.cluster.wal_dir().join(segment)
}

fn slices_of(bed: &Archived, segment: &str) -> Vec<String> {
    slices(bed).into_iter().filter(|key| key.contains(segment)).collect()
}

/// Restores to the restore point in that segment.
fn restores_what_was_streamed(bed: &Archived) {
    let restored =
        bed.restore_and_start("within", &["--target-name", "within", "--target-action", "promote"]);
    restored.wait_promoted();
    assert_eq!(restored.psql("select count(*), max(n) from t"), "1500|1500");
}

/// Promise 1: the next segment is stored before it, and takes nothing away from what was confirmed.
#[test]
fn what_was_streamed_of_a_segment_that_cannot_be_stored_is_recovered() {
    let (mut bed, segment) = damaged_after_it_was_streamed(17);
    bed.cluster.psql("insert into t select n, repeat('x', 80) from generate_series(1501, 2000) n");
    let next = bed.cluster.switch_wal();
    bed.cluster.switch_wal();
    wait::until_true(SOON, "the next segment is stored ahead of it", || {
        bed.back_door().list("clusters/main").iter().any(|key| key.ends_with(&next))
    });
    assert!(!slices_of(&bed, &segment).is_empty(), "{:?}", slices(&bed));
    disaster(&mut bed);
    let refused = bed.try_restore("latest", &[]).expect_status(1).stdout;
    assert!(refused.contains(&segment) && refused.contains("--target-lsn"), "{refused}");
    restores_what_was_streamed(&bed);
}

/// A12: an operator skips the segment, or archives it as it is: the stream goes on behind it, also that of the next daemon, and what was
/// streamed of the segment stays, because nothing else holds it.
#[test]
fn the_stream_continues_behind_a_segment_that_was_skipped_or_accepted() {
    for (version, flag) in
        [(13, "--skip"), (17, "--accept-damaged"), (19, "--skip"), (19, "--accept-damaged")]
    {
        let (mut bed, segment) = damaged_after_it_was_streamed(version);
        let says_damaged = || bed.daemon().log().contains("is damaged at");
        wait::until_true(SOON, "the segment is refused", says_damaged);
        let held = slices_of(&bed, &segment);
        assert!(!held.is_empty(), "{:?}", slices(&bed));
        bed.agent.run(&["push", flag, path(&bed, &segment).to_str().unwrap()]).expect_success();
        bed.cluster.psql("insert into t select n, repeat('x', 80) from generate_series(1501, 1600) n");
        wait_durable(&bed.cluster);
        bed.kill_daemon();
        bed.start_daemon();
        bed.cluster.psql("insert into t select n, repeat('x', 80) from generate_series(1601, 1700) n");
        wait_durable(&bed.cluster);
        bed.settle();
        assert_eq!(slices_of(&bed, &segment), held, "PostgreSQL {version} {flag}");
        bed.agent.run(&["backup"]).expect_success();
        wait::until_true(SOON * 2, "all is well behind the backup", || bed.agent.run(&["health"]).success());
        disaster(&mut bed);
        restores_what_was_streamed(&bed);
        let restored = bed.restore_and_start("latest", &["--target-action", "promote"]);
        restored.wait_promoted();
        assert_eq!(restored.psql("select count(*) from t"), "1700", "PostgreSQL {version} {flag}");
    }
}

/// A daemon that begins while the segment is damaged, and before an operator decides, continues as soon as one has.
#[test]
fn a_daemon_that_found_the_damage_continues_when_an_operator_decided() {
    let (mut bed, segment) = damaged_after_it_was_streamed(17);
    bed.kill_daemon();
    bed.start_daemon();
    wait::until_true(SOON, "the daemon finds it", || {
        bed.daemon().log().contains("its file of that segment is damaged")
    });
    let held = slices_of(&bed, &segment);
    bed.agent.run(&["push", "--accept-damaged", path(&bed, &segment).to_str().unwrap()]).expect_success();
    bed.cluster.psql("insert into t select n, repeat('x', 80) from generate_series(1501, 1600) n");
    wait_durable(&bed.cluster);
    assert_eq!(slices_of(&bed, &segment), held);
    disaster(&mut bed);
    restores_what_was_streamed(&bed);
}

/// A cluster whose commits wait for the stream and whose store is away: one waits, and its segment was dropped. `done`: what else has to be
/// so.
fn with_a_dropped_commit(builder: ClusterBuilder, done: impl Fn(&Archived) -> bool) -> (Archived, Session) {
    let builder = builder.conf("synchronous_standby_names", "walpoint");
    let bed = streaming_with(builder, "synchronous = true\n", |agent| {
        agent.cluster_line("queue_max = \"2MiB\"").cluster_line("push_timeout = \"2s\"")
    });
    bed.cluster.psql("create table t (n int)");
    bed.settle();
    set_modes(&clusters(&bed), 0o555);
    let mut session = bed.cluster.session();
    session.send("insert into t values (1) returning n");
    bed.cluster.wait_for(WAITING, "1");
    let segment = bed.cluster.current_segment();
    let waits = path(&bed, "archive_status").join(format!("{segment}.ready"));
    wait::until_true(SOON * 2, "its WAL is dropped", || {
        bed.cluster.psql(
            "select pg_logical_emit_message(false, 'x', repeat('y', 500000)) from generate_series(1, 4)",
        );
        bed.cluster.psql("checkpoint");
        bed.cluster.current_segment() != segment && !waits.exists() && done(&bed)
    });
    (bed, session)
}

fn clusters(bed: &Archived) -> PathBuf {
    bed.store.root().unwrap().join("clusters")
}

/// Promise 1: a commit that waits for the stream is not confirmed by a slot that begins behind it, if its WAL was dropped. A backup holds it.
#[test]
fn a_commit_whose_wal_was_dropped_is_confirmed_when_a_backup_holds_it() {
    let lost = "select count(*) from pg_replication_slots where wal_status = 'lost'";
    let builder = major(17).conf("max_slot_wal_keep_size", "1MB");
    let (bed, mut session) = with_a_dropped_commit(builder, |bed| bed.cluster.psql(lost) == "1");
    set_modes(&clusters(&bed), 0o755);
    let says = || bed.daemon().log().contains("commits in it may be waiting for the stream");
    wait::until_true(SOON, "the stream holds", says);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(bed.cluster.psql(WAITING), "1", "it is in no repository");
    let health = bed.agent.run(&["health"]);
    assert!(health.stderr.contains("Take a new backup"), "{health:#?}");
    bed.backup();
    assert_eq!(session.answer(), "1");
    bed.cluster.psql("insert into t values (2)");
    wait::until_true(SOON * 2, "all is well behind the backup", || bed.agent.run(&["health"]).success());
}

/// Promise 1: what was marked as archived and is nowhere, by another `archive_command` for example, is on no record. A slot that is made anew
/// confirms no commit in it.
#[test]
fn a_commit_whose_wal_was_never_archived_is_confirmed_when_a_backup_holds_it() {
    for version in [13, 18] {
        let builder = major(version).conf("max_slot_wal_keep_size", "1MB");
        let builder = builder.conf("synchronous_standby_names", "walpoint");
        let mut bed = streaming_with(builder, "synchronous = true\n", |agent| agent);
        bed.cluster.psql("create table t (n int)");
        bed.backup();
        bed.kill_daemon();
        bed.cluster.psql("alter system set archive_command = '/bin/true'");
        bed.cluster.psql("select pg_reload_conf()");
        let mut session = bed.cluster.session();
        session.send("insert into t values (1) returning n");
        bed.cluster.wait_for(WAITING, "1");
        let lost = "select count(*) from pg_replication_slots where wal_status = 'lost'";
        wait::until_true(SOON * 2, "the slot loses its WAL", || {
            bed.cluster.psql(
                "select pg_logical_emit_message(false, 'x', repeat('y', 500000)) from generate_series(1, 4)",
            );
            bed.cluster.psql("checkpoint");
            bed.cluster.psql(lost) == "1"
        });
        bed.cluster.psql("alter system reset archive_command");
        bed.cluster.psql("select pg_reload_conf()");
        bed.start_daemon();
        let says = || bed.daemon().log().contains("is not in repository");
        wait::until_true(SOON, "the stream holds", says);
        // Segments that are archived again are behind the gap.
        bed.cluster.psql("set synchronous_commit = local; insert into t values (2); select pg_switch_wal()");
        thread::sleep(Duration::from_secs(3));
        assert_eq!(bed.cluster.psql(WAITING), "1", "PostgreSQL {version}: it is in no repository");
        bed.kill_daemon();
        bed.start_daemon();
        thread::sleep(Duration::from_secs(3));
        assert_eq!(bed.cluster.psql(WAITING), "1", "PostgreSQL {version}: nor is it for the next daemon");
        bed.backup();
        assert_eq!(session.answer(), "1");
        drop(session);
        bed.cluster.psql("insert into t values (3)");
        disaster(&mut bed);
        let restored = bed.restore_and_start("latest", &["--target-action", "promote"]);
        restored.wait_promoted();
        assert_eq!(restored.psql("select count(*) from t"), "3", "PostgreSQL {version}");
    }
}

/// A12: where the slot kept what was dropped, the stream stores it, and it counts as dropped no more: the next daemon holds no commit.
#[test]
fn what_was_dropped_and_is_streamed_after_all_holds_no_commit_up() {
    let (mut bed, mut session) = with_a_dropped_commit(major(17), |_| true);
    set_modes(&clusters(&bed), 0o755);
    assert_eq!(session.answer(), "1");
    drop(session);
    bed.settle();
    bed.cluster.psql("insert into t values (2)");
    let status = || bed.agent.run(&["status"]).expect_success().stdout;
    wait::until_true(SOON, "nothing is dropped", || !status().contains("DROPPED"));
    bed.kill_daemon();
    bed.start_daemon();
    bed.cluster.psql("insert into t values (3)");
    bed.agent.run(&["verify"]).expect_success();
}
