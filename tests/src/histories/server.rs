//! One server of a history: its data directory, its configuration of the programs, its daemon, an open session, and the
//! ledger of what Walpoint acknowledged to it.
//!
//! The ledger is `archive_command` itself: what exits 0 is copied beside, so the tester knows byte for byte which files
//! a server may believe archived.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::agent::{Agent, Daemon};
use crate::builder::free_name;
use crate::cluster::{Cluster, Shutdown};
use crate::dir::TestDir;
use crate::session::Session;
use crate::store::Store;

use super::oracle::State;

/// Rows by transaction, and open prepared transactions, on the session's two ways to read them.
const STATE: &str = "
    set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off; set enable_seqscan = on;
    select 'R|' || number || '|' || count(*) from ledger group by number order by number;
    set enable_indexonlyscan = on; set enable_indexscan = on; set enable_seqscan = off;
    select 'I|' || number || '|' || count(*) from ledger group by number order by number;
    select 'P|' || gid from pg_prepared_xacts";

/// A server and what belongs to it. A session on one (`walpoint_pg::server::Server`) has the same name: no history uses that.
#[derive(Debug)]
pub struct Server {
    // Declared in the order in which they end.
    session: Option<Session>,
    daemon: Option<Daemon>,
    /// The server itself.
    pub cluster: Cluster,
    /// The programs' configuration on its host.
    pub agent: Agent,
    /// The branch that it writes, once it does.
    pub branch: usize,
}

impl Server {
    /// A server in a directory that something will fill: a restore, a copy.
    pub fn at(dir: &Arc<TestDir>, major: u32, store: &Store, stem: &str) -> Server {
        let pgdata = free_name(dir, stem);
        let cluster = Cluster::adopt(Arc::clone(dir), major, pgdata, None);
        Server::of(cluster, store)
    }

    /// A server whose data directory is there.
    pub fn of(cluster: Cluster, store: &Store) -> Server {
        let agent = Agent::with(&cluster, store);
        agent.write();
        let server = Server { session: None, daemon: None, cluster, agent, branch: 0 };
        server
            .cluster
            .dir()
            .mkdir(server.ledger().strip_prefix(server.cluster.dir().path()).expect("inside"));
        server
    }

    /// Its name in the steps: the data directory's.
    pub fn name(&self) -> String {
        self.cluster.pgdata().file_name().expect("a name").to_string_lossy().into_owned()
    }

    /// Where copies of acknowledged files lie.
    pub fn ledger(&self) -> PathBuf {
        self.cluster.dir().join(format!("acknowledged-{}", self.name()))
    }

    /// Makes its settings those of a server that archives through its own daemon.
    pub fn archive_here(&self) {
        self.agent.write();
        // The copy is named after the data directory the command runs in: two servers may share one configuration.
        let kept = self.cluster.dir().join("acknowledged");
        let copy = format!("cp %p {}-\"$(basename \"$PWD\")\"/%f", kept.display());
        self.cluster.set("archive_mode", "on");
        self.cluster.set("archive_command", format!("{} && {copy}", self.agent.archive_command()));
    }

    /// Starts its daemon, unless it runs.
    pub fn start_daemon(&mut self) {
        if self.daemon.is_none() {
            self.daemon = Some(self.agent.daemon());
        }
    }

    /// What its daemon logged.
    pub fn daemon_log(&self) -> String {
        self.daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }

    /// Kills its daemon.
    pub fn kill_daemon(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.kill();
        }
    }

    /// The machine dies: server and daemon.
    pub fn crash(&mut self) {
        self.session = None;
        self.cluster.crash();
        self.kill_daemon();
    }

    /// The server dies, the daemon lives.
    pub fn crash_server(&mut self) {
        self.session = None;
        self.cluster.crash();
    }

    /// Stops server and daemon in good order.
    pub fn stop(&mut self) {
        self.session = None;
        if self.cluster.is_running() {
            self.cluster.stop(Shutdown::Fast);
        }
        self.kill_daemon();
    }

    /// Runs SQL in its open session.
    #[track_caller]
    pub fn sql(&mut self, sql: &str) -> String {
        let cluster = &self.cluster;
        self.session.get_or_insert_with(|| cluster.session()).run(sql)
    }

    /// Disconnects, before the server ends.
    pub fn disconnect(&mut self) {
        self.session = None;
    }

    /// Waits until it takes writes; an error if it ended or waits in vain.
    pub fn wait_promoted(&mut self, limit: Duration) -> Result<(), String> {
        let start = Instant::now();
        loop {
            if !self.cluster.is_running() {
                return Err(format!("the server ended in recovery\n{}", self.log_tail()));
            }
            let ready = self.cluster.state().as_deref() == Some("ready");
            if ready && self.cluster.try_psql("select pg_is_in_recovery()").is_ok_and(|answer| answer == "f")
            {
                return Ok(());
            }
            if start.elapsed() > limit {
                return Err(format!("not promoted within {limit:?}\n{}", self.log_tail()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The rows it has; an error when index and table disagree or a table cannot be read.
    pub fn state(&mut self) -> Result<State, String> {
        let answer = self.sql(STATE);
        let mut state = State::default();
        let mut by_index = State::default();
        for line in answer.lines() {
            let mut fields = line.split('|');
            let mut number = || fields.next().and_then(|field| field.parse::<i64>().ok()).unwrap_or(i64::MIN);
            if line.starts_with("R|") || line.starts_with("I|") {
                number();
                let (key, count) = (number(), number());
                let to = if line.starts_with('R') { &mut state } else { &mut by_index };
                to.rows.insert(key, count);
            } else if let Some(name) = line.strip_prefix("P|") {
                state.prepared.insert(name.to_owned());
            }
        }
        if state.rows != by_index.rows {
            return Err(format!("index and table differ: {:?} and {:?}", by_index.rows, state.rows));
        }
        Ok(state)
    }

    /// Names in its ledger.
    pub fn acknowledged(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.ledger()).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Files that wait for `archive_command`.
    pub fn waiting(&self) -> Vec<String> {
        let status = self.cluster.wal_dir().join("archive_status");
        let names = std::fs::read_dir(status).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> =
            names.filter_map(|name| name.strip_suffix(".ready").map(str::to_owned)).collect();
        names.sort();
        names
    }

    /// The end of the server's log.
    pub fn log_tail(&self) -> String {
        let log = self.cluster.log();
        let lines: Vec<&str> = log.lines().filter(|line| !line.contains("checkpoint")).collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    /// The lines of a timeline's history in its `pg_wal`: parent, switch point.
    pub fn history(&self, timeline: u32) -> Vec<(u32, walpoint_base::Lsn)> {
        let path = self.cluster.wal_dir().join(format!("{timeline:08X}.history"));
        let bytes = std::fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let line = |line: &str| {
            let mut fields = line.split_ascii_whitespace();
            Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        };
        text.lines().filter_map(line).collect()
    }
}
