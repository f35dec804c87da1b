//! Two servers that archive the backlog of one timeline number at the same moment, gaps within one server's WAL, and whose
//! lineage a data directory's WAL is in.

mod archive_bed;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use archive_bed::Bed;
use serde_json::Value;
use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::process::Output;
use walpoint_tests::{user, wait};

const SOON: Duration = Duration::from_secs(120);

/// Long enough for a daemon to try everything that waits at least twice.
const SETTLED: Duration = Duration::from_secs(45);

fn bed() -> Bed {
    Bed::local(Cluster::builder().segment_size_mb(1))
}

fn segments(cluster: &Cluster, who: &str, count: usize) -> Vec<String> {
    cluster.psql("create table if not exists t (who text)");
    let one = |_| {
        cluster.psql(&format!("insert into t select '{who}' from generate_series(1, 100)"));
        cluster.switch_wal()
    };
    (0..count).map(one).collect()
}

#[track_caller]
fn all_done(cluster: &Cluster, names: &[String]) {
    wait::until_true(SOON, &format!("{names:?} are archived\n{}", cluster.log()), || {
        names.iter().all(|name| done(cluster, name))
    });
}

fn done(cluster: &Cluster, name: &str) -> bool {
    cluster.wal_dir().join("archive_status").join(format!("{name}.done")).exists()
}

/// Two standbys that were promoted at one position and have a backlog each, which nothing archives yet.
fn two_with_backlogs(bed: &mut Bed, count: usize) -> [(Cluster, Agent, Vec<String>); 2] {
    with_backlogs(bed, count)
}

/// So many standbys, as [`two_with_backlogs`].
fn with_backlogs<const N: usize>(bed: &mut Bed, count: usize) -> [(Cluster, Agent, Vec<String>); N] {
    bed.cluster.set("wal_keep_size", "64MB");
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, "both", 2));
    let mut all = [(); N].map(|()| {
        let standby = bed.cluster.standby();
        let agent = Agent::with(&standby, &bed.store);
        agent.archive_from(&standby);
        standby.set("archive_command", "false");
        standby.set("wal_keep_size", "256MB");
        (standby, agent)
    });
    for (standby, _) in &mut all {
        standby.start();
        standby.wait_replayed(&bed.cluster);
    }
    bed.cluster.stop(Shutdown::Fast);
    assert_eq!(daemon.stop(), 0);
    let mut who = ["one", "other", "third"].into_iter();
    all.map(|(standby, agent)| {
        standby.promote();
        let names = segments(&standby, who.next().unwrap(), count);
        (standby, agent, names)
    })
}

fn ask(cluster: &Cluster, agent: &Agent) {
    cluster.set("archive_command", agent.archive_command());
    cluster.reload();
}

/// What was archived of these: by which of the two.
fn acknowledged(
    two: &[(Cluster, Agent, Vec<String>); 2],
    names: [&[String]; 2],
) -> BTreeMap<String, Vec<usize>> {
    let mut found: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (at, names) in names.into_iter().enumerate() {
        for name in names.iter().filter(|name| done(&two[at].0, name)) {
            found.entry(name.clone()).or_default().push(at);
        }
    }
    found
}

/// No name was acknowledged to both, and no two neighbors to one each.
#[track_caller]
fn nothing_is_mixed(acknowledged: &BTreeMap<String, Vec<usize>>) {
    let all: Vec<usize> = acknowledged.values().flatten().copied().collect();
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{acknowledged:#?}");
}

#[track_caller]
fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {} {}", output.stdout, output.stderr))
}

/// The first segments of one server's backlog lie before what the other one has stored of its own: they are no neighbors yet,
/// and would be when they are stored.
#[test]
fn a_backlog_that_begins_before_another_servers_wal_is_refused_from_its_first_segment_on() {
    let mut bed = bed();
    let two = two_with_backlogs(&mut bed, 6);
    let late = &two[1].2[2..];
    for name in &two[1].2[..2] {
        let status = two[1].0.wal_dir().join("archive_status");
        std::fs::rename(status.join(format!("{name}.ready")), status.join(format!("{name}.done"))).unwrap();
    }
    let _other = two[1].1.daemon();
    ask(&two[1].0, &two[1].1);
    all_done(&two[1].0, late);
    let one = two[0].1.daemon();
    ask(&two[0].0, &two[0].1);
    wait::until_true(SOON, "the second hears of it", || one.log().contains("split brain"));
    std::thread::sleep(SETTLED);
    let found = acknowledged(&two, [&two[0].2, late]);
    nothing_is_mixed(&found);
    assert_eq!(found.len(), late.len(), "{found:#?}");
    for arguments in [&["status"][..], &["health"], &["check", "--no-switch"]] {
        let output = two[0].1.run(arguments);
        assert!(
            format!("{}{}", output.stdout, output.stderr).contains("split brain"),
            "{arguments:?} {output:?}"
        );
    }

    // A lineage of its own takes all of it, also what was stored and not acknowledged before.
    two[0].1.init(&["--new-lineage"]).expect_success();
    all_done(&two[0].0, &two[0].2);
    two[0].1.run(&["backup"]).expect_success();
    two[0].1.run(&["verify"]).expect_success();
}

/// Both daemons begin at the same moment: whatever order the store sees, at the most one of two neighbors is acknowledged, and
/// everything behind the other one waits.
#[test]
fn two_backlogs_archived_at_the_same_moment_are_never_mixed() {
    for skipped in [0, 1, 3] {
        let mut bed = bed();
        let two = two_with_backlogs(&mut bed, 8);
        let late = &two[1].2[skipped..];
        for name in &two[1].2[..skipped] {
            let status = two[1].0.wal_dir().join("archive_status");
            std::fs::rename(status.join(format!("{name}.ready")), status.join(format!("{name}.done")))
                .unwrap();
        }
        for (cluster, agent, _) in &two {
            agent.write();
            cluster.set("archive_command", agent.archive_command());
        }
        let daemons = two.each_ref().map(|(_, agent, _)| agent.launch());
        std::thread::scope(|scope| {
            for (cluster, ..) in &two {
                scope.spawn(|| cluster.reload());
            }
        });
        wait::until_true(SOON, "one of them hears of it", || {
            daemons.iter().any(|daemon| daemon.log().contains("split brain"))
        });
        std::thread::sleep(SETTLED);
        nothing_is_mixed(&acknowledged(&two, [&two[0].2, late]));
        let told = two.each_ref().map(|(_, agent, _)| {
            let output = agent.run(&["status"]);
            format!("{}{}", output.stdout, output.stderr).contains("split brain")
        });
        assert!(told.contains(&true), "skipped {skipped}: {told:?}");
    }
}

/// A segment that does not continue one that pg_wal holds with the stored content is no split brain: it is stored, and the gap
/// is on record until a backup begins behind it.
#[test]
fn a_gap_in_one_servers_wal_is_on_record_until_a_backup_begins_behind_it() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    bed.agent.run(&["backup"]).expect_success();
    all_done(&bed.cluster, &segments(&bed.cluster, "ours", 1));
    bed.cluster.stop(Shutdown::Fast);
    let place = bed.cluster.dir().join("snapshot");
    let copied = std::process::Command::new("cp").arg("-a").arg(bed.cluster.pgdata()).arg(&place).status();
    assert!(copied.unwrap().success());
    let mut copy = Cluster::adopt(std::sync::Arc::clone(bed.cluster.dir()), bed.cluster.major(), place, None);
    copy.set("archive_command", "false");
    copy.start();
    bed.cluster.start();
    let ours = segments(&bed.cluster, "ours", 2);
    all_done(&bed.cluster, &ours);
    let mut divergent = segments(&copy, "another", 1);
    copy.psql("insert into t select repeat('x', n % 7) from generate_series(1, 777) n");
    let theirs = segments(&copy, "another", 2);
    bed.cluster.set("archive_command", "false");
    bed.cluster.reload();
    assert_eq!(daemon.stop(), 0);

    // As if one server had written both: the neighbor lies beside it, with the content that is stored.
    let broken = &theirs[1];
    let directory = bed.cluster.dir().mkdir("beside");
    put(&bed.cluster, &ours[1], &directory);
    put(&copy, broken, &directory);
    assert!(broken > &ours[1], "{broken} {ours:?}");
    let stored = bed.direct(&directory.join(broken)).expect_success();
    assert!(stored.stderr.contains("HINT: Take a backup now."), "{stored:?}");

    let status = bed.agent.run(&["status"]).expect_success().stdout;
    assert!(status.contains(&format!("before {broken}")) && status.contains("TAKE A BACKUP NOW"), "{status}");
    let document = json(&bed.agent.run(&["status", "--json"]).expect_success());
    let timeline = &document["clusters"][0]["repositories"][0]["status"]["lineages"][0]["timelines"][0];
    assert_eq!(timeline["breaks"][0]["segment"], *broken, "{timeline:#}");
    assert_eq!(
        (&timeline["breaks"][0]["split_brain"], &timeline["breaks"][0]["has_later_backup"]),
        (&false.into(), &false.into())
    );
    let windows = timeline["windows"].as_array().unwrap();
    assert_eq!(windows.len(), 1, "no window reaches across: {windows:#?}");
    let plan = bed.agent.restore(&["plan", "--json"]).expect_status(1);
    let refused = json(&plan);
    assert_eq!(refused["reason"], "broken-chain", "{refused:#}");
    assert!(refused["message"].as_str().unwrap().contains("there is a gap"), "{refused:#}");
    let found = json(&bed.agent.run(&["verify", "--json"]).expect_status(3));
    let findings = found["repositories"][0]["findings"].as_array().unwrap();
    assert!(
        findings.iter().any(|f| f["kind"] == "gap" && f["object"].to_string().contains(broken.as_str())),
        "{findings:#?}"
    );
    assert!(!found.to_string().contains("split brain"), "{found:#}");

    // The server goes on behind the gap and is backed up. What lies before it is what is stored.
    divergent.push(theirs[0].clone());
    assert_eq!(divergent, ours);
    copy.stop(Shutdown::Fast);
    for name in &divergent {
        put(&bed.cluster, name, &copy.wal_dir());
        let status = copy.wal_dir().join("archive_status");
        std::fs::rename(status.join(format!("{name}.ready")), status.join(format!("{name}.done"))).unwrap();
    }
    let agent = Agent::with(&copy, &bed.store);
    agent.archive_from(&copy);
    let _daemon = agent.daemon();
    copy.start();
    agent.run(&["backup"]).expect_success();
    let status = agent.run(&["status"]).expect_success().stdout;
    assert!(
        !status.contains("TAKE A BACKUP NOW") && status.contains("A backup was taken after it"),
        "{status}"
    );
    agent.restore(&["plan"]).expect_success();
    agent.run(&["verify"]).expect_success();
}

fn put(cluster: &Cluster, name: &str, directory: &Path) {
    let path = directory.join(name);
    std::fs::copy(cluster.wal_dir().join(name), &path).unwrap();
    user::give(&path);
}

/// A standby of a server that was given a lineage of its own later has that server's WAL and not its binding: its WAL shows
/// which lineage it belongs to.
#[test]
fn an_unbound_data_directory_is_bound_to_the_lineage_that_has_its_wal() {
    let mut bed = bed();
    let mut two = two_with_backlogs(&mut bed, 2);
    let _one = two[0].1.daemon();
    ask(&two[0].0, &two[0].1);
    all_done(&two[0].0, &two[0].2);

    // Made before the lineage is.
    let mut heir = two[1].0.standby();
    heir.set("archive_command", "false");
    heir.set("wal_keep_size", "256MB");
    heir.start();
    two[1].1.init(&["--new-lineage"]).expect_success();
    let other = two[1].1.daemon();
    ask(&two[1].0, &two[1].1);
    all_done(&two[1].0, &two[1].2);
    let more = segments(&two[1].0, "other", 2);
    all_done(&two[1].0, &more);
    heir.wait_replayed(&two[1].0);
    two[1].0.stop(Shutdown::Fast);
    assert_eq!(other.stop(), 0);
    assert!(!heir.pgdata().join("walpoint.lineage").exists());

    heir.promote();
    let agent = Agent::with(&heir, &bed.store);
    let daemon = agent.daemon();
    ask(&heir, &agent);
    let names = segments(&heir, "heir", 2);
    all_done(&heir, &names);
    let binding = std::fs::read_to_string(heir.pgdata().join("walpoint.lineage")).unwrap();
    assert!(binding.trim().ends_with("-2"), "{binding}");
    assert_eq!(
        bed.archive().get(&names[0]),
        None,
        "it is not in the other server's lineage: {}",
        daemon.log()
    );
}

/// A standby whose daemon ran before its primary got a lineage of its own, and before it was promoted itself: what it found then
/// no longer holds. Its primary's WAL is in the new lineage, and nothing of it overlaps what the other server has stored.
#[test]
fn a_promoted_standby_without_a_binding_is_looked_at_anew_when_it_begins_to_write() {
    let mut bed = bed();
    let mut two = two_with_backlogs(&mut bed, 1);
    let _one = two[0].1.daemon();
    ask(&two[0].0, &two[0].1);
    all_done(&two[0].0, &two[0].2);

    let mut heir = two[1].0.standby();
    heir.set("archive_command", "false");
    heir.set("wal_keep_size", "256MB");
    heir.start();
    let agent = Agent::with(&heir, &bed.store);
    let daemon = agent.daemon();
    agent.run(&["check", "--no-switch"]);
    two[1].1.init(&["--new-lineage"]).expect_success();
    let checked = two[1].1.run(&["check", "--no-switch"]);
    let text = format!("{}{}", checked.stdout, checked.stderr);
    assert!(
        text.contains("streamed before") && text.contains("walpoint.lineage into the data directory"),
        "{text}"
    );

    let other = two[1].1.daemon();
    ask(&two[1].0, &two[1].1);
    all_done(&two[1].0, &two[1].2);
    all_done(&two[1].0, &segments(&two[1].0, "other", 14));
    heir.wait_replayed(&two[1].0);
    two[1].0.stop(Shutdown::Fast);
    assert_eq!(other.stop(), 0);
    assert!(!heir.pgdata().join("walpoint.lineage").exists());
    ask(&heir, &agent);
    heir.promote();
    let names = segments(&heir, "heir", 2);
    all_done(&heir, &names);
    let binding = std::fs::read_to_string(heir.pgdata().join("walpoint.lineage")).unwrap();
    assert!(binding.trim().ends_with("-2"), "{binding}");
    let archive = bed.archive();
    for name in names.iter().map(String::as_str).chain(["00000003.history"]) {
        assert_eq!(archive.get(name), None, "{name} is in the other server's lineage: {}", daemon.log());
    }
}

/// A promoted standby whose WAL is all from before the fork, or in no lineage yet, is refused until it is bound by hand; and
/// production, whose WAL is not in the repository either, is known by what it noted when it archived.
#[test]
fn where_wal_does_not_show_the_lineage_nothing_is_stored_until_it_is_said() {
    let mut bed = bed();
    bed.cluster.start();
    let mut daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, "both", 3));
    let [copy, mut heir] = [(); 2].map(|()| {
        let mut standby = bed.cluster.standby();
        standby.set("archive_command", "false");
        standby.start();
        standby
    });
    copy.wait_replayed(&bed.cluster);
    heir.wait_replayed(&bed.cluster);
    let copy_agent = Agent::with(&copy, &bed.store);
    copy_agent.archive_from(&copy);
    copy.promote();
    copy_agent.init(&["--new-lineage"]).expect_success();

    // Production has written nothing since.
    assert_eq!(daemon.stop(), 0);
    daemon = bed.agent.daemon();
    let ours = segments(&bed.cluster, "production", 1);
    all_done(&bed.cluster, &ours);
    let binding = std::fs::read_to_string(bed.cluster.pgdata().join("walpoint.lineage")).unwrap();
    assert!(binding.trim().ends_with("-1"), "{binding}");
    drop(daemon);

    // Of this one neither.
    heir.stop(Shutdown::Fast);
    std::fs::remove_file(heir.pgdata().join("standby.signal")).unwrap();
    let signal = heir.pgdata().join("recovery.signal");
    std::fs::write(&signal, "").unwrap();
    user::give(&signal);
    heir.set("restore_command", "false");
    heir.set("recovery_target_timeline", "current");
    let agent = Agent::with(&heir, &bed.store);
    agent.archive_from(&heir);
    let _daemon = agent.daemon();
    heir.start();
    heir.wait_promoted();
    let names = segments(&heir, "heir", 2);
    wait::until_true(SOON, "it hears of it", || heir.log().contains("walpoint.lineage"));
    let log = heir.log();
    for said in ["has several lineages", "-1\"", "-2\"", "HINT: Copy walpoint.lineage from the server"] {
        assert!(log.contains(said), "{said}: {log}");
    }
    let keys = bed.store.back_door().list("clusters");
    assert!(!keys.iter().any(|key| key.contains("00000002.history") || key.contains(&names[0])), "{keys:#?}");
    let check = agent.run(&["check", "--no-switch"]);
    assert!(format!("{}{}", check.stdout, check.stderr).contains("has several lineages"), "{check:?}");

    let line = log.lines().rev().find(|line| line.contains("-2\"")).unwrap();
    let line = line.split('"').find(|part| part.ends_with("-2") && part.contains(' ')).unwrap();
    let place = heir.pgdata().join("walpoint.lineage");
    std::fs::write(&place, format!("{line}\n")).unwrap();
    user::give(&place);
    all_done(&heir, &names);
    let keys = bed.store.back_door().list("clusters");
    let stored = |key: &&String| key.contains(&names[0]) && key.contains("-2/wal/");
    assert!(keys.iter().any(|key| stored(&key)), "{keys:#?}");
}

/// A third server, whose WAL the first one's lineage contradicts, does not take the second one's: that the two have the WAL before
/// they parted in common shows nothing.
#[test]
fn a_third_server_takes_the_lineage_of_no_other() {
    let mut bed = bed();
    let [one, other, third] = with_backlogs::<3>(&mut bed, 3);
    let _one = one.1.daemon();
    ask(&one.0, &one.1);
    all_done(&one.0, &one.2);
    other.1.init(&["--new-lineage"]).expect_success();

    let daemon = third.1.daemon();
    ask(&third.0, &third.1);
    let hint = "archive-agent init --new-lineage";
    wait::until_true(SOON, "it hears of it", || third.0.log().contains(hint));
    std::thread::sleep(Duration::from_secs(12));
    assert!(!third.0.pgdata().join("walpoint.lineage").exists(), "{}", daemon.log());
    assert!(third.2.iter().all(|name| !done(&third.0, name)), "{}", daemon.log());

    let _other = other.1.daemon();
    ask(&other.0, &other.1);
    all_done(&other.0, &other.2);
    third.1.init(&["--new-lineage"]).expect_success();
    all_done(&third.0, &third.2);
}
