//! What a restore reports when it is done.

use std::time::Duration;

use walpoint_base::SecretSource;
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::Failure;
use walpoint_runtime::human;
use walpoint_storage::keys::KeySource;

use super::steps::RestoreMode;
use super::{Done, Restore, RestoreArgs, owners, required};
use crate::plan;
use crate::settings;
use crate::shell;

/// What `restore --json` prints.
#[derive(Debug, serde::Serialize)]
pub(super) struct RestoreReport {
    pgdata: String,
    cluster: String,
    backup: String,
    target: String,
    timeline: u32,
    recovery_ends: String,
    files: u64,
    bytes: u64,
    reused_bytes: u64,
    removed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced: Option<String>,
    seconds: f64,
    archiving: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    replayed_unarchived: Vec<String>,
    notes: Vec<String>,
    #[serde(skip)]
    start: String,
}

impl Restore {
    /// What was done, and what a person should know.
    pub(super) fn report(&self, args: &RestoreArgs, done: &Done, took: Duration) -> RestoreReport {
        let plan = &self.planned.plan;
        let mut notes = self.planned.notes();
        notes.extend(done.removed.unlinked.iter().map(|directory| {
            format!(
                "{} was a tablespace that the backup does not have there; it is left as it is",
                directory.display()
            )
        }));
        notes.extend(self.found.missing.iter().cloned());
        notes.extend(done.kept.iter().map(|kept| {
            format!(
                "kept of the data directory that was repaired: {}; delete it when you no longer need it",
                kept.text()
            )
        }));
        notes.extend(done.kept.iter().filter_map(|kept| self.unarchived.cure(&kept.directory)));
        notes.extend(self.unarchived.notes(self.resumes));
        notes.extend(required::note(&done.raised));
        let files = settings::configuration(self.layout.pgdata());
        if let Some(names) = settings::synchronous_standbys(&files).filter(|_| !args.standby) {
            notes.push(format!(
                "synchronous_standby_names is \"{names}\", as on the original: once this server is promoted, commits wait for these \
                 standbys; to work without them: \"alter system set synchronous_standby_names = ''\" and reload"
            ));
        }
        // An interrupted run may have moved it.
        let was_moved = match self.decided.mode {
            RestoreMode::Replace { .. } => true,
            RestoreMode::New => !self.unarchived.names.is_empty(),
            RestoreMode::Delta { .. } => false,
        };
        let replaced = self.moved_aside().filter(|_| was_moved);
        if let Some(record) = replaced {
            notes.push(format!(
                "what was there lies in {}; \"restore-agent rollback --pgdata {}\" puts it back; delete it when it is no longer needed",
                record.places(),
                self.layout.pgdata().display()
            ));
            notes.extend(self.unarchived.aside(&record.aside.join("pg_wal")));
        }
        notes.extend(not_archiving(args).map(str::to_owned));
        if let Some((KeySource::Key(from) | KeySource::Passphrase(from), _)) =
            self.planned.repository.opened_by()
            && matches!(from, SecretSource::Environment(_))
        {
            notes.push(format!(
                "the repository was opened with the {from}: PostgreSQL has to be started with it too, or recovery cannot read \
                 its WAL"
            ));
        }
        if !self.layout.pgdata().join("postgresql.conf").exists() {
            notes.push(self.configuration_elsewhere());
        }
        RestoreReport {
            pgdata: self.layout.pgdata().display().to_string(),
            cluster: self.planned.cluster.to_string(),
            backup: plan.backup.id.to_string(),
            target: plan.target.to_string(),
            timeline: plan.timeline.get(),
            recovery_ends: plan::recovery_ends(plan),
            files: done.written.files,
            bytes: done.written.bytes,
            reused_bytes: done.written.reused,
            removed: done.removed.entries,
            replaced: replaced.map(|record| record.aside.display().to_string()),
            seconds: took.as_secs_f64(),
            archiving: args.resume_archiving,
            replayed_unarchived: self.unarchived.replayed.iter().map(|one| one.name.to_string()).collect(),
            notes,
            start: self.start_command(),
        }
    }
}

/// What to know of `archive_mode`, which is off unless archiving is to be resumed.
fn not_archiving(args: &RestoreArgs) -> Option<&'static str> {
    match (args.resume_archiving, args.standby) {
        (true, _) => None,
        (false, true) => Some(
            "archive_mode is off, also after a promotion; a standby that is to take over from its primary is restored with --standby \
             --resume-archiving, or gets archive_mode = on, and a restart, before it is promoted",
        ),
        (false, false) => Some(
            "archive_mode is off, so that the copy cannot write into the archive it came from; if it replaces the original for good, \
             restore with --resume-archiving",
        ),
    }
}

impl Restore {
    /// How to start the server. `pg_ctl` refuses to run as root.
    fn start_command(&self) -> String {
        let pgdata = self.layout.pgdata().to_string_lossy();
        let command = format!("pg_ctl -D {} start", shell::word(&pgdata));
        let Some(owner) = self.owner else { return command };
        match owners::name_of_user(owner.uid) {
            Some(name) => format!("runuser -u {name} -- {command}"),
            None => format!("{command}, as uid {}", owner.uid),
        }
    }

    /// What to do about a configuration that lay outside the data directory, as Debian's does.
    fn configuration_elsewhere(&self) -> String {
        let found = match self.layout.extra() {
            Some(extra) => format!("what was backed up with it lies in {}", extra.display()),
            None => "the backup took no extra_paths along".to_owned(),
        };
        format!(
            "the data directory has no postgresql.conf: the configuration lay elsewhere ({found}); start with \
             -c config_file=… -c hba_file=… -c data_directory={}",
            self.layout.pgdata().display()
        )
    }
}

pub(super) fn print(common: &CommonArgs, report: &RestoreReport) -> Result<(), Failure> {
    if common.json {
        return walpoint_runtime::output::json(report);
    }
    let mut text = format!(
        "restored backup {} of cluster {} into {}: {}, {} in {}\n",
        report.backup,
        report.cluster,
        report.pgdata,
        human::count(report.files, "file"),
        human::size(report.bytes),
        human::span(Duration::try_from_secs_f64(report.seconds).unwrap_or_default()),
    );
    if report.reused_bytes > 0 || report.removed > 0 {
        text.push_str(&format!(
            "{} were right already; removed: {}\n",
            human::size(report.reused_bytes),
            report.removed
        ));
    }
    text.push_str(&format!("recovery goes to {}\n", report.recovery_ends));
    for note in &report.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    text.push_str(&format!("start it: {}\n", report.start));
    walpoint_runtime::output::text(&text)
}
