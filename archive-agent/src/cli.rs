//! The command line of `archive-agent`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::help;
use walpoint_runtime::pages::{ManualPage, Shell};

use crate::backup::BackupArgs;
use crate::check::CheckArgs;
use crate::config::ConfigCommand;
use crate::expire::ExpireArgs;
use crate::forget::ForgetArgs;
use crate::hold::HoldCommand;
use crate::init::InitArgs;
use crate::key::KeyCommand;
use crate::lineage::LineageCommand;
use crate::restore_point::RestorePointArgs;
use crate::verify::VerifyArgs;

/// The manual page of the thin client, which does not describe itself.
pub(crate) const CLIENT_PAGE: ManualPage =
    ManualPage { name: "archive-push.1", text: include_str!("../push/archive-push.1") };

/// Archive the WAL and the base backups of PostgreSQL clusters to object storage.
#[derive(Debug, Parser)]
#[command(name = "archive-agent", version = env!("WALPOINT_VERSION"), about, long_about = None, max_term_width = help::WIDTH)]
pub(crate) struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What `archive-agent` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon: answer archive-push and upload WAL ahead of PostgreSQL's questions.
    Run {
        /// Archive what is ready, then end.
        #[arg(long)]
        once: bool,
    },
    /// Make or join a repository, register the cluster in it, and write a configuration that works.
    Init(Box<InitArgs>),
    /// Back up the running cluster into each of its repositories.
    Backup(BackupArgs),
    /// Try whether archiving and backups work; exits 3 if something does not.
    Check(CheckArgs),
    /// Create a restore point and wait until it is durable.
    ///
    /// Creates it on the primary (pg_create_restore_point), switches to a new WAL segment, waits until each repository that has to
    /// acknowledge has stored the segment that holds it, and prints the command that restores to it.
    RestorePoint(RestorePointArgs),
    /// Check the configuration file.
    Config {
        /// What to do.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Show what is archived, what waits, and what can be recovered.
    Status,
    /// Show and change what opens an encrypted repository.
    Key {
        /// What to do.
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Ask the daemon whether it lives; exits 1 if it does not answer. For health checks of containers.
    ///
    /// Asks at the push socket of each cluster. A store or a server that cannot be reached is reported and is no failure of the
    /// daemon: a restart would not help.
    Health,
    /// Copy archive-push and restore-fetch into a directory: for PostgreSQL's container, which needs nothing else.
    InstallClients {
        /// The directory, which PostgreSQL's container shares.
        directory: PathBuf,
    },
    /// Prove that what is kept is there and is what was written; exits 3 if something is not.
    Verify(VerifyArgs),
    /// Delete what the configured retention no longer wants, a grace period after it was announced.
    Expire(ExpireArgs),
    /// Delete everything that the repositories have of a cluster, for good; asks for its name to be typed.
    Forget(ForgetArgs),
    /// Forbid to delete backups, see what is forbidden, allow it again.
    #[command(subcommand)]
    Hold(HoldCommand),
    /// Settle what two servers left behind in a lineage.
    Lineage {
        /// What to do.
        #[command(subcommand)]
        command: LineageCommand,
    },
    /// Archive one WAL file, without a daemon; exits 0 only if it is durable.
    Push {
        /// Store a segment even though its content is damaged, flagged as such. Recovery stops where the damage is.
        #[arg(long)]
        accept_damaged: bool,
        /// Store an empty history for a timeline whose history is lost or never existed (after pg_resetwal): recovery then knows no
        /// timeline before it. PATH names the history (00000005.history); the file need not exist.
        #[arg(long, conflicts_with = "accept_damaged")]
        no_ancestors: bool,
        /// Go on without a file that waits in pg_wal and cannot be stored: it is put on record as a gap, which recovery cannot pass, and
        /// PostgreSQL's next attempt reports it as archived. status and health warn until there is a backup behind it.
        #[arg(long, conflicts_with_all = ["accept_damaged", "no_ancestors"])]
        skip: bool,
        /// Say that this server, or a standby of it, wrote what is stored before this segment of pg_wal, where nothing here shows that any
        /// more; then archive it.
        #[arg(long, conflicts_with_all = ["accept_damaged", "no_ancestors", "skip"])]
        same_server: bool,
        /// The file, as in pg_wal (%p).
        path: PathBuf,
    },
    /// Print completions for a shell.
    #[command(hide = true)]
    Completions {
        /// Which one.
        shell: Shell,
    },
    /// Write the manual pages of this program and of archive-push into a directory.
    #[command(hide = true)]
    Man {
        /// The directory, such as /usr/local/share/man/man1.
        directory: PathBuf,
    },
}
