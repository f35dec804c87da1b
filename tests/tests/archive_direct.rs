//! Pushes without a daemon, and what a push leaves in a repository: parts, restore points, modes, leases.

mod archive_bed;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use archive_bed::{Bed, all_done, register, segments};
use walpoint_repo::Repository;
use walpoint_repo::lease::{Holder, LeaseAnswer, Leases};
use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::faults;
use walpoint_tests::http_faults::{FaultRule, HttpProxy};
use walpoint_tests::process::Background;
use walpoint_tests::proxy::{Fault, Proxy};
use walpoint_tests::store::Store;
use walpoint_tests::wait;

const SOON: Duration = Duration::from_secs(60);

/// Files and directories below a directory.
fn tree(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| {
            let below = if path.is_dir() { tree(&path) } else { Vec::new() };
            std::iter::once(path).chain(below)
        })
        .collect()
}

/// A9: a group may restore from a directory that PostgreSQL's archiver wrote to, though its umask leaves the group nothing, or even
/// its owner less than it takes.
#[test]
fn what_postgresql_pushes_without_a_daemon_can_be_read_by_the_group() {
    for umask in ["0077", "0177"] {
        let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
        bed.cluster.set("archive_command", format!("umask {umask}; {}", bed.agent.archive_command()));
        bed.cluster.start();
        bed.cluster.psql("select pg_create_restore_point('one')");
        let name = bed.cluster.switch_wal();
        bed.cluster.wait_done(&name);
        assert!(bed.cluster.log().contains("without the daemon"), "{}", bed.cluster.log());
        let written = tree(bed.store.root().unwrap());
        assert!(written.iter().any(|path| path.ends_with(&name)), "{written:?}");
        for path in written {
            let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
            let wanted = if path.is_dir() { 0o750 } else { 0o640 };
            assert_eq!(mode & wanted, wanted, "{umask}: {} has mode {mode:04o}", path.display());
            assert_eq!(mode & 0o022, 0, "{umask}: {} has mode {mode:04o}", path.display());
        }
    }
}

/// A10: what a push of a large segment stored before it was interrupted is not sent again.
#[test]
fn a_large_segment_goes_on_where_it_was_interrupted() {
    for local in [false, true] {
        let mut bed = match local {
            false => Bed::new(Cluster::builder().segment_size_mb(64), Store::s3()),
            true => Bed::local(Cluster::builder().segment_size_mb(64)),
        };
        let proxy = bed.store.port().map(HttpProxy::to);
        if let Some(proxy) = &proxy {
            bed.agent = Agent::new(&bed.cluster).repository_via_port("main", &bed.store, proxy.port());
            bed.agent.archive_from(&bed.cluster);
        }
        bed.cluster.set("archive_command", "false");
        bed.cluster.start();
        let name = bed.cluster.switch_wal();
        let path = bed.cluster.wal_dir().join(&name);
        let Some(proxy) = proxy else {
            // Every attempt of one push fails behind the second part; the next push finds these two, whole.
            bed.direct(&path).expect_success();
            let mut parts: Vec<PathBuf> = tree(bed.store.root().unwrap());
            parts.retain(|path| path.parent().unwrap().to_string_lossy().ends_with(".parts"));
            parts.sort();
            assert_eq!(parts.len(), 4, "{parts:?}");
            parts[2..].iter().for_each(|part| std::fs::remove_file(part).unwrap());
            let header = tree(bed.store.root().unwrap()).into_iter().find(|path| path.ends_with(&name));
            std::fs::remove_file(header.unwrap()).unwrap();
            let inode = |path: &PathBuf| {
                use std::os::unix::fs::MetadataExt;
                std::fs::metadata(path).unwrap().ino()
            };
            let before: Vec<u64> = parts[..2].iter().map(inode).collect();
            bed.direct(&path).expect_success();
            assert_eq!(parts[..2].iter().map(inode).collect::<Vec<u64>>(), before);
            assert_eq!(bed.archive().get(&name).unwrap(), std::fs::read(&path).unwrap());
            continue;
        };
        proxy.set(vec![FaultRule::new("PUT", ".parts/", 403, "AccessDenied").after(2)]);
        bed.direct(&path).expect_status(1);
        proxy.set(Vec::new());
        proxy.clear_requests();
        bed.direct(&path).expect_success();
        let requests = proxy.requests();
        let sent: Vec<&String> =
            requests.iter().filter(|r| r.starts_with("PUT ") && r.contains(".parts/")).collect();
        assert_eq!(sent.len(), 2, "{sent:#?}");
        assert!(!sent.iter().any(|r| r.contains("-0000") || r.contains("-0001")), "{sent:#?}");
        assert_eq!(bed.archive().get(&name).unwrap(), std::fs::read(&path).unwrap());
    }
}

/// A9: `push_timeout` and a second more for each MiB, without a daemon too.
#[test]
fn a_push_of_a_large_segment_has_a_second_more_for_each_mib() {
    let mut bed = Bed::new(Cluster::builder().segment_size_mb(64), Store::s3());
    let proxy = Proxy::to(bed.store.port().unwrap());
    bed.agent = Agent::new(&bed.cluster).repository_via("main", &bed.store, &proxy);
    bed.agent.cluster_lines.push("push_timeout = \"1s\"".to_owned());
    bed.agent.archive_from(&bed.cluster);
    bed.cluster.set("archive_command", "false");
    bed.cluster.start();
    let name = bed.cluster.switch_wal();
    proxy.set(Fault::Latency(Duration::from_millis(500)));
    let begun = Instant::now();
    bed.direct(&bed.cluster.wal_dir().join(&name)).expect_success();
    assert!(begun.elapsed() > Duration::from_secs(1), "the line is not slow");
    proxy.heal();
    assert!(bed.archive().get(&name).is_some());
}

/// A6: thousands of restore points in a segment cost it a few requests; each is found, told and recovered to.
#[test]
fn thousands_of_restore_points_do_not_hold_archiving_up() {
    let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), Store::s3());
    let daemon = bed.agent.daemon();
    bed.cluster.start();
    bed.agent.run(&["backup"]).expect_success();
    bed.cluster.psql("create table t (n int); insert into t values (1)");
    let many = "select count(pg_create_restore_point('point ' || n)) from generate_series(1, 3000) n";
    bed.cluster.psql(many);
    bed.cluster.psql("insert into t values (2)");
    let begun = Instant::now();
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    println!("archived in {:?}", begun.elapsed());
    assert_eq!(bed.cluster.archive_failures().0, 0, "{}", bed.cluster.log());
    let mut keys = bed.store.back_door().list("clusters");
    keys.retain(|key| key.contains("/points/"));
    assert!((1..=10).contains(&keys.len()), "{} objects: {keys:?}", keys.len());

    let status = bed.agent.run(&["status", "--json"]).expect_success().stdout;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let points = &status["clusters"][0]["repositories"][0]["status"]["lineages"][0]["restore_points"];
    assert_eq!(points.as_array().unwrap().len(), 20, "{points}");
    assert_eq!(points[19]["name"], "point 3000");
    assert!(points[0]["time"].is_string(), "{points}");

    bed.agent.run(&["verify"]).expect_success();
    let target = bed.cluster.dir().join("restored");
    let arguments = [
        "restore",
        "--target-name",
        "point 1777",
        "--target-action",
        "promote",
        "--pgdata",
        target.to_str().unwrap(),
    ];
    bed.agent.restore(&arguments).expect_success();
    let restored = Cluster::start_restored(bed.cluster.dir(), bed.cluster.major(), &target);
    restored.wait_promoted();
    assert_eq!(restored.psql("select string_agg(n::text, ' ') from t"), "1");
    drop(restored);

    // The same names again: which of both is meant cannot be known.
    bed.cluster.psql(many);
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    let plan = bed.agent.restore(&["plan", "--target-name", "point 1777"]);
    assert!(!plan.success(), "{plan:#?}");
    let says = format!("{}{}", plan.stdout, plan.stderr);
    assert_eq!(says.matches("recovers to exactly there").count(), 2, "{says}");
    assert_eq!(daemon.stop(), 0);
}

/// A7: what another process has stored and acknowledged stays when the sync of its name fails in the one that made it.
#[test]
fn an_object_that_another_process_acknowledged_stays() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.agent.cluster_lines.push("push_timeout = \"8s\"".to_owned());
    bed.cluster.set("archive_command", "false");
    bed.cluster.start();
    let (first, second) = (bed.cluster.switch_wal(), bed.cluster.switch_wal());
    bed.direct(&bed.cluster.wal_dir().join(&first)).expect_success();
    let object = |name: &str| tree(bed.store.root().unwrap()).into_iter().find(|path| path.ends_with(name));
    let first = object(&first).unwrap();
    let directory = first.parent().unwrap();
    let path = bed.cluster.wal_dir().join(&second);
    let command = bed.agent.command("archive-agent", [Path::new("push"), &path]);
    let slow = ["fsync:error=EIO:delay_enter=3s"];
    let log = bed.agent.place().join("traced.log");
    let mut traced = Background::start(&mut faults::inject(&command, &slow, &[directory]), &log);
    wait::until_true(SOON, "it has its name", || object(&second).is_some());
    bed.direct(&path).expect_success();
    let object = directory.join(&second);
    while traced.try_status().is_none() {
        assert!(object.exists(), "it was acknowledged, and is gone");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(object.exists(), "it was acknowledged, and is gone");
    assert!(traced.try_status() != Some(0), "its own sync never succeeded: {}", traced.log());
}

/// B4: a finished backup keeps no other host from beginning one, though its lease cannot be deleted.
#[test]
fn without_the_right_to_delete_a_finished_backup_gives_its_lease_back() {
    let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), Store::s3());
    let proxy = HttpProxy::to(bed.store.port().unwrap());
    bed.agent = Agent::new(&bed.cluster).repository_via_port("main", &bed.store, proxy.port());
    bed.agent.archive_from(&bed.cluster);
    let denied = ["DELETE", "POST"].map(|method| FaultRule::new(method, "", 403, "AccessDenied"));
    proxy.set(denied.to_vec());
    bed.cluster.start();
    for round in 0..3 {
        let told = bed.agent.run(&["backup"]).expect_success().stderr;
        assert!(!told.contains("the lease was not released"), "{told}");
        // As another host would.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let settings = bed.store.settings_through(Some(proxy.port()));
            let repository = Repository::open("test", &settings).await.unwrap();
            let leases = Leases::of(&repository, &"main".parse().unwrap(), "backup");
            let (host, agent) = (format!("host {round}"), "test".to_owned());
            let holder = Holder {
                host,
                agent,
                boot: "b".to_owned(),
                process: 7,
                process_start: 7,
                pid_namespace: String::new(),
            };
            let asked = leases.ask(&holder, 900, false, |_| false).await.unwrap();
            let LeaseAnswer::Held(mut held, None) = asked else { panic!("round {round}: {asked:?}") };
            held.renew().await.unwrap();
            let busy = leases.ask(&Holder { process: 8, ..holder }, 900, false, |_| false).await.unwrap();
            assert!(matches!(busy, LeaseAnswer::Busy(_)), "two have it");
            held.release().await.unwrap();
        });
    }
}

/// A9: without a daemon a repository that does not have to acknowledge and does not answer costs one file in a minute its time.
#[test]
fn without_a_daemon_one_file_in_a_minute_waits_for_a_silent_repository_outside_ack() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let far = Store::s3();
    register(&far, bed.cluster.pgdata(), bed.cluster.major());
    let proxy = Proxy::to(far.port().unwrap());
    bed.agent = Agent::with(&bed.cluster, &bed.store)
        .repository_via("far", &far, &proxy)
        .cluster_line("ack = [\"main\"]");
    bed.agent.write();
    bed.cluster.set("archive_command", "false");
    bed.cluster.start();
    let paths = [(); 8].map(|()| {
        bed.cluster.psql("select pg_logical_emit_message(false, 'n', 'n')");
        bed.cluster.wal_dir().join(bed.cluster.switch_wal())
    });
    proxy.set(Fault::Blackhole);
    let took = paths.each_ref().map(|path| {
        let begun = Instant::now();
        bed.direct(path).expect_success();
        begun.elapsed()
    });
    println!("8 segments beside a repository that is silent: {took:?}");
    assert!(took.iter().filter(|took| **took > Duration::from_secs(4)).count() < 2, "{took:?}");
    assert!(bed.cluster.wal_dir().join("walpoint-resting").exists());
}

/// Promise 12: a copy that runs with production's `archive_command` stores nothing through production's configuration, without a daemon
/// either, and nobody pushes from its directory by hand while it runs.
#[test]
fn a_copy_that_runs_archives_nothing_through_productions_configuration() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    all_done(&bed.cluster, &segments(&bed.cluster, 1, 100));
    let place = bed.cluster.base_backup(&["-X", "stream"]);
    let mut copy = Cluster::adopt(Arc::clone(bed.cluster.dir()), bed.cluster.major(), place, None);
    copy.start();
    let theirs = segments(&copy, 2, 150);
    wait::until_true(SOON, "it is refused", || {
        copy.log().contains("is not the one that PostgreSQL archives")
    });
    assert!(copy.log().contains("archive-agent init --new-lineage"), "{}", copy.log());
    assert_eq!(bed.archive().get(theirs.last().unwrap()), None, "{}", copy.log());
    let path = copy.wal_dir().join(theirs.last().unwrap());
    let path = path.to_str().unwrap();
    for options in [&[][..], &["--accept-damaged"], &["--skip"], &["--same-server"]] {
        let refused = bed.agent.run(&[&["push", path], options].concat()).expect_status(1).stderr;
        let says = if options == ["--skip"] { "is not waiting" } else { "of a server that runs" };
        assert!(refused.contains(says), "{options:?}: {refused}");
    }
    all_done(&bed.cluster, &segments(&bed.cluster, 3, 100));
    // What is left of it can be pushed by hand once it is stopped, and is then judged by its content.
    copy.stop(Shutdown::Fast);
    let refused = bed.agent.run(&["push", path]).expect_status(1).stderr;
    assert!(refused.contains("split brain"), "{refused}");
}
