//! Without a daemon: `archive-agent push` does it, watched by this process.
//!
//! Watched, and not put in this process's place: a program that the kernel ends for want of memory, or that gives up because
//! it gets none, ends by a signal. PostgreSQL would take that for the end of its archiver and not count the failure.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use crate::arguments::Arguments;

/// The highest exit status that PostgreSQL takes for a failure of the command and not of the archiver.
const HIGHEST: i32 = 125;

/// How `archive-agent push` ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The file is stored.
    Stored,
    /// It said why not, and this is its exit status: from 1 to 125.
    Failed(u8),
    /// It did not run, or not to its end.
    Broken(String),
}

/// Runs `archive-agent push`, the one beside this program or the one in PATH, to its end.
pub(crate) fn push(arguments: &Arguments) -> Ended {
    let beside =
        std::env::current_exe().ok().and_then(|own| own.parent().map(|dir| dir.join("archive-agent")));
    let mut problem = String::from("archive-agent could not be started");
    for program in beside.into_iter().chain(["archive-agent".into()]) {
        match agent(Command::new(&program), arguments).status() {
            Ok(status) => return judge(status),
            Err(error) => problem += &format!("; {}: {error}", program.display()),
        }
    }
    Ended::Broken(problem + "; HINT: start the daemon (archive-agent run)")
}

fn agent(mut agent: Command, arguments: &Arguments) -> Command {
    agent.arg("push");
    if let Some(config) = &arguments.config {
        agent.arg("--config").arg(config);
    }
    agent.arg("--").arg(&arguments.path);
    agent
}

fn judge(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(0), _) => Ended::Stored,
        (Some(code), _) => match u8::try_from(code) {
            Ok(failed) if code <= HIGHEST => Ended::Failed(failed),
            _ => Ended::Broken(format!("archive-agent push ended with exit status {code}")),
        },
        (None, Some(signal)) => Ended::Broken(format!(
            "archive-agent push was ended by signal {signal}; HINT: 6 and 9 often mean that memory was short: start the daemon \
             (archive-agent run), or raise the limit"
        )),
        (None, None) => Ended::Broken(format!("archive-agent push ended with {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_above_125_is_passed_on() {
        let exit = |code: i32| judge(ExitStatus::from_raw(code << 8));
        assert_eq!(exit(0), Ended::Stored);
        assert_eq!((exit(1), exit(125)), (Ended::Failed(1), Ended::Failed(125)));
        assert!(matches!(exit(126), Ended::Broken(text) if text.contains("exit status 126")));
        assert!(matches!(exit(255), Ended::Broken(_)));
        for signal in [6, 9, 11, 15] {
            assert!(matches!(judge(ExitStatus::from_raw(signal)), Ended::Broken(text)
                if text.contains(&format!("signal {signal};"))));
        }
    }
}
