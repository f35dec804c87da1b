//! `archive-agent lineage settle`: says that a timeline's stored history counts, although another one was refused or it contradicts an
//! ancestor's, or that a timeline was abandoned.
//!
//! One record for each refused history or abandoned timeline, in each repository. A crash in the middle leaves some of them; the same
//! command creates the others.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{ClusterName, Diagnostic, LineageId, SegmentName, TimelineId, WalFileName};
use walpoint_repo::Repository;
use walpoint_repo::lineage::DamagedLineage;
use walpoint_repo::wal::WalArchive;
use walpoint_runtime::args::{self, CommonArgs};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::operator::user;
use walpoint_runtime::{help, output};
use walpoint_storage::RepoError;
use walpoint_storage::object::ContentHash;
use walpoint_storage::store::StoreSettings;
use walpoint_words::format_chain;

use crate::foreign::{self, LocalCluster};
use crate::selection::as_owner;
use crate::wal::contradiction;

mod abandon;

const EXAMPLES: &[(&str, &str)] = &[(
    "Keep the stored history of timeline 2, not the one that was refused",
    "archive-agent lineage settle --timeline 2 \\\n--reason \"the refused one came from a test server\"",
)];

/// What `lineage` can do.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum LineageCommand {
    /// Settle a timeline that two servers claimed, or that was abandoned.
    ///
    /// If another server's history was refused for the timeline, or its history contradicts that of an earlier timeline, its stored history
    /// counts from now on. Otherwise the timeline counts as abandoned, and is no longer the latest. Nothing that is stored changes.
    Settle(SettleArgs),
}

/// Options of `lineage settle`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct SettleArgs {
    /// Settle this timeline, as status shows it.
    #[arg(long, value_name = "N")]
    timeline: TimelineId,
    /// Record why the stored history counts, or why the timeline is not needed.
    #[arg(long, value_name = "TEXT", value_parser = args::line)]
    reason: String,
    /// Record who decided this [default: the user that runs the command].
    #[arg(long, value_name = "NAME", value_parser = args::line)]
    who: Option<String>,
    /// Settle it in this lineage [default: in the only one that has the timeline].
    #[arg(long, value_name = "ID")]
    lineage: Option<LineageId>,
    /// Settle it as abandoned even if a history was refused for it.
    #[arg(long, help_heading = help::OVERRIDES)]
    abandoned: bool,
}

/// What `archive-agent lineage settle --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct SettleDocument {
    /// The cluster.
    cluster: ClusterName,
    /// The timeline that was settled.
    timeline: TimelineId,
    /// The records that this run wrote.
    settlements: Vec<Settlement>,
}

walpoint_runtime::document!(SettleDocument, "archive-agent lineage settle");

/// A record of what was settled, in one repository.
#[derive(Debug, Serialize, JsonSchema)]
struct Settlement {
    /// The repository's name in the configuration.
    repository: String,
    /// The lineage.
    lineage: LineageId,
    /// The hash of the history that was settled: the refused one, or the stored one that counts. Absent if the timeline was abandoned.
    #[serde(skip_serializing_if = "Option::is_none")]
    history_hash: Option<String>,
    /// The last segment of the timeline that was abandoned. Absent if a history was settled.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_abandoned_segment: Option<SegmentName>,
    /// Whether it is the stored history that is named.
    #[serde(skip)]
    is_stored: bool,
}

/// Runs the command.
pub(crate) async fn run(common: &CommonArgs, command: &LineageCommand) -> Result<(), Failure> {
    let LineageCommand::Settle(args) = command;
    if args.reason.trim().is_empty() {
        return Err(Failure::usage(anyhow!(
            "--reason is empty\nHINT: State the reason: it is shown to people who restore later."
        )));
    }
    let selection = common.select::<StoreSettings>()?;
    as_owner(&selection).await?;
    let local = LocalCluster::of(&selection).await;
    let (mut settled, mut failed, mut refused) = (Vec::new(), Vec::new(), false);
    for (name, settings) in &selection.repositories {
        match settle(name, settings, (&selection.cluster, &local), args).await {
            Ok(found) => {
                refused |= found.is_some();
                settled.extend(found.into_iter().flatten());
            }
            Err(error) => failed.push(format!("repository {name}: {}", format_chain(&error))),
        }
    }
    // Run once more, the command ends what it began: it takes no timeline for abandoned of which a history was settled.
    if failed.is_empty() && (args.abandoned || !refused) {
        settled.extend(abandon::abandon(&selection, args).await?);
    }
    let nothing = settled.is_empty() && failed.is_empty();
    print(common, &selection.cluster, args, settled)?;
    if !failed.is_empty() {
        return Err(Diagnostic::gather("", failed).into());
    }
    if nothing {
        return Err(anyhow!(
            "no repository holds a history that was refused for timeline {} and is not settled, or WAL of it that was \
             abandoned\nHINT: \"archive-agent status\" shows the timelines. For a timeline that was abandoned although a \
             history was refused for it, add --abandoned.",
            args.timeline
        )
        .into());
    }
    Ok(())
}

/// Settles the histories that were refused in a repository; nothing if none ever was.
async fn settle(
    name: &str,
    settings: &StoreSettings,
    (cluster, local): (&ClusterName, &LocalCluster),
    args: &SettleArgs,
) -> anyhow::Result<Option<Vec<Settlement>>> {
    let repository = Repository::open(name, settings).await?;
    foreign::refuse(&repository, cluster, local).await?;
    if args.abandoned {
        return Ok(None);
    }
    let mut ever = false;
    let mut open: Vec<(LineageId, ContentHash)> = Vec::new();
    let mut own: BTreeMap<LineageId, (ContentHash, Vec<u8>)> = BTreeMap::new();
    let lineages = repository.lineages(cluster).await?;
    unless_meant(&lineages.damaged, args)?;
    let lineages = lineages.read;
    for lineage in lineages.iter().filter(|lineage| args.lineage.is_none_or(|id| id == lineage.id)) {
        let listed = repository.wal(lineage).all_histories().await?;
        let of_it = || listed.refused.iter().filter(|refused| refused.0 == args.timeline);
        ever |= of_it().next().is_some();
        let unsettled = of_it().filter(|refused| !listed.settled.contains(refused));
        open.extend(unsettled.map(|(_, history)| (lineage.id, *history)));
        if let Some(history) = contradicting(&repository.wal(lineage), args.timeline).await? {
            let hash = repository.sealer().content_hash(&history);
            if !open.contains(&(lineage.id, hash)) {
                open.push((lineage.id, hash));
            }
            own.insert(lineage.id, (hash, history));
        }
    }
    let Some((first, _)) = open.first().copied() else { return Ok(ever.then(Vec::new)) };
    if let Some((other, _)) = open.iter().find(|(lineage, _)| *lineage != first) {
        return Err(anyhow!(
            "timeline {} is in doubt in lineages {first} and {other}\nHINT: Name one of them with --lineage.",
            args.timeline
        ));
    }
    let lineage = lineages.iter().find(|lineage| lineage.id == first).context("the lineage is gone")?;
    let archive = repository.wal(lineage);
    let who = args.who.clone().unwrap_or_else(user);
    let (contradicting, mut settled) = (own.get(&first), Vec::new());
    for (_, history) in open {
        let is_stored = contradicting.is_some_and(|(hash, _)| *hash == history);
        let (timeline, reason) = (args.timeline, args.reason.trim());
        if !is_stored {
            archive.settle_history(timeline, history, reason, &who).await?;
        } else if !archive.count_history(timeline, history, reason, &who).await? {
            return Err(anyhow!(
                "timeline {timeline} of lineage {first} was settled before as one whose history does not count\nHINT: If it \
                 counts now, settle the timelines that it contradicts as abandoned (\"archive-agent status\" shows them)."
            ));
        }
        settled.push(Settlement {
            repository: name.to_owned(),
            lineage: first,
            history_hash: Some(history.to_string()),
            last_abandoned_segment: None,
            is_stored,
        });
    }
    // Where records are copied to another repository, it goes with the history that it is about. Kept earlier, that would put the
    // timeline in doubt until it is settled.
    if let Some((_, history)) = own.remove(&first) {
        archive.put_refused_history(args.timeline, history).await?;
    }
    Ok(Some(settled))
}

/// The stored history of a timeline if it contradicts that of an ancestor and no person has settled that.
async fn contradicting(archive: &WalArchive, timeline: TimelineId) -> anyhow::Result<Option<Vec<u8>>> {
    let stored = match archive.get(WalFileName::History(timeline)).await {
        Err(RepoError::Corrupt { .. }) => None,
        read => read?.map(|file| file.content),
    };
    let Some(content) = stored else { return Ok(None) };
    let split = contradiction::of_stored(archive, timeline, &content).await?;
    Ok(split.map(|_| content))
}

/// Fails if a lineage whose facts are damaged is the one in which a timeline is to be settled, or may be.
fn unless_meant(damaged: &[DamagedLineage], args: &SettleArgs) -> anyhow::Result<()> {
    let meant = damaged.iter().find(|damaged| args.lineage.is_none_or(|id| id == damaged.id));
    let Some(damaged) = meant else { return Ok(()) };
    let hint = match args.lineage {
        Some(_) => "",
        None => "\nHINT: To settle the timeline in another lineage, name that one with --lineage.",
    };
    Err(anyhow!("{damaged}{hint}"))
}

fn print(
    common: &CommonArgs,
    cluster: &ClusterName,
    args: &SettleArgs,
    settled: Vec<Settlement>,
) -> Result<(), Failure> {
    if common.json {
        let (cluster, timeline) = (cluster.clone(), args.timeline);
        return output::json(&SettleDocument { cluster, timeline, settlements: settled });
    }
    let timeline = args.timeline;
    let standbys = match settled.iter().any(|one| one.last_abandoned_segment.is_some()) {
        true => format!(
            "A standby that already follows timeline {timeline} stays on it: create it anew (restore-agent restore --standby, or \
             pg_basebackup).\n"
        ),
        false => String::new(),
    };
    let line = |one: &Settlement| {
        let Settlement { repository, lineage, history_hash, last_abandoned_segment, .. } = one;
        match (history_hash, last_abandoned_segment) {
            (Some(history), _) if one.is_stored => format!(
                "repository {repository}: timeline {timeline} of lineage {lineage} is settled: its stored history, {history}, counts\n"
            ),
            (Some(history), _) => format!(
                "repository {repository}: timeline {timeline} of lineage {lineage} is settled: the stored history counts, not {history}\n"
            ),
            (None, until) => format!(
                "repository {repository}: timeline {timeline} of lineage {lineage} is settled as abandoned up to {}\n",
                until.map_or_else(|| "its begin".to_owned(), |until| until.to_string())
            ),
        }
    };
    output::text(&settled.iter().map(line).chain([standbys]).collect::<String>())
}
