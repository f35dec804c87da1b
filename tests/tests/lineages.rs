//! Several lineages of one cluster: which one a restore takes, and what one that was split off has of its parent.

mod archive_bed;

use std::path::PathBuf;
use std::time::Duration;

use archive_bed::Bed;
use serde_json::Value;
use walpoint_tests::agent::{Agent, Daemon};
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::process::Output;
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::Store;
use walpoint_tests::wait;

const SOON: Duration = Duration::from_secs(120);

/// Two servers that go on from one, on the same timeline number: production, and a copy with a lineage of its own.
struct Two {
    bed: Bed,
    production: Cluster,
    production_agent: Agent,
    copy: Cluster,
    copy_agent: Agent,
    /// The backup that both come from.
    backup: String,
    /// A position behind it that both have.
    common: String,
    /// A segment before the fork.
    common_segment: String,
    /// A moment behind the fork that both have.
    moment: String,
    /// A standby that has read the archive before the fork, and was stopped there.
    follower: Cluster,
    _daemons: Vec<Daemon>,
}

fn segment(cluster: &Cluster, who: &str) -> String {
    cluster.psql(&format!("insert into t select '{who}' from generate_series(1, 100)"));
    cluster.switch_wal()
}

#[track_caller]
fn archived(cluster: &Cluster, name: &str) {
    let status = cluster.wal_dir().join("archive_status");
    wait::until_true(SOON, &format!("{name} is archived\n{}", cluster.log()), || {
        status.join(format!("{name}.done")).exists() || !cluster.wal_dir().join(name).exists()
    });
}

#[track_caller]
fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {} {}", output.stdout, output.stderr))
}

impl Two {
    fn start() -> Two {
        let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
        bed.cluster.start();
        let daemon = bed.agent.daemon();
        bed.cluster.psql("create table t (who text)");
        bed.agent.run(&["backup"]).expect_success();
        let backup = json(&bed.agent.run(&["status", "--json"]))["clusters"][0]["repositories"][0]["status"]
            ["backups"][0]["id"]
            .as_str()
            .unwrap()
            .to_owned();
        let common_segment = segment(&bed.cluster, "both");
        let common = bed.cluster.lsn();
        archived(&bed.cluster, &segment(&bed.cluster, "both"));
        let mut follower = bed.cluster.standby();
        follower.set("primary_conninfo", "''");
        let following = Agent::with(&follower, &bed.store);
        following.write();
        follower.set("restore_command", following.restore_command());
        follower.start();
        follower.wait_for("select count(*) from t", "200");
        follower.stop(Shutdown::Fast);
        let standby = |bed: &Bed| {
            let standby = bed.cluster.standby();
            let agent = Agent::with(&standby, &bed.store);
            agent.archive_from(&standby);
            standby.set("archive_command", "false");
            (standby, agent)
        };
        let [(mut production, production_agent), (mut copy, copy_agent)] = [standby(&bed), standby(&bed)];
        for one in [&mut production, &mut copy] {
            one.set("wal_keep_size", "64MB");
            one.start();
            one.wait_replayed(&bed.cluster);
        }
        // More that both stream and the archive has.
        archived(&bed.cluster, &segment(&bed.cluster, "both"));
        for one in [&production, &copy] {
            one.wait_replayed(&bed.cluster);
        }
        bed.cluster.stop(Shutdown::Fast);
        assert_eq!(daemon.stop(), 0);
        production.promote();
        copy.promote();
        let ask = |cluster: &Cluster, agent: &Agent| {
            cluster.set("archive_command", agent.archive_command());
            cluster.reload();
        };
        let first = production_agent.daemon();
        ask(&production, &production_agent);
        archived(&production, &segment(&production, "production"));
        copy_agent.init(&["--new-lineage"]).expect_success();
        let second = copy_agent.daemon();
        ask(&copy, &copy_agent);
        archived(&copy, &segment(&copy, "copy"));
        let moment = copy.psql("select clock_timestamp()");
        archived(&production, &segment(&production, "production"));
        archived(&copy, &segment(&copy, "copy"));
        Two {
            bed,
            production,
            production_agent,
            copy,
            copy_agent,
            backup,
            common,
            common_segment,
            moment,
            follower,
            _daemons: vec![first, second],
        }
    }

    fn lineage(&self, n: u32) -> String {
        format!("{}-{n}", self.production.system_id())
    }

    fn restored(&self, name: &str, arguments: &[&str]) -> (PathBuf, Cluster) {
        let place = self.bed.cluster.dir().join(name);
        let all = [&["restore", "--pgdata", place.to_str().unwrap()], arguments].concat();
        self.production_agent.restore(&all).expect_success();
        let cluster =
            Cluster::start_restored(self.bed.cluster.dir(), self.bed.cluster.major(), place.clone());
        (place, cluster)
    }
}

fn rows(cluster: &Cluster) -> String {
    cluster.psql("select string_agg(who || ' ' || n, ', ' order by who) from (select who, count(*) n from t group by who) x")
}

/// What was split off begins with a backup of its parent, whose WAL leads to the fork; where both have the target, a person
/// chooses; and nothing that one of them needs expires.
#[test]
fn a_lineage_that_was_split_off_is_restored_from_its_parents_backup_and_never_by_itself() {
    let two = Two::start();
    let status = two.copy_agent.run(&["status"]).expect_success().stdout;
    assert!(status.contains(&format!("split off from lineage {} at ", two.lineage(1))), "{status}");
    assert!(status.contains("NO BACKUP of its own: take one now"), "{status}");

    for target in [&[][..], &["--target-time", &two.moment]] {
        let refused =
            json(&two.production_agent.restore(&[&["plan", "--json"], target].concat()).expect_status(1));
        assert_eq!(refused["reason"], "several-lineages", "{refused:#}");
        let message = refused["message"].as_str().unwrap();
        assert!(message.contains(&two.lineage(1)) && message.contains(&two.lineage(2)), "{message}");
    }
    // What lies before the fork is the same in both: nothing to choose.
    let common = json(
        &two.production_agent.restore(&["plan", "--json", "--target-lsn", &two.common]).expect_success(),
    );
    assert_eq!(common["lineage"], two.lineage(1), "{common:#}");

    let plan = json(
        &two.production_agent.restore(&["plan", "--json", "--lineage", &two.lineage(2)]).expect_success(),
    );
    assert_eq!(
        (&plan["lineage"], &plan["backup"]["id"]),
        (&two.lineage(2).into(), &two.backup.clone().into())
    );
    let (place, copy) = two.restored("again-copy", &["--lineage", &two.lineage(2)]);
    copy.wait_promoted();
    assert_eq!(rows(&copy), "both 300, copy 200");
    let binding = std::fs::read_to_string(place.join("walpoint.lineage")).unwrap();
    assert!(binding.trim().ends_with(&two.lineage(2)), "{binding}");
    let (place, production) = two.restored("again-production", &["--lineage", &two.lineage(1)]);
    production.wait_promoted();
    assert_eq!(rows(&production), "both 300, production 200");
    let binding = std::fs::read_to_string(place.join("walpoint.lineage")).unwrap();
    assert!(binding.trim().ends_with(&two.lineage(1)), "{binding}");

    // Production's backups do not push the copy's only one out.
    let mut keep = Agent::with(&two.production, &two.bed.store);
    keep.tables = "\n[cluster.main.retention]\ngrace = \"0s\"\ncount = 1\n".to_owned();
    two.production_agent.run(&["backup"]).expect_success();
    two.production_agent.run(&["backup"]).expect_success();
    let expired = keep.run(&["expire"]).expect_success().stdout;
    assert!(
        expired.contains(&format!("lineage {}, which was split off behind it", two.lineage(2))),
        "{expired}"
    );
    two.production_agent.restore(&["plan", "--lineage", &two.lineage(2)]).expect_success();
    two.production_agent.run(&["verify"]).expect_success();

    // A backup of its own ends that.
    two.copy_agent.run(&["backup"]).expect_success();
    let status = two.copy_agent.run(&["status"]).expect_success().stdout;
    assert!(!status.contains("NO BACKUP"), "{status}");
    keep.run(&["expire"]).expect_success();
    let gone = two.production_agent.restore(&["plan", "--backup", &two.backup]).expect_status(1);
    assert!(gone.stdout.contains("no backup"), "{}", gone.stdout);
    two.production_agent.restore(&["plan", "--lineage", &two.lineage(2)]).expect_success();
    two.production_agent.run(&["verify"]).expect_success();
    assert!(two.copy.timeline() >= 1);
}

/// A standby of the copy reads the copy's WAL and not production's, and a server fetches what lies before the fork.
#[test]
fn restore_fetch_reads_the_lineage_that_the_data_directory_is_bound_to() {
    let two = Two::start();
    let segment = segment(&two.copy, "copy");
    archived(&two.copy, &segment);
    let fetched = |agent: &Agent, name: &str| {
        // As PostgreSQL asks: into its own pg_wal.
        agent.fetch(name, "pg_wal/RECOVERYXLOG")
    };
    let got = fetched(&two.copy_agent, &segment);
    assert!(got.success(), "{got:?}");
    let read = std::fs::read(two.copy.wal_dir().join("RECOVERYXLOG")).unwrap();
    assert_eq!(read, std::fs::read(two.copy.wal_dir().join(&segment)).unwrap());
    let got = fetched(&two.copy_agent, &two.common_segment);
    assert!(got.success(), "what lies before the fork is in the parent: {got:?}");
}

/// A standby that has read one lineage goes on in the one that it is bound to later, as it holds nothing behind the fork.
#[test]
fn a_standby_follows_the_lineage_that_it_is_bound_to_later() {
    let mut two = Two::start();
    let binding = two.copy.pgdata().join("walpoint.lineage");
    std::fs::copy(&binding, two.follower.pgdata().join("walpoint.lineage")).unwrap();
    two.follower.start();
    two.follower.wait_for("select count(*) from t where who = 'copy'", "200");
    assert_eq!(rows(&two.follower), "both 300, copy 200", "{}", two.follower.log());
}

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
    assert!(refused.stderr.contains("--new-lineage makes no repository"), "{refused:#?}");
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
    assert!(checked.stdout.contains("run archive-agent init"), "{checked:#?}");
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
    assert!(made.stdout.contains("recovery waits for its word"), "{made:#?}");
    let id = made.stdout.split("to acknowledge WAL: ").nth(1).unwrap().split(' ').next().unwrap();
    let refused = alone.init(&["--lost-repository", id]);
    assert!(!refused.success() && replaced() == 0, "{refused:#?}");
    assert!(refused.stderr.contains("is not known to archive there"), "{refused:#?}");
    // One that is configured and answers is not lost.
    bed.agent.write();
    let refused = bed.agent.init(&["--lost-repository", id]);
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
    assert!(made.stdout.contains("recovery waits for its word"), "{made:#?}");
}

/// What a person says of a copy's timeline, in a repository that alone has it, says nothing of production's later timeline of that number in
/// another one: that is the latest, and restored.
#[test]
fn an_abandoned_timeline_of_a_copy_is_not_productions_of_that_number() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let other = Store::local();
    let both = |cluster: &Cluster, bed: &Bed| {
        Agent::with(cluster, &bed.store).repository("other", &other).cluster_line("ack = [\"main\"]")
    };
    bed.agent = both(&bed.cluster, &bed);
    bed.agent.archive_from(&bed.cluster);
    bed.cluster.start();
    bed.cluster.psql("create table t (who text)");
    bed.agent.init(&[]).expect_success();
    let daemon = bed.agent.daemon();
    archived(&bed.cluster, &segment(&bed.cluster, "production"));
    bed.agent.run(&["backup"]).expect_success();
    let mut heir = bed.cluster.standby();
    let heirs = both(&heir, &bed);
    heirs.archive_from(&heir);
    heir.start();

    // A recovery test where only the other repository is configured.
    let mut copy = bed.cluster.standby();
    let copys = Agent::with(&copy, &other);
    copys.archive_from(&copy);
    copy.start();
    copy.wait_replayed(&bed.cluster);
    copy.promote();
    copy.wait_promoted();
    let testing = copys.daemon();
    for _ in 0..8 {
        let name = segment(&copy, "copy");
        assert!(name.starts_with("00000002"), "{name}");
        archived(&copy, &name);
    }
    assert_eq!(testing.stop(), 0);
    copy.stop(Shutdown::Fast);
    archived(&bed.cluster, &segment(&bed.cluster, "production"));
    let settle = ["lineage", "settle", "--timeline", "2", "--reason", "a test, thrown away"];
    bed.agent.run(&settle).expect_success();
    let abandoned = |store: &Store| {
        store.back_door().list("clusters").into_iter().filter(|key| key.contains(".abandoned/")).count()
    };
    assert_eq!((abandoned(&bed.store), abandoned(&other)), (0, 1), "only where that timeline is");
    archived(&bed.cluster, &segment(&bed.cluster, "production"));
    heir.wait_replayed(&bed.cluster);

    // Production fails over while the other repository is away.
    let (mounted, away) = (other.root().unwrap().to_owned(), other.root().unwrap().with_extension("away"));
    std::fs::rename(&mounted, &away).unwrap();
    drop(daemon);
    bed.cluster.crash();
    heir.promote();
    heir.wait_promoted();
    let _daemon = heirs.daemon();
    for _ in 0..2 {
        let name = segment(&heir, "heir");
        assert!(name.starts_with("00000002"), "{name}");
        archived(&heir, &name);
    }
    let plan = json(&heirs.restore(&["plan", "--json"]).expect_success());
    assert_eq!(plan["timeline"], 2, "{plan:#}");
    // Not even where somebody says so of the copy's timeline there.
    let record = walk(&away).into_iter().find(|path| path.to_str().unwrap().contains(".abandoned/")).unwrap();
    let below = record.strip_prefix(&away).unwrap();
    let there = bed.store.root().unwrap().join(below);
    std::fs::create_dir_all(there.parent().unwrap()).unwrap();
    std::fs::copy(&record, &there).unwrap();
    let plan = json(&heirs.restore(&["plan", "--json"]).expect_success());
    assert_eq!(plan["timeline"], 2, "{plan:#}");
}

fn walk(directory: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
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

/// An upgrade that was abandoned, or the upgrade of a copy, leaves a newer lineage beside the one in use: neither is restored without
/// a question. One that goes on from the other is.
#[test]
fn an_older_lineage_that_goes_on_is_not_passed_over() {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    ledger.append(&bed.cluster);
    bed.settle();
    let old = format!("{}-1", bed.cluster.system_id());
    let mut other = Cluster::builder().segment_size_mb(1).init();
    let agent = Agent::with(&other, &bed.store);
    agent.archive_from(&other);
    agent.init(&["--new-lineage"]).expect_success();
    let _daemon = agent.daemon();
    other.start();
    agent.run(&["backup"]).expect_success();
    let new = format!("{}-1", other.system_id());
    let plan = |options: &[&str]| json(&bed.agent.restore(&[&["--json", "plan"], options].concat()));
    assert_eq!(plan(&[])["lineage"], new, "{:#}", plan(&[]));
    // Registrations are told apart by seconds.
    std::thread::sleep(Duration::from_secs(2));
    ledger.append(&bed.cluster);
    bed.settle();
    let refused = plan(&[]);
    assert_eq!(refused["reason"], "several-lineages", "{refused:#}");
    for lineage in [&old, &new] {
        assert!(refused["message"].to_string().contains(lineage.as_str()), "{refused:#}");
        assert_eq!(plan(&["--lineage", lineage])["lineage"], lineage.as_str());
    }
}

/// Damage to the facts of a copy's lineage stops nothing of production's: it is archived and backed up, also by an agent that is
/// started then, and restored where a person names it. The copy archives into no other lineage meanwhile.
#[test]
fn damaged_facts_of_a_copys_lineage_stop_nothing_of_productions() {
    let mut two = Two::start();
    for daemon in std::mem::take(&mut two._daemons) {
        assert_eq!(daemon.stop(), 0);
    }
    let (own, copys) = (two.lineage(1), two.lineage(2));
    let door = two.bed.store.back_door();
    let key = door.list("clusters/main/lineages").into_iter().find(|key| key.ends_with(&copys)).unwrap();
    door.flip_bit(&key, 100);
    // Whole segments in production's lineage.
    let of_own = || {
        let keys = door.list("clusters/main").into_iter();
        let whole = |key: &String| key.rsplit('/').next().is_some_and(|name| name.len() == 24);
        keys.filter(|key| key.contains(&format!("/{own}/wal/")) && whole(key)).count()
    };

    let _daemon = two.production_agent.daemon();
    archived(&two.production, &segment(&two.production, "production"));
    let (archived_before, _copys_daemon) = (of_own(), two.copy_agent.launch());
    let waiting = segment(&two.copy, "copy");
    wait::until_true(SOON, "the copy's agent says why it stores nothing", || {
        two.copy.psql("select failed_count from pg_stat_archiver") != "0"
    });
    assert!(two.copy.wal_dir().join("archive_status").join(format!("{waiting}.ready")).exists());
    assert_eq!(of_own(), archived_before, "nothing of the copy in production's lineage");

    let backup = two.production_agent.run(&["backup"]);
    backup.expect_success();
    wait::until_true(SOON, "health names the lineage", || {
        let health = two.production_agent.run(&["health"]);
        format!("{}{}", health.stdout, health.stderr).contains(&copys)
    });
    let check = two.production_agent.run(&["check"]);
    assert!(check.stdout.contains(&copys), "{}{}", check.stdout, check.stderr);
    let verify = two.production_agent.run(&["verify", "--light"]);
    assert!(verify.status == 3 && verify.stdout.contains(&key), "{}{}", verify.stdout, verify.stderr);
    let status = json(&two.production_agent.run(&["status", "--json"]).expect_success());
    let status = &status["clusters"][0]["repositories"][0]["status"];
    assert_eq!(status["damaged_lineages"][0]["lineage"], copys, "{status:#}");

    let plan = |options: &[&str]| two.production_agent.restore(&[&["--json", "plan"], options].concat());
    let refused = json(&plan(&[]));
    assert_eq!(refused["reason"], "damaged-lineage", "{refused:#}");
    assert!(refused["hints"].to_string().contains(&format!("--lineage {own}")), "{refused:#}");
    assert_eq!(json(&plan(&["--lineage", &own]))["lineage"], own.as_str());
    assert!(plan(&["--lineage", &copys]).stderr.contains("damaged"));
    let (_, restored) = two.restored("beside-damage", &["--lineage", &own]);
    assert!(rows(&restored).contains("production"), "{}", rows(&restored));
}
