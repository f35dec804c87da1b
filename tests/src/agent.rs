//! The programs under test, with a configuration for one cluster and its repositories, as the servers' user.

use std::ffi::OsStr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::dir::TestDir;
use crate::process::{self, Background, Output};
use crate::proxy::Proxy;
use crate::store::Store;
use crate::{testbed, user, wait};

/// No command of a test takes longer than this.
const LIMIT: Duration = Duration::from_secs(240);

/// A configuration file and what goes with it. Changes are written by [`write`](Agent::write), which all runs do.
#[derive(Debug)]
pub struct Agent {
    dir: Arc<TestDir>,
    place: PathBuf,
    name: String,
    pgdata: PathBuf,
    conninfo: String,
    repositories: Vec<(String, String)>,
    /// Lines added at the top of the file: settings of no table.
    pub top_lines: Vec<String>,
    /// Lines added to the cluster's table.
    pub cluster_lines: Vec<String>,
    /// Environment added to every program.
    pub env: Vec<(String, String)>,
    /// Whole tables added at the end.
    pub tables: String,
}

impl Agent {
    /// For a cluster, named `main`, without a repository yet.
    pub fn new(cluster: &Cluster) -> Agent {
        Agent::at(cluster.dir(), cluster.pgdata(), &cluster.conninfo())
    }

    /// For a cluster and one repository `main`.
    pub fn with(cluster: &Cluster, store: &Store) -> Agent {
        Agent::new(cluster).repository("main", store)
    }

    /// For a data directory that no cluster of the harness stands behind: a restore's target.
    pub fn at(dir: &Arc<TestDir>, pgdata: &Path, conninfo: &str) -> Agent {
        let place = crate::builder::free_name(dir, "agent");
        dir.mkdir(place.file_name().expect("a name"));
        Agent {
            dir: Arc::clone(dir),
            place,
            name: "main".to_owned(),
            pgdata: pgdata.to_owned(),
            conninfo: conninfo.to_owned(),
            repositories: Vec::new(),
            top_lines: Vec::new(),
            cluster_lines: Vec::new(),
            env: Vec::new(),
            tables: String::new(),
        }
    }

    /// Another cluster name than `main`.
    pub fn named(mut self, name: &str) -> Agent {
        self.name = name.to_owned();
        self
    }

    /// Adds a repository. Its credentials are put into files beside the configuration.
    pub fn repository(self, name: &str, store: &Store) -> Agent {
        self.add(name, store, None)
    }

    /// Adds a repository that is reached through a proxy.
    pub fn repository_via(self, name: &str, store: &Store, proxy: &Proxy) -> Agent {
        self.add(name, store, Some(proxy.port()))
    }

    /// Adds a repository that is reached through something that listens on another port.
    pub fn repository_via_port(self, name: &str, store: &Store, port: u16) -> Agent {
        self.add(name, store, Some(port))
    }

    fn add(mut self, name: &str, store: &Store, port: Option<u16>) -> Agent {
        let mut text = store.config(port);
        for ((_, value), key) in store.env().iter().zip(["access_key_id", "secret_access_key"]) {
            let file = self.place.join(format!("{name}.{key}"));
            std::fs::write(&file, value).expect("write a credential");
            user::give(&file);
            text += &format!("{key}_file = \"{}\"\n", file.display());
        }
        self.repositories.push((name.to_owned(), text));
        self
    }

    /// Adds a line to a repository's table.
    pub fn repository_line(mut self, name: &str, line: &str) -> Agent {
        let found = self.repositories.iter_mut().find(|(other, _)| other == name);
        let (_, text) = found.unwrap_or_else(|| panic!("no repository {name}"));
        *text += line;
        text.push('\n');
        self
    }

    /// Adds a line to the cluster's table.
    pub fn cluster_line(mut self, line: &str) -> Agent {
        self.cluster_lines.push(line.to_owned());
        self
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.place.join("walpoint.toml")
    }

    /// The daemon's push socket.
    pub fn push_socket(&self) -> PathBuf {
        self.place.join("push")
    }

    /// The prefetcher's socket.
    pub fn fetch_socket(&self) -> PathBuf {
        self.place.join("fetch")
    }

    /// A directory of the agent's own, for scratch files of the test.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Writes the configuration as it is described now; its path.
    pub fn write(&self) -> PathBuf {
        let mut text = String::new();
        self.top_lines.iter().for_each(|line| text += &format!("{line}\n"));
        for (name, table) in &self.repositories {
            text += &format!("\n[repository.{name}]\n{table}");
        }
        let names: Vec<String> = self.repositories.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        text += &format!("\n[cluster.{}]\nrepositories = [{}]\n", self.name, names.join(", "));
        text += &format!("pgdata = \"{}\"\nconninfo = \"{}\"\n", self.pgdata.display(), self.conninfo);
        text += &format!("push_socket = \"{}\"\n", self.push_socket().display());
        self.cluster_lines.iter().for_each(|line| text += &format!("{line}\n"));
        text += &self.tables;
        let path = self.config();
        // Restored servers read it at any moment: it is never half-written.
        if std::fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            let part = path.with_extension(format!("part{:?}", std::thread::current().id()));
            std::fs::write(&part, text).expect("write the configuration");
            user::give(&part);
            std::fs::rename(&part, &path).expect("put the configuration in place");
        }
        path
    }

    /// The value for `archive_command`.
    pub fn archive_command(&self) -> String {
        let program = testbed::under_test("archive-push");
        let (socket, config) = (self.push_socket(), self.config());
        format!("{} --socket {} --config {} %p", program.display(), socket.display(), config.display())
    }

    /// The value for `restore_command`.
    pub fn restore_command(&self) -> String {
        let program = testbed::under_test("restore-fetch");
        let (socket, config) = (self.fetch_socket(), self.config());
        format!("{} --socket {} --config {} %f %p", program.display(), socket.display(), config.display())
    }

    /// Sets `archive_mode` and `archive_command` of a cluster that is not started yet, and writes the configuration.
    pub fn archive_from(&self, cluster: &Cluster) {
        self.write();
        cluster.set("archive_mode", "on");
        cluster.set("archive_command", self.archive_command());
    }

    /// A program under test with its configuration and environment, as the servers' user, in the data directory's
    /// parent; not started. For what the other methods do not cover, and for [`faults::inject`](crate::faults::inject).
    #[track_caller]
    pub fn command<S: AsRef<OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = S>) -> Command {
        let config = self.write();
        let mut command = Command::new(testbed::under_test(program));
        command.args(arguments).current_dir(self.dir.path());
        for (name, _) in std::env::vars() {
            if name.starts_with("AWS_") || name.starts_with("WALPOINT_") || name.starts_with("PG") {
                command.env_remove(name);
            }
        }
        user::become_user(&mut command);
        command.env("WALPOINT_CONFIG", config).envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Runs `archive-agent` to its end.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Output {
        process::run(&mut self.command("archive-agent", arguments), LIMIT)
    }

    /// Runs `restore-agent` to its end.
    #[track_caller]
    pub fn restore(&self, arguments: &[&str]) -> Output {
        process::run(&mut self.command("restore-agent", arguments), LIMIT)
    }

    /// Runs `archive-agent init` for this cluster in every repository of the configuration, or in one by `--repo`.
    #[track_caller]
    pub fn init(&self, arguments: &[&str]) -> Output {
        let mut all = vec!["init", "--cluster", self.name.as_str()];
        all.extend(arguments);
        self.run(&all)
    }

    /// Runs `archive-push` as PostgreSQL would: in the data directory. `path` may be relative to it.
    #[track_caller]
    pub fn push(&self, path: impl AsRef<Path>) -> Output {
        process::run(&mut self.push_command(path), LIMIT)
    }

    /// What [`push`](Agent::push) runs.
    #[track_caller]
    pub fn push_command(&self, path: impl AsRef<Path>) -> Command {
        let mut command = self.command("archive-push", ["--socket"]);
        command.arg(self.push_socket()).arg("--config").arg(self.config()).arg(path.as_ref());
        command.current_dir(&self.pgdata);
        command
    }

    /// Runs `restore-fetch NAME PATH` as PostgreSQL would: in the data directory.
    #[track_caller]
    pub fn fetch(&self, name: &str, path: impl AsRef<Path>) -> Output {
        process::run(&mut self.fetch_command(name, path), LIMIT)
    }

    /// What [`fetch`](Agent::fetch) runs.
    #[track_caller]
    pub fn fetch_command(&self, name: &str, path: impl AsRef<Path>) -> Command {
        let mut command = self.command("restore-fetch", ["--socket"]);
        command.arg(self.fetch_socket()).arg("--config").arg(self.config()).arg(name).arg(path.as_ref());
        command.current_dir(&self.pgdata);
        command
    }

    /// Starts the daemon and waits until its push socket takes connections. Dropping the guard kills it (SIGKILL).
    #[track_caller]
    pub fn daemon(&self) -> Daemon {
        let mut daemon = self.launch();
        let socket = self.push_socket();
        wait::until_true(wait::SOON, "the daemon's push socket accepts", || {
            let status = daemon.process.try_status();
            assert!(status.is_none(), "the daemon ended with {status:?}:\n{}", daemon.log());
            UnixStream::connect(&socket).is_ok()
        });
        daemon
    }

    /// Starts the daemon and does not wait.
    #[track_caller]
    pub fn launch(&self) -> Daemon {
        let log = self.place.join("daemon.log");
        Daemon { process: Background::start(&mut self.command("archive-agent", ["run"]), &log) }
    }
}

/// A running `archive-agent run`.
#[derive(Debug)]
pub struct Daemon {
    /// Its process: signals, status, log.
    pub process: Background,
}

impl Daemon {
    /// Everything it logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// SIGTERM; waits for its end and gives its exit status.
    #[track_caller]
    pub fn stop(mut self) -> i32 {
        self.process.signal(rustix::process::Signal::TERM);
        self.process.wait(Duration::from_secs(60))
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.process.kill();
    }

    /// Resident memory in bytes, and its highest value so far.
    pub fn memory(&self) -> (u64, u64) {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap_or_default();
        let field = |name: &str| process::memory(&status, name).unwrap_or(0);
        (field("VmRSS:"), field("VmHWM:"))
    }
}
