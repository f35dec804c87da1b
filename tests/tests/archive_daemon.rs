//! A8, A9: the daemon that comes and goes, the store that fails, and who may do what.

mod archive_bed;

use std::path::Path;
use std::time::Duration;

use archive_bed::{Archive, Bed, damage, register};
use walpoint_base::socket::{Message, PushOutcome, PushReply, PushRequest};
use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::faults::SmallDisk;
use walpoint_tests::http_faults::{FaultRule, HttpProxy};
use walpoint_tests::proxy::{Fault, Proxy};
use walpoint_tests::seaweed::Credentials;
use walpoint_tests::store::Store;
use walpoint_tests::{needs_root, process, testbed, user, wait};

const SOON: Duration = Duration::from_secs(60);

/// Writes a segment that does not compress, and gives its name.
fn incompressible(cluster: &Cluster) -> String {
    cluster.switch_wal();
    cluster.psql(
        "create table if not exists noise (b bytea);
         insert into noise select sha256((random() * n)::text::bytea) from generate_series(1, 5000) n",
    );
    cluster.switch_wal()
}

/// Waits until PostgreSQL has asked for a file.
fn client_waits(cluster: &Cluster) {
    wait::until_true(SOON, "the client waits", || {
        process::descendants(cluster.pid().unwrap()).iter().any(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|comm| comm.trim() == "archive-push")
        })
    });
}

/// A8
#[test]
fn without_a_daemon_the_client_archives_by_itself_and_two_daemons_do_no_harm() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    let alone = bed.cluster.switch_wal();
    bed.cluster.wait_done(&alone);
    assert!(bed.cluster.log().contains("without the daemon"), "{}", bed.cluster.log());

    let first = bed.agent.daemon();
    let second = bed.agent.launch();
    wait::until_true(SOON, "the second daemon waits", || second.log().contains("another daemon answers"));
    let with_one = bed.cluster.switch_wal();
    bed.cluster.wait_done(&with_one);
    first.kill();
    wait::until_true(SOON, "the second takes over", || {
        second.log().matches("answering archive-push").count() == 2
    });
    let after = bed.cluster.switch_wal();
    bed.cluster.wait_done(&after);
    let archive = bed.archive();
    for name in [alone, with_one, after] {
        assert!(archive.get(&name).is_some(), "{name}");
    }
    assert_eq!(bed.cluster.archive_failures().0, 0, "{}", bed.cluster.log());
    assert_eq!(second.stop(), 0);
}

/// A8
#[test]
fn a_daemon_that_restarts_in_mid_request_is_asked_again() {
    let store = Store::s3();
    let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), store);
    let proxy = Proxy::to(bed.store.port().unwrap());
    bed.agent = Agent::new(&bed.cluster).repository_via("main", &bed.store, &proxy);
    bed.agent.tables = "\n[daemon]\ndrain_timeout = \"300ms\"\n".to_owned();
    bed.agent.archive_from(&bed.cluster);
    bed.cluster.start();
    for kill in [false, true] {
        let daemon = bed.agent.daemon();
        proxy.set(Fault::Blackhole);
        let name = bed.cluster.switch_wal();
        client_waits(&bed.cluster);
        if kill {
            daemon.kill();
        } else {
            assert_eq!(daemon.stop(), 0);
        }
        proxy.heal();
        let _again = bed.agent.daemon();
        bed.cluster.wait_done(&name);
        assert!(bed.archive().get(&name).is_some());
    }
    assert_eq!(bed.cluster.archive_failures().0, 0, "{}", bed.cluster.log());
}

/// A9: a repository that does not have to acknowledge may be down; PostgreSQL hardly waits for it.
#[test]
fn a_repository_beside_that_does_not_answer_holds_nobody_up() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let beside = Store::s3();
    let proxy = Proxy::to(beside.port().unwrap());
    proxy.set(Fault::Blackhole);
    bed.cluster.set("archive_command", "false");
    let agent = Agent::with(&bed.cluster, &bed.store).repository_via("beside", &beside, &proxy);
    let agent = agent.cluster_line("ack = [\"main\"]").cluster_line("look_ahead = 0");
    bed.cluster.start();
    let daemon = agent.daemon();
    let push = || {
        let name = bed.cluster.switch_wal();
        let pushed = agent.push(format!("pg_wal/{name}"));
        assert!(pushed.success() && bed.archive().get(&name).is_some(), "{pushed:?}");
        pushed.took
    };
    let first = push();
    assert!(first < Duration::from_secs(15), "{first:?}");
    let next = push();
    assert!(next < Duration::from_secs(3), "left out for a while, and yet {next:?}");
    wait::until_true(SOON, "it is named", || daemon.log().contains("does not have to acknowledge"));
    assert_eq!(daemon.stop(), 0);
}

/// A11: what a repository missed that does not have to acknowledge is copied to it when it is back, only what is missing,
/// whether the daemon saw it missing or was started later.
#[test]
fn a_repository_that_was_down_is_caught_up() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let beside = Store::s3();
    register(&beside, bed.cluster.pgdata(), bed.cluster.major());
    let proxy = Proxy::to(beside.port().unwrap());
    bed.cluster.set("archive_command", "false");
    let agent = Agent::with(&bed.cluster, &bed.store).repository_via("beside", &beside, &proxy);
    let agent = agent.repository_line("beside", "read_timeout = \"1s\"").cluster_line("ack = [\"main\"]");
    let mut agent = agent.cluster_line("look_ahead = 0");
    // What is stored already is said there.
    agent.env.push(("WALPOINT_LOG".to_owned(), "debug".to_owned()));
    bed.cluster.start();
    bed.cluster.psql("create table t (n int)");
    let push = || {
        bed.cluster.psql("insert into t select generate_series(1, 2000)");
        let name = bed.cluster.switch_wal();
        agent.push(format!("pg_wal/{name}")).expect_success();
        name
    };
    let (main, other) = (bed.archive(), Archive::of(&beside, bed.cluster.pgdata()));
    let daemon = agent.daemon();
    let mut names = vec![push()];
    wait::until_true(SOON, "the first one is in both", || other.get(&names[0]).is_some());

    // Seen by the daemon.
    proxy.set(Fault::Blackhole);
    names.extend((0..5).map(|_| push()));
    names.extend(bed.push_other_files(&agent, &names[1]));
    assert!(names[1..].iter().all(|name| main.get(name).is_some() && other.get(name).is_none()));
    proxy.heal();
    let caught_up = || names.iter().all(|name| other.get(name).is_some());
    wait::until_true(SOON, "what it missed is copied", caught_up);
    // It does not take part yet, and has the next one all the same.
    names.push(push());
    wait::until_true(SOON, "the next one is in both", || other.get(names.last().unwrap()).is_some());
    // Nothing was stored twice, by the line and as a copy. A request that was under way when the repository went away may have
    // stored its object with no answer and no line in the log.
    for name in &names {
        let stored = format!("INFO stored file={name} repository=\"beside\"");
        assert!(daemon.log().matches(&stored).count() <= 1, "only what is missing: {name}: {}", daemon.log());
    }

    // Missed while another daemon ran.
    proxy.set(Fault::Refuse);
    bed.cluster.psql("insert into t select generate_series(1, 100)");
    let early = bed.copy(&bed.cluster.current_segment(), "early");
    agent.run(&["push", early.to_str().unwrap()]).expect_success();
    names.extend((0..3).map(|_| push()));
    daemon.kill();
    proxy.heal();
    let daemon = agent.daemon();
    wait::until_true(SOON, "what it had missed is copied", || {
        names.iter().all(|name| other.get(name).is_some())
    });
    let ended = |store: &Store| {
        let keys = store.back_door().list("clusters");
        keys.into_iter().filter(|key| key.contains(".ended/")).collect::<Vec<_>>()
    };
    assert_eq!(ended(&bed.store).len(), 1, "what was pushed before it was whole");
    wait::until_true(SOON, "what ends early is copied, too", || ended(&beside) == ended(&bed.store));
    for name in &names {
        let kept = std::fs::read(bed.cluster.wal_dir().join(name));
        let content = other.get(name);
        assert!(content == main.get(name), "{name}");
        assert!(kept.is_err() || kept.ok() == content, "{name}");
    }
    assert_eq!(daemon.stop(), 0);
}

/// What was dropped and is archived after all, from a copy, is no longer part of the gap.
#[track_caller]
fn archived_after_all_is_no_gap(bed: &Bed, saved: &Path, gap: &str) {
    let name = saved.file_name().unwrap().to_str().unwrap();
    std::fs::copy(saved, bed.cluster.wal_dir().join(name)).unwrap();
    user::give(&bed.cluster.wal_dir().join(name));
    bed.agent.push(format!("pg_wal/{name}")).expect_success();
    wait::until_true(SOON, "the gap is smaller", || {
        bed.agent.run(&["status"]).expect_success().stdout.contains(gap)
    });
}

/// A12: what exceeds `queue_max` while the store fails is dropped, loudly and no more than that, with a daemon and without,
/// and a new backup makes up for it.
#[test]
fn wal_beyond_queue_max_is_dropped_loudly_until_a_new_backup() {
    let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), Store::s3());
    let proxy = Proxy::to(bed.store.port().unwrap());
    let agent = Agent::new(&bed.cluster).repository_via("main", &bed.store, &proxy);
    let agent = agent.repository_line("main", "read_timeout = \"1s\"").cluster_line("push_timeout = \"2s\"");
    bed.agent = agent.cluster_line("queue_max = \"4MiB\"");
    bed.agent.archive_from(&bed.cluster);
    bed.cluster.start();
    bed.cluster.psql("create table t (n int)");
    let segment = || {
        bed.cluster.psql("insert into t select generate_series(1, 2000)");
        bed.cluster.switch_wal()
    };
    let dropped = |name: &str| {
        let told = format!("archive-push: WARNING: \"{name}\" was dropped and not archived: ");
        // Without a daemon, by the program that stands in for it.
        let alone = "dropped and not archived: ";
        let mut lines = bed.cluster.log().lines().map(str::to_owned).collect::<Vec<_>>().into_iter();
        lines.any(|line| line.contains(&told) || line.contains(alone) && line.contains(name))
    };
    let daemon = bed.agent.daemon();
    let before = segment();
    bed.cluster.wait_done(&before);

    // What cannot be put on record is not dropped.
    let record = bed.cluster.wal_dir().join("walpoint-dropped");
    std::fs::create_dir(&record).unwrap();
    proxy.set(Fault::Refuse);
    let mut names: Vec<String> = (0..9).map(|_| segment()).collect();
    let saved = bed.agent.place().join("saved");
    std::fs::create_dir(&saved).unwrap();
    std::fs::copy(bed.cluster.wal_dir().join(&names[5]), saved.join(&names[5])).unwrap();
    user::give_tree(&saved);
    wait::until_true(SOON, "it is refused", || {
        bed.cluster.log().contains("it is not dropped, because that cannot be recorded")
    });
    assert_eq!(bed.ready(), names);
    std::fs::remove_dir(&record).unwrap();
    names.push(segment());
    wait::until_true(SOON, "what is too much goes", || bed.ready().len() <= 4);
    assert_eq!(bed.ready(), names[6..], "no more than that, the oldest first");
    assert!(names[..6].iter().all(|name| dropped(name)), "{}", bed.cluster.log());
    assert!(!names[6..].iter().any(|name| dropped(name)), "{}", bed.cluster.log());
    let told = || bed.agent.run(&["health"]);
    let gap = format!("6 files of WAL from {} to {} were dropped since ", names[0], names[5]);
    wait::until_true(SOON, "the daemon tells", || told().stderr.contains(&gap));

    // The same without a daemon.
    daemon.kill();
    let later: Vec<String> = (0..2).map(|_| segment()).collect();
    wait::until_true(SOON, "what is too much goes without a daemon, too", || bed.ready().len() <= 4);
    assert!(names[6..8].iter().all(|name| dropped(name)), "{}", bed.cluster.log());
    let archive = bed.archive();
    assert!(names.iter().chain(&later).all(|name| archive.get(name).is_none()));

    // With the store back nothing more is lost, and what was lost is not forgotten.
    proxy.heal();
    let daemon = bed.agent.daemon();
    let next = segment();
    bed.cluster.wait_done(&next);
    assert!(names[8..].iter().chain(&later).chain([&next]).all(|name| archive.get(name).is_some()));
    assert!(names[..8].iter().all(|name| archive.get(name).is_none()));
    let gap = format!("8 files of WAL from {} to {} were dropped", names[0], names[7]);
    wait::until_true(SOON, "another daemon tells it, too", || told().stderr.contains(&gap));
    let status = bed.agent.run(&["status"]).expect_success().stdout;
    assert!(status.contains(&format!("DROPPED   {gap}")), "{status}");
    let json = bed.agent.run(&["status", "--json"]).expect_success().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["clusters"][0]["server"]["dropped"]["file_count"], 8);

    let gap = format!("7 files of WAL from {} to {} were dropped", names[0], names[7]);
    archived_after_all_is_no_gap(&bed, &saved.join(&names[5]), &gap);

    bed.agent.run(&["backup"]).expect_success();
    assert!(!bed.agent.run(&["status"]).expect_success().stdout.contains("DROPPED"));
    wait::until_true(Duration::from_secs(60), "the daemon is well again", || {
        !told().stderr.contains("dropped")
    });
    assert_eq!(daemon.stop(), 0);
}

/// A9
#[test]
fn a_store_that_fails_is_told_in_time_and_recovers_without_a_restart() {
    let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), Store::s3());
    let (proxy, http) = (Proxy::to(bed.store.port().unwrap()), HttpProxy::to(bed.store.port().unwrap()));
    bed.cluster.set("archive_command", "false");
    bed.cluster.start();
    let tcp = Agent::new(&bed.cluster).repository_via("main", &bed.store, &proxy);
    let tcp = tcp.repository_line("main", "read_timeout = \"1s\"").cluster_line("push_timeout = \"2s\"");
    let url = format!("endpoint = \"http://127.0.0.1:{}\"", bed.store.port().unwrap());
    let through = format!("endpoint = \"http://127.0.0.1:{}\"", http.port());
    let daemon = tcp.daemon();
    let faults = [
        Fault::Refuse,
        Fault::Blackhole,
        Fault::ResetAnswerAfter(0),
        Fault::ResetRequestAfter(3000),
        Fault::StallAnswerAfter(10),
    ];
    for fault in faults {
        proxy.set(fault);
        let name = incompressible(&bed.cluster);
        let pushed = tcp.push(format!("pg_wal/{name}"));
        println!("{fault:?}: exit {} after {:?}: {}", pushed.status, pushed.took, pushed.stderr.trim());
        assert_eq!(pushed.status, 1, "{fault:?}: {pushed:?}");
        assert!(pushed.took < Duration::from_secs(15), "{fault:?} took {:?}", pushed.took);
        let is_part =
            |line: &&str| line.contains("archive-push: DETAIL: ") || line.contains("archive-push: HINT: ");
        let messages: Vec<&str> = pushed.stderr.lines().filter(|line| !is_part(line)).collect();
        assert!(messages.len() == 1 && messages[0].contains("could not archive"), "{pushed:?}");
        proxy.heal();
        wait::until_true(SOON, "archived after the fault", || tcp.push(format!("pg_wal/{name}")).success());
        assert!(bed.archive().get(&name).is_some());
    }
    proxy.set(Fault::Latency(Duration::from_millis(150)));
    let name = bed.cluster.switch_wal();
    tcp.push(format!("pg_wal/{name}")).expect_success();
    proxy.heal();
    assert_eq!(daemon.stop(), 0);

    // The same by way of HTTP answers; the configuration leads to the other proxy.
    let web = Agent::with(&bed.cluster, &bed.store).cluster_line("push_timeout = \"2s\"");
    let rewrite = |from: &str, to: &str| {
        let text = std::fs::read_to_string(web.write()).unwrap();
        std::fs::write(web.config(), text.replace(from, to)).unwrap();
    };
    rewrite(&url, &through);
    let mut command = std::process::Command::new(testbed::under_test("archive-agent"));
    command.arg("run").env("WALPOINT_CONFIG", web.config());
    let log = web.place().join("web.log");
    let mut daemon = process::Background::start(user::become_user(&mut command), &log);
    wait::until_true(SOON, "the daemon answers", || web.push_socket().exists());
    let push = |name: &str| {
        let mut command = std::process::Command::new(testbed::under_test("archive-push"));
        command.arg("--socket").arg(web.push_socket()).arg(bed.cluster.wal_dir().join(name));
        process::run(user::become_user(&mut command), SOON)
    };
    for rule in [
        FaultRule::new("PUT", "", 503, "SlowDown"),
        FaultRule::new("PUT", "", 403, "AccessDenied"),
        FaultRule::new("PUT", "", 500, "InternalError").after_doing_it(),
        FaultRule::page("PUT"),
        FaultRule::page(""),
    ] {
        http.set(vec![rule.clone()]);
        let name = bed.cluster.switch_wal();
        let pushed = push(&name);
        println!("{rule:?}: exit {} after {:?}: {}", pushed.status, pushed.took, pushed.stderr.trim());
        // A request that was done although the store said otherwise may be found to be done.
        assert!(pushed.status == 1 || rule.after_doing_it, "{rule:?}: {pushed:?}");
        assert!(pushed.took < Duration::from_secs(15), "{rule:?} took {:?}", pushed.took);
        http.set(Vec::new());
        wait::until_true(SOON, "archived after the fault", || push(&name).success());
        assert!(bed.archive().get(&name).is_some());
    }
    http.set(vec![FaultRule::new("PUT", "", 503, "SlowDown").times(2)]);
    let name = bed.cluster.switch_wal();
    push(&name).expect_success();
    daemon.kill();
}

/// A9: credentials that are revoked, and renewed in their file.
#[test]
fn renewed_credentials_are_taken_up_without_a_restart() {
    let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), Store::s3());
    bed.agent.cluster_lines.push("push_timeout = \"2s\"".to_owned());
    bed.cluster.set("archive_command", "false");
    bed.cluster.start();
    let write = |who: &Credentials| {
        for (name, value) in [("access_key_id", &who.key), ("secret_access_key", &who.secret)] {
            std::fs::write(bed.agent.place().join(format!("main.{name}")), value).unwrap();
        }
    };
    for wrong in [Credentials::unknown(), Credentials::reader()] {
        write(&wrong);
        let daemon = bed.agent.daemon();
        let name = bed.cluster.switch_wal();
        let told = bed.agent.push(format!("pg_wal/{name}")).expect_status(1).stderr;
        assert!(told.contains("denied") && told.contains("credentials"), "{told}");
        write(&Credentials::full());
        bed.agent.push(format!("pg_wal/{name}")).expect_success();
        assert_eq!(daemon.stop(), 0);
    }
}

/// A9: a full disk, and a read-only one.
#[test]
fn a_full_or_read_only_disk_is_named_and_left_whole() {
    needs_root!();
    let disk = SmallDisk::new(12);
    let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), Store::local_at(disk.path()));
    bed.agent.cluster_lines.push("push_timeout = \"1s\"\nlook_ahead = 0".to_owned());
    bed.cluster.set("archive_command", "false");
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    let check = |breaks: &dyn Fn(), heals: &dyn Fn(), says: &str| {
        let name = incompressible(&bed.cluster);
        breaks();
        let told = bed.agent.push(format!("pg_wal/{name}")).expect_status(1).stderr;
        assert!(told.contains(says), "expected {says:?}: {told}");
        heals();
        assert_eq!(bed.archive().get(&name), None);
        bed.agent.push(format!("pg_wal/{name}")).expect_success();
        assert_eq!(
            bed.archive().get(&name).unwrap(),
            std::fs::read(bed.cluster.wal_dir().join(&name)).unwrap()
        );
    };
    check(&|| disk.fill(100 << 10), &|| disk.free(), "No space left");
    check(&|| disk.set_read_only(true), &|| disk.set_read_only(false), "Read-only file system");
    assert_eq!(daemon.stop(), 0);
}

/// A9: a directory that the user may not write.
#[test]
fn a_directory_without_permission_is_named() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.set("archive_command", "false");
    bed.cluster.start();
    let name = bed.cluster.switch_wal();
    let clusters = bed.store.root().unwrap().join("clusters/main");
    let mode = |mode| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&clusters, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o500);
    let told = bed.direct(&bed.cluster.wal_dir().join(&name)).expect_status(1).stderr;
    mode(0o700);
    assert!(told.contains("denied"), "{told}");
    bed.direct(&bed.cluster.wal_dir().join(&name)).expect_success();
}

/// The agent runs as the owner of PGDATA, or refuses and names both.
#[test]
fn another_user_than_postgresqls_is_refused() {
    needs_root!();
    let bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let config = bed.agent.write();
    let name = "000000010000000000000001";
    let path = bed.cluster.wal_dir().join(name);
    for arguments in [vec!["run"], vec!["run", "--once"], vec!["push", path.to_str().unwrap()]] {
        let mut command = std::process::Command::new(testbed::under_test("archive-agent"));
        let told = process::run(command.args(arguments).env("WALPOINT_CONFIG", &config), SOON);
        assert!(told.status > 0 && told.status <= 125, "{told:?}");
        let owner = format!("belongs to uid {}", user::ids().uid);
        assert!(told.stderr.contains(&owner) && told.stderr.contains("runs as uid 0"), "{}", told.stderr);
    }
}

/// `run --once` archives what is ready, and says what it could not.
#[test]
fn once_archives_what_is_ready_and_ends() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.set("archive_command", "false");
    bed.cluster.start();
    bed.cluster.fill_wal_mb(10);
    let ready = bed.ready();
    let output = bed.agent.run(&["run", "--once", "--json"]).expect_success();
    for line in output.stderr.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
    }
    let archive = bed.archive();
    assert!(ready.iter().all(|name| archive.get(name).is_some()));
    bed.cluster.fill_wal_mb(4);
    let bad = bed.ready()[ready.len() + 1].clone();
    damage(&bed.cluster.wal_dir().join(&bad));
    let told = bed.agent.run(&["run", "--once"]).expect_status(1).stderr;
    assert!(told.contains("1 of ") && told.contains(&bad), "{told}");
    let others: Vec<String> = bed.ready().into_iter().filter(|name| *name != bad).collect();
    assert!(others.iter().all(|name| archive.get(name).is_some()));
}

/// A reload takes up a changed configuration, and keeps the old one if the new one is wrong, which `health` and `check` say until a
/// reload succeeds.
#[test]
fn sighup_reloads_and_a_wrong_configuration_changes_nothing() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let daemon = bed.agent.daemon();
    bed.cluster.start();
    let reload = |daemon: &walpoint_tests::agent::Daemon, says: &str| {
        let before = daemon.log().matches(says).count();
        daemon.process.signal(rustix::process::Signal::HUP);
        wait::until_true(SOON, says, || daemon.log().matches(says).count() > before);
    };
    let good = std::fs::read_to_string(bed.agent.config()).unwrap();
    std::fs::write(bed.agent.config(), format!("{good}\nno_such_key = 1\n")).unwrap();
    reload(&daemon, "the old configuration stays");
    // The commands read the file that is right again.
    let health = bed.agent.run(&["health"]).stderr;
    assert!(health.contains("was not reloaded") && health.contains("no_such_key"), "{health}");
    let check = bed.agent.run(&["check", "--no-switch"]).stdout;
    assert!(check.contains("was not reloaded") && !check.contains("retries by itself"), "{check}");
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    std::fs::write(bed.agent.config(), good).unwrap();
    reload(&daemon, "ready");
    let health = bed.agent.run(&["health"]).expect_success().stderr;
    assert!(!health.contains("not reloaded"), "{health}");
    let name = bed.cluster.switch_wal();
    bed.cluster.wait_done(&name);
    assert!(bed.archive().get(&name).is_some());
    assert_eq!(bed.cluster.archive_failures().0, 0, "{}", bed.cluster.log());
    assert_eq!(daemon.stop(), 0);
    assert!(!bed.agent.push_socket().exists(), "the socket's name goes with the daemon");
}

/// A8: a reload while a push waits for a store that does not answer: somebody answers at every moment, no other daemon takes over,
/// the push is told to ask again, and archiving goes on.
#[test]
fn sighup_never_takes_the_socket_away() {
    let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), Store::s3());
    let proxy = Proxy::to(bed.store.port().unwrap());
    bed.agent = Agent::new(&bed.cluster).repository_via("main", &bed.store, &proxy);
    bed.agent.tables = "\n[daemon]\ndrain_timeout = \"4s\"\n".to_owned();
    bed.agent.archive_from(&bed.cluster);
    let daemon = bed.agent.daemon();
    let second = bed.agent.launch();
    let healthy = || bed.agent.run(&["health"]).expect_success();
    wait::until_true(SOON, "the second daemon waits", || second.log().contains("another daemon answers"));
    proxy.set(Fault::Blackhole);
    bed.cluster.start();
    let name = bed.cluster.switch_wal();
    client_waits(&bed.cluster);
    let ready = daemon.log().matches(" ready ").count();
    daemon.process.signal(rustix::process::Signal::HUP);
    let reloaded = std::time::Instant::now();
    // Longer than the drain.
    while reloaded.elapsed() < Duration::from_secs(6) {
        healthy();
    }
    let log = daemon.log();
    assert!(log.contains("SIGHUP: reading the configuration again"), "{log}");
    assert_eq!(log.matches(" ready ").count(), ready + 1, "{log}");
    // Both daemons write the same log.
    assert_eq!(log.matches("answering archive-push").count(), 1, "{log}");
    assert_eq!(bed.cluster.archive_failures().0, 0, "{}", bed.cluster.log());
    proxy.heal();
    bed.cluster.wait_done(&name);
    assert!(bed.archive().get(&name).is_some());
    assert_eq!(bed.cluster.archive_failures().0, 0, "{}", bed.cluster.log());
    // Another reload in the middle of one.
    proxy.set(Fault::Blackhole);
    let name = bed.cluster.switch_wal();
    client_waits(&bed.cluster);
    for more in 2..4 {
        daemon.process.signal(rustix::process::Signal::HUP);
        wait::until_true(SOON, "it reads it again", || {
            daemon.log().matches(" ready ").count() == ready + more
        });
        healthy();
    }
    proxy.heal();
    bed.cluster.wait_done(&name);
    assert_eq!(daemon.stop(), 0);
    wait::until_true(SOON, "the second takes over", || {
        second.log().matches("answering archive-push").count() == 2
    });
    healthy();
    assert_eq!(second.stop(), 0);
}

/// Only root and PostgreSQL's user may say "stored".
#[test]
fn a_socket_of_somebody_else_is_not_believed() {
    needs_root!();
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.set("archive_command", "false");
    bed.cluster.start();
    let name = bed.cluster.switch_wal();
    let listener = std::os::unix::net::UnixListener::bind(bed.agent.push_socket()).unwrap();
    std::os::unix::fs::chown(bed.agent.push_socket(), Some(65_534), None).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let request = PushRequest::read(&mut stream).unwrap();
            let reply = PushReply {
                remember: Vec::new(),
                outcome: PushOutcome::Stored,
                identity: request.identity,
                message: String::new(),
            };
            reply.write(&mut stream).unwrap();
        }
    });
    let pushed = bed.agent.push(format!("pg_wal/{name}")).expect_success();
    assert!(pushed.stderr.contains("belongs to uid 65534"), "{}", pushed.stderr);
    assert!(bed.archive().get(&name).is_some(), "the client stored it itself");
}
