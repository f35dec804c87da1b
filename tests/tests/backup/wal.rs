//! B6: no backup is announced before its WAL is stored, and what keeps the WAL away is named.

use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::store::Store;

use crate::bed::Bed;

/// B6: archiving fails from the backup's start on: the missing segment and the archiver's state are named, and there is no
/// backup, however complete its data.
#[test]
fn a_stalled_archive_is_named_with_the_missing_segment() {
    let bed = Bed::new(Cluster::builder(), Store::local(), |agent| {
        agent.cluster_line("backup_wal_timeout = \"4s\"")
    });
    bed.cluster.psql("create table t (i int)");
    let archived = bed.cluster.switch_wal();
    bed.cluster.wait_archived(&archived);
    let flag = bed.agent.place().join("stall");
    std::fs::write(&flag, "").unwrap();
    let command = format!("test ! -e {} && {}", flag.display(), bed.agent.archive_command());
    bed.cluster.set("archive_command", command);
    bed.cluster.reload();
    bed.cluster.wait_for("select current_setting('archive_command') like 'test%'", "t");
    // The look-ahead of a daemon would store the segment all the same, whatever archive_command answers.
    bed.daemon.process.signal(rustix::process::Signal::STOP);

    let output = bed.agent.run(&["backup"]).expect_status(1);
    bed.daemon.process.signal(rustix::process::Signal::CONT);
    let next: u64 = u64::from_str_radix(&archived[8..], 16).unwrap() + 1;
    let text = &output.stderr;
    assert!(text.contains("no backup was taken") && text.contains("not in repository main"), "{text}");
    assert!(text.contains(&format!("{next:016X}")), "the missing segment: {text}");
    assert!(text.contains("waits in pg_wal") && text.contains("archive_command = 'test ! -e"), "{text}");
    assert!(text.contains("the archiver fails"), "{text}");
    assert_eq!(bed.repository().finished(), []);

    // Now the archiver fails before a backup begins: nothing is begun at all.
    let unfinished = bed.repository().list().len();
    bed.daemon.process.signal(rustix::process::Signal::STOP);
    let output = bed.agent.run(&["backup"]).expect_status(1);
    bed.daemon.process.signal(rustix::process::Signal::CONT);
    assert!(output.stderr.contains("no backup was started"), "{}", output.stderr);
    assert!(output.stderr.contains("the archiver fails"), "{}", output.stderr);
    assert_eq!(bed.repository().list().len(), unfinished);

    std::fs::remove_file(&flag).unwrap();
    bed.cluster.set("archive_command", bed.agent.archive_command());
    bed.cluster.reload();
    bed.cluster.wait_for("select pg_stat_get_archiver() is not null and (select last_archived_time > last_failed_time from pg_stat_archiver)", "t");
    bed.backup(&[]);
}

/// B6: an archive_command that stores somewhere else is found out before the backup begins.
#[test]
fn an_archive_that_goes_elsewhere_is_found_out() {
    let bed = Bed::new(Cluster::builder(), Store::local(), |agent| {
        agent.cluster_line("backup_wal_timeout = \"3s\"").cluster_line("look_ahead = 0")
    });
    bed.cluster.set("archive_command", "/bin/true");
    bed.cluster.reload();
    let segment = bed.cluster.switch_wal();
    bed.cluster.wait_done(&segment);
    let output = bed.agent.run(&["backup"]).expect_status(1);
    let text = &output.stderr;
    assert!(text.contains("no backup was started") && text.contains("did not arrive"), "{text}");
    assert!(text.contains("somewhere else") && text.contains("/bin/true"), "{text}");
    assert!(bed.repository().list().is_empty());
}

/// B6: settings that archive nothing are told with what to do, before anything is begun.
#[test]
fn settings_that_archive_nothing_are_told() {
    let mut cluster = Cluster::builder().init();
    let store = Store::local();
    let agent = walpoint_tests::agent::Agent::with(&cluster, &store);
    agent.init(&[]).expect_success();
    cluster.start();
    let output = agent.run(&["backup"]).expect_status(1);
    assert!(
        output.stderr.contains("archive_mode is off") && output.stderr.contains("alter system"),
        "{}",
        output.stderr
    );
    cluster.stop(Shutdown::Fast);
    let output = agent.run(&["backup"]).expect_status(1);
    assert!(output.stderr.contains("connection"), "{}", output.stderr);
}

/// B2, B6: from a standby. Nobody switches a segment for it, so the backup waits until the primary has archived its end.
#[test]
fn a_backup_from_a_standby() {
    let bed = Bed::local(Cluster::builder());
    bed.cluster.psql("create table t as select generate_series(1, 1000) i");
    let standby = bed.cluster.streaming_standby();
    standby.wait_replayed(&bed.cluster);
    let agent = walpoint_tests::agent::Agent::with(&standby, &bed.store);
    let mut command = agent.command("archive-agent", ["backup", "--json"]);
    let log = agent.place().join("backup.log");
    let mut backup = walpoint_tests::process::Background::start(&mut command, &log);
    bed.let_standby_end(&mut backup);
    let id = bed.repository().finished()[0];
    let facts = bed.repository().open(&id.to_string()).manifest().summary.facts.clone();
    assert!(facts.from_standby);
    let source = walpoint_tests::oracle::Contents::of(&bed.cluster);
    let segment = bed.cluster.switch_wal();
    bed.cluster.wait_archived(&segment);
    source.assert_equal(&walpoint_tests::oracle::Contents::of(&bed.recover(&id.to_string())));
}

/// Restores a backup as it was when it ended, and starts a server there.
fn at_its_end(bed: &Bed, id: &str, action: &str) -> Cluster {
    let target = bed.cluster.dir().join(format!("{action}-{id}"));
    let place = target.display().to_string();
    let end = ["--target-immediate", "--target-action", action, "--pgdata", &place];
    bed.agent.restore(&[&["restore", "--backup", id][..], &end].concat()).expect_success();
    Cluster::start_restored(bed.cluster.dir(), bed.cluster.major(), target)
}

/// B2, R1: the last record that a standby replayed is a segment switch, so its backup ends where the segment does. No record behind that
/// end is there, and recovery to it needs none.
#[test]
fn a_standbys_backup_that_ends_with_a_segment_can_be_restored_as_it_ended() {
    let bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.psql("create table t as select generate_series(1, 1000) i");
    let standby = bed.cluster.streaming_standby();
    let agent =
        walpoint_tests::agent::Agent::with(&standby, &bed.store).cluster_line("backup_wal_timeout = \"5s\"");
    // Now and then the primary writes by itself before the backup ends.
    let ended = (1..=5).find_map(|_| {
        bed.cluster.psql("checkpoint");
        bed.cluster.psql("insert into t values (5)");
        let segment = bed.cluster.switch_wal();
        bed.cluster.wait_archived(&segment);
        standby.wait_replayed(&bed.cluster);
        standby.psql("checkpoint");
        let rows = standby.psql("select count(*) from t");
        if agent.run(&["backup"]).status != 0 {
            return None;
        }
        let id = *bed.repository().finished().last().unwrap();
        let facts = bed.repository().open(&id.to_string()).manifest().summary.facts.clone();
        facts.stop_lsn.0.is_multiple_of(facts.wal_segment_size).then_some((id.to_string(), rows))
    });
    let (id, rows) = ended.expect("a backup that ends with a segment");
    let paused = at_its_end(&bed, &id, "pause");
    paused.wait_for("select pg_is_in_recovery() and pg_is_wal_replay_paused()", "t");
    assert_eq!(paused.psql("select count(*) from t"), rows);
    let promoted = at_its_end(&bed, &id, "promote");
    promoted.wait_for("select pg_is_in_recovery()", "f");
    assert_eq!(promoted.psql("select count(*) from t"), rows);
}

/// B2: the primary dies before the segment with the end of a standby's backup is full, and the standby is promoted: the new timeline's
/// copy of that segment is what the backup waits for.
#[test]
fn a_promotion_finishes_what_a_standbys_backup_waits_for() {
    promoted_while_it_waits(false);
}

/// B2: the same where the standby's data directory is not visible: the server says that it was promoted.
#[test]
fn a_promotion_finishes_what_the_backup_of_an_unseen_standby_waits_for() {
    promoted_while_it_waits(true);
}

fn promoted_while_it_waits(unseen: bool) {
    let mut bed = Bed::local(Cluster::builder());
    bed.cluster.psql("create table t as select generate_series(1, 1000) i");
    let mut standby = bed.cluster.standby();
    let agent = walpoint_tests::agent::Agent::with(&standby, &bed.store);
    agent.archive_from(&standby);
    standby.start();
    // The backup ends within a segment that the primary still writes.
    bed.cluster.psql("insert into t select generate_series(1, 500)");
    standby.wait_replayed(&bed.cluster);
    // It notes how far it has replayed, and there the backup ends.
    standby.psql("checkpoint");
    let _daemon = agent.daemon();
    let nowhere = bed.cluster.dir().join("of another machine");
    let from = match unseen {
        true => walpoint_tests::agent::Agent::at(bed.cluster.dir(), &nowhere, &standby.conninfo())
            .repository("main", &bed.store),
        false => walpoint_tests::agent::Agent::with(&standby, &bed.store),
    };
    let mut command = from.command("archive-agent", ["backup", "--json"]);
    let log = from.place().join("backup.log");
    let mut backup = walpoint_tests::process::Background::start(&mut command, &log);
    walpoint_tests::wait::until_true(std::time::Duration::from_secs(60), "the backup waits", || {
        backup.log().contains("waiting: the backup needs WAL")
    });
    bed.cluster.crash();
    standby.promote();
    standby.psql("insert into t values (7)");
    standby.switch_wal();
    assert_eq!(backup.wait(std::time::Duration::from_secs(60)), 0, "{}", backup.log());
    let told = agent.run(&["verify"]).expect_success();
    assert!(!agent.run(&["status"]).expect_success().stdout.contains("DAMAGED"), "{told:?}");
    let id = bed.repository().finished()[0];
    assert_eq!(bed.restore(&id.to_string()).psql("select count(*) from t"), "1501");
    // Its own timeline has no record behind its end.
    let ended = at_its_end(&bed, &id.to_string(), "promote");
    ended.wait_for("select pg_is_in_recovery()", "f");
    assert_eq!(ended.psql("select count(*) from t"), "1500");
}

/// B6: a server that was promoted while it did not archive has never stored its timeline's history. Without it no recovery
/// begins, so the backup brings it along.
#[test]
fn the_history_of_a_timeline_that_began_unarchived_is_stored() {
    let mut bed = Bed::local(Cluster::builder());
    bed.cluster.psql("create table t as select generate_series(1, 1000) i");
    let mut promoted = bed.cluster.standby();
    promoted.set("archive_mode", "off");
    promoted.start();
    promoted.wait_replayed(&bed.cluster);
    bed.cluster.stop(Shutdown::Fast);
    promoted.promote();
    promoted.stop(Shutdown::Fast);
    let agent = walpoint_tests::agent::Agent::with(&promoted, &bed.store);
    agent.archive_from(&promoted);
    promoted.set("archive_mode", "on");
    let history =
        || bed.store.back_door().list("clusters/main").iter().any(|key| key.ends_with("/00000002.history"));
    assert!(!history());
    promoted.start();
    // It or the backup, whichever stores something of the timeline first.
    let _daemon = agent.daemon();
    let output = agent.run(&["backup"]).expect_success();
    assert!(history(), "{}", output.stderr);
    promoted.psql("insert into t values (7)");
    let source = walpoint_tests::oracle::Contents::of(&promoted);
    let segment = promoted.switch_wal();
    promoted.wait_archived(&segment);
    let id = bed.repository().finished()[0];
    source.assert_equal(&walpoint_tests::oracle::Contents::of(&bed.recover(&id.to_string())));
}

/// B6: the history of a timeline whose WAL does not arrive is not stored either: nothing has proven that this archive is the server's.
#[test]
fn a_backup_whose_wal_does_not_arrive_stores_no_history() {
    let bed = Bed::local(Cluster::builder());
    let mut promoted = bed.cluster.standby();
    promoted.set("archive_command", "/bin/true");
    promoted.start();
    promoted.wait_replayed(&bed.cluster);
    promoted.promote();
    let standby = promoted.streaming_standby();
    standby.wait_replayed(&promoted);
    let agent =
        walpoint_tests::agent::Agent::with(&standby, &bed.store).cluster_line("backup_wal_timeout = \"4s\"");
    let output = agent.run(&["backup"]).expect_status(1);
    assert!(output.stderr.contains("not in repository main"), "{}", output.stderr);
    let keys = bed.store.back_door().list("clusters/main");
    assert!(!keys.iter().any(|key| key.contains("/00000002.history")), "{keys:#?}");
}
