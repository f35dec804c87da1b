//! Lineages in several repositories: which of them get a new one, and what is under which number.

use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::store::Store;
use walpoint_tests::wait;

use super::{SOON, Two, archived, segment};
use crate::archive_bed::Bed;

/// A repository that is not mounted is not made anew, and neither the data directory nor the other repository changes.
#[test]
fn a_new_lineage_makes_no_repository() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let other = Store::local();
    bed.agent = Agent::with(&bed.cluster, &bed.store).repository("other", &other);
    bed.agent.archive_from(&bed.cluster);
    bed.cluster.start();
    bed.agent.init(&[]).expect_success();
    let (mounted, away) = (other.root().unwrap().to_owned(), other.root().unwrap().with_extension("away"));
    std::fs::rename(&mounted, &away).unwrap();
    let keys = bed.store.back_door().list("clusters");
    let refused = bed.agent.init(&["--new-lineage"]);
    assert!(!refused.success(), "{refused:#?}");
    assert!(refused.stderr.contains("--new-lineage creates no repository"), "{refused:#?}");
    assert!(!mounted.join("walpoint.json").exists());
    assert!(!bed.cluster.pgdata().join("walpoint.lineage").exists());
    assert_eq!(bed.store.back_door().list("clusters"), keys);
    drop(std::fs::remove_dir_all(&mounted));
    std::fs::rename(&away, &mounted).unwrap();
    bed.agent.init(&["--new-lineage"]).expect_success();

    // Once more begins no other one, unless that is asked for.
    let keys = bed.store.back_door().list("clusters");
    let binding = std::fs::read_to_string(bed.cluster.pgdata().join("walpoint.lineage")).unwrap();
    let refused = bed.agent.init(&["--new-lineage"]);
    assert!(!refused.success(), "{refused:#?}");
    for said in ["already to lineage", "no WAL of another server", "--even-if-bound"] {
        assert!(refused.stderr.contains(said), "{said}: {refused:#?}");
    }
    assert_eq!(bed.store.back_door().list("clusters"), keys);
    assert_eq!(std::fs::read_to_string(bed.cluster.pgdata().join("walpoint.lineage")).unwrap(), binding);
    bed.agent.init(&[]).expect_success();
    bed.agent.init(&["--new-lineage", "--even-if-bound"]).expect_success();
    let binding = std::fs::read_to_string(bed.cluster.pgdata().join("walpoint.lineage")).unwrap();
    assert!(binding.lines().all(|line| line.ends_with("-3")), "{binding}");
}

/// A server with a lineage of its own has it under the same number in a repository that is added later, and its standbys find it there,
/// whichever repository answers first and whether or not their bindings mention the new one.
#[test]
fn a_repository_that_is_added_later_has_a_server_under_its_own_number() {
    let two = Two::start();
    let added = Store::local();
    let with_added = |first: &Store, second: &Store| {
        let agent = Agent::with(&two.copy, first).repository("second", second);
        agent.write();
        agent
    };
    let both = with_added(&two.bed.store, &added);
    let path = two.copy.pgdata().join("walpoint.lineage");
    let before = std::fs::read_to_string(&path).unwrap();
    both.init(&[]).expect_success();
    let own = two.lineage(2);
    let binding = std::fs::read_to_string(&path).unwrap();
    assert!(binding.starts_with(&before) && binding.lines().count() == 2, "{binding}");
    assert!(binding.lines().all(|line| line.ends_with(&own)), "{binding}");
    let lineages = added.back_door().list("clusters/main/lineages");
    assert!(lineages.len() == 1 && lineages[0].ends_with(&own), "{lineages:?}");
    // Once more changes nothing, and neither does it where the binding was lost.
    both.init(&[]).expect_success();
    std::fs::write(&path, &before).unwrap();
    both.init(&[]).expect_success();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), binding);
    assert_eq!(added.back_door().list("clusters/main/lineages"), lineages);

    let name = segment(&two.copy, "copy");
    let path_of = two.copy.wal_dir().join(&name);
    both.run(&["push", path_of.to_str().unwrap()]).expect_success();
    archived(&two.production, &segment(&two.production, "production"));
    archived(&two.production, &segment(&two.production, "production"));
    let own_bytes = std::fs::read(&path_of).unwrap();
    for binding in [&binding, &before] {
        std::fs::write(&path, binding).unwrap();
        for agent in [with_added(&two.bed.store, &added), with_added(&added, &two.bed.store)] {
            // Each recovery begins anew.
            std::fs::remove_file(two.copy.wal_dir().join("walpoint-origin")).ok();
            agent.fetch(&name, "pg_wal/RECOVERYXLOG").expect_success();
            assert!(std::fs::read(two.copy.wal_dir().join("RECOVERYXLOG")).unwrap() == own_bytes);
        }
    }
}

/// Where a server has another number in another repository, whatever made it so, nothing is read under that number.
#[test]
fn the_number_of_one_repository_is_not_taken_for_another_ones() {
    let two = Two::start();
    let other = Store::local();
    let path = two.copy.pgdata().join("walpoint.lineage");
    let binding = std::fs::read_to_string(&path).unwrap();
    // In the other one it is the first.
    std::fs::remove_file(&path).unwrap();
    let alone = Agent::with(&two.copy, &other);
    alone.write();
    alone.init(&[]).expect_success();
    std::fs::write(&path, &binding).unwrap();
    let name = segment(&two.copy, "copy");
    archived(&two.copy, &name);
    while segment(&two.production, "production") < name {}
    archived(&two.production, &name);
    let own = std::fs::read(two.copy.wal_dir().join(&name)).unwrap();
    for (first, second) in [(&two.bed.store, &other), (&other, &two.bed.store)] {
        let agent = Agent::with(&two.copy, first).repository("second", second);
        agent.write();
        std::fs::remove_file(two.copy.wal_dir().join("walpoint-origin")).ok();
        agent.fetch(&name, "pg_wal/RECOVERYXLOG").expect_success();
        let read = std::fs::read(two.copy.wal_dir().join("RECOVERYXLOG")).unwrap();
        assert!(read == own, "it is production's");
    }
}

/// A repository outside `ack` that is away does not keep a server from its new lineage, and gets the same one when it is back.
#[test]
fn a_new_lineage_waits_for_no_repository_outside_ack() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let other = Store::local();
    bed.agent =
        Agent::with(&bed.cluster, &bed.store).repository("other", &other).cluster_line("ack = [\"main\"]");
    bed.agent.archive_from(&bed.cluster);
    bed.cluster.start();
    bed.cluster.psql("create table t (who text)");
    bed.agent.init(&[]).expect_success();
    let (mounted, away) = (other.root().unwrap().to_owned(), other.root().unwrap().with_extension("away"));
    std::fs::rename(&mounted, &away).unwrap();
    let begun = bed.agent.init(&["--new-lineage"]).expect_success();
    assert!(begun.stdout.contains("it begins the same lineage there"), "{begun:#?}");
    assert!(!mounted.exists());
    let path = bed.cluster.pgdata().join("walpoint.lineage");
    let binding = std::fs::read_to_string(&path).unwrap();
    assert!(binding.lines().count() == 1 && binding.trim_end().ends_with("-2"), "{binding}");
    std::fs::rename(&away, &mounted).unwrap();
    let daemon = bed.agent.daemon();
    let name = segment(&bed.cluster, "production");
    archived(&bed.cluster, &name);
    bed.agent.init(&[]).expect_success();
    let binding = std::fs::read_to_string(&path).unwrap();
    assert!(binding.lines().count() == 2 && binding.lines().all(|line| line.ends_with("-2")), "{binding}");
    let name = segment(&bed.cluster, "production");
    wait::until_true(SOON, "it is stored in both", || {
        let stored = |store: &Store| {
            store
                .back_door()
                .list("clusters")
                .iter()
                .any(|key| key.contains("-2/wal/") && key.ends_with(&name))
        };
        stored(&bed.store) && stored(&other)
    });
    assert_eq!(daemon.stop(), 0);
}

/// Another host's names for the repositories make none of them lost: neither one that does not acknowledge there, nor one that a
/// standby's host does not know.
#[test]
fn names_of_another_host_take_no_repositorys_place() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let other = Store::local();
    bed.agent =
        Agent::with(&bed.cluster, &bed.store).repository("other", &other).cluster_line("ack = [\"main\"]");
    bed.agent.archive_from(&bed.cluster);
    bed.agent.init(&[]).expect_success();
    let replaced = || {
        let keys = [&bed.store, &other].map(|store| store.back_door().list("clusters")).concat();
        keys.into_iter().filter(|key| key.contains("/ack/")).count()
    };
    let crossed =
        Agent::with(&bed.cluster, &other).repository("remote", &bed.store).cluster_line("ack = [\"main\"]");
    crossed.write();
    let said = crossed.init(&[]).expect_success().stdout;
    assert!(!said.contains("takes the place") && replaced() == 0, "{said}");
    let alone = Agent::with(&bed.cluster, &other);
    alone.write();
    let signal = bed.cluster.pgdata().join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    let said = alone.init(&[]).expect_success().stdout;
    assert!(!said.contains("takes the place") && replaced() == 0, "{said}");
    // A server that writes, a promoted copy say, without the repository that acknowledges: neither by a name nor by a word.
    std::fs::remove_file(&signal).unwrap();
    let made = alone.init(&[]).expect_success();
    assert!(!made.stdout.contains("takes the place") && replaced() == 0, "{made:#?}");
    assert!(made.stdout.contains("Recovery waits for the answer"), "{made:#?}");
    let id = made.stdout.split("to acknowledge WAL: ").nth(1).unwrap().split(' ').next().unwrap();
    let refused = alone.init(&["--lost-repo", id]);
    assert!(!refused.success() && replaced() == 0, "{refused:#?}");
    assert!(refused.stderr.contains("has no record of archiving there"), "{refused:#?}");
    // One that is configured and answers is not lost.
    bed.agent.write();
    let refused = bed.agent.init(&["--lost-repo", id]);
    assert!(!refused.success() && replaced() == 0, "{refused:#?}");
    assert!(refused.stderr.contains("it is configured here and answers"), "{refused:#?}");
}

/// Promises 1 and 4: `init` for a repository beside, on the host of a standby that was promoted for a test, leaves the repository that
/// acknowledges production's WAL its word: recovery waits for it.
#[test]
fn a_promoted_copy_takes_no_repositorys_place_among_those_that_acknowledge() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let other = Store::local();
    bed.agent =
        Agent::with(&bed.cluster, &bed.store).repository("dr", &other).cluster_line("ack = [\"main\"]");
    bed.agent.archive_from(&bed.cluster);
    bed.cluster.start();
    bed.cluster.psql("create table t (who text)");
    bed.agent.init(&[]).expect_success();
    let _daemon = bed.agent.daemon();
    archived(&bed.cluster, &segment(&bed.cluster, "production"));
    let mut copy = bed.cluster.standby();
    copy.set("archive_mode", "off");
    copy.start();
    copy.wait_replayed(&bed.cluster);
    copy.promote();
    copy.wait_promoted();
    copy.psql("checkpoint");
    // The repository beside has the default name there.
    let agent = Agent::with(&copy, &other);
    agent.write();
    let made = agent.init(&[]).expect_success();
    let keys = [&bed.store, &other].map(|store| store.back_door().list("clusters")).concat();
    assert!(!keys.iter().any(|key| key.contains("/ack/")), "{keys:?} {made:#?}");
    assert!(made.stdout.contains("Recovery waits for the answer"), "{made:#?}");
}

/// Promise 4: a repository that is registered by its URL records those that acknowledge elsewhere, and one that was registered by itself
/// does once WAL is stored there. Where it is not known who they are, nothing is registered. A recovery that has no other repository does
/// not take what is only in another one for the end of WAL.
#[test]
fn a_repository_that_is_registered_by_its_url_records_who_acknowledges() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let [by_url, by_itself] = [Store::local(), Store::local()];
    bed.agent.archive_from(&bed.cluster);
    bed.cluster.start();
    bed.cluster.psql("create table t (who text)");
    bed.agent.init(&[]).expect_success();
    Agent::with(&bed.cluster, &by_itself).init(&[]).expect_success();
    let all = Agent::with(&bed.cluster, &bed.store)
        .repository("url", &by_url)
        .repository("itself", &by_itself)
        .cluster_line("ack = [\"main\"]");
    all.write();
    let url = format!("file://{}", by_url.root().unwrap().display());
    let register = || all.run(&["init", "--cluster", "main", "--repo", &url]);
    let (mounted, away) =
        (bed.store.root().unwrap().to_owned(), bed.store.root().unwrap().with_extension("away"));
    std::fs::rename(&mounted, &away).unwrap();
    let refused = register().expect_status(1);
    assert!(refused.stderr.contains("repository main of cluster main cannot be opened"), "{refused:#?}");
    assert!(by_url.back_door().list("clusters").is_empty());
    std::fs::rename(&away, &mounted).unwrap();
    register().expect_success();

    let push = |agent: &Agent| {
        let name = segment(&bed.cluster, "production");
        agent.run(&["push", bed.cluster.wal_dir().join(&name).to_str().unwrap()]).expect_success();
        name
    };
    let everywhere = push(&all);
    bed.agent.write();
    let lagged = push(&bed.agent);
    for store in [&by_url, &by_itself] {
        let alone = Agent::with(&bed.cluster, store).cluster_line("fetch_timeout = \"2s\"");
        let fetch = |name: &str| {
            std::fs::remove_file(bed.cluster.wal_dir().join("walpoint-origin")).ok();
            alone.fetch(name, "pg_wal/RECOVERYXLOG")
        };
        fetch(&everywhere).expect_success();
        let waits = fetch(&lagged);
        assert!(waits.status > 1, "it may be in the repository that acknowledges: {waits:#?}");
    }
}

/// Promise 12: what is registered by its URL has a server under its own number, too, where the data directory's binding is lost.
#[test]
fn a_repository_that_is_registered_by_its_url_has_a_server_under_its_own_number() {
    let two = Two::start();
    let added = Store::local();
    let name = segment(&two.copy, "copy");
    archived(&two.copy, &name);
    let agent = Agent::with(&two.copy, &two.bed.store).repository("second", &added);
    agent.write();
    std::fs::remove_file(two.copy.pgdata().join("walpoint.lineage")).unwrap();
    let url = format!("file://{}", added.root().unwrap().display());
    agent.run(&["init", "--cluster", "main", "--repo", &url]).expect_success();
    let lineages = added.back_door().list("clusters/main/lineages");
    assert!(lineages.len() == 1 && lineages[0].ends_with(&two.lineage(2)), "{lineages:?}");
}
