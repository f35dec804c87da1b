//! Running the checks that a person asks for on a server that has recovered.
//!
//! A query runs in a transaction that is read-only and rolled back, in a session of its own. One that writes, or ends its transaction,
//! fails. A command finds the server by libpq's variables and runs as PostgreSQL's user.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use walpoint_pg::connect::{Connection, Error};
use walpoint_runtime::human;

use super::check_file::{Check, Subject};
use super::expectation::{Answer, quoted};
use super::outcome::{CheckKind, CheckResult, Outcome};
use crate::server::{Instance, ProcessGroup, ServerUser};

/// Longer than the server waits itself: its own answer says more.
const GRACE: Duration = Duration::from_secs(10);

/// Bytes of a command's output that are kept of each stream.
const KEPT: usize = 64 << 10;

/// What fails where the transaction of a check is not the one that was begun: outside one, or without this savepoint.
const SAVEPOINT: &str = "walpoint_check";

/// Runs checks, one after the other.
pub(crate) async fn run_all(checks: &[Check], instance: &Instance, user: &ServerUser) -> Vec<CheckResult> {
    let mut results = Vec::new();
    for check in checks {
        let began = Instant::now();
        let outcome = match run(check, instance, user).await {
            Ok(()) => Outcome::Passed(None),
            Err(error) => Outcome::Failed(walpoint_words::format_chain(&error)),
        };
        let (kind, database) = match &check.subject {
            Subject::Query { database, .. } => (CheckKind::Query, database.clone()),
            Subject::Command(_) => (CheckKind::Command, None),
        };
        let (name, took) = (check.name.clone(), began.elapsed());
        results.push(CheckResult { kind, name, database, outcome, took });
    }
    results
}

/// Runs a check. An error says why it failed.
async fn run(check: &Check, instance: &Instance, user: &ServerUser) -> anyhow::Result<()> {
    let answer = match &check.subject {
        Subject::Query { sql, database } => {
            let database = database.as_deref().unwrap_or(instance.database());
            let mut connection =
                instance.connect_to_check(database, Some(check.timeout.saturating_add(GRACE))).await?;
            let answer = query(&mut connection, sql, check.timeout).await;
            connection.close().await;
            answer?
        }
        Subject::Command(command) => self::command(command, check.timeout, instance, user).await?,
    };
    check.expectation.compare(&answer).map_err(|wrong| anyhow!(wrong))
}

async fn query(connection: &mut Connection, sql: &str, timeout: Duration) -> anyhow::Result<Answer> {
    let begin = format!(
        "SET statement_timeout = {}; BEGIN TRANSACTION READ ONLY; SELECT 1; SAVEPOINT {SAVEPOINT}",
        timeout.as_millis().min(i32::MAX.unsigned_abs().into())
    );
    connection.batch(&begin).await?;
    let answer = connection.query(sql).await.map_err(|error| explain(error, timeout))?;
    // What ended the transaction could have begun one that writes.
    if connection.batch(&format!("ROLLBACK TO SAVEPOINT {SAVEPOINT}; ROLLBACK")).await.is_err() {
        bail!("the check ends its transaction: checks are single queries, in a read-only transaction");
    }
    let first = answer.iter().next().map(|row| {
        let value = row.first().flatten();
        value.map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    });
    Ok(Answer::Rows { count: answer.len(), first })
}

fn explain(error: Error, timeout: Duration) -> anyhow::Error {
    match error.sqlstate() {
        // read_only_sql_transaction; in recovery, too.
        Some("25006") => {
            let report =
                error.report().map_or(String::new(), |report| format!(": {}", quoted(&report.message)));
            anyhow!("the check writes, and checks are read-only{report}")
        }
        Some("57014") => anyhow!("no answer within {}", human::span(timeout)),
        _ => match error.report() {
            Some(report) => anyhow!("{}", quoted(&report.message)),
            None => error.into(),
        },
    }
}

async fn command(
    command: &str,
    timeout: Duration,
    instance: &Instance,
    user: &ServerUser,
) -> anyhow::Result<Answer> {
    let mut shell = user.command(OsStr::new("sh"));
    shell.args(["-c", command]).current_dir("/").envs(instance.check_environment());
    let output = output(shell, Some(timeout)).await?;
    if !output.success {
        let said = output.said();
        bail!(
            "the command failed ({}){}",
            output.status,
            if said.is_empty() { said } else { format!(": {said}") }
        );
    }
    Ok(Answer::Output(output.stdout.trim_end_matches('\n').to_owned()))
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct CommandOutput {
    pub(crate) success: bool,
    /// The exit status, in words.
    pub(crate) status: String,
    /// The beginning of what it printed.
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl CommandOutput {
    /// What it said, for a message.
    pub(crate) fn said(&self) -> String {
        let said = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        quoted(said.trim())
    }
}

/// Runs a command to its end and keeps the beginning of what it prints. After the limit it is killed, with what it started; so it is if
/// this is dropped.
pub(crate) async fn output(
    command: std::process::Command,
    limit: Option<Duration>,
) -> anyhow::Result<CommandOutput> {
    let mut command = Command::from(command);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
    // It has a process group of its own.
    let mut group = ProcessGroup::of(&child);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = async {
        let (stdout, stderr) = tokio::join!(beginning(stdout), beginning(stderr));
        child.wait().await.map(|status| (status, stdout, stderr))
    };
    let limited = match limit {
        None => Some(ended.await),
        Some(limit) => tokio::time::timeout(limit, ended).await.ok(),
    };
    let Some(result) = limited else {
        bail!("no answer within {}", human::span(limit.unwrap_or_default()));
    };
    let (status, stdout, stderr) = result?;
    group.has_ended();
    Ok(CommandOutput { success: status.success(), status: status.to_string(), stdout, stderr })
}

/// Reads a stream to its end, and keeps its beginning.
async fn beginning(stream: Option<impl AsyncRead + Unpin>) -> String {
    let (mut kept, mut buffer) = (Vec::new(), vec![0; 8 << 10]);
    let Some(mut stream) = stream else { return String::new() };
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        let room = KEPT.saturating_sub(kept.len());
        kept.extend(buffer.iter().take(read.min(room)));
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;

    /// Whether a process runs: one that has ended and was not waited for shows no command line.
    fn runs(pid: &str) -> bool {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
    }

    #[tokio::test]
    async fn what_a_command_started_ends_with_it_also_when_it_is_interrupted() {
        let dir = tempfile::tempdir().unwrap();
        for limit in [None, Some(Duration::from_secs(2))] {
            let file = dir.path().join("pid");
            let mut command = std::process::Command::new("sh");
            command.args(["-c", "sleep 600 & echo $! > \"$0.new\"; mv \"$0.new\" \"$0\"; wait"]).arg(&file);
            command.process_group(0);
            let running = output(command, limit);
            let until = Instant::now() + Duration::from_secs(30);
            let started = async {
                while !file.exists() && Instant::now() < until {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            match limit {
                // Interrupted once it has started another process.
                None => tokio::select! {
                    _ = running => panic!("it ended"),
                    () = started => {}
                },
                Some(_) => assert!(running.await.unwrap_err().to_string().contains("no answer within 2s")),
            }
            let pid = std::fs::read_to_string(&file).unwrap();
            while runs(pid.trim()) && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert!(!runs(pid.trim()), "{limit:?}");
            std::fs::remove_file(&file).unwrap();
        }
    }
}
