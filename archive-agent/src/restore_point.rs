//! `archive-agent restore-point`: a named point in WAL to which a cluster can be restored, before a deployment.
//!
//! PostgreSQL alone writes the record and forgets it: whether it can be restored to depends on the archive. Here the command ends only
//! when each repository that has to acknowledge holds the segment with the record, and PostgreSQL has archived all before it. A crash in
//! between leaves the record in WAL, where it is archived like any other.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::facts::PointRef;
use walpoint_base::{ClusterName, Diagnostic, Lsn, PgTimestamp, SegmentName, SegmentNo, TimelineId};
use walpoint_pg::server::{Server, ServerIdentity};
use walpoint_repo::catalog::Catalog;
use walpoint_runtime::args::{self, CommonArgs, Selection};
use walpoint_runtime::config::DEFAULT_PATH;
use walpoint_runtime::exit::Failure;
use walpoint_runtime::progress::ByteProgress;
use walpoint_runtime::{help, human, output, sibling};
use walpoint_storage::store::StoreSettings;

use crate::check::report::{CheckReport, Grade};
use crate::check::repository::{self, Destination};
use crate::check::{archiving, source, whose_files};

/// PostgreSQL's limit for a name, in bytes.
const MAX_NAME: usize = 63;

const EXAMPLES: &[(&str, &str)] = &[
    ("Before a deployment, name the moment to return to", "archive-agent restore-point before-release-42"),
    (
        "In a script, keep the command that restores to it",
        "archive-agent restore-point before-release-42 --json | jq -r .command",
    ),
];

/// Options of `restore-point`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct RestorePointArgs {
    /// Give the restore point this name, of 1 to 63 bytes.
    #[arg(value_parser = name)]
    name: String,
    /// Wait at most this long, such as 90s or "1h 30m", for the repositories to store it.
    #[arg(long, value_name = "SPAN", default_value = "5m", value_parser = args::span)]
    timeout: Duration,
}

/// A name that PostgreSQL takes.
fn name(text: &str) -> Result<String, String> {
    match text.len() {
        1..=MAX_NAME => Ok(text.to_owned()),
        length => Err(format!("PostgreSQL takes names of 1 to {MAX_NAME} bytes, and this one has {length}")),
    }
}

/// What `archive-agent restore-point --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct RestorePointReport {
    /// The cluster.
    cluster: ClusterName,
    /// The restore point's name.
    name: String,
    /// The timeline on which it was created.
    timeline: TimelineId,
    /// The position at which its record starts, as `status` and `plan` show it. Absent if the record crosses the end of a segment.
    #[serde(skip_serializing_if = "Option::is_none")]
    lsn: Option<Lsn>,
    /// The position at which its record ends, which `pg_create_restore_point` returned.
    end_lsn: Lsn,
    /// When it was created, by the server's clock.
    time: PgTimestamp,
    /// The segment that holds the end of the record.
    segment: SegmentName,
    /// The repositories that hold the segment.
    repositories: Vec<String>,
    /// The number of restore points that had the name before.
    same_name_count: usize,
    /// Why the cluster cannot be restored to it yet. Absent if it can.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    warnings: Vec<String>,
    /// The command that restores to it, into the directory `DIR`.
    command: String,
    /// How long it took.
    seconds: f64,
}

walpoint_runtime::document!(RestorePointReport, "archive-agent restore-point");

/// What was created.
#[derive(Debug)]
struct Created {
    timeline: TimelineId,
    end: Lsn,
    segment: SegmentName,
    time: PgTimestamp,
}

/// Runs the command.
pub(crate) async fn run(common: &CommonArgs, args: &RestorePointArgs) -> Result<(), Failure> {
    let began = Instant::now();
    let selection = common.select::<StoreSettings>()?;
    let (mut server, identity) = primary(&selection).await?;
    let pgdata = match &selection.settings.pgdata {
        Some(pgdata) if pgdata.exists() => match whose_files::examine(&mut server, pgdata).await {
            Ok(Some(_)) => Some(pgdata.as_path()),
            Ok(None) => whose_files::prove(&mut server, pgdata).await.map(|_| Some(pgdata.as_path()))?,
            // It only explains better what does not arrive.
            Err(error) => {
                tracing::debug!(
                    "{} is left alone: {}",
                    pgdata.display(),
                    walpoint_words::format_chain(&error)
                );
                None
            }
        },
        _ => None,
    };
    let destinations = repository::required(&selection, (&identity).into()).await?;
    let same_name = known(&destinations, &args.name).await?;
    let created = create(&mut server, &identity, &args.name).await?;
    let names: Vec<&str> = destinations.iter().map(Destination::name).collect();
    let what = format!("waiting for segment {} in {}", created.segment, names.join(", "));
    let waiting = ByteProgress::waiting(&what, common.show_progress());
    let stored =
        archiving::acknowledged(&mut server, &destinations, pgdata, created.segment, args.timeout).await;
    waiting.end();
    stored.with_context(|| {
        format!(
            "restore point \"{}\" was created at {}, and is not durable yet: it can be restored to as soon as its segment is stored",
            args.name, created.end
        )
    })?;
    let point = stored_point(&destinations, &args.name, &created).await?;
    let report = RestorePointReport {
        cluster: selection.cluster.clone(),
        name: args.name.clone(),
        timeline: created.timeline,
        lsn: point.as_ref().map(|(point, _)| point.lsn),
        end_lsn: created.end,
        time: point.as_ref().and_then(|(_, time)| *time).unwrap_or(created.time),
        segment: created.segment,
        repositories: names.into_iter().map(str::to_owned).collect(),
        same_name_count: same_name,
        warnings: unreached(&destinations, created.timeline).await,
        command: command(
            common,
            &selection,
            &target(&args.name, same_name, created.timeline, point.map(|(point, _)| point.lsn)),
        ),
        seconds: began.elapsed().as_secs_f64(),
    };
    for warning in &report.warnings {
        tracing::warn!("{warning}");
    }
    match common.json {
        true => output::json(&report),
        false => output::text(&report.text()),
    }
}

/// A session on the server, if it is one that can create a restore point and archives.
async fn primary(selection: &Selection<StoreSettings>) -> anyhow::Result<(Server, ServerIdentity)> {
    let mut server = source::connect(&selection.settings).await?;
    let identity = server.identity().await?;
    if identity.in_recovery {
        bail!(
            "cannot create a restore point: the server on {} is in recovery\nHINT: Set conninfo to the primary: only what it \
             writes can be named.",
            server.connection().host()
        );
    }
    let mut report = CheckReport::default();
    let archives = archiving::settings(&mut report, &mut server, &identity).await;
    if !archives {
        return Err(report.failure("cannot create a restore point that can be restored to").into());
    }
    report.diagnostics(Grade::Warning).iter().for_each(|warning| tracing::warn!("{warning}"));
    Ok((server, identity))
}

/// How many restore points of that name there are, in the repository that has the most. Warns of them.
async fn known(destinations: &[Destination], name: &str) -> anyhow::Result<usize> {
    let mut most = 0;
    for destination in destinations {
        let found = destination.archive().points_named(name).await?.points;
        if let Some(last) = found.last()
            && most == 0
        {
            tracing::warn!(
                repository = destination.name(),
                "there is a restore point named \"{name}\" already, the last one at {} on timeline {}\nDETAIL: --target-name \
                 alone does not distinguish them.",
                last.lsn,
                last.timeline
            );
        }
        most = most.max(found.len());
    }
    Ok(most)
}

/// Creates it and completes the segment that holds it.
async fn create(server: &mut Server, identity: &ServerIdentity, name: &str) -> anyhow::Result<Created> {
    let end = server.create_restore_point(name).await?;
    let time = server.clock().await?;
    server.switch_wal().await.with_context(|| {
        format!("restore point \"{name}\" was created at {end}, and its segment is not complete before PostgreSQL switches to the next one")
    })?;
    let (timeline, size) = (identity.timeline, identity.segment_size);
    let segment = SegmentNo::before(end, size).name(timeline, size);
    Ok(Created { timeline, end, segment, time })
}

/// What the repositories have of it, and its time; `None` if its record crosses the end of a segment, where no name is stored.
async fn stored_point(
    destinations: &[Destination],
    name: &str,
    created: &Created,
) -> anyhow::Result<Option<(PointRef, Option<PgTimestamp>)>> {
    for destination in destinations {
        let archive = destination.archive();
        let found = archive.points_named(name).await?.points;
        let before = found.into_iter().filter(|p| p.timeline == created.timeline && p.lsn < created.end);
        let Some(point) = before.max_by_key(|point| point.lsn) else { continue };
        let time = match archive.point(&point).await? {
            // An earlier one, where this one's record crosses.
            Some(stored) if stored.end != created.end => continue,
            Some(stored) => Some(stored.time),
            None => point.time,
        };
        return Ok(Some((point, time)));
    }
    Ok(None)
}

/// Why the newest WAL cannot be restored to from a repository, for each of which that is known.
async fn unreached(destinations: &[Destination], timeline: TimelineId) -> Vec<String> {
    let mut warnings = Vec::new();
    for Destination { repository, lineage, .. } in destinations {
        let look = async {
            let mut catalog = Catalog::load(repository, &lineage.cluster).await?;
            let found = catalog.lineages_mut().iter_mut().find(|known| known.id() == lineage.id);
            let Some(known) = found else { return anyhow::Ok(None) };
            if known.facts().backups.is_empty() {
                return Ok(Some("there is no backup from which a restore could begin".to_owned()));
            }
            Ok(known.unreached(timeline).await?.map(|unreached| unreached.to_string()))
        };
        match look.await {
            Ok(None) => {}
            Ok(Some(what)) => warnings.push(format!(
                "repository {}: {what}\nHINT: Take a backup (archive-agent backup), and then create a new restore point.",
                repository.name()
            )),
            Err(error) => warnings.push(format!(
                "repository {}: whether a backup leads to the restore point is not known: {}",
                repository.name(),
                walpoint_words::format_chain(&error)
            )),
        }
    }
    warnings
}

/// The options that recover to it and to no other of its name.
fn target(name: &str, same_name: usize, timeline: TimelineId, lsn: Option<Lsn>) -> Vec<String> {
    match lsn {
        Some(lsn) if same_name > 0 => {
            vec![format!("--target-timeline={timeline}"), format!("--target-lsn={lsn}")]
        }
        _ if name.starts_with('-') => vec![format!("--target-name={name}")],
        _ => vec!["--target-name".to_owned(), name.to_owned()],
    }
}

/// The command that restores to the target, with what selects the same cluster and repositories.
fn command(common: &CommonArgs, selection: &Selection<StoreSettings>, target: &[String]) -> String {
    let mut words = vec!["restore-agent".to_owned(), "restore".to_owned()];
    let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
    let config =
        selection.config.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
    if let Some(config) = config.filter(|path| path.as_os_str() != DEFAULT_PATH) {
        option("--config", config.to_string_lossy().into_owned());
    }
    for repo in &common.repo {
        option("--repo", repo.to_string());
    }
    if common.cluster.is_some() {
        option("--cluster", selection.cluster.to_string());
    }
    words.extend(target.iter().cloned());
    words.extend(["--pgdata".to_owned(), "DIR".to_owned()]);
    words.iter().map(|word| sibling::quoted(word)).collect::<Vec<_>>().join(" ")
}

impl RestorePointReport {
    /// For a person.
    fn text(&self) -> String {
        let Self { name, timeline, end_lsn, time, segment, command, .. } = self;
        let (at, time) = (self.lsn.unwrap_or(*end_lsn), human::time(time.to_time()));
        format!(
            "Restore point \"{name}\" is durable\n  position  {at} on timeline {timeline}\n  time      {time}\n  stored    \
             segment {segment} in {}\n\nTo restore the cluster to it, into a new directory DIR:\n\n  {command}\n",
            self.repositories.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use walpoint_runtime::config::ClusterSettings;

    use super::*;

    #[test]
    fn names_have_the_length_that_postgresql_takes() {
        assert_eq!(name("é x").unwrap(), "é x");
        assert!(name(&"n".repeat(63)).is_ok());
        assert!(name(&"é".repeat(32)).unwrap_err().contains("64"));
        assert!(name("").is_err());
    }

    #[test]
    fn the_command_selects_the_same_and_names_one_point() {
        let timeline = TimelineId::new(3).unwrap();
        let lsn = "0/3000060".parse().ok();
        assert_eq!(target("a b", 0, timeline, lsn), ["--target-name", "a b"]);
        assert_eq!(target("-a", 0, timeline, lsn), ["--target-name=-a"]);
        assert_eq!(target("a", 2, timeline, lsn), ["--target-timeline=3", "--target-lsn=0/3000060"]);
        assert_eq!(target("a", 2, timeline, None), ["--target-name", "a"]);

        let mut selection = Selection {
            cluster: "main".parse().unwrap(),
            settings: ClusterSettings::with_repositories(vec!["far".to_owned()]),
            repositories: Vec::new(),
            chosen: false,
            config: Some(DEFAULT_PATH.into()),
        };
        let mut common = CommonArgs::default();
        let of =
            |common: &CommonArgs, selection: &_| command(common, selection, &target("a b", 0, timeline, lsn));
        assert_eq!(of(&common, &selection), "restore-agent restore --target-name 'a b' --pgdata DIR");
        selection.config = Some("/my etc/w.toml".into());
        common.cluster = Some("main".parse().unwrap());
        common.repo = vec!["far".parse().unwrap()];
        assert_eq!(
            of(&common, &selection),
            "restore-agent restore --config '/my etc/w.toml' --repo far --cluster main --target-name 'a b' --pgdata DIR"
        );
    }
}
