//! What a restore reports when it is done.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::diagnostic::shown;
use walpoint_base::{
    BackupId, ClusterName, Diagnostic, LineageId, RecoveryTarget, SecretSource, SegmentName, TimelineId,
};
use walpoint_repo::lineage::BINDING;
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::Failure;
use walpoint_runtime::human;
use walpoint_storage::keys::KeySource;
use walpoint_storage::store::StoreSettings;

use super::if_empty::PresentCluster;
use super::start::{self, ConfigurationFiles};
use super::started::{self, LaunchPlan, StartedDocument};
use super::steps::RestoreMode;
use super::{Done, Restore, RestoreArgs, as_copy, origin, required};
use crate::plan::{self, CommandLine, PlanReport};
use crate::{settings, shell};

/// What `restore-agent restore --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum RestoreDocument<'a> {
    /// What was restored.
    Restored(&'a RestoreReport),
    /// With `--if-empty`, what is there already.
    Present(&'a PresentCluster),
    /// With `--dry-run` the plan; if the target cannot be reached, why.
    #[expect(dead_code, reason = "the functions that print it for plan print it here too")]
    Plan(PlanReport),
}

walpoint_runtime::document!(RestoreDocument<'_>, "restore-agent restore");

/// What was restored.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Restored")]
pub(super) struct RestoreReport {
    /// The outcome.
    result: RestoreResult,
    /// The data directory.
    pgdata: String,
    /// The cluster.
    cluster: ClusterName,
    /// The lineage that recovery is in, and that the copy archives into if it archives.
    lineage: LineageId,
    /// The backup that was restored.
    backup: BackupId,
    /// The target, in words.
    target: String,
    /// The timeline that recovery follows.
    timeline: TimelineId,
    /// Where recovery ends, in words.
    recovery_end: String,
    /// The number of files that were written.
    file_count: u64,
    /// The size of what was written.
    written_bytes: u64,
    /// The size of what was already up to date.
    reused_bytes: u64,
    /// The number of files, links and directories that the backup does not have and that were removed.
    removed_count: u64,
    /// The new path of the previous data directory. Absent if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_pgdata: Option<String>,
    /// How long it took.
    seconds: f64,
    /// Whether the copy archives.
    archiving: bool,
    /// Segments that no archive has and that recovery replays from the `pg_wal` of the directory that was repaired or replaced. Absent if
    /// there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unarchived_segments: Vec<SegmentName>,
    /// Notes for the operator, one sentence each.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    notes: Vec<String>,
    /// The command that starts the server.
    start_command: String,
    /// With `--start`, the server that was started. Absent without, and if it could not be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<StartedDocument>,
    /// What it is started with.
    #[serde(skip)]
    launch: LaunchPlan,
    /// Whether recovery pauses at the target.
    #[serde(skip)]
    pauses: bool,
}

impl RestoreReport {
    /// How long it took.
    pub(super) fn seconds(&self) -> f64 {
        self.seconds
    }

    /// What its server is started with.
    pub(super) fn launch(&self) -> &LaunchPlan {
        &self.launch
    }

    /// Adds the server that was started.
    pub(super) fn add_started(&mut self, started: StartedDocument) {
        self.started = Some(started);
    }

    /// Where it is, and how much was written.
    pub(super) fn place(&self) -> String {
        let (files, size) = (human::count(self.file_count, "file"), human::size(self.written_bytes));
        format!("{}, {files} in {size}", self.pgdata)
    }

    /// The number of files that were written, and their size.
    pub(super) fn written(&self) -> (u64, u64) {
        (self.file_count, self.written_bytes)
    }
}

/// The outcome of a restore that was not refused.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum RestoreResult {
    /// The cluster was restored.
    Restored,
}

impl Restore {
    /// What was done, and what a person should know.
    pub(super) fn report(
        &self,
        common: &CommonArgs,
        args: &RestoreArgs,
        done: &Done,
        took: Duration,
    ) -> RestoreReport {
        let plan = &self.planned.plan;
        let mut notes = self.planned.notes(&CommandLine::given().over());
        notes.extend(done.removed.unlinked.iter().map(|directory| {
            format!(
                "{} was a tablespace that the backup does not have there; it is left as it is",
                directory.display()
            )
        }));
        notes.extend(self.found.missing.iter().cloned());
        notes.extend(done.kept.iter().map(|kept| {
            format!(
                "kept of the data directory that was repaired: {}\nHINT: Delete it when you no longer need it.",
                kept.text()
            )
        }));
        notes.extend(done.kept.iter().filter_map(|kept| self.unarchived.cure(&kept.directory)));
        notes.extend(self.unarchived.notes(self.resumes));
        notes.extend(required::note(&done.raised));
        let pgdata = self.layout.pgdata();
        let files = self.configuration_files();
        let (pause, archiving) = self.of_configuration(&files, args, &mut notes);
        // An interrupted run may have moved it.
        let was_moved = match self.decided.mode {
            RestoreMode::Replace { .. } => true,
            RestoreMode::New => !self.unarchived.names.is_empty(),
            RestoreMode::Delta { .. } => false,
        };
        let replaced = self.moved_aside().filter(|_| was_moved);
        if let Some(record) = replaced {
            notes.push(format!(
                "the previous data is in {}\nHINT: To put it back, run \"restore-agent rollback --pgdata \
                 {}\". Delete it when you no longer need it.",
                record.places(),
                shell::word(&pgdata.to_string_lossy())
            ));
            notes.extend(self.unarchived.aside(&record.aside.join("pg_wal")));
        }
        notes.extend(self.of_archiving(common, args));
        if let Some((KeySource::Key(from) | KeySource::Passphrase(from), _)) =
            self.planned.repository.opened_by()
            && matches!(from, SecretSource::Environment(_))
        {
            notes.push(format!(
                "the repository was opened with the {from}\nHINT: Start PostgreSQL with it too, or recovery cannot read its \
                 WAL."
            ));
        }
        let elsewhere = !pgdata.join("postgresql.conf").exists();
        notes.extend(elsewhere.then(|| self.configuration_elsewhere(&files)));
        RestoreReport {
            result: RestoreResult::Restored,
            pgdata: self.layout.pgdata().display().to_string(),
            cluster: self.planned.cluster.clone(),
            lineage: plan.lineage,
            backup: plan.backup.id,
            target: plan.target.to_string(),
            timeline: plan.timeline,
            recovery_end: plan::recovery_ends(plan),
            file_count: done.written.files,
            written_bytes: done.written.bytes,
            reused_bytes: done.written.reused,
            removed_count: done.removed.entries,
            previous_pgdata: replaced.map(|record| record.aside.display().to_string()),
            seconds: took.as_secs_f64(),
            archiving,
            unarchived_segments: self.unarchived.replayed.iter().map(|one| one.name).collect(),
            notes,
            start_command: files.command(pgdata, self.owner, None),
            pauses: pause == Pause::Pauses,
            started: None,
            launch: self.launch(&files, args, pause),
        }
    }
}

/// What to know where recovery was to pause, and `hot_standby` is off (`validateRecoveryParameters` of PostgreSQL).
const SHUTS_DOWN: &str = "hot_standby is off, as on the original: at the target, PostgreSQL shuts down instead of pausing\nHINT: To \
    pause there and query the data, add -c hot_standby=on to the options of the start command. To recover and accept writes, restore \
    with --target-action promote.";

/// What to know where `--start` changes that.
const SWITCHED_ON: &str = "hot_standby is off, as on the original: --start starts the server with -c hot_standby=on, so that it pauses at \
    the target instead of shutting down";

/// What recovery does at the target, under a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    /// It pauses.
    Pauses,
    /// It was to pause, and the server shuts down: it takes no sessions during recovery.
    ShutsDown,
    /// It was not to pause.
    No {
        /// Whether the server takes sessions during recovery.
        takes_sessions: bool,
    },
}

/// What to know where the configuration in a data directory sets `data_directory` to another one.
fn starts_in(data: &Path, pgdata: &Path) -> String {
    format!(
        "the configuration sets data_directory to {}: unless the start command overrides that, as the one printed here does, \
         PostgreSQL starts there and not in {}\nHINT: Take data_directory out of the configuration before you start this server in \
         any other way.",
        shown(&data.to_string_lossy()),
        pgdata.display()
    )
}

/// What to know of configuration files that are links out of the data directory. `is_in_place`: what these lead to is this server's own.
fn lead_out(mut links: Vec<(&str, PathBuf)>, is_in_place: bool) -> Option<String> {
    links.retain(|(_, target)| !(is_in_place && target.exists()));
    let link = |(name, target): &(&str, PathBuf)| {
        let missing = if target.exists() { "" } else { " (missing)" };
        format!("{name} to {}{missing}", shown(&target.to_string_lossy()))
    };
    let links: Vec<String> = links.iter().map(link).collect();
    (!links.is_empty()).then(|| {
        format!(
            "configuration files of the backup are links out of the data directory, and lead to files of this machine: {}\nHINT: \
             Check these files before you start the server. The backup does not have them, unless extra_paths named their directory.",
            links.join(", ")
        )
    })
}

/// What to know of standbys for which commits wait.
fn waits_for_standbys(configuration: &str) -> Option<String> {
    let names = settings::synchronous_standbys(configuration)?;
    Some(format!(
        "synchronous_standby_names is \"{}\", as on the original: once this server is promoted, commits wait for \
         these standbys\nHINT: To work without them: \"alter system set synchronous_standby_names = ''\" and reload.",
        shown(names)
    ))
}

/// What to know of a copy that may be any of several servers.
fn unbound(pgdata: &Path) -> String {
    format!(
        "the data directory is bound to none of these lineages: if this server is switched to archiving, nothing of it is stored until \
         {} names one\nHINT: To let it replace one of the servers, restore with --lineage. To let it archive by itself, run \
         \"archive-agent init --new-lineage\" on it.",
        pgdata.join(BINDING).display()
    )
}

/// What to know of `expire` before a server is promoted behind a target: the backup and the WAL lead to a timeline that is in no
/// repository yet.
fn not_known_in_use(args: &RestoreArgs, backup: BackupId, target: &RecoveryTarget) -> Option<String> {
    let begins = args.resume_archiving && !args.standby && *target != RecoveryTarget::Latest;
    begins.then(|| {
        format!(
            "until the new timeline has archived its history, at the promotion, expire does not know that backup {backup} is in \
             use\nHINT: Do not run \"archive-agent expire\" before that, unless the retention's window reaches back behind the backup."
        )
    })
}

impl Restore {
    /// The data directory that was backed up.
    fn original(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.reader.manifest().summary.facts.pgdata.0))
    }

    /// The configuration files that PostgreSQL does not find by itself.
    pub(super) fn configuration_files(&self) -> ConfigurationFiles {
        let major = self.reader.manifest().summary.facts.major;
        ConfigurationFiles::find(&self.layout, self.original(), major.get())
    }

    /// Notes what to know of the restored configuration; what recovery does at the target under it, and whether its server archives.
    fn of_configuration(
        &self,
        files: &ConfigurationFiles,
        args: &RestoreArgs,
        notes: &mut Vec<String>,
    ) -> (Pause, bool) {
        let pgdata = self.layout.pgdata();
        let main = files.main.clone().unwrap_or_else(|| pgdata.join("postgresql.conf"));
        let configuration = settings::configuration_of(&main, pgdata);
        let takes_sessions = !settings::is_off(&configuration, "hot_standby");
        let pause = match (args.pauses_at(&self.planned.plan.target), takes_sessions) {
            (true, false) => Pause::ShutsDown,
            (true, true) => Pause::Pauses,
            (false, takes_sessions) => Pause::No { takes_sessions },
        };
        notes.extend(waits_for_standbys(&configuration).filter(|_| !args.standby));
        if args.resume_archiving {
            notes.extend(as_copy::left(&configuration).into_iter().map(str::to_owned));
        }
        let shuts_down = if args.start.start { SWITCHED_ON } else { SHUTS_DOWN };
        notes.extend((pause == Pause::ShutsDown).then(|| shuts_down.to_owned()));
        notes.extend(
            files.data.as_deref().filter(|_| files.main.is_none()).map(|data| starts_in(data, pgdata)),
        );
        notes.extend(lead_out(start::links_out(pgdata), pgdata == self.original()));
        (pause, args.resume_archiving && as_copy::archives(&configuration))
    }

    /// What the server is started with.
    fn launch(&self, files: &ConfigurationFiles, args: &RestoreArgs, pause: Pause) -> LaunchPlan {
        let (pgdata, port) = (self.layout.pgdata(), args.start.port());
        let mut options = files.options(pgdata, port.as_deref());
        if pause == Pause::ShutsDown {
            options.extend(["-c", "hot_standby=on"].map(str::to_owned));
        }
        let port = port.as_deref();
        LaunchPlan {
            pgdata: pgdata.to_owned(),
            owner: self.owner,
            options,
            is_standby: args.standby,
            pauses: !matches!(pause, Pause::No { .. }),
            takes_sessions: pause != Pause::No { takes_sessions: false },
            start_command: files.command(pgdata, self.owner, port),
            beside_command: files.command(pgdata, self.owner, Some("PORT")),
        }
    }

    /// What to know of what this server archives, and where.
    fn of_archiving(&self, common: &CommonArgs, args: &RestoreArgs) -> Vec<String> {
        let plan = &self.planned.plan;
        let unbound = origin::is_anyones(plan).then(|| unbound(self.layout.pgdata()));
        let notes = as_copy::note(args).map(str::to_owned).or_else(|| self.archives_elsewhere(common));
        notes.into_iter().chain(unbound).chain(not_known_in_use(args, plan.backup.id, &plan.target)).collect()
    }

    /// What to do so that this directory is archived, where the configuration names another one.
    fn archives_elsewhere(&self, common: &CommonArgs) -> Option<String> {
        let config = common.read_config::<StoreSettings>().ok().flatten()?;
        let named = config.cluster.get(&self.planned.cluster)?.pgdata.as_ref()?;
        let pgdata = self.layout.pgdata();
        let is_it = named == pgdata || named.canonicalize().is_ok_and(|named| named == *pgdata);
        (!is_it).then(|| {
            format!(
                "the configuration names {} as the data directory of cluster {}, so that nothing of {} is archived\nHINT: Set \
                 pgdata, and conninfo if need be, and restart the daemon before you start PostgreSQL.",
                named.display(),
                self.planned.cluster,
                pgdata.display()
            )
        })
    }

    /// What to do about a configuration that lay outside the data directory, as Debian's does.
    fn configuration_elsewhere(&self, files: &ConfigurationFiles) -> String {
        if let Some(main) = &files.main {
            let main = main.display();
            return format!(
                "the data directory has no postgresql.conf: the configuration lay elsewhere, and was \
                 restored as {main}\nHINT: Check it for paths of the original machine. The command that \
                 starts the server names this file."
            );
        }
        let found = match self.layout.extra() {
            Some(extra) => format!("none, or more than one, was found in {}", extra.display()),
            None => "the backup contains no extra_paths".to_owned(),
        };
        format!(
            "the data directory has no postgresql.conf: the configuration lay elsewhere ({found})\nHINT: Name the files on \
             pg_ctl's command line, with -o \"-c config_file=FILE -c hba_file=FILE -c ident_file=FILE -c data_directory={}\".",
            self.layout.pgdata().display()
        )
    }
}

pub(super) fn print(common: &CommonArgs, report: &RestoreReport) -> Result<(), Failure> {
    match common.json {
        true => walpoint_runtime::output::json(&RestoreDocument::Restored(report)),
        false => walpoint_runtime::output::text(&text(report, false)),
    }
}

/// What is said before the server is started; in JSON everything comes at the end.
pub(super) fn print_before_start(common: &CommonArgs, report: &RestoreReport) -> Result<(), Failure> {
    if common.json {
        return Ok(());
    }
    walpoint_runtime::output::text(&text(report, true))
}

/// What is said when that was done.
pub(super) fn print_started(common: &CommonArgs, report: &RestoreReport) -> Result<(), Failure> {
    match &report.started {
        _ if common.json => print(common, report),
        Some(started) => walpoint_runtime::output::text(&started::text(started)),
        None => Ok(()),
    }
}

/// The report for a person. `is_started`: the server is started next.
fn text(report: &RestoreReport, is_started: bool) -> String {
    let mut text = format!(
        "restored backup {} of cluster {} into {}: {}, {} in {}\n",
        report.backup,
        report.cluster,
        report.pgdata,
        human::count(report.file_count, "file"),
        human::size(report.written_bytes),
        human::span(Duration::try_from_secs_f64(report.seconds).unwrap_or_default()),
    );
    if report.reused_bytes > 0 || report.removed_count > 0 {
        text.push_str(&format!(
            "{} already up to date; removed: {}\n",
            human::size(report.reused_bytes),
            report.removed_count
        ));
    }
    text.push_str(&format!("recovery target: {}\n", report.recovery_end));
    if report.archiving {
        text.push_str(&format!("archives into: lineage {}\n", report.lineage));
    }
    for note in &report.notes {
        text.push_str(&format!("{}\n", human::hanging("note: ", note)));
    }
    if is_started {
        return text;
    }
    text.push_str(&format!("start it: {}\n", report.start_command));
    if !report.archiving {
        text.push_str(&format!(
            "on the original's machine, at another port: {}\n",
            report.launch.beside_command
        ));
    }
    if report.pauses {
        text.push_str(
            "until select pg_is_wal_replay_paused() returns t, recovery has not reached the \
            target and queries show older data\n",
        );
    }
    text
}
