//! `evidence record`: what a person puts on record.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use aws_lc_rs::digest;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{BackupId, ClusterName, Diagnostic, LineageId};
use walpoint_repo::Repository;
use walpoint_repo::evidence::{Attachment, Draft, Evidence, Kind, Objective, Outcome};
use walpoint_runtime::args::{self, CommonArgs, Selection};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::{help, output};
use walpoint_storage::store::StoreSettings;
use walpoint_words::format_chain;

use super::draft;
use super::list::kinds;
use crate::foreign::{self, LocalCluster};

/// The heading of options about what was done.
const SCOPE: &str = "Scope";
/// The heading of options about what was measured.
const MEASURED: &str = "Measurements";

const EXAMPLES: &[(&str, &str)] = &[
    (
        "Record an erasure, with the report of it",
        "archive-agent evidence record --kind erasure --outcome success \\\n\
         --note \"request 2026-17\" --attach report.pdf",
    ),
    (
        "Record a drill, its times, and whether they met the objectives",
        "archive-agent evidence record --kind drill --outcome success \\\n\
         --scenario \"loss of the data center\" --participant alice \\\n\
         --rto 25m --rto-target 1h",
    ),
];

/// Options of `evidence record`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct RecordArgs {
    /// What was done.
    #[arg(long, value_name = "KIND", value_parser = kinds())]
    kind: Kind,
    /// How it ended.
    #[arg(long, value_name = "OUTCOME", value_parser = outcomes())]
    outcome: Outcome,
    /// Describe it.
    #[arg(long, value_name = "TEXT", value_parser = args::line)]
    note: Option<String>,
    /// Record who did it [default: the user that runs the command].
    #[arg(long, value_name = "NAME", value_parser = args::line)]
    who: Option<String>,
    /// Name a person that took part. Can be repeated.
    #[arg(long, value_name = "NAME", value_parser = args::line)]
    participant: Vec<String>,
    /// Name the scenario, such as "loss of the data center".
    #[arg(long, value_name = "TEXT", value_parser = args::line)]
    scenario: Option<String>,
    /// Record a problem. Can be repeated.
    #[arg(long, value_name = "TEXT", value_parser = args::line)]
    issue: Vec<String>,
    /// Record what has to be done. Can be repeated.
    #[arg(long, value_name = "TEXT", value_parser = args::line)]
    action_item: Vec<String>,
    /// Record the name, the size and the SHA-256 of this file. The file itself is not stored: keep it. Can be repeated.
    #[arg(long, value_name = "FILE")]
    attach: Vec<PathBuf>,
    /// Name a backup that it was about. Can be repeated.
    #[arg(long, value_name = "ID", help_heading = SCOPE)]
    backup: Vec<BackupId>,
    /// Name the lineage that it was about.
    #[arg(long, value_name = "ID", help_heading = SCOPE)]
    lineage: Option<LineageId>,
    /// Name the recovery target.
    #[arg(long, value_name = "TEXT", value_parser = args::line, help_heading = SCOPE)]
    target: Option<String>,
    /// Record how long it took, such as 90s or "1h 30m".
    #[arg(long, value_name = "SPAN", value_parser = args::span, help_heading = MEASURED)]
    duration: Option<Duration>,
    /// Record how long it took until the service was back.
    #[arg(long, value_name = "SPAN", value_parser = span_or_none, help_heading = MEASURED)]
    rto: Option<Duration>,
    /// Compare that with this objective.
    #[arg(long, value_name = "SPAN", value_parser = args::span, requires = "rto", help_heading = MEASURED)]
    rto_target: Option<Duration>,
    /// Record how much of the newest data was lost, such as 5s, or 0s for none.
    #[arg(long, value_name = "SPAN", value_parser = span_or_none, help_heading = MEASURED)]
    rpo: Option<Duration>,
    /// Compare that with this objective.
    #[arg(long, value_name = "SPAN", value_parser = span_or_none, requires = "rpo", help_heading = MEASURED)]
    rpo_target: Option<Duration>,
}

/// Reads the name of an outcome.
fn outcomes() -> impl TypedValueParser<Value = Outcome> {
    const ALL: [Outcome; 3] = [Outcome::Success, Outcome::Partial, Outcome::Failed];
    let named = |name: String| ALL.into_iter().find(|one| one.name() == name).unwrap_or(Outcome::Failed);
    PossibleValuesParser::new(ALL.map(Outcome::name)).map(named)
}

/// A span of time, which may be none at all.
fn span_or_none(text: &str) -> Result<Duration, String> {
    let span = walpoint_base::span::parse(text)?;
    Duration::try_from(span).map_err(|_| "a span of 0s or more is needed".to_owned())
}

/// What `archive-agent evidence record --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct EvidenceRecordDocument {
    /// The cluster.
    cluster: ClusterName,
    /// The repositories that have the record.
    repositories: Vec<WrittenRecord>,
}

walpoint_runtime::document!(EvidenceRecordDocument, "archive-agent evidence record");

/// The record in one repository.
#[derive(Debug, Serialize, JsonSchema)]
struct WrittenRecord {
    /// The repository's name in the configuration.
    repository: String,
    /// The record's number.
    number: u64,
    /// Its hash.
    hash: String,
}

/// Runs the command.
pub(super) async fn run(
    common: &CommonArgs,
    selection: &Selection<StoreSettings>,
    args: &RecordArgs,
) -> Result<(), Failure> {
    let files = args.attach.clone();
    let attached = move || files.iter().map(|file| attachment(file)).collect::<anyhow::Result<Vec<_>>>();
    let attachments = tokio::task::spawn_blocking(attached).await??;
    let draft = said(args, attachments);
    let own = LocalCluster::of(selection).await;
    let mut document =
        EvidenceRecordDocument { cluster: selection.cluster.clone(), repositories: Vec::new() };
    let mut failed = Vec::new();
    for (name, settings) in &selection.repositories {
        match write(selection, (name, settings), &own, &draft).await {
            Ok(written) => document.repositories.push(written),
            Err(error) => failed.push(format!("repository {name}: {}", format_chain(&error))),
        }
    }
    if common.json {
        output::json(&document)?;
    } else {
        let lines = document.repositories.iter().map(|WrittenRecord { repository, number, hash }| {
            format!("repository {repository}: record {number} written, with the hash {hash}\n")
        });
        output::text(&lines.collect::<String>())?;
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Diagnostic::gather("the record was not written everywhere", failed)
            .hint("Run it again with --repo for each of these repositories: those that have the record would have it twice.")
            .into()),
    }
}

/// What the options say.
fn said(args: &RecordArgs, attachments: Vec<Attachment>) -> Draft {
    let seconds = |span: Option<Duration>| span.map(|span| span.as_secs_f64());
    let objective = |target: Option<Duration>, measured: Option<Duration>| {
        seconds(measured).map(|measured| Objective::of(seconds(target), measured))
    };
    let draft = draft(args.kind, args.outcome);
    Draft {
        time: Timestamp::now(),
        recorded_by: args.who.clone().unwrap_or(draft.recorded_by),
        lineage: args.lineage,
        backups: args.backup.clone(),
        target: args.target.clone(),
        scenario: args.scenario.clone(),
        participants: args.participant.clone(),
        seconds: seconds(args.duration),
        rto: objective(args.rto_target, args.rto),
        rpo: objective(args.rpo_target, args.rpo),
        issues: args.issue.clone(),
        action_items: args.action_item.clone(),
        attachments,
        note: args.note.clone(),
        ..draft
    }
}

async fn write(
    selection: &Selection<StoreSettings>,
    (name, settings): (&str, &StoreSettings),
    own: &LocalCluster,
    draft: &Draft,
) -> anyhow::Result<WrittenRecord> {
    let (repository, cluster) = (Repository::open(name, settings).await?, &selection.cluster);
    foreign::refuse(&repository, cluster, own).await?;
    if repository.lineages(cluster).await?.ids().next().is_none() {
        return Err(anyhow!(
            "it does not know cluster {cluster}\nHINT: Name the right one with --cluster, or register it with \"archive-agent init\"."
        ));
    }
    let head = Evidence::of(&repository, cluster).append(draft).await?.head;
    Ok(WrittenRecord { repository: name.to_owned(), number: head.number, hash: head.hash.to_string() })
}

/// What is recorded of a file. Blocks.
fn attachment(path: &Path) -> anyhow::Result<Attachment> {
    let context = || format!("could not read {}", path.display());
    let name = path.file_name().with_context(context)?.to_string_lossy().into_owned();
    // Before it is opened: a pipe would wait for a writer.
    if !std::fs::metadata(path).with_context(context)?.is_file() {
        return Err(anyhow!("{} is not a regular file", path.display()));
    }
    let mut file = File::open(path).with_context(context)?;
    let mut hash = digest::Context::new(&digest::SHA256);
    let (mut buffer, mut size_bytes) = (vec![0; 1 << 20], 0u64);
    loop {
        let read = file.read(&mut buffer).with_context(context)?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        hash.update(bytes);
        size_bytes += bytes.len() as u64;
    }
    let sha256 = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Attachment { name, size_bytes, sha256 })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: RecordArgs,
    }

    fn parse(words: &[&str]) -> Result<RecordArgs, clap::Error> {
        Ok(Line::try_parse_from([&["record"], words].concat())?.args)
    }

    #[test]
    fn measurements_are_held_against_their_objectives() {
        let line = ["--kind=drill", "--outcome=success", "--rto=25m", "--rto-target=1h", "--rpo=0s"];
        let said = said(&parse(&line).unwrap(), Vec::new());
        assert_eq!(
            said.rto,
            Some(Objective { target_seconds: Some(3600.0), measured_seconds: 1500.0, met: Some(true) })
        );
        assert_eq!(said.rpo, Some(Objective { target_seconds: None, measured_seconds: 0.0, met: None }));
        for bad in [
            &["--kind=drill"][..],
            &["--kind=lunch", "--outcome=success"],
            &["--kind=drill", "--outcome=good"],
            &["--kind=drill", "--outcome=success", "--rto-target=1h"],
            &["--kind=drill", "--outcome=success", "--note=a\nb"],
            &["--kind=drill", "--outcome=success", "--backup=x"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_attachment_is_its_name_size_and_hash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        std::io::Write::write_all(&mut File::create_new(&path).unwrap(), b"abc").unwrap();
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned();
        assert_eq!(
            attachment(&path).unwrap(),
            Attachment { name: "a.txt".to_owned(), size_bytes: 3, sha256 }
        );
        assert!(attachment(dir.path()).is_err() && attachment(&dir.path().join("none")).is_err());
    }
}
