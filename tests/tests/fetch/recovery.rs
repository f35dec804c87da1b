//! F2, F4 and F5 on real servers: recovery through an outage, through kill -9 of the prefetcher, across logs and timelines;
//! standbys, pg_rewind, and a spool on another filesystem.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::dir::TestDir;
use walpoint_tests::oracle::Contents;
use walpoint_tests::proxy::{Fault, Proxy};
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::Store;
use walpoint_tests::{faults, process, testbed, user, wait};

use crate::archive::Archive;
use crate::target::{kill_prefetchers, prefetchers};

/// A primary that archives with `cp`, a base backup of it, and rows after that.
struct Source {
    cluster: Cluster,
    archive: PathBuf,
    backup: PathBuf,
    ledger: Ledger,
}

impl Source {
    fn new(major: u32) -> Source {
        Source::at(major, None)
    }

    /// A primary whose WAL begins with that segment.
    fn at(major: u32, first: Option<&str>) -> Source {
        let dir = Arc::new(TestDir::new());
        let archive = dir.mkdir("archive");
        let command = format!("test ! -e {0}/%f && cp %p {0}/%f", archive.display());
        let builder = Cluster::builder().major(major).segment_size_mb(1).in_dir(&dir);
        let mut cluster = builder.archive_command(&command).conf("wal_keep_size", "512MB").init();
        if let Some(first) = first {
            let mut command = cluster.tool("pg_resetwal");
            process::run(command.args(["-l", first, "-D"]).arg(cluster.pgdata()), wait::SOON)
                .expect_success();
        }
        cluster.start();
        let ledger = Ledger::create(&cluster, "rows");
        let backup = cluster.base_backup(&["-X", "none"]);
        Source { cluster, archive, backup, ledger }
    }

    /// Commits one row in each of so many segments.
    fn fill(&mut self, segments: u32) {
        for _ in 0..segments {
            self.ledger.append(&self.cluster);
            self.cluster.switch_wal();
        }
    }

    /// The last segment that is archived.
    fn settle(&self) -> String {
        let last = self.cluster.switch_wal();
        self.cluster.wait_archived(&last);
        last
    }
}

/// What recovers from the base backup: as yet stopped, with the programs' configuration.
fn restored(source: &Source, configure: impl FnOnce(Agent) -> Agent) -> (Cluster, Agent) {
    let target =
        Cluster::adopt(Arc::clone(source.cluster.dir()), source.cluster.major(), copy_of(source), None);
    let agent = Agent::at(target.dir(), target.pgdata(), "").cluster_line("prefetch_max = \"8MiB\"");
    let agent = configure(agent);
    agent.write();
    target.set("archive_mode", "off");
    target.set("restore_command", agent.restore_command());
    (target, agent)
}

fn copy_of(source: &Source) -> PathBuf {
    let copy = source.backup.with_extension(format!("{}", rand::random::<u32>()));
    let mut command = Command::new("cp");
    process::run(user::become_user(command.arg("-a").arg(&source.backup).arg(&copy)), wait::SOON)
        .expect_success();
    copy
}

fn signal(cluster: &Cluster, name: &str) {
    let path = cluster.pgdata().join(name);
    fs::write(&path, "").unwrap();
    user::give(&path);
}

/// The restore_command that stops at a segment until the test lets it go on.
struct Gate {
    reached: PathBuf,
    open: PathBuf,
}

impl Gate {
    fn before(segment: &str, cluster: &Cluster, agent: &Agent) -> Gate {
        let gate = Gate { reached: agent.place().join("reached"), open: agent.place().join("open") };
        let script = agent.place().join("gate.sh");
        let (reached, open) = (gate.reached.display(), gate.open.display());
        let command = agent.restore_command().replace("%f", "\"$1\"").replace("%p", "\"$2\"");
        let text = format!(
            "#!/bin/sh\nif test \"$1\" = {segment} && test ! -e {open}; then touch {reached}; \
             while test ! -e {open}; do sleep 0.02; done; fi\nexec {command}\n"
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        user::give(&script);
        cluster.set("restore_command", format!("{} %f %p", script.display()));
        gate
    }

    fn wait(&self) {
        wait::until_true(wait::SOON, "recovery reaches the gate", || self.reached.exists());
    }

    fn open(&self) {
        fs::write(&self.open, "").unwrap();
    }
}

/// The segment so many after the first row's.
fn nth_segment(source: &Source, n: usize) -> String {
    let mut names: Vec<String> = fs::read_dir(&source.archive)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.retain(|name| name.len() == 24);
    names.sort();
    names.remove(n)
}

/// Recovery stopped at an outage that began in its middle, nothing was promoted, and it went on after the outage.
#[track_caller]
fn stops_and_goes_on(
    target: &mut Cluster,
    source: &Source,
    gate: &Gate,
    outage: impl FnOnce(),
    heal: impl FnOnce(),
) {
    signal(target, "recovery.signal");
    target.launch();
    gate.wait();
    outage();
    gate.open();
    let status = target.wait_for_end(Duration::from_secs(60));
    assert_ne!(status, 0);
    let log = target.log();
    assert!(log.contains("child process exited with exit code 255"), "{log}");
    assert!(!log.contains("archive recovery complete") && !log.contains("selected new timeline"), "{log}");
    assert!(target.pgdata().join("recovery.signal").exists());
    assert!(log.contains("PostgreSQL stops, because"), "the reason is told: {log}");
    heal();
    target.start();
    target.wait_for("select pg_is_in_recovery()", "f");
    assert_eq!(source.ledger.highest(target), source.ledger.highest(&source.cluster), "{}", target.log());
    assert_eq!(target.timeline(), 2);
}

/// F2: the repository's directory goes away in the middle of recovery.
#[test]
fn an_unmounted_repository_in_the_middle_never_promotes() {
    let mut source = Source::new(17);
    source.fill(40);
    source.settle();
    let store = Store::local();
    let archive = Archive::create(source.cluster.pgdata(), &[("main", &store)]);
    archive.put_all(&source.archive, |_| true);
    let (mut target, agent) =
        restored(&source, |agent| agent.repository("main", &store).cluster_line("fetch_timeout = \"1s\""));
    let gate = Gate::before(&nth_segment(&source, 12), &target, &agent);
    let root = store.root().unwrap();
    let aside = root.with_extension("aside");
    stops_and_goes_on(
        &mut target,
        &source,
        &gate,
        || {
            fs::rename(root, &aside).unwrap();
            fs::create_dir(root).unwrap();
        },
        || {
            fs::remove_dir(root).unwrap();
            fs::rename(&aside, root).unwrap();
        },
    );
    Contents::of(&target).assert_equal(&Contents::of(&source.cluster));
    wait::until_true(wait::SOON, "the prefetcher ends with recovery", || prefetchers(&agent).is_empty());
    assert!(!target.wal_dir().join("walpoint-spool").exists());
}

/// F2: another repository at the same place: made anew, as by an init that found an empty directory, or an older copy below
/// a mount that is gone. Neither has the WAL that comes next, and neither is believed.
#[test]
fn another_repository_in_the_middle_never_promotes() {
    let mut source = Source::new(17);
    source.fill(40);
    source.settle();
    let store = Store::local();
    let archive = Archive::create(source.cluster.pgdata(), &[("main", &store)]);
    let root = store.root().unwrap();
    let [aside, older] = ["aside", "older"].map(|name| root.with_extension(name));
    let turn = nth_segment(&source, 12);
    archive.put_all(&source.archive, |name| name < turn.as_str());
    process::run(Command::new("cp").arg("-a").args([root, &older]), wait::SOON).expect_success();
    archive.put_all(&source.archive, |_| true);
    for made_anew in [true, false] {
        let (mut target, agent) = restored(&source, |agent| {
            agent.repository("main", &store).cluster_line("fetch_timeout = \"1s\"")
        });
        let gate = Gate::before(&turn, &target, &agent);
        let put_back = || {
            fs::rename(root, root.with_extension(format!("gone-{made_anew}"))).unwrap();
            fs::rename(&aside, root).unwrap();
        };
        let wal = target.wal_dir();
        let replace = {
            let agent = &agent;
            let (root, aside, older, source, store) = (&root, &aside, &older, &source, &store);
            move || {
                fs::rename(root, aside).unwrap();
                if made_anew {
                    fs::create_dir(root).unwrap();
                    drop(Archive::create(source.cluster.pgdata(), &[("main", store)]));
                } else {
                    fs::rename(older, root).unwrap();
                }
                // What is asked next finds neither a prefetcher nor a spool.
                kill_prefetchers(agent);
                drop(fs::remove_dir_all(wal.join("walpoint-spool")));
            }
        };
        stops_and_goes_on(&mut target, &source, &gate, replace, put_back);
        assert!(!target.wal_dir().join("walpoint-origin").exists(), "recovery is over");
    }
}

/// F4 under load: a store that is far, narrow and drops connections in turns slows a recovery down and does not end it.
#[test]
fn recovery_through_bad_days_replays_everything() {
    let mut source = Source::new(17);
    source.fill(40);
    source.settle();
    let store = Store::s3();
    let archive = Archive::create(source.cluster.pgdata(), &[("main", &store)]);
    archive.put_all(&source.archive, |_| true);
    let proxy = Proxy::to(store.port().unwrap());
    let (mut target, agent) = restored(&source, |agent| {
        agent.repository_via("main", &store, &proxy).cluster_line("fetch_timeout = \"2m\"")
    });
    let gate = Gate::before(&nth_segment(&source, 6), &target, &agent);
    signal(&target, "recovery.signal");
    target.launch();
    gate.wait();
    gate.open();
    let days = [
        Fault::Bandwidth(1 << 20),
        Fault::ResetAnswerAfter(100_000),
        Fault::Latency(Duration::from_millis(100)),
    ];
    let mut days = days.iter().cycle();
    let over = || !target.pgdata().join("recovery.signal").exists();
    let begun = std::time::Instant::now();
    while !over() && begun.elapsed() < Duration::from_secs(60) {
        proxy.set(*days.next().unwrap());
        proxy.cut();
        std::thread::sleep(Duration::from_millis(300));
    }
    proxy.heal();
    target.wait_for("select pg_is_in_recovery()", "f");
    assert_eq!(source.ledger.highest(&target), source.ledger.highest(&source.cluster), "{}", target.log());
    Contents::of(&target).assert_equal(&Contents::of(&source.cluster));
}

/// F2: the object store goes away in the middle of recovery.
#[test]
fn an_unreachable_object_store_in_the_middle_never_promotes() {
    let mut source = Source::new(16);
    source.fill(30);
    source.settle();
    let store = Store::s3();
    let archive = Archive::create(source.cluster.pgdata(), &[("main", &store)]);
    archive.put_all(&source.archive, |_| true);
    let proxy = Proxy::to(store.port().unwrap());
    let (mut target, agent) = restored(&source, |agent| {
        agent.repository_via("main", &store, &proxy).cluster_line("fetch_timeout = \"1s\"")
    });
    let gate = Gate::before(&nth_segment(&source, 8), &target, &agent);
    stops_and_goes_on(&mut target, &source, &gate, || proxy.set(Fault::Refuse), || proxy.heal());
}

/// F2: an outage shorter than the budget is waited out, and PostgreSQL's log says what is waited for.
#[test]
fn a_short_outage_is_waited_out() {
    let mut source = Source::new(17);
    source.fill(20);
    source.settle();
    let store = Store::local();
    let archive = Archive::create(source.cluster.pgdata(), &[("main", &store)]);
    archive.put_all(&source.archive, |_| true);
    let (mut target, agent) = restored(&source, |agent| agent.repository("main", &store));
    let gate = Gate::before(&nth_segment(&source, 8), &target, &agent);
    signal(&target, "recovery.signal");
    target.launch();
    gate.wait();
    let root = store.root().unwrap();
    let aside = root.with_extension("aside");
    fs::rename(root, &aside).unwrap();
    gate.open();
    wait::until_true(wait::SOON, "the log says what is waited for", || {
        target.log().contains("waiting for \"")
    });
    fs::rename(&aside, root).unwrap();
    target.wait_for("select pg_is_in_recovery()", "f");
    assert_eq!(source.ledger.highest(&target), source.ledger.highest(&source.cluster));
}

/// F4: logs and timelines are crossed while the prefetcher is killed at random.
#[test]
fn recovery_survives_kills_of_the_prefetcher_across_logs_and_timelines() {
    // Sixteen segments before the end of the first 4 GiB.
    let mut source = Source::at(17, Some("000000010000000000000FF0"));
    source.fill(10);
    let standby = source.cluster.streaming_standby();
    source.fill(15);
    standby.wait_replayed(&source.cluster);
    source.settle();
    source.cluster.crash();
    standby.promote();
    source.cluster = standby;
    source.fill(25);
    source.settle();
    let store = Store::local();
    let archive = Archive::create(source.cluster.pgdata(), &[("main", &store)]);
    archive.put_all(&source.archive, |_| true);
    let (mut target, agent) = restored(&source, |agent| agent.repository("main", &store));
    signal(&target, "recovery.signal");
    target.launch();
    let mut random = faults::random();
    let mut kills = 0;
    wait::until_true(Duration::from_secs(120), "recovery ends", || {
        kills += kill_prefetchers(&agent);
        std::thread::sleep(Duration::from_millis(random.random_range(5..60)));
        assert!(target.is_running(), "{}", target.log());
        target.try_psql("select pg_is_in_recovery()").is_ok_and(|answer| answer == "f")
    });
    println!("{kills} kills");
    assert!(kills >= 3);
    assert_eq!(source.ledger.highest(&target), source.ledger.highest(&source.cluster), "{}", target.log());
    assert_eq!(target.timeline(), 3);
    let log = target.log();
    assert!(log.contains("restored log file \"000000010000000000000FFF\""), "{log}");
    assert!(log.contains("restored log file \"000000020000000100000"), "{log}");
    // A client that comes now cleans up after the last kill.
    let left = target.wal_dir().join("walpoint-spool");
    println!("left after the last kill: {}", left.exists());
}

/// F5: a standby that follows the archive, stays alive without it, and is promoted at once.
#[test]
fn a_standby_follows_the_archive() {
    let mut source = Source::new(17);
    source.fill(5);
    source.settle();
    let store = Store::local();
    let archive = Archive::create(source.cluster.pgdata(), &[("main", &store)]);
    archive.put_all(&source.archive, |_| true);
    let (mut target, agent) = restored(&source, |agent| {
        agent.repository("main", &store).cluster_line("prefetch_idle_timeout = \"2s\"")
    });
    target.set("wal_retrieve_retry_interval", "200ms");
    signal(&target, "standby.signal");
    target.start();
    let count = |source: &Source| source.cluster.psql("select count(*) from rows");
    target.wait_for("select count(*) from rows", &count(&source));
    for _ in 0..3 {
        source.fill(2);
        let known = source.settle();
        archive.put_all(&source.archive, |name| name <= known.as_str());
        target.wait_for("select count(*) from rows", &count(&source));
    }
    // The archive goes away: readers are served.
    let root = store.root().unwrap();
    let aside = root.with_extension("aside");
    fs::rename(root, &aside).unwrap();
    wait::until_true(wait::SOON, "the log tells it", || target.log().contains("This standby will retry"));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(target.psql("select count(*) from rows"), count(&source));
    fs::rename(&aside, root).unwrap();
    source.fill(2);
    let known = source.settle();
    archive.put_all(&source.archive, |name| name <= known.as_str());
    target.wait_for("select count(*) from rows", &count(&source));
    // Without the archive again, promotion takes as long as its few requests.
    fs::rename(root, &aside).unwrap();
    let begun = std::time::Instant::now();
    target.promote();
    println!("promoted in {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(source.ledger.highest(&target), source.ledger.highest(&source.cluster));
    wait::until_true(wait::SOON, "the prefetcher ends", || prefetchers(&agent).is_empty());
    assert!(!target.wal_dir().join("walpoint-spool").exists());
    fs::rename(&aside, root).unwrap();
}

/// F5: pg_rewind takes the WAL that the old primary has removed already from the archive.
#[test]
fn pg_rewind_fetches_what_is_gone() {
    let mut source = Source::new(17);
    let new = source.cluster.streaming_standby();
    source.fill(3);
    new.wait_replayed(&source.cluster);
    let forked_in = source.cluster.current_segment();
    new.promote();
    new.psql("create table kept as select generate_series(1, 100) as n; checkpoint");
    // The old primary goes its own way for a while.
    source.fill(6);
    source.settle();
    source.cluster.psql("create table lost as select 1; checkpoint");
    let mut old = source.cluster;
    old.stop(Shutdown::Fast);
    let store = Store::local();
    let archive = Archive::create(old.pgdata(), &[("main", &store)]);
    archive.put_all(&source.archive, |name| name.starts_with("00000001") && name.len() == 24);
    let last = old.segments().pop().unwrap();
    for name in
        old.segments().iter().filter(|name| name.as_str() >= "000000010000000000000002" && **name < last)
    {
        if source.archive.join(name).exists() {
            fs::remove_file(old.wal_dir().join(name)).unwrap();
        }
    }
    assert!(!old.wal_dir().join(&forked_in).exists());
    let agent = Agent::at(old.dir(), old.pgdata(), "").repository("main", &store);
    agent.write();
    old.set("restore_command", agent.restore_command());
    let mut command = Command::new(testbed::pg_program(17, "pg_rewind"));
    command.args(["--restore-target-wal", "--no-sync", "-D"]).arg(old.pgdata());
    command.arg("--source-server").arg(new.conninfo()).current_dir(old.dir().path());
    let output = process::run(user::become_user(&mut command), Duration::from_secs(120));
    assert_eq!(output.status, 0, "{output:#?}");
    assert!(output.stderr.contains("Done"), "{output:#?}");
    assert!(!old.wal_dir().join("walpoint-spool").exists() && prefetchers(&agent).is_empty());
    let mut old = old;
    old.follow(&new);
    old.start();
    old.wait_replayed(&new);
    assert_eq!(old.psql("select count(*) from kept"), "100");
    assert_eq!(old.psql("select to_regclass('lost') is null"), "t");
}

/// F5: a spool on another filesystem than PGDATA.
#[test]
fn the_spool_may_lie_on_another_filesystem() {
    let mut source = Source::new(17);
    source.fill(12);
    source.settle();
    let store = Store::local();
    let archive = Archive::create(source.cluster.pgdata(), &[("main", &store)]);
    archive.put_all(&source.archive, |_| true);
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    let elsewhere = ["/var/tmp", "/dev/shm", "/tmp"].map(Path::new);
    let elsewhere = elsewhere.into_iter().find(|path| device(path) != device(source.cluster.pgdata()));
    let spool = elsewhere.expect("two filesystems").join(format!("walpoint-spool-{}", std::process::id()));
    fs::create_dir(&spool).unwrap();
    user::give(&spool);
    let (mut target, agent) = restored(&source, |agent| {
        agent.repository("main", &store).cluster_line(&format!("spool = \"{}/s\"", spool.display()))
    });
    signal(&target, "recovery.signal");
    target.start();
    target.wait_for("select pg_is_in_recovery()", "f");
    assert_eq!(source.ledger.highest(&target), source.ledger.highest(&source.cluster));
    assert!(!target.log().contains("directly"), "{}", target.log());
    wait::until_true(wait::SOON, "the prefetcher ends with recovery", || prefetchers(&agent).is_empty());
    assert!(!spool.join("s").exists());
    let left = fs::read_dir(target.wal_dir()).unwrap().flatten();
    assert!(!left.into_iter().any(|e| e.file_name().to_string_lossy().starts_with(".walpoint-tmp-")));
    fs::remove_dir_all(spool).unwrap();
}

/// F5: a target that was configured is reached, and nothing is fetched for long after it.
#[test]
fn a_paused_server_leaves_no_prefetcher_behind() {
    let mut source = Source::new(17);
    source.fill(6);
    let mark = source.ledger.append(&source.cluster);
    source.fill(10);
    source.settle();
    let store = Store::local();
    let archive = Archive::create(source.cluster.pgdata(), &[("main", &store)]);
    archive.put_all(&source.archive, |_| true);
    let (mut target, agent) = restored(&source, |agent| {
        agent.repository("main", &store).cluster_line("prefetch_idle_timeout = \"1s\"")
    });
    target.set("recovery_target_lsn", &mark.after);
    target.set("recovery_target_action", "pause");
    signal(&target, "recovery.signal");
    target.start();
    target.wait_for("select pg_get_wal_replay_pause_state()", "paused");
    assert_eq!(source.ledger.highest(&target), mark.n);
    wait::until_true(wait::SOON, "the prefetcher ends", || prefetchers(&agent).is_empty());
    target.psql("select pg_wal_replay_resume()");
    target.wait_for("select pg_is_in_recovery()", "f");
    assert_eq!(source.ledger.highest(&target), mark.n);
}
