//! What became of the restored server, for a person.

use std::time::Duration;

use walpoint_base::diagnostic::shown;
use walpoint_runtime::human;

use super::document::{ServerState, StartedDocument, Verdict};
use crate::checks::CheckOutcome;

/// The lines, each with its end. What is wrong is the error that follows.
pub(in crate::restore) fn text(started: &StartedDocument) -> String {
    let mut text = format!("{}\n", state(started));
    if let Some(pid) = started.pid {
        let at = match (&started.host, started.port) {
            (Some(host), Some(port)) => format!(", port {port}, {}", shown(host)),
            _ => String::new(),
        };
        text.push_str(&format!("server: process {pid}{at}\n"));
    }
    text.push_str(&format!("its log: {}\n", shown(&started.log)));
    if !started.checks.is_empty() {
        text.push_str("checks:\n");
    }
    for check in &started.checks {
        let outcome = match check.result {
            CheckOutcome::Passed => "passed ",
            CheckOutcome::Failed => "FAILED ",
            CheckOutcome::Skipped => "skipped",
        };
        let message = check.message.as_deref().map_or(String::new(), |message| format!(": {message}"));
        let took = human::span(Duration::try_from_secs_f64(check.seconds).unwrap_or_default());
        text.push_str(&human::hanging(
            &format!("  {outcome}  "),
            &format!("{}{message} ({took})", check.name),
        ));
        text.push('\n');
    }
    match started.verdict {
        Some(Verdict::Right) => text.push_str("the moment is right: every check passed\n"),
        Some(Verdict::NotRight) => text.push_str("the moment is not right: a check failed\n"),
        None => {}
    }
    text.push_str(&commands(started));
    text
}

fn state(started: &StartedDocument) -> String {
    let mut at = started.replayed_lsn.map_or(String::new(), |lsn| format!(" at {lsn}"));
    if let Some(timeline) = started.timeline {
        at.push_str(&format!(" on timeline {timeline}"));
    }
    let last = match started.last_commit_time {
        Some(time) => format!(", last transaction at {time}"),
        None if started.timeline.is_some() => ", no transaction since the backup".to_owned(),
        None => String::new(),
    };
    match started.state {
        ServerState::Paused if started.resume_command.is_none() => {
            format!("recovery is paused{at}{last}, which is not the target: the data is read-only")
        }
        ServerState::Paused => {
            format!("recovery is paused{at}{last}: nothing is decided yet, the data is read-only")
        }
        ServerState::Promoted => {
            let lsn = started.replayed_lsn.map_or(String::new(), |lsn| format!(" at {lsn}"));
            let timeline =
                started.timeline.map_or(String::new(), |timeline| format!(" on timeline {timeline}"));
            format!("recovery has ended{lsn}{last}: the server accepts writes{timeline}")
        }
        ServerState::Standby => format!("the standby is consistent{at}{last}, and continues to replay WAL"),
        ServerState::Recovering => {
            let at = started.replayed_lsn.map_or(String::new(), |lsn| format!(", at {lsn} or later"));
            format!("the server runs and recovers{at}{last}")
        }
        ServerState::Ended => "the server has ended".to_owned(),
    }
}

/// What a person can do next.
fn commands(started: &StartedDocument) -> String {
    let mut text = String::new();
    if let Some(resume) = &started.resume_command {
        text.push_str(&format!("to accept this moment: {resume}\n"));
    }
    match started.state {
        ServerState::Ended => {}
        // To continue, it is restarted.
        ServerState::Paused if started.resume_command.is_none() => {
            text.push_str(&format!("to stop it: {}\n", started.stop_command));
        }
        ServerState::Standby | ServerState::Recovering => {
            text.push_str(&format!("to stop it: {}\n", started.stop_command));
        }
        ServerState::Paused | ServerState::Promoted => {
            text.push_str(&format!(
                "to try another moment: {}\n  and then: {}\n",
                started.stop_command, started.retry_command
            ));
        }
    }
    text
}
