//! `archive_command`: asks the daemon to make one WAL file durable, and exits 0 only if it is, or if it is on record that it was
//! dropped (`queue_max`, `archive-agent push --skip`).
//!
//! PostgreSQL counts a failure only when the exit status is at most 125, so nothing here ends above that: 0 stored, 1 not
//! stored, 2 wrong usage or configuration, panics included. Killed at any moment this program leaves nothing behind; the
//! daemon, or the program that stands in for it, may go on storing the file, which does no harm.

mod arguments;
mod ask;
mod direct;
mod file;
mod hung;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use arguments::{Arguments, Parsed};
use ask::PushAnswer;
use direct::Ended;
use file::WalFile;
use walpoint_base::Diagnostic;
use walpoint_base::archived;
use walpoint_base::dropped::{self, DropReason, Recorded};

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|info| {
        say(&format!("ERROR: internal error, the file was not archived: {info}"))
    }));
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    std::panic::catch_unwind(|| run(arguments)).unwrap_or(ExitCode::FAILURE)
}

fn run(arguments: Vec<OsString>) -> ExitCode {
    match arguments::parse(arguments) {
        Ok(Parsed::Push(arguments)) => push(&arguments),
        Ok(Parsed::Print(text)) => match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(problem) => {
            say(&format!("ERROR: {problem}"));
            ExitCode::from(2)
        }
    }
}

fn push(arguments: &Arguments) -> ExitCode {
    let file = match file::look(&arguments.path) {
        Ok(file) => file,
        Err(problem) => {
            say(&format!("ERROR: {problem}"));
            return ExitCode::FAILURE;
        }
    };
    let directory = arguments.path.parent().unwrap_or(Path::new("."));
    match ask::ask(&arguments.socket, directory, &file) {
        PushAnswer::Stored { remember: lines, after_all } => {
            remember(arguments, &file, &lines);
            if after_all {
                // It is stored all the same. Without the line it stays on record as dropped until a backup makes up for it.
                dropped::record_archived(directory, file.name).ok();
            }
            ExitCode::SUCCESS
        }
        PushAnswer::Failed(message) => {
            say(&format!("ERROR: could not archive \"{}\": {message}", file.name));
            ExitCode::FAILURE
        }
        PushAnswer::Dropped(message) => record_drop(arguments, &file, &message),
        PushAnswer::Unanswered(reason) => {
            say(&format!("WARNING: archiving \"{}\" without the daemon: {reason}", file.name));
            match direct::push(arguments) {
                Ended::Stored => ExitCode::SUCCESS,
                Ended::Failed(status) => ExitCode::from(status),
                Ended::Broken(problem) => {
                    say(&format!("ERROR: could not archive \"{}\": {problem}", file.name));
                    ExitCode::FAILURE
                }
            }
        }
    }
}

/// Notes in `pg_wal` what was stored, where the daemon may only read it. The file is stored all the same.
fn remember(arguments: &Arguments, file: &WalFile, lines: &[String]) {
    let directory = arguments.path.parent().unwrap_or(Path::new("."));
    if let Err(error) = if lines.is_empty() { Ok(()) } else { archived::note(directory, lines) } {
        say(&format!(
            "WARNING: \"{}\" is archived, but that cannot be recorded in {}: {error}\nDETAIL: After a \
             gap, the daemon may not know which server wrote the stored WAL.",
            file.name,
            directory.join(archived::FILE).display()
        ));
    }
}

/// Takes a file for archived that was dropped, once that is on record.
fn record_drop(arguments: &Arguments, file: &WalFile, message: &str) -> ExitCode {
    let directory = arguments.path.parent().unwrap_or(Path::new("."));
    match dropped::record(directory, file.name, DropReason::QueueMax) {
        Ok(Recorded::Yes) => say(&format!("WARNING: \"{}\" was {message}", file.name)),
        Ok(Recorded::DiskFull) => {
            say(&format!(
                "WARNING: \"{}\" was {message}\nDETAIL: This is not recorded, because the disk is full.",
                file.name
            ));
        }
        Err(error) => {
            let intended = Diagnostic::new(message);
            let problem = Diagnostic::new(format!(
                "ERROR: could not archive \"{}\", and it is not dropped, because that cannot be recorded \
                 in {}: {error}",
                file.name,
                directory.join(dropped::FILE).display()
            ));
            let problem = problem.detail(format!("It was to be {}.", intended.message()));
            say(&intended.hints().iter().fold(problem, Diagnostic::hint).to_string());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// A line for PostgreSQL's log, and one for each detail and hint. Written at once so that lines of several processes do not mix; a
/// closed log is no reason to fail.
fn say(text: &str) {
    let lines: String = Diagnostic::new(text).lines().map(|line| format!("archive-push: {line}\n")).collect();
    std::io::stderr().write_all(lines.as_bytes()).ok();
}
