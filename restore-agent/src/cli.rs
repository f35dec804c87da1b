//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use walpoint_base::WalFileName;
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::help;
use walpoint_runtime::pages::{ManualPage, Shell};

use crate::drill::DrillArgs;
use crate::events::EventsArgs;
use crate::extract::ExtractArgs;
use crate::list::ListArgs;
use crate::plan::{PlanArgs, ProbeArgs};
use crate::restore::RestoreArgs;
use crate::restore::rollback::RollbackArgs;
use crate::wal::fetch::FetchArgs;
use crate::wal::session::PrefetchArgs;

/// The manual page of the thin client, which does not describe itself.
pub(crate) const CLIENT_PAGE: ManualPage =
    ManualPage { name: "restore-fetch.1", text: include_str!("../fetch/restore-fetch.1") };

/// Restore PostgreSQL clusters from a Walpoint repository.
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
    ///
    /// Writes nothing, and needs no server. A backup is sound if no damage to it is known. A window is a span in which you can
    /// recover any moment.
    List(ListArgs),
    /// List what happened, read from archived WAL: transactions with the rows and files that they changed, and shutdowns.
    ///
    /// Writes nothing, and needs no server. Each transaction is listed with the options of `plan` that stop right before it.
    Events(EventsArgs),
    /// Plan a restore: show how it would reach its target, or why it cannot.
    ///
    /// Writes nothing. The plan succeeds only if it finds everything that the restore needs.
    Plan(PlanArgs),
    /// Restore a cluster to a target, after proving that recovery can reach it.
    ///
    /// PostgreSQL recovers to the target when you start it. It cannot start an interrupted restore: run the same command again.
    Restore(RestoreArgs),
    /// Put back the data directory that restore --replace renamed.
    ///
    /// Renames the restored directory and deletes nothing. Run it again to undo it.
    Rollback(RollbackArgs),
    /// Test that the cluster restores: recover a copy, check it, measure it, and remove it.
    ///
    /// Starts a private server that listens on no network and archives nothing. Exit status: 0 every check passed, 3 a check failed or
    /// a target was missed, 1 the drill could not run. With --all-scenarios: 1 if one of them failed or could not run.
    Drill(DrillArgs),
    /// Extract a table, a schema, a database or the rows of a query, as they were at the target.
    ///
    /// Restores the whole cluster into a scratch directory, recovers it with a private server, and dumps from there. Exit status: 0 the
    /// output is complete, 1 anything else.
    Extract(ExtractArgs),
    /// Fetch one WAL file, as restore-fetch does when no prefetcher answers.
    ///
    /// Exit status: 0 the file was written, verified; 1 the archive provably does not have it; 255 anything else.
    Fetch(FetchArgs),
    /// Fetch WAL ahead of PostgreSQL and hand it to restore-fetch.
    ///
    /// restore-fetch starts a prefetcher when it needs one. The prefetcher exits when the server no longer needs it.
    Prefetch(PrefetchArgs),
    /// Open what recovery will read, and write nothing: `restore` runs it as PostgreSQL's user.
    #[command(hide = true)]
    Probe(ProbeArgs),
    /// Print completions for a shell.
    #[command(hide = true)]
    Completions {
        /// Print them for this shell.
        shell: Shell,
    },
    /// Write the manual pages of this program and of restore-fetch into a directory.
    #[command(hide = true)]
    Man {
        /// Write them into this directory, such as /usr/local/share/man/man1.
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
    fn the_help_of_every_command_is_complete() {
        assert_eq!(help::lint(Cli::command()), [""; 0]);
    }

    /// What chooses the target is under one heading in every command that has it, and so is what every command has.
    #[test]
    fn options_are_grouped() {
        let mut program = Cli::command();
        program.build();
        for name in ["plan", "restore"] {
            let command = program.find_subcommand(name).unwrap();
            for (option, heading) in
                [("target_time", help::TARGET), ("backup", help::TARGET), ("config", help::GLOBAL)]
            {
                let found = command.get_arguments().find(|argument| argument.get_id() == option).unwrap();
                assert_eq!(found.get_help_heading(), Some(heading), "{name}: {option}");
            }
        }
        let restore = program.find_subcommand("restore").unwrap();
        let plain = restore.get_arguments().filter(|argument| argument.get_help_heading().is_none());
        let plain: Vec<&str> = plain.map(|argument| argument.get_id().as_str()).collect();
        assert_eq!(plain, ["max_rate", "dry_run", "pre_command", "post_command", "help", "version"]);
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
