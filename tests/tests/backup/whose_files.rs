//! Promise 12: a backup holds the files of the server that started and stopped it. A primary and its standby share system
//! identifier, path and configuration; a connection string may lead to either of them, or to both in turn.
//!
//! A link stands for the mounts of two machines: each server was started on the same path, which leads to the files of one of
//! them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use walpoint_tests::agent::{Agent, Daemon};
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::ports::PortLease;
use walpoint_tests::process::Background;
use walpoint_tests::proxy::Proxy;
use walpoint_tests::store::Store;
use walpoint_tests::wait;

use crate::bed::{Backed, report};

/// A primary and its standby, both on the same path.
struct Twins {
    primary: Cluster,
    standby: Cluster,
    path: PathBuf,
    /// What the path is on the machine of the primary, and on that of the standby.
    machines: [PathBuf; 2],
    store: Store,
    _daemon: Daemon,
}

const PRIMARY: usize = 0;
const STANDBY: usize = 1;

impl Twins {
    fn start(major: u32) -> Twins {
        // PostgreSQL writes pg_control by the path, also while that leads to the other machine. Only what a test does has it checkpoint.
        let quiet = Cluster::builder().conf("max_wal_size", "8GB").conf("checkpoint_timeout", "1h");
        let initial = quiet.major(major).segment_size_mb(1).tcp().init();
        let store = Store::local();
        let archiving = Agent::with(&initial, &store);
        archiving.archive_from(&initial);
        archiving.init(&[]).expect_success();
        let daemon = archiving.daemon();
        let (dir, path) = (initial.dir(), initial.dir().join("node"));
        let on_path = || Cluster::adopt(Arc::clone(dir), major, path.clone(), Some(PortLease::new()));
        lead(&path, initial.pgdata());
        let mut primary = on_path();
        primary.start();
        primary.psql("create table t (i int, filler text)");
        let copy = primary.base_backup(&["-X", "stream"]);
        lead(&path, &copy);
        let mut standby = on_path();
        standby.follow(&primary);
        standby.start();
        standby.wait_for("select count(*) from pg_stat_wal_receiver where status = 'streaming'", "1");
        // Rows that the standby has in memory alone, and that the next checkpoint of the primary makes old.
        primary.psql("insert into t select i, repeat('x', 200) from generate_series(1, 20000) i");
        standby.wait_replayed(&primary);
        let machines = [initial.pgdata().to_owned(), copy];
        Twins { primary, standby, path, machines, store, _daemon: daemon }
    }

    /// The programs on one of the machines, with this connection string.
    fn agent_on(&self, machine: usize, conninfo: &str) -> Agent {
        lead(&self.path, &self.machines[machine]);
        Agent::at(self.primary.dir(), &self.path, conninfo)
            .repository("main", &self.store)
            .cluster_line("backup_wal_timeout = \"60s\"")
    }

    fn finished(&self) -> usize {
        Backed::in_store(&self.store).finished().len()
    }

    /// Does the work while the primary writes segments, so that a standby's backup gets its WAL.
    fn while_writing<T>(&self, work: impl FnOnce() -> T) -> T {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    self.primary.psql("insert into t values (0, 'later'); select pg_switch_wal()");
                    std::thread::sleep(Duration::from_millis(200));
                }
            });
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            done.store(true, Ordering::Relaxed);
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The rows of a restored backup of which every server has 20,000.
    fn restored_rows(&self, agent: &Agent, id: &str) -> String {
        let target = self.primary.dir().join(format!("restored-{id}"));
        let place = target.display().to_string();
        agent.restore(&["restore", "--backup", id, "--pgdata", &place]).expect_success();
        let restored = Cluster::start_restored(self.primary.dir(), self.primary.major(), target);
        restored.wait_for("select pg_is_in_recovery()", "f");
        restored.psql("select count(*) from t where i > 0")
    }
}

/// Lets the path lead to a machine's files from now on.
fn lead(path: &Path, to: &Path) {
    let new = path.with_extension("new");
    symlink(to, &new).unwrap();
    fs::rename(new, path).unwrap();
}

fn files_of_another_server_are_refused(major: u32) {
    let twins = Twins::start(major);
    let conninfo = [twins.primary.conninfo(), twins.standby.conninfo()];
    for (files, server) in [(PRIMARY, STANDBY), (STANDBY, PRIMARY)] {
        let agent = twins.agent_on(files, &conninfo[server]);
        let checked = agent.run(&["check", "--no-switch"]).expect_status(3);
        assert!(checked.stdout.contains("conninfo leads to another server"), "{}", checked.stdout);
        let refused = agent.run(&["backup"]).expect_status(1);
        assert!(refused.stderr.contains("no backup was started"), "{}", refused.stderr);
        assert!(refused.stderr.contains("conninfo leads to another server"), "{}", refused.stderr);
        let status = agent.run(&["status"]);
        assert!(status.stdout.contains("conninfo leads to another server"), "{}", status.stdout);
        assert_eq!(twins.finished(), 0);
    }
    // What belongs together works, and the server that is asked for a remote backup sends its own files.
    for (files, server, arguments) in [
        (PRIMARY, PRIMARY, &["backup", "--json"][..]),
        (STANDBY, STANDBY, &["backup", "--json"]),
        (PRIMARY, STANDBY, &["backup", "--json", "--remote"]),
    ] {
        let agent = twins.agent_on(files, &conninfo[server]);
        agent.run(&["check", "--no-switch"][..arguments.len().min(2)]);
        let made = twins.while_writing(|| agent.run(arguments).expect_success());
        let id = report(&made)["backup"].as_str().unwrap().to_owned();
        assert_eq!(twins.restored_rows(&agent, &id), "20000", "{arguments:?}");
    }
}

/// Promise 12: `conninfo` leads to the standby, and the path to the primary's files, or the other way round.
#[test]
fn files_of_another_server_are_refused_by_the_oldest_version() {
    files_of_another_server_are_refused(13);
}

/// Promise 12: the same with the newest version.
#[test]
fn files_of_another_server_are_refused_by_the_newest_version() {
    files_of_another_server_are_refused(19);
}

/// Promise 12: each new connection leads to another server, by a load balancer or by several hosts. A backup is refused or
/// it is right, whichever server is first.
#[test]
fn a_load_balancer_never_mixes_two_servers() {
    let twins = Twins::start(17);
    let ports = [twins.primary.port(), twins.standby.port()];
    let balancer = Proxy::between(&ports);
    let balanced = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", balancer.port());
    let several = format!(
        "host=127.0.0.1,127.0.0.1 port={},{} load_balance_hosts=random user=postgres dbname=postgres",
        ports[0], ports[1]
    );
    let (mut made, mut refused) = (Vec::new(), 0);
    twins.while_writing(|| {
        for attempt in 0..16 {
            let conninfo = if attempt % 2 == 0 { &balanced } else { &several };
            // The next connection leads to the other server.
            if rand::random() {
                drop(std::net::TcpStream::connect(("127.0.0.1", balancer.port())));
            }
            let files = attempt % 4 / 2;
            let agent = twins.agent_on(files, conninfo);
            let remote: &[&str] = if attempt < 12 { &[] } else { &["--remote"] };
            let output = agent.run(&[&["backup", "--json"], remote].concat());
            match output.status {
                0 => {
                    let report = report(&output);
                    // Files of one server with the start and stop of the other may restore all the same, by luck.
                    if remote.is_empty() {
                        assert_eq!(report["from_standby"], files == STANDBY, "{report:#}");
                    }
                    let (id, way) = (report["backup"].as_str().unwrap(), attempt % 2);
                    println!("{id}: files {files}, way {way}, {remote:?}: {report}");
                    made.push(id.to_owned());
                }
                _ => {
                    refused += 1;
                    let why = ["conninfo leads to", "the global/pg_control that was copied "];
                    assert!(why.iter().any(|why| output.stderr.contains(why)), "{}", output.stderr);
                }
            }
        }
    });
    assert_eq!((made.len() + refused, twins.finished()), (16, made.len()));
    let agent = twins.agent_on(PRIMARY, &twins.primary.conninfo());
    for id in &made {
        assert_eq!(twins.restored_rows(&agent, id), "20000", "{id}");
    }
    println!("{} backups were made and {refused} refused", made.len());
}

/// A backup that copies, and is stopped in the middle of it.
fn in_the_middle(agent: &Agent) -> Background {
    let mut command = agent.command("archive-agent", ["backup", "--full"]);
    let backup = Background::start(&mut command, &agent.place().join("backup.log"));
    wait::until_true(wait::SOON, "the backup copies", || backup.log().contains("copying"));
    backup.signal(Signal::STOP);
    backup
}

/// Lets it go on: it fails, and there is no backup. What it said.
fn refuses(twins: &Twins, mut backup: Background) -> String {
    backup.signal(Signal::CONT);
    assert_eq!(backup.wait(Duration::from_secs(120)), 1, "{}", backup.log());
    assert_eq!(twins.finished(), 0);
    backup.log()
}

/// Promise 12: while a backup copies, the path comes to lead to other files, its server restarts, or it is promoted.
#[test]
fn a_server_that_changes_in_the_middle_leaves_no_backup() {
    let mut twins = Twins::start(16);
    twins
        .primary
        .psql("create table load as select i, md5(random()::text) from generate_series(1, 400000) i");
    twins.standby.wait_replayed(&twins.primary);
    let backup = in_the_middle(&twins.agent_on(PRIMARY, &twins.primary.conninfo()));
    lead(&twins.path, &twins.machines[STANDBY]);
    let log = refuses(&twins, backup);
    assert!(log.contains("conninfo leads to another server"), "{log}");

    // The primary finds its pg_control by the path, and so in the standby's directory. What replays writes there too, so it waits.
    let backup = in_the_middle(&twins.agent_on(STANDBY, &twins.standby.conninfo()));
    twins.standby.psql("select pg_wal_replay_pause()");
    twins.standby.wait_for("select pg_get_wal_replay_pause_state()", "paused");
    twins.primary.psql("checkpoint");
    let log = refuses(&twins, backup);
    assert!(log.contains("the server is a standby") && log.contains("that of a primary"), "{log}");
    twins.standby.psql("select pg_wal_replay_resume()");
    twins.standby.wait_replayed(&twins.primary);
    twins.standby.psql("checkpoint");

    let backup = in_the_middle(&twins.agent_on(STANDBY, &twins.standby.conninfo()));
    twins.standby.stop(Shutdown::Immediate);
    twins.standby.start();
    let log = refuses(&twins, backup);
    assert!(log.contains("is lost"), "{log}");

    let backup = in_the_middle(&twins.agent_on(STANDBY, &twins.standby.conninfo()));
    twins.standby.promote();
    let log = refuses(&twins, backup);
    assert!(log.contains("promoted"), "{log}");
}
