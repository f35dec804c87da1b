//! The command `rollback`: puts a data directory back that `restore --replace` moved aside.
//!
//! What is there now goes aside in its turn, so nothing is deleted and the same command undoes this one. A crash leaves no
//! data directory in the place until the same command was run again.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::TimelineId;
use walpoint_plan::restore::Signal;
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::Failure;
use walpoint_runtime::{help, output};

use super::directory;
use super::existing::{self, Existing};
use super::kept::{self, Kept};
use super::originals;
use super::outside_state::UsedDirectory;
use super::previous::{self, Immovable, Record, Succession};
use super::reach;
use super::refusal::OutsideRefusal;

const EXAMPLES: &[(&str, &str)] = &[(
    "Put back the data directory from before the restore",
    "restore-agent rollback --pgdata /var/lib/postgresql/17/main",
)];

/// Options of `rollback`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct RollbackArgs {
    /// Put back the data directory that was at this path before the restore.
    #[arg(long, value_name = "DIR")]
    pgdata: PathBuf,
    /// Treat the server as stopped although its postmaster.pid is present, as after a crash in a container.
    #[arg(long, help_heading = help::OVERRIDES)]
    server_is_down: bool,
}

/// What `restore-agent rollback --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct RollbackDocument {
    /// The data directory.
    pgdata: String,
    /// The path from which the previous data directory came back. Absent if nothing was left to put back.
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_pgdata: Option<String>,
    /// The new path of the data directory that was there before. Absent if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced_pgdata: Option<String>,
    /// The paths to which `restore --delta` moved what it kept of the data directory. Absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kept_paths: Vec<String>,
    /// What that is and where, for a person.
    #[serde(skip)]
    kept: Vec<String>,
    /// `replaced_pgdata` with the directories outside it.
    #[serde(skip)]
    places: String,
}

walpoint_runtime::document!(RollbackDocument, "restore-agent rollback");

/// Runs the command.
pub(crate) fn run(common: &CommonArgs, args: &RollbackArgs) -> Result<(), Failure> {
    let pgdata = directory::given("--pgdata", &args.pgdata)?;
    let report = roll_back(&pgdata, args.server_is_down)?;
    if common.json {
        return output::json(&report);
    }
    let mut text = match &report.previous_pgdata {
        Some(aside) => format!("{} was put back from {aside}\n", report.pgdata),
        None => format!("{} is in place; there was nothing left to put back\n", report.pgdata),
    };
    if report.replaced_pgdata.is_some() {
        text.push_str(&format!(
            "the previous data is in {}\nHINT: To put it back, run the same command again. Delete it when \
             you no longer need it.\n",
            report.places
        ));
    }
    for kept in &report.kept {
        text.push_str(&format!("restore --delta kept {kept}\n"));
    }
    output::text(&text)
}

fn roll_back(pgdata: &Path, vouched: bool) -> anyhow::Result<RollbackDocument> {
    let shown = pgdata.display();
    refuse_running(pgdata, vouched)?;
    let mut report = RollbackDocument {
        pgdata: shown.to_string(),
        previous_pgdata: None,
        replaced_pgdata: None,
        kept_paths: Vec::new(),
        kept: Vec::new(),
        places: String::new(),
    };
    // One whose successor waits was about to go when an earlier rollback was interrupted.
    let waits = |record: &Record| record.successor.as_ref().is_some_and(|successor| successor.exists());
    if let Some(record) = previous::left_in(pgdata)?.filter(|record| !waits(record)) {
        // It came back, or never went; only this was not written down.
        record.undo()?;
        previous::succeed(pgdata);
        return Ok(report);
    }
    let _held = pgdata.exists().then(|| directory::hold(pgdata)).transpose()?;
    // It is only named here.
    let kept = kept::all(pgdata).unwrap_or_else(|error| {
        tracing::warn!("{}", walpoint_runtime::exit::format_chain(&error));
        Vec::new()
    });
    let latest = previous::latest(pgdata)?.with_context(|| {
        let kept: String = kept
            .iter()
            .map(|kept| {
                format!("\nDETAIL: It was repaired by \"restore --delta\", which kept {}.", kept.text())
            })
            .collect();
        format!("found no data directory that a restore renamed from {shown}; nothing was changed{kept}")
    })?;
    report.kept_paths = kept.iter().flat_map(Kept::paths).map(|path| path.display().to_string()).collect();
    report.kept = kept.iter().map(Kept::text).collect();
    // One that came back may have been lost since: then the one that had made room for it is the latest.
    let came_back = latest.succession() == Succession::Completed;
    let unfinished = latest.successor.as_ref().filter(|_| !came_back && !pgdata.exists());
    let back = match unfinished {
        Some(successor) => &previous::at(successor, pgdata)?.with_context(|| {
            format!(
                "{}, which an earlier rollback began to put back, is gone; nothing was changed",
                successor.display()
            )
        })?,
        None => &latest,
    };
    refuse_running(&back.aside, vouched)?;
    back.prove()?;
    if pgdata.exists() {
        let directories = in_the_way(pgdata, back)?;
        for directory in directories.iter().map(|(directory, _)| directory.as_path()).chain([pgdata]) {
            if let Some(immovable) = Immovable::look(directory) {
                return Err(immovable.explain(directory));
            }
        }
        let record = Record::plan(pgdata, directories, Some(back.aside.clone()), Timestamp::now())?;
        record.go()?;
        (report.replaced_pgdata, report.places) = (Some(record.aside.display().to_string()), record.places());
    } else if unfinished.is_some() {
        latest.go()?;
        (report.replaced_pgdata, report.places) = (Some(latest.aside.display().to_string()), latest.places());
    }
    back.undo()?;
    // What was renamed before has a successor now, however that is lost later.
    previous::succeed(pgdata);
    report.previous_pgdata = Some(back.aside.display().to_string());
    if let Some(replaced) = &report.replaced_pgdata
        && was_promoted(Path::new(replaced))
        && let Some(promoted) = promoted_beyond(timeline(Path::new(replaced)), timeline(pgdata))
    {
        tracing::warn!("{promoted}");
    }
    Ok(report)
}

/// Whether the server of a restored data directory has left recovery: PostgreSQL removes the files that ask for recovery then. Before
/// that, the newest timeline in its `pg_control` is another server's.
fn was_promoted(pgdata: &Path) -> bool {
    [Signal::Recovery, Signal::Standby].iter().all(|signal| !pgdata.join(signal.file_name()).exists())
}

/// The newest timeline of a data directory's server; `None` if its `pg_control` cannot be read.
fn timeline(pgdata: &Path) -> Option<TimelineId> {
    let control = existing::control(pgdata)?;
    // The checkpoint of a promotion may be still to come.
    control.checkpoint.timeline.max(control.min_recovery_point_timeline)
}

/// What to know where the server that is taken away had begun a timeline that the one which comes back does not have.
fn promoted_beyond(replaced: Option<TimelineId>, back: Option<TimelineId>) -> Option<String> {
    let (newer, back) = replaced.zip(back).filter(|(replaced, back)| replaced > back)?;
    Some(format!(
        "the server of the directory that was replaced had been promoted to timeline {newer}: if it archived, restores to the latest \
         moment follow timeline {newer} and leave out what this server writes from now on\nHINT: If nothing of timeline {newer} is needed, \
         run \"archive-agent lineage settle --timeline {newer} --abandoned --reason …\". Until then, restore with --target-timeline {back}."
    ))
}

/// What belongs to the present data directory and lies where something comes back to.
fn in_the_way(pgdata: &Path, back: &Record) -> anyhow::Result<Vec<(PathBuf, Option<PathBuf>)>> {
    let wanted: Vec<PathBuf> = back.moves.iter().map(|moved| moved.from.clone()).collect();
    let existing = Existing::look(pgdata).with_context(|| pgdata.display().to_string())?;
    // An unfinished restore of root's still has the data directory.
    let owner = |directory: &Path| reach::owner_of(directory).filter(|owner| owner.uid != 0);
    let user = owner(pgdata).or_else(|| owner(&back.aside)).or_else(|| reach::owner_of(pgdata));
    let link_to = |directory: &Path| existing.as_ref()?.link_to(directory, user);
    // What an unfinished restore claimed has perhaps no link yet; what goes beside a data directory never has one.
    let ours = |directory: &Path| {
        let linkless = |moved: &previous::Move| moved.from == directory && moved.link.is_none();
        directory::belongs_to(directory, pgdata, user) || back.moves.iter().any(linkless)
    };
    let asides = previous::all(pgdata).unwrap_or_default();
    let found = previous::in_the_way(&wanted, &asides, link_to, ours).map_err(|e| anyhow!("{e}"))?;
    let directories: Vec<PathBuf> = found.iter().map(|(directory, _)| directory.clone()).collect();
    let copied = originals::sharing(&originals::of(pgdata, &[]), &directories);
    match copied.map(|(directory, data)| UsedDirectory { directory, data, runs: false }) {
        Some(used) => Err(OutsideRefusal::Used(used).explain()),
        None => Ok(found),
    }
}

fn refuse_running(pgdata: &Path, vouched: bool) -> anyhow::Result<()> {
    if let Some(file) = directory::require_down(pgdata, vouched)? {
        tracing::warn!(
            "{}: its postmaster.pid is present ({file}): treating the server as crashed",
            pgdata.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_made_room_for_a_directory_that_came_back_and_was_lost_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let pgdata = dir.path().canonicalize().unwrap().join("data");
        let make = |content: &str| {
            fs::create_dir(&pgdata).unwrap();
            walpoint_base::durable::create(&pgdata.join("x"), content.as_bytes()).unwrap();
        };
        let back = || {
            roll_back(&pgdata, false).unwrap();
            fs::read_to_string(pgdata.join("x")).unwrap()
        };
        make("original");
        Record::plan(&pgdata, Vec::new(), None, Timestamp::now()).unwrap().go().unwrap();
        make("restored");
        assert_eq!(back(), "original");
        fs::remove_dir_all(&pgdata).unwrap();
        assert_eq!(back(), "restored");
    }

    #[test]
    fn a_server_that_is_in_recovery_was_not_promoted() {
        let dir = tempfile::tempdir().unwrap();
        assert!(was_promoted(dir.path()));
        for signal in [Signal::Recovery, Signal::Standby] {
            let file = dir.path().join(signal.file_name());
            walpoint_base::durable::create(&file, b"").unwrap();
            assert!(!was_promoted(dir.path()), "{}", file.display());
            walpoint_base::durable::remove(&file).unwrap();
        }
    }
}
