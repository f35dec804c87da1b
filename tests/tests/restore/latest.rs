//! What "latest" means where the newest lineage or timeline cannot be restored: never silently an older one.

use std::fs;

use serde_json::Value;
use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::{BackDoor, Store};
use walpoint_tests::wait;

/// The answer of `plan`, which may be a refusal.
#[track_caller]
fn plan(agent: &Agent, options: &[&str]) -> Value {
    let output = agent.restore(&[&["--json", "plan"], options].concat());
    serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:#?}"))
}

fn reason(answer: &Value) -> &str {
    answer["reason"].as_str().unwrap_or("")
}

/// The cluster is lost; what takes its place is restored from the archive to a target, and archives again.
fn lose_and_restore(bed: &mut Archived, lost: &str, target: &[&str]) {
    bed.settle();
    bed.cluster.crash();
    let pgdata = bed.cluster.pgdata().to_owned();
    fs::rename(&pgdata, bed.place(lost)).unwrap();
    let options = [target, &["--target-action", "promote", "--resume-archiving"]].concat();
    bed.restore(pgdata.file_name().unwrap().to_str().unwrap(), &options);
    bed.cluster.start();
    bed.cluster.wait_promoted();
}

/// The second life of a cluster has WAL and no backup yet: its rows cannot be brought back, and the first life's are restored only
/// where they are asked for.
#[test]
fn an_older_lineage_is_not_taken_for_the_latest_while_the_newest_has_no_backup() {
    let mut bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    let first = bed.backup();
    let early = ledger.append(&bed.cluster);
    bed.cluster.psql("select pg_create_restore_point('of the first life')");
    ledger.append(&bed.cluster);
    bed.settle();
    // When a lineage began is known to the second.
    bed.cluster.psql("select pg_sleep(1.1)");
    let old = plan(&bed.agent, &[])["lineage"].as_str().unwrap().to_owned();
    bed.stop_daemon();
    bed.cluster.stop(Shutdown::Fast);

    let mut new = Cluster::builder().segment_size_mb(1).in_dir(bed.cluster.dir()).init();
    let agent = Agent::with(&new, &bed.store);
    agent.archive_from(&new);
    agent.init(&["--new-lineage"]).expect_success();
    // Nothing was written there yet.
    assert_eq!(plan(&agent, &[])["lineage"], old.as_str());

    let daemon = agent.daemon();
    new.start();
    new.psql("create table t (n int)");
    for _ in 0..5 {
        new.psql("insert into t values (1)");
        let segment = new.switch_wal();
        new.wait_archived(&segment);
    }
    let newest = format!("{}-1", new.system_id());
    let refused = plan(&agent, &[]);
    assert_eq!(reason(&refused), "newest-without-backup", "{refused:#}");
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains(&newest) && message.contains(" on timeline 1, 20"), "{message}");
    let hints = refused["hint"].to_string();
    assert!(hints.contains(&format!("--lineage {old}")) && hints.contains("archive-agent backup"), "{hints}");
    // Both count their positions from the same beginning.
    assert_eq!(reason(&plan(&agent, &["--target-lsn", &early.after])), "newest-without-backup");
    assert_eq!(reason(&plan(&agent, &["--target-timeline", "1"])), "newest-without-backup");

    // What only the older one can have, and what names it.
    let before = plan(&agent, &["--target-time", &early.time_after]);
    assert_eq!(before["lineage"], old.as_str(), "{before:#}");
    assert!(before["notes"].to_string().contains(&format!("Lineage {newest} is newer")), "{before:#}");
    for options in [&["--lineage", &old][..], &["--backup", &first]] {
        assert_eq!(plan(&agent, options)["lineage"], old.as_str(), "{options:?}");
    }
    agent.run(&["backup"]).expect_success();
    assert_eq!(plan(&agent, &[])["lineage"], newest.as_str());
    // It has a backup now, and only a name of the older one is not in it.
    let named = plan(&agent, &["--target-name", "of the first life"]);
    assert_eq!(named["lineage"], old.as_str(), "{named:#}");
    assert!(!named["notes"].to_string().contains("no complete backup"), "{named:#}");
    assert_eq!(daemon.stop(), 0);
}

/// A history is lost while the timeline's WAL is there. What comes before the timeline was left can be recovered. Its own rows
/// and "latest" can only from a backup that was taken on it: PostgreSQL needs the history to come there from an older one.
#[test]
fn a_lost_history_is_in_the_way_of_its_own_timeline_only() {
    let mut bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    let a1 = ledger.append_as(&bed.cluster, "a1");
    bed.settle();
    // Recovery to a1 stops at the commit of a2, and the timeline is left in a later segment.
    ledger.append_as(&bed.cluster, "a2");
    bed.settle();
    let a3 = ledger.append_as(&bed.cluster, "a3");
    lose_and_restore(&mut bed, "lost", &["--target-xid", &a3.xid.to_string()]);
    let b1 = ledger.append_as(&bed.cluster, "b1");
    bed.settle();
    let door = bed.back_door();
    let history = door.list("clusters/main").into_iter().find(|key| key.ends_with("00000002.history"));
    let (history, content) = history.map(|key| (key.clone(), door.get(&key).unwrap())).unwrap();
    for own_backup in [false, true] {
        if own_backup {
            door.put(&history, content.clone());
            bed.backup();
            ledger.append_as(&bed.cluster, "b2");
            bed.settle();
            bed.stop_daemon();
        }
        door.delete(&history);
        let latest = plan(&bed.agent, &[]);
        if own_backup {
            assert_eq!((&latest["result"], &latest["timeline"]), (&"plan".into(), &2.into()), "{latest:#}");
            let server = bed.restore_and_start("own", &["--target-timeline", "2"]);
            server.wait_promoted();
            assert_eq!(ledger.labels(&server), "a1 a2 a3 b1 b2");
            assert_eq!(server.timeline(), 3);
        } else {
            assert_eq!(reason(&latest), "doubtful-timeline", "{latest:#}");
            assert!(latest["hint"].to_string().contains("00000002.history"), "{latest:#}");
        }
        for target in [["--target-time", &a1.time_after], ["--target-lsn", &a1.after]] {
            let early = plan(&bed.agent, &target);
            assert_eq!((&early["result"], &early["timeline"]), (&"plan".into(), &1.into()), "{early:#}");
        }
        let late = plan(&bed.agent, &["--target-lsn", &b1.after]);
        assert_eq!(late["result"], "unreachable", "{late:#}");
    }
    let server = bed.restore_and_start("early", &["--target-time", &a1.time_after]);
    server.wait_paused();
    assert_eq!(ledger.labels(&server), "a1");
}

/// A history is lost, or damaged. What `plan` offers without its timeline is recovered to its end, and the server that is promoted
/// there takes a number that no other timeline has.
#[test]
fn what_is_planned_without_a_timeline_in_doubt_is_finished() {
    let mut bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    let a1 = ledger.append_as(&bed.cluster, "a1");
    bed.settle();
    ledger.append_as(&bed.cluster, "a2");
    bed.settle();
    let a3 = ledger.append_as(&bed.cluster, "a3");
    lose_and_restore(&mut bed, "lost", &["--target-xid", &a3.xid.to_string()]);
    ledger.append_as(&bed.cluster, "b1");
    bed.settle();
    bed.stop_daemon();
    let door = bed.back_door();
    let history = door.list("clusters/main").into_iter().find(|key| key.ends_with("00000002.history"));
    let (history, content) = history.map(|key| (key.clone(), door.get(&key).unwrap())).unwrap();
    let mut damaged = content.to_vec();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x55;
    for state in ["damaged", "lost"] {
        door.delete(&history);
        if state == "damaged" {
            door.put(&history, damaged.clone());
        }
        for (name, options, labels) in [
            ("time", &["--target-time", &a1.time_after, "--target-action", "promote"][..], "a1"),
            ("one", &["--target-timeline", "1"], "a1 a2 a3"),
        ] {
            let server = bed.restore_and_start(&format!("{name}-{state}"), options);
            server.wait_promoted();
            assert_eq!(ledger.labels(&server), labels, "{name} {state}");
            let file = server.psql("select pg_walfile_name(pg_current_wal_lsn())");
            assert!(file.starts_with("00000003"), "{name} {state}: {file}");
        }
    }
}

/// A recovery to a point in time archived as timeline 2 and was thrown away; production goes on where it was. By its number timeline 2
/// is the latest until a person settles it, which is refused while it looks like the one in production, and ends when more of it comes.
#[test]
fn a_timeline_that_was_thrown_away_is_settled_and_is_no_longer_the_latest() {
    let mut bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    let a1 = ledger.append_as(&bed.cluster, "a1");
    ledger.append_as(&bed.cluster, "a2");
    lose_and_restore(&mut bed, "production", &["--target-xid", &a1.xid.to_string()]);
    ledger.append_as(&bed.cluster, "b1");
    bed.settle();
    bed.cluster.stop(Shutdown::Fast);
    let reason = "a test of the recovery";
    let settle = |timeline: &str| {
        bed.agent.run(&["lineage", "settle", "--timeline", timeline, "--reason", reason, "--who", "dba"])
    };
    let refused = settle("2").expect_status(1);
    assert!(refused.stderr.contains("looks like the one in production"), "{refused:#?}");

    let pgdata = bed.cluster.pgdata().to_owned();
    fs::rename(&pgdata, bed.place("thrown")).unwrap();
    fs::rename(bed.place("production"), &pgdata).unwrap();
    bed.cluster.start();
    ledger.append_as(&bed.cluster, "c1");
    bed.settle();
    assert_eq!(plan(&bed.agent, &[])["timeline"], 2);
    let refused = settle("1").expect_status(1);
    assert!(refused.stderr.contains("timeline 2 goes on from timeline 1"), "{refused:#?}");
    // The last segment of it comes later.
    let door = bed.back_door();
    let segment =
        |key: &&String| key.contains("/wal/00000002/") && key.rsplit('/').next().unwrap().len() == 24;
    let late = door.list("clusters/main").iter().filter(segment).max().unwrap().clone();
    let content = door.get(&late).unwrap();
    door.delete(&late);
    settle("2").expect_success();
    settle("2").expect_success();
    let latest = plan(&bed.agent, &[]);
    assert_eq!(latest["timeline"], 1, "{latest:#}");
    assert!(latest["notes"].to_string().contains(reason), "{latest:#}");
    let status = bed.agent.run(&["status"]).expect_success().stdout;
    assert!(status.contains("settled by dba") && status.contains(reason), "{status}");

    door.put(&late, content);
    assert_eq!(plan(&bed.agent, &[])["timeline"], 2);
    let status = bed.agent.run(&["status"]).expect_success().stdout;
    assert!(status.contains("was stored since: it counts again"), "{status}");
    settle("2").expect_success();
    bed.agent.run(&["verify"]).expect_success();
    let server = bed.restore_and_start("again", &[]);
    server.wait_promoted();
    assert_eq!(ledger.labels(&server), "a1 a2 c1");
    assert_eq!(server.timeline(), 3);
    assert_eq!(plan(&bed.agent, &["--target-timeline", "2"])["timeline"], 2);
}

/// Promise 7: of two repositories one alone knows a timeline that was settled as abandoned. It is not the latest one for the other
/// either, when planning or when recovery ends.
#[test]
fn an_abandoned_timeline_of_one_repository_stops_no_restore_from_another() {
    let second = Store::local();
    let builder = Cluster::builder().segment_size_mb(1);
    let mut bed = Archived::start_with(builder, Store::local(), |agent| agent.repository("second", &second));
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    let a1 = ledger.append_as(&bed.cluster, "a1");
    ledger.append_as(&bed.cluster, "a2");
    lose_and_restore(&mut bed, "production", &["--target-xid", &a1.xid.to_string()]);
    ledger.append_as(&bed.cluster, "b1");
    bed.settle();
    bed.cluster.stop(Shutdown::Fast);
    let pgdata = bed.cluster.pgdata().to_owned();
    fs::rename(&pgdata, bed.place("thrown")).unwrap();
    fs::rename(bed.place("production"), &pgdata).unwrap();
    bed.cluster.start();
    ledger.append_as(&bed.cluster, "c1");
    bed.settle();
    let (main, other) = (bed.back_door(), second.back_door());
    let wal = |door: &BackDoor| door.list("clusters/main").iter().filter(|key| key.contains("/wal/")).count();
    wait::until_true(wait::SOON, "both have the same WAL", || wal(&main) == wal(&other));
    let settle = ["lineage", "settle", "--timeline", "2", "--reason", "a test of the recovery"];
    bed.agent.run(&settle).expect_success();
    let younger = main.list("clusters/main").into_iter().filter(|key| key.contains("/00000002"));
    for key in younger {
        main.delete(&key);
        let directories = bed.store.root().unwrap().join(key);
        // An empty directory would still be a timeline.
        directories.ancestors().skip(1).take(2).for_each(|directory| drop(fs::remove_dir(directory)));
    }

    let server = bed.restore_and_start("again", &[]);
    server.wait_promoted();
    assert_eq!(ledger.labels(&server), "a1 a2 c1");
    let segment =
        |key: &&String| key.contains("/wal/00000001/") && key.rsplit('/').next().unwrap().len() == 24;
    let newest = other.list("clusters/main").iter().filter(segment).max().unwrap().clone();
    other.delete(&newest);
    assert_eq!(plan(&bed.agent, &[])["timeline"], 1);
}

/// A copy of production is promoted beside it and archives: "latest" is its timeline, as for PostgreSQL; plan, check and status
/// say so, until it is settled.
#[test]
fn a_copy_that_archives_beside_production_is_told_wherever_latest_counts() {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    ledger.append_as(&bed.cluster, "a1");
    bed.settle();
    let check = |bed: &Archived| bed.agent.run(&["check", "--no-switch"]).expect_success().stdout;
    let status = |bed: &Archived| bed.agent.run(&["status", "--json"]).expect_success().stdout;
    let told = "is in the archive: a restore to the latest moment follows it, not this server";
    assert!(!check(&bed).contains(told) && !status(&bed).contains(told));
    assert!(!plan(&bed.agent, &[])["notes"].to_string().contains("continued after"));

    let mut standby = bed.cluster.standby();
    let agent = Agent::with(&standby, &bed.store);
    agent.write();
    standby.set("archive_command", agent.archive_command());
    standby.start();
    standby.wait_replayed(&bed.cluster);
    let daemon = agent.daemon();
    // At the beginning of a segment, so that production's and the copy's do not contradict each other.
    bed.settle();
    standby.wait_replayed(&bed.cluster);
    standby.promote();
    standby.wait_promoted();
    let has_history =
        || bed.back_door().list("clusters/main").iter().any(|key| key.ends_with("00000002.history"));
    wait::until_true(wait::SOON, "the history of timeline 2 is archived", has_history);
    // Of the copy nothing but its history is stored.
    ledger.append_as(&bed.cluster, "a2");
    bed.settle();
    let early = plan(&bed.agent, &[]);
    assert!(
        early["notes"].to_string().contains("Timeline 1 continued after timeline 2 left it"),
        "{early:#}"
    );
    ledger.append_as(&standby, "b1");
    let segment = standby.switch_wal();
    standby.wait_archived(&segment);
    assert_eq!(daemon.stop(), 0);
    for n in 3..6 {
        ledger.append_as(&bed.cluster, &format!("a{n}"));
        bed.settle();
    }
    let latest = plan(&bed.agent, &[]);
    assert_eq!(latest["timeline"], 2, "{latest:#}");
    let notes = latest["notes"].to_string();
    assert!(notes.contains("Timeline 1 continued after timeline 2 left it"), "{latest:#}");
    assert!(notes.contains("--target-timeline 1"), "{latest:#}");
    let text = bed.agent.restore(&["plan"]).expect_success().stdout;
    assert!(text.contains("Timeline 1 continued"), "{text}");
    let named = plan(&bed.agent, &["--target-timeline", "1"]);
    assert!(!named["notes"].to_string().contains("continued after"), "{named:#}");
    for told_by in [check(&bed), status(&bed)] {
        assert!(told_by.contains("timeline 2, forked from this server's timeline 1 at"), "{told_by}");
        assert!(told_by.contains(told) && told_by.contains("lineage settle --timeline 2"), "{told_by}");
    }
    // The copy is what a restore follows.
    assert!(!agent.run(&["status", "--json"]).stdout.contains(told));

    let settle = ["lineage", "settle", "--timeline", "2", "--reason", "a test copy"];
    bed.agent.run(&settle).expect_success();
    assert!(!check(&bed).contains(told) && !status(&bed).contains(told));
    let latest = plan(&bed.agent, &[]);
    assert_eq!(latest["timeline"], 1, "{latest:#}");
    assert!(!latest["notes"].to_string().contains("continued after"), "{latest:#}");
}

/// A timeline is abandoned in every repository, up to where it ends in any: what one of them lacks of it, and is copied there afterwards,
/// does not make it the latest again, not even where only the other one has the record.
#[test]
fn a_timeline_stays_abandoned_where_its_wal_is_copied_later() {
    let latest_is_first = |agent: &Agent| {
        let answer = plan(agent, &[]);
        assert_eq!(answer["timeline"], 1, "{answer:#}");
    };
    let second = Store::local();
    let builder = Cluster::builder().segment_size_mb(1);
    let two = |agent: Agent| agent.repository("second", &second).cluster_line("ack = [\"main\"]");
    let mut bed = Archived::start_with(builder, Store::local(), two);
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    let a1 = ledger.append_as(&bed.cluster, "a1");
    ledger.append_as(&bed.cluster, "a2");
    lose_and_restore(&mut bed, "production", &["--target-xid", &a1.xid.to_string()]);
    ledger.append_as(&bed.cluster, "b1");
    bed.settle();
    bed.cluster.stop(Shutdown::Fast);
    let pgdata = bed.cluster.pgdata().to_owned();
    fs::rename(&pgdata, bed.place("thrown")).unwrap();
    fs::rename(bed.place("production"), &pgdata).unwrap();
    bed.cluster.start();
    ledger.append_as(&bed.cluster, "c1");
    bed.settle();
    let (main, other) = (bed.back_door(), second.back_door());
    let of = |door: &BackDoor, what: &str| -> Vec<String> {
        let segment = |key: &String| key.contains(what) && key.rsplit('/').next().unwrap().len() == 24;
        let mut keys: Vec<String> = door.list("clusters/main").into_iter().filter(segment).collect();
        keys.sort();
        keys
    };
    let wal = |door: &BackDoor| of(door, "/wal/00000002/");
    wait::until_true(wait::SOON, "both have the same WAL", || wal(&main) == wal(&other));
    bed.stop_daemon();

    // The second one could not be written to at the end of timeline 2.
    let lost = wal(&other).pop().unwrap();
    other.delete(&lost);
    let settle = ["lineage", "settle", "--timeline", "2", "--reason", "a test of the recovery"];
    bed.agent.run(&settle).expect_success();
    let daemon = bed.agent.daemon();
    wait::until_true(wait::SOON, "it is caught up", || wal(&main) == wal(&other));
    latest_is_first(&bed.agent);
    let alone = Agent::with(&bed.cluster, &second);
    alone.write();
    latest_is_first(&alone);
    assert_eq!(daemon.stop(), 0);

    // It had nothing of the timeline, and has no record.
    let all = other.list("clusters/main").into_iter().filter(|key| key.contains("/00000002"));
    all.for_each(|key| other.delete(&key));
    let daemon = bed.agent.daemon();
    wait::until_true(wait::SOON, "it is caught up again", || wal(&main) == wal(&other));
    let records =
        other.list("clusters/main").into_iter().filter(|key| key.contains("/00000002.history.abandoned/"));
    assert_eq!(records.count(), 1);
    latest_is_first(&alone);
    latest_is_first(&bed.agent);
    assert_eq!(daemon.stop(), 0);
}
