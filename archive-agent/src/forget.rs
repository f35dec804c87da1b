//! `archive-agent forget`: deletes everything that the repositories have of a cluster, once its name was typed.
//!
//! The work is done by [`walpoint_repo::forget`]; here are the confirmation and what is printed.

use std::fmt::Write as _;
use std::io::{self, BufRead as _};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{ClusterName, Diagnostic};
use walpoint_repo::Repository;
use walpoint_repo::forget::{ForgetOptions, Forgotten, compare_clocks, forget};
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::Failure;
use walpoint_runtime::progress::ByteProgress;
use walpoint_runtime::{help, human, output};
use walpoint_storage::store::StoreSettings;
use walpoint_words::format_chain;

use crate::foreign::{self, LocalCluster};
use crate::selection::{as_owner, unknown_repository};

const EXAMPLES: &[(&str, &str)] = &[
    ("Show what would be deleted", "archive-agent forget old --dry-run"),
    ("Delete it from all repositories of the cluster", "archive-agent forget old"),
    (
        "Delete what one repository has of a cluster that is no longer configured",
        "archive-agent forget old --repo far",
    ),
];

/// Options of `forget`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct ForgetArgs {
    /// Delete this cluster.
    cluster: ClusterName,
    /// Change nothing; show what would be deleted.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask you to type the cluster's name.
    #[arg(long)]
    yes: bool,
    /// Delete it even if holds are in force.
    #[arg(long, help_heading = help::OVERRIDES)]
    even_if_held: bool,
    /// Delete it even if something was stored within the last hour.
    #[arg(long, help_heading = help::OVERRIDES)]
    even_if_in_use: bool,
}

/// What `archive-agent forget --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct ForgetDocument {
    /// The cluster.
    cluster: ClusterName,
    /// What was deleted, or would be, for each repository.
    repositories: Vec<Forgotten>,
    /// Repositories in which it was refused or did not finish, with the reason.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    failed: Vec<String>,
}

walpoint_runtime::document!(ForgetDocument, "archive-agent forget");

/// Runs the command.
pub(crate) async fn run(common: &CommonArgs, args: &ForgetArgs) -> Result<(), Failure> {
    let (repositories, own) = repositories(common, args).await?;
    let (even_if_held, even_if_in_use) = (args.even_if_held, args.even_if_in_use);
    let options = ForgetOptions { dry_run: true, even_if_held, even_if_in_use };
    let mut document =
        ForgetDocument { cluster: args.cluster.clone(), repositories: Vec::new(), failed: Vec::new() };
    let mut opened = Vec::new();
    for (name, settings) in &repositories {
        match look(name, settings, (&args.cluster, &own), options, args.dry_run).await {
            Ok((repository, planned)) => {
                opened.push(repository);
                document.repositories.push(planned);
            }
            Err(error) => document.failed.push(format!("repository {name}: {}", format_chain(&error))),
        }
    }
    // What one repository refuses is deleted in none.
    if !args.dry_run && document.failed.is_empty() {
        if !args.yes {
            confirm(&args.cluster, &document)?;
        }
        document.repositories.clear();
        for repository in &opened {
            let what = format!("deleting cluster {} from repository {}", args.cluster, repository.name());
            let waiting = ByteProgress::waiting(&what, common.show_progress());
            let done = forget(repository, &args.cluster, ForgetOptions { dry_run: false, ..options }).await;
            waiting.end();
            match done {
                Ok(forgotten) => document.repositories.push(forgotten),
                Err(error) => {
                    document.failed.push(format!(
                        "repository {}: {}",
                        repository.name(),
                        format_chain(&error.into())
                    ));
                }
            }
        }
    }
    match common.json {
        true => output::json(&document)?,
        false => output::text(&document.text())?,
    }
    let done = args.dry_run || !document.repositories.is_empty();
    let held: u64 = document.repositories.iter().map(|one| one.denied_count).sum();
    match document.failed.is_empty() {
        // Who deletes personal data has to know that it is still there.
        true if held > 0 => Err(anyhow!(
            "could not delete everything: {held} objects are under a lock, or this account may not delete \
             them\nHINT: Run it again when the lock has expired, or with an account that has permission."
        )
        .into()),
        true => Ok(()),
        false if done && !args.dry_run => {
            Err(Diagnostic::gather("could not delete everything", &document.failed)
                .hint("Run it again to continue.")
                .into())
        }
        false => Err(Diagnostic::gather("", &document.failed).into()),
    }
}

async fn look(
    name: &str,
    settings: &StoreSettings,
    (cluster, own): (&ClusterName, &LocalCluster),
    options: ForgetOptions,
    dry_run: bool,
) -> anyhow::Result<(Repository, Forgotten)> {
    let repository = Repository::open(name, settings).await?;
    // Not refused: to forget a cluster is how its name is made free for the one that took its place here.
    if let Err(found) = foreign::refuse(&repository, cluster, own).await {
        tracing::warn!("repository {name}: {}", format_chain(&found));
    }
    let planned = forget(&repository, cluster, options).await?;
    if !dry_run {
        // Before anything is deleted in another repository.
        compare_clocks(&repository, cluster, options).await?;
    }
    Ok((repository, planned))
}

/// The repositories of the cluster, and what is in its data directory if that is here. One that the configuration no longer has is looked for where `--repo` says.
async fn repositories(
    common: &CommonArgs,
    args: &ForgetArgs,
) -> Result<(Vec<(String, StoreSettings)>, LocalCluster), Failure> {
    let cluster = &args.cluster;
    if let Some(other) = common.cluster.as_ref().filter(|other| *other != cluster) {
        return Err(Failure::usage(anyhow!("--cluster {other} contradicts the argument {cluster}")));
    }
    let common = CommonArgs { cluster: Some(cluster.clone()), ..common.clone() };
    let config = common.read_config::<StoreSettings>()?;
    let described =
        common.url()?.is_some() || config.as_ref().is_none_or(|config| config.cluster.contains_key(cluster));
    let Some(config) = config.filter(|_| !described) else {
        let selection = common.select::<StoreSettings>()?;
        if !args.dry_run {
            as_owner(&selection).await?;
        }
        let own = LocalCluster::of(&selection).await;
        return Ok((selection.repositories, own));
    };
    let names = common.names();
    if names.is_empty() {
        return Err(Failure::usage(anyhow!(
            "the configuration has no [cluster.{cluster}]\nHINT: Name the repositories that hold it with --repo."
        )));
    }
    let pick = |name: &str| match config.repository.get(name) {
        Some(settings) => Ok((name.to_owned(), settings.clone())),
        None => Err(unknown_repository(name, &config)),
    };
    Ok((names.into_iter().map(pick).collect::<Result<_, Failure>>()?, LocalCluster::Absent))
}

/// Has the cluster's name typed.
fn confirm(cluster: &ClusterName, document: &ForgetDocument) -> anyhow::Result<()> {
    // Who does not see what is to be deleted types no name.
    let question = format!("{}Type {cluster} to delete all of this for good: ", document.text());
    io::Write::write_all(&mut io::stderr(), question.as_bytes())
        .context("nothing was deleted: could not ask for the cluster's name")?;
    let mut typed = String::new();
    io::stdin().lock().read_line(&mut typed)?;
    match typed.trim() {
        typed if typed == cluster.as_str() => Ok(()),
        "" => bail!("nothing was deleted: the name was not typed\nHINT: --yes skips the question."),
        _ => bail!("nothing was deleted: the typed name is not {cluster}"),
    }
}

impl ForgetDocument {
    /// For a person.
    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        for one in &self.repositories {
            let (what, objects, bytes) = match one.dry_run {
                true => ("Would delete", one.object_count, one.object_bytes),
                false if one.denied_count > 0 => ("Deleted a part of", one.deleted_count, one.deleted_bytes),
                false => ("Deleted", one.deleted_count, one.deleted_bytes),
            };
            writeln!(text, "{what} cluster {} from {}", one.cluster, one.repository).ok();
            let lineages: Vec<String> = one.lineages.iter().map(ToString::to_string).collect();
            writeln!(text, "  lineages  {}", lineages.join(", ")).ok();
            let span = match (one.backups.first(), one.backups.last()) {
                (Some(first), Some(last)) if first != last => format!(", from {first} to {last}"),
                (Some(only), _) => format!(", {only}"),
                _ => String::new(),
            };
            writeln!(text, "  backups   {}{span}", one.backups.len()).ok();
            writeln!(text, "  objects   {objects}, {}", human::size(bytes)).ok();
            if one.denied_count > 0 {
                writeln!(text, "  held      {} objects that the store refuses to delete", one.denied_count)
                    .ok();
            }
            for key in &one.unknown_objects {
                writeln!(text, "  not Walpoint's, left unchanged: {key}").ok();
            }
            for note in &one.notes {
                writeln!(text, "{}", human::hanging("  note: ", note)).ok();
            }
        }
        text
    }
}
