//! Copies of production that take a lineage of their own, and what is left to production.

use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::store::Store;
use walpoint_tests::wait;

use super::{SOON, Two, archived, rows, segment};
use crate::archive_bed::Bed;

/// A copy with a lineage of its own stores nothing in a repository that was away when that was begun: not in production's lineage
/// there either.
#[test]
fn a_copy_never_archives_into_productions_lineage_of_a_repository_that_was_away() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let other = Store::local();
    bed.agent =
        Agent::with(&bed.cluster, &bed.store).repository("other", &other).cluster_line("ack = [\"main\"]");
    bed.agent.archive_from(&bed.cluster);
    bed.cluster.start();
    bed.cluster.psql("create table t (who text)");
    bed.agent.init(&[]).expect_success();
    let daemon = bed.agent.daemon();
    let common = segment(&bed.cluster, "production");
    wait::until_true(SOON, "it is in the other repository", || {
        other.back_door().list("clusters").iter().any(|key| key.ends_with(&common))
    });
    assert_eq!(daemon.stop(), 0);
    bed.cluster.stop(Shutdown::Fast);
    let (mounted, away) = (other.root().unwrap().to_owned(), other.root().unwrap().with_extension("away"));
    std::fs::rename(&mounted, &away).unwrap();
    // The data directory goes on as the copy's.
    bed.agent.init(&["--new-lineage"]).expect_success();
    bed.cluster.start();
    std::fs::rename(&away, &mounted).unwrap();
    let stored =
        || other.back_door().list("clusters").into_iter().filter(|key| key.contains("/wal/")).count();
    let before = stored();
    let daemon = bed.agent.daemon();
    for _ in 0..3 {
        let name = segment(&bed.cluster, "copy");
        archived(&bed.cluster, &name);
    }
    wait::until_true(SOON, "the daemon says what to do", || {
        daemon.log().contains("repository other does not know cluster main")
    });
    assert_eq!(stored(), before, "production's lineage is another server's");
    let checked = bed.agent.run(&["check", "--no-switch"]);
    assert!(checked.stdout.contains("register it with \"archive-agent init\""), "{checked:#?}");
    bed.agent.init(&[]).expect_success();
    wait::until_true(SOON, "it is copied into its own lineage", || stored() >= before + 3);
    assert_eq!(daemon.stop(), 0);
    let keys = other.back_door().list("clusters");
    let foreign =
        keys.iter().filter(|key| key.contains("-1/wal/") || !key.contains("-2/") && key.contains("/wal/"));
    assert_eq!(foreign.count(), before, "{keys:?}");
}

/// A repository that was made anew takes production under its own number, whichever server was registered there first.
#[test]
fn production_is_registered_anew_after_its_copy() {
    let two = Two::start();
    let other = Store::local();
    for cluster in [&two.copy, &two.production] {
        let agent = Agent::with(cluster, &two.bed.store).repository("second", &other);
        agent.write();
        agent.init(&[]).expect_success();
    }
    let keys = other.back_door().list("clusters/main/lineages");
    assert_eq!(keys.len(), 2, "{keys:?}");
    // The same without another repository to tell.
    let third = Store::local();
    for cluster in [&two.copy, &two.production] {
        let agent = Agent::with(cluster, &third);
        agent.write();
        agent.init(&[]).expect_success();
    }
    let keys = third.back_door().list("clusters/main/lineages");
    assert_eq!(keys.len(), 2, "{keys:?}");
}

/// A copy that gets a cluster's name of its own has one lineage number in all its repositories, whichever of them production has too
/// and whichever is added later: what production's file says of them is not its own, and a restore reads all of them.
#[test]
fn a_copy_under_another_name_has_one_lineage_in_all_its_repositories() {
    let two = Two::start();
    let (own, later) = (Store::local(), Store::local());
    let path = two.copy.pgdata().join("walpoint.lineage");
    let before = std::fs::read_to_string(&path).unwrap();
    let named = || Agent::with(&two.copy, &two.bed.store).named("copied").repository("own", &own);
    for agent in [named(), named().repository("later", &later)] {
        agent.write();
        agent.init(&[]).expect_success();
        agent.init(&[]).expect_success();
    }
    let agent = named().repository("later", &later);
    agent.write();
    for store in [&two.bed.store, &own, &later] {
        let lineages = store.back_door().list("clusters/copied/lineages");
        assert!(lineages.len() == 1 && lineages[0].ends_with(&two.lineage(1)), "{lineages:?}");
    }
    let binding = std::fs::read_to_string(&path).unwrap();
    assert!(binding.contains(before.trim_end()) && !binding.contains(" copied "), "{binding}");
    two.copy.set("archive_command", agent.archive_command());
    two.copy.reload();
    archived(&two.copy, &segment(&two.copy, "copy"));
    agent.run(&["backup"]).expect_success();
    let name = segment(&two.copy, "copy");
    archived(&two.copy, &name);
    for store in [&two.bed.store, &own, &later] {
        let keys = store.back_door().list("clusters/copied");
        assert!(keys.iter().any(|key| key.ends_with(&name)), "{keys:?}");
    }
    let place = two.bed.cluster.dir().join("again");
    agent.restore(&["restore", "--pgdata", place.to_str().unwrap()]).expect_success();
    let restored = Cluster::start_restored(two.copy.dir(), two.copy.major(), place);
    restored.wait_promoted();
    assert_eq!(rows(&restored), rows(&two.copy), "{}", restored.log());
}

/// A repository from which a server's lineage was deleted gets it under the number that the server has in the others.
#[test]
fn a_lineage_that_was_deleted_is_made_anew_under_its_number() {
    let two = Two::start();
    let other = Store::local();
    let agent = Agent::with(&two.copy, &two.bed.store).repository("second", &other);
    agent.write();
    agent.init(&[]).expect_success();
    let door = other.back_door();
    door.list("clusters").iter().for_each(|key| door.delete(key));
    agent.init(&[]).expect_success();
    let lineages = door.list("clusters/main/lineages");
    assert!(lineages.len() == 1 && lineages[0].ends_with(&two.lineage(2)), "{lineages:?}");
}

/// A busy copy takes a lineage of its own, far ahead of production. Production's standby, which has no binding, goes on in production's
/// after a failover: the copy's holds something else, and it does not matter how far the copy had come.
#[test]
fn a_copy_that_is_far_ahead_does_not_keep_productions_standby_from_archiving() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    bed.cluster.psql("create table t (who text)");
    let daemon = bed.agent.daemon();
    archived(&bed.cluster, &segment(&bed.cluster, "production"));
    let mut heir = bed.cluster.standby();
    let heirs = Agent::with(&heir, &bed.store);
    heirs.archive_from(&heir);
    heir.start();
    let mut copy = bed.cluster.standby();
    let copys = Agent::with(&copy, &bed.store);
    copys.archive_from(&copy);
    copy.set("archive_command", "false");
    copy.set("wal_keep_size", "256MB");
    copy.start();
    copy.wait_replayed(&bed.cluster);
    copy.stop(Shutdown::Fast);
    // A copy that begins to write without a promotion, on production's timeline.
    std::fs::remove_file(copy.pgdata().join("standby.signal")).unwrap();
    copy.start();
    for _ in 0..20 {
        segment(&copy, "copy");
    }
    archived(&bed.cluster, &segment(&bed.cluster, "production"));
    copys.init(&["--new-lineage"]).expect_success();
    let _copys = copys.daemon();
    copy.set("archive_command", copys.archive_command());
    copy.reload();
    archived(&copy, &segment(&copy, "copy"));
    for _ in 0..3 {
        archived(&bed.cluster, &segment(&bed.cluster, "production"));
    }
    heir.wait_replayed(&bed.cluster);
    assert_eq!(daemon.stop(), 0);
    bed.cluster.stop(Shutdown::Immediate);
    // The standby's daemon sees what lies there before the promotion, after which it is removed.
    let _daemon = heirs.daemon();
    heir.promote();
    heir.wait_promoted();
    heir.psql("checkpoint");
    let name = segment(&heir, "heir");
    archived(&heir, &name);
    let binding = std::fs::read_to_string(heir.pgdata().join("walpoint.lineage")).unwrap();
    assert!(binding.trim_end().ends_with("-1"), "{binding}");
    let keys = bed.store.back_door().list("clusters");
    assert!(keys.iter().any(|key| key.contains("-1/wal/") && key.ends_with(&name)), "{keys:?}");
}

/// The running daemon of a copy's standby, which archives always, goes on in the copy's new lineage. That is begun on the copy: on the
/// standby `init` refuses.
#[test]
fn the_standby_of_a_copy_goes_on_in_the_copys_new_lineage() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    bed.cluster.psql("create table t (who text)");
    let _daemon = bed.agent.daemon();
    archived(&bed.cluster, &segment(&bed.cluster, "production"));
    let mut copy = bed.cluster.standby();
    let copys = Agent::with(&copy, &bed.store);
    copys.archive_from(&copy);
    copy.set("archive_command", "false");
    copy.start();
    copy.wait_replayed(&bed.cluster);
    copy.stop(Shutdown::Fast);
    std::fs::remove_file(copy.pgdata().join("standby.signal")).unwrap();
    copy.start();
    segment(&copy, "copy");
    for _ in 0..5 {
        archived(&bed.cluster, &segment(&bed.cluster, "production"));
    }
    let mut standby = copy.standby();
    let agent = Agent::with(&standby, &bed.store);
    agent.archive_from(&standby);
    standby.set("archive_mode", "always");
    let _beside = agent.daemon();
    standby.start();
    let name = segment(&copy, "copy");
    wait::until_true(wait::SOON, "it is refused", || standby.log().contains("split brain"));
    let refused = agent.init(&["--new-lineage"]).expect_status(1);
    assert!(refused.stderr.contains("HINT: Run this on the primary"), "{}", refused.stderr);

    copys.init(&["--new-lineage"]).expect_success();
    let _copys = copys.daemon();
    copy.set("archive_command", copys.archive_command());
    copy.reload();
    archived(&copy, &segment(&copy, "copy"));
    let done = standby.wal_dir().join(format!("archive_status/{name}.done"));
    // Once a minute it looks which lineage its WAL is in.
    wait::until_true(2 * wait::SOON + std::time::Duration::from_secs(60), "the standby archives", || {
        done.exists()
    });
}

/// `init` says of a data directory that is bound to none of several lineages that it is not, or binds it.
#[test]
fn init_says_what_a_data_directory_without_a_binding_is_bound_to() {
    let two = Two::start();
    let path = two.production.pgdata().join("walpoint.lineage");
    std::fs::remove_file(&path).ok();
    two.production_agent.init(&[]).expect_success();
    let binding = std::fs::read_to_string(&path).unwrap();
    assert!(binding.trim_end().ends_with(&two.lineage(1)), "{binding}");
    // What both have, and no notes.
    let made = Agent::with(&two.follower, &two.bed.store);
    made.write();
    let said = made.init(&[]).expect_success().stdout;
    assert!(said.contains("NOT BOUND") && said.contains("has several lineages"), "{said}");
    assert!(!two.follower.pgdata().join("walpoint.lineage").exists());
}
