//! Servers that were promoted, and what they have of the timelines before: what continues the archive is stored, and what a copy
//! wrote by itself is not taken for production's.

mod archive_bed;

use std::time::Duration;

use archive_bed::{Bed, SCANNED, SOON, all_done, clone, forget, promote_from_standby, refused, segments};
use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::wait;

fn bed() -> Bed {
    Bed::local(Cluster::builder().segment_size_mb(1))
}

/// Longer than a daemon needs to find a promotion and what is missing.
const BACKFILLED: Duration = Duration::from_secs(60);

fn is_stored(bed: &Bed, names: &[String]) -> Vec<bool> {
    let archive = bed.archive();
    names.iter().map(|name| archive.get(name).is_some()).collect()
}

/// What is stored of a timeline.
fn of_timeline(bed: &Bed, timeline: &str) -> Vec<String> {
    let mut keys = bed.store.back_door().list("clusters");
    keys.retain(|key| {
        key.ends_with(&format!("/{timeline}.history")) || key.contains(&format!("/wal/{timeline}/"))
    });
    keys
}

/// A standby that follows production and keeps its WAL, with a configuration for the same archive.
fn standby(bed: &Bed) -> (Cluster, Agent) {
    let mut standby = bed.cluster.standby();
    let agent = Agent::with(&standby, &bed.store);
    agent.archive_from(&standby);
    standby.start();
    standby.wait_replayed(&bed.cluster);
    (standby, agent)
}

fn set(cluster: &Cluster, name: &str, value: &str) {
    cluster.set(name, value);
    cluster.reload();
}

/// Until a standby has removed a segment that it received.
fn recycled(standby: &Cluster, primary: &Cluster, name: &str) {
    wait::until_true(SOON, &format!("{name} is recycled"), || {
        primary.psql("checkpoint");
        standby.wait_replayed(primary);
        standby.psql("checkpoint");
        !standby.wal_dir().join(name).exists()
    });
}

/// A clone ran beyond production without archiving, and was promoted with production's configuration. What it kept of its own WAL
/// has names that production uses later, and nothing in it meets what is stored.
#[test]
fn what_a_clone_wrote_before_its_promotion_is_not_taken_for_productions() {
    let mut bed = bed();
    bed.cluster.start();
    let _daemon = bed.agent.daemon();
    bed.agent.run(&["backup"]).expect_success();
    all_done(&bed.cluster, &segments(&bed.cluster, 3, 100));
    let (mut copy, agent) = clone(&bed);
    let own = segments(&copy, 6, 100);
    forget(&copy, own.last().unwrap());
    set(&copy, "wal_keep_size", "64MB");
    let kept = segments(&copy, 3, 100);
    copy.psql("insert into t select n, clock_timestamp() from generate_series(1, 50) n");
    let beside = agent.daemon();
    promote_from_standby(&mut copy);
    let theirs = segments(&copy, 2, 100);
    refused(&copy);
    assert_eq!(of_timeline(&bed, "00000002"), Vec::<String>::new(), "{}", beside.log());
    assert_eq!(is_stored(&bed, &kept), [false; 3], "{}", beside.log());
    for arguments in [&["status"][..], &["health"], &["check", "--no-switch"]] {
        let output = agent.run(arguments);
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(said.contains("split brain"), "{arguments:?} {said}");
    }

    // What PostgreSQL had not marked it hands over when it is about to remove it.
    set(&copy, "wal_keep_size", "0");
    copy.psql("checkpoint");
    let marked = |name: &String| copy.wal_dir().join("archive_status").join(format!("{name}.ready")).exists();
    wait::until_true(SOON, "PostgreSQL hands it over", || kept.iter().any(marked));
    std::thread::sleep(SCANNED);
    assert_eq!(is_stored(&bed, &kept), [false; 3], "{}", beside.log());

    let ours = segments(&bed.cluster, 12, 100);
    assert!(kept.iter().all(|name| ours.contains(name)), "{kept:?} {ours:?}");
    all_done(&bed.cluster, &ours);
    let plan = bed.agent.restore(&["plan"]).expect_success();
    assert!(!plan.stdout.contains("timeline 2"), "{plan:?}");
    agent.init(&["--new-lineage"]).expect_success();
    all_done(&copy, &theirs);
}

/// A standby that received everything, though its primary's archive has a gap that nothing can fill: its own timeline is archived,
/// and a backup makes up for the rest.
#[test]
fn a_promoted_standby_behind_a_gap_archives_its_own_timeline() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    bed.agent.run(&["backup"]).expect_success();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    let (standby, agent) = standby(&bed);
    // It would store ahead of time what waits.
    assert_eq!(daemon.stop(), 0);
    set(&bed.cluster, "archive_command", "/bin/true");
    let lost = segments(&bed.cluster, 3, 100);
    all_done(&bed.cluster, &lost);
    recycled(&standby, &bed.cluster, lost.last().unwrap());
    set(&standby, "wal_keep_size", "64MB");
    set(&bed.cluster, "archive_command", "/bin/false");
    let kept = segments(&bed.cluster, 3, 100);
    standby.wait_replayed(&bed.cluster);
    bed.cluster.crash();
    let daemon = agent.daemon();
    standby.promote();
    all_done(&standby, &segments(&standby, 1, 100));
    wait::until_true(BACKFILLED, "the gap is said", || {
        daemon.log().contains("do not continue what the repositories hold")
    });
    assert!(daemon.log().contains("HINT: make a new backup now"), "{}", daemon.log());
    assert_eq!(is_stored(&bed, &kept), [false; 3], "{}", daemon.log());
    assert!(!daemon.log().contains("split brain"), "{}", daemon.log());
    agent.run(&["backup"]).expect_success();
    agent.restore(&["plan"]).expect_success();
}

/// The dead primary left a hole in the middle and did not archive its last segments.
#[test]
fn a_hole_in_the_middle_is_backfilled() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    let (standby, agent) = standby(&bed);
    assert_eq!(daemon.stop(), 0);
    set(&standby, "wal_keep_size", "64MB");
    set(&bed.cluster, "archive_command", "/bin/true");
    let mut missing = segments(&bed.cluster, 3, 100);
    all_done(&bed.cluster, &missing);
    let daemon = bed.agent.daemon();
    set(&bed.cluster, "archive_command", &bed.agent.archive_command());
    all_done(&bed.cluster, &segments(&bed.cluster, 1, 100));
    assert_eq!(daemon.stop(), 0);
    set(&bed.cluster, "archive_command", "/bin/false");
    missing.extend(segments(&bed.cluster, 2, 100));
    assert_eq!(is_stored(&bed, &missing), [false; 5]);
    standby.wait_replayed(&bed.cluster);
    bed.cluster.crash();
    let daemon = agent.daemon();
    standby.promote();
    all_done(&standby, &segments(&standby, 1, 100));
    let all = || is_stored(&bed, &missing).iter().all(|stored| *stored);
    wait::until_true(BACKFILLED, "the holes are closed", all);
    assert!(!daemon.log().contains("split brain"), "{}", daemon.log());
}

/// A standby that no longer has what is stored begins right behind it: the records on both sides of the boundary fit.
#[test]
fn what_begins_right_behind_the_archive_is_backfilled() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    let (standby, agent) = standby(&bed);
    let stored = segments(&bed.cluster, 3, 100);
    all_done(&bed.cluster, &stored);
    assert_eq!(daemon.stop(), 0);
    set(&bed.cluster, "archive_command", "/bin/false");
    recycled(&standby, &bed.cluster, stored.last().unwrap());
    set(&standby, "wal_keep_size", "64MB");
    let missing = segments(&bed.cluster, 3, 100);
    assert_eq!(is_stored(&bed, &missing), [false; 3]);
    standby.wait_replayed(&bed.cluster);
    bed.cluster.crash();
    let _daemon = agent.daemon();
    standby.promote();
    all_done(&standby, &segments(&standby, 1, 100));
    let all = || is_stored(&bed, &missing).iter().all(|stored| *stored);
    wait::until_true(BACKFILLED, "the gap is closed", all);
}
