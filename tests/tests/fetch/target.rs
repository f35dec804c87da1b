//! A data directory that asks for WAL, without a server: `pg_control` and `pg_wal` are all that fetching looks at.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use walpoint_tests::agent::Agent;
use walpoint_tests::dir::TestDir;
use walpoint_tests::process::{self, Output};
use walpoint_tests::{user, wait};

/// Where the file is wanted.
const PATH: &str = "pg_wal/RECOVERYXLOG";

/// No fetch takes longer than this.
const LIMIT: Duration = Duration::from_secs(240);

/// A data directory and the configuration of the programs that serve it.
pub(crate) struct Target {
    _end: EndPrefetchers,
    pub(crate) agent: Agent,
    pub(crate) pgdata: PathBuf,
    dir: Arc<TestDir>,
    /// What `restore_command` has beside the socket and the configuration.
    options: Vec<String>,
}

impl Target {
    /// A data directory with the `pg_control` of another one. Archive recovery gives up after a moment.
    pub(crate) fn like(pgdata: &Path) -> Target {
        Target::waiting(pgdata, "400ms")
    }

    /// The same, where archive recovery waits longer than a test does.
    pub(crate) fn patient(pgdata: &Path) -> Target {
        Target::waiting(pgdata, "10m")
    }

    fn waiting(pgdata: &Path, budget: &str) -> Target {
        let dir = Arc::new(TestDir::new());
        let own = dir.mkdir("data");
        dir.mkdir("data/global");
        dir.mkdir("data/pg_wal");
        std::fs::copy(pgdata.join("global/pg_control"), own.join("global/pg_control")).unwrap();
        // As of a server in archive recovery; this very process stands for it.
        std::fs::write(own.join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
        std::fs::write(own.join("recovery.signal"), "").unwrap();
        user::give_tree(&own);
        let agent = Agent::at(&dir, &own, "").cluster_line(&format!("fetch_timeout = \"{budget}\""));
        Target { _end: EndPrefetchers(agent.fetch_socket()), agent, pgdata: own, dir, options: Vec::new() }
    }

    /// Replaces the programs' configuration.
    pub(crate) fn configure(mut self, change: impl FnOnce(Agent) -> Agent) -> Target {
        self.agent = change(self.agent);
        self
    }

    /// Gives the programs these options, as `restore_command` would.
    pub(crate) fn options(mut self, options: &[&str]) -> Target {
        self.options = options.iter().map(|option| (*option).to_owned()).collect();
        self
    }

    /// Makes it a standby's.
    pub(crate) fn standby(self) -> Target {
        self.dir.write("data/standby.signal", "");
        self
    }

    /// Asks as PostgreSQL would, of a prefetcher that starts for it.
    #[track_caller]
    pub(crate) fn fetch(&self, name: &str) -> Output {
        self.clean();
        let mut command = self.agent.fetch_command(name, PATH);
        process::run(command.args(&self.options), LIMIT)
    }

    /// Asks without a prefetcher.
    #[track_caller]
    pub(crate) fn fetch_directly(&self, name: &str) -> Output {
        self.clean();
        let mut command = self.agent.command("restore-agent", ["fetch", name, PATH]);
        process::run(command.args(&self.options).current_dir(&self.pgdata), wait::SOON)
    }

    /// The file that was fetched.
    pub(crate) fn file(&self) -> Option<Vec<u8>> {
        std::fs::read(self.pgdata.join(PATH)).ok()
    }

    fn clean(&self) {
        // PostgreSQL does so too.
        drop(std::fs::remove_file(self.pgdata.join(PATH)));
    }

    /// The spool.
    pub(crate) fn spool(&self) -> PathBuf {
        self.pgdata.join("pg_wal/walpoint-spool")
    }

    /// What waits in the spool under its final name.
    pub(crate) fn ready(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.spool().join("ready")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        names
    }

    /// Starts a prefetcher; killed by its id when dropped.
    pub(crate) fn prefetcher_with(&self, arguments: &[&str]) -> process::Background {
        let socket = self.agent.fetch_socket();
        let mut command = self.agent.command("restore-agent", ["prefetch", "--pgdata"]);
        command.arg(&self.pgdata).arg("--socket").arg(&socket).args(arguments);
        let started = process::Background::start(&mut command, &self.dir.join("prefetch.log"));
        wait::until_true(wait::SOON, "the prefetcher listens", || UnixStream::connect(&socket).is_ok());
        started
    }
}

/// Ends what a test leaves running.
struct EndPrefetchers(PathBuf);

impl Drop for EndPrefetchers {
    fn drop(&mut self) {
        let pids = prefetchers_at(&self.0);
        pids.iter().for_each(|pid| process::kill_pid(*pid, rustix::process::Signal::KILL));
    }
}

/// The prefetchers that were started with this agent's socket.
pub(crate) fn prefetchers(agent: &Agent) -> Vec<u32> {
    prefetchers_at(&agent.fetch_socket())
}

fn prefetchers_at(socket: &Path) -> Vec<u32> {
    let socket = socket.to_string_lossy();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains("restore-agent prefetch")
            && command.contains(socket.as_ref())
            && process::alive(pid)
        {
            found.push(pid);
        }
    }
    found
}

/// kill -9 of the prefetchers with this agent's socket.
pub(crate) fn kill_prefetchers(agent: &Agent) -> usize {
    let found = prefetchers(agent);
    found.iter().for_each(|pid| process::kill_pid(*pid, rustix::process::Signal::KILL));
    found.len()
}

/// Runs a command line as PostgreSQL runs `restore_command`: by a shell, in the data directory.
#[track_caller]
pub(crate) fn shell(target: &Target, line: &str) -> Output {
    let mut command = Command::new("sh");
    command.arg("-c").arg(line).current_dir(&target.pgdata);
    // Out of memory while it collects a backtrace, the standard library waits for itself; no server sets this.
    command.env_remove("RUST_BACKTRACE");
    process::run(user::become_user(&mut command), wait::SOON)
}
