//! Recovery that ends near a fork: on the timeline on which it stops, through a segment that only a `.partial` or a younger
//! timeline's first segment holds, and over histories whose switch points decrease.

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
        Archived::start_with(builder, Store::local(), |agent| agent.cluster_line("fetch_budget = \"10s\""));
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
            let built = plan["fork"]["from"].as_str().unwrap_or_default().to_owned();
            assert!(built.contains(from), "{options:?}: {plan:#}");
            let exclusive = if options[0] == "--target-lsn" { &["--exclusive"][..] } else { &[] };
            let found = recovered(&self.bed, &self.ledger, &[&options, exclusive].concat());
            assert_eq!(found, (vec![1], rows.to_owned()), "{options:?}");
        }
    }
}

/// Promise 4, 7: right after a failover, with nothing of the new timeline archived but its history.
#[track_caller]
fn right_after_a_failover(major: u32) {
    let failover = fail_over(major);
    let bed = &failover.bed;
    for options in [&[][..], &["--target-timeline", "1"]] {
        let refusal = refused(bed, options);
        assert_eq!(refusal["reason"], "ends-in-fork", "{options:?}: {refusal:#}");
        let hints = refusal["hints"].to_string();
        assert!(hints.contains("--use-partial"), "{hints}");
        // What the refusal advises works.
        let moment = refusal["nearest"][0]["options"].as_array().unwrap();
        let moment: Vec<&str> = moment.iter().map(|option| option.as_str().unwrap()).collect();
        plan(bed, &moment);
        let rows = recovered(bed, &failover.ledger, &[options, &["--use-partial"]].concat());
        assert_eq!(rows, (vec![1], "a1 a2 a3".to_owned()), "{options:?}");
    }
    failover.targets_before_the_fork(".partial");
}

#[test]
fn right_after_a_failover_the_partial_brings_back_every_row_on_request() {
    right_after_a_failover(17);
}

#[test]
fn right_after_failovers_of_other_versions_the_partial_brings_back_every_row() {
    for major in [14, 16, 18, 19] {
        right_after_a_failover(major);
    }
}

/// Promise 7: what a primary wrote behind the fork, after its standby was promoted, is reached by the old timeline's own number: by
/// a target in the fork's segment, of which there is only a `.partial`.
#[test]
fn a_target_behind_the_fork_is_found_in_a_partial_of_the_old_timeline() {
    let Pair { mut bed, standby, agent, mut ledger } = pair(17);
    ledger.append_as(&bed.cluster, "a2");
    standby.wait_replayed(&bed.cluster);
    let _daemon = agent.daemon();
    standby.promote();
    let has = |part: &str| bed.back_door().list("clusters/main").iter().any(|key| key.contains(part));
    wait::until_true(wait::SOON, "the fork is archived", || has(".partial") && has("00000002.history"));
    let third = ledger.append_as(&bed.cluster, "a3");
    let fourth = ledger.append_as(&bed.cluster, "a4");
    assert_eq!(third.segment, fourth.segment);
    bed.cluster.crash();
    let content = fs::read(bed.cluster.wal_dir().join(&third.segment)).unwrap();
    let partial = bed.cluster.dir().write(format!("{}.partial", third.segment), content);
    bed.agent.run(&["push", partial.to_str().unwrap()]).expect_success();
    let xid = third.xid.to_string();
    for target in [["--target-xid", &xid], ["--target-time", &third.time_after]] {
        let options = [&target[..], &["--target-timeline", "1"]].concat();
        let planned = plan(&bed, &options);
        assert_eq!(planned["timeline"], 1, "{planned:#}");
        assert!(planned["fork"]["from"].as_str().unwrap().ends_with(".partial"), "{planned:#}");
        let server =
            bed.restore_and_start("again", &[&options[..], &["--target-action", "promote"]].concat());
        server.wait_promoted();
        assert_eq!(ledger.labels(&server), "a1 a2 a3", "{options:?}");
        drop(server);
        fs::remove_dir_all(bed.place("again")).unwrap();
    }
    // It is no part of what follows the fork.
    let refusal = refused(&bed, &["--target-xid", &xid]);
    assert_eq!(refusal["reason"], "xid-not-found", "{refusal:#}");
}

/// Promise 3, 4: the new timeline's first segment is archived, the old one's last is not: moments before the fork are
/// recovered on the old timeline, and restore points in that segment are found.
#[track_caller]
fn before_a_failover(major: u32) {
    let mut failover = fail_over(major);
    failover.ledger.append_as(&failover.standby, "b1");
    let segment = failover.standby.switch_wal();
    failover.standby.wait_archived(&segment);
    failover.targets_before_the_fork("00000002");
    let (bed, ledger) = (&failover.bed, &failover.ledger);
    assert_eq!(recovered(bed, ledger, &[]), (vec![1, 2], "a1 a2 a3 b1".to_owned()));
    // The old timeline's end is younger by the fork's segment, on request.
    let end = recovered(bed, ledger, &["--target-timeline", "1", "--use-partial"]);
    assert_eq!(end, (vec![1], "a1 a2 a3".to_owned()));
    assert_eq!(recovered_without(bed, ledger), "a1");
}

/// What `--target-timeline 1` alone brings back, which the plan notes.
#[track_caller]
fn recovered_without(bed: &Archived, ledger: &Ledger) -> String {
    let notes = plan(bed, &["--target-timeline", "1"])["notes"].to_string();
    assert!(notes.contains("--use-partial"), "{notes}");
    let server = bed.restore_and_start("again", &["--target-timeline", "1"]);
    server.wait_promoted();
    let rows = ledger.labels(&server);
    drop(server);
    fs::remove_dir_all(bed.place("again")).unwrap();
    rows
}

#[test]
fn moments_before_a_failover_are_recovered_on_the_old_timeline() {
    before_a_failover(17);
}

#[test]
fn moments_before_failovers_of_other_versions_are_recovered_on_the_old_timeline() {
    for major in [15, 16, 18, 19] {
        before_a_failover(major);
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
    for (damage, says) in [("flipped", "cannot be read"), ("gone", "its history is not")] {
        match damage {
            "flipped" => bed.back_door().flip_bit(history, content.len() - 3),
            _ => bed.back_door().delete(history),
        }
        for options in [&[][..], &["--target-xid", &first]] {
            let refusal = refused(&bed, options);
            assert_eq!(refusal["reason"], "doubtful-timeline", "{damage} {options:?}: {refusal:#}");
            assert!(refusal["message"].to_string().contains(says), "{damage}: {refusal:#}");
            assert!(refusal["hints"].to_string().contains("--target-timeline 1"), "{damage}: {refusal:#}");
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
        assert!(refusal["hints"].to_string().contains("--target-timeline 1"), "{refusal:#}");
    }
    assert_eq!(plan(&bed, &["--target-timeline", "1"])["timeline"], 1);
}

/// Promise 7: a standby goes where it was sent: to the timeline, or to that of the backup.
#[test]
fn a_standby_keeps_to_the_timeline_and_the_backup_that_were_asked_for() {
    let (mut bed, mut ledger) = bed(17);
    let first = ledger.append_as(&bed.cluster, "a1").xid.to_string();
    ledger.append_as(&bed.cluster, "a2");
    let backup = bed.backup();
    lose_and_restore(&mut bed, "lost1", &["--target-xid", &first], None);
    ledger.append_as(&bed.cluster, "b1");
    bed.settle();
    for options in [&["--target-timeline", "1"][..], &["--backup", &backup]] {
        let standby = bed.restore_and_start("again", &[&["--standby"], options].concat());
        assert_eq!(standby.psql("show recovery_target_timeline"), "1", "{options:?}");
        standby.wait_for("select string_agg(label, ' ' order by n) from rows", "a1 a2");
        assert_eq!(standby.psql("select pg_is_in_recovery()"), "t");
        drop(standby);
        fs::remove_dir_all(bed.place("again")).unwrap();
    }
    let standby = bed.restore_and_start("again", &["--standby"]);
    assert_eq!(standby.psql("show recovery_target_timeline"), "latest");
    standby.wait_for("select string_agg(label, ' ' order by n) from rows", "a1 b1");
}

/// Promise 4: the fork's segment is there on timeline 1 only, where it goes on with what was left behind. A standby replays
/// none of that, waits at the fork, and follows once timeline 2 is archived.
#[test]
fn a_standby_waits_at_a_fork_whose_segment_only_the_parent_has() {
    let (mut bed, mut ledger) = bed(17);
    let first = ledger.append_as(&bed.cluster, "a1").xid.to_string();
    ledger.append_as(&bed.cluster, "a2");
    bed.settle();
    lose_and_restore(&mut bed, "lost1", &["--target-xid", &first], None);
    // Until its history is there, timeline 2 is known to the new primary alone.
    let has_history =
        || bed.back_door().list("clusters/main").iter().any(|key| key.ends_with("00000002.history"));
    wait::until_true(wait::SOON, "the history of timeline 2 is archived", has_history);
    let keys = bed.back_door().list("clusters/main");
    assert!(!keys.iter().any(|key| key.contains("/wal/00000002/")), "timeline 2 has a segment: {keys:?}");
    assert_eq!(plan(&bed, &[])["timeline"], 1, "a server of its own stops at the fork");
    let standby = bed.restore_and_start("again", &["--standby"]);
    standby.wait_for("select string_agg(label, ' ' order by n) from rows", "a1");
    assert_eq!(standby.psql("show recovery_target_timeline"), "latest");
    assert_eq!(standby.psql("show recovery_target_lsn"), "");
    assert_eq!(standby.psql("select pg_is_in_recovery(), pg_is_wal_replay_paused()"), "t|f");
    ledger.append_as(&bed.cluster, "b1");
    bed.settle();
    standby.wait_for("select string_agg(label, ' ' order by n) from rows", "a1 b1");
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
        assert!(log.contains("restore again") && !log.contains("selected new timeline"), "{log}");
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

/// Promise 4: right after a failover the fork's segment is there only as `.partial`. A standby gets that up to the fork, with and
/// without leave to end there, waits, and follows once timeline 2 is archived.
#[test]
fn a_standby_waits_at_a_fork_whose_segment_is_only_there_as_partial() {
    let mut failover = fail_over(17);
    let standbys = [&[][..], &["--use-partial"]].map(|options| {
        let place = failover.bed.restore(
            if options.is_empty() { "waits" } else { "on_request" },
            &[&["--standby"], options].concat(),
        );
        let standby = Cluster::start_restored(failover.bed.cluster.dir(), 17, &place);
        standby.wait_for("select string_agg(label, ' ' order by n) from rows", "a1 a2 a3");
        assert_eq!(standby.psql("show recovery_target_timeline"), "latest", "{options:?}");
        assert_eq!(standby.psql("select pg_is_in_recovery()"), "t", "{options:?}");
        standby
    });
    failover.ledger.append_as(&failover.standby, "b1");
    let segment = failover.standby.switch_wal();
    failover.standby.wait_archived(&segment);
    for standby in &standbys {
        standby.wait_for("select string_agg(label, ' ' order by n) from rows", "a1 a2 a3 b1");
        assert_eq!(standby.psql("select pg_is_in_recovery()"), "t");
    }
}

/// Lets a restored directory fetch without a prefetcher.
fn fetch_directly(bed: &Archived, place: &Path) {
    let mut settings = fs::OpenOptions::new().append(true).open(place.join("postgresql.auto.conf")).unwrap();
    let (program, config) = (testbed::under_test("restore-agent"), bed.agent.config());
    let command = format!("{} --config {} fetch %f %p", program.display(), config.display());
    writeln!(settings, "restore_command = '{command}'").unwrap();
}

/// Promise 4: a standby is answered "ask again" for the younger timeline's segment while that cannot be read, and PostgreSQL takes
/// the parent's instead. Of that it gets what lies before the fork, with and without a prefetcher.
#[test]
fn a_standby_replays_nothing_that_its_path_left_behind_in_an_outage() {
    let (mut bed, mut ledger) = bed(17);
    let first = ledger.append_as(&bed.cluster, "a1").xid.to_string();
    ledger.append_as(&bed.cluster, "a2");
    bed.settle();
    lose_and_restore(&mut bed, "lost1", &["--target-xid", &first], None);
    ledger.append_as(&bed.cluster, "b1");
    bed.settle();
    let door = bed.back_door();
    let mut keys = door.list("clusters/main");
    keys.retain(|key| key.contains("/wal/00000002/"));
    let fork = keys.iter().min().unwrap().clone();
    let content = door.get(&fork).unwrap();
    for direct in [false, true] {
        let place = bed.restore("again", &["--standby"]);
        if direct {
            fetch_directly(&bed, &place);
        }
        door.flip_bit(&fork, content.len() / 2);
        let standby = Cluster::start_restored(bed.cluster.dir(), 17, &place);
        let rows = "select string_agg(label, ' ' order by n) from rows";
        standby.wait_for(rows, "a1");
        let parent = format!("00000001{}", &fork.rsplit('/').next().unwrap()[8..]);
        let asked = || standby.log().matches(&format!("restored log file \"{parent}\"")).count() > 1;
        wait::until_true(wait::SOON, "the parent's segment is asked for again", asked);
        assert_eq!(standby.psql(rows), "a1", "direct: {direct}\n{}", standby.log());
        assert!(standby.log().contains("leaves its timeline"), "direct: {direct}\n{}", standby.log());
        door.put(&fork, content.clone());
        standby.wait_for(rows, "a1 b1");
        drop(standby);
        fs::remove_dir_all(place).unwrap();
    }
}

/// Promise 7: a repository that was away during a failover has only the old timeline, and answers for no other that has the new one
/// and cannot recover along it.
#[test]
fn a_repository_that_lags_behind_does_not_bring_an_older_timeline_back() {
    let second = Store::local();
    let builder = Cluster::builder().major(17).segment_size_mb(1);
    let mut bed = Archived::start_with(builder, Store::local(), |agent| agent.repository("second", &second));
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    let first = ledger.append_as(&bed.cluster, "a1").xid.to_string();
    let abandoned = ledger.append_as(&bed.cluster, "a2").after;
    lose_and_restore(&mut bed, "lost1", &["--target-xid", &first], None);
    for label in ["b1", "b2", "b3"] {
        ledger.append_as(&bed.cluster, label);
        bed.settle();
    }
    let (main, other) = (bed.back_door(), second.back_door());
    let younger =
        |key: &String| key.contains("00000002") && (key.contains("/wal/") || key.contains("history"));
    let keys = || other.list("clusters/main").into_iter().filter(younger).collect::<Vec<_>>();
    let stored = main.list("clusters/main").into_iter().filter(younger).count();
    wait::until_true(wait::SOON, "both have everything", || keys().len() == stored);
    bed.stop_daemon();
    for key in main.list("clusters/main").iter().filter(|key| younger(key) || key.contains("/index/")) {
        main.delete(key);
        // An empty directory would still be a timeline.
        fs::remove_dir(bed.store.root().unwrap().join(key).parent().unwrap()).ok();
    }
    let wal = keys().into_iter().find_map(|key| Some(key.split_once("/wal/")?.0.to_owned())).unwrap();
    fs::remove_dir(bed.store.root().unwrap().join(wal).join("wal/00000002")).unwrap();
    assert_eq!(plan(&bed, &[])["timeline"], 2);

    let segments: Vec<String> = keys().into_iter().filter(|key| key.contains("/wal/")).collect();
    let history = keys().into_iter().find(|key| key.ends_with("00000002.history")).unwrap();
    let at_abandoned = ["--target-lsn", abandoned.as_str()];
    for (lost, target, reason) in [
        (&segments[1], &[][..], "missing-wal"),
        (&segments[0], &at_abandoned, "missing-wal"),
        (&history, &[], "doubtful-timeline"),
    ] {
        let content = other.get(lost).unwrap();
        other.delete(lost);
        let answer = refused(&bed, target);
        assert_eq!(answer["reason"], reason, "{lost} {target:?} {answer:#}");
        assert!(answer["hints"].to_string().contains("lags behind"), "{lost} {target:?} {answer:#}");
        // Both timelines have what lies before the fork.
        if reason == "missing-wal" {
            plan(&bed, &["--target-immediate"]);
        }
        assert_eq!(plan(&bed, &["--target-timeline", "1"])["timeline"], 1, "{lost}");
        other.put(lost, content);
    }
    assert_eq!(plan(&bed, &[])["timeline"], 2);
}

/// Promise 4: a copy restored to an earlier moment archives a younger timeline while production goes on. A standby that has replayed
/// more cannot follow it, and goes on with production, with and without a prefetcher.
#[test]
fn a_standby_goes_on_where_a_younger_timeline_left_before_it() {
    let (bed, mut ledger) = bed(17);
    let first = ledger.append_as(&bed.cluster, "a1").xid.to_string();
    ledger.append_as(&bed.cluster, "a2");
    bed.settle();
    let standbys = [false, true].map(|direct| {
        let place = bed.restore(if direct { "direct" } else { "prefetched" }, &["--standby"]);
        if direct {
            fetch_directly(&bed, &place);
        }
        Cluster::start_restored(bed.cluster.dir(), 17, &place)
    });
    let rows = "select string_agg(label, ' ' order by n) from rows";
    standbys.iter().for_each(|standby| standby.wait_for(rows, "a1 a2"));
    let options = ["--target-xid", &first, "--target-action", "promote", "--resume-archiving"];
    let copy = bed.restore_and_start("copy", &options);
    copy.wait_promoted();
    let agent = Agent::with(&copy, &bed.store);
    agent.archive_from(&copy);
    let _daemon = agent.daemon();
    copy.reload();
    ledger.append_as(&copy, "b1");
    let segment = copy.switch_wal();
    copy.wait_archived(&segment);
    ledger.append_as(&bed.cluster, "a3");
    bed.settle();
    for standby in &standbys {
        standby.wait_for(rows, "a1 a2 a3");
    }
}

/// Promise 3: a standby that follows through the archive past a failover is promoted in its turn, although a transaction is
/// open that was prepared in the fork's segment, which the archive has under the new timeline's name only.
#[track_caller]
fn a_follower_past_a_failover_is_promoted(major: u32) {
    let pair = pair(major);
    let follower = pair.bed.restore_and_start("follower", &["--standby"]);
    let rows = "select string_agg(label, ' ' order by n) from rows";
    follower.wait_for(rows, "a1");
    let mut failover = crash_and_promote(pair);
    failover.ledger.append_as(&failover.standby, "b1");
    let segment = failover.standby.switch_wal();
    failover.standby.wait_archived(&segment);
    follower.wait_for(rows, "a1 a2 a3 b1");
    follower.promote();
    assert_eq!(follower.psql("select gid from pg_prepared_xacts"), "open", "PostgreSQL {major}");
    follower.psql("commit prepared 'open'");
    assert_eq!(follower.psql("select count(*) from prepared"), "1");
    assert_eq!(failover.ledger.labels(&follower), "a1 a2 a3 b1");
}

#[test]
fn a_standby_that_follows_past_a_failover_is_promoted_with_a_prepared_transaction() {
    a_follower_past_a_failover_is_promoted(17);
}

#[test]
fn standbys_of_other_versions_that_follow_past_a_failover_are_promoted() {
    for major in [13, 16, 18, 19] {
        a_follower_past_a_failover_is_promoted(major);
    }
}

/// Promise 3: the primary crashes, is repaired with all that it had committed and goes on archiving on a timeline that begins
/// in the midst of its last segment, with a checkpoint. A standby that follows goes on with it, although a transaction was
/// prepared before.
#[track_caller]
fn a_follower_goes_on_with_the_repaired_primary(major: u32) {
    let (mut bed, mut ledger) = bed(major);
    ledger.append_as(&bed.cluster, "a1");
    bed.settle();
    let mut follower = bed.restore_and_start("follower", &["--standby"]);
    let rows = "select string_agg(label, ' ' order by n) from rows";
    follower.wait_for(rows, "a1");
    bed.cluster.psql(PREPARE);
    ledger.append_as(&bed.cluster, "a2");
    bed.cluster.crash();
    bed.try_restore("data", &["--delta", "--server-is-down", "--resume-archiving"]).expect_success();
    bed.cluster.start();
    bed.cluster.wait_promoted();
    assert_eq!(ledger.labels(&bed.cluster), "a1 a2");
    assert_eq!(bed.cluster.psql("select gid from pg_prepared_xacts"), "open");
    ledger.append_as(&bed.cluster, "b1");
    bed.settle();
    wait::until_true(wait::SOON, "the standby goes on or ends", || {
        !follower.is_running() || follower.try_psql(rows).is_ok_and(|found| found == "a1 a2 b1")
    });
    assert!(follower.is_running(), "PostgreSQL {major}: {}", follower.log());
    follower.promote();
    assert_eq!(follower.psql("select gid from pg_prepared_xacts"), "open");
}

#[test]
fn a_standby_goes_on_with_a_primary_that_was_repaired_with_a_prepared_transaction() {
    a_follower_goes_on_with_the_repaired_primary(17);
}

#[test]
fn standbys_of_other_versions_go_on_with_a_primary_that_was_repaired() {
    for major in [13, 16, 18, 19] {
        a_follower_goes_on_with_the_repaired_primary(major);
    }
}
