//! `archive-agent check`: whether everything that archiving and backups need works, tried and not assumed. A backup begins
//! with the same look.
//!
//! | module | owns |
//! |---|---|
//! | [`report`] | a line for each thing, with what to do |
//! | [`source`] | the data directory and its server |
//! | [`visible`] | whether all that the server has is seen |
//! | [`whose_files`] | the proof that they belong together |
//! | [`remote`] | a server whose data directory is not read |
//! | [`repository`] | the repositories |
//! | `recovery` | recovery settings that outlived a restore |
//! | `synchronous` | what a commit waits for, where the stream may confirm it |
//! | [`archiving`] | whether what PostgreSQL archives arrives |

pub(crate) mod archiving;
mod recovery;
pub(crate) mod remote;
pub(crate) mod report;
pub(crate) mod repository;
pub(crate) mod source;
mod standbys;
mod synchronous;
pub(crate) mod visible;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::socket::{HealthProblem, ProblemKind};
use walpoint_base::{ClusterName, Diagnostic};
use walpoint_pg::control::{CONTROL_FILE, ControlFile};
use walpoint_pg::server::{Server, ServerIdentity};
use walpoint_runtime::args::{self, CommonArgs, Selection};
use walpoint_runtime::exit::{FINDINGS, Failure};
use walpoint_runtime::progress::ByteProgress;
use walpoint_runtime::{help, human, output};
use walpoint_storage::store::StoreSettings;

use self::remote::{RemoteSource, examine_remote, why_remote};
use self::report::{CheckReport, Grade, Line};
use self::repository::Destination;
use crate::health::CONFIGURATION;
use crate::selection::pgdata;
use crate::wal::bypass::Watch;
use crate::wal::disk::{self, DiskError};
use crate::wal::dropped;
use crate::wal::socket::check_place;
use crate::wal::upload::Uploader;
use crate::walk::{BackupRoots, Entered, Measure};
pub(crate) use crate::whose_files;
use crate::{config, health};

/// The heading of options about the segment that is switched.
const WAL: &str = "Switching WAL";

const EXAMPLES: &[(&str, &str)] = &[
    ("Test everything, and that a segment arrives in each repository", "archive-agent check"),
    ("From monitoring, without a new WAL segment each time", "archive-agent check --no-switch --json"),
    ("Test one repository, which is slow", "archive-agent check --repo far --timeout 5m"),
];

/// Options of `check`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct CheckArgs {
    /// Wait at most this long, such as 90s or "1h 30m", for the switched segment to arrive in the repositories.
    #[arg(long, value_name = "SPAN", default_value = "1m", value_parser = args::span, help_heading = WAL)]
    timeout: Duration,
    /// Do not switch to a new WAL segment. The check then does not test that a segment arrives.
    #[arg(long, help_heading = WAL)]
    no_switch: bool,
    /// Check what a backup sent by the server (backup --remote) needs [default: if the data directory is not visible here].
    #[arg(long)]
    remote: bool,
}

/// What `archive-agent check --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct CheckDocument<'a> {
    /// The cluster.
    cluster: &'a ClusterName,
    /// The number of checks that failed.
    failed_count: usize,
    /// The number of checks with a warning.
    warning_count: usize,
    /// The checks, in the order in which they were made.
    checks: &'a [Line],
}

walpoint_runtime::document!(CheckDocument<'_>, "archive-agent check");

/// A cluster and its repositories, after a look at each.
#[derive(Debug)]
pub(crate) struct Examined {
    /// A session on the server of the data directory.
    pub(crate) server: Server,
    /// Everything else.
    pub(crate) source: LocalSource,
}

/// A cluster whose data directory is read, and its repositories.
#[derive(Debug)]
pub(crate) struct LocalSource {
    /// The data directory.
    pub(crate) pgdata: PathBuf,
    /// Its `pg_control`.
    pub(crate) control: ControlFile,
    /// What the server says about itself.
    pub(crate) identity: ServerIdentity,
    /// The repositories that are fine.
    pub(crate) destinations: Vec<Destination>,
    /// What a backup reads.
    pub(crate) roots: BackupRoots,
    /// How much that is.
    pub(crate) measure: Measure,
    /// Whether PostgreSQL is set up to archive, and its last attempt did not fail.
    pub(crate) archives: bool,
}

/// Looks at everything that a backup needs and that can be looked at without one. `None` if something is so wrong that the
/// rest cannot be looked at; what is wrong is in the report either way. `full`: the backup would store everything.
pub(crate) async fn examine(
    report: &mut CheckReport,
    selection: &Selection<StoreSettings>,
    time_limit: Duration,
    full: bool,
) -> Result<Option<Examined>, Failure> {
    let settings = &selection.settings;
    let pgdata = pgdata(selection)?.to_owned();
    let control = source::data_directory(report, &pgdata);
    let Some(control) = control else { return Ok(None) };
    let roots = BackupRoots::new(&pgdata, &control, &settings.extra_paths);
    let measured = measure(report, &roots, &pgdata, &settings.extra_paths).await;
    let measure = measured.as_ref().map(|(measure, _)| *measure);
    let connected = source::server(report, settings, &pgdata, &control).await;
    let destinations = repository::destinations(report, selection, (&control).into()).await;
    places(report, &destinations, &pgdata);
    repository::identity(report, &destinations, &pgdata, &control).await;
    for destination in &destinations {
        repository::space(report, destination, measure.map_or(0, |measure| measure.bytes), full).await;
    }
    let Some((mut server, identity)) = connected else { return Ok(None) };
    if let Some((_, entered)) = &measured {
        visible::examine(report, &mut server, &roots, entered).await;
    }
    source::rights(report, &mut server, identity.in_recovery).await;
    source::configuration(report, &mut server, &identity, &pgdata, settings).await;
    standbys::bindings(report, &mut server, &pgdata).await;
    recovery::settings(report, &mut server).await;
    source::page_checksums(report, &identity);
    let archives = archiving::settings(report, &mut server, &identity).await
        && archiving::archiver(report, &mut server, time_limit).await;
    let Some(measure) = measure else { return Ok(None) };
    let source = LocalSource { pgdata, control, identity, destinations, roots, measure, archives };
    Ok(Some(Examined { server, source }))
}

/// That all of it can be read, and how much it is.
async fn measure(
    report: &mut CheckReport,
    roots: &BackupRoots,
    pgdata: &Path,
    extra_paths: &[PathBuf],
) -> Option<(Measure, Entered)> {
    let what = "files";
    for extra in extra_paths {
        if !extra.is_absolute() || inside(extra, pgdata) {
            let found = format!("{} of extra_paths is relative, or in the data directory", extra.display());
            report.failed(what, found, "Set extra_paths to absolute paths outside pgdata.");
            return None;
        }
    }
    let walked = roots.clone();
    let measured = tokio::task::spawn_blocking(move || walked.measure()).await;
    let measured = measured.map_err(anyhow::Error::from).and_then(|measured| measured);
    let (measure, entered) = report.take(what, measured)?;
    report.ok(
        what,
        format!("{}, {}, all readable", human::count(measure.files, "file"), human::size(measure.bytes)),
    );
    Some((measure, entered))
}

/// A repository inside the data directory would be in its own backups, and lost with it; one around it is lost with it, too.
pub(crate) fn places(report: &mut CheckReport, destinations: &[Destination], pgdata: &Path) {
    for destination in destinations {
        let Some(directory) = &destination.directory else { continue };
        let found = match (inside(directory, pgdata), inside(pgdata, directory)) {
            (true, _) => format!("it lies inside the data directory {}", pgdata.display()),
            (false, true) => format!("it contains the data directory {}", pgdata.display()),
            (false, false) => continue,
        };
        report.failed(
            format!("repository {}", destination.name()),
            found,
            "Move it elsewhere, preferably to another machine.",
        );
    }
}

/// Whether a path lies in a directory, links resolved.
pub(crate) fn inside(path: &Path, directory: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    real(path).starts_with(real(directory))
}

/// Runs the command.
pub(crate) async fn run(common: &CommonArgs, args: &CheckArgs) -> Result<(), Failure> {
    let selection = common.select::<StoreSettings>()?;
    let waiting = ByteProgress::waiting("checking", common.show_progress());
    let mut report = CheckReport::default();
    let limit = args.timeout;
    if config::has_password(&selection.settings) {
        report.warning("configuration", config::PASSWORD, config::PASSWORD_HINT);
    }
    if let Some(silent) = silent(&selection, args.remote).await {
        report.failed(
            "data directory",
            format!("{silent}\nDETAIL: Nothing of this cluster is archived or backed up until it answers."),
            "",
        );
        daemon(&mut report, &selection, false).await;
    } else if let Some(why) = why_remote(args.remote, &selection) {
        tracing::info!("checking only the server, {why}");
        if let Some(mut examined) = examine_remote(&mut report, &selection, limit, false).await {
            repository::latest(&mut report, &examined.destinations, &examined.identity).await;
            repository::usable(&mut report, &examined.destinations).await;
            repository::sound(&mut report, &examined.destinations).await;
            repository::unreadable(&mut report, &examined.destinations).await;
            arrives(&mut report, &mut examined, args, limit).await;
        }
    } else if let Some(examined) = examine(&mut report, &selection, limit, false).await? {
        let gap_told = gap(&mut report, &selection, &examined.source.pgdata).await;
        bypass(&mut report, &selection, &examined.source.pgdata).await;
        daemon(&mut report, &selection, gap_told).await;
        let Examined { mut server, source: LocalSource { identity, destinations, pgdata, archives, .. } } =
            examined;
        let cluster = (&selection.cluster, &selection.settings);
        synchronous::settings(&mut report, &mut server, &identity, cluster).await;
        repository::latest(&mut report, &destinations, &identity).await;
        if !gap_told {
            repository::reach(&mut report, &destinations, &identity, &pgdata).await;
        }
        repository::usable(&mut report, &destinations).await;
        repository::sound(&mut report, &destinations).await;
        repository::unreadable(&mut report, &destinations).await;
        let mut examined = RemoteSource { server, identity, destinations, pgdata: Some(pgdata), archives };
        arrives(&mut report, &mut examined, args, limit).await;
    }
    waiting.end();
    let (failed, warnings) = (report.count(Grade::Failed), report.count(Grade::Warning));
    if common.json {
        output::json(&CheckDocument {
            cluster: &selection.cluster,
            failed_count: failed,
            warning_count: warnings,
            checks: report.lines(),
        })?;
    } else {
        output::text(&report.text())?;
    }
    match failed {
        0 => Ok(()),
        _ => Err(Failure {
            status: FINDINGS,
            error: anyhow::anyhow!("{failed} of {} checks failed", report.lines().len()),
        }),
    }
}

/// Why a data directory that is to be read cannot be looked at, if it hangs.
async fn silent(selection: &Selection<StoreSettings>, remote: bool) -> Option<DiskError> {
    let pgdata = selection.settings.pgdata.as_deref().filter(|_| !remote)?;
    let directory = pgdata.to_owned();
    // It may as well be missing.
    disk::look(pgdata, move || directory.join(CONTROL_FILE).exists()).await.err()
}

/// Reports WAL that recovery from the newest backups cannot pass, and that is known here: it was dropped, or archived although
/// damaged. Whether there is any.
async fn gap(report: &mut CheckReport, selection: &Selection<StoreSettings>, pgdata: &Path) -> bool {
    let what = "recovery";
    let look = report.take(what, dropped::look(&Uploader::new(selection, pgdata)).await);
    let Some(gap) = look.flatten() else { return false };
    report.failed(
        what,
        gap.to_string(),
        "Take a backup now (archive-agent backup): until then, nothing after that WAL can be recovered.",
    );
    true
}

/// Reports finished WAL that PostgreSQL does not send to the repositories, though it reports no failure.
async fn bypass(report: &mut CheckReport, selection: &Selection<StoreSettings>, pgdata: &Path) {
    let what = "archived WAL";
    // A repository that does not have to acknowledge may not have it yet.
    if selection.chosen {
        return;
    }
    if let Some(bypass) =
        report.take(what, Watch::once().look(&Uploader::new(selection, pgdata)).await).flatten()
    {
        report.failed(what, bypass.found(), bypass.advice());
    }
}

/// Whether a daemon answers, and what it fails at, except a gap of this cluster that was reported already. Archiving goes on without
/// one, only slower.
async fn daemon(report: &mut CheckReport, selection: &Selection<StoreSettings>, gap_told: bool) {
    let socket = selection.settings.push_socket(&selection.cluster);
    let shown = socket.display();
    match health::ask(&socket) {
        Ok(reply) => {
            report.ok("daemon", format!("answers on {shown}"));
            let is_told = |problem: &HealthProblem| {
                gap_told && problem.kind == ProblemKind::Gap && problem.cluster == selection.cluster
            };
            reply
                .problems
                .iter()
                .filter(|problem| !is_told(problem))
                .for_each(|problem| fails(report, problem));
        }
        Err(health::NoAnswer::Absent(error)) => match place_of(&socket).await {
            Ok(()) => report.warning(
                "daemon",
                format!("no process listens on {shown}: {error}"),
                "Start \"archive-agent run\": without it, each segment is archived by a separate process.",
            ),
            Err(why) => report.failed("daemon", format!("none can listen on {shown}: {why:#}"), ""),
        },
        Err(error @ health::NoAnswer::Silent { .. }) => report.failed(
            "daemon",
            error.to_string(),
            "Restart \"archive-agent run\": until then, each segment waits for it before a separate \
             process archives it.",
        ),
    }
}

/// Whether a daemon that this user starts would listen there.
async fn place_of(socket: &Path) -> anyhow::Result<()> {
    let (place, user) = (socket.to_owned(), rustix::process::geteuid().as_raw());
    disk::look(socket, move || check_place(&place, user)).await?
}

/// Reports what a daemon fails at: what does not pass by itself as a failure.
fn fails(report: &mut CheckReport, problem: &HealthProblem) {
    let found = Diagnostic::new(problem.to_string());
    match problem.kind {
        ProblemKind::SplitBrain => report.failed("daemon", found, ""),
        // It is read again when the daemon is asked to.
        _ if problem.task == CONFIGURATION => report.warning("daemon", found, ""),
        ProblemKind::Gap | ProblemKind::Other => {
            let found = found.detail("The daemon retries by itself; its log has more.");
            report.warning("daemon", found, "");
        }
    }
}

/// Switches a segment and sees it arrive.
async fn arrives(report: &mut CheckReport, examined: &mut RemoteSource, args: &CheckArgs, limit: Duration) {
    let what = "archiving";
    if examined.archives && !examined.identity.in_recovery {
        archiving::timeout(report, &mut examined.server).await;
    }
    if args.no_switch {
        return;
    }
    if examined.identity.in_recovery {
        return report.warning(
            what,
            "not tried: a standby cannot switch segments",
            "Run check on the primary too.",
        );
    }
    if !examined.archives || !examined.destinations.iter().any(|destination| destination.acknowledges) {
        return report.warning(what, "not tried", "Fix what failed above first.");
    }
    let RemoteSource { server, identity, destinations, pgdata, .. } = examined;
    let arrival = archiving::arrival(server, identity, destinations, pgdata.as_deref(), limit).await;
    if let Some((segment, took)) = report.take(what, arrival) {
        report.ok(what, format!("segment {segment} was switched and stored in {}", human::span(took)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_daemon_fails_at_is_graded_by_its_kind() {
        for (kind, text, grade) in [
            (ProblemKind::SplitBrain, "failing", Grade::Failed),
            (ProblemKind::Gap, "failing", Grade::Warning),
            (ProblemKind::Other, "split brain", Grade::Warning),
        ] {
            let mut report = CheckReport::default();
            let (cluster, task) = ("main".parse().unwrap(), "queue".to_owned());
            fails(&mut report, &HealthProblem { cluster, task, kind, text: text.to_owned() });
            assert_eq!((report.count(grade), report.lines().len()), (1, 1), "{kind:?}");
        }
    }
}
