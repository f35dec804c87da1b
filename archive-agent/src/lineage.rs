//! `archive-agent lineage settle`: says that a refused history no longer puts its timeline in doubt.
//!
//! One record for each refused history, in each repository. A crash in the middle leaves some of them; the same command creates
//! the others.

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use serde::Serialize;
use walpoint_base::{ClusterName, LineageId, TimelineId};
use walpoint_repo::Repository;
use walpoint_repo::object::ContentHash;
use walpoint_repo::store::StoreSettings;
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::{Failure, told};
use walpoint_runtime::output;

use crate::hold::user;

/// What `lineage` can do.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum LineageCommand {
    /// Say that the stored history of a timeline counts, although another server's was refused for it. "latest" can be restored
    /// again; nothing that is stored changes.
    Settle(SettleArgs),
}

/// Options of `lineage settle`.
#[derive(Debug, Clone, Args)]
pub(crate) struct SettleArgs {
    /// The timeline that two servers claimed, as status shows it.
    #[arg(long, value_name = "N")]
    timeline: TimelineId,
    /// Why the stored history counts.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Who says so [default: the user that runs this].
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
    /// In this lineage [default: in the only one in which the timeline is in doubt].
    #[arg(long, value_name = "ID")]
    lineage: Option<LineageId>,
}

/// What `lineage settle --json` prints.
#[derive(Debug, Serialize)]
struct Document {
    cluster: String,
    timeline: u32,
    settled: Vec<Settled>,
}

#[derive(Debug, Serialize)]
struct Settled {
    repository: String,
    lineage: String,
    /// The hash of the refused history.
    history: String,
}

/// Runs the command.
pub(crate) async fn run(common: &CommonArgs, command: &LineageCommand) -> Result<(), Failure> {
    let LineageCommand::Settle(args) = command;
    if args.reason.trim().is_empty() {
        return Err(Failure::usage(anyhow!("--reason is empty: it is shown to people who restore later")));
    }
    let selection = common.select::<StoreSettings>()?;
    let (mut settled, mut failed) = (Vec::new(), Vec::new());
    for (name, settings) in &selection.repositories {
        match settle(name, settings, &selection.cluster, args).await {
            Ok(found) => settled.extend(found),
            Err(error) => failed.push(format!("repository {name}: {}", told(&error))),
        }
    }
    let nothing = settled.is_empty() && failed.is_empty();
    print(common, &selection.cluster, args, settled)?;
    if !failed.is_empty() {
        return Err(anyhow!("{}", failed.join("; ")).into());
    }
    if nothing {
        return Err(anyhow!(
            "no repository holds a history that was refused for timeline {} and is not settled: \"archive-agent status\" shows which \
             timelines are in doubt",
            args.timeline
        )
        .into());
    }
    Ok(())
}

async fn settle(
    name: &str,
    settings: &StoreSettings,
    cluster: &ClusterName,
    args: &SettleArgs,
) -> anyhow::Result<Vec<Settled>> {
    let repository = Repository::open(name, settings).await?;
    let mut open: Vec<(LineageId, ContentHash)> = Vec::new();
    let lineages = repository.lineages(cluster).await?;
    for lineage in lineages.iter().filter(|lineage| args.lineage.is_none_or(|id| id == lineage.id)) {
        let listed = repository.wal(lineage).all_histories().await?;
        let of_it = listed.refused.iter().filter(|refused| refused.0 == args.timeline);
        let unsettled = of_it.filter(|refused| !listed.settled.contains(refused));
        open.extend(unsettled.map(|(_, history)| (lineage.id, *history)));
    }
    let Some((first, _)) = open.first().copied() else { return Ok(Vec::new()) };
    if let Some((other, _)) = open.iter().find(|(lineage, _)| *lineage != first) {
        return Err(anyhow!(
            "timeline {} is in doubt in lineages {first} and {other}: say which one by --lineage",
            args.timeline
        ));
    }
    let lineage = lineages.iter().find(|lineage| lineage.id == first).context("the lineage is gone")?;
    let archive = repository.wal(lineage);
    let who = args.who.clone().unwrap_or_else(user);
    let mut settled = Vec::new();
    for (_, history) in open {
        archive.settle_history(args.timeline, history, args.reason.trim(), &who).await?;
        settled.push(Settled {
            repository: name.to_owned(),
            lineage: first.to_string(),
            history: history.to_string(),
        });
    }
    Ok(settled)
}

fn print(
    common: &CommonArgs,
    cluster: &ClusterName,
    args: &SettleArgs,
    settled: Vec<Settled>,
) -> Result<(), Failure> {
    if common.json {
        let (cluster, timeline) = (cluster.to_string(), args.timeline.get());
        return output::json(&Document { cluster, timeline, settled });
    }
    let line = |one: &Settled| {
        format!(
            "repository {}: timeline {} of lineage {} is settled: the stored history counts, not {}\n",
            one.repository, args.timeline, one.lineage, one.history
        )
    };
    output::text(&settled.iter().map(line).collect::<String>())
}
