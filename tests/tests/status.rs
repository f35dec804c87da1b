//! K6: `archive-agent status` shows what can be known, whatever cannot be read, and says why not.

use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use walpoint_base::chain::ChainFacts;
use walpoint_base::crossing::CrossingFacts;
use walpoint_base::facts::SegmentMarks;
use walpoint_base::{Lsn, PgMajor, SegmentFacts, SegmentName, SegmentSize, SystemId};
use walpoint_repo::Repository;
use walpoint_repo::repository::NewLineage;
use walpoint_repo::wal::WalFlags;
use walpoint_storage::object::MasterKey;
use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::dir::TestDir;
use walpoint_tests::process::{self, Output};
use walpoint_tests::proxy::{Fault, Proxy};
use walpoint_tests::store::Store;
use walpoint_tests::{testbed, user, wait};

/// `status` without any configuration.
fn bare(arguments: &[&str], env: &[(String, String)]) -> Output {
    let mut command = Command::new(testbed::under_test("archive-agent"));
    command.arg("status").args(arguments).env_remove("WALPOINT_CONFIG").current_dir("/");
    command.envs(env.iter().map(|(k, v)| (k, v)));
    process::run(user::become_user(&mut command), Duration::from_secs(60))
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:#?}"))
}

fn builder() -> walpoint_tests::builder::ClusterBuilder {
    Cluster::builder().segment_size_mb(1)
}

/// K6: windows, gaps, backups, the archiver, in text and JSON; then one repository after the other goes away, and the server.
#[test]
fn what_can_be_read_is_shown_and_the_rest_is_explained() {
    let far = Store::s3();
    let proxy = Proxy::to(far.port().expect("a port"));
    let store = Store::local();
    let mut cluster = builder().init();
    let reaching_both = || Agent::with(&cluster, &store).repository_via("far", &far, &proxy);
    let agent = reaching_both();
    // For a store that does not answer; a busy machine needs longer than that for a backup.
    let impatient = reaching_both().repository_line("far", "read_timeout = \"2s\"");
    agent.archive_from(&cluster);
    agent.init(&[]).expect_success();
    let _daemon = agent.daemon();
    cluster.start();
    let settle = |cluster: &Cluster| cluster.wait_archived(&cluster.switch_wal());
    cluster.psql("create table t as select generate_series(1, 20000)");
    cluster.psql("select pg_create_restore_point('too early')");
    agent.run(&["backup", "--label", "first"]).expect_success();
    cluster.psql("insert into t select generate_series(1, 20000)");
    cluster.psql("select pg_create_restore_point('before upgrade')");
    settle(&cluster);
    cluster.psql("insert into t select generate_series(1, 20000)");
    settle(&cluster);

    let shown = json(&agent.run(&["status", "--json"]).expect_success());
    let backup = shown["clusters"][0]["repositories"][0]["status"]["backups"][0]["id"]
        .as_str()
        .expect("a backup")
        .to_owned();
    shows_everything(&agent, &cluster, &shown, &backup);

    // Whoever mistypes the name of a restore point is told those that there are.
    let mistyped = agent.restore(&["plan", "--target-name", "before upgarde"]).expect_status(1);
    let points = "restore points, the newest first: before upgrade, too early";
    assert!(mistyped.stdout.contains(points) || mistyped.stderr.contains(points), "{mistyped:#?}");

    // A segment that is missing shows as a gap.
    let keys = store.back_door().list("clusters/main");
    let segments: Vec<&String> = keys.iter().filter(|key| is_segment(key)).collect();
    let lost = segments[segments.len() - 2];
    store.back_door().delete(lost);
    let name = lost.rsplit('/').next().expect("a name");
    let text = agent.run(&["status"]).expect_success().stdout;
    assert!(text.contains(&format!("gap     {name} to {name} (1 segment)")), "{text}");

    alone_says_the_same(&store, name);

    shows_half(&impatient, &proxy);

    // The server goes too: its state is missing, the repository's is there.
    cluster.stop(Shutdown::Immediate);
    let text = impatient.run(&["status"]).expect_success().stdout;
    assert!(text.contains("server    cannot be asked: ") && text.contains("window"), "{text}");

    // And at last the directory: nothing can be read, and every reason is told.
    let root = store.root().expect("a directory").to_owned();
    std::fs::rename(&root, root.with_extension("gone")).expect("unmount");
    let dark = impatient.run(&["status"]).expect_status(1);
    assert!(dark.stdout.contains("HINT: Check that its filesystem is mounted."), "{dark:#?}");
    assert!(dark.stderr.contains("no repository of cluster main could be read"), "{dark:#?}");
    let dark = json(&impatient.run(&["status", "--json"]).expect_status(1));
    let repositories = &dark["clusters"][0]["repositories"];
    assert!(
        (0..2)
            .all(|n| repositories[n]["error"]["message"].is_string() && repositories[n]["status"].is_null()),
        "{dark}"
    );
}

/// Both repositories and the server are told of, in text and in JSON, and nothing is wrong.
#[track_caller]
fn shows_everything(agent: &Agent, cluster: &Cluster, shown: &Value, backup: &str) {
    let text = agent.run(&["status"]).expect_success().stdout;
    for told in [
        "Server of cluster main",
        "PostgreSQL 17",
        "was archived",
        "no file waits",
        "window",
        "    before upgrade  20",
        backup,
    ] {
        assert!(text.contains(told), "{told} is not in:\n{text}");
    }
    assert!(
        text.contains("Cluster main in main (file://") && text.contains("Cluster main in far (s3://"),
        "{text}"
    );
    assert!(text.contains("timeline 1"), "{text}");
    let main = &shown["clusters"][0];
    assert_eq!(main["cluster"], "main");
    assert_eq!(main["server"]["ready_count"], 0);
    assert_eq!(main["server"]["failing"], false);
    assert_eq!(main["server"]["system_identifier"], cluster.system_id().to_string());
    for n in 0..2 {
        let repository = &main["repositories"][n];
        assert_eq!(repository["error"], Value::Null);
        assert_eq!(repository["notes"], Value::Array(vec![]));
        let timeline = &repository["status"]["lineages"][0]["timelines"][0];
        assert_eq!(timeline["timeline"], 1);
        assert_eq!(timeline["windows"][0]["oldest_backup"], backup);
        assert_eq!(timeline["gaps"], Value::Array(vec![]));
        let points = &repository["status"]["lineages"][0]["restore_points"];
        assert_eq!(
            (&points[0]["name"], points[1].is_null()),
            (&Value::from("before upgrade"), true),
            "{points}"
        );
        assert!(points[0]["time"].is_string() && points[0]["lsn"].is_string(), "{points}");
        assert_eq!(repository["status"]["backups"][0]["state"], "finished");
    }
}

/// Without a configuration the same repository says the same, and no server is known.
#[track_caller]
fn alone_says_the_same(store: &Store, lost: &str) {
    let alone = bare(&["--repo", &store.url(), "--cluster", "main", "--json"], &[]).expect_success();
    let alone = json(&alone);
    assert_eq!(alone["clusters"][0]["server"], Value::Null);
    assert_eq!(alone["clusters"][0]["server_error"], Value::Null);
    let gap = &alone["clusters"][0]["repositories"][0]["status"]["lineages"][0]["timelines"][0]["gaps"][0];
    assert_eq!(gap["first_segment"], lost);
    let text = bare(&["--repo", &store.url(), "--cluster", "main"], &[]).expect_success().stdout;
    assert!(text.contains("was not queried"), "{text}");
}

/// The far repository refuses, then swallows what it is sent: the other one and the server are shown within seconds.
#[track_caller]
fn shows_half(impatient: &Agent, proxy: &Proxy) {
    for fault in [Fault::Refuse, Fault::Blackhole] {
        proxy.set(fault);
        let half = impatient.run(&["status"]).expect_success();
        assert!(half.took < Duration::from_secs(20), "{:?} for {fault:?}", half.took);
        let told = half.stdout.split("Cluster main in far").nth(1).unwrap_or_else(|| panic!("{half:#?}"));
        assert!(told.contains("cannot be read: ") && told.contains("did not answer"), "{told}");
        assert!(half.stdout.contains("window"), "{half:#?}");
        assert!(
            half.stdout.contains("server    PostgreSQL") && half.stdout.contains("was archived"),
            "{half:#?}"
        );
    }
}

fn is_segment(key: &str) -> bool {
    key.contains("/wal/") && key.rsplit('/').next().is_some_and(|name| name.parse::<SegmentName>().is_ok())
}

/// K6: an archiver that fails is told with what waits.
#[test]
fn a_failing_archiver_is_told() {
    let mut cluster = builder().archive_command("false").init();
    let store = Store::local();
    let agent = Agent::with(&cluster, &store);
    agent.init(&[]).expect_success();
    cluster.start();
    cluster.switch_wal();
    cluster.wait_for("select failed_count > 0 from pg_stat_archiver", "t");
    let output = agent.run(&["status"]).expect_success();
    assert!(
        output.stdout.contains("FAILING: 0000000100") && output.stdout.contains("1 file waits"),
        "{output:#?}"
    );
    assert!(output.stdout.contains("No backup."), "{output:#?}");
    let shown = json(&agent.run(&["status", "--json"]).expect_success());
    assert_eq!(shown["clusters"][0]["server"]["failing"], true);
    assert_eq!(shown["clusters"][0]["server"]["ready_count"], 1);
}

/// K6: PostgreSQL counts as archived what goes nowhere, or archives nothing: nothing waits, nothing fails, and all is said.
#[test]
fn wal_that_bypasses_the_archive_is_told() {
    let store = Store::local();
    let mut cluster = builder().init();
    let agent = Agent::with(&cluster, &store);
    agent.archive_from(&cluster);
    agent.init(&[]).expect_success();
    cluster.start();
    let told = |word: &str| {
        wait::until_true(Duration::from_secs(60), word, || {
            agent.run(&["status"]).expect_success().stdout.contains(word)
        });
        let report = agent.run(&["check", "--no-switch"]).expect_status(3).stdout;
        assert!(report.contains("failed   archived WAL") && report.contains(word), "{report}");
        let daemon = agent.daemon();
        wait::until_true(Duration::from_secs(30), word, || agent.run(&["health"]).stderr.contains(word));
        assert_eq!(daemon.stop(), 0);
    };
    cluster.wait_archived(&cluster.switch_wal());
    let nothing = agent.run(&["check", "--no-switch"]).stdout;
    assert!(!nothing.contains("archived WAL"), "{nothing}");
    assert!(nothing.contains("there is no base backup"), "{nothing}");

    cluster.set("archive_command", "/bin/true");
    cluster.reload();
    cluster.wait_for("show archive_command", "/bin/true");
    // The archiver may still run the old command once.
    cluster.wait_archived(&cluster.switch_wal());
    let segment = cluster.switch_wal();
    cluster.wait_archived(&segment);
    told(&format!("PostgreSQL marked segment {segment} as archived, but no repository has it"));

    cluster.set("archive_mode", "off");
    cluster.stop(Shutdown::Fast);
    cluster.start();
    // postmaster.pid says in which second the server was started, and what was finished before that proves nothing.
    std::thread::sleep(Duration::from_secs(2));
    let segment = cluster.switch_wal();
    told(&format!("PostgreSQL finished segment {segment} and does not archive it"));
}

/// K6: a repository without this cluster, one without any, and none at all.
#[test]
fn an_empty_repository_is_no_failure_and_no_repository_is_one() {
    let store = Store::local();
    let url = store.url();
    let none = bare(&["--repo", &url, "--cluster", "main"], &[]).expect_status(1);
    assert!(none.stdout.contains("cannot be read: there is no repository"), "{none:#?}");

    let cluster = Cluster::builder().segment_size_mb(1).init();
    let agent = Agent::with(&cluster, &store);
    agent.init(&[]).expect_success();
    let empty = bare(&["--repo", &url, "--cluster", "main"], &[]).expect_success().stdout;
    assert!(empty.contains("No backup."), "{empty}");
    let other = bare(&["--repo", &url, "--cluster", "mian"], &[]).expect_status(1).stdout;
    assert!(other.contains("does not know cluster mian\n"), "{other}");
    assert!(other.contains(" DETAIL: It has: main.\n") && other.contains(" HINT: "), "{other}");
    assert!(!other.contains("No backup."), "{other}");
    // The server of the configuration does not run: that is said, and no failure.
    let asked = agent.run(&["status"]).expect_success().stdout;
    assert!(asked.contains("cannot be asked: "), "{asked}");
    // Wrong usage is status 2; what to do is a line of its own, in JSON a member.
    bare(&["--repo", &url], &[]).expect_status(2);
    let (primary, hint) = (
        "no configuration: ",
        "Give --config FILE or set WALPOINT_CONFIG, or give --repo URL and --cluster NAME.",
    );
    let told = bare(&[], &[]).expect_status(2).stderr;
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines[0].contains(primary) && lines[1..] == [format!("HINT: {hint}")], "{told}");
    let told = bare(&["--json"], &[]).expect_status(2).stderr;
    let record: Value = serde_json::from_str(&told).unwrap();
    assert!(record["message"].as_str().unwrap().starts_with(primary) && record["hint"] == hint, "{record}");
}

/// K6: an encrypted repository without its key shows what its names tell, and that the key is missing.
#[test]
fn an_encrypted_repository_without_its_key_shows_names() {
    for store in Store::all_good() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(fill(&store));
        if let Some(root) = store.root() {
            user::give_tree(root);
        }
        let dir = TestDir::new();
        let pgdata = dir.mkdir("no-cluster");
        let agent = Agent::at(&std::sync::Arc::new(dir), &pgdata, "host=/nowhere").repository("main", &store);
        let output = agent.run(&["status"]).expect_success();
        assert!(output.stdout.contains("it is encrypted and no key is configured"), "{output:#?}");
        assert!(output.stdout.contains(&format!("segments from {NAME} to {NAME}")), "{output:#?}");
        assert!(output.stdout.contains(&format!("Lineage {}-1", system_id())), "{output:#?}");
        let shown = json(&agent.run(&["status", "--json"]).expect_success());
        let repository = &shown["clusters"][0]["repositories"][0];
        assert!(repository["status"].is_null() && repository["error"]["message"].is_string(), "{shown}");
        assert_eq!(repository["listing"]["lineages"][0]["timelines"][0]["last_segment"], NAME);
    }
}

const NAME: &str = "000000010000000000000003";

fn system_id() -> SystemId {
    SystemId(7_400_000_000_000_000_001)
}

/// Makes an encrypted repository with one segment.
async fn fill(store: &Store) {
    let master = MasterKey::new([7; 32]);
    let made = Repository::init("main", &store.settings(), Some(master)).await.expect("a repository");
    let (name, size): (SegmentName, _) =
        (NAME.parse().expect("a name"), SegmentSize::new(1 << 20).expect("a size"));
    let facts = SegmentFacts {
        name,
        system_id: system_id(),
        major: PgMajor::new(17).expect("a version"),
        size,
        block_size: 8192,
        first_page_timeline: name.timeline,
        content_len: 1 << 20,
        first_record: Some(Lsn(0x300028)),
        last_record: Some(Lsn(0x3A0000)),
        end: Lsn(0x400000),
        whole: true,
        switched: false,
        records: 10,
        transactions: None,
        crossing: CrossingFacts::default(),
        chain: ChainFacts::default(),
        marks: SegmentMarks::default(),
        restore_points: vec![],
        further_points: 0,
    };
    let new = NewLineage {
        system_id: facts.system_id,
        major: facts.major,
        segment_size: size,
        wal_block_size: 8192,
        block_size: 8192,
        relation_segment_blocks: 131_072,
        ack: vec![],
    };
    let lineage =
        made.repository.create_lineage(&"main".parse().expect("a name"), new).await.expect("a lineage");
    let content = Bytes::from(vec![7; 1 << 20]);
    let stored = made.repository.wal(&lineage).put_segment(&facts, content, WalFlags::default()).await;
    stored.expect("a segment");
}
