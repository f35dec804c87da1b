//! K1, K3 on real clusters and stores: deleting one backup by name, a whole cluster, and much at once.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use object_store::ObjectStoreExt;
use rustix::process::Signal;
use serde_json::Value;
use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::http_faults::HttpProxy;
use walpoint_tests::process::{self, Background, Output};
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::Store;
use walpoint_tests::wait;

const SOON: Duration = Duration::from_secs(120);

#[track_caller]
fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {} {}", output.stdout, output.stderr))
}

fn tables(retention: &str) -> String {
    format!("\n[cluster.main.retention]\n{retention}\n")
}

/// A cluster with 1 MiB segments whose repository keeps what `retention` says.
fn bed(store: Store, retention: &str) -> Archived {
    Archived::start_with(Cluster::builder().segment_size_mb(1), store, |mut agent| {
        agent.tables = tables(retention);
        agent
    })
}

fn segments(bed: &Archived) -> usize {
    let keys = bed.back_door().list("clusters/main");
    keys.iter().filter(|key| key.contains("/wal/")).count()
}

/// Rows, a backup after each, and WAL between them.
fn some_backups(bed: &Archived, ledger: &mut Ledger, count: usize) -> Vec<String> {
    let one = |_| {
        ledger.append(&bed.cluster);
        let id = bed.backup();
        bed.cluster.fill_wal_mb(2);
        bed.settle();
        id
    };
    (0..count).map(one).collect()
}

/// Restores, and counts the rows.
fn rows(bed: &Archived, ledger: &Ledger, name: &str, options: &[&str]) -> u32 {
    let copy = bed.restore_and_start(name, &[options, &["--target-action", "promote"]].concat());
    copy.wait_promoted();
    ledger.highest(&copy)
}

/// K1, K2: one backup goes by name, whatever retention says; a hold and being the last sound one protect it until the flag is
/// given that overrides this; what other backups use of it stays.
#[test]
fn a_backup_goes_by_name_unless_something_protects_it() {
    for store in Store::all_good() {
        let bed = bed(store, "grace = \"0s\"");
        bed.cluster.psql("create table t as select i, md5(i::text) from generate_series(1, 20000) i");
        let mut ledger = Ledger::create(&bed.cluster, "rows");
        let ids = some_backups(&bed, &mut ledger, 3);
        let hold = ["hold", "add", "--backup", &ids[0], "--reason", "for the auditor", "--until", "30d"];
        bed.agent.run(&hold).expect_success();

        let before = bed.back_door().list("");
        let refused = bed.agent.run(&["expire", "--backup", &ids[0]]).expect_status(1);
        assert!(
            refused.stderr.contains("hold 1 by ")
                && refused.stderr.contains("HINT: To delete it despite the holds, add --even-if-held."),
            "{refused:#?}"
        );
        let unknown = "20200101T000000Z-00000001-0000000002000028-9f3a0c11";
        let refused = bed.agent.run(&["expire", "--backup", unknown]).expect_status(1);
        assert!(
            refused.stderr.contains("is not here\nHINT: \"archive-agent status\" lists the backups."),
            "{refused:#?}"
        );
        let usage = bed.agent.run(&["expire", "--even-if-last"]).expect_status(2);
        assert!(usage.stderr.contains("--backup"), "{usage:#?}");
        let dry = ["expire", "--json", "--dry-run", "--backup", &ids[0], "--even-if-held"];
        let report = json(&bed.agent.run(&dry).expect_success())["repositories"][0].clone();
        assert_eq!(report["backups"].as_array().unwrap().len(), 1, "{report:#}");
        assert_eq!(
            (&report["backups"][0]["id"], &report["backups"][0]["decision"]),
            (&ids[0].as_str().into(), &"expire".into())
        );
        assert_eq!(bed.back_door().list(""), before, "nothing was changed so far");

        // The first one has most of the blocks of the others, and the WAL that nothing else needs.
        let had = segments(&bed);
        bed.agent.run(&["expire", "--backup", &ids[0], "--even-if-held"]).expect_success();
        assert_eq!(bed.backups(), ids[1..]);
        assert!(segments(&bed) < had, "its WAL goes with it");
        bed.agent.run(&["verify"]).expect_success();
        assert_eq!(rows(&bed, &ledger, "older", &["--backup", &ids[1], "--target-immediate"]), 2);
        // One in the middle: recovery passes it.
        let last = some_backups(&bed, &mut ledger, 1).remove(0);
        let had = segments(&bed);
        bed.agent.run(&["expire", "--backup", &ids[2]]).expect_success();
        assert_eq!(bed.backups(), [&*ids[1], &last]);
        assert_eq!(segments(&bed), had, "recovery from the one before it passes through this WAL");
        assert_eq!(rows(&bed, &ledger, "through", &["--backup", &ids[1]]), 4);

        bed.agent.run(&["expire", "--backup", &ids[1]]).expect_success();
        let had = segments(&bed);
        let refused = bed.agent.run(&["expire", "--backup", &last]).expect_status(1);
        assert!(refused.stderr.contains("add --even-if-last."), "{refused:#?}");
        assert!(!refused.stderr.contains("Run it again"), "the same would be refused again: {refused:#?}");
        bed.agent.run(&["expire", "--backup", &last, "--even-if-last"]).expect_success();
        assert_eq!(bed.backups(), Vec::<String>::new());
        assert_eq!(segments(&bed), had, "WAL waits for the next backup");
        let again = bed.backup();
        ledger.append(&bed.cluster);
        bed.settle();
        assert_eq!(rows(&bed, &ledger, "again", &["--backup", &again]), 5);
    }
}

/// K6: status shows of each backup what it is, how large it is, how long it took and how it is called.
#[test]
fn status_shows_what_each_backup_is() {
    let bed = bed(Store::local(), "");
    bed.cluster.psql("create table t as select i, md5(i::text) from generate_series(1, 20000) i");
    bed.backup();
    bed.backup_with(&["--label", "pre-deploy"]);
    let document = json(&bed.agent.run(&["status", "--json"]).expect_success());
    let backups = &document["clusters"][0]["repositories"][0]["status"]["backups"];
    let number =
        |n: usize, what: &str| backups[n][what].as_u64().unwrap_or_else(|| panic!("{what}: {backups:#}"));
    assert_eq!(
        (&backups[0]["kind"], &backups[1]["kind"]),
        (&"full".into(), &"incremental".into()),
        "{backups:#}"
    );
    assert_eq!(
        (&backups[0]["label"], &backups[1]["label"]),
        (&"".into(), &"pre-deploy".into()),
        "{backups:#}"
    );
    assert!(number(0, "file_bytes") > 5 << 20 && number(1, "file_bytes") > 5 << 20, "{backups:#}");
    assert!(number(1, "stored_bytes") * 4 < number(0, "stored_bytes"), "{backups:#}");
    assert!(number(0, "page_count") > 500 && backups[0]["seconds"].as_f64().unwrap() > 0.0, "{backups:#}");
    assert_eq!((number(0, "damaged_page_count"), number(0, "damaged_pack_count")), (0, 0));
    // A damaged pack is damage of both.
    let packs = bed.back_door().list("clusters/main/data");
    bed.back_door().truncate(&packs[0], 1000);
    bed.agent.run(&["verify", "--light"]).expect_status(3);
    let text = bed.agent.run(&["status"]).expect_success().stdout;
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("  finished, ")).collect();
    assert!(
        lines.len() == 2
            && lines[0].contains(", full, ")
            && lines[0].contains("DAMAGED: 1 damaged or missing packs"),
        "{text}"
    );
    assert!(
        lines[1].contains(", incremental, ")
            && lines[1].contains("\"pre-deploy\", DAMAGED: 1 damaged or missing packs"),
        "{text}"
    );
}

/// K1: what was asked for by name waits for the grace period, is shown meanwhile, and is brought back by a hold.
#[test]
fn a_backup_that_goes_by_name_waits_and_can_be_brought_back() {
    let bed = bed(Store::local(), "grace = \"3s\"\ncount = 10");
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    let ids = some_backups(&bed, &mut ledger, 3);
    for id in &ids[..2] {
        bed.agent.run(&["expire", "--backup", id]).expect_success();
    }
    assert_eq!(bed.backups(), ids);
    let status = bed.agent.run(&["status"]).expect_success().stdout;
    let (_, dropped) = status.split_once("Expired by the next expire").expect(&status);
    assert!(dropped.contains(&ids[0]) && dropped.contains("requested its deletion at"), "{status}");
    let hold = ["hold", "add", "--backup", &ids[1], "--reason", "a mistake", "--until", "never"];
    bed.agent.run(&hold).expect_success();
    std::thread::sleep(Duration::from_secs(5));
    bed.agent.run(&["expire"]).expect_success();
    assert_eq!(bed.backups(), ids[1..]);
    bed.agent.run(&["hold", "remove", "1"]).expect_success();
    std::thread::sleep(Duration::from_secs(4));
    bed.agent.run(&["expire"]).expect_success();
    assert_eq!(bed.backups(), ids[1..], "what was brought back is not asked for any more");
    assert_eq!(rows(&bed, &ledger, "copy", &["--backup", &ids[1]]), 3);
}

/// K3: a backup on which one builds that is running goes only if that one is to be aborted.
#[test]
fn a_backup_that_a_running_one_builds_on_goes_only_with_that() {
    let bed = bed(Store::local(), "grace = \"0s\"");
    bed.cluster
        .psql("create table t as select i, md5(i::text) from generate_series(1, 200000) i; checkpoint");
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    let ids = some_backups(&bed, &mut ledger, 2);
    let mut command = bed.agent.command("archive-agent", ["backup"]);
    let mut sleeper = Background::start(&mut command, &bed.agent.place().join("sleeper.log"));
    let begun = || {
        let keys = bed.back_door().list("clusters/main/backups");
        keys.iter().filter(|key| key.ends_with("/intent")).count() == 3
    };
    wait::until_true(wait::SOON, "the backup has begun", begun);
    sleeper.signal(Signal::STOP);
    let refused = bed.agent.run(&["expire", "--backup", &ids[1]]).expect_status(1);
    assert!(refused.stderr.contains("add --abort-unfinished."), "{refused:#?}");
    bed.agent.run(&["expire", "--backup", &ids[1], "--abort-unfinished"]).expect_success();
    assert_eq!(bed.backups()[0], ids[0]);
    assert!(!bed.back_door().list("clusters/main/data").iter().any(|key| key.contains(&ids[1])));
    sleeper.signal(Signal::CONT);
    assert_eq!(sleeper.wait(SOON), 1, "{}", sleeper.log());
    bed.agent.run(&["backup"]).expect_success();
    assert_eq!(rows(&bed, &ledger, "copy", &[]), 2);
}

/// K3: a cluster is forgotten once its name was typed, and nothing else is touched.
#[test]
fn a_cluster_is_forgotten_when_its_name_is_typed() {
    for store in Store::all_good() {
        let mut bed = bed(store, "grace = \"0s\"");
        let mut ledger = Ledger::create(&bed.cluster, "rows");
        some_backups(&bed, &mut ledger, 1);
        let mut other = Cluster::builder().segment_size_mb(1).init();
        let second = Agent::with(&other, &bed.store).named("other");
        second.archive_from(&other);
        second.init(&[]).expect_success();
        let daemon = second.daemon();
        other.start();
        second.run(&["backup"]).expect_success();
        assert_eq!(daemon.stop(), 0);
        let hold = ["hold", "add", "--label", "x", "--reason", "for the auditor", "--until", "never"];
        second.run(&hold).expect_success();

        let keys = |cluster: &str| bed.back_door().list(&format!("clusters/{cluster}"));
        let (of_main, of_other) = (keys("main"), keys("other"));
        let forget = |more: &[&str], typed: &str| {
            let all = [&["forget", "other"], more].concat();
            process::run_with_input(&mut second.command("archive-agent", all), typed.as_bytes(), SOON)
        };
        let refused = forget(&["--yes"], "").expect_status(1);
        let says = |text: &str| assert!(refused.stderr.contains(text), "{refused:#?}");
        says("for the auditor");
        says("add --even-if-held.");
        says("within the last hour, so an agent may still work on the cluster");
        says("add --even-if-in-use.");
        let sure = ["--even-if-held", "--even-if-in-use"];
        for typed in ["", "main\n", "yes\n"] {
            let refused = forget(&sure, typed).expect_status(1);
            assert!(refused.stderr.contains("nothing was deleted"), "{refused:#?}");
        }
        let dry = json(&forget(&[&sure[..], &["--dry-run", "--json"]].concat(), "").expect_success());
        assert_eq!(dry["repositories"][0]["object_count"], of_other.len(), "{dry:#}");
        assert_eq!(
            (keys("main"), keys("other")),
            (of_main.clone(), of_other.clone()),
            "nothing was changed so far"
        );
        forget(&["nothing"], "").expect_status(2);
        let missing = second.run(&["forget", "missing", "--yes"]).expect_status(2);
        assert!(missing.stderr.contains("--repo"), "{missing:#?}");
        let missing = second.run(&["forget", "missing", "--yes", "--repo", "main"]).expect_status(1);
        assert!(
            missing.stderr.contains("has nothing of cluster missing\nDETAIL: It has main, other."),
            "{missing:#?}"
        );

        let done = json(&forget(&[&sure[..], &["--json"]].concat(), "other\n").expect_success());
        assert_eq!(done["repositories"][0]["deleted_count"], of_other.len(), "{done:#}");
        assert_eq!((keys("main"), keys("other")), (of_main, Vec::new()));
        assert_eq!(rows(&bed, &ledger, "copy", &[]), 1);
        bed.agent.run(&["verify"]).expect_success();
        // The name is free again.
        second.init(&[]).expect_success();
        let _daemon = second.daemon();
        second.run(&["backup"]).expect_success();
        assert!(!keys("other").is_empty());
        bed.stop_daemon();
    }
}

/// Promise 11: a configuration whose data directory is another cluster's than the repository's deletes nothing of that one, whatever its
/// retention, and `status` says that the server is not the repository's. Without its data directory a machine expires for others.
#[test]
fn another_clusters_backups_are_not_expired_by_this_ones_retention() {
    let store = Store::local();
    let bed = bed(store, "count = 9");
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    some_backups(&bed, &mut ledger, 2);
    let hold = ["hold", "add", "--label", "x", "--reason", "for the auditor", "--until", "never"];
    bed.agent.run(&hold).expect_success();
    let before = bed.back_door().list("");
    let mut other = Cluster::builder().segment_size_mb(1).init();
    let mut foreign = Agent::with(&other, &bed.store);
    foreign.tables = tables("count = 1\ngrace = \"0s\"");
    foreign.write();
    let url = bed.store.url();
    for refused in [
        &["expire"][..],
        &["expire", "--dry-run"],
        &["expire", "--repo", &url],
        &["hold", "remove", "1"],
        &["hold", "add", "--label", "y", "--reason", "a mistake", "--until", "never"],
        &["lineage", "settle", "--timeline", "1", "--reason", "a mistake"],
    ] {
        let told = foreign.run(refused).expect_status(1).stderr;
        for says in ["but this one has the system identifier", "init --new-lineage", "Name the right one"] {
            assert!(told.contains(says), "{refused:?}: {told}");
        }
        assert!(!told.contains("Run it again to continue"), "{told}");
    }
    // As an unfinished restore leaves it.
    let control = |name: &str| other.pgdata().join("global").join(name);
    std::fs::rename(control("pg_control"), control("aside")).unwrap();
    for refused in [&["expire"][..], &["expire", "--dry-run"], &["hold", "remove", "1"]] {
        let told = foreign.run(refused).expect_status(1).stderr;
        assert!(told.contains("its system identifier is unknown"), "{refused:?}: {told}");
    }
    std::fs::rename(control("aside"), control("pg_control")).unwrap();
    let forgotten = foreign.run(&["forget", "main", "--dry-run", "--even-if-in-use", "--even-if-held"]);
    assert!(forgotten.expect_success().stderr.contains("but this one has the system identifier"));
    other.start();
    let shown = foreign.run(&["status"]).stdout;
    assert!(shown.contains("ARCHIVING") && shown.contains("does not know cluster main"), "{shown}");
    drop(other);
    assert_eq!(bed.back_door().list(""), before);
    let elsewhere = Agent::at(bed.cluster.dir(), &bed.place("nothing"), "").repository("main", &bed.store);
    let dry = json(&elsewhere.run(&["expire", "--dry-run", "--json"]).expect_success());
    assert_eq!(dry["repositories"][0]["backups"].as_array().unwrap().len(), 2, "{dry:#}");
    bed.agent.run(&["expire"]).expect_success();
    assert_eq!(bed.backups().len(), 2);
}

/// K3: what expires goes a thousand objects at a time, so that a million segments take minutes behind 30 ms of latency.
#[test]
fn what_expires_goes_a_thousand_at_a_time() {
    const OBJECTS: usize = 4000;
    let store = Store::s3();
    let proxy = HttpProxy::to(store.port().unwrap());
    let mut cluster = Cluster::builder().segment_size_mb(1).init();
    let mut agent = Agent::new(&cluster).repository_via_port("main", &store, proxy.port());
    agent.tables = tables("grace = \"0s\"\ncount = 1");
    agent.archive_from(&cluster);
    agent.init(&[]).expect_success();
    let daemon = agent.daemon();
    cluster.start();
    let bed = Archived::of(daemon, cluster, agent, store);
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    some_backups(&bed, &mut ledger, 2);
    // Files that a million segments would have, of one that nothing needs any more.
    let keys = bed.back_door().list("clusters/main");
    let first =
        keys.iter().find(|key| key.contains("/wal/") && key.len() < 120 && !key.contains(".backup")).unwrap();
    let door = bed.back_door().store();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(stream::iter(0..OBJECTS).for_each_concurrent(16, |n| {
        let (door, key) = (std::sync::Arc::clone(&door), format!("{first}.partial/{n:032x}"));
        async move { drop(door.put(&key.into(), "x".into()).await.unwrap()) }
    }));
    let had = segments(&bed);
    assert!(had > OBJECTS, "{had}");
    proxy.delay(Duration::from_millis(30));
    proxy.clear_requests();
    let began = Instant::now();
    let report = json(&bed.agent.run(&["expire", "--json"]).expect_success())["repositories"][0].clone();
    let took = began.elapsed();
    let requests = proxy.requests();
    let deletes = requests.iter().filter(|r| r.starts_with("DELETE ") || r.contains("?delete")).count();
    println!("{OBJECTS} objects, {} requests, {deletes} of them deletes, {took:.1?}", requests.len());
    assert!(segments(&bed) < had - OBJECTS, "{report:#}");
    assert!(deletes < OBJECTS / 100, "{deletes} requests to delete {OBJECTS} objects");
    // Twice a page of a listing and one delete for a thousand: the rest does not grow with them.
    assert!(requests.len() < 150 + 4 * OBJECTS / 1000, "{} requests: {requests:#?}", requests.len());
    proxy.delay(Duration::ZERO);
    assert_eq!(rows(&bed, &ledger, "copy", &[]), 2);
}
