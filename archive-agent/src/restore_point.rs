//! `archive-agent restore-point`: a named point in WAL to which a cluster can be restored, before a deployment.
//!
//! PostgreSQL alone writes the record and forgets it: whether it can be restored to depends on the archive. Here the command ends only
//! when each repository that has to acknowledge holds the segment with the record, and PostgreSQL has archived all before it. A crash in
//! between leaves the record in WAL, where it is archived like any other.

mod created;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{
    ClusterName, Diagnostic, Lsn, PgTimestamp, SegmentName, SegmentNo, SystemId, TimelineId,
};
use walpoint_pg::control::ClusterState;
use walpoint_pg::server::{Server, ServerIdentity};
use walpoint_repo::catalog::Catalog;
use walpoint_runtime::args::{self, CommonArgs, RepoArgument, Selection};
use walpoint_runtime::config::{ClusterSettings, DEFAULT_PATH};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::progress::ByteProgress;
use walpoint_runtime::{help, human, output, sibling};
use walpoint_storage::store::StoreSettings;

use self::created::Created;
use crate::check::report::{CheckReport, Grade};
use crate::check::repository::{self, Destination};
use crate::check::{archiving, source, whose_files};

/// PostgreSQL's limit for a name, in bytes.
const MAX_NAME: usize = 63;

const EXAMPLES: &[(&str, &str)] = &[
    (
        "Before a deployment, create a restore point to return to",
        "archive-agent restore-point before-release-42",
    ),
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

/// A name that PostgreSQL takes, and that fits into a line.
fn name(text: &str) -> Result<String, String> {
    match text.len() {
        1..=MAX_NAME if text.chars().any(char::is_control) => Err("it holds a control character".to_owned()),
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
    /// The number of other restore points of the name, in all lineages of the cluster.
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

/// Runs the command.
pub(crate) async fn run(common: &CommonArgs, args: &RestorePointArgs) -> Result<(), Failure> {
    let began = Instant::now();
    let selection = common.select::<StoreSettings>()?;
    let (mut server, identity) = primary(&selection).await?;
    let pgdata = directory(&mut server, &identity, &selection.settings).await?;
    let pgdata = pgdata.as_deref();
    let destinations = repository::required(&selection, (&identity).into()).await?;
    found_by_name(&args.name, &server.encoding().await?).map_err(Failure::usage)?;
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
    let found = created.find(&destinations, &args.name).await.with_context(|| {
        format!("restore point \"{}\" was created at {}, and cannot be found", args.name, created.end)
    })?;
    let report = RestorePointReport {
        cluster: selection.cluster.clone(),
        name: args.name.clone(),
        timeline: created.timeline,
        lsn: found.lsn,
        end_lsn: created.end,
        time: found.time.unwrap_or(created.time),
        segment: created.segment,
        repositories: names.into_iter().map(str::to_owned).collect(),
        same_name_count: found.others.len(),
        warnings: unreached(&destinations, &created).await,
        command: command(common, &selection, &created.target(&args.name, &found)),
        seconds: began.elapsed().as_secs_f64(),
    };
    if let Some(last) = found.others.last() {
        tracing::warn!(
            "there is another restore point named \"{}\", at {} on timeline {} of lineage {}\nDETAIL: --target-name alone does not \
             distinguish them.",
            args.name,
            last.lsn,
            last.timeline,
            last.lineage
        );
    }
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
            "cannot create a restore point: the server on {} is in recovery\nHINT: Set conninfo to the \
             primary: only the primary can create a restore point.",
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

/// The data directory, if it is visible here and that of the server: it explains better what does not arrive. One that another server
/// writes is refused, because that server's WAL is what the configuration archives. That of a standby is not: its primary is named.
async fn directory(
    server: &mut Server,
    identity: &ServerIdentity,
    settings: &ClusterSettings,
) -> anyhow::Result<Option<PathBuf>> {
    let Some(pgdata) = settings.pgdata.clone().filter(|pgdata| pgdata.exists()) else { return Ok(None) };
    let control = match source::read_control(&pgdata) {
        Ok((_, control)) => control,
        Err(error) => {
            tracing::debug!("{} is left alone: {}", pgdata.display(), walpoint_words::format_chain(&error));
            return Ok(None);
        }
    };
    let host = server.connection().host().to_owned();
    same_system((identity.system_id, &host), (control.system_id, &pgdata))?;
    match whose_files::examine(server, &pgdata).await {
        Ok(Some(_)) => Ok(Some(pgdata)),
        Ok(None) if follows(&pgdata, control.state) => {
            tracing::info!("{} is a standby's data directory, and is left alone", pgdata.display());
            Ok(None)
        }
        Ok(None) => bail!(
            "cannot create a restore point: the server on {host} is not that of {} (pgdata), which has the same system \
             identifier and is no standby\nDETAIL: The server that answers calls its data directory {}.\nHINT: Set conninfo to \
             the server of that directory.",
            pgdata.display(),
            identity.data_directory.display()
        ),
        Err(error) => {
            tracing::debug!("{} is left alone: {}", pgdata.display(), walpoint_words::format_chain(&error));
            Ok(None)
        }
    }
}

/// Refuses a server of another cluster than the data directory's.
fn same_system(server: (SystemId, &str), directory: (SystemId, &Path)) -> anyhow::Result<()> {
    let ((answers, host), (own, pgdata)) = (server, directory);
    if answers == own {
        return Ok(());
    }
    bail!(
        "cannot create a restore point: the server on {host} has the system identifier {answers}, but {} is of {own}\nDETAIL: \
         conninfo or pgdata leads to another cluster.",
        pgdata.display()
    )
}

/// Whether the server of a data directory follows another one, or did last.
fn follows(pgdata: &Path, state: ClusterState) -> bool {
    matches!(state, ClusterState::InArchiveRecovery | ClusterState::ShutDownInRecovery)
        || pgdata.join("standby.signal").exists()
}

/// Refuses a name that the database converts: PostgreSQL compares the bytes in the record with those of `recovery_target_name`, which is
/// not converted.
fn found_by_name(name: &str, encoding: &str) -> anyhow::Result<()> {
    if name.is_ascii() || matches!(encoding, "UTF8" | "SQL_ASCII") {
        return Ok(());
    }
    bail!(
        "cannot create a restore point named \"{name}\": the database is in {encoding}, so the name in the WAL would not be UTF-8\n\
         DETAIL: Recovery finds no such restore point by its name.\nHINT: Choose a name of ASCII characters, or set dbname in conninfo to \
         a database in UTF8."
    )
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

/// Why the point cannot be restored to from a repository, for each of which that is known.
async fn unreached(destinations: &[Destination], created: &Created) -> Vec<String> {
    let mut warnings = Vec::new();
    for Destination { repository, lineage, .. } in destinations {
        let look = async {
            let mut catalog = Catalog::load(repository, &lineage.cluster).await?;
            let found = catalog.lineages_mut().iter_mut().find(|known| known.id() == lineage.id);
            let Some(known) = found else { return anyhow::Ok(true) };
            Ok(known.reaches(created.timeline, created.end).await?)
        };
        match look.await {
            Ok(true) => {}
            Ok(false) => warnings.push(format!(
                "repository {}: no backup leads to the restore point\nHINT: Take a backup (archive-agent backup), and then create a \
                 new restore point.",
                repository.name()
            )),
            Err(error) => warnings.push(format!(
                "repository {}: could not determine whether a backup leads to the restore point: {}",
                repository.name(),
                walpoint_words::format_chain(&error)
            )),
        }
    }
    warnings
}

/// The command that restores to the target, with what selects the same cluster, and all repositories without which recovery does not
/// end.
fn command(common: &CommonArgs, selection: &Selection<StoreSettings>, target: &[String]) -> String {
    let mut words = vec!["restore-agent".to_owned(), "restore".to_owned()];
    let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);
    let config =
        selection.config.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
    if let Some(config) = config.filter(|path| path.as_os_str() != DEFAULT_PATH) {
        option("--config", config.to_string_lossy().into_owned());
    }
    // Recovery goes on past the target, or ends there, only on the word of every repository that acknowledges.
    let by_name = common.repo.iter().all(|repo| matches!(repo, RepoArgument::Name(_)));
    for repo in common.repo.iter().filter(|_| !by_name || selection.settings.ack_set().len() < 2) {
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
    use super::*;

    #[test]
    fn names_have_the_length_that_postgresql_takes() {
        assert_eq!(name("é x").unwrap(), "é x");
        assert!(name(&"n".repeat(63)).is_ok());
        assert!(name(&"é".repeat(32)).unwrap_err().contains("64"));
        assert!(name("").is_err() && name("a\nHINT: b").is_err());
    }

    #[test]
    fn a_name_that_the_database_would_convert_is_refused() {
        assert!(found_by_name("Änderung", "UTF8").is_ok() && found_by_name("release", "LATIN1").is_ok());
        let refused = found_by_name("Änderung", "LATIN1").unwrap_err().to_string();
        assert!(refused.contains("LATIN1") && refused.contains("HINT: "), "{refused}");
    }

    #[test]
    fn a_server_of_another_cluster_is_refused_and_the_primary_of_a_standby_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (SystemId(7), SystemId(8));
        assert!(same_system((one, "db"), (one, dir.path())).is_ok());
        let told = same_system((one, "db"), (other, dir.path())).unwrap_err().to_string();
        assert!(told.contains("system identifier 7, but ") && told.contains(" is of 8"), "{told}");
        assert!(follows(dir.path(), ClusterState::InArchiveRecovery));
        assert!(!follows(dir.path(), ClusterState::InProduction));
        std::fs::File::create(dir.path().join("standby.signal")).unwrap();
        assert!(follows(dir.path(), ClusterState::ShutDown));
    }

    #[test]
    fn the_command_selects_the_same() {
        let by_name = ["--target-name", "a b"].map(str::to_owned);
        let mut selection = Selection {
            cluster: "main".parse().unwrap(),
            settings: ClusterSettings::with_repositories(vec!["far".to_owned()]),
            repositories: Vec::new(),
            chosen: false,
            config: Some(DEFAULT_PATH.into()),
        };
        let mut common = CommonArgs::default();
        let of = |common: &CommonArgs, selection: &_| command(common, selection, &by_name);
        assert_eq!(of(&common, &selection), "restore-agent restore --target-name 'a b' --pgdata DIR");
        selection.config = Some("/my etc/w.toml".into());
        common.cluster = Some("main".parse().unwrap());
        common.repo = vec!["far".parse().unwrap()];
        assert_eq!(
            of(&common, &selection),
            "restore-agent restore --config '/my etc/w.toml' --repo far --cluster main --target-name 'a b' --pgdata DIR"
        );
        selection.settings = ClusterSettings::with_repositories(vec!["near".to_owned(), "far".to_owned()]);
        assert!(!of(&common, &selection).contains("--repo"), "recovery would not end without near");
        common.repo = vec!["file:///far".parse().unwrap()];
        assert!(of(&common, &selection).contains("--repo file:///far"));
    }
}
