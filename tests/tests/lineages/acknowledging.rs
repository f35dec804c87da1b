//! Which repositories acknowledge: one that is added later is on record with the others, and one place under two names is not two.

use serde_json::Value;
use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::store::Store;
use walpoint_tests::wait;

use super::{SOON, archived, json, segment};
use crate::archive_bed::Bed;

/// What `check` says of those that have to acknowledge.
fn ack_lines(agent: &Agent) -> Vec<Value> {
    let report = json(&agent.run(&["check", "--no-switch", "--json"]));
    let all = report["checks"].as_array().unwrap().clone();
    all.into_iter().filter(|line| line["check"].as_str().unwrap().ends_with(": ack")).collect()
}

/// Promises 1 and 4: a repository that acknowledges and is added later is recorded by the server that archives, before it acknowledges, and
/// nowhere else; until then `init` says what to do.
#[test]
fn a_repository_that_is_added_to_ack_is_recorded() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.agent.init(&[]).expect_success();
    let other = Store::local();
    let records = || {
        let keys = [&bed.store, &other].map(|store| store.back_door().list("clusters")).concat();
        keys.into_iter().filter(|key| key.contains("/ack/")).count()
    };
    let both = Agent::with(&bed.cluster, &bed.store).repository("second", &other);
    both.archive_from(&bed.cluster);
    let made = both.init(&[]).expect_success().stdout;
    assert!(made.contains("it records the repositories that were added to ack"), "{made}");
    assert!(made.contains("If it runs already, reload it"), "{made}");
    assert_eq!(records(), 0, "this server has archived nothing yet");
    let daemon = both.daemon();
    bed.cluster.start();
    bed.cluster.psql("create table t (who text)");
    archived(&bed.cluster, &segment(&bed.cluster, "production"));
    assert_eq!(records(), 2, "the new one does not approve itself: {}", daemon.log());
    assert!(daemon.log().contains("WAL must be acknowledged by"), "{}", daemon.log());
    assert_eq!(ack_lines(&both), Vec::<Value>::new());
    both.init(&[]).expect_success();
    assert_eq!(records(), 2, "once is enough");

    // Fewer are no successors: recovery waits for all of them.
    let alone = Agent::with(&bed.cluster, &bed.store);
    let made = alone.init(&[]).expect_success().stdout;
    assert!(made.contains("Recovery waits for the answer") && records() == 2, "{made}");
    assert_eq!(ack_lines(&alone).len(), 1);

    // One that never acknowledged is not lost.
    let never = "00000000000000000000000000000001";
    let refused = both.init(&["--lost-repo", never]).expect_status(1).stderr;
    assert!(refused.contains(never) && refused.contains("ever had to acknowledge"), "{refused}");
    assert_eq!(records(), 2);
}

/// Promises 1 and 4: `ack` that moves from one repository to another one is on record in both before that acknowledges alone, so recovery
/// from the first one waits for it; and while the first one is away, nothing is acknowledged.
#[test]
fn ack_that_moves_to_another_repository_is_recorded_first() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let other = Store::local();
    let agent = |ack: &str| {
        let agent = Agent::with(&bed.cluster, &bed.store).repository("other", &other);
        agent.cluster_line(&format!("ack = [\"{ack}\"]"))
    };
    let (first, moved) = (agent("main"), agent("other"));
    first.archive_from(&bed.cluster);
    first.init(&[]).expect_success();
    bed.cluster.start();
    bed.cluster.psql("create table t (who text)");
    let daemon = first.daemon();
    archived(&bed.cluster, &segment(&bed.cluster, "production"));
    assert_eq!(daemon.stop(), 0);
    let records = |store: &Store| store.back_door().list("clusters").iter().any(|key| key.contains("/ack/"));

    let (mounted, away) =
        (bed.store.root().unwrap().to_owned(), bed.store.root().unwrap().with_extension("away"));
    std::fs::rename(&mounted, &away).unwrap();
    moved.archive_from(&bed.cluster);
    let daemon = moved.daemon();
    bed.cluster.reload();
    let name = segment(&bed.cluster, "production");
    wait::until_true(SOON, "it is refused", || {
        moved.run(&["health"]).stderr.contains("does not record that and cannot be reached")
    });
    let done = bed.cluster.wal_dir().join(format!("archive_status/{name}.done"));
    assert!(!done.exists());
    std::fs::rename(&away, &mounted).unwrap();
    wait::until_true(SOON, "it is archived", || {
        // The archiver pauses after failures until there is more.
        segment(&bed.cluster, "production");
        std::thread::sleep(std::time::Duration::from_secs(2));
        done.exists() || !bed.cluster.wal_dir().join(&name).exists()
    });
    assert!(records(&bed.store) && records(&other), "{}", daemon.log());
    assert_eq!(daemon.stop(), 0);
}

/// Promise 1: two names for one place are refused wherever it is opened, and nothing is acknowledged as stored twice.
#[test]
fn one_place_under_two_names_is_no_second_copy() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let (fresh, link) = (Store::local(), Store::local());
    let link_root = link.root().unwrap().to_owned();
    let leads_to = |store: &Store| {
        std::fs::remove_dir_all(&link_root).or_else(|_| std::fs::remove_file(&link_root)).ok();
        std::os::unix::fs::symlink(store.root().unwrap(), &link_root).unwrap();
    };
    let same = "are the same repository, with the ID";
    leads_to(&fresh);
    let both = Agent::with(&bed.cluster, &fresh).repository("second", &link);
    let refused = both.init(&[]).expect_status(1).stderr;
    assert!(
        refused.contains(&format!("repositories main and second of the configuration {same}")),
        "{refused}"
    );
    assert_eq!(fresh.back_door().list("clusters"), Vec::<String>::new(), "nothing is registered");

    leads_to(&bed.store);
    let both = Agent::with(&bed.cluster, &bed.store).repository("second", &link);
    both.archive_from(&bed.cluster);
    let url = link.url();
    let refused = both.init(&["--repo", &url, "--repo-name", "third"]);
    assert!(!refused.success() && refused.stderr.contains(same), "{refused:#?}");
    let daemon = both.daemon();
    bed.cluster.start();
    bed.cluster.psql("create table t (who text)");
    let first = segment(&bed.cluster, "production");
    wait::until_true(SOON, "it is refused", || daemon.log().contains(same));
    let check = both.run(&["check", "--no-switch"]).expect_status(3).stdout;
    assert!(check.contains(same), "{check}");
    let point = both.run(&["restore-point", "x", "--timeout", "2s"]);
    assert!(!point.success() && point.stderr.contains(same), "{point:#?}");
    assert!(!bed.cluster.wal_dir().join(format!("archive_status/{first}.done")).exists());

    // Another place takes over without a restart.
    let other = Store::local();
    leads_to(&other);
    both.init(&[]).expect_success();
    let done = bed.cluster.wal_dir().join(format!("archive_status/{first}.done"));
    wait::until_true(SOON, "it is archived", || {
        // The archiver pauses after failures until there is more.
        segment(&bed.cluster, "production");
        std::thread::sleep(std::time::Duration::from_secs(2));
        done.exists() || !bed.cluster.wal_dir().join(&first).exists()
    });
    assert!(other.back_door().list("clusters").iter().any(|key| key.ends_with(&first)));
    assert_eq!(daemon.stop(), 0);
}

/// The same of one that does not have to acknowledge: WAL is archived, and `health` says that there is no second copy.
#[test]
fn one_place_outside_ack_under_two_names_is_no_second_copy() {
    let bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.agent.init(&[]).expect_success();
    let link = Store::local();
    std::fs::remove_dir_all(link.root().unwrap()).unwrap();
    std::os::unix::fs::symlink(bed.store.root().unwrap(), link.root().unwrap()).unwrap();
    let both =
        Agent::with(&bed.cluster, &bed.store).repository("second", &link).cluster_line("ack = [\"main\"]");
    both.write();
    let mut cluster = bed.cluster;
    both.archive_from(&cluster);
    let daemon = both.daemon();
    cluster.start();
    cluster.psql("create table t (who text)");
    archived(&cluster, &segment(&cluster, "production"));
    wait::until_true(SOON, "it is reported", || {
        both.run(&["health"]).stderr.contains("are the same repository, with the ID")
    });
    assert_eq!(daemon.stop(), 0);
}
