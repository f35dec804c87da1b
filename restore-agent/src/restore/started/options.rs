//! The options of a restore that starts its server.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use walpoint_runtime::args;
use walpoint_runtime::exit::Failure;

use crate::target::TargetActionArgument;

/// The heading of these options.
const START: &str = "Start";

/// Whether and how the restored server is started.
#[derive(Debug, Clone, Default, Args)]
pub(in crate::restore) struct StartArgs {
    /// Start the restored server, and wait until recovery has reached the target. The server keeps running.
    #[arg(long, conflicts_with_all = ["dry_run", "if_empty"], help_heading = START)]
    pub(in crate::restore) start: bool,
    /// Run the checks in this file (TOML, as of drill) on the recovered server; if one fails, exit with 1.
    #[arg(long, value_name = "FILE", requires = "start", help_heading = START)]
    pub(super) check: Option<PathBuf>,
    /// Start the server at this port [default: the one of its configuration].
    #[arg(long, value_name = "PORT", requires = "start", value_parser = clap::value_parser!(u16).range(1..), help_heading = START)]
    pub(in crate::restore) start_port: Option<u16>,
    /// Stop waiting after this time. The server continues to recover [default: no limit].
    #[arg(long, value_name = "SPAN", requires = "start", value_parser = args::span, help_heading = START)]
    pub(super) start_timeout: Option<Duration>,
    /// Run PostgreSQL's programs in this directory [default: those of the right version in PATH, or where packages put them].
    #[arg(long, value_name = "DIR", requires = "start", help_heading = START)]
    pub(super) pg_bindir: Option<PathBuf>,
}

impl StartArgs {
    /// Refuses what has no server to wait for at the end.
    pub(super) fn require_possible(&self, action: Option<TargetActionArgument>) -> Result<(), Failure> {
        if self.start && action == Some(TargetActionArgument::Shutdown) {
            return Err(Failure::usage(anyhow!(
                "--start cannot be used with --target-action shutdown: the server shuts down at the target\nHINT: Use --target-action \
                 pause, and stop the server when you have looked at it."
            )));
        }
        Ok(())
    }

    /// The port, as PostgreSQL's options have it.
    pub(in crate::restore) fn port(&self) -> Option<String> {
        self.start_port.map(|port| port.to_string())
    }
}
