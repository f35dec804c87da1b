//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use walpoint_base::WalFileName;
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::help;
use walpoint_runtime::pages::{ManualPage, Shell};

use crate::list::ListArgs;
use crate::plan::{PlanArgs, ProbeArgs};
use crate::restore::RestoreArgs;
use crate::restore::rollback::RollbackArgs;
use crate::wal::fetch::FetchArgs;
use crate::wal::session::PrefetchArgs;

/// The manual page of the thin client, which does not describe itself.
pub(crate) const CLIENT_PAGE: ManualPage =
    ManualPage { name: "restore-fetch.1", text: include_str!("../fetch/restore-fetch.1") };

/// Bring PostgreSQL clusters back from a Walpoint repository.
#[derive(Debug, Parser)]
#[command(name = "restore-agent", version = env!("WALPOINT_VERSION"), propagate_version = true, max_term_width = help::WIDTH)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: CommonArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List what a cluster can be restored to: backups, restore points and windows.
    List(ListArgs),
    /// Show how a moment would be recovered, or why it cannot be; writes nothing.
    Plan(PlanArgs),
    /// Restore a cluster that recovers to a moment; proves first that it can be reached.
    Restore(RestoreArgs),
    /// Put a data directory back that `restore --replace` moved aside; nothing is deleted.
    Rollback(RollbackArgs),
    /// Fetch one file of WAL; what restore-fetch becomes when no prefetcher answers.
    ///
    /// Exit status: 0 the file is there, verified; 1 it is proven not to be in the archive; 255 anything else.
    Fetch(FetchArgs),
    /// Fetch WAL ahead of PostgreSQL and serve it to restore-fetch; ends by itself.
    Prefetch(PrefetchArgs),
    /// Open what recovery will read, and write nothing: `restore` runs it as PostgreSQL's user.
    #[command(hide = true)]
    Probe(ProbeArgs),
    /// Print completions for a shell.
    #[command(hide = true)]
    Completions {
        /// Which one.
        shell: Shell,
    },
    /// Write the manual pages of this program and of restore-fetch into a directory.
    #[command(hide = true)]
    Man {
        /// The directory, such as /usr/local/share/man/man1.
        directory: PathBuf,
    },
}

/// Whether this command line stands, or was meant to stand, in `restore_command`: PostgreSQL takes exit statuses from 1 to
/// 125 for the end of WAL, so nothing but proven absence may give one, not even a misspelt command.
pub(crate) fn is_restore_command(arguments: &[OsString]) -> bool {
    let wal_file = |text: &str| text.parse::<WalFileName>().is_ok();
    arguments.iter().skip(1).any(|a| a.to_str().is_some_and(|text| text == "fetch" || wal_file(text)))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_misspelt_restore_command_is_recognised() {
        let is = |line: &str| is_restore_command(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(is("restore-agent fetch"));
        assert!(is("restore-agent --config /c fetch x y"));
        assert!(is("restore-agent fech 000000010000000000000001 pg_wal/RECOVERYXLOG"));
        assert!(is("restore-agent 00000002.history pg_wal/RECOVERYHISTORY"));
        assert!(!is("restore-agent prefetch --persistent"));
    }
}
