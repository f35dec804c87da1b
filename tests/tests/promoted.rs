//! Servers that were promoted, and what they have of the timelines before: what continues the archive is stored, and what a copy
//! wrote by itself is not taken for production's.

mod archive_bed;

use std::time::Duration;

use archive_bed::{
    Bed, SCANNED, SOON, all_done, archive_again, clone, forget, promote_from_standby, refused, segments,
};
use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::{user, wait};

fn bed() -> Bed {
    Bed::local(Cluster::builder().segment_size_mb(1))
}

/// Longer than a daemon needs to find a promotion and what is missing.
const BACKFILLED: Duration = Duration::from_secs(60);

/// Longer than a daemon takes to look again for timelines that others stored.
const FORKS_SEEN: Duration = Duration::from_secs(16);

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
    assert!(daemon.log().contains("HINT: Take a new backup now"), "{}", daemon.log());
    assert_eq!(is_stored(&bed, &kept), [false; 3], "{}", daemon.log());
    assert!(!daemon.log().contains("split brain"), "{}", daemon.log());
    agent.run(&["backup"]).expect_success();
    agent.restore(&["plan"]).expect_success();
}

/// A standby that archives too, made while its primary could not archive: PostgreSQL marks nothing of what it received.
#[test]
fn a_promoted_standby_that_always_archives_goes_on_behind_a_gap() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    bed.agent.run(&["backup"]).expect_success();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    assert_eq!(daemon.stop(), 0);
    set(&bed.cluster, "archive_command", "/bin/false");
    let lost = segments(&bed.cluster, 3, 100);
    let mut standby = bed.cluster.standby();
    let agent = Agent::with(&standby, &bed.store);
    agent.archive_from(&standby);
    standby.set("archive_mode", "always");
    standby.set("archive_command", "/bin/false");
    standby.start();
    let kept = segments(&bed.cluster, 4, 100);
    standby.wait_replayed(&bed.cluster);
    assert!(!standby.wal_dir().join(lost.last().unwrap()).exists());
    let marked = |name: &String| standby.wal_dir().join(format!("archive_status/{name}.ready")).exists();
    wait::until_true(SOON, "the standby has not archived it", || kept.iter().all(marked));
    bed.cluster.crash();
    standby.promote();
    let daemon = agent.daemon();
    set(&standby, "archive_command", &agent.archive_command());
    all_done(&standby, &segments(&standby, 2, 100));
    assert_eq!(is_stored(&bed, &kept), [true; 4], "{}", daemon.log());
    assert!(!daemon.log().contains("split brain"), "{}", daemon.log());
    agent.run(&["backup"]).expect_success();
    agent.restore(&["plan"]).expect_success();
}

/// The dead primary left a gap in the middle and did not archive its last segments.
#[test]
fn a_gap_in_the_middle_is_backfilled() {
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
    wait::until_true(BACKFILLED, "the gaps are closed", all);
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

/// Production reaches the segment that a clone's timeline began in, and that was stored first because nothing spoke against it: the
/// clone's timeline is not what production wrote. Production goes on, and nothing more of the clone is stored.
#[test]
fn a_timeline_that_did_not_come_from_production_is_found_when_production_reaches_its_fork() {
    found_at_the_fork(FORKS_SEEN);
}

/// The same where production passes the fork before it looks at what others stored.
#[test]
fn a_timeline_that_did_not_come_from_production_is_found_behind_its_fork() {
    found_at_the_fork(Duration::ZERO);
}

fn found_at_the_fork(before: Duration) {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    bed.agent.run(&["backup"]).expect_success();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    let (mut copy, agent) = clone(&bed);
    copy.set("archive_command", "/bin/true");
    archive_again(&mut copy);
    let own = segments(&copy, 6, 100);
    forget(&copy, own.last().unwrap());
    set(&copy, "wal_keep_size", "64MB");
    all_done(&copy, &segments(&copy, 3, 100));
    copy.stop(Shutdown::Fast);
    copy.set("archive_command", agent.archive_command());
    let beside = agent.daemon();
    let signal = copy.pgdata().join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    user::give(&signal);
    copy.start();
    copy.promote();
    let theirs = segments(&copy, 2, 100);
    all_done(&copy, &theirs);
    let parent = theirs[0].replacen("00000002", "00000001", 1);

    std::thread::sleep(before);
    let ours = segments(&bed.cluster, 14, 100);
    assert!(ours.contains(&parent), "{parent} {ours:?}");
    all_done(&bed.cluster, &ours);
    if before.is_zero() {
        std::thread::sleep(FORKS_SEEN);
        all_done(&bed.cluster, &segments(&bed.cluster, 1, 100));
    }
    assert!(daemon.log().contains("split brain: timeline 2"), "{}", daemon.log());
    for arguments in [&["status"][..], &["health"], &["check", "--no-switch"]] {
        let output = bed.agent.run(arguments);
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(said.contains("split brain: timeline 2"), "{arguments:?} {said}");
    }
    let plan = bed.agent.restore(&["plan"]);
    assert!(!plan.success() && plan.stderr.contains("in doubt"), "{plan:?}");
    bed.agent.restore(&["plan", "--target-timeline", "1"]).expect_success();

    assert_eq!(beside.stop(), 0);
    let beside = agent.daemon();
    let more = segments(&copy, 2, 100);
    refused(&copy);
    assert_eq!(is_stored(&bed, &more), [false; 2], "{}", beside.log());
    all_done(&bed.cluster, &segments(&bed.cluster, 1, 100));
    agent.init(&["--new-lineage"]).expect_success();
    all_done(&copy, &more);
}

/// Of the segment that a clone's timeline begins in, the archive has what a promoted standby left of it: the clone's is another.
#[test]
fn a_clone_is_refused_by_what_a_promotion_left_of_its_first_segment() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    let (standby, heir) = standby(&bed);
    set(&standby, "archive_command", "/bin/false");
    let (mut copy, agent) = clone(&bed);
    let both = copy.current_segment();
    wait::until_true(SOON, "both are in one segment", || bed.cluster.current_segment() == both);
    copy.psql("insert into t select n, clock_timestamp() from generate_series(1, 300) n");
    bed.cluster.psql("insert into t select n, clock_timestamp() from generate_series(1, 200) n");
    standby.wait_replayed(&bed.cluster);
    bed.cluster.stop(Shutdown::Immediate);
    assert_eq!(daemon.stop(), 0);
    standby.promote();
    let partial = standby.wal_dir().join(format!("{both}.partial"));
    wait::until_true(SOON, "it is there", || partial.exists());
    heir.run(&["push", partial.to_str().unwrap()]).expect_success();

    let beside = agent.daemon();
    promote_from_standby(&mut copy);
    let theirs = segments(&copy, 2, 100);
    refused(&copy);
    assert!(copy.log().contains(".partial, which is stored"), "{}", copy.log());
    assert_eq!(of_timeline(&bed, "00000002"), Vec::<String>::new(), "{}", beside.log());
    assert_eq!(is_stored(&bed, &theirs), [false; 2]);

    // The standby's own is what it left.
    set(&standby, "archive_command", &heir.archive_command());
    let _heir = heir.daemon();
    all_done(&standby, &segments(&standby, 2, 100));
}

/// Production and a copy of it that ran in the same segment and was promoted there, whose timeline is stored.
fn parted_in_one_segment() -> (Bed, Agent, Cluster) {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    let (mut copy, agent) = clone(&bed);
    let both = copy.current_segment();
    wait::until_true(SOON, "both are in one segment", || bed.cluster.current_segment() == both);
    copy.psql("insert into t select n, clock_timestamp() from generate_series(1, 300) n");
    bed.cluster.psql("insert into t select n, clock_timestamp() from generate_series(1, 200) n");
    assert_eq!(daemon.stop(), 0);
    let daemon = agent.daemon();
    promote_from_standby(&mut copy);
    all_done(&copy, &segments(&copy, 2, 100));
    assert_eq!(daemon.stop(), 0);
    (bed, agent, copy)
}

/// Production has noted what it stored before the segment: it goes on, and the copy stores nothing more.
#[test]
fn a_copy_promoted_in_productions_segment_does_not_stop_production() {
    let (bed, agent, copy) = parted_in_one_segment();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    assert!(daemon.log().contains("split brain: timeline 2"), "{}", daemon.log());
    let _beside = agent.daemon();
    let more = segments(&copy, 1, 100);
    refused(&copy);
    assert_eq!(is_stored(&bed, &more), [false]);
}

/// Where nothing shows which of the two stored the WAL before, the one that comes second is refused.
#[test]
fn the_second_of_two_is_refused_where_nothing_shows_who_was_first() {
    let (bed, _, _) = parted_in_one_segment();
    std::fs::remove_file(bed.cluster.wal_dir().join("walpoint-archived")).unwrap();
    let daemon = bed.agent.daemon();
    let ours = segments(&bed.cluster, 2, 100);
    refused(&bed.cluster);
    assert!(bed.cluster.log().contains("does not begin with what"), "{}", daemon.log());
    assert_eq!(is_stored(&bed, &ours), [false; 2]);
}

/// A copy that was promoted twice is on timeline 3, and its timeline 2 is not production's. Nothing of it is stored, and where a history of
/// it is, that says nothing of production's timeline 2.
#[test]
fn a_timeline_that_comes_from_another_servers_timeline_says_nothing_of_productions() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    bed.agent.run(&["backup"]).expect_success();
    all_done(&bed.cluster, &segments(&bed.cluster, 1, 100));
    let [(heir, agent), (mut copy, _)] = [standby(&bed), standby(&bed)];
    set(&copy, "archive_command", "false");
    copy.promote();
    // Nothing of it has a name that production archives.
    segments(&copy, 12, 10);
    all_done(&bed.cluster, &segments(&bed.cluster, 1, 100));
    heir.wait_replayed(&bed.cluster);
    bed.cluster.stop(Shutdown::Fast);
    assert_eq!(daemon.stop(), 0);
    let _heir = agent.daemon();
    heir.promote();
    all_done(&heir, &segments(&heir, 2, 100));
    let plan = |arguments: &[&str], status| {
        let output = agent.restore(&[&["plan", "--json"], arguments].concat()).expect_status(status);
        serde_json::from_str::<serde_json::Value>(&output.stdout).unwrap()
    };
    let own = plan(&[], 0)["path"].clone();

    let mut second = copy.standby();
    let beside = Agent::with(&second, &bed.store);
    beside.archive_from(&second);
    second.start();
    second.wait_replayed(&copy);
    copy.stop(Shutdown::Fast);
    let daemon = beside.daemon();
    second.promote();
    segments(&second, 1, 100);
    refused(&second);
    assert_eq!(of_timeline(&bed, "00000003"), Vec::<String>::new(), "{}", daemon.log());
    let history = std::fs::read(second.wal_dir().join("00000003.history")).unwrap();
    let (_, kept) = bed.archive().histories();
    assert!(kept.iter().any(|(timeline, content)| timeline.get() == 3 && *content == history), "{kept:?}");
    drop(daemon);
    second.stop(Shutdown::Fast);
    for (timeline, _) in kept {
        let timeline = timeline.to_string();
        agent.run(&["lineage", "settle", "--timeline", &timeline, "--reason", "a test"]).expect_success();
    }
    assert_eq!(plan(&[], 0)["path"], own);

    bed.archive().put_history(3, history);
    user::give_tree(bed.store.root().unwrap());
    let doubt = plan(&[], 1);
    assert!(doubt["message"].as_str().unwrap().contains("two servers claim timeline 2"), "{doubt:#}");
    assert_eq!(plan(&["--target-timeline", "2"], 0)["path"], own);
    all_done(&heir, &segments(&heir, 1, 100));
    // Stored as it is, it lets nothing be acknowledged that no restore follows by itself.
    let daemon = beside.daemon();
    second.start();
    segments(&second, 1, 100);
    wait::until_true(SOON, "it is told", || daemon.log().contains("split brain: timeline 3"));
    std::thread::sleep(SCANNED);
    assert_eq!(of_timeline(&bed, "00000003").len(), 1, "{}", daemon.log());
    let settle = ["lineage", "settle", "--timeline", "3", "--abandoned", "--reason", "a test"];
    agent.run(&settle).expect_success();
    assert_eq!(plan(&[], 0)["path"], own);
}

/// A standby that starts passes over a timeline that was settled as abandoned, also after a look while it ran has left the history in
/// `pg_wal`. Its promotion does not take that number, and a standby that waited follows the new timeline.
#[test]
fn a_standby_passes_over_an_abandoned_timeline_and_follows_the_next_one() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    bed.agent.run(&["backup"]).expect_success();
    all_done(&bed.cluster, &segments(&bed.cluster, 1, 100));
    let (mut copy, beside) = standby(&bed);
    let archiving = beside.daemon();
    copy.promote();
    all_done(&copy, &segments(&copy, 2, 100));
    copy.stop(Shutdown::Fast);
    drop(archiving);
    all_done(&bed.cluster, &segments(&bed.cluster, 3, 100));
    let settled = bed.agent.run(&["lineage", "settle", "--timeline", "2", "--reason", "a test"]);
    assert!(settled.expect_success().stdout.contains("already follows timeline 2"));

    let restored = bed.cluster.dir().join("restored");
    let arguments = ["restore", "--standby", "--pgdata", restored.to_str().unwrap()];
    bed.agent.restore(&arguments).expect_success();
    let follower = Cluster::start_restored(bed.cluster.dir(), bed.cluster.major(), restored);
    follower.wait_for("select count(*) > 0 from t", "t");
    assert_eq!(follower.psql("show recovery_target_timeline"), "latest");

    let mut heir = bed.cluster.standby();
    let agent = Agent::with(&heir, &bed.store);
    agent.archive_from(&heir);
    heir.set("restore_command", agent.restore_command());
    heir.start();
    heir.wait_replayed(&bed.cluster);
    // As a look of the running server leaves it.
    let history = heir.wal_dir().join("00000002.history");
    heir.stop(Shutdown::Fast);
    std::fs::write(&history, bed.archive().get("00000002.history").unwrap()).unwrap();
    user::give(&history);
    heir.start();
    heir.wait_replayed(&bed.cluster);
    bed.cluster.stop(Shutdown::Fast);
    assert_eq!(daemon.stop(), 0);
    let _daemon = agent.daemon();
    heir.promote();
    assert_eq!(heir.psql("select timeline_id from pg_control_checkpoint()"), "3");
    all_done(&heir, &segments(&heir, 2, 100));
    let rows = heir.psql("select count(*) from t");
    follower.wait_for("select count(*) from t", &rows);
}

/// Of two timelines whose histories contradict each other a person says that the younger one counts.
#[test]
fn a_timeline_that_contradicts_another_ones_history_is_settled_as_the_one_that_counts() {
    let mut bed = bed();
    bed.cluster.start();
    let _daemon = bed.agent.daemon();
    bed.agent.run(&["backup"]).expect_success();
    for (timeline, history) in [(2, "1\t0/400000\tx\n"), (3, "1\t0/500000\tx\n2\t0/600000\ty\n")] {
        bed.archive().put_history(timeline, history.into());
    }
    user::give_tree(bed.store.root().unwrap());
    let claimed = "two servers claim timeline 2";
    let plan = bed.agent.restore(&["plan"]).expect_status(1);
    assert!(plan.stderr.contains(claimed) && plan.stderr.contains("settle --timeline 3"), "{plan:?}");
    let settle = ["lineage", "settle", "--timeline", "3", "--reason", "it is production", "--who", "dba"];
    let settled = bed.agent.run(&settle).expect_success();
    assert!(
        settled.stdout.contains("timeline 3") && settled.stdout.contains("its stored history"),
        "{settled:?}"
    );
    let plan = bed.agent.restore(&["plan"]);
    assert!(!plan.stderr.contains(claimed), "{plan:?}");
    let status = bed.agent.run(&["status"]).stdout;
    assert!(status.contains("settled by dba") && status.contains("it is production"), "{status}");
}
