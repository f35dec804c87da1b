//! Everything that reads a Walpoint repository to bring a cluster back.

mod agreement;
mod checks;
mod choice;
mod cli;
mod decoder;
mod drill;
mod events;
mod extract;
mod list;
mod plan;
mod restore;
mod scratch;
mod server;
mod settings;
mod shell;
mod target;
mod together;
pub mod wal;

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use walpoint_repo::evidence::{Draft, Kind, Outcome};
use walpoint_runtime::logs::{self, Process};
use walpoint_runtime::{exit, memory, operator, pages, sibling, threads};
use walpoint_words::advised;

use cli::{Cli, Command};

/// The prefetcher's place behind PostgreSQL, as in nice(1): on a machine with few cores fetching ahead would hold up the
/// replay. When PostgreSQL waits for a segment, its core is free.
const GIVE_WAY: i32 = 5;

/// The commands of the other program.
const ARCHIVING: &[&str] = &[
    "run",
    "init",
    "backup",
    "restore-point",
    "check",
    "config",
    "status",
    "key",
    "health",
    "install-clients",
    "verify",
    "expire",
    "forget",
    "hold",
    "lineage",
    "evidence",
    "push",
];

fn main() -> ExitCode {
    walpoint_runtime::umask::leave_the_owner_all();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    guarded(cli::is_restore_command(&arguments), || run(&arguments))
}

/// The exit status of `run`. What fails in a restore_command stops PostgreSQL, a panic included: see [`wal::fetch`].
fn guarded(restore_command: bool, run: impl FnOnce() -> ExitCode) -> ExitCode {
    let failed = if restore_command { wal::fetch::STOP } else { exit::FAILED };
    catch_unwind(AssertUnwindSafe(run)).unwrap_or(ExitCode::from(failed))
}

fn run(arguments: &[OsString]) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(arguments, &error),
    };
    let daemon = matches!(cli.command, Command::Prefetch(_));
    logs::start(&cli.common, if daemon { Process::Daemon } else { Process::Command });
    let is_long = matches!(
        cli.command,
        Command::Restore(_) | Command::Drill(_) | Command::Extract(_) | Command::Events(_)
    );
    if daemon || is_long {
        memory::give_back();
    }
    if matches!(cli.command, Command::Prefetch(_))
        && let Err(error) = rustix::process::setpriority_process(None, GIVE_WAY)
    {
        tracing::debug!("it runs beside PostgreSQL with the same priority: {error}");
    }
    let fetching = matches!(cli.command, Command::Fetch(_));
    // One file needs no threads of its own, and a machine that has none to give gets an answer all the same.
    let runtime = if fetching {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| {
            std::io::Error::new(error.kind(), format!("could not start the runtime: {error}"))
        })
    } else {
        threads::runtime()
    };
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("{error}");
            return ExitCode::from(if fetching { wal::fetch::STOP } else { exit::FAILED });
        }
    };
    let status = runtime.block_on(async {
        match &cli.command {
            Command::Completions { shell } => exit::report(pages::completions(Cli::command(), *shell)),
            Command::Man { directory } => {
                exit::report(pages::manual(Cli::command(), &[cli::CLIENT_PAGE], directory))
            }
            Command::Fetch(args) => ExitCode::from(wal::fetch::run(&cli.common, args).await),
            Command::List(args) => exit::report(advised(list::run(&cli.common, args).await)),
            Command::Events(args) => exit::report(advised(events::run(&cli.common, args).await)),
            Command::Plan(args) => exit::report(advised(plan::run(&cli.common, args).await)),
            Command::Restore(args) => exit::report(advised(restore::run(&cli.common, args).await)),
            Command::Drill(args) => exit::report(advised(drill::run(&cli.common, args).await)),
            Command::Extract(args) => exit::report(advised(extract::run(&cli.common, args).await)),
            Command::Rollback(args) => exit::report(advised(restore::rollback::run(&cli.common, args))),
            Command::Probe(args) => exit::report(advised(plan::probe(&cli.common, args).await)),
            Command::Prefetch(args) => exit::report(advised(wal::session::run(&cli.common, args).await)),
        }
    });
    // What still runs in the background was given up and must not delay the answer.
    runtime.shutdown_background();
    status
}

/// A record of this program and the person that runs it.
fn evidence(kind: Kind, outcome: Outcome) -> Draft {
    Draft::new(
        kind,
        outcome,
        operator::user(),
        concat!("restore-agent ", env!("WALPOINT_VERSION")).to_owned(),
    )
}

/// Tells how the command line is wrong, or prints the help that was asked for.
fn usage(arguments: &[OsString], error: &clap::Error) -> ExitCode {
    sibling::print(error, "archive-agent", ARCHIVING, arguments);
    let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    ExitCode::from(match (asked, cli::is_restore_command(arguments)) {
        // Exit 0 tells PostgreSQL that the file is there.
        (true, true) if arguments.len() > 3 => wal::fetch::STOP,
        (true, _) => exit::DONE,
        (false, true) => wal::fetch::STOP,
        (false, false) => exit::USAGE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_a_restore_command_is_no_end_of_wal() {
        let status = |restore_command| guarded(restore_command, || panic!("on purpose"));
        assert_eq!(status(true), ExitCode::from(255));
        assert_eq!(status(false), ExitCode::from(1));
    }
}
