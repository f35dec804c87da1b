//! Running pg_dump on the instance.
//!
//! Its options are proven before anything is restored: pg_dump reads them, opens its output and only then connects, so where there is no
//! server it fails by that alone.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use super::client::{self, Failed};
use super::destination::Destination;
use super::similar;
use crate::server::{Instance, ServerUser};

/// The program.
pub(super) const PROGRAM: &str = "pg_dump";

/// How long pg_dump waits for a lock, unless its options say otherwise. What a prepared transaction holds is never released.
const LOCK: Duration = Duration::from_secs(60);

/// Where there is no server.
const NOWHERE: &str = "--dbname=host=/nonexistent/walpoint dbname=postgres";

/// What is dumped.
#[derive(Debug)]
pub(super) struct Dump<'a> {
    pub(super) program: PathBuf,
    pub(super) database: &'a str,
    pub(super) tables: &'a [String],
    pub(super) schemas: &'a [String],
    /// Options of pg_dump, which were looked at.
    pub(super) passed_on: &'a [OsString],
}

impl Dump<'_> {
    /// The command, but for the server.
    fn command(&self, destination: &Destination, user: &ServerUser) -> anyhow::Result<Command> {
        let mut command = client::command(&self.program, user);
        command.args(["--no-password", "--strict-names"]);
        command.arg(format!("--lock-wait-timeout={}", LOCK.as_millis()));
        command.args(self.tables.iter().map(|pattern| format!("--table={pattern}")));
        command.args(self.schemas.iter().map(|pattern| format!("--schema={pattern}")));
        command.args(self.passed_on);
        if let Some(directory) = destination.directory(user)? {
            // That user need not be able to reach it by its path.
            command.current_dir(directory).arg("--file=.");
        }
        Ok(command)
    }

    /// Fails if pg_dump refuses its options. Nothing is written.
    pub(super) async fn prove(&self, destination: &Destination, user: &ServerUser) -> anyhow::Result<()> {
        let mut command = self.command(destination, user)?;
        command.arg(NOWHERE);
        let context = || format!("could not run \"{}\"", self.program.display());
        match client::run(PROGRAM, command, Stdio::null()).await.with_context(context)? {
            Err(failed) if is_about_the_server(&failed) => Ok(()),
            Err(failed) => Err(failed.diagnostic().detail("Nothing was restored.").into()),
            Ok(()) => bail!("\"{}\" with these options does not dump", self.program.display()),
        }
    }

    /// The command on an instance, to standard output.
    pub(super) fn connected(&self, instance: &Instance, user: &ServerUser) -> anyhow::Result<Command> {
        self.connected_to(&Destination::Standard, instance, user)
    }

    fn connected_to(
        &self,
        destination: &Destination,
        instance: &Instance,
        user: &ServerUser,
    ) -> anyhow::Result<Command> {
        let mut command = self.command(destination, user)?;
        client::connect(&mut command, instance);
        command.arg(client::dbname(self.database));
        Ok(command)
    }

    /// Dumps.
    pub(super) async fn run(
        &self,
        destination: &Destination,
        instance: &Instance,
        user: &ServerUser,
    ) -> anyhow::Result<()> {
        let command = self.connected_to(destination, instance, user)?;
        match client::run(PROGRAM, command, destination.stdout()?).await? {
            Ok(()) => Ok(()),
            Err(failed) => Err(self.explain(&failed, instance).await),
        }
    }

    /// What a failure on the instance means.
    pub(super) async fn explain(&self, failed: &Failed, instance: &Instance) -> anyhow::Error {
        for (kind, patterns) in [("table", self.tables), ("schema", self.schemas)] {
            let Some(line) = failed.line_with(&format!("no matching {kind}s were found")) else { continue };
            // Those of the passed on options are in the line only.
            let pattern = patterns.iter().find(|pattern| line.ends_with(&format!("\"{pattern}\"")));
            let only = patterns.first().filter(|_| patterns.len() == 1);
            let Some(pattern) = pattern.or(only) else { continue };
            return similar::not_found(instance, self.database, kind, pattern).await.into();
        }
        let is_locked = failed.line_with("LOCK TABLE").is_some() && failed.line_with("timeout").is_some();
        match is_locked {
            true => failed.diagnostic().hint(
                "A prepared transaction holds the lock at that moment: choose a moment before it was prepared, or leave the table out \
                 with --exclude-table.",
            ),
            false => failed.diagnostic(),
        }
        .into()
    }
}

fn is_about_the_server(failed: &Failed) -> bool {
    ["connection to server", "could not connect to server"]
        .iter()
        .any(|text| failed.line_with(text).is_some())
}
