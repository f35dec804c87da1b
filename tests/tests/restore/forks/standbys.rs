//! Standbys that follow the archive past a fork.

use std::fs;

use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::Store;
use walpoint_tests::wait;

use super::{
    PREPARE, bed, crash_and_promote, fail_over, fetch_directly, lose_and_restore, pair, plan, refused,
};

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

/// Promise 4: the fork's segment is there on timeline 1 only, where it continues what was left behind. A standby replays
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
        assert!(answer["hint"].to_string().contains("lags behind"), "{lost} {target:?} {answer:#}");
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
/// more cannot follow it, and continues on production's timeline, with and without a prefetcher.
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
/// in the middle of its last segment, with a checkpoint. A standby that follows continues on it, although a transaction was
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
