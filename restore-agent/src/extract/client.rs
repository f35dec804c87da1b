//! Running PostgreSQL's client programs, with their output going to its destination and what they print beside it to the log.

use std::path::Path;
use std::process::{Command, Stdio};

use walpoint_base::Diagnostic;
use walpoint_base::diagnostic::shown;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::server::{Instance, ProcessGroup, ServerUser};

/// Lines of an error that are kept.
const KEPT: usize = 16;

/// A command of a client program as PostgreSQL's user, whose messages are in the language in which they are read here.
pub(super) fn command(program: &Path, user: &ServerUser) -> Command {
    let mut command = user.command(program.as_os_str());
    command.current_dir("/").env("LC_ALL", "C");
    command
}

/// Lets it find the instance, with the rights that a person asked for.
pub(super) fn connect(command: &mut Command, instance: &Instance) {
    let environment = instance.check_environment();
    let given = environment.iter().find(|(name, _)| *name == "PGOPTIONS").map(|(_, value)| value.as_str());
    let options = format!("{} -c lc_messages=C", given.unwrap_or_default());
    command.envs(environment.iter().map(|(name, value)| (name, value))).env("PGOPTIONS", options);
}

/// The option that names a database: as a connection string, because a name alone could be read as one.
pub(super) fn dbname(database: &str) -> String {
    format!("--dbname=dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// A program that failed: how, and what it printed from its first error on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed {
    program: &'static str,
    status: String,
    lines: Vec<String>,
}

impl Failed {
    /// The line that holds a text, if there is one.
    pub(super) fn line_with(&self, text: &str) -> Option<&str> {
        self.lines.iter().map(String::as_str).find(|line| line.contains(text))
    }

    /// In words.
    pub(super) fn diagnostic(&self) -> Diagnostic {
        let mut said = self.lines.iter().map(|line| spoken(self.program, line));
        let first = said.next().map_or(String::new(), |(_, text)| format!(": {text}"));
        let failed = Diagnostic::new(format!("{} failed ({}){first}", self.program, self.status));
        said.fold(failed, |failed, (is_hint, text)| match is_hint {
            true => failed.hint(text),
            false => failed.detail(text),
        })
    }
}

/// What a line says, without what introduces it, and whether it is a hint.
fn spoken<'a>(program: &str, line: &'a str) -> (bool, &'a str) {
    let line = line.strip_prefix(program).and_then(|line| line.strip_prefix(": ")).unwrap_or(line);
    for (lead, is_hint) in [
        ("error:", false),
        ("detail:", false),
        ("hint:", true),
        ("ERROR:", false),
        ("DETAIL:", false),
        ("HINT:", true),
    ] {
        if let Some(text) = line.strip_prefix(lead) {
            return (is_hint, text.trim());
        }
    }
    (false, line.trim())
}

/// A program that runs. It is killed, with what it started, if this is dropped.
#[derive(Debug)]
pub(super) struct Running {
    program: &'static str,
    child: Child,
    group: ProcessGroup,
}

/// Starts a command of a program.
pub(super) fn start(program: &'static str, command: Command, stdout: Stdio) -> std::io::Result<Running> {
    let mut command = tokio::process::Command::from(command);
    let child = command.stdout(stdout).stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
    let group = ProcessGroup::of(&child);
    Ok(Running { program, child, group })
}

impl Running {
    /// What it prints, if that was asked for; once.
    pub(super) fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// What it reads, if that was asked for; once.
    pub(super) fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Waits until it has ended, and logs meanwhile what it prints beside its output.
    pub(super) async fn end(mut self) -> anyhow::Result<Result<(), Failed>> {
        let lines = match self.child.stderr.take() {
            Some(stderr) => forward(self.program, stderr).await?,
            None => Vec::new(),
        };
        let status = self.child.wait().await?;
        self.group.has_ended();
        Ok(match status.success() {
            true => Ok(()),
            false => Err(Failed { program: self.program, status: status.to_string(), lines }),
        })
    }
}

/// Runs a command of a program to its end. It is killed, with what it started, if this is dropped.
pub(super) async fn run(
    program: &'static str,
    command: Command,
    stdout: Stdio,
) -> anyhow::Result<Result<(), Failed>> {
    start(program, command, stdout)?.end().await
}

/// Logs what a program prints up to its first error, and gives the beginning of the rest.
async fn forward(program: &str, stderr: impl AsyncRead + Unpin) -> std::io::Result<Vec<String>> {
    let mut kept: Vec<String> = Vec::new();
    let mut lines = BufReader::new(stderr).split(b'\n');
    while let Some(line) = lines.next_segment().await? {
        let line = shown(String::from_utf8_lossy(&line).trim_end());
        if !kept.is_empty() || is_error(program, &line) {
            if kept.len() < KEPT && !line.is_empty() {
                kept.push(line);
            }
        } else if line.contains("warning:") || line.starts_with("WARNING:") {
            tracing::warn!("{line}");
        } else if !line.is_empty() {
            tracing::info!("{line}");
        }
    }
    Ok(kept)
}

fn is_error(program: &str, line: &str) -> bool {
    let said = line.strip_prefix(program).and_then(|line| line.strip_prefix(": ")).unwrap_or(line);
    let leads = ["error:", "fatal:", "ERROR:", "FATAL:"];
    // What getopt_long prints names the program by its path.
    leads.iter().any(|lead| said.starts_with(lead))
        || ["unrecognized option", "invalid option", "ambiguous", "requires an argument"]
            .iter()
            .any(|refused| line.contains(refused))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ran(script: &str) -> Result<(), Failed> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run("pg_dump", command, Stdio::null()).await.unwrap()
    }

    #[tokio::test]
    async fn an_error_has_what_the_program_said() {
        let script = "echo 'pg_dump: warning: odd' >&2; echo 'pg_dump: error: query failed: ERROR:  no \"x\"' >&2; \
                      echo 'pg_dump: detail: Query was: SELECT' >&2; echo 'pg_dump: hint: Do it.' >&2; exit 1";
        let failed = ran(script).await.unwrap_err();
        assert_eq!(
            failed.diagnostic().to_string(),
            "pg_dump failed (exit status: 1): query failed: ERROR:  no \"x\"\nDETAIL: Query was: SELECT\nHINT: Do it."
        );
        assert!(failed.line_with("query failed").is_some() && failed.line_with("odd").is_none());
        assert_eq!(ran("echo 'pg_dump: warning: odd' >&2").await, Ok(()));
        let silent = ran("kill -9 $$").await.unwrap_err().diagnostic().to_string();
        assert!(silent.starts_with("pg_dump failed (signal: 9"), "{silent}");
        let option = ran("echo \"/bin/pg_dump: unrecognized option '--x'\" >&2; exit 1").await.unwrap_err();
        assert!(option.diagnostic().to_string().contains("unrecognized option '--x'"), "{option:?}");
    }

    #[test]
    fn a_database_of_any_name_is_named() {
        assert_eq!(dbname("a'b\\c = d"), "--dbname=dbname='a\\'b\\\\c = d'");
    }
}
