//! `restore_command`: takes one file of WAL from the prefetcher, or becomes `restore-agent fetch`.
//!
//! PostgreSQL takes exit statuses from 1 to 125 for "not in the archive", ends recovery there and promotes. So 1 is given
//! only for proven absence, and whatever else goes wrong is 255, panics, usage and configuration errors included; only on
//! a standby, which would be shut down by 255 and goes on after 1, an uncertain answer is 1 with a warning. Nothing here
//! exits 0 unless the file is in place.

mod agent;
mod arguments;
mod ask;
mod take;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use walpoint_base::socket::{FetchOutcome, FetchReply, HISTORY_CACHE, STOP_WITHOUT_HISTORY};
use walpoint_base::{Diagnostic, RECOVERY_ORIGIN, TimelineHistory, WalDirectory, WalFileName, tablespace};

use arguments::{Arguments, Parsed};
use ask::FetchAnswer;

/// Proven not to be in the archive; on a standby also: ask again.
const ABSENT: u8 = 1;
/// PostgreSQL must not go on.
const STOP: u8 = 255;

/// A standby gets its answer within two seconds; the rest is for starting this program and ending it.
const STANDBY_LIMIT: Duration = Duration::from_millis(1800);

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|info| say(&format!("ERROR: internal error: {info}"))));
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    ExitCode::from(std::panic::catch_unwind(|| run(arguments)).unwrap_or(STOP))
}

fn run(arguments: Vec<OsString>) -> u8 {
    match arguments::parse(arguments) {
        Ok(Parsed::Fetch(arguments)) => fetch(&arguments),
        Ok(Parsed::Print(text)) => match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => 0,
            Err(_) => STOP,
        },
        Err(problem) => {
            say(&format!("ERROR: {problem}"));
            STOP
        }
    }
}

fn fetch(arguments: &Arguments) -> u8 {
    let name = match arguments.name.parse::<WalFileName>() {
        Ok(name) => name,
        Err(problem) => {
            say(&format!("ERROR: {problem}\nHINT: restore_command must pass %f and then %p."));
            return STOP;
        }
    };
    let place = WalDirectory::around(&arguments.path);
    if name.is_never_written() {
        if let Some(place) = place.filter(WalDirectory::leaves_recovery) {
            forget_origin(&place);
        }
        say(&format!("LOG: \"{name}\" is not in the archive: the first timeline has no history"));
        return ABSENT;
    }
    let Some(place) = place else {
        // By hand, into a directory that is no pg_wal: nothing to prefetch for.
        return instead(arguments, None, None);
    };
    if place.has_own_history(name) {
        forget_origin(&place);
        say(&format!(
            "LOG: \"{name}\" is this server's own: PostgreSQL has it in pg_wal, so no repository is read for it"
        ));
        return ABSENT;
    }
    // pg_rewind compares what lies in the data directory: nothing may be left there that comes and goes.
    let agent = (!place.server).then(|| agent::become_fetch(arguments, None));
    let deadline = place.is_standby().then(|| Instant::now() + STANDBY_LIMIT);
    let mut told = String::new();
    let mut progress = |text: &str| {
        if !text.is_empty() && text != told {
            say(&format!("WARNING: waiting for \"{name}\": {text}"));
            told = text.to_owned();
        }
    };
    match ask::ask(arguments, &place, deadline, &mut progress) {
        FetchAnswer::Reply(reply) => conclude(arguments, &place, deadline, &reply),
        FetchAnswer::Mute(reason) if place.is_standby() => on_standby(arguments, &place, name, &reason),
        FetchAnswer::Mute(reason) | FetchAnswer::Unanswered(reason) => {
            if let Some(problem) = agent {
                let mut failed = Diagnostic::new(format!("ERROR: could not fetch \"{name}\": {reason}"));
                failed.add_cause(&Diagnostic::new(problem));
                say(&failed.to_string());
                return STOP;
            }
            say(&format!("WARNING: fetching \"{name}\" without a prefetcher: {reason}"));
            instead(arguments, Some(&place), deadline)
        }
    }
}

/// The recovery is over: what it began with binds no later one.
fn forget_origin(place: &WalDirectory) {
    // What stays costs a later recovery a question to a person, never data.
    std::fs::remove_file(place.wal.join(RECOVERY_ORIGIN)).ok();
}

/// Acts on the prefetcher's final word.
fn conclude(
    arguments: &Arguments,
    place: &WalDirectory,
    deadline: Option<Instant>,
    reply: &FetchReply,
) -> u8 {
    let level = match reply.outcome {
        FetchOutcome::Uncertain => "ERROR",
        FetchOutcome::Later | FetchOutcome::Elsewhere => "WARNING",
        FetchOutcome::Ready | FetchOutcome::Absent | FetchOutcome::Working => "LOG",
    };
    if !reply.message.is_empty() {
        say(&format!("{level}: {}", reply.message));
    }
    match reply.outcome {
        FetchOutcome::Ready => {
            match tablespace::permit(&place.pgdata, &reply.tablespaces) {
                Ok(missing) => missing.iter().for_each(|text| say(&format!("WARNING: {text}"))),
                // On a standby too: told to ask again, it would stream the same record from its upstream and replay it.
                Err(refusal) => {
                    say(&format!("ERROR: \"{}\" is withheld: {refusal}", arguments.name));
                    return STOP;
                }
            }
            // An absolute path replaces the directory: the spool lies elsewhere.
            let spooled = place.wal.join(&reply.file);
            match take::take(&spooled, reply.size, &arguments.path) {
                Ok(()) => 0,
                // Another request for the same file took it meanwhile, as when a server starts and two of its processes want a
                // history.
                Err(error) if take::is_taken(&spooled, &error) => instead(arguments, Some(place), deadline),
                Err(error) => {
                    say(&format!(
                        "WARNING: \"{}\" was prefetched but cannot be taken from {}: {error}\nDETAIL: It is fetched directly \
                         instead.",
                        arguments.name,
                        spooled.display()
                    ));
                    instead(arguments, Some(place), deadline)
                }
            }
        }
        FetchOutcome::Absent | FetchOutcome::Later => ABSENT,
        FetchOutcome::Elsewhere => instead(arguments, Some(place), deadline),
        FetchOutcome::Uncertain | FetchOutcome::Working => STOP,
    }
}

/// Becomes `restore-agent fetch`; returns only if that is impossible.
fn instead(arguments: &Arguments, place: Option<&WalDirectory>, deadline: Option<Instant>) -> u8 {
    let within = deadline.map(|at| at.saturating_duration_since(Instant::now()));
    let problem = agent::become_fetch(arguments, within);
    match (place, arguments.name.parse()) {
        (Some(place), Ok(name)) if place.is_standby() => on_standby(arguments, place, name, &problem),
        _ => {
            say(&format!("ERROR: could not fetch \"{}\": {problem}", arguments.name));
            STOP
        }
    }
}

/// The answer on a standby when nothing could be found out: a history file that was seen before, or "ask again".
fn on_standby(arguments: &Arguments, place: &WalDirectory, name: WalFileName, reason: &str) -> u8 {
    let cache = place.wal.join(HISTORY_CACHE);
    if let WalFileName::History(_) = name {
        if copy_cached(&cache, name, place, &arguments.path) {
            say(&format!("WARNING: \"{name}\" comes from the cache of this standby: {reason}"));
            return 0;
        }
        if cache.join(STOP_WITHOUT_HISTORY).exists() {
            say(&format!(
                "ERROR: \"{name}\" cannot be looked up, and standby_history_outage is \"stop\": {reason}"
            ));
            return STOP;
        }
    }
    say(&format!(
        "WARNING: \"{name}\" cannot be fetched at the moment: {reason}\nDETAIL: This standby will retry."
    ));
    ABSENT
}

/// Copies a history that this standby has seen in this recovery, if it is whole.
fn copy_cached(cache: &Path, name: WalFileName, place: &WalDirectory, to: &Path) -> bool {
    let cached = cache.join(name.to_string());
    let Ok(content) = std::fs::read(&cached) else { return false };
    let size = u64::try_from(content.len()).unwrap_or_default();
    place.wal.join(RECOVERY_ORIGIN).exists()
        && TimelineHistory::parse(name.timeline(), &content).is_ok()
        && take::copy(&cached, size, to).is_ok()
}

/// A line for PostgreSQL's log, and one for each detail and hint. Written at once so that lines of several processes do not mix; a
/// closed log is no reason to fail.
fn say(text: &str) {
    let lines: String =
        Diagnostic::new(text).lines().map(|line| format!("restore-fetch: {line}\n")).collect();
    std::io::stderr().write_all(lines.as_bytes()).ok();
}
