//! Logs on standard error: text for a person, JSON for a machine.

use std::io::IsTerminal;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::args::{CommonArgs, LogFormat};

/// A line of the log on standard error, with `--json`. A line may have further members: what it is about, such as `repository`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LogLine {
    /// When it was written.
    timestamp: Timestamp,
    /// Its level.
    level: LogLevel,
    /// What happened.
    message: String,
    /// Facts about it, as full sentences.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// What to do about it, as full sentences.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// How severe it is.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum LogLevel {
    /// The command failed, or a part of its task.
    Error,
    /// The operator should know.
    Warn,
    /// Progress.
    Info,
    /// With `-v`.
    Debug,
    /// With `-vv`.
    Trace,
}

crate::document!(LogLine, "log");

/// Starts logging as the options ask; `$WALPOINT_LOG` refines it in `tracing`'s filter syntax. Later calls do nothing.
pub fn start(args: &CommonArgs) {
    let ours = match (args.quiet, args.verbose) {
        (true, _) => "warn",
        (false, 0) => "info",
        (false, 1) => "debug",
        (false, _) => "trace",
    };
    let others = if args.verbose > 1 { "debug" } else { "warn" };
    let default = format!(
        "{others},walpoint_base={ours},walpoint_pg={ours},walpoint_plan={ours},walpoint_storage={ours},walpoint_repo={ours},walpoint_runtime={ours},archive_agent={ours},restore_agent={ours}"
    );
    let filter = EnvFilter::try_from_env("WALPOINT_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter);
    let started = if args.log_format() == LogFormat::Json {
        builder.json().flatten_event(true).with_target(false).try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).with_target(args.verbose > 0).try_init()
    };
    // A second subscriber is refused; the first one goes on.
    started.ok();
}
