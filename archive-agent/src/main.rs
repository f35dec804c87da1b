//! The daemon and everything that writes to a Walpoint repository.

mod backup;
mod binding;
mod check;
mod cli;
mod clients;
mod config;
mod daemon;
mod evidence;
mod expire;
mod foreign;
mod forget;
mod health;
mod hold;
mod init;
mod key;
mod lineage;
mod newer;
mod restore_point;
mod same_place;
mod selection;
mod session;
mod status;
mod verify;
mod wal;
mod walk;
mod whose_files;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use walpoint_base::socket::PUSH_OUTCOME;
use walpoint_runtime::exit::{self, Failure};
use walpoint_runtime::logs::{self, Process};
use walpoint_runtime::{memory, output, pages, sibling, threads, umask};

use cli::{Cli, Command};

/// The commands of the other program.
const RESTORING: &[&str] =
    &["list", "events", "plan", "restore", "rollback", "drill", "extract", "fetch", "prefetch"];

fn main() -> ExitCode {
    umask::leave_the_owner_all();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => {
            sibling::print(&error, "restore-agent", RESTORING, &arguments);
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::DONE });
        }
    };
    if matches!(cli.command, Command::Run { .. } | Command::Backup(_)) {
        memory::give_back();
    }
    let mut logging = cli.common.clone();
    // What a push prints goes to PostgreSQL's log, for every segment: success is not worth a line there.
    logging.quiet |= matches!(cli.command, Command::Push { .. }) && logging.verbose == 0;
    let daemon = matches!(cli.command, Command::Run { once: false });
    logs::start(&logging, if daemon { Process::Daemon } else { Process::Command });
    let result = walpoint_words::advised(start(&cli));
    if matches!(cli.command, Command::Push { .. }) && std::env::var_os(PUSH_OUTCOME).is_some() {
        let status = result.as_ref().map_or_else(|failure| failure.status, |()| exit::DONE);
        let ended = exit::report(result);
        // Without this line archive-push waits for the end of the process.
        output::text(&format!("{status}\n")).ok();
        return ended;
    }
    exit::report(result)
}

fn start(cli: &Cli) -> Result<(), Failure> {
    let runtime = threads::runtime()?;
    let result = runtime.block_on(run(cli));
    // What is still under way is left to itself: the repositories take a file whole or not at all.
    runtime.shutdown_background();
    result
}

async fn run(cli: &Cli) -> Result<(), Failure> {
    if matches!(cli.command, Command::Run { .. } | Command::Push { .. }) {
        // What acknowledges is never a matter of one command line.
        cli.common.without_repo("archiving")?;
    }
    if matches!(cli.command, Command::Run { .. } | Command::Push { .. } | Command::Health) {
        cli.common.require_config()?;
    }
    match &cli.command {
        Command::Run { once: false } => daemon::run(&cli.common).await,
        Command::Run { once: true } => daemon::once(&cli.common).await,
        Command::Push { same_server: true, path, .. } => {
            wal::push::push_of_same_server(&cli.common, path).await
        }
        Command::Push { accept_damaged, no_ancestors: false, skip: false, path, .. } => {
            wal::push::push(&cli.common, path, *accept_damaged).await
        }
        Command::Push { skip: true, path, .. } => wal::push::skip(&cli.common, path).await,
        Command::Push { path, .. } => wal::push::push_without_ancestors(&cli.common, path).await,
        Command::Init(args) => init::run(&cli.common, args).await,
        Command::Backup(args) => backup::run(&cli.common, args).await,
        Command::Check(args) => check::run(&cli.common, args).await,
        Command::Config { command } => config::run(&cli.common, command),
        Command::Key { command } => key::run(&cli.common, command).await,
        Command::RestorePoint(args) => restore_point::run(&cli.common, args).await,
        Command::Expire(args) => expire::run(&cli.common, args).await,
        Command::Forget(args) => forget::run(&cli.common, args).await,
        Command::Verify(args) => verify::run(&cli.common, args).await,
        Command::Evidence(command) => evidence::run(&cli.common, command).await,
        Command::Hold(command) => hold::run(&cli.common, command).await,
        Command::Lineage { command } => lineage::run(&cli.common, command).await,
        Command::Status => status::run(&cli.common).await,
        Command::Health => health::run(&cli.common).await,
        Command::InstallClients { directory } => clients::install(directory),
        Command::Completions { shell } => pages::completions(Cli::command(), *shell),
        Command::Man { directory } => pages::manual(Cli::command(), &[cli::CLIENT_PAGE], directory),
    }
}
