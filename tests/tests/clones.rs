//! Copies of a server that share its system identifier, its timelines and its archive: what they have in common shows nothing,
//! and what differs is found wherever it lies.

mod archive_bed;

use std::time::Duration;

use archive_bed::{
    Archive, Bed, SCANNED, SOON, all_done, archive_again, clone, forget, promote_from_standby, refused,
    segments, snapshot,
};
use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::proxy::{Fault, Proxy};
use walpoint_tests::store::Store;
use walpoint_tests::wait;

fn bed() -> Bed {
    Bed::local(Cluster::builder().segment_size_mb(1))
}

fn binding(cluster: &Cluster) -> String {
    std::fs::read_to_string(cluster.pgdata().join("walpoint.lineage")).unwrap_or_default()
}

#[track_caller]
fn none_of(archive: &Archive, cluster: &Cluster, names: &[String]) {
    for name in names {
        let ours = std::fs::read(cluster.wal_dir().join(name)).ok();
        let stored = archive.get(name);
        assert!(stored.is_none() || stored != ours, "{name} is stored");
    }
}

/// Production did not archive for a while, and a copy of it with a lineage of its own was faster to store what both have: that
/// does not make production's lineage the copy's.
#[test]
fn a_backlog_that_a_copy_stored_first_does_not_move_production() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 3, 100));
    bed.cluster.set("archive_command", "false");
    bed.cluster.reload();
    assert_eq!(daemon.stop(), 0);
    let common = segments(&bed.cluster, 3, 100);
    bed.cluster.crash();
    let mut copy = snapshot(&bed, "copy");
    let agent = Agent::with(&copy, &bed.store);
    agent.init(&["--new-lineage"]).expect_success();
    bed.cluster.start();
    let _copy = agent.daemon();
    agent.archive_from(&copy);
    copy.start();
    all_done(&copy, &common);

    let daemon = bed.agent.daemon();
    bed.cluster.set("archive_command", bed.agent.archive_command());
    bed.cluster.reload();
    let ours = segments(&bed.cluster, 2, 100);
    all_done(&bed.cluster, &ours);
    assert!(binding(&bed.cluster).trim().ends_with("-1"), "{} {}", binding(&bed.cluster), daemon.log());
    let archive = bed.archive();
    for name in common.iter().chain(&ours) {
        assert!(archive.get(name).is_some(), "{name} is not in production's lineage: {}", daemon.log());
    }
}

/// A clone that ran without archiving marks none of its segments as finished. When it is promoted, they show all the same that
/// its timeline does not come from production: not even its history is stored.
#[test]
fn a_clone_that_is_promoted_far_from_production_stores_nothing_of_its_timeline() {
    let mut bed = bed();
    bed.cluster.start();
    let _daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    let (mut copy, agent) = clone(&bed);
    copy.set("wal_keep_size", "64MB");
    copy.reload();
    // Of equal length, so that no boundary tells them apart.
    segments(&copy, 3, 100);
    all_done(&bed.cluster, &segments(&bed.cluster, 8, 100));
    let beside = agent.daemon();
    promote_from_standby(&mut copy);
    let theirs = segments(&copy, 2, 100);
    refused(&copy);
    let kept = bed.store.back_door().list("clusters");
    let of_it = |key: &&String| key.ends_with("/00000002.history") || key.contains("/wal/00000002/");
    let stored: Vec<&String> = kept.iter().filter(of_it).collect();
    assert!(stored.is_empty(), "{stored:?}\n{}", beside.log());
    none_of(&bed.archive(), &copy, &theirs);
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    let plan = bed.agent.restore(&["plan"]);
    assert!(!plan.stdout.contains("timeline 2"), "{plan:?}");
}

/// The same where the clone no longer has what it wrote: what its timeline begins with is not what production stored there.
#[test]
fn a_clone_without_its_own_segments_is_refused_by_what_its_timeline_begins_with() {
    let mut bed = bed();
    bed.cluster.start();
    let _daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    let (mut copy, agent) = clone(&bed);
    let own = segments(&copy, 3, 100);
    all_done(&bed.cluster, &segments(&bed.cluster, 8, 100));
    forget(&copy, own.last().unwrap());
    copy.psql("insert into t select n, clock_timestamp() from generate_series(1, 50) n");
    let beside = agent.daemon();
    promote_from_standby(&mut copy);
    let theirs = segments(&copy, 2, 100);
    refused(&copy);
    assert!(copy.log().contains("does not begin with what"), "{}", copy.log());
    let kept = bed.store.back_door().list("clusters");
    let of_it = |key: &&String| key.ends_with("/00000002.history") || key.contains("/wal/00000002/");
    let stored: Vec<&String> = kept.iter().filter(of_it).collect();
    assert!(stored.is_empty(), "{stored:?}\n{}", beside.log());
    none_of(&bed.archive(), &copy, &theirs);
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    let plan = bed.agent.restore(&["plan"]);
    assert!(!plan.stdout.contains("timeline 2"), "{plan:?}");
}

/// Two standbys that are promoted at one position, with equal histories. The first one archived a segment and is gone; the second
/// one archives nothing yet.
fn beside_a_dead_one() -> (Bed, Cluster, Agent) {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    let two = [(); 2].map(|()| {
        let mut standby = bed.cluster.standby();
        let agent = Agent::with(&standby, &bed.store);
        agent.archive_from(&standby);
        standby.set("archive_command", "/bin/true");
        standby.start();
        standby.wait_replayed(&bed.cluster);
        (standby, agent)
    });
    bed.cluster.stop(Shutdown::Fast);
    assert_eq!(daemon.stop(), 0);
    let [(mut first, first_agent), (second, second_agent)] = two;
    first.promote();
    second.promote();
    let _first = first_agent.daemon();
    first.set("archive_command", first_agent.archive_command());
    first.reload();
    all_done(&first, &segments(&first, 1, 100));
    first.stop(Shutdown::Fast);
    (bed, second, second_agent)
}

/// A standby that archives all that it receives from a server whose timeline another one archived: it can show as little as that
/// server that what is stored is its own.
#[test]
fn a_standby_of_the_second_server_stores_nothing_behind_the_first_ones() {
    let (bed, second, _) = beside_a_dead_one();
    let own = segments(&second, 1, 100);
    forget(&second, &own[0]);
    let mut third = second.standby();
    let agent = Agent::with(&third, &bed.store);
    agent.archive_from(&third);
    third.set("archive_mode", "always");
    let beside = agent.daemon();
    third.start();
    let theirs = segments(&second, 2, 100);
    refused(&third);
    let archive = bed.archive();
    for name in &theirs {
        assert_eq!(archive.get(name), None, "{name} is stored: {}", beside.log());
    }
}

/// What the daemon copied to a repository beside is this server's there too, though `pg_wal` has it no more; and where that is
/// not noted, the repository that has to acknowledge shows it.
#[test]
fn a_repository_that_was_caught_up_does_not_stop_its_server() {
    let mut bed = bed();
    let other = Store::local();
    bed.agent =
        Agent::with(&bed.cluster, &bed.store).repository("beside", &other).cluster_line("ack = [\"main\"]");
    bed.agent.archive_from(&bed.cluster);
    bed.cluster.start();
    bed.agent.init(&[]).expect_success();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    let (root, away) = (other.root().unwrap(), other.root().unwrap().with_extension("away"));
    let beside = Archive::of(&other, bed.cluster.pgdata());
    std::fs::rename(root, &away).unwrap();
    let missed = segments(&bed.cluster, 3, 100);
    all_done(&bed.cluster, &missed);
    std::fs::rename(&away, root).unwrap();
    let last = missed.last().unwrap();
    let note = bed.cluster.wal_dir().join("walpoint-archived");
    let noted = || std::fs::read_to_string(&note).unwrap();
    wait::until_true(SOON, "it is caught up, and that is noted", || noted().matches(last).count() == 2);
    assert!(beside.get(last).is_some());

    // First with the note of both repositories, then with that of one of them.
    let (mut daemon, mut newest) = (daemon, last.clone());
    for kept in 0..3 {
        forget(&bed.cluster, &newest);
        assert_eq!(daemon.stop(), 0);
        let text = noted();
        let lines: Vec<&str> = text.lines().collect();
        if let Some(line) = usize::checked_sub(kept, 1).and_then(|kept| lines.get(kept)) {
            std::fs::write(&note, format!("{line}\n")).unwrap();
        }
        daemon = bed.agent.daemon();
        let names = segments(&bed.cluster, 2, 100);
        all_done(&bed.cluster, &names);
        wait::until_true(SOON, "they are in both", || names.iter().all(|name| beside.get(name).is_some()));
        assert!(!daemon.log().contains("split brain"), "{}", daemon.log());
        newest = names.last().unwrap().clone();
        wait::until_true(SOON, "both are noted", || noted().matches(&newest).count() == 2);
    }
}

/// Two sites, each with a repository of its own, were promoted at one position while neither saw the other: a plan over both
/// repositories is refused, and catching up copies nothing of the one behind the other's WAL.
#[test]
fn what_two_servers_stored_in_two_repositories_is_never_mixed() {
    let mut bed = bed();
    let other = Store::local();
    bed.agent = Agent::with(&bed.cluster, &bed.store).repository("other", &other);
    bed.agent.archive_from(&bed.cluster);
    bed.cluster.start();
    bed.agent.init(&[]).expect_success();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    bed.agent.run(&["backup"]).expect_success();
    all_done(&bed.cluster, &segments(&bed.cluster, 1, 100));
    let sites = [&bed.store, &other].map(|store| {
        let mut site = bed.cluster.standby();
        let agent = Agent::with(&site, store);
        agent.archive_from(&site);
        site.start();
        site.wait_replayed(&bed.cluster);
        (site, agent)
    });
    bed.cluster.stop(Shutdown::Fast);
    assert_eq!(daemon.stop(), 0);
    let [(first, first_agent), (second, second_agent)] = sites;
    first.promote();
    second.promote();
    let (_first, daemon) = (first_agent.daemon(), second_agent.daemon());
    all_done(&first, &segments(&first, 3, 100));
    let mut theirs = segments(&second, 4, 100);
    let behind = second.psql("select pg_current_wal_lsn()");
    theirs.extend(segments(&second, 1, 100));
    all_done(&second, &theirs);
    assert_eq!(daemon.stop(), 0);

    let both = Agent::with(&first, &bed.store).repository("other", &other);
    let plan = both.restore(&["plan"]);
    let told = format!("{}{}", plan.stdout, plan.stderr);
    assert!(!plan.success() && told.contains("has other content in repository"), "{told}");
    assert!(told.contains("--repo NAME"), "{told}");
    // Damage in the newest segment that both have hides nothing.
    let door = bed.store.back_door();
    let newest =
        door.list("clusters").into_iter().filter(|key| key.contains("/wal/00000002/")).max().unwrap();
    let middle = door.get(&newest).unwrap().len() / 2;
    door.flip_bit(&newest, middle);
    let plan = both.restore(&["plan"]);
    let told = format!("{}{}", plan.stdout, plan.stderr);
    assert!(!plan.success() && told.contains("has other content in repository"), "{newest}: {told}");
    door.flip_bit(&newest, middle);
    // A moment that one of them alone has is no way around it.
    let plan = both.restore(&["plan", "--target-lsn", &behind]);
    let told = format!("{}{}", plan.stdout, plan.stderr);
    assert!(!plan.success() && told.contains("has other content in repository"), "{told}");
    first_agent.restore(&["plan"]).expect_success();

    let healed = Agent::with(&second, &other).repository("beside", &bed.store);
    let healed = healed.cluster_line("ack = [\"main\"]");
    healed.archive_from(&second);
    let daemon = healed.daemon();
    second.reload();
    wait::until_true(SOON, "catching up finds the other server", || {
        daemon.log().contains("has other content in repository")
    });
    theirs.extend(segments(&second, 2, 100));
    refused(&second);
    none_of(&Archive::of(&bed.store, second.pgdata()), &second, &theirs);
    all_done(&first, &segments(&first, 2, 100));
}

/// The same where they were promoted at different positions, and have no segment in common: what begins at another position is
/// another timeline.
#[test]
fn a_timeline_that_begins_elsewhere_in_another_repository_is_no_part_of_a_plan() {
    let mut bed = bed();
    let other = Store::local();
    bed.agent = Agent::with(&bed.cluster, &bed.store).repository("other", &other);
    bed.agent.archive_from(&bed.cluster);
    bed.cluster.start();
    bed.agent.init(&[]).expect_success();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    bed.agent.run(&["backup"]).expect_success();
    all_done(&bed.cluster, &segments(&bed.cluster, 1, 100));
    let [(first, first_agent), (second, second_agent)] = [&bed.store, &other].map(|store| {
        let mut site = bed.cluster.standby();
        let agent = Agent::with(&site, store);
        agent.archive_from(&site);
        site.start();
        site.wait_replayed(&bed.cluster);
        (site, agent)
    });
    assert_eq!(daemon.stop(), 0);
    first.promote();
    let _first = first_agent.daemon();
    all_done(&first, &segments(&first, 2, 100));
    let production = Agent::with(&bed.cluster, &other);
    production.archive_from(&bed.cluster);
    bed.cluster.reload();
    let daemon = production.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 5, 100));
    second.wait_replayed(&bed.cluster);
    bed.cluster.stop(Shutdown::Fast);
    assert_eq!(daemon.stop(), 0);
    second.promote();
    let _second = second_agent.daemon();
    all_done(&second, &segments(&second, 2, 100));

    for (one, two) in [(&bed.store, &other), (&other, &bed.store)] {
        let both = Agent::with(&first, one).repository("other", two);
        let plan = both.restore(&["plan"]);
        let said = format!("{}{}", plan.stdout, plan.stderr);
        assert!(!plan.success() && said.contains("begins at"), "{said}");
        assert!(said.contains("--repo NAME"), "{said}");
    }
    first_agent.restore(&["plan"]).expect_success();
    second_agent.restore(&["plan"]).expect_success();
}

/// Of two servers promoted at one position the second one's first segment is gone from `pg_wal`, and its next one would continue
/// the first server's: records of equal lengths do not show that the server wrote what is stored.
#[test]
fn a_segment_that_fits_behind_another_servers_is_refused() {
    let (bed, mut second, second_agent) = beside_a_dead_one();
    let own = segments(&second, 1, 100);
    forget(&second, &own[0]);
    let beside = second_agent.daemon();
    second.set("archive_command", second_agent.archive_command());
    second.reload();
    let theirs = segments(&second, 2, 100);
    refused(&second);
    let archive = bed.archive();
    for name in &theirs {
        assert_eq!(archive.get(name), None, "{name} is stored: {}", beside.log());
    }
    // Nor when it stops, where PostgreSQL asks once more, nor while it is stopped, nor when it is started again.
    second.stop(Shutdown::Fast);
    let pushed = second_agent.run(&["push", second.wal_dir().join(&theirs[0]).to_str().unwrap()]);
    assert!(!pushed.success() && pushed.stderr.contains("split brain"), "{pushed:?}");
    second.start();
    let later = segments(&second, 1, 100);
    std::thread::sleep(SCANNED);
    for name in theirs.iter().chain(&later) {
        assert_eq!(archive.get(name), None, "{name} is stored: {}", beside.log());
    }
    // As the message says.
    second_agent.init(&["--new-lineage"]).expect_success();
    all_done(&second, &theirs);
}

/// A segment far behind what another server stored, with many in between that wait: the first of these is compared.
#[test]
fn a_long_backlog_behind_another_servers_segment_is_refused() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    let (mut copy, agent) = clone(&bed);
    copy.set("wal_keep_size", "256MB");
    copy.set("archive_command", "false");
    archive_again(&mut copy);
    let theirs = segments(&copy, 80, 1);
    all_done(&bed.cluster, &segments(&bed.cluster, 3, 100));
    assert_eq!(daemon.stop(), 0);
    let pushed = agent.run(&["push", copy.wal_dir().join(theirs.last().unwrap()).to_str().unwrap()]);
    assert!(!pushed.success() && pushed.stderr.contains("split brain"), "{pushed:?}");
    assert_eq!(bed.archive().get(theirs.last().unwrap()), None);
}

/// A repository that does not have to acknowledge knows whose the timeline is: nothing goes into those that have to.
#[test]
fn a_refusal_beside_stops_what_has_to_acknowledge() {
    let mut bed = bed();
    bed.cluster.start();
    let _daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    let (mut copy, _) = clone(&bed);
    segments(&copy, 2, 150);
    all_done(&bed.cluster, &segments(&bed.cluster, 6, 100));
    let own = Store::local();
    let agent = Agent::with(&copy, &own).repository("beside", &bed.store).cluster_line("ack = [\"main\"]");
    agent.init(&[]).expect_success();
    agent.archive_from(&copy);
    let beside = agent.daemon();
    archive_again(&mut copy);
    segments(&copy, 3, 150);
    refused(&copy);
    let stored = own.back_door().list("clusters");
    assert!(!stored.iter().any(|key| key.contains("/wal/")), "{stored:?}\n{}", beside.log());
}

/// Two copies get lineages of their own, one of them in both repositories: no number means one server here and another there.
#[test]
fn a_number_of_a_lineage_means_one_server_in_all_repositories() {
    let mut bed = bed();
    let other = Store::local();
    bed.agent = Agent::with(&bed.cluster, &bed.store).repository("other", &other);
    bed.agent.archive_from(&bed.cluster);
    bed.cluster.set("wal_keep_size", "64MB");
    bed.cluster.start();
    bed.agent.init(&[]).expect_success();
    let daemon = bed.agent.daemon();
    segments(&bed.cluster, 2, 100);
    bed.agent.run(&["backup"]).expect_success();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    bed.cluster.stop(Shutdown::Fast);
    assert_eq!(daemon.stop(), 0);
    let copies = ["one", "two", "three"].map(|name| snapshot(&bed, name));

    let first = Agent::with(&copies[0], &bed.store);
    first.init(&["--new-lineage"]).expect_success();
    let second = Agent::with(&copies[1], &other).repository("also", &bed.store);
    second.init(&["--new-lineage"]).expect_success();
    assert!(binding(&copies[0]).lines().all(|line| line.ends_with("-2")), "{}", binding(&copies[0]));
    assert_eq!(binding(&copies[1]).lines().count(), 2);
    assert!(binding(&copies[1]).lines().all(|line| line.ends_with("-3")), "{}", binding(&copies[1]));

    // One that knows only the other repository cannot know the number.
    let lonely = Store::local();
    let main = bed.store.root().unwrap();
    let copied = std::process::Command::new("cp")
        .args(["-a", "-T"])
        .arg(other.root().unwrap())
        .arg(lonely.root().unwrap())
        .status();
    assert!(copied.unwrap().success());
    for key in lonely.back_door().list("clusters") {
        if key.ends_with("-3") {
            std::fs::remove_file(lonely.root().unwrap().join(key)).unwrap();
        }
    }
    let third = Agent::with(&copies[2], &lonely);
    third.init(&["--new-lineage"]).expect_success();
    let lineage = binding(&copies[2]).trim().rsplit(' ').next().unwrap().to_owned();
    assert!(lineage.ends_with("-2"), "{lineage}");
    let both = Agent::with(&copies[2], &lonely).repository("also", &bed.store);
    let plan = both.restore(&["plan", "--lineage", &lineage]);
    assert!(!plan.success(), "{plan:?} {}", main.display());
    let text = format!("{}{}", plan.stdout, plan.stderr);
    assert!(text.contains("is one server's in repository") && text.contains("--repo NAME"), "{text}");
}

/// Two copies begin their lineages at the same moment, in whatever order their configurations name the repositories: each has one number
/// in all of them, and neither has the other's or production's.
#[test]
fn lineages_that_are_begun_at_the_same_moment_have_numbers_of_their_own() {
    let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), Store::s3());
    let other = Store::s3();
    bed.agent = Agent::with(&bed.cluster, &bed.store).repository("other", &other);
    bed.agent.archive_from(&bed.cluster);
    bed.cluster.start();
    bed.agent.init(&[]).expect_success();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    bed.cluster.stop(Shutdown::Fast);
    assert_eq!(daemon.stop(), 0);
    let proxies = [&bed.store, &other].map(|store| Proxy::to(store.port().unwrap()));
    for (round, crossed) in [("same", false), ("crossed", true)] {
        let copies = ["one", "two"].map(|name| snapshot(&bed, &format!("{name}-{round}")));
        let agents = [false, crossed].into_iter().zip(&copies).map(|(crossed, copy)| {
            let agent = Agent::at(copy.dir(), copy.pgdata(), &copy.conninfo());
            let (main, beside) = ((&bed.store, &proxies[0]), (&other, &proxies[1]));
            let (first, second) = if crossed { (beside, main) } else { (main, beside) };
            agent.repository_via("first", first.0, first.1).repository_via("second", second.0, second.1)
        });
        let agents: Vec<Agent> = agents.collect();
        proxies.iter().for_each(|proxy| proxy.set(Fault::Latency(Duration::from_millis(150))));
        let outputs: Vec<_> = std::thread::scope(|scope| {
            let started = agents.iter().map(|agent| scope.spawn(|| agent.init(&["--new-lineage"])));
            started.collect::<Vec<_>>().into_iter().map(|started| started.join().unwrap()).collect()
        });
        proxies.iter().for_each(Proxy::heal);
        let numbers = copies.iter().zip(&outputs).map(|(copy, output)| {
            assert!(output.success(), "{round}: {output:#?}");
            let text = binding(copy);
            let numbers: Vec<&str> = text.lines().map(|line| line.rsplit('-').next().unwrap()).collect();
            assert!(numbers.len() == 2 && numbers[0] == numbers[1], "{round}: {text} {output:#?}");
            numbers[0].to_owned()
        });
        let numbers: Vec<String> = numbers.collect();
        assert!(numbers[0] != numbers[1] && !numbers.contains(&"1".to_owned()), "{round}: {numbers:?}");
    }
}

/// Production whose note in `pg_wal` is lost archives on while `pg_wal` shows that it wrote what is stored.
#[test]
fn production_without_its_note_archives_on() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 3, 100));
    assert_eq!(daemon.stop(), 0);
    std::fs::remove_file(bed.cluster.wal_dir().join("walpoint-archived")).unwrap();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    assert!(!daemon.log().contains("split brain"), "{}", daemon.log());
    let noted = || std::fs::read_to_string(bed.cluster.wal_dir().join("walpoint-archived"));
    wait::until_true(SOON, "it is noted again", || noted().is_ok_and(|text| !text.trim().is_empty()));
}

/// A standby that archives too stored what production did not, and production forgot it: that it is production's own has to be
/// said, in one command that the message names.
#[test]
fn what_a_standby_stored_is_productions_once_that_is_said() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 3, 100));
    bed.cluster.set("archive_command", "/bin/true");
    bed.cluster.reload();
    assert_eq!(daemon.stop(), 0);
    let beside = segments(&bed.cluster, 2, 100);
    for name in &beside {
        bed.direct(&bed.copy(name, name)).expect_success();
    }
    forget(&bed.cluster, beside.last().unwrap());
    let _daemon = bed.agent.daemon();
    bed.cluster.set("archive_command", bed.agent.archive_command());
    bed.cluster.reload();
    let names = segments(&bed.cluster, 2, 100);
    refused(&bed.cluster);
    let log = bed.cluster.log();
    assert!(log.contains("archive-agent push --same-server"), "{log}");
    let path = bed.cluster.wal_dir().join(&names[0]);
    bed.agent.run(&["push", "--same-server", path.to_str().unwrap()]).expect_success();
    all_done(&bed.cluster, &names);
    bed.agent.run(&["verify"]).expect_success();
}

/// A clone that is refused drops what exceeds `queue_max`. That production stored segments of the same names does not make up for
/// them.
#[test]
fn what_a_clone_dropped_is_not_archived_because_production_has_segments_of_those_names() {
    let mut bed = bed();
    bed.cluster.start();
    let _daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2, 100));
    let (mut copy, agent) = clone(&bed);
    let agent = agent.cluster_line("queue_max = \"2MiB\"").cluster_line("push_timeout = \"2s\"");
    agent.write();
    let ours = segments(&bed.cluster, 4, 100);
    all_done(&bed.cluster, &ours);
    archive_again(&mut copy);
    let _second = agent.daemon();
    let theirs = segments(&copy, 6, 300);
    let both: Vec<&String> = theirs.iter().filter(|name| ours.contains(name)).collect();
    assert!(both.len() > 1, "{ours:?} {theirs:?}");
    let record = copy.wal_dir().join("walpoint-dropped");
    let dropped = |name: &str| std::fs::read_to_string(&record).is_ok_and(|text| text.contains(name));
    wait::until_true(SOON, "what is too much is dropped", || theirs[..4].iter().all(|name| dropped(name)));
    let first = both[0];
    let mut told = String::new();
    wait::until_true(SOON, "the gap is told", || {
        told = agent.run(&["health"]).stderr;
        told.contains(" were dropped since ")
    });
    let from = told.split("files of WAL from ").nth(1).and_then(|text| text.split(' ').next());
    assert!(from.is_some_and(|from| from <= first.as_str()), "the gap begins with {first}: {told}");
}
