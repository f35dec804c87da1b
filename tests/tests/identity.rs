//! Two servers and one archive: what a repository holds of a timeline comes from one server's history of it.

mod archive_bed;

use std::time::Duration;

use archive_bed::{Archive, Bed};
use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::{user, wait};

const SOON: Duration = Duration::from_secs(120);

/// Longer than the look-ahead needs to find what is ready without a hint.
const SCANNED: Duration = Duration::from_secs(12);

fn bed() -> Bed {
    Bed::local(Cluster::builder().segment_size_mb(1))
}

/// Writes rows and switches so many segments; their names.
fn segments(cluster: &Cluster, count: usize) -> Vec<String> {
    cluster.psql("create table if not exists t (n int, at timestamptz)");
    let one = |_| {
        cluster.psql("insert into t select n, clock_timestamp() from generate_series(1, 100) n");
        cluster.switch_wal()
    };
    (0..count).map(one).collect()
}

/// A standby of a server, with a configuration of its own for the same archive, which it uses once it is promoted.
fn standby(bed: &Bed) -> (Cluster, Agent) {
    let standby = bed.cluster.standby();
    let agent = Agent::with(&standby, &bed.store);
    agent.archive_from(&standby);
    (standby, agent)
}

/// Two standbys that have all that their primary ever wrote; it is stopped.
fn two_standbys(bed: &mut Bed) -> [(Cluster, Agent); 2] {
    let mut two = [standby(bed), standby(bed)];
    for (standby, _) in &mut two {
        standby.start();
        standby.wait_replayed(&bed.cluster);
    }
    bed.cluster.stop(Shutdown::Fast);
    two
}

/// Waits until PostgreSQL archived all of these: it tries again a minute after it failed.
#[track_caller]
fn all_done(cluster: &Cluster, names: &[String]) {
    let status = cluster.wal_dir().join("archive_status");
    wait::until_true(SOON, &format!("{names:?} are archived\n{}", cluster.log()), || {
        // What a checkpoint removed since was archived.
        let done = |name: &String| status.join(format!("{name}.done")).exists();
        names.iter().all(|name| done(name) || !cluster.wal_dir().join(name).exists())
    });
}

fn mark(cluster: &Cluster, name: &str, from: &str, to: &str) {
    let status = cluster.wal_dir().join("archive_status");
    std::fs::rename(status.join(format!("{name}.{from}")), status.join(format!("{name}.{to}"))).unwrap();
}

/// Of every segment of the second timeline that is stored, the content is this server's, as far as it still has it.
fn all_is_of(archive: &Archive, cluster: &Cluster, names: &[String]) {
    for name in names {
        let kept = std::fs::read(cluster.wal_dir().join(name));
        let stored = archive.get(name).unwrap_or_else(|| panic!("{name} is not stored"));
        assert!(kept.is_err() || kept.ok() == Some(stored), "{name} is another server's");
    }
}

/// Nothing is archived ahead of a server that does not ask: not of one that never asked, not of one that was restarted
/// without archiving, and not of a copy that was promoted beside production.
#[test]
fn nothing_is_stored_for_a_server_that_does_not_ask() {
    let mut bed = bed();
    bed.cluster.set("archive_command", "");
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    let archive = bed.archive();
    let mut names = segments(&bed.cluster, 8);
    std::thread::sleep(SCANNED);
    assert!(names.iter().all(|name| archive.get(name).is_none()), "{}", daemon.log());

    bed.cluster.set("archive_command", bed.agent.archive_command());
    bed.cluster.reload();
    all_done(&bed.cluster, &names);
    names = segments(&bed.cluster, 2);
    all_done(&bed.cluster, &names);

    bed.cluster.set("archive_command", "");
    bed.cluster.stop(Shutdown::Fast);
    bed.cluster.start();
    names = segments(&bed.cluster, 3);
    std::thread::sleep(SCANNED);
    assert!(names.iter().all(|name| archive.get(name).is_none()), "{}", daemon.log());

    let (mut copy, agent) = standby(&bed);
    copy.set("archive_command", "");
    copy.start();
    copy.wait_replayed(&bed.cluster);
    let beside = agent.daemon();
    copy.promote();
    segments(&copy, 2);
    std::thread::sleep(SCANNED);
    assert!(archive.get("00000002.history").is_none(), "{}", beside.log());

    // An explicit command asks.
    agent.run(&["run", "--once"]).expect_success();
    assert!(archive.get("00000002.history").is_some());
}

/// Two standbys promoted at one position write equal histories. Who archives second hears so at its first segment that
/// differs, nothing of it is stored, and one command gives it a lineage of its own while its daemon runs.
#[test]
fn the_second_of_two_promoted_at_one_position_stores_nothing_until_it_has_a_lineage_of_its_own() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2));
    let [(first, first_agent), (second, second_agent)] = two_standbys(&mut bed);
    assert_eq!(daemon.stop(), 0);
    for promoted in [&first, &second] {
        promoted.set("archive_command", "false");
        promoted.reload();
        promoted.promote();
    }
    let history = |cluster: &Cluster| std::fs::read(cluster.wal_dir().join("00000002.history")).unwrap();
    assert_eq!(history(&first), history(&second), "the case that histories do not tell apart");

    let _first = first_agent.daemon();
    first.set("archive_command", first_agent.archive_command());
    first.reload();
    let mut ours = segments(&first, 3);
    all_done(&first, &ours);

    // A backlog, so that segments are uploaded at the same time.
    let theirs = segments(&second, 6);
    let beside = second_agent.daemon();
    second.set("archive_command", second_agent.archive_command());
    second.reload();
    wait::until_true(SOON, "the second hears of it", || second.log().contains("split brain"));
    std::thread::sleep(SCANNED);
    let archive = bed.archive();
    for name in theirs.iter().filter(|name| !ours.contains(name)) {
        assert_eq!(archive.get(name), None, "{name} is of the second server: {}", beside.log());
    }
    all_is_of(&archive, &first, &ours);
    for (agent, split) in [(&second_agent, true), (&first_agent, false)] {
        let told = [agent.run(&["health"]), agent.run(&["status"]), agent.run(&["check", "--no-switch"])];
        for output in &told {
            let text = format!("{}{}", output.stdout, output.stderr);
            assert_eq!(text.contains("split brain"), split, "{text}");
        }
        assert_eq!((told[2].status == 3), split, "{:?}", told[2]);
        let backup = agent.run(&["backup"]);
        assert_eq!(backup.success(), !split, "{backup:?}");
        assert_eq!(backup.stderr.contains("split brain"), split, "{backup:?}");
    }
    assert!(beside.log().contains("archive-agent init --new-lineage --cluster main"), "{}", beside.log());

    second_agent.init(&["--new-lineage"]).expect_success();
    all_done(&second, &theirs);
    wait::until_true(SOON, "no file waits", || ready(&second).is_empty());
    second_agent.run(&["backup"]).expect_success();
    let status = second_agent.run(&["status"]);
    assert!(!status.stdout.contains("split brain"), "{status:?}");
    wait::until_true(SOON, "the daemon is well", || {
        let health = second_agent.run(&["health"]);
        health.success() && !health.stderr.contains("split brain")
    });
    // The first one goes on where it was, also with a new daemon.
    drop(_first);
    let _again = first_agent.daemon();
    ours.extend(segments(&first, 3));
    all_done(&first, &ours);
    all_is_of(&archive, &first, &ours);
}

fn ready(cluster: &Cluster) -> Vec<String> {
    let entries = std::fs::read_dir(cluster.wal_dir().join("archive_status")).unwrap().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.ends_with(".ready")).collect()
}

/// A history that differs is kept beside, by its hash, and nothing of its timeline is stored, not ahead of time either.
#[test]
fn a_history_that_differs_is_kept_beside_and_nothing_of_its_timeline_is_stored() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 1));
    let (mut copy, copy_agent) = standby(&bed);
    copy.start();
    copy.wait_replayed(&bed.cluster);
    copy.set("archive_command", "false");
    copy.reload();
    copy.promote();
    all_done(&bed.cluster, &segments(&bed.cluster, 2));
    let (mut heir, heir_agent) = standby(&bed);
    heir.start();
    heir.wait_replayed(&bed.cluster);
    bed.cluster.stop(Shutdown::Fast);
    assert_eq!(daemon.stop(), 0);
    let _heir = heir_agent.daemon();
    heir.promote();
    let ours = segments(&heir, 2);
    all_done(&heir, &ours);

    let theirs = segments(&copy, 4);
    let beside = copy_agent.daemon();
    copy.set("archive_command", copy_agent.archive_command());
    copy.reload();
    wait::until_true(SOON, "the copy hears of it", || copy.log().contains("split brain"));
    std::thread::sleep(SCANNED);
    let archive = bed.archive();
    let (stored, refused) = archive.histories();
    assert_eq!((stored.len(), refused.len()), (1, 1), "{stored:?} {refused:?}");
    assert_eq!(refused[0].1, std::fs::read(copy.wal_dir().join("00000002.history")).unwrap());
    for name in theirs.iter().filter(|name| !ours.contains(name)) {
        assert_eq!(archive.get(name), None, "{name}: {}", beside.log());
    }
    all_is_of(&archive, &heir, &ours);
    let backup = copy_agent.run(&["backup"]);
    assert!(!backup.success() && backup.stderr.contains("split brain"), "{backup:?}");
    drop(beside);
    copy.stop(Shutdown::Fast);

    // "latest" is in doubt until a person settles it.
    heir_agent.run(&["backup"]).expect_success();
    let plan = heir_agent.restore(&["plan"]).expect_status(1);
    let text = format!("{}{}", plan.stdout, plan.stderr);
    assert!(text.contains("in doubt") && text.contains("lineage settle --timeline 2"), "{text}");
    let none = heir_agent.run(&["lineage", "settle", "--timeline", "3", "--reason", "none"]);
    assert!(!none.success() && none.stderr.contains("no repository holds a history"), "{none:?}");
    let reason = "the copy was a test";
    heir_agent
        .run(&["lineage", "settle", "--timeline", "2", "--reason", reason, "--who", "dba"])
        .expect_success();
    let plan = heir_agent.restore(&["plan"]).expect_success();
    assert!(plan.stdout.contains("timeline 2"), "{plan:?}");
    let status = heir_agent.run(&["status"]).expect_success().stdout;
    assert!(status.contains("settled by dba") && status.contains(reason), "{status}");
    assert!(!status.contains("two servers claim it"), "{status}");
    let expired = heir_agent.run(&["expire", "--dry-run"]);
    assert!(!expired.stdout.contains("two servers claim it"), "{expired:?}");
    heir_agent.run(&["verify"]).expect_success();
    // It is the copy that was settled, however often it comes; a history of yet another one is a doubt of its own.
    let other = bed.cluster.dir().mkdir("another").join("00000002.history");
    std::fs::write(&other, "1\t0/3000000\tanother one\n").unwrap();
    user::give(&other);
    let refused = heir_agent.run(&["push", other.to_str().unwrap()]);
    assert!(!refused.success() && refused.stderr.contains("split brain"), "{refused:?}");
    let plan = heir_agent.restore(&["plan"]).expect_status(1);
    assert!(format!("{}{}", plan.stdout, plan.stderr).contains("in doubt"), "{plan:?}");
}

/// Where a copy has a lineage of its own, too: production, which comes second to another copy, has its history kept in the lineage that
/// its WAL comes from, so that no restore takes that copy's end for the latest.
#[test]
fn a_history_that_differs_is_kept_beside_where_there_are_several_lineages() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    bed.agent.run(&["backup"]).expect_success();
    all_done(&bed.cluster, &segments(&bed.cluster, 1));
    let next = |bed: &Bed| {
        let (mut standby, agent) = standby(bed);
        standby.set("archive_command", "false");
        standby.start();
        standby.wait_replayed(&bed.cluster);
        (standby, agent)
    };
    let ask = |cluster: &Cluster, agent: &Agent| {
        cluster.set("archive_command", agent.archive_command());
        cluster.reload();
        cluster.promote();
    };
    let (first, first_agent) = next(&bed);
    let _first = first_agent.daemon();
    ask(&first, &first_agent);
    all_done(&first, &segments(&first, 1));
    all_done(&bed.cluster, &segments(&bed.cluster, 1));
    let (second, second_agent) = next(&bed);
    second.promote();
    second_agent.init(&["--new-lineage"]).expect_success();
    all_done(&bed.cluster, &segments(&bed.cluster, 1));
    let (heir, heir_agent) = next(&bed);
    // What both have shows which lineage the heir's WAL belongs to.
    all_done(&bed.cluster, &segments(&bed.cluster, 1));
    heir.wait_replayed(&bed.cluster);
    bed.cluster.stop(Shutdown::Fast);
    assert_eq!(daemon.stop(), 0);
    let beside = heir_agent.daemon();
    ask(&heir, &heir_agent);
    segments(&heir, 1);
    let kept = || {
        let keys = bed.store.back_door().list("clusters");
        keys.iter().filter(|key| key.contains("-1/history/00000002.history.refused/")).count()
    };
    wait::until_true(SOON, &format!("its history is kept\n{}", beside.log()), || kept() == 1);
    let lineage = format!("{}-1", heir.system_id());
    let plan = heir_agent.restore(&["plan", "--lineage", &lineage]).expect_status(1);
    assert!(format!("{}{}", plan.stdout, plan.stderr).contains("in doubt"), "{plan:?}");
}

/// PostgreSQL does not hand a history over again that it marked as archived: whoever stores the first segment stores it.
#[test]
fn the_history_is_stored_before_the_first_segment() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 1));
    let (mut heir, agent) = standby(&bed);
    heir.set("archive_command", "false");
    heir.start();
    heir.wait_replayed(&bed.cluster);
    bed.cluster.stop(Shutdown::Fast);
    assert_eq!(daemon.stop(), 0);
    heir.promote();
    // The archiver may hold the name in memory.
    heir.stop(Shutdown::Fast);
    mark(&heir, "00000002.history", "ready", "done");
    // Without a daemon, too.
    heir.set("archive_command", agent.archive_command());
    heir.start();
    let names = segments(&heir, 1);
    all_done(&heir, &names);
    let stored = bed.archive().get("00000002.history");
    assert_eq!(stored, std::fs::read(heir.wal_dir().join("00000002.history")).ok());
}

/// A timeline that pg_resetwal made has no history: its WAL waits until somebody confirms that there is none.
#[test]
fn a_timeline_without_a_history_waits_for_a_word() {
    let mut bed = bed();
    bed.cluster.start();
    let _daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2));
    bed.cluster.stop(Shutdown::Fast);
    let mut command = bed.cluster.tool("pg_resetwal");
    command.args(["-l", "000000050000000000000030"]).arg("-D").arg(bed.cluster.pgdata());
    walpoint_tests::process::run(&mut command, SOON).expect_success();
    bed.cluster.start();
    let names = segments(&bed.cluster, 2);
    let hint = "archive-agent push --no-ancestors 00000005.history";
    wait::until_true(SOON, "it is said", || bed.cluster.log().contains(hint));
    assert!(bed.archive().get(&names[0]).is_none());
    bed.agent.run(&["push", "--no-ancestors", "00000005.history"]).expect_success();
    all_done(&bed.cluster, &names);
    assert_eq!(bed.archive().get("00000005.history"), Some(Vec::new()));
    bed.agent.run(&["backup"]).expect_success();
}

/// The server in between archived nothing, neither its history nor its segments. The next one archives all of it.
#[test]
fn a_failover_of_a_failover_is_backfilled() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 1));
    let (mut first, _) = standby(&bed);
    first.set("archive_command", "false");
    first.set("wal_keep_size", "64MB");
    first.start();
    first.wait_replayed(&bed.cluster);
    let mut second = first.standby();
    let agent = Agent::with(&second, &bed.store);
    agent.archive_from(&second);
    second.set("wal_keep_size", "64MB");
    second.start();
    bed.cluster.set("archive_command", "false");
    bed.cluster.reload();
    let mut names = segments(&bed.cluster, 2);
    first.wait_replayed(&bed.cluster);
    bed.cluster.crash();
    assert_eq!(daemon.stop(), 0);
    first.promote();
    names.extend(segments(&first, 3));
    second.wait_replayed(&first);
    first.crash();
    let _daemon = agent.daemon();
    second.promote();
    names.extend(segments(&second, 1));
    all_done(&second, &names[names.len() - 1..]);
    names.extend(["00000002.history".to_owned(), "00000003.history".to_owned()]);
    let archive = bed.archive();
    // The segments of the forks are there under the later timelines only.
    wait::until_true(SOON, "all of it is archived", || {
        let missing: Vec<&String> = names.iter().filter(|name| archive.get(name).is_none()).collect();
        missing.is_empty()
    });
    for name in ["00000002.history", "00000003.history"] {
        assert_eq!(archive.get(name), std::fs::read(second.wal_dir().join(name)).ok(), "{name}");
    }
}

/// Copies that agree are no split brain: a standby that archives too, a file pushed twice, a new daemon, neighbors that are
/// gone, and a server that goes on after a crash.
#[test]
fn what_one_server_wrote_is_never_refused() {
    let mut bed = bed();
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    let mut names = segments(&bed.cluster, 3);
    all_done(&bed.cluster, &names);
    let mut always = bed.cluster.standby();
    let agent = Agent::with(&always, &bed.store);
    agent.archive_from(&always);
    always.set("archive_mode", "always");
    always.start();
    let beside = agent.daemon();
    names.extend(segments(&bed.cluster, 3));
    all_done(&bed.cluster, &names);
    wait::until_true(SOON, "the standby archived it, too", || ready(&always).is_empty());
    assert!(!beside.log().contains("split brain"), "{}", beside.log());
    bed.agent.push(format!("pg_wal/{}", names.last().unwrap())).expect_success();

    daemon.kill();
    bed.cluster.crash();
    bed.cluster.start();
    let _daemon = bed.agent.daemon();
    // What is behind it has expired.
    let root = bed.store.root().unwrap().to_owned();
    for name in &names {
        remove(&root, name);
    }
    names = segments(&bed.cluster, 3);
    all_done(&bed.cluster, &names);
    all_is_of(&bed.archive(), &bed.cluster, &names);
    let check = bed.agent.run(&["check"]);
    assert!(!format!("{}{}", check.stdout, check.stderr).contains("split brain"), "{check:?}");
}

/// Of a copy that went its own way on the same timeline, without what shows its content: the records on both sides of the
/// boundary tell.
#[test]
fn a_segment_that_does_not_continue_its_neighbor_is_refused() {
    let mut bed = bed();
    bed.cluster.start();
    let _daemon = bed.agent.daemon();
    all_done(&bed.cluster, &segments(&bed.cluster, 2));
    bed.cluster.stop(Shutdown::Fast);
    let place = bed.cluster.dir().join("snapshot");
    let copied = std::process::Command::new("cp").arg("-a").arg(bed.cluster.pgdata()).arg(&place).status();
    assert!(copied.unwrap().success());
    let mut copy = Cluster::adopt(std::sync::Arc::clone(bed.cluster.dir()), bed.cluster.major(), place, None);
    copy.set("archive_command", "false");
    copy.start();
    bed.cluster.start();
    let ours = segments(&bed.cluster, 2);
    all_done(&bed.cluster, &ours);
    let mut theirs = segments(&copy, 1);
    // Equal loads write records of equal lengths, which no boundary tells apart.
    copy.psql("insert into t select n, now() from generate_series(1, 555) n");
    theirs.extend(segments(&copy, 2));
    assert_eq!(ours[1], theirs[1]);

    let alone = |cluster: &Cluster, name: &str, to: &str| {
        let path = bed.cluster.dir().mkdir(to).join(name);
        std::fs::copy(cluster.wal_dir().join(name), &path).unwrap();
        user::give(&path);
        bed.direct(&path)
    };
    let refused = alone(&copy, &theirs[2], "theirs");
    assert!(!refused.success() && refused.stderr.contains("does not continue"), "{refused:?}");
    assert!(refused.stderr.contains("split brain"), "{refused:?}");
    assert_eq!(bed.archive().get(&theirs[2]), None);

    bed.cluster.set("archive_command", "false");
    bed.cluster.reload();
    let next = segments(&bed.cluster, 2);
    assert_eq!(next[0], theirs[2]);
    // The later one first: then both neighbors of the other one are stored.
    for name in next.iter().rev() {
        alone(&bed.cluster, name, name).expect_success();
    }
    all_is_of(&bed.archive(), &bed.cluster, &next);
}

/// Removes an object behind everybody's back.
fn remove(root: &std::path::Path, name: &str) {
    for entry in std::fs::read_dir(root).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            remove(&entry.path(), name);
        } else if entry.file_name().to_str() == Some(name) {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
}

/// A history is bytes to PostgreSQL: a restore point's name may be in any encoding.
#[test]
fn a_history_in_another_encoding_is_archived() {
    let mut bed = bed();
    bed.cluster.start();
    let path = bed.cluster.wal_dir().join("00000002.history");
    let mut text = b"1\t0/3000000\tat restore point \"caf".to_vec();
    text.extend([0xE9, b'"', b'\n']);
    std::fs::write(&path, &text).unwrap();
    user::give(&path);
    bed.agent.push("pg_wal/00000002.history").expect_success();
    assert_eq!(bed.archive().get("00000002.history"), Some(text));
}

/// Promise 10: what PostgreSQL writes as a history has an end; one that lost it, or all it held, is refused by its name, and the right one
/// is archived when it is back.
#[test]
fn a_history_that_is_cut_short_is_refused_until_it_is_whole() {
    let mut bed = bed();
    bed.cluster.start();
    let path = bed.cluster.wal_dir().join("00000002.history");
    let whole = b"1\t0/3000000\tno recovery target specified\n";
    for length in [0, 5, 11, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        user::give(&path);
        let refused = bed.agent.push("pg_wal/00000002.history").expect_status(1).stderr;
        assert!(refused.contains("00000002.history") && refused.contains("HINT: "), "{length}: {refused}");
        assert_eq!(bed.archive().get("00000002.history"), None, "{length}: {refused}");
    }
    std::fs::write(&path, whole).unwrap();
    bed.agent.push("pg_wal/00000002.history").expect_success();
    assert_eq!(bed.archive().get("00000002.history"), Some(whole.to_vec()));
    // It is no other server's because it was damaged since.
    std::fs::write(&path, &whole[..20]).unwrap();
    let refused = bed.agent.push("pg_wal/00000002.history").expect_status(1).stderr;
    assert!(refused.contains("is damaged: its last line is cut short"), "{refused}");
    assert!(
        !refused.contains("split brain") && refused.contains("restore-agent fetch 00000002.history"),
        "{refused}"
    );
}
