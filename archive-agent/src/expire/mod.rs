//! `archive-agent expire`: deletes what retention no longer wants, in every repository of the cluster.
//!
//! The work is done by [`walpoint_repo::expire`]; here are the policy from the configuration and what is told. A repository
//! that fails does not keep the others from being expired; the command fails then.

mod recorded;
mod text;

use clap::Args;
use jiff::SignedDuration;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{BackupId, ClusterName, Diagnostic};
use walpoint_plan::retention::{Policy, Rule};
use walpoint_repo::Repository;
use walpoint_repo::expire::{CLOCK, ExpireOptions, Expired, NamedBackup, expire};
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::progress::ByteProgress;
use walpoint_runtime::retention::RetentionSettings;
use walpoint_runtime::{help, output};
use walpoint_storage::RepoError;
use walpoint_storage::store::StoreSettings;
use walpoint_words::format_chain;

use crate::foreign::{self, Foreign, LocalCluster};
use crate::selection::as_owner;

/// The heading of options about one backup.
const ONE: &str = "One backup";

const EXAMPLES: &[(&str, &str)] = &[
    ("Show what would be deleted, and why each backup is kept or expires", "archive-agent expire --dry-run"),
    ("Delete what has expired, once a day", "archive-agent expire"),
    (
        "Expire one backup, whatever the retention policy",
        "archive-agent expire --backup \\\n20261121T101500Z-00000001-0000000002000028-9f3a0c11",
    ),
];

/// Options of `expire`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct ExpireArgs {
    /// Change nothing; show what would be deleted, how much space that frees, and why each backup is kept or expires.
    #[arg(long)]
    dry_run: bool,
    /// Expire only this backup, whatever the retention policy. Refused if something protects the backup.
    #[arg(long, value_name = "ID", help_heading = ONE)]
    backup: Option<BackupId>,
    /// Expire it even if holds in force protect it.
    #[arg(long, requires = "backup", help_heading = ONE)]
    even_if_held: bool,
    /// Expire it even if it is the last sound backup, without which nothing can be restored.
    #[arg(long, requires = "backup", help_heading = ONE)]
    even_if_last: bool,
    /// Abort the unfinished backups that build on it.
    #[arg(long, requires = "backup", help_heading = ONE)]
    abort_unfinished: bool,
}

/// What `archive-agent expire --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct ExpireDocument {
    /// The cluster.
    cluster: ClusterName,
    /// What was decided and done, or would be, for each repository.
    repositories: Vec<Expired>,
    /// Repositories in which it was refused or did not finish, with the reason.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    failed: Vec<String>,
}

walpoint_runtime::document!(ExpireDocument, "archive-agent expire");

/// Runs the command.
pub(crate) async fn run(common: &CommonArgs, args: &ExpireArgs) -> Result<(), Failure> {
    let selection = common.select::<StoreSettings>()?;
    if !args.dry_run {
        as_owner(&selection).await?;
    }
    let (options, own) = (options(&selection, args), LocalCluster::of(&selection).await);
    let mut document =
        ExpireDocument { cluster: selection.cluster.clone(), repositories: Vec::new(), failed: Vec::new() };
    // Whether all that failed was refused, or has wrong settings.
    let (mut refused, mut wrong_settings) = (true, true);
    for (name, settings) in &selection.repositories {
        let waiting =
            ByteProgress::waiting(&format!("expiring in repository {name}"), common.show_progress());
        let expired = one(&selection, &own, (name, settings), &options).await;
        waiting.end();
        match expired {
            Ok(expired) => document.repositories.push(expired),
            Err(error) => {
                wrong_settings &= crate::selection::is_wrong_settings(&error);
                refused &= is_refusal(&error);
                document.failed.push(format!("repository {name}: {}", format_chain(&error)));
            }
        }
    }
    if common.json {
        output::json(&document)?;
    } else {
        for expired in &document.repositories {
            output::text(&text::of(expired))?;
        }
    }
    match (document.failed.is_empty(), refused) {
        (true, _) => Ok(()),
        (false, _) if wrong_settings => {
            Err(Failure::usage(Diagnostic::gather("expire did not finish", &document.failed)))
        }
        // The same command would be refused again: what helps is in the refusals' own hints.
        (false, true) => Err(Diagnostic::gather("expire did not finish", &document.failed).into()),
        (false, false) => Err(Diagnostic::gather("expire did not finish", &document.failed)
            .hint("Run it again to continue.")
            .into()),
    }
}

/// Whether nothing was begun, and the same command is refused again until something else is done.
fn is_refusal(error: &anyhow::Error) -> bool {
    match error.downcast_ref() {
        Some(RepoError::Protected { .. }) => true,
        Some(RepoError::Settings { setting, .. }) => *setting == CLOCK,
        _ => error.downcast_ref::<Foreign>().is_some(),
    }
}

/// Expires the cluster in one repository, unless that has another one under this name than the data directory of this machine is of
/// (`own`): the retention is not that one's.
async fn one(
    selection: &Selection<StoreSettings>,
    own: &LocalCluster,
    (name, settings): (&str, &StoreSettings),
    options: &ExpireOptions,
) -> anyhow::Result<Expired> {
    let (repository, cluster) = (Repository::open(name, settings).await?, &selection.cluster);
    foreign::refuse(&repository, cluster, own).await?;
    let expired = expire(&repository, cluster, options).await.map_err(anyhow::Error::from);
    recorded::ended(&repository, selection, &expired, options).await;
    let mut expired = expired?;
    let remarks: Vec<String> =
        expired.remarks.drain(..).map(|remark| walpoint_words::remark(&remark).into()).collect();
    expired.notes.splice(0..0, remarks);
    Ok(expired)
}

fn options(selection: &Selection<StoreSettings>, args: &ExpireArgs) -> ExpireOptions {
    let named = args.backup.map(|backup| NamedBackup {
        backup,
        who: walpoint_runtime::operator::user(),
        even_if_held: args.even_if_held,
        even_if_last: args.even_if_last,
        abort_unfinished: args.abort_unfinished,
        abort_reason: "archive-agent expire --abort-unfinished aborted it".to_owned(),
    });
    let retention = selection.settings.retention.as_ref();
    ExpireOptions {
        policy: policy(retention),
        grace: retention.map_or(SignedDuration::from_hours(24), |retention| retention.grace),
        named,
        dry_run: args.dry_run,
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        agent: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// What the configuration asks for; nothing if there is no table.
pub(crate) fn policy(settings: Option<&RetentionSettings>) -> Policy {
    let Some(settings) = settings else { return Policy::default() };
    let RetentionSettings {
        count,
        age,
        window,
        daily,
        weekly,
        monthly,
        yearly,
        minimum,
        max_age,
        grace: _,
        accept_damaged_pages,
        label,
    } = settings;
    let labels = label.iter().map(|(label, own)| {
        let rule = Rule {
            count: own.count,
            age: own.age,
            daily: own.daily,
            weekly: own.weekly,
            monthly: own.monthly,
            yearly: own.yearly,
        };
        (label.clone(), rule)
    });
    Policy {
        rule: Rule {
            count: *count,
            age: *age,
            daily: *daily,
            weekly: *weekly,
            monthly: *monthly,
            yearly: *yearly,
        },
        labels: labels.collect(),
        window: *window,
        minimum: *minimum,
        max_age: *max_age,
        accept_damaged_pages: *accept_damaged_pages,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_not_to_be_run_again() {
        let settings = |setting| RepoError::settings(setting, "is wrong");
        assert!(is_refusal(&settings(CLOCK).into()));
        assert!(!is_refusal(&settings("url").into()));
        let protected = RepoError::Protected { what: "held".to_owned(), obstacles: Vec::new(), remedy: None };
        assert!(is_refusal(&protected.into()));
        assert!(!is_refusal(&RepoError::Internal("a thread ended".to_owned()).into()));
    }
}
