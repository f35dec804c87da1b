//! The command `restore`: proves that the target can be reached, then writes a cluster that recovers to it.
//!
//! | module | owns |
//! |---|---|
//! | [`prepare`], [`execute`] | what is checked before the first byte is written; the order in which everything is written |
//! | [`directory`] | what may be written to, and the marker of an unfinished restore |
//! | [`running`], [`identity`] | whether a server runs there; which directory a path leads to |
//! | [`originals`] | which data directories it may be a copy of |
//! | [`workdir`] | where processes work, though a filesystem does not answer |
//! | [`target_state`], [`existing`] | what is there, asked once |
//! | [`steps`], [`refusal`] | what is done with it, decided without IO, or why nothing is |
//! | [`outside_state`], [`outside`] | the same of the directories outside: what is there, and what is decided |
//! | [`decided`] | all of it together, and what is done by that before the place is taken |
//! | [`previous`], [`rollback`], [`respelled`] | a data directory that was moved aside, its way back, and paths of its record |
//! | [`free_space`] | free space |
//! | [`tablespaces`] | where tablespaces go |
//! | [`layout`], [`places`] | where every path of the backup leads; that the places lie apart |
//! | [`owners`] | who gets the files |
//! | [`reach`], [`named`] | what root may write to for another user, and what the command line names |
//! | [`opened`] | that what was opened is what was looked at |
//! | [`beneath`] | reaching everything below the places without following a link |
//! | [`copy`], [`sync`], [`prune`], [`compare`] | the files, and that they are durable; `--delta`: what does not belong, what is right |
//! | [`forks`] | what recovery reads at a fork without asking for it |
//! | [`crate::settings`], [`command`] | the recovery settings |
//! | [`mod@bound`] | the lineage that the data directory is bound to |
//! | [`lineages`] | the cluster's other lineages |
//! | [`origin`] | what the recovery will begin with |
//! | [`as_copy`] | the settings that make a copy of it, and what to know of them |
//! | [`finish`] | label, settings, signal, and `pg_control` last |
//! | [`confined`] | a restore whose server is kept apart from the original |
//! | [`finished`], [`requested`] | a restore of which only the marker is left; what a marker keeps of the command |
//! | [`created`], [`required`] | tablespaces that replay creates; settings that it needs |
//! | [`stored`], [`apart`], [`vouched`] | which files of a `pg_wal` no archive has; whether they are another server's; what shows that they are the archive's own |
//! | [`unarchived`], [`kept`] | what of them recovery replays; what a repair keeps |
//! | [`started`] | starting the restored server, watching it recover, checking it |
//! | [`if_empty`] | a restore that a cluster which is present makes unnecessary |
//! | [`behind`] | what of them recovery would leave out |
//! | [`elsewhere`] | WAL in other repositories and lineages than the plan's |
//! | [`report`] | what is printed at the end |
//! | [`recorded`] | what is put on record as evidence |
//! | [`failure`] | what a restore that failed leaves, and what to do about it |
//! | [`stand_in`] | what stands in for a backup that turns out to be damaged |
//!
//! Until the last step the directory has no `pg_control`, so a crash anywhere leaves something that PostgreSQL refuses to
//! start; the same command begins anew and finishes.

mod apart;
mod as_copy;
mod behind;
mod beneath;
mod bound;
mod command;
mod compare;
pub(crate) mod confined;
mod copy;
mod created;
mod decided;
mod directory;
mod elsewhere;
mod execute;
mod existing;
mod failure;
mod files;
mod finish;
mod finished;
mod forks;
mod free_space;
mod gather;
pub(crate) mod identity;
mod if_empty;
mod kept;
mod layout;
mod lineages;
mod named;
mod opened;
mod origin;
mod originals;
mod outside;
mod outside_state;
pub(crate) mod owners;
mod places;
mod prepare;
mod previous;
mod prune;
mod reach;
mod recorded;
mod refusal;
mod report;
mod requested;
mod required;
mod respelled;
pub(crate) mod rollback;
mod running;
mod stand_in;
mod start;
mod started;
mod steps;
mod stored;
mod sync;
mod tablespaces;
mod target_state;
mod unarchived;
mod vouched;
pub(crate) mod workdir;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use bytesize::ByteSize;
use clap::Args;
use jiff::Timestamp;
use walpoint_base::{PgTimestamp, RecoveryTarget};
use walpoint_plan::restore::RequiredSettings;
use walpoint_repo::backup::{BackupReader, Backups};
use walpoint_runtime::args::{self, CommonArgs, Selection};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::help;
use walpoint_storage::store::StoreSettings;

use crate::plan::{self, Planned};
use crate::target::{TargetActionArgument, TargetArgs};
use crate::wal::origin::RecoveryOrigin;
use bound::BoundLineage;
use confined::Confine;
use copy::WrittenFiles;
use created::{Created, FoundLocations, LocationStates};
use decided::{Decided, DecidedOutside};
pub(crate) use directory::spelled;
use directory::{Contents, Marker};
use kept::Kept;
use layout::Layout;
use named::{Named, OutsideOptions};
use owners::{Owner, Owners};
use prepare::{lay_out, owner_of_root};
use previous::Record;
use prune::Removed;
use report::RestoreReport;
use stand_in::StandIns;
use started::{StartArgs, Started, Starting};
use steps::{RestoreMode, Step};
use tablespaces::Mapping;
use unarchived::Unarchived;

/// No heading: the last one of the target's options would count for those that have none.
const NONE: Option<&str> = None;
/// The heading of the options that say where the files go.
const PLACE: &str = "Destination";
/// The heading of the options that say what becomes of a data directory.
const EXISTING: &str = "Existing data directory";
/// The heading of the options about what the restored server does.
const RECOVERY: &str = "Recovery";

const EXAMPLES: &[(&str, &str)] = &[
    (
        "Restore a copy to the moment before a table was dropped",
        "restore-agent restore --target-time \"2026-11-21 10:14:59+01\" \\\n          --pgdata /var/lib/postgresql/17/back",
    ),
    (
        "Replace a lost server, with everything that the archive has",
        "restore-agent restore --resume-archiving --pgdata /var/lib/postgresql/17/main",
    ),
    (
        "Repair a damaged data directory in place",
        "restore-agent restore --delta --pgdata /var/lib/postgresql/17/main",
    ),
    (
        "Start a copy at another port, and check whether it is the right moment",
        "restore-agent restore --target-time \"2026-11-21 10:14:59+01\" \\\n          --start --start-port 5433 --check /etc/walpoint/moment.toml \\\n          --pgdata /var/lib/postgresql/17/back",
    ),
    (
        "Restore a standby, its tablespaces below one directory",
        "restore-agent restore --standby --tablespace-dir /fast/standby \\\n          --pgdata /var/lib/postgresql/17/standby",
    ),
];

/// Options of `restore`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Restore into this directory, which must be new or empty unless you give --delta or --replace.
    #[arg(long, value_name = "DIR", help_heading = PLACE)]
    pgdata: PathBuf,
    /// Restore a tablespace, given by its OID or its directory in the backup, into another directory. Can be repeated [default: its
    /// original directory].
    #[arg(long = "tablespace", value_name = "OLD=NEW", help_heading = PLACE)]
    tablespaces: Vec<Mapping>,
    /// Restore all other tablespaces below this directory, each into a subdirectory named by its OID.
    #[arg(long, value_name = "DIR", conflicts_with = "flatten_tablespaces", help_heading = PLACE)]
    tablespace_dir: Option<PathBuf>,
    /// Restore all other tablespaces inside the data directory.
    #[arg(long, help_heading = PLACE)]
    flatten_tablespaces: bool,
    /// Restore pg_wal here, and link to it from the data directory [default: in the data directory].
    #[arg(long, value_name = "DIR", help_heading = PLACE)]
    wal_dir: Option<PathBuf>,
    /// Restore files from outside the data directory (extra_paths) here [default: beside the data directory, with the suffix .extra].
    #[arg(long, value_name = "DIR", help_heading = PLACE)]
    extra_dir: Option<PathBuf>,
    /// Repair the data directory: keep correct blocks, write the others, and remove files that the backup does not have.
    #[arg(long, conflicts_with = "replace", group = "over", help_heading = EXISTING)]
    delta: bool,
    /// Rename the data directory and restore in its place; "restore-agent rollback" puts it back.
    #[arg(long, group = "over", help_heading = EXISTING)]
    replace: bool,
    /// Take this action when recovery reaches the target [default: pause; promote without a target].
    #[arg(long, value_name = "ACTION", help_heading = RECOVERY)]
    target_action: Option<TargetActionArgument>,
    /// Restore a standby, which keeps replaying WAL from the archive, and also streams if primary_conninfo is set.
    #[arg(long, conflicts_with = "target_action", help_heading = RECOVERY)]
    standby: bool,
    /// Let the restored server archive into the repository it came from. Use this only if the original is lost for good.
    #[arg(long, help_heading = RECOVERY)]
    resume_archiving: bool,
    /// Restore nothing and exit with 0 if the directory already holds a cluster, as an init container needs it.
    ///
    /// An interrupted restore starts over. Any other directory that is not empty is refused.
    #[arg(long, conflicts_with = "over", help_heading = EXISTING)]
    if_empty: bool,
    /// Restore even if recovery may leave out WAL that no repository has. The restore keeps the files of that WAL.
    ///
    /// This is WAL that waits in pg_wal to be archived, that comes after the end of recovery, or that cannot be read or replayed.
    #[arg(long, requires = "over", help_heading = help::OVERRIDES)]
    discard_unarchived_wal: bool,
    /// Repair the data directory even if it belongs to another cluster, or if pg_control does not show which cluster it belongs to.
    #[arg(long, requires = "delta", help_heading = help::OVERRIDES)]
    overwrite_other_cluster: bool,
    /// Treat the server as stopped although its postmaster.pid is present, as after a crash in a container.
    ///
    /// The restore still refuses if it sees the server running.
    #[arg(long, help_heading = help::OVERRIDES)]
    server_is_down: bool,
    /// Limit the rate to SIZE per second (for example 20MiB; 0 for no limit) of what is read of the backup [default: max_rate of the
    /// configuration].
    ///
    /// This is an average: single seconds may exceed it. WAL is never slowed down.
    #[arg(long, value_name = "SIZE", value_parser = args::rate, help_heading = NONE)]
    max_rate: Option<ByteSize>,
    #[command(flatten)]
    start: StartArgs,
    /// Write nothing; show the plan, and what the restore would refuse.
    #[arg(long, help_heading = NONE)]
    dry_run: bool,
    /// Run this command in a shell before anything is written. If it fails, the restore writes nothing.
    #[arg(long, value_name = "COMMAND", help_heading = NONE)]
    pre_command: Option<String>,
    /// Run this command in a shell when the cluster is complete. If it fails, the restore fails, but the cluster remains.
    #[arg(long, value_name = "COMMAND", help_heading = NONE)]
    post_command: Option<String>,
}

impl RestoreArgs {
    /// Whether PostgreSQL pauses at the target.
    fn pauses_at(&self, target: &RecoveryTarget) -> bool {
        let action = self.target_action.unwrap_or(TargetActionArgument::Pause);
        !self.standby && *target != RecoveryTarget::Latest && action == TargetActionArgument::Pause
    }
}

/// Runs the command.
pub(crate) async fn run(common: &CommonArgs, args: &RestoreArgs) -> Result<(), Failure> {
    // What is wrong with the options is said before the directory is looked at.
    args.target.request(args.target_action, args.standby, Timestamp::now(), None)?;
    let pgdata = directory::given("--pgdata", &args.pgdata)?;
    OutsideOptions::of(args)?;
    let starting = Starting::asked(args)?;
    if args.if_empty
        && let Some(found) = if_empty::present(&pgdata)?
    {
        return if_empty::print(common, &found);
    }
    let discard_wal = args.discard_unarchived_wal;
    let mode = match (args.delta, args.replace) {
        (true, _) => RestoreMode::Delta { discard_wal, overwrite_other: args.overwrite_other_cluster },
        (false, true) => RestoreMode::Replace { discard_wal },
        (false, false) => RestoreMode::New,
    };
    let configured = configured(common);
    let look = || Decided::look(&pgdata, mode, args.server_is_down);
    let mut decided = look()?.beside(originals::of(&pgdata, &configured));
    decided.log_crashed(&pgdata);
    let resolved = resolved_before(&args.target, &decided.contents);
    let mut request = args.target.request(args.target_action, args.standby, Timestamp::now(), resolved)?;
    request.archives = args.resume_archiving;
    if let ([Step::EndFinished(marker)], false) = (decided.steps(), args.dry_run) {
        return finished::end(common, args, &request.target, &pgdata, marker);
    }
    let bound = bound(common, args, &decided, &pgdata)?;
    let mut planned = bound::plan(common, &mut request, bound.as_ref()).await?;
    let (mut stand_ins, mut plans_left) = (StandIns::default(), 1..plan::ATTEMPTS);
    let mut around = Around { pre_command: args.pre_command.as_deref(), starting };
    if let Some(starting) = &mut around.starting {
        starting.find_programs(&planned).await?;
    }
    loop {
        let note = bound.as_ref().and_then(BoundLineage::note);
        planned.remarks.extend(note.filter(|note| !planned.remarks.contains(note)));
        let attempt = if args.dry_run {
            Box::pin(dry_run(common, args, planned.clone(), pgdata.clone(), decided)).await
        } else {
            Box::pin(restore(common, args, planned.clone(), pgdata.clone(), decided, &mut around)).await
        };
        let Err(failure) = attempt else { return Ok(()) };
        planned = if failure::is_superseded(&failure.error) && plans_left.next().is_some() {
            bound::plan(common, &mut request, bound.as_ref()).await?
        } else {
            stand_ins.instead(common, &request, &planned, failure).await?
        };
        // The next attempt starts over what this one left, as the same command would.
        decided = look()?.beside(originals::of(&pgdata, &configured));
    }
}

/// The lineage that the data directory is bound to, if it is.
fn bound(
    common: &CommonArgs,
    args: &RestoreArgs,
    decided: &Decided,
    pgdata: &Path,
) -> Result<Option<BoundLineage>, Failure> {
    let selection: Selection<StoreSettings> = common.select_to_read()?;
    Ok(BoundLineage::of(decided, &selection.cluster, pgdata, args.target.lineage)?)
}

/// The data directories that the configuration names. One that cannot be read is told of where it is needed.
fn configured(common: &CommonArgs) -> Vec<PathBuf> {
    let config = common.read_config::<StoreSettings>().ok().flatten();
    let clusters = config.into_iter().flat_map(|config| config.cluster.into_values());
    clusters.filter_map(|cluster| cluster.pgdata).collect()
}

/// One attempt.
async fn restore(
    common: &CommonArgs,
    args: &RestoreArgs,
    planned: Planned,
    pgdata: PathBuf,
    decided: Decided,
    around: &mut Around<'_>,
) -> Result<(), Failure> {
    let restore = Restore::prepare(common, args, planned.clone(), pgdata, decided).await?;
    let restored = restore.execute(common, args, &mut around.pre_command).await;
    let printed = match (&restored, &around.starting) {
        (Ok(report), None) => report::print(common, report),
        (Ok(report), Some(_)) => report::print_before_start(common, report),
        (Err(_), _) => Ok(()),
    };
    // Before the start: the server may recover for hours, and something may end this program in that time.
    recorded::ended(common, args, &planned, &restored).await;
    let mut report = restored?;
    let Some(starting) = &around.starting else { return printed };
    let (started, printed_after) = start(common, starting, &planned, &mut report).await;
    recorded::started(common, &planned, &report, &started).await;
    match started.map(|started| started.failure) {
        Ok(Some(error)) | Err(error) => Err(error.into()),
        Ok(None) => printed.and(printed_after),
    }
}

/// Starts what was restored, and prints what came of it; an error where it could not be started.
async fn start(
    common: &CommonArgs,
    starting: &Starting,
    planned: &Planned,
    report: &mut RestoreReport,
) -> (anyhow::Result<Started>, Result<(), Failure>) {
    let started = starting.start(common, planned, report.launch()).await;
    let not_started = "the cluster was restored, and its server was not started";
    let started = started.map_err(|error| error.context(not_started));
    if let Ok(started) = &started {
        report.add_started(started.document.clone());
    }
    let printed = report::print_started(common, report);
    (started, printed)
}

/// What an attempt does around the restore itself, and what another attempt does not do again.
struct Around<'a> {
    pre_command: Option<&'a str>,
    starting: Option<Starting>,
}

/// Prints the plan and what lies where replay creates tablespaces; fails if the restore would refuse.
async fn dry_run(
    common: &CommonArgs,
    args: &RestoreArgs,
    mut planned: Planned,
    pgdata: PathBuf,
    decided: Decided,
) -> Result<(), Failure> {
    let id = planned.plan.backup.id;
    let reader = Backups::of(&planned.files_from, &planned.cluster).open(id).await;
    let reader = reader.map_err(|e| failure::unread(id, e.into()))?;
    let summary = reader.manifest().summary.clone();
    let owners = Owners::of_backup(&summary.facts.users, &summary.facts.groups)?;
    let owner = owner_of_root(&reader, &owners).await.map_err(|e| failure::unread(id, e))?.0;
    let decided = decided.acting_for(owner);
    let created = Created::read(common, &planned, summary.facts.major).await?;
    let (tablespaces, refusal) = if created.is_empty() {
        (Vec::new(), None)
    } else {
        let layout = lay_out(args, &summary, pgdata.clone(), decided.existing.as_ref())?;
        created.describe(&created.probe(LocationStates::default(), &layout, &decided))?
    };
    // Over a finished restore there is nothing to prepare.
    let prepared = match refusal {
        Some(refusal) => Err(anyhow!(refusal)),
        None if matches!(decided.contents, Contents::Finished(_)) => Ok(()),
        None => Restore::prepare(common, args, planned.clone(), pgdata, decided).await.map(drop),
    };
    // A plan that is not to be had is not printed: another one may take its place.
    if let Err(error) = prepared.as_ref()
        && (failure::of_backup(error).is_some() || failure::is_superseded(error))
    {
        return Ok(prepared?);
    }
    planned.remarks.extend(as_copy::note(args).map(str::to_owned));
    plan::print(common, &planned, &tablespaces)?;
    Ok(prepared?)
}

/// What a relative target time meant to the interrupted restore that the same command began here.
fn resolved_before(target: &TargetArgs, contents: &Contents) -> Option<PgTimestamp> {
    let (Contents::Unfinished(marker) | Contents::Finished(marker)) = contents else { return None };
    let before = marker.relative.as_ref().filter(|before| Some(before.text.as_str()) == target.relative())?;
    let meant = PgTimestamp(before.meant);
    tracing::warn!(
        "\"{}\" was {meant} when the interrupted restore began, and means the same moment now\nHINT: To \
         use another moment, give an absolute time with --target-time \"…\".",
        before.text
    );
    Some(meant)
}

/// A restore that was found possible.
struct Restore {
    planned: Planned,
    /// What the recovery will begin with.
    origin: RecoveryOrigin,
    reader: BackupReader,
    layout: Arc<Layout>,
    owners: Owners,
    /// Who gets what the restore itself writes.
    owner: Option<Owner>,
    /// The mode that the data directory gets.
    root_mode: u32,
    marker: Marker,
    decided: Decided,
    outside: DecidedOutside,
    named: Named,
    /// How what is there will be moved aside.
    replacement: Option<Record>,
    /// Tablespaces that replay creates.
    created: Created,
    /// What lies at their locations.
    found: FoundLocations,
    /// What settings replay needs.
    required: RequiredSettings,
    /// WAL of the data directory that is repaired, and in no archive.
    unarchived: Unarchived,
    /// Whether the restored server archives.
    resumes: bool,
    /// Where the configured repositories are that are directories.
    repositories: Vec<PathBuf>,
    settings: Vec<(String, String)>,
    /// What replaces the configuration, if the server is to be kept apart from the original.
    confine: Option<Confine>,
}

impl Restore {
    /// The data directory that was moved aside for this one: by this run, or by an interrupted one.
    fn moved_aside(&self) -> Option<&Record> {
        let earlier = || self.decided.predecessor().map(|previous| &previous.record);
        self.replacement.as_ref().or_else(earlier)
    }
}

/// What a restore did.
#[derive(Debug, Default)]
struct Done {
    written: WrittenFiles,
    removed: Removed,
    kept: Option<Kept>,
    /// Settings that were raised.
    raised: Vec<(String, String)>,
}

/// Runs a command of the person who restores.
fn hook(option: &str, command: Option<&str>, pgdata: &Path) -> anyhow::Result<()> {
    let Some(command) = command else { return Ok(()) };
    let status = Command::new("sh").args(["-c", command]).env("WALPOINT_PGDATA", pgdata).status();
    let status = status.with_context(|| format!("{option} {command:?} cannot be run"))?;
    if !status.success() {
        bail!("{option} {command:?} failed with {status}");
    }
    Ok(())
}
