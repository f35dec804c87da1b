//! Recovery that ends near a fork: on the timeline on which it stops, through a segment that only a `.partial` or a younger
//! timeline's first segment holds, and over histories whose switch points decrease.

mod failover;
mod standbys;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use walpoint_tests::agent::{Agent, Daemon};
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::rows::{Ledger, Mark};
use walpoint_tests::store::Store;
use walpoint_tests::{testbed, wait};

/// Left open, it makes the end of a recovery in its segment read that segment once more.
const PREPARE: &str =
    "create table prepared (n int); begin; insert into prepared values (1); prepare transaction 'open'";

fn bed(major: u32) -> (Archived, Ledger) {
    let builder = Cluster::builder().major(major).segment_size_mb(1);
    // What stays uncertain ends a recovery soon.
    let bed =
        Archived::start_with(builder, Store::local(), |agent| agent.cluster_line("fetch_timeout = \"10s\""));
    let ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    bed.settle();
    (bed, ledger)
}

/// The cluster dies, and what takes its place is restored to a target. `setting`: a line that somebody adds.
pub(crate) fn lose_and_restore(bed: &mut Archived, lost: &str, target: &[&str], setting: Option<&str>) {
    bed.settle();
    bed.cluster.crash();
    let pgdata = bed.cluster.pgdata().to_owned();
    fs::rename(&pgdata, bed.place(lost)).unwrap();
    let options = [target, &["--target-action", "promote", "--resume-archiving"]].concat();
    bed.restore(pgdata.file_name().unwrap().to_str().unwrap(), &options);
    if let Some(setting) = setting {
        let path = pgdata.join("postgresql.auto.conf");
        let mut settings = fs::OpenOptions::new().append(true).open(path).unwrap();
        writeln!(settings, "{setting}").unwrap();
    }
    bed.cluster.start();
    bed.cluster.wait_promoted();
}

#[track_caller]
fn plan(bed: &Archived, options: &[&str]) -> Value {
    let output = bed.agent.restore(&[&["--json", "plan"], options].concat());
    serde_json::from_str(&output.expect_success().stdout).unwrap()
}

#[track_caller]
fn refused(bed: &Archived, options: &[&str]) -> Value {
    let output = bed.agent.restore(&[&["--json", "plan"], options].concat());
    serde_json::from_str(&output.expect_status(1).stdout).unwrap()
}

/// The timelines that a server's history names, oldest first.
fn ancestors(server: &Cluster) -> Vec<u32> {
    let name = format!("{:08X}.history", server.timeline());
    let content = fs::read_to_string(server.wal_dir().join(name)).unwrap();
    let lines = content.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| line.split('\t').next().unwrap().parse().unwrap()).collect()
}

/// Restored and promoted there; the timelines of the new history, and the rows.
#[track_caller]
fn recovered(bed: &Archived, ledger: &Ledger, options: &[&str]) -> (Vec<u32>, String) {
    let server = bed.restore_and_start("again", &[options, &["--target-action", "promote"]].concat());
    server.wait_promoted();
    assert_eq!(server.psql("select gid from pg_prepared_xacts"), "open", "{options:?}");
    let found = (ancestors(&server), ledger.labels(&server));
    drop(server);
    fs::remove_dir_all(bed.place("again")).unwrap();
    found
}

/// Promise 3, 12: a timeline begins exactly between two segments. What lies on either side is recovered, and its archive takes it for
/// the same server's.
#[test]
fn recovery_passes_a_fork_between_two_segments() {
    let (mut bed, mut ledger) = bed(17);
    bed.cluster.psql(PREPARE);
    ledger.append_as(&bed.cluster, "a1");
    lose_and_restore(&mut bed, "lost", &[], None);
    let history = fs::read_to_string(bed.cluster.wal_dir().join("00000002.history")).unwrap();
    assert!(history.split('\t').nth(1).unwrap().ends_with("00000"), "not on a boundary: {history}");
    let first = ledger.append_as(&bed.cluster, "b1").xid.to_string();
    ledger.append_as(&bed.cluster, "b2");
    bed.settle();
    assert!(!bed.daemon().log().contains("split brain"), "{}", bed.daemon().log());
    for (options, path, rows) in [
        (&[][..], vec![1, 2], "a1 b1 b2"),
        (&["--target-xid", &first], vec![1, 2], "a1 b1"),
        (&["--target-timeline", "1"], vec![1], "a1"),
    ] {
        assert_eq!(recovered(&bed, &ledger, options), (path, rows.to_owned()), "{options:?}");
    }
}

/// Promise 3, 12: recovery to a moment before an earlier fork follows the timeline on which it stops.
#[track_caller]
fn a_second_recovery_follows_the_timeline_it_stops_on(major: u32) {
    let (mut bed, mut ledger) = bed(major);
    bed.cluster.psql(PREPARE);
    let first = ledger.append_as(&bed.cluster, "a1").xid.to_string();
    let second = ledger.append_as(&bed.cluster, "a2").xid.to_string();
    lose_and_restore(&mut bed, "lost1", &["--target-xid", &second], None);
    ledger.append_as(&bed.cluster, "b1");
    assert_eq!(plan(&bed, &["--target-xid", &first])["timeline"], 1);
    lose_and_restore(&mut bed, "lost2", &["--target-xid", &first], None);
    assert_eq!(ancestors(&bed.cluster), [1], "PostgreSQL {major}");
    assert_eq!(bed.cluster.psql("select gid from pg_prepared_xacts"), "open");
    ledger.append_as(&bed.cluster, "c1");
    bed.settle();
    // On the way past the fork PostgreSQL reads the prepared transaction once more, under the old timeline's name.
    assert_eq!(recovered(&bed, &ledger, &[]), (vec![1, 3], "a1 c1".to_owned()), "PostgreSQL {major}");
}

#[test]
fn a_second_recovery_to_before_a_fork_follows_the_timeline_it_stops_on() {
    a_second_recovery_follows_the_timeline_it_stops_on(17);
}

#[test]
fn second_recoveries_of_other_versions_follow_the_timeline_they_stop_on() {
    for major in [15, 16, 18, 19] {
        a_second_recovery_follows_the_timeline_it_stops_on(major);
    }
}

/// Promise 3: PostgreSQL accepts a history whose switch points decrease, so it is archived, and planned with.
#[test]
fn a_history_with_decreasing_switch_points_is_archived_and_recovered_along() {
    let (mut bed, mut ledger) = bed(17);
    let first = ledger.append_as(&bed.cluster, "a1").xid.to_string();
    let second = ledger.append_as(&bed.cluster, "a2").xid.to_string();
    lose_and_restore(&mut bed, "lost1", &["--target-xid", &second], None);
    ledger.append_as(&bed.cluster, "b1");
    bed.settle();
    let follows = Some("recovery_target_timeline = '2'");
    lose_and_restore(&mut bed, "lost2", &["--target-xid", &first], follows);
    assert_eq!(ancestors(&bed.cluster), [1, 2], "timeline 2 is passed through");
    bed.cluster.psql(PREPARE);
    let c1 = ledger.append_as(&bed.cluster, "c1").xid.to_string();
    bed.settle();
    let path = &plan(&bed, &[])["path"];
    let timelines: Vec<&Value> = path.as_array().unwrap().iter().map(|step| &step["timeline"]).collect();
    assert_eq!(timelines, [1, 3], "{path:#}");
    for options in [&[][..], &["--target-xid", &c1]] {
        assert_eq!(recovered(&bed, &ledger, options), (vec![1, 2, 3], "a1 c1".to_owned()));
    }
    bed.agent.run(&["verify"]).expect_success();
}

/// A failover by crash: the fork's segment is on timeline 1 only as `.partial`.
pub(crate) struct Failover {
    pub(crate) bed: Archived,
    pub(crate) standby: Cluster,
    _daemon: Daemon,
    pub(crate) ledger: Ledger,
    /// In the fork's segment, before a restore point "spot".
    before: Mark,
}

/// A primary with a row, and its standby, which will archive.
struct Pair {
    bed: Archived,
    standby: Cluster,
    agent: Agent,
    ledger: Ledger,
}

pub(crate) fn fail_over(major: u32) -> Failover {
    crash_and_promote(pair(major))
}

fn pair(major: u32) -> Pair {
    let (bed, mut ledger) = bed(major);
    let mut standby = bed.cluster.standby();
    let agent = Agent::with(&standby, &bed.store);
    agent.write();
    standby.set("archive_command", agent.archive_command());
    standby.start();
    standby.wait_for("select count(*) from pg_stat_wal_receiver where status = 'streaming'", "1");
    ledger.append_as(&bed.cluster, "a1");
    bed.settle();
    Pair { bed, standby, agent, ledger }
}

fn crash_and_promote(pair: Pair) -> Failover {
    let Pair { mut bed, standby, agent, mut ledger } = pair;
    bed.cluster.psql(PREPARE);
    let before = ledger.append_as(&bed.cluster, "a2");
    bed.cluster.psql("select pg_create_restore_point('spot')");
    ledger.append_as(&bed.cluster, "a3");
    standby.wait_replayed(&bed.cluster);
    bed.cluster.crash();
    let daemon = agent.daemon();
    standby.promote();
    let failover = Failover { bed, standby, _daemon: daemon, ledger, before };
    wait::until_true(wait::SOON, "history and .partial are archived", || {
        failover.has(".partial") && failover.has("00000002.history")
    });
    failover
}

impl Failover {
    fn has(&self, part: &str) -> bool {
        self.bed.back_door().list("clusters/main").iter().any(|key| key.contains(part))
    }

    /// Every target in the fork's segment lands on its rows, and the old timeline is the parent of the next.
    #[track_caller]
    fn targets_before_the_fork(&self, from: &str) {
        let xid = self.before.xid.to_string();
        for (options, rows) in [
            (["--target-xid", &xid], "a1 a2"),
            (["--target-lsn", &self.before.before], "a1"),
            (["--target-time", &self.before.time_after], "a1 a2"),
            (["--target-name", "spot"], "a1 a2"),
        ] {
            let plan = plan(&self.bed, &options);
            assert_eq!(plan["timeline"], 1, "{options:?}: {plan:#}");
            let built = plan["built_segment"]["source_file"].as_str().unwrap_or_default().to_owned();
            assert!(built.contains(from), "{options:?}: {plan:#}");
            let exclusive = if options[0] == "--target-lsn" { &["--target-exclusive"][..] } else { &[] };
            let found = recovered(&self.bed, &self.ledger, &[&options, exclusive].concat());
            assert_eq!(found, (vec![1], rows.to_owned()), "{options:?}");
        }
    }
}

/// Promise 7: "latest" never silently means an older timeline, because the history of a younger one cannot be read.
#[test]
fn a_timeline_whose_history_cannot_be_read_is_not_forgotten_by_latest() {
    let (mut bed, mut ledger) = bed(17);
    let first = ledger.append_as(&bed.cluster, "a1").xid.to_string();
    lose_and_restore(&mut bed, "lost1", &["--target-xid", &first], None);
    ledger.append_as(&bed.cluster, "b1");
    bed.settle();
    let keys = bed.back_door().list("clusters/main");
    let history = keys.iter().find(|key| key.ends_with("00000002.history")).unwrap();
    let content = bed.back_door().get(history).unwrap();
    for (damage, says) in [("flipped", "cannot be read"), ("gone", "its history is missing")] {
        match damage {
            "flipped" => bed.back_door().flip_bit(history, content.len() - 3),
            _ => bed.back_door().delete(history),
        }
        for options in [&[][..], &["--target-xid", &first]] {
            let refusal = refused(&bed, options);
            assert_eq!(refusal["reason"], "doubtful-timeline", "{damage} {options:?}: {refusal:#}");
            assert!(refusal["message"].to_string().contains(says), "{damage}: {refusal:#}");
            assert!(refusal["hint"].to_string().contains("--target-timeline 1"), "{damage}: {refusal:#}");
        }
        assert_eq!(plan(&bed, &["--target-timeline", "1"])["timeline"], 1, "{damage}");
        let status = bed.agent.run(&["status"]).stdout;
        assert!(status.contains("imeline 2") || status.contains("00000002.history"), "{damage}: {status}");
    }
    bed.back_door().put(history, content);
    assert_eq!(plan(&bed, &[])["timeline"], 2);
}

/// Promise 7: nor because the only backup on its path is gone.
#[test]
fn a_timeline_without_a_backup_is_not_forgotten_by_latest() {
    let (mut bed, mut ledger) = bed(17);
    let before = bed.backups();
    let first = ledger.append_as(&bed.cluster, "a1").xid.to_string();
    let later = ledger.append_as(&bed.cluster, "a2").time_after;
    bed.backup();
    bed.settle();
    lose_and_restore(&mut bed, "lost1", &["--target-xid", &first], None);
    ledger.append_as(&bed.cluster, "b1");
    bed.settle();
    assert_eq!(plan(&bed, &[])["timeline"], 2);
    let keys = bed.back_door().list("clusters/main/backups");
    let manifest = keys.iter().find(|key| key.contains(&before[0]) && key.ends_with("manifest")).unwrap();
    bed.back_door().delete(manifest);
    for options in [&[][..], &["--target-time", &later]] {
        let refusal = refused(&bed, options);
        assert_eq!(refusal["reason"], "doubtful-timeline", "{options:?}: {refusal:#}");
        assert!(refusal["message"].to_string().contains("no complete backup"), "{refusal:#}");
        assert!(refusal["hint"].to_string().contains("--target-timeline 1"), "{refusal:#}");
    }
    assert_eq!(plan(&bed, &["--target-timeline", "1"])["timeline"], 1);
}

/// Promise 4: a restore to the latest moment was planned when timeline 2 had nothing but its history in the archive, and its fork's
/// segment is whole on timeline 1. Recovery ends at the fork while that is so, and is stopped once timeline 2 can be followed.
#[test]
fn recovery_does_not_end_at_a_fork_whose_timeline_has_been_archived_since() {
    let (mut bed, mut ledger) = bed(17);
    let first = ledger.append_as(&bed.cluster, "a1").xid.to_string();
    ledger.append_as(&bed.cluster, "a2");
    lose_and_restore(&mut bed, "lost1", &["--target-xid", &first], None);
    does_not_end_at_the_fork(&mut bed, &mut ledger);
}

/// The same after a busy server was lost: its last archived segment ends in the midst of a record, at whose begin timeline 2 begins, so
/// that nothing on timeline 1 stops recovery there.
#[test]
fn recovery_does_not_end_before_a_record_that_crosses_the_archives_end() {
    let (mut bed, mut ledger) = bed(17);
    ledger.append_as(&bed.cluster, "a1");
    bed.settle();
    // The fourth record is begun long before the segment's end.
    let last = bed.cluster.psql("select pg_walfile_name(pg_current_wal_lsn() + 100)");
    bed.cluster.psql(
        "select pg_logical_emit_message(false, 'long', repeat('x', 300000)) from generate_series(1, 4)",
    );
    ledger.append_as(&bed.cluster, "a2");
    bed.cluster.wait_archived(&last);
    bed.cluster.crash();
    let pgdata = bed.cluster.pgdata().to_owned();
    fs::rename(&pgdata, bed.place("lost1")).unwrap();
    bed.restore("data", &["--resume-archiving"]);
    bed.cluster.start();
    bed.cluster.wait_promoted();
    let history = fs::read_to_string(bed.cluster.wal_dir().join("00000002.history")).unwrap();
    assert!(!history.split('\t').nth(1).unwrap().ends_with("00000"), "on a boundary: {history}");
    does_not_end_at_the_fork(&mut bed, &mut ledger);
}

#[track_caller]
fn does_not_end_at_the_fork(bed: &mut Archived, ledger: &mut Ledger) {
    let has_history =
        || bed.back_door().list("clusters/main").iter().any(|key| key.ends_with("00000002.history"));
    wait::until_true(wait::SOON, "the history of timeline 2 is archived", has_history);
    let planned = plan(bed, &[]);
    let note = "Timeline 2, which was forked from timeline 1 at ";
    assert!(planned["timeline"] == 1 && planned["notes"].to_string().contains(note), "{planned:#}");
    let early = |name: &str, direct: bool| {
        let place = bed.restore(name, &[]);
        if direct {
            fetch_directly(bed, &place);
        }
        place
    };
    let [prefetched, direct, incomplete] =
        [early("prefetched", false), early("direct", true), early("incomplete", false)];
    let alone = bed.restore_and_start("alone", &[]);
    alone.wait_promoted();
    assert_eq!(ledger.labels(&alone), "a1");
    let dir = Arc::clone(bed.cluster.dir());
    let is_stopped = |place: PathBuf| {
        let mut server = Cluster::adopt(Arc::clone(&dir), 17, place, None);
        server.launch();
        assert_ne!(server.wait_for_end(wait::SOON), 0, "{}", server.log());
        let log = server.log();
        assert!(log.contains("timeline 2 had nothing of it in the archive"), "{log}");
        assert!(log.contains("Restore again") && !log.contains("selected new timeline"), "{log}");
    };
    // What there is of its first segment is archived by hand after a crash.
    let first = ledger.append_as(&bed.cluster, "b1").segment;
    bed.cluster.crash();
    let path = bed.cluster.wal_dir().join(&first);
    bed.agent.run(&["push", &path.display().to_string()]).expect_success();
    is_stopped(incomplete);
    bed.cluster.start();
    bed.settle();
    is_stopped(prefetched);
    is_stopped(direct);
    let again = bed.restore_and_start("again", &[]);
    again.wait_promoted();
    assert_eq!(ledger.labels(&again), "a1 b1");
}

/// Promise 4: recovery was sent along timeline 2, of which the archive has nothing but the history, and takes the fork's segment of
/// timeline 1 instead. Of that it gets what lies before the fork, with and without a prefetcher.
#[test]
fn archive_recovery_replays_nothing_that_its_path_left_behind() {
    let (mut bed, mut ledger) = bed(17);
    let first = ledger.append_as(&bed.cluster, "a1").xid.to_string();
    ledger.append_as(&bed.cluster, "a2");
    lose_and_restore(&mut bed, "lost1", &["--target-xid", &first], None);
    let has_history =
        || bed.back_door().list("clusters/main").iter().any(|key| key.ends_with("00000002.history"));
    wait::until_true(wait::SOON, "the history of timeline 2 is archived", has_history);
    for direct in [false, true] {
        let place = bed.restore("again", &[]);
        if direct {
            fetch_directly(&bed, &place);
        }
        append(&place, "recovery_target_timeline = '2'\nrecovery_target_lsn = ''");
        let server = Cluster::start_restored(bed.cluster.dir(), 17, &place);
        server.wait_promoted();
        let log = server.log();
        assert_eq!(ledger.labels(&server), "a1", "direct: {direct}\n{log}");
        assert!(log.contains("leaves its timeline"), "direct: {direct}\n{log}");
        assert!(!server.wal_dir().join("walpoint-pass").exists(), "recovery is over");
        drop(server);
        fs::remove_dir_all(place).unwrap();
    }
}

/// Lets a restored directory fetch without a prefetcher.
fn fetch_directly(bed: &Archived, place: &Path) {
    let (program, config) = (testbed::under_test("restore-agent"), bed.agent.config());
    append(
        place,
        &format!("restore_command = '{} --config {} fetch %f %p'", program.display(), config.display()),
    );
}

/// Adds a setting to a restored directory.
fn append(place: &Path, setting: &str) {
    let mut settings = fs::OpenOptions::new().append(true).open(place.join("postgresql.auto.conf")).unwrap();
    writeln!(settings, "{setting}").unwrap();
}
