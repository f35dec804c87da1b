//! Without a daemon: `archive-agent push` does it, watched by this process.
//!
//! Watched, and not put in this process's place: a program that the kernel ends for want of memory, or that gives up because
//! it gets none, ends by a signal. PostgreSQL would take that for the end of its archiver and not count the failure.
//!
//! What counts is its word, an exit status on its standard output ([`PUSH_OUTCOME`]): a filesystem that hangs, of a repository that does
//! not have to acknowledge, may keep the process from ending long after the file is stored. It is left to itself then.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use walpoint_base::socket::PUSH_OUTCOME;

use crate::arguments::Arguments;

/// How long the process may take to end after its word.
const END: Duration = Duration::from_secs(1);

/// No word is longer.
const WORD: u64 = 64;

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

/// Runs `archive-agent push`, the one beside this program or the one in PATH, to its word or its end.
pub(crate) fn push(arguments: &Arguments) -> Ended {
    let beside =
        std::env::current_exe().ok().and_then(|own| own.parent().map(|dir| dir.join("archive-agent")));
    let mut problem = String::from("archive-agent could not be started");
    for program in beside.into_iter().chain(["archive-agent".into()]) {
        match agent(Command::new(&program), arguments).spawn() {
            Ok(child) => return watch(child),
            Err(error) => problem += &format!("; {}: {error}", program.display()),
        }
    }
    Ended::Broken(problem + "\nHINT: Start the daemon (archive-agent run).")
}

fn agent(mut agent: Command, arguments: &Arguments) -> Command {
    agent.arg("push");
    if let Some(config) = &arguments.config {
        agent.arg("--config").arg(config);
    }
    agent.arg("--").arg(&arguments.path);
    agent.env(PUSH_OUTCOME, "1").stdout(Stdio::piped());
    agent
}

fn watch(mut agent: Child) -> Ended {
    let word = agent.stdout.take().and_then(|output| {
        let mut line = String::new();
        BufReader::new(output.take(WORD)).read_line(&mut line).ok()?;
        line.strip_suffix('\n')?.parse::<u8>().ok()
    });
    let Some(word) = word else {
        return agent
            .wait()
            .map_or_else(|error| Ended::Broken(format!("archive-agent push: {error}")), judge);
    };
    let said = Instant::now();
    while matches!(agent.try_wait(), Ok(None)) && said.elapsed() < END {
        sleep(Duration::from_millis(2));
    }
    match i32::from(word) {
        0 => Ended::Stored,
        code => failed(code),
    }
}

fn judge(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(0), _) => Ended::Stored,
        (Some(code), _) => failed(code),
        (None, Some(signal)) => Ended::Broken(format!(
            "archive-agent push was terminated by signal {signal}\nHINT: Signals 6 and 9 often mean that \
             memory ran out: start the daemon (archive-agent run), or raise the memory limit."
        )),
        (None, None) => Ended::Broken(format!("archive-agent push exited with {status}")),
    }
}

fn failed(code: i32) -> Ended {
    match u8::try_from(code) {
        Ok(failed) if code <= HIGHEST => Ended::Failed(failed),
        _ => Ended::Broken(format!("archive-agent push exited with status {code}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_word_counts_although_it_does_not_end() {
        let begun = Instant::now();
        let watched = |script: &str| {
            let agent = Command::new("sh").arg("-c").arg(script).stdout(Stdio::piped()).spawn();
            watch(agent.unwrap())
        };
        assert_eq!(watched("echo 0; sleep 20"), Ended::Stored);
        assert_eq!(watched("echo 1; sleep 20"), Ended::Failed(1));
        assert!(matches!(watched("echo 255; exec sleep 20"), Ended::Broken(_)));
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    }

    #[test]
    fn without_a_word_its_end_counts() {
        let watched = |script: &str| {
            let agent = Command::new("sh").arg("-c").arg(script).stdout(Stdio::piped()).spawn();
            watch(agent.unwrap())
        };
        assert_eq!(watched("exit 0"), Ended::Stored);
        assert_eq!(watched("echo stored; exit 2"), Ended::Failed(2));
        assert_eq!(watched("printf 0; exit 3"), Ended::Failed(3), "a word that was cut off");
        assert!(matches!(watched("kill -9 $$"), Ended::Broken(_)));
    }

    #[test]
    fn nothing_above_125_is_passed_on() {
        let exit = |code: i32| judge(ExitStatus::from_raw(code << 8));
        assert_eq!(exit(0), Ended::Stored);
        assert_eq!((exit(1), exit(125)), (Ended::Failed(1), Ended::Failed(125)));
        assert!(matches!(exit(126), Ended::Broken(text) if text.contains("exited with status 126")));
        assert!(matches!(exit(255), Ended::Broken(_)));
        for signal in [6, 9, 11, 15] {
            assert!(matches!(judge(ExitStatus::from_raw(signal)), Ended::Broken(text)
                if text.contains(&format!("signal {signal}\n"))));
        }
    }
}
