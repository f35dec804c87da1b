//! The command line of `archive-agent`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::help;
use walpoint_runtime::pages::{ManualPage, Shell};

use crate::backup::BackupArgs;
use crate::check::CheckArgs;
use crate::config::ConfigCommand;
use crate::evidence::EvidenceCommand;
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

const EXAMPLES: &[(&str, &str)] = &[
    (
        "Create a repository and a configuration",
        "archive-agent init --repo s3://backups/prod --cluster main \\\n\
         --pgdata /var/lib/postgresql/17/main",
    ),
    ("Archive, in the foreground", "archive-agent run"),
    ("Take a backup, and see what can be recovered", "archive-agent backup\narchive-agent status"),
];

const RUN: &[(&str, &str)] = &[
    ("Archive all clusters of the configuration, in the foreground", "archive-agent run"),
    ("Archive all WAL that is waiting in pg_wal, then exit", "archive-agent run --once"),
];

const STATUS: &[(&str, &str)] = &[
    ("Show all clusters of the configuration", "archive-agent status"),
    (
        "Show a repository without a configuration",
        "archive-agent status --repo s3://backups/prod --cluster main",
    ),
    ("Count the WAL files that wait", "archive-agent status --json | jq '.clusters[].server.ready_count'"),
];

const HEALTH: &[(&str, &str)] = &[("Check the daemon of a container", "archive-agent health")];

const INSTALL: &[(&str, &str)] = &[(
    "Put the clients into a volume that PostgreSQL's container mounts",
    "archive-agent install-clients /clients",
)];

const PUSH: &[(&str, &str)] = &[
    ("Archive a file by hand", "archive-agent push $PGDATA/pg_wal/000000010000000000000007"),
    (
        "Drop a segment that no repository can store, then take a backup",
        "archive-agent push --skip $PGDATA/pg_wal/000000010000000000000007\narchive-agent backup",
    ),
];

/// Archive the WAL and the base backups of PostgreSQL clusters to object storage.
#[derive(Debug, Parser)]
#[command(
    name = "archive-agent",
    version = env!("WALPOINT_VERSION"),
    max_term_width = help::WIDTH,
    after_long_help = help::examples(EXAMPLES)
)]
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
    /// Run the daemon: answer archive-push and upload WAL ahead of PostgreSQL's requests.
    #[command(after_long_help = help::examples(RUN))]
    Run {
        /// Archive all WAL that is waiting in pg_wal, then exit.
        #[arg(long)]
        once: bool,
    },
    /// Create or join a repository, register the cluster in it, and write a configuration.
    Init(Box<InitArgs>),
    /// Back up the running cluster into each of its repositories.
    Backup(BackupArgs),
    /// Test that archiving and backups work; exits 3 if something does not.
    Check(CheckArgs),
    /// Create a restore point, and wait until it is durable.
    ///
    /// Creates it on the primary (pg_create_restore_point) and switches to a new WAL segment. Then waits until each repository that
    /// must acknowledge has stored the segment that holds the restore point, and prints the command that restores to it.
    RestorePoint(RestorePointArgs),
    /// Check the configuration file.
    Config {
        /// What to do.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Show what is archived, what is waiting, and what can be recovered.
    #[command(after_long_help = help::examples(STATUS))]
    Status,
    /// Manage the keys and passphrases that open an encrypted repository.
    Key {
        /// What to do.
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Check that the daemon is alive; exits 1 if it does not answer.
    ///
    /// For container health checks: asks the daemon at the push socket of each cluster. If the daemon cannot reach a store or a
    /// server, the command warns and still exits 0, because a restart of the daemon would not help.
    #[command(after_long_help = help::examples(HEALTH))]
    Health,
    /// Copy archive-push and restore-fetch into a directory, for PostgreSQL's container.
    ///
    /// The container needs nothing else from Walpoint.
    #[command(after_long_help = help::examples(INSTALL))]
    InstallClients {
        /// Copy them into this directory, which is shared with PostgreSQL's container.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Verify that all kept backups and WAL are present and undamaged; exits 3 if not.
    Verify(VerifyArgs),
    /// Delete expired backups and the WAL that no kept backup needs.
    ///
    /// [cluster.NAME.retention] in the configuration sets what to keep; without it, nothing expires. One run marks expired objects
    /// for deletion; a run after the grace period [default: 24h] deletes them.
    Expire(ExpireArgs),
    /// Delete everything that the repositories hold of a cluster; this cannot be undone.
    ///
    /// Asks you to type the cluster's name.
    Forget(ForgetArgs),
    /// Place, list and remove holds.
    ///
    /// A hold prevents the deletion of a backup, whatever the retention policy.
    #[command(subcommand)]
    Hold(HoldCommand),
    /// List, verify, add and export the records of what was done and proven.
    ///
    /// Backups, verifications, expiries, holds and changes of keys are recorded by the commands themselves. The records of a cluster
    /// form a chain in each of its repositories: each holds the hash of the one before it.
    #[command(subcommand)]
    Evidence(EvidenceCommand),
    /// Settle the disputed and abandoned timelines of a lineage.
    Lineage {
        /// What to do.
        #[command(subcommand)]
        command: LineageCommand,
    },
    /// Archive one WAL file without a daemon; exits 0 only if it is durable.
    #[command(after_long_help = help::examples(PUSH))]
    Push {
        /// Store a segment even if its content is damaged, and flag it. Recovery stops at the damage.
        #[arg(long, help_heading = help::OVERRIDES)]
        accept_damaged: bool,
        /// Store an empty history for a timeline whose history is lost or never existed (after pg_resetwal): recovery then knows no
        /// timeline before it. PATH names the history (00000005.history); the file need not exist.
        #[arg(long, conflicts_with = "accept_damaged", help_heading = help::OVERRIDES)]
        no_ancestors: bool,
        /// Drop a file that waits in pg_wal and cannot be stored. The drop is recorded as a gap, which recovery cannot pass, and
        /// PostgreSQL's next attempt to archive the file succeeds. status and health warn until there is a backup after the gap.
        #[arg(long, conflicts_with_all = ["accept_damaged", "no_ancestors"], help_heading = help::OVERRIDES)]
        skip: bool,
        /// Confirm that this server, or a standby of it, wrote the WAL stored before this segment, if nothing here can prove it any
        /// longer, and archive the segment.
        #[arg(long, conflicts_with_all = ["accept_damaged", "no_ancestors", "skip"], help_heading = help::OVERRIDES)]
        same_server: bool,
        /// Archive this file of pg_wal (%p).
        path: PathBuf,
    },
    /// Print completions for a shell.
    #[command(hide = true)]
    Completions {
        /// Print them for this shell.
        shell: Shell,
    },
    /// Write the manual pages of this program and of archive-push into a directory.
    #[command(hide = true)]
    Man {
        /// Write them into this directory, such as /usr/local/share/man/man1.
        directory: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_described() {
        Cli::command().debug_assert();
        assert_eq!(help::lint(Cli::command()), [""; 0]);
    }

    #[test]
    fn what_is_kept_for_people_holds_no_control_character() {
        for line in [
            &["backup", "--label", "*"][..],
            &["hold", "add", "--until=never", "--reason=r", "--label", "*"],
            &["hold", "add", "--until=never", "--label=l", "--reason", "*"],
            &["hold", "add", "--until=never", "--label=l", "--reason=r", "--who", "*"],
            &["hold", "remove", "1", "--who", "*"],
            &["evidence", "record", "--kind=other", "--outcome=success", "--note", "*"],
            &["key", "add", "--key-file=/k", "--comment", "*"],
            &["lineage", "settle", "--timeline=2", "--reason", "*"],
        ] {
            let parse = |text: &str| {
                let words = line.iter().map(|word| if *word == "*" { text } else { word });
                Cli::try_parse_from(std::iter::once("archive-agent").chain(words))
            };
            assert!(parse("größer 'a'").is_ok(), "{line:?}");
            for text in ["a\nHINT: b", "\u{1b}[2J", "\u{9b}2J"] {
                let refused = parse(text).unwrap_err().to_string();
                assert!(refused.contains("control character"), "{line:?}: {refused}");
            }
        }
    }
}
