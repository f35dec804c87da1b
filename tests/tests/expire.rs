//! K1 to K3 and promise 11 on real clusters and stores: `archive-agent expire` and `hold`.

use std::process::Command;
use std::time::Duration;

use rand::Rng;
use rustix::process::Signal;
use serde_json::Value;
use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::faults;
use walpoint_tests::http_faults::{FaultRule, HttpProxy};
use walpoint_tests::process::{self, Background, Output};
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::Store;
use walpoint_tests::{needs_root, testbed, user, wait};

#[track_caller]
fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {} {}", output.stdout, output.stderr))
}

/// A cluster with 1 MiB segments whose repository keeps what `retention` says, with no grace period.
fn bed(store: Store, retention: &str) -> Archived {
    Archived::start_with(Cluster::builder().segment_size_mb(1), store, |mut agent| {
        agent.tables = tables(retention);
        agent
    })
}

#[track_caller]
fn expire(bed: &Archived, arguments: &[&str]) -> Value {
    json(&bed.agent.run(&[&["expire", "--json"], arguments].concat()).expect_success())["repositories"][0]
        .clone()
}

fn objects(report: &Value, class: &str, what: &str) -> u64 {
    let classes = report["classes"].as_array().unwrap();
    let class = classes.iter().find(|c| c["class"] == class).unwrap();
    class[format!("{what}_count")].as_u64().unwrap()
}

fn segments(bed: &Archived) -> usize {
    let keys = bed.back_door().list("clusters/main");
    keys.iter().filter(|key| key.contains("/wal/")).count()
}

/// Restores a backup as it was when it ended, and looks at what is in it.
fn restored(bed: &Archived, ledger: &Ledger, id: &str, target: &[&str]) -> u32 {
    let options = [&["--backup", id, "--target-action", "promote"], target].concat();
    let copy = bed.restore_and_start("copy", &options);
    copy.wait_promoted();
    let highest = ledger.highest(&copy);
    drop(copy);
    // Its prefetcher may still be ending.
    let place = bed.place("copy");
    wait::until_true(Duration::from_secs(30), "the copy is removed", || {
        drop(std::fs::remove_dir_all(&place));
        !place.exists()
    });
    highest
}

/// K1, K2, promise 11: a dry run changes nothing; a hold keeps; what goes is what nobody needs; the oldest and the newest
/// backup that stay restore, and every row since the oldest one that leads onward is reachable.
#[test]
fn the_oldest_and_the_newest_backup_restore_after_an_expiry() {
    for store in Store::all_good() {
        let bed = bed(store, "count = 2");
        let mut ledger = Ledger::create(&bed.cluster, "rows");
        let (mut ids, mut marks) = (Vec::new(), Vec::new());
        for _ in 0..4 {
            ledger.append_many(&bed.cluster, 3);
            ids.push(bed.backup());
            marks.push(ledger.append(&bed.cluster));
            bed.cluster.fill_wal_mb(2);
            bed.settle();
        }
        let hold = ["hold", "add", "--backup", &ids[0], "--reason", "for the auditor", "--until", "30d"];
        bed.agent.run(&hold).expect_success();
        let holds = bed.agent.run(&["hold", "list"]).expect_success().stdout;
        assert!(holds.contains("for the auditor") && holds.contains(&ids[0]), "{holds}");

        let before = bed.back_door().list("");
        let dry = expire(&bed, &["--dry-run"]);
        let told = bed.agent.run(&["expire", "--dry-run"]).expect_success().stdout;
        assert_eq!(bed.back_door().list(""), before, "a dry run changes nothing");
        assert!(told.contains(&format!("expire  {}: no rule keeps it", ids[1])), "{told}");
        let decisions: Vec<&str> =
            dry["backups"].as_array().unwrap().iter().map(|b| b["decision"].as_str().unwrap()).collect();
        assert_eq!(decisions, ["keep-standalone", "expire", "keep", "keep"]);

        let had = segments(&bed);
        let report = expire(&bed, &[]);
        // What retention made is no gap.
        let status = json(&bed.agent.run(&["status", "--json"]).expect_success());
        let lineage = &status["clusters"][0]["repositories"][0]["status"]["lineages"][0];
        assert_eq!(lineage["timelines"][0]["gaps"], Value::Array(vec![]), "{lineage:#}");
        assert!(objects(&report, "segment", "deleted") >= 2, "{report:#}");
        assert_eq!(bed.backups(), [&*ids[0], &ids[2], &ids[3]]);
        assert!(segments(&bed) < had);
        let calm = expire(&bed, &[]);
        assert_eq!((objects(&calm, "segment", "deleted"), objects(&calm, "pack", "marked")), (0, 0));

        assert_eq!(restored(&bed, &ledger, &ids[0], &["--target-immediate"]), 3);
        assert_eq!(restored(&bed, &ledger, &ids[3], &[]), 16, "the newest, to the end of the archive");
        // The promised range: from the oldest that leads onward to the end.
        let time = &marks[2].time_after;
        assert_eq!(restored(&bed, &ledger, &ids[2], &["--target-time", time]), 12);
        let plan = ["plan", "--target-time", &marks[0].time_after];
        assert_eq!(bed.agent.restore(&plan).expect_status(1).status, 1, "nobody promises what is gone");

        bed.agent.run(&["hold", "remove", "1"]).expect_success();
        expire(&bed, &[]);
        assert_eq!(bed.backups(), [&*ids[2], &ids[3]]);
        assert_eq!(restored(&bed, &ledger, &ids[2], &["--target-immediate"]), 11);
    }
}

/// K3: on every branch of a forked archive what the kept backups lead to stays, and a branch nobody leads to goes.
#[test]
fn branches_that_no_backup_leads_to_go_and_others_stay() {
    let mut bed = bed(Store::local(), "count = 1");
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    let base = bed.backup();
    let first = ledger.append_as(&bed.cluster, "a1");
    // Recovery to a time ends before the next commit.
    ledger.append_as(&bed.cluster, "left");
    bed.settle();
    let second = bed.backup();
    ledger.append_as(&bed.cluster, "a2");
    bed.settle();
    // The cluster dies and is restored to before the second backup: timeline 2 leaves timeline 1 before it.
    bed.cluster.crash();
    let pgdata = bed.cluster.pgdata().to_owned();
    std::fs::rename(&pgdata, bed.place("lost")).unwrap();
    let target = ["--target-time", &*first.time_after, "--target-action", "promote", "--resume-archiving"];
    bed.restore(pgdata.file_name().unwrap().to_str().unwrap(), &target);
    bed.cluster.start();
    bed.cluster.wait_promoted();
    ledger.append_as(&bed.cluster, "b1");
    bed.settle();
    let on = |bed: &Archived, timeline: &str| {
        bed.back_door()
            .list("clusters/main")
            .iter()
            .filter(|k| k.contains(&format!("/wal/{timeline}/")))
            .count()
    };
    // The rule keeps the second backup alone, which does not lead to timeline 2: production can be recovered from the first one.
    let before = on(&bed, "00000002");
    let report = expire(&bed, &[]);
    assert_eq!(bed.backups(), [base, second], "{report:#}");
    let why = report["backups"][0]["reason"].to_string();
    assert!(why.contains("it is the newest one that leads to timeline 2, the newest"), "{why}");
    assert_eq!(on(&bed, "00000002"), before, "WAL that is being archived is never out of reach");
    let copy = bed.restore_and_start("before", &["--target-action", "promote"]);
    copy.wait_promoted();
    assert_eq!(ledger.labels(&copy), "a1 b1", "what production has archived");
    drop(copy);
    let third = bed.backup();
    ledger.append_as(&bed.cluster, "b2");
    bed.settle();
    expire(&bed, &[]);
    assert_eq!(bed.backups(), [&*third]);
    assert_eq!(on(&bed, "00000001"), 0, "nothing leads to timeline 1 any more");
    assert!(on(&bed, "00000002") < before + 20 && on(&bed, "00000002") > 0);
    let histories = bed.back_door().list("clusters/main");
    assert!(histories.iter().any(|key| key.ends_with("00000002.history")), "histories are never deleted");
    let copy = bed.restore_and_start("copy", &["--target-action", "promote"]);
    copy.wait_promoted();
    assert_eq!(ledger.labels(&copy), "a1 b1 b2");
}

/// K2: the window of a lineage that was split off begins at the fork, and what it wrote before its first own backup is recovered
/// from its parent's: that backup stays, and the WAL that leads on from it, until the window begins behind the first own one.
#[test]
fn the_window_of_a_lineage_that_was_split_off_begins_at_the_fork() {
    let window = "window = \"1h\"";
    let mut bed = bed(Store::local(), window);
    // So that the fork is found in pg_wal.
    bed.cluster.set("wal_keep_size", "64MB");
    bed.cluster.reload();
    bed.cluster.psql("create table t (who text)");
    let fill = |cluster: &Cluster, who: &str| {
        cluster.psql(&format!("insert into t select '{who}' from generate_series(1, 100)"));
        let name = cluster.switch_wal();
        cluster.wait_done(&name);
    };
    fill(&bed.cluster, "both");
    let base = bed.backup();
    fill(&bed.cluster, "both");
    bed.cluster.stop(Shutdown::Fast);
    let place = bed.place("split");
    let copied = Command::new("cp").arg("-a").arg(bed.cluster.pgdata()).arg(&place).status();
    assert!(copied.unwrap().success());
    bed.cluster.start();
    fill(&bed.cluster, "production");
    let mut split =
        Cluster::adopt(std::sync::Arc::clone(bed.cluster.dir()), bed.cluster.major(), place, None);
    let mut agent = Agent::with(&split, &bed.store);
    agent.tables = tables(window);
    agent.archive_from(&split);
    agent.init(&["--new-lineage"]).expect_success();
    let _daemon = agent.daemon();
    split.start();
    fill(&split, "split");
    let moment = split.psql("select clock_timestamp()");
    fill(&split, "split");
    fill(&split, "split");
    // Production's own rules do not need that backup any more.
    let age = |agent: &Agent| agent.run(&["backup"]).expect_success();
    age(&bed.agent);
    age(&agent);
    fill(&split, "split");
    let lineage = format!("{}-2", split.system_id());
    let plan = ["plan", "--json", "--lineage", &lineage, "--target-time", &moment];
    let planned = |agent: &Agent| {
        let output = agent.restore(&plan);
        let plan = json(&output);
        assert!(output.success(), "{plan:#}");
        plan["backup"]["id"].as_str().unwrap().to_owned()
    };
    assert_eq!(planned(&agent), base);
    let report = agent.run(&["expire"]).expect_success().stdout;
    assert_eq!(planned(&agent), base, "{report}");
    let had = segments(&bed);
    agent.run(&["verify"]).expect_success();
    // The window begins behind the first own backup: nothing leads on from the parent's any more.
    agent.tables = tables("window = \"1s\"");
    std::thread::sleep(Duration::from_secs(2));
    age(&bed.agent);
    age(&agent);
    std::thread::sleep(Duration::from_secs(3));
    let report = agent.run(&["expire"]).expect_success().stdout;
    assert!(!bed.backups().contains(&base), "{report}");
    assert!(segments(&bed) < had, "{report}");
    agent.restore(&["plan", "--lineage", &lineage]).expect_success();
    agent.run(&["verify"]).expect_success();
}

/// Kills expiries at random moments, one after each backup. Whatever is listed in between restores and is sound; the last one
/// finishes what all of them began, and leaves nothing that is nobody's.
fn kill_at_random(times: u32) {
    let bed = bed(Store::local(), "count = 1");
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    let mut random = faults::random();
    let (mut last, mut killed) = (String::new(), 0);
    ledger.append_many(&bed.cluster, 2);
    let whole = {
        bed.backup();
        bed.backup_with(&["--full"]);
        bed.agent.run(&["expire"]).expect_success().took
    };
    for round in 0..times {
        ledger.append_many(&bed.cluster, 2);
        // Full ones, so that none needs the packs of another.
        last = bed.backup_with(&["--full"]);
        bed.settle();
        let mut command = bed.agent.command("archive-agent", ["expire"]);
        let mut running = Background::start(&mut command, &bed.agent.place().join("expire.log"));
        std::thread::sleep(whole.mul_f64(random.random_range(0.0..1.0)));
        running.signal(Signal::KILL);
        killed += u32::from(running.wait(Duration::from_secs(20)) == 137);
        assert_eq!(bed.backups().last(), Some(&last), "round {round}");
        bed.agent.run(&["verify", "--light"]).expect_success();
        if round % 10 == 4 {
            bed.agent.run(&["verify"]).expect_success();
            for id in bed.backups() {
                assert!(restored(&bed, &ledger, &id, &["--target-immediate"]) > 0);
            }
        }
    }
    println!("{killed} of {times} were killed; one takes {whole:?}");
    assert!(killed > times / 4, "{killed} of {times} were killed");
    expire(&bed, &[]);
    assert_eq!(bed.backups(), [last.clone()]);
    let keys = bed.back_door().list("clusters/main");
    let strays = keys.iter().filter(|key| key.contains("/data/") || key.contains("/backups/"));
    let strays: Vec<&String> = strays.filter(|key| !key.contains(&last)).collect();
    assert!(strays.is_empty(), "{strays:?}");
    assert!(!keys.iter().any(|key| key.contains("/announcements/")), "{keys:?}");
    bed.agent.run(&["verify"]).expect_success();
    assert_eq!(restored(&bed, &ledger, &last, &[]), 2 * times + 2);
}

/// K3: kill -9 at random moments; the next run finishes, and whatever is listed restores at every moment.
#[test]
fn killed_at_random_and_finished_by_the_next() {
    kill_at_random(10);
}

/// K3: a hundred times.
#[test]
#[ignore = "takes long: make soak"]
fn killed_a_hundred_times_and_finished_by_the_next() {
    kill_at_random(100);
}

/// K3: an object that the store does not let go is reported, is no failure, and goes with a later run.
#[test]
fn an_object_under_lock_is_reported_and_tried_again() {
    let store = Store::s3();
    let proxy = HttpProxy::to(store.port().unwrap());
    let bed = bed_via(store, proxy.port(), "count = 1");
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    ledger.append(&bed.cluster);
    let first = bed.backup();
    bed.settle();
    let second = bed.backup_with(&["--full"]);
    proxy.set(vec![
        FaultRule::new("DELETE", &format!("/data/{first}/"), 403, "AccessDenied"),
        FaultRule::new("POST", "delete", 403, "AccessDenied"),
    ]);
    let report = expire(&bed, &[]);
    assert!(report["denied_count"].as_u64().unwrap() > 0, "{report:#}");
    assert!(report["denied_objects"][0].as_str().unwrap().contains(&first), "{report:#}");
    proxy.set(vec![]);
    let report = expire(&bed, &[]);
    assert_eq!(report["denied_count"], 0);
    assert_eq!(bed.backups(), [second]);
    let keys = bed.back_door().list("clusters/main");
    assert!(!keys.iter().any(|key| key.contains(&first) || key.contains("/announcements/")), "{keys:?}");
}

/// K3: the exit status of forget says that something of the cluster is still there.
#[test]
fn what_the_store_keeps_is_not_forgotten() {
    let store = Store::s3();
    let proxy = HttpProxy::to(store.port().unwrap());
    let bed = bed_via(store, proxy.port(), "count = 1");
    bed.backup();
    proxy.set(vec![
        FaultRule::new("DELETE", "/clusters/main/", 403, "AccessDenied"),
        FaultRule::new("POST", "delete", 403, "AccessDenied"),
    ]);
    let forget = ["forget", "main", "--yes", "--even-if-in-use"];
    let kept = bed.agent.run(&forget).expect_status(1);
    assert!(kept.stdout.contains("Deleted a part of cluster main"), "{kept:#?}");
    assert!(kept.stderr.contains("could not delete everything"), "{kept:#?}");
    assert!(!bed.back_door().list("clusters/main").is_empty());
}

/// The tables of a configuration without a grace period.
fn tables(retention: &str) -> String {
    format!("\n[cluster.main.retention]\ngrace = \"0s\"\n{retention}\n")
}

fn bed_via(store: Store, port: u16, retention: &str) -> Archived {
    let mut cluster = Cluster::builder().segment_size_mb(1).init();
    let mut agent = Agent::new(&cluster).repository_via_port("main", &store, port);
    agent.tables = tables(retention);
    agent.archive_from(&cluster);
    agent.init(&[]).expect_success();
    let daemon = agent.daemon();
    cluster.start();
    Archived::of(daemon, cluster, agent, store)
}

/// Promise 11: nothing is deleted while this machine's clock and the store's disagree, whichever is ahead.
#[test]
fn clocks_that_disagree_stop_it() {
    let store = Store::s3();
    let proxy = HttpProxy::to(store.port().unwrap());
    let bed = bed_via(store, proxy.port(), "count = 1");
    let first = bed.backup();
    bed.settle();
    let second = bed.backup();
    for seconds in [400, -400] {
        proxy.shift_clock(seconds);
        let output = bed.agent.run(&["expire"]).expect_status(1);
        assert!(output.stderr.contains("more than 5 minutes apart"), "{output:#?}");
        assert!(!output.stderr.contains("Run it again to continue"), "{output:#?}");
        assert_eq!(bed.backups(), [&*first, &second]);
        let keys = bed.back_door().list("clusters/main");
        assert!(!keys.iter().any(|key| key.contains("/announcements/")), "{keys:?}");
        // A hold that may be in force, and an end that counts from now.
        for refused in [
            &["forget", "main", "--yes", "--even-if-in-use"][..],
            &["hold", "add", "--label", "x", "--reason", "an audit", "--until", "1d"],
        ] {
            let output = bed.agent.run(refused).expect_status(1);
            assert!(output.stderr.contains("more than 5 minutes apart"), "{output:#?}");
            assert_eq!(bed.backups(), [&*first, &second], "{refused:?}");
            let keys = bed.back_door().list("clusters/main");
            assert!(!keys.iter().any(|key| key.contains("/holds/")), "{refused:?}: {keys:?}");
        }
    }
    proxy.shift_clock(100);
    expire(&bed, &[]);
    proxy.shift_clock(0);
    expire(&bed, &[]);
    assert_eq!(bed.backups(), [second]);
}

/// K3: a backup that is stopped for longer than the grace period beside an expiry is not touched, and is a backup in the end.
#[test]
fn a_backup_that_sleeps_through_the_grace_period_is_not_touched() {
    let bed = bed(Store::local(), "count = 1");
    bed.cluster
        .psql("create table t as select i, md5(i::text) from generate_series(1, 200000) i; checkpoint");
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    ledger.append(&bed.cluster);
    bed.settle();
    let second = bed.backup();
    let mut command = bed.agent.command("archive-agent", ["backup"]);
    let mut sleeper = Background::start(&mut command, &bed.agent.place().join("sleeper.log"));
    let begun = || {
        let keys = bed.back_door().list("clusters/main/backups");
        keys.iter().filter(|key| key.ends_with("/intent")).count() == 3
    };
    wait::until_true(wait::SOON, "the backup has begun", begun);
    sleeper.signal(Signal::STOP);
    for _ in 0..2 {
        expire(&bed, &[]);
    }
    sleeper.signal(Signal::CONT);
    assert_eq!(sleeper.wait(Duration::from_secs(120)), 0, "{}", sleeper.log());
    let listed = bed.backups();
    let third = listed.last().unwrap().clone();
    assert_ne!(third, second);
    expire(&bed, &[]);
    assert_eq!(bed.backups(), [&*third]);
    ledger.append(&bed.cluster);
    bed.settle();
    assert_eq!(restored(&bed, &ledger, &third, &[]), 2);
}

/// K1, K2: nothing is deleted while nobody knows what a damaged hold holds; the rest is shown, verify names it, and whoever
/// answers for it removes it.
#[test]
fn a_damaged_hold_stops_deletion_and_nothing_else() {
    let bed = bed(Store::local(), "count = 1");
    let label = ["hold", "add", "--label", "audit", "--reason", "for the auditor", "--until", "30d"];
    let added = bed.agent.run(&label).expect_success();
    assert!(
        added.stderr.contains("has the label \"audit\": the hold keeps those still to come"),
        "{added:#?}"
    );
    let backup = || {
        let id = bed.backup();
        bed.cluster.fill_wal_mb(1);
        bed.settle();
        id
    };
    let ids = [backup(), backup()];
    let hold = "clusters/main/holds/000000000001";
    bed.back_door().truncate(hold, 3);
    let remove = "archive-agent hold remove 1";
    let refused = bed.agent.run(&["expire"]).expect_status(1);
    assert!(refused.stderr.contains(hold) && refused.stderr.contains(remove), "{refused:#?}");
    assert_eq!(bed.backups(), ids);
    let verified = bed.agent.run(&["verify", "--light", "--json"]).expect_status(3);
    let report = &json(&verified)["repositories"][0];
    assert_eq!(
        (&report["finding_count"], &report["findings"][0]["object"]),
        (&1.into(), &hold.into()),
        "{report:#}"
    );
    assert!(bed.agent.run(&["status"]).expect_success().stdout.contains(remove));
    // Numbers are each repository's own: the sound hold of that number in another one is left alone.
    let beside = Store::local();
    let both = Agent::with(&bed.cluster, &bed.store).repository("beside", &beside);
    both.init(&[]).expect_success();
    let only = ["--label", "x", "--reason", "y", "--until", "never", "--repo", "beside"];
    both.run(&[&["hold", "add"], &only[..]].concat()).expect_success();
    let unclear = both.run(&["hold", "remove", "1"]).expect_status(2);
    assert!(unclear.stderr.contains("add --repo main"), "{unclear:#?}");
    both.run(&["hold", "remove", "1", "--repo", "beside"]).expect_success();
    assert!(bed.agent.run(&["hold", "list"]).expect_status(1).stderr.contains(remove));

    bed.agent.run(&label).expect_success();
    bed.agent.run(&["hold", "remove", "1"]).expect_success();
    let held = bed.agent.run(&["hold", "list"]).expect_success().stdout;
    assert!(held.contains("for the auditor"), "{held}");
    expire(&bed, &[]);
    assert_eq!(bed.backups(), ids[1..]);
    bed.agent.run(&["verify", "--light"]).expect_success();
}

/// K1: what is said when nothing is configured, and what a wrong configuration says.
#[test]
fn without_a_retention_nothing_is_deleted() {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let id = bed.backup();
    let told = bed.agent.run(&["expire"]).expect_success().stdout;
    assert!(told.contains("no retention is configured: nothing is deleted"), "{told}");
    assert_eq!(bed.backups(), [&*id]);
    for (arguments, says) in [
        (vec!["hold", "add", "--reason", "x", "--until", "1d"], "--backup"),
        (vec!["hold", "add", "--backup", &id, "--reason", "x", "--until", "yesterday"], "time"),
        (vec!["hold", "add", "--backup", &id, "--reason", " ", "--until", "1d"], "--reason is empty"),
        (vec!["expire", "--repo", "other"], "has no repository \"other\"\nDETAIL: It has: main."),
    ] {
        let output = bed.agent.run(&arguments).expect_status(2);
        assert!(output.stderr.contains(says), "{arguments:?}: {output:#?}");
    }
    let missing = ["hold", "remove", "7"];
    assert!(bed.agent.run(&missing).expect_status(1).stderr.contains("has no hold 7"));
}

/// A command of root's is refused where it has the data directory, and keeps nobody out where it has none; what is closed all the same
/// is named with the command that opens it.
#[test]
fn root_keeps_nobody_out_of_a_repository() {
    needs_root!();
    let bed = bed(Store::local(), "count = 1");
    let id = bed.backup();
    let as_root = |arguments: &[&str]| {
        let mut command = Command::new(testbed::under_test("archive-agent"));
        process::run(command.args(arguments), Duration::from_secs(60))
    };
    let config = bed.agent.write().display().to_string();
    let own = format!("runuser -u {} -- ", user::name());
    for command in [&["expire"][..], &["hold", "remove", "1"], &["verify", "--sample", "10%"]] {
        let told = as_root(&[command, &["--config", &config]].concat()).expect_status(1).stderr;
        assert!(told.contains(&own) && told.contains(&command.join(" ")), "{told}");
    }
    as_root(&["expire", "--dry-run", "--config", &config]).expect_success();
    as_root(&["verify", "--light", "--config", &config]).expect_success();

    let url = bed.store.url();
    let without = ["--repo", &url, "--cluster", "main"];
    let hold = ["hold", "add", "--backup", &id, "--reason", "audit", "--until", "30d"];
    as_root(&[&hold[..], &without].concat()).expect_success();
    as_root(&[&["verify", "--sample", "100%"][..], &without].concat()).expect_success();
    assert!(bed.agent.run(&["hold", "list"]).expect_success().stdout.contains("audit"));
    bed.agent.run(&["expire"]).expect_success();
    bed.agent.run(&["verify", "--sample", "100%"]).expect_success();

    let holds = bed.store.root().unwrap().join("clusters/main/holds");
    std::os::unix::fs::chown(&holds, Some(0), Some(0)).unwrap();
    let repair = format!("chown -R {}: {}", user::name(), bed.store.root().unwrap().display());
    let told = bed.agent.run(&["check", "--no-switch"]).expect_status(3).stdout;
    assert!(told.split_whitespace().collect::<Vec<_>>().join(" ").contains(&repair), "{told}");
    let told = bed.agent.run(&["expire"]).expect_status(1).stderr;
    assert!(told.contains(&repair), "{told}");
}
