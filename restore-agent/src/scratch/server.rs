//! The private server's process.
//!
//! It holds the lock on its log for as long as it, or a process of it, lives: that is how a later run knows of one that outlived this
//! run.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use walpoint_base::diagnostic::shown;

use super::directory::ScratchDirectory;
use crate::server::{Programs, ServerUser, last_errors};

/// How long the server may take to stop in order, and then at once.
const STOPPING: [(Signal, Duration); 3] = [
    (Signal::INT, Duration::from_secs(120)),
    (Signal::QUIT, Duration::from_secs(30)),
    (Signal::KILL, Duration::from_secs(10)),
];

/// A server that was started.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    log: PathBuf,
    status: Option<ExitStatus>,
    /// Whether it ended because it was asked to shut down, not by itself or by force.
    was_asked: bool,
}

impl Server {
    /// Starts it on the data directory of a scratch directory.
    pub(super) fn start(
        programs: &Programs,
        user: &ServerUser,
        directory: &ScratchDirectory,
    ) -> anyhow::Result<Self> {
        let log = directory.log();
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&log);
        let file = file.with_context(|| format!("could not create \"{}\"", log.display()))?;
        // Where locks do not work a later run does not remove the directory.
        if let Err(error) = file.try_lock() {
            tracing::debug!("the server's log is not locked: {error}");
        }
        let program = programs.server();
        let mut command = user.command(program.as_os_str());
        command.arg("-D").arg(directory.data()).current_dir(directory.socket());
        let handle = |file: &File| file.try_clone().map(Stdio::from);
        command.stdout(handle(&file)?).stderr(handle(&file)?);
        let child = Command::from(command).spawn();
        let child = child.with_context(|| format!("could not run \"{}\"", program.display()))?;
        Ok(Self { child, log, status: None, was_asked: false })
    }

    /// Fails if it has ended, with what it logged last.
    pub(super) fn require_alive(&mut self) -> anyhow::Result<()> {
        self.status = match self.status {
            Some(status) => Some(status),
            None => self.child.try_wait().context("the state of the scratch server is unknown")?,
        };
        match self.status {
            None => Ok(()),
            Some(status) => Err(self.ended(status)),
        }
    }

    fn ended(&self, status: ExitStatus) -> anyhow::Error {
        self.failed(&format!("the scratch server ended before it was stopped ({status})"))
    }

    fn failed(&self, what: &str) -> anyhow::Error {
        let said = last_errors(&self.log);
        let details: String = said.iter().map(|line| format!("\nDETAIL: {}", shown(line))).collect();
        anyhow!("{what}{details}\nHINT: With --keep its log remains.")
    }

    /// Fails unless it was stopped, and had shut down in order by then: only so is every page written.
    pub(super) fn require_shut_down(&self) -> anyhow::Result<()> {
        match (self.status, self.was_asked) {
            (None, _) => Err(anyhow!("the scratch server was not stopped")),
            (Some(status), true) if status.success() => Ok(()),
            (Some(status), true) => {
                Err(self.failed(&format!("the scratch server did not shut down in order ({status})")))
            }
            (Some(status), false) => Err(self.ended(status)),
        }
    }

    /// Its log.
    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// Stops it: in order if it does that soon, so that every page is written.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        if self.status.is_none() {
            self.status = self.child.try_wait().context("the state of the scratch server is unknown")?;
        }
        if self.status.is_some() {
            return Ok(());
        }
        self.was_asked = true;
        for (signal, limit) in STOPPING {
            let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
            if let Some(Err(error)) = pid.map(|pid| kill_process(pid, signal)) {
                tracing::debug!("the scratch server was not signaled: {error}");
            }
            if let Ok(status) = tokio::time::timeout(limit, self.child.wait()).await {
                self.status = Some(status.context("the end of the scratch server was not seen")?);
                return Ok(());
            }
            // A server that is forced may end with 0, too.
            self.was_asked = false;
        }
        bail!("the scratch server does not stop (process {})", self.child.id().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A script in the place of a server.
    fn server(script: &str) -> (tempfile::TempDir, Server) {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        walpoint_base::durable::create(&log, b"").unwrap();
        // A shell cannot trap what was ignored when it started, as in the background of a script.
        let mut command = Command::new("env");
        command.args(["--default-signal=INT,QUIT", "sh", "-c", script]);
        let child = command.stdout(Stdio::piped()).spawn().unwrap();
        (dir, Server { child, log, status: None, was_asked: false })
    }

    /// Waits until the script has printed a line.
    async fn started(server: &mut Server) {
        use tokio::io::AsyncReadExt;
        let mut byte = [0];
        server.child.stdout.as_mut().unwrap().read_exact(&mut byte).await.unwrap();
    }

    #[tokio::test]
    async fn only_a_server_that_shut_down_when_asked_has_written_its_pages() {
        for (script, failure) in [
            ("trap 'exit 0' INT; echo; while :; do sleep 0.05; done", None),
            ("trap 'exit 1' INT; echo; while :; do sleep 0.05; done", Some("did not shut down in order")),
            ("echo; exec sleep 600", Some("did not shut down in order")),
        ] {
            let (_dir, mut server) = server(script);
            assert!(server.require_shut_down().is_err(), "it runs");
            started(&mut server).await;
            server.stop().await.unwrap();
            let found = server.require_shut_down().map_err(|error| error.to_string());
            assert_eq!(found.is_ok(), failure.is_none(), "{script}: {found:?}");
            let why = found.err().unwrap_or_default();
            assert!(failure.is_none_or(|failure| why.contains(failure)), "{script}: {why}");
        }
    }

    #[tokio::test]
    async fn a_server_that_ended_by_itself_was_not_shut_down() {
        let (_dir, mut server) = server("exit 0");
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while server.require_alive().is_ok() && std::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        server.stop().await.unwrap();
        let why = server.require_shut_down().unwrap_err().to_string();
        assert!(why.contains("ended before it was stopped"), "{why}");
    }
}
