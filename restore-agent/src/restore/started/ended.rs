//! What to do about a restored server that has not arrived, in words.

use std::process::ExitStatus;
use std::time::Duration;

use anyhow::anyhow;
use walpoint_base::diagnostic::shown;
use walpoint_pg::connect::Error;
use walpoint_runtime::human;

use super::LaunchPlan;
use super::launch::Launched;
use crate::server::last_lines;

/// How many lines of its log are quoted: the reason comes before the lines about the shutdown.
const LINES: usize = 10;

/// How a server ended, and what kept it from starting, if that was not the server itself.
pub(super) type Ending = (ExitStatus, Option<String>);

/// When a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// Before it was seen where it was to stop.
    Before,
    /// After that.
    After,
}

impl When {
    fn text(self) -> &'static str {
        match self {
            Self::Before => "before recovery was where it was to stop",
            Self::After => "after recovery had stopped",
        }
    }
}

/// It has ended by itself.
pub(super) fn ended(
    launched: &Launched,
    plan: &LaunchPlan,
    when: When,
    (status, complaint): Ending,
) -> anyhow::Error {
    let logs = [launched.log(), launched.start_log()];
    let lines = logs.iter().map(|log| last_lines(log, LINES, plan.owner)).find(|lines| !lines.is_empty());
    let lines: Vec<String> = complaint.into_iter().chain(lines.unwrap_or_default()).collect();
    let details: String = lines.iter().map(|line| format!("\nDETAIL: {}", shown(line))).collect();
    let start = &plan.start_command;
    let hint = match why(&lines) {
        Why::Port => format!("Start it at another port, with --start-port or by: {}", plan.beside_command),
        Why::Target => {
            "PostgreSQL found no WAL that leads to the target. Plan the restore again with the same options: \
             restore-agent plan names what is missing."
                .to_owned()
        }
        Why::Fetch => format!(
            "restore-fetch says in that log what it could not read. When it can, start the server again, and recovery continues: \
             {start}"
        ),
        Why::Other => {
            format!("When the cause is removed, start the server again, and recovery continues: {start}")
        }
    };
    anyhow!(
        "the cluster was restored, and its server ended {} ({status}){details}\nDETAIL: Its log is {}.\nHINT: {hint}",
        when.text(),
        launched.log().display()
    )
}

/// Why a server ended, as far as that decides what to do.
#[derive(Debug, PartialEq, Eq)]
enum Why {
    Port,
    Target,
    Fetch,
    Other,
}

/// By what it logged last. Source: the messages of PostgreSQL 13 to 19. A server that logs in another language gets the general advice.
fn why(lines: &[String]) -> Why {
    let has = |text: &str| lines.iter().any(|line| line.contains(text));
    match () {
        () if has("could not create any") || has("already exists") || has("could not bind") => Why::Port,
        () if has("recovery ended before configured recovery target was reached") => Why::Target,
        () if has("could not restore file") => Why::Fetch,
        () => Why::Other,
    }
}

/// A person interrupted the waiting.
pub(super) fn interrupted() -> anyhow::Error {
    anyhow!("interrupted: it continues to recover")
}

/// Waiting took too long.
pub(super) fn late(limit: Duration) -> anyhow::Error {
    anyhow!(
        "recovery was not where it was to stop within {} (--start-timeout): it continues",
        human::span(limit)
    )
}

/// It takes no session of ours.
pub(super) fn refused(error: Error) -> anyhow::Error {
    // Where the server answered, another role may do.
    let is_out_of_reach = error.sqlstate().is_none() && error.is_transient();
    let hint = if is_out_of_reach {
        "Check unix_socket_directories and listen_addresses, and that the server's user can reach the socket."
    } else {
        "Name a superuser that may log in from here with PGUSER, and its password with PGPASSWORD or PGPASSFILE."
    };
    anyhow::Error::from(error)
        .context(format!("its recovery cannot be watched, because it takes no session\nHINT: {hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_depends_on_the_last_errors() {
        for (line, expected) in [
            ("FATAL:  could not create any Unix-domain sockets", Why::Port),
            ("FATAL:  lock file \"/tmp/.s.PGSQL.5432.lock\" already exists", Why::Port),
            ("FATAL:  recovery ended before configured recovery target was reached", Why::Target),
            (
                "FATAL:  could not restore file \"0001\" from archive: child process exited with exit code 255",
                Why::Fetch,
            ),
            ("FATAL:  data directory \"/x\" has invalid permissions", Why::Other),
        ] {
            assert_eq!(why(&["LOG:  x".to_owned(), line.to_owned()]), expected, "{line}");
        }
        assert_eq!(why(&[]), Why::Other);
    }
}
