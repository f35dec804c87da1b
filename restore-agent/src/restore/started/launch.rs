//! Starting the restored server so that it outlives this program.
//!
//! It runs as the owner of the data directory, in a session of its own, with no stream of ours. `setsid` and the shell are replaced by
//! the server, so the process that was started is the server itself, and its end is seen at once.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use walpoint_base::diagnostic::shown;

use super::LaunchPlan;
use crate::restore::owners::Owner;
use crate::server::{Programs, ServerUser, lines_behind, owner};

/// What the server prints until its configuration sends its log elsewhere, in the data directory. PostgreSQL has no file of this name.
const START_LOG: &str = "walpoint-start.log";

/// Where the logging collector writes (`LOG_METAINFO_DATAFILE` of PostgreSQL).
const CURRENT_LOGS: &str = "current_logfiles";

/// The longest `postmaster.pid` or list of logs that is read, and how much is kept of what a shell says.
const LONGEST: u64 = 64 << 10;

/// Sends what the server prints into its first argument, and becomes the server.
const SCRIPT: &str = "umask 077; exec \"$@\" >>\"$0\" 2>&1";

/// Where the server takes sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// The directory of its socket, or a host.
    pub(super) host: String,
    pub(super) port: String,
}

impl Address {
    /// Whether it is a Unix socket's. An abstract one begins with `@`.
    pub(super) fn is_socket(&self) -> bool {
        self.host.starts_with(['/', '@'])
    }
}

/// The server that was started.
#[derive(Debug)]
pub(super) struct Launched {
    child: Child,
    /// Its process.
    pub(super) pid: u32,
    pgdata: PathBuf,
    /// Whose files are its own.
    owner: Option<Owner>,
    /// How much an earlier start left in its log.
    printed_earlier: u64,
}

/// The program that begins a session of its own.
pub(super) fn find_setsid() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|directory| directory.join("setsid"));
    found.find(|program| program.is_absolute() && program.is_file()).context(
        "setsid is not in PATH: nothing was restored\nDETAIL: --start runs the server with it, so that the server outlives this \
         program.\nHINT: Install util-linux.",
    )
}

impl Launched {
    /// Starts it.
    pub(super) fn start(
        programs: &Programs,
        user: &ServerUser,
        setsid: &Path,
        plan: &LaunchPlan,
    ) -> anyhow::Result<Self> {
        let printed_earlier = std::fs::metadata(plan.pgdata.join(START_LOG)).map_or(0, |log| log.len());
        let program = programs.server();
        let mut command = user.command_in_own_session(setsid, OsStr::new("sh"));
        command.args(["-c", SCRIPT]).arg(plan.pgdata.join(START_LOG));
        command.arg(&program).arg("-D").arg(&plan.pgdata).args(&plan.options);
        command.current_dir("/").stdout(Stdio::null()).stderr(Stdio::piped());
        let child = Command::from(command).spawn();
        let child = child.with_context(|| format!("could not run \"{}\"", program.display()))?;
        let pid = child.id().context("the restored server ended at once")?;
        Ok(Self { child, pid, pgdata: plan.pgdata.clone(), owner: plan.owner, printed_earlier })
    }

    /// How it ended, if it did.
    pub(super) fn status(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().context("the state of the restored server is unknown")
    }

    /// How it ended, if it does so within a time; it is looked at once in any case.
    pub(super) async fn end_within(&mut self, limit: Duration) -> Option<ExitStatus> {
        match self.child.try_wait() {
            Ok(Some(status)) => Some(status),
            _ => tokio::time::timeout(limit, self.child.wait()).await.ok()?.ok(),
        }
    }

    /// What kept it from starting, if that was not the server itself.
    pub(super) async fn complaint(&mut self) -> Option<String> {
        let mut text = Vec::new();
        let stream = self.child.stderr.take()?;
        stream.take(LONGEST).read_to_end(&mut text).await.ok()?;
        let text = String::from_utf8_lossy(&text);
        Some(shown(text.trim())).filter(|text| !text.is_empty())
    }

    /// Where it takes sessions, once it has said so, and whether it takes them now.
    pub(super) fn address(&self) -> Option<(Address, bool)> {
        address(&self.read("postmaster.pid")?, self.pid)
    }

    /// Its log: the logging collector's, or what it prints.
    pub(super) fn log(&self) -> PathBuf {
        let listed = self.read(CURRENT_LOGS);
        // The backup may have had a list of the original's.
        let collected = listed.as_deref().and_then(collected).map(|log| self.pgdata.join(log));
        collected.filter(|log| log.is_file()).unwrap_or_else(|| self.start_log())
    }

    /// What a small file in its data directory says, which is its user's.
    fn read(&self, name: &str) -> Option<String> {
        let text = owner::read(&self.pgdata.join(name), self.owner, LONGEST).ok()?;
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    /// What it printed before its configuration sent its log elsewhere; nothing where it prints its log.
    pub(super) fn printed_before_the_log(&self) -> Vec<String> {
        let own = self.start_log();
        if self.log() == own {
            return Vec::new();
        }
        lines_behind(&own, self.printed_earlier, self.owner)
    }

    /// Where that is.
    pub(super) fn start_log(&self) -> PathBuf {
        self.pgdata.join(START_LOG)
    }
}

/// The address in a `postmaster.pid` (`LOCK_FILE_LINE_…` of PostgreSQL), if that is this server's, and whether sessions are taken there: a
/// server logs each one that it has to refuse.
fn address(text: &str, pid: u32) -> Option<(Address, bool)> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let [first, _, _, port, socket, listen, ..] = lines[..] else { return None };
    if first.parse() != Ok(pid) || port.is_empty() {
        return None;
    }
    let host = match (socket, listen) {
        ("", "*" | "0.0.0.0" | "::") => "localhost",
        ("", listen) => listen,
        (socket, _) => socket,
    };
    let takes_sessions = matches!(lines.get(7), Some(&("ready" | "standby")));
    (!host.is_empty()).then(|| (Address { host: host.to_owned(), port: port.to_owned() }, takes_sessions))
}

/// The log for people in a list of logs.
fn collected(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("stderr ")).map(str::trim)
}

/// An error where the server that should run has gone.
pub(super) fn gone() -> anyhow::Error {
    anyhow!("the restored server has not said where it takes sessions")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_the_servers_own() {
        let file = |socket: &str, listen: &str| {
            format!("42\n/data\n1700000000\n5433\n{socket}\n{listen}\n  1  2\nready   \n")
        };
        let at = |host: &str| Some((Address { host: host.to_owned(), port: "5433".to_owned() }, true));
        assert_eq!(address(&file("/run/pg", "*"), 42), at("/run/pg"));
        assert_eq!(address(&file("", "*"), 42), at("localhost"));
        assert_eq!(address(&file("", "10.0.0.1"), 42), at("10.0.0.1"));
        assert_eq!(address(&file("/run/pg", "*"), 43), None, "another server's, or the original's");
        assert_eq!(address(&file("", ""), 42), None);
        let is_socket = |text: &str| address(text, 42).unwrap().0.is_socket();
        assert!(is_socket(&file("/run/pg", "*")) && !is_socket(&file("", "10.0.0.1")));
        assert_eq!(address("42\n/data\n1700000000\n", 42), None, "it is being written");
        let starts = file("/run/pg", "*").replace("ready   ", "starting");
        assert_eq!(address(&starts, 42).map(|(_, takes_sessions)| takes_sessions), Some(false));
    }

    #[tokio::test]
    async fn a_server_that_has_ended_is_seen_at_once() {
        let launched = |script: &str| {
            let child = Command::new("sh").args(["-c", script]).kill_on_drop(true).spawn().unwrap();
            let pid = child.id().unwrap();
            Launched { child, pid, pgdata: PathBuf::new(), owner: None, printed_earlier: 0 }
        };
        let mut runs = launched("exec sleep 600");
        assert_eq!(runs.end_within(Duration::ZERO).await, None);
        let mut ends = launched("exit 3");
        let status = ends.end_within(Duration::from_secs(30)).await.unwrap();
        assert_eq!((status.code(), ends.end_within(Duration::ZERO).await), (Some(3), Some(status)));
    }

    #[test]
    fn the_collectors_log_is_the_one_for_people() {
        let text = "csvlog log/postgresql-1.csv\nstderr log/postgresql-1.log\n";
        assert_eq!(collected(text), Some("log/postgresql-1.log"));
        assert_eq!(collected("csvlog log/x.csv\n"), None);
    }
}
