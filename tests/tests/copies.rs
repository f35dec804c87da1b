//! Copies of a production server that share its repository: what they do there takes nothing from production, and what a
//! server backs up is restored with its own WAL or is no backup.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use serde_json::Value;
use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::process::{self, Background, Output};
use walpoint_tests::store::Store;
use walpoint_tests::{user, wait};

const SOON: Duration = Duration::from_secs(120);

fn tables(retention: &str) -> String {
    format!("\n[cluster.main.retention]\ngrace = \"0s\"\n{retention}\n")
}

/// Production: segments of 1 MiB, page checksums, and a retention.
fn production(retention: &str) -> Archived {
    let bed = Archived::start_with(
        Cluster::builder().segment_size_mb(1).checksums(true),
        Store::local(),
        |mut agent| {
            agent.tables = tables(retention);
            agent
        },
    );
    bed.cluster.psql("create table t (who text)");
    bed
}

/// A copy of production's data directory, made at rest; production goes on. The copy does not run yet.
fn copy_of(bed: &mut Archived) -> (Cluster, Agent) {
    bed.cluster.stop(Shutdown::Fast);
    let place = bed.place("the-copy");
    let copied = std::process::Command::new("cp").arg("-a").arg(bed.cluster.pgdata()).arg(&place).status();
    assert!(copied.unwrap().success());
    bed.cluster.start();
    let copy = Cluster::adopt(std::sync::Arc::clone(bed.cluster.dir()), bed.cluster.major(), place, None);
    let agent = Agent::with(&copy, &bed.store);
    agent.archive_from(&copy);
    (copy, agent)
}

fn segments(cluster: &Cluster, who: &str, count: usize) -> Vec<String> {
    let one = |_| {
        cluster.psql(&format!("insert into t select '{who}' from generate_series(1, 100)"));
        cluster.switch_wal()
    };
    (0..count).map(one).collect()
}

fn is_done(cluster: &Cluster, name: &str) -> bool {
    cluster.wal_dir().join("archive_status").join(format!("{name}.done")).exists()
}

#[track_caller]
fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {} {}", output.stdout, output.stderr))
}

/// Changes a byte of a page on disk, behind the server's back.
fn damage(cluster: &Cluster, path: &str, block: u64) {
    let path = cluster.pgdata().join(path);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, block * 8192 + 5000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], block * 8192 + 5000).unwrap();
}

/// What `expire --dry-run` would drop under that retention.
#[track_caller]
fn would_drop(bed: &Archived, retention: &str) -> Vec<String> {
    let mut agent = Agent::with(&bed.cluster, &bed.store);
    agent.tables = tables(retention);
    let report = json(&agent.run(&["expire", "--dry-run", "--json"]).expect_success());
    let backups = report["repositories"][0]["backups"].as_array().unwrap();
    let dropped = backups.iter().filter(|backup| backup["decision"] == "expire");
    dropped.map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
}

/// K1: a copy that was given a lineage of its own and is backed up makes none of production's backups old.
#[test]
fn the_backups_of_a_copy_push_none_of_productions_out() {
    let mut bed = production("count = 2");
    let ours = [bed.backup(), bed.backup()];
    let (mut copy, agent) = copy_of(&mut bed);
    agent.init(&["--new-lineage"]).expect_success();
    let _daemon = agent.daemon();
    copy.start();
    for _ in 0..2 {
        agent.run(&["backup"]).expect_success();
    }
    assert_eq!(bed.backups().len(), 4);
    for retention in
        ["count = 2", "daily = 1", "weekly = 1", "monthly = 1", "yearly = 1", "age = \"1s\"\nminimum = 2"]
    {
        let dropped = would_drop(&bed, retention);
        assert!(!dropped.contains(&ours[1]), "{retention}: {dropped:?}");
    }
    bed.agent.run(&["expire"]).expect_success();
    let left = bed.backups();
    assert!(ours.iter().all(|id| left.contains(id)), "{left:?}");

    // Each makes its own old.
    let newest = bed.backup();
    bed.agent.run(&["expire"]).expect_success();
    let left = bed.backups();
    assert!(!left.contains(&ours[0]) && left.contains(&ours[1]) && left.contains(&newest), "{left:?}");
    assert_eq!(left.len(), 4, "{left:?}");
    let lineage = format!("{}-1", bed.cluster.system_id());
    bed.agent.restore(&["plan", "--lineage", &lineage]).expect_success();
    bed.agent.run(&["verify"]).expect_success();
}

/// A13: what a promoted standby has of its dead primary is stored, though a copy has a newer backup that lies further on.
#[test]
fn a_promoted_standby_backfills_whatever_a_copy_has_backed_up() {
    let mut bed = production("");
    bed.backup();
    let lineage = format!("{}-1", bed.cluster.system_id());
    let (mut copy, copy_agent) = copy_of(&mut bed);
    let mut standby = bed.cluster.standby();
    standby.set("wal_keep_size", "64MB");
    let agent = Agent::with(&standby, &bed.store);
    agent.archive_from(&standby);
    standby.start();
    standby.wait_replayed(&bed.cluster);
    let daemon = agent.daemon();

    copy_agent.init(&["--new-lineage"]).expect_success();
    let _copy_daemon = copy_agent.daemon();
    copy.start();
    segments(&copy, "copy", 14);
    copy_agent.run(&["backup"]).expect_success();

    bed.stop_daemon();
    bed.cluster.set("archive_command", "/bin/false");
    bed.cluster.reload();
    let names = segments(&bed.cluster, "production", 3);
    standby.wait_replayed(&bed.cluster);
    bed.cluster.stop(Shutdown::Immediate);
    standby.promote();
    let own = segments(&standby, "standby", 1);
    wait::until_true(SOON, "the new primary archives", || is_done(&standby, &own[0]));
    let missing = || {
        let mut stored = bed.back_door().list("clusters/main");
        stored.retain(|key| key.contains(&format!("/{lineage}/wal/")));
        let is_missing = |name: &&String| !stored.iter().any(|key| key.ends_with(*name));
        names.iter().filter(is_missing).cloned().collect::<Vec<_>>()
    };
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !missing().is_empty() && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(missing(), Vec::<String>::new(), "{}", daemon.log());
    agent.restore(&["plan", "--lineage", &lineage]).expect_success();
}

/// Promise 11: backups that are known to be damaged push no sound one out, are shown as what they are, and are not what a
/// plan chooses while a sound one serves.
#[test]
fn damaged_backups_push_no_sound_one_out_and_are_not_chosen() {
    let bed = production("count = 2");
    bed.cluster.psql("create table pages as select i, repeat('x', 500) from generate_series(1, 5000) i");
    bed.cluster.psql("vacuum pages; checkpoint");
    let path = bed.cluster.psql("select pg_relation_filepath('pages')");
    let sound = bed.backup();
    bed.settle();
    damage(&bed.cluster, &path, 3);
    let damaged = [bed.backup(), bed.backup()];
    bed.settle();

    let plan = json(&bed.agent.restore(&["plan", "--json"]).expect_success());
    assert_eq!(plan["backup"]["id"], sound, "{plan:#}");
    let told = plan["notes"].to_string();
    assert!(told.contains(&damaged[1]) && told.contains("1 of its pages had wrong checksums"), "{told}");
    let plan = json(&bed.agent.restore(&["plan", "--json", "--backup", &damaged[1]]).expect_success());
    assert_eq!(plan["backup"]["id"], damaged[1], "{plan:#}");
    let status = bed.agent.run(&["status"]).expect_success().stdout;
    let line = |id: &str| {
        status.lines().find(|line| line.contains(id) && line.contains("finished")).unwrap().to_owned()
    };
    assert!(line(&damaged[0]).contains("DAMAGED") && !line(&sound).contains("DAMAGED"), "{status}");
    let document = json(&bed.agent.run(&["status", "--json"]).expect_success());
    let backups = &document["clusters"][0]["repositories"][0]["status"]["backups"];
    assert_eq!(
        (&backups[0]["damaged_page_count"], &backups[1]["damaged_page_count"]),
        (&0.into(), &1.into()),
        "{backups:#}"
    );

    for retention in
        ["count = 2", "count = 1", "daily = 1", "age = \"1s\"", "window = \"1s\"", "max_age = \"1s\""]
    {
        let dropped = would_drop(&bed, retention);
        assert!(!dropped.contains(&sound), "{retention}: {dropped:?}");
    }
    let expired = bed.agent.run(&["expire"]).expect_success().stdout;
    assert!(expired.contains("DAMAGED: 1 damaged pages"), "{expired}");
    assert!(bed.backups().contains(&sound), "{expired}");
    let place = bed.place("again");
    bed.agent.restore(&["restore", "--pgdata", place.to_str().unwrap()]).expect_success();
    let again = Cluster::start_restored(bed.cluster.dir(), bed.cluster.major(), place);
    again.wait_promoted();
    assert_eq!(again.psql("select count(*) from pages"), "5000", "no page is damaged");
}

/// A configuration that sees no data directory, and a server behind it.
fn without_pgdata(agent: &Agent) -> std::process::Command {
    let text = std::fs::read_to_string(agent.write()).unwrap();
    let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("pgdata")).collect();
    let config = agent.place().join("remote.toml");
    std::fs::write(&config, kept.join("\n")).unwrap();
    user::give(&config);
    let mut command = agent.command("archive-agent", ["backup", "--remote", "--json"]);
    command.env("WALPOINT_CONFIG", config);
    command
}

#[track_caller]
fn sees_no_backup(bed: &Archived, before: &[String], output: &str) {
    assert_eq!(bed.backups(), before, "{output}");
    assert!(output.contains("another server"), "{output}");
    bed.agent.restore(&["plan"]).expect_success();
}

/// Promise 12: with `BASE_BACKUP` from a server that is not the one whose WAL is archived, nothing is announced.
#[test]
fn a_remote_backup_of_a_server_whose_wal_is_not_archived_is_none() {
    let mut bed = production("");
    bed.backup();
    let (mut copy, agent) = copy_of(&mut bed);
    copy.set("archive_command", "/bin/true");
    copy.start();
    segments(&copy, "copy", 3);
    segments(&bed.cluster, "production", 12);
    bed.settle();
    let before = bed.backups();
    let output = process::run(&mut without_pgdata(&agent), SOON).expect_status(1);
    sees_no_backup(&bed, &before, &output.stderr);
    // Production's WAL is there already where the copy begins its backup: nothing is copied, not even an intent is left.
    assert!(!output.stderr.contains("copying"), "{}", output.stderr);
    let keys = bed.back_door().list("clusters/main/backups");
    assert!(keys.iter().all(|key| before.iter().any(|id| key.contains(id.as_str()))), "{keys:?}");

    // Of the server itself it is one.
    let output = process::run(&mut without_pgdata(&bed.agent), SOON).expect_success();
    let id = json(&output)["backup"].as_str().unwrap().to_owned();
    let place = bed.place("remotely");
    bed.agent.restore(&["restore", "--backup", &id, "--pgdata", place.to_str().unwrap()]).expect_success();
    Cluster::start_restored(bed.cluster.dir(), bed.cluster.major(), place).wait_promoted();
}

/// Promise 12: a local backup of a copy is none, though production's WAL of the same names arrives, and nothing of the newest
/// WAL of the copy, which goes on writing, lies in the repository.
#[test]
fn a_local_backup_of_a_copy_is_none_however_far_the_copy_has_gone_on() {
    let mut bed = production("");
    bed.backup();
    let (mut copy, agent) = copy_of(&mut bed);
    copy.set("archive_command", "/bin/true");
    copy.set("wal_keep_size", "256MB");
    copy.start();
    segments(&copy, "copy", 24);
    let before = bed.backups();
    let log = bed.place("backup-of-the-copy.log");
    let mut running = Background::start(&mut agent.command("archive-agent", ["-v", "backup"]), &log);
    let deadline = std::time::Instant::now() + SOON;
    let status = loop {
        // Production follows behind.
        segments(&copy, "copy", 1);
        segments(&bed.cluster, "production", 1);
        match running.try_status() {
            None if std::time::Instant::now() < deadline => {}
            status => break status,
        }
    };
    assert_eq!(status, Some(1), "{}", running.log());
    sees_no_backup(&bed, &before, &running.log());
}
