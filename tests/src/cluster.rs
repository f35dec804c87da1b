//! Real PostgreSQL clusters: start, stop, crash.
//!
//! The server runs as a child of the test (`postgres` itself, not `pg_ctl`) with its Unix socket in a directory of its
//! own, so clusters need no port and nobody can take it from them. Whatever happens to the test, `Drop` or the kernel's
//! closing of the parent ends what was started here, by process id.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use crate::builder::{ClusterBuilder, free_name, line};
use crate::dir::TestDir;
use crate::ports::PortLease;
use crate::process::{self, Background};
use crate::wait::{self, SOON};
use crate::{testbed, user};

/// How to stop a server; PostgreSQL's own names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Waits for clients to leave.
    Smart,
    /// Disconnects clients, writes a checkpoint, waits for the archiver.
    Fast,
    /// Ends at once; the next start recovers.
    Immediate,
}

/// One data directory and, while it runs, its server.
#[derive(Debug)]
pub struct Cluster {
    // Declared first so that it ends before its directory goes.
    server: Option<Background>,
    major: u32,
    pgdata: PathBuf,
    sockets: PathBuf,
    log: PathBuf,
    tcp: Option<PortLease>,
    preload: Option<PathBuf>,
    dir: Arc<TestDir>,
}

impl Cluster {
    /// Starts describing a new cluster.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::default()
    }

    /// Takes over a data directory that something else made: a restored one, a copy.
    pub fn adopt(dir: Arc<TestDir>, major: u32, pgdata: PathBuf, tcp: Option<PortLease>) -> Cluster {
        let sockets = free_name(&dir, "s");
        dir.mkdir(sockets.file_name().expect("a name"));
        let log = free_name(&dir, "log");
        dir.write(log.file_name().expect("a name"), "");
        Cluster { server: None, major, pgdata, sockets, log, tcp, preload: None, dir }
    }

    /// Starts a restored data directory, which recovers as its files say. Socket and port are given on the command
    /// line, so a configuration copied from the source does no harm.
    #[track_caller]
    pub fn start_restored(dir: &Arc<TestDir>, major: u32, pgdata: impl Into<PathBuf>) -> Cluster {
        let mut cluster = Cluster::adopt(Arc::clone(dir), major, pgdata.into(), None);
        cluster.start();
        cluster
    }

    /// A library that the server is started with from now on (`LD_PRELOAD`).
    pub fn preload(&mut self, library: PathBuf) {
        self.preload = Some(library);
    }

    /// The major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// The data directory.
    pub fn pgdata(&self) -> &Path {
        &self.pgdata
    }

    /// `pg_wal`.
    pub fn wal_dir(&self) -> PathBuf {
        self.pgdata.join("pg_wal")
    }

    /// The temporary directory that holds this cluster, to be shared with other parts of a test.
    pub fn dir(&self) -> &Arc<TestDir> {
        &self.dir
    }

    /// The directory of its Unix socket (`host=` of a connection string).
    pub fn socket_dir(&self) -> &Path {
        &self.sockets
    }

    /// The port: of the Unix socket's name always, of 127.0.0.1 when the builder said `tcp`.
    pub fn port(&self) -> u16 {
        self.tcp.as_ref().map_or(5432, PortLease::port)
    }

    /// A connection string for libpq and for our programs.
    pub fn conninfo(&self) -> String {
        format!("host={} port={} user=postgres dbname=postgres", self.sockets.display(), self.port())
    }

    /// Everything the server logged, over all its starts.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The postmaster's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Background::pid)
    }

    /// Does the postmaster run (it may have ended by itself)?
    pub fn is_running(&mut self) -> bool {
        self.server.as_mut().is_some_and(|server| server.try_status().is_none())
    }

    /// Adds a setting to `postgresql.conf`; takes effect at the next [`reload`](Cluster::reload) or start.
    pub fn set(&self, name: &str, value: impl ToString) {
        let conf = self.pgdata.join("postgresql.conf");
        let mut conf = OpenOptions::new().append(true).open(conf).expect("postgresql.conf");
        conf.write_all(line(name, &value.to_string()).as_bytes()).expect("write postgresql.conf");
    }

    /// Adds a setting to `postgresql.auto.conf`, which PostgreSQL reads last.
    pub fn set_last(&self, name: &str, value: impl ToString) {
        let conf = self.pgdata.join("postgresql.auto.conf");
        let mut conf = OpenOptions::new().append(true).open(conf).expect("postgresql.auto.conf");
        conf.write_all(line(name, &value.to_string()).as_bytes()).expect("write postgresql.auto.conf");
    }

    /// SIGHUP.
    pub fn reload(&self) {
        self.server.as_ref().expect("a running server").signal(Signal::HUP);
    }

    /// Starts the server and waits until it takes connections.
    #[track_caller]
    pub fn start(&mut self) {
        if let Err(reason) = self.try_start(Duration::from_secs(120)) {
            panic!("PostgreSQL {} did not start: {reason}\n{}", self.major, self.log());
        }
    }

    /// Starts the server; an error when it ended or took longer than `limit` before it took connections.
    pub fn try_start(&mut self, limit: Duration) -> Result<(), String> {
        self.launch();
        let start = std::time::Instant::now();
        loop {
            if let Some(status) = self.server.as_mut().expect("launched").try_status() {
                self.server = None;
                return Err(format!("exit status {status}"));
            }
            if matches!(self.state().as_deref(), Some("ready" | "standby")) {
                return Ok(());
            }
            if start.elapsed() > limit {
                return Err(format!("not ready after {limit:?}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts the server and does not wait for anything.
    #[track_caller]
    pub fn launch(&mut self) {
        assert!(!self.is_running(), "the server of {} runs already", self.pgdata.display());
        let mut command = Command::new(testbed::pg_program(self.major, "postgres"));
        let listen = if self.tcp.is_some() { "127.0.0.1" } else { "" };
        let quoted = |name: &str, value: &str| format!("{name}={value}");
        command.arg("-D").arg(&self.pgdata).current_dir(self.dir.path());
        command.args(["-c", &quoted("unix_socket_directories", &self.sockets.display().to_string())]);
        command.args([
            "-c",
            &quoted("port", &self.port().to_string()),
            "-c",
            &quoted("listen_addresses", listen),
        ]);
        if let Some(library) = &self.preload {
            command.env("LD_PRELOAD", library);
        }
        command.args(["-c", "logging_collector=off", "-c", "log_destination=stderr"]);
        self.server = Some(Background::start(user::become_user(&mut command), &self.log));
    }

    /// The state in the last line of `postmaster.pid` of this very server: `starting`, `ready`, `standby`, `stopping`.
    pub fn state(&self) -> Option<String> {
        let text = fs::read_to_string(self.pgdata.join("postmaster.pid")).ok()?;
        let mut lines = text.lines();
        let pid: u32 = lines.next()?.trim().parse().ok()?;
        (Some(pid) == self.pid()).then(|| lines.nth(6).map(|state| state.trim().to_owned()))?
    }

    /// Stops the server and waits for its end.
    #[track_caller]
    pub fn stop(&mut self, how: Shutdown) {
        let mut server = self.server.take().expect("a running server");
        server.signal(match how {
            Shutdown::Smart => Signal::TERM,
            Shutdown::Fast => Signal::INT,
            Shutdown::Immediate => Signal::QUIT,
        });
        server.wait(Duration::from_secs(120));
    }

    /// Waits until the server ended by itself; its exit status.
    #[track_caller]
    pub fn wait_for_end(&mut self, limit: Duration) -> i32 {
        let status = self.server.as_mut().expect("a server that was started").wait(limit);
        self.server = None;
        status
    }

    /// A server that was killed leaves a small System V segment behind, which its next start would have removed.
    fn release_memory(&self) {
        let pid_file = fs::read_to_string(self.pgdata.join("postmaster.pid")).unwrap_or_default();
        let Some(id) = pid_file.lines().nth(6).and_then(|line| line.split_ascii_whitespace().nth(1)) else {
            return;
        };
        drop(Command::new("ipcrm").args(["-m", id]).output());
    }

    /// As if the machine died: kill -9 of the postmaster and of everything below it, commands of the archiver included.
    pub fn crash(&mut self) {
        let children = self.kill();
        drop(self.server.take());
        wait::until_true(SOON, "the crashed server's children are gone", || {
            !children.iter().any(|pid| process::alive(*pid))
        });
    }

    /// The same under clients that use it; its children. [`crash`](Cluster::crash) comes after it.
    pub fn kill(&self) -> Vec<u32> {
        let Some(postmaster) = self.pid() else { return Vec::new() };
        // Stopped first, it cannot start children that the list would miss.
        process::kill_pid(postmaster, Signal::STOP);
        let children = process::descendants(postmaster);
        process::kill_pid(postmaster, Signal::KILL);
        children.iter().for_each(|pid| process::kill_pid(*pid, Signal::KILL));
        children
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server
            && server.try_status().is_none()
        {
            // An immediate shutdown reaches the children, the archiver's commands included; kill -9 does not.
            server.signal(Signal::QUIT);
            let start = std::time::Instant::now();
            while server.try_status().is_none() && start.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(Duration::from_millis(5));
            }
            if server.try_status().is_none() {
                self.crash();
            }
        }
        self.release_memory();
    }
}
