//! Running a command that prints a secret: bounded in time, alone, and ended with all that it started.
//!
//! What always holds: the call returns within twice its limit and a second, no thread of it stays, and no second run of the same
//! command begins before the first has ended. The command has a process group of its own, which is killed in the end, so `vault … | jq …`
//! leaves nothing behind when it hangs. With a terminal there is no such group: only the terminal's foreground group may ask for a
//! passphrase.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use zeroize::Zeroizing;

use super::MAX_LENGTH;

/// A command that has not answered by then is ended.
const LIMIT: Duration = Duration::from_secs(30);

/// After the shell has ended, what it left behind may hold its output open for so long.
const LEFT_OPEN: Duration = Duration::from_secs(1);

/// What was killed may take so long to end.
const TO_END: Duration = Duration::from_secs(1);

/// The pause between two looks at a command that runs.
const PAUSE: Duration = Duration::from_millis(5);

/// What a shell command prints after reading `input`: one byte more than a secret may have at the most. An error says what it did.
pub(super) fn run(command: &str, input: Option<&[u8]>) -> Result<Zeroizing<Vec<u8>>, String> {
    let has_terminal = File::open("/dev/tty").is_ok();
    run_for(LIMIT, command, input, !has_terminal)
}

fn run_for(
    limit: Duration,
    command: &str,
    input: Option<&[u8]>,
    own_group: bool,
) -> Result<Zeroizing<Vec<u8>>, String> {
    let turn = Turn::wait(command, limit)?;
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).stdout(Stdio::piped());
    shell.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    if own_group {
        shell.process_group(0);
    }
    let mut child = shell.spawn().map_err(|error| format!("cannot be started: {error}"))?;
    let printed = converse(&mut child, input.unwrap_or_default(), limit);
    let status = turn.end(child, own_group);
    let printed = printed?;
    match status? {
        // One that prints without end dies of the pipe that is closed before it; the caller says why.
        status if !status.success() && printed.len() as u64 <= MAX_LENGTH => {
            Err(format!("failed with {status}"))
        }
        _ => Ok(printed),
    }
}

/// Gives a command its input and takes what it prints, until it has ended and nothing more comes.
fn converse(child: &mut Child, mut input: &[u8], limit: Duration) -> Result<Zeroizing<Vec<u8>>, String> {
    let unreadable = |error| format!("printed what cannot be read: {error}");
    let (mut stdin, mut stdout) = (child.stdin.take(), child.stdout.take());
    let pipes = [stdin.as_ref().map(AsFd::as_fd), stdout.as_ref().map(AsFd::as_fd)];
    for pipe in pipes.into_iter().flatten() {
        rustix::io::ioctl_fionbio(pipe, true).map_err(|error| unreadable(error.into()))?;
    }
    // With room for all of it: a vector that grows leaves a copy behind.
    let most = usize::try_from(MAX_LENGTH).unwrap_or(usize::MAX).saturating_add(1);
    let mut printed = Zeroizing::new(Vec::with_capacity(most));
    let mut buffer = Zeroizing::new([0; 4096]);
    let (mut until, mut has_ended) = (Instant::now() + limit, false);
    loop {
        let mut waits = true;
        match stdin.as_mut().map(|pipe| pipe.write(input)) {
            _ if input.is_empty() => stdin = None,
            Some(Ok(written)) => {
                input = input.get(written..).unwrap_or_default();
                waits = false;
            }
            Some(Err(error)) if is_temporary(&error) => {}
            // It reads no more; whether it succeeds all the same is for it to say.
            Some(Err(_)) => stdin = None,
            None => {}
        }
        match stdout.as_mut().map(|pipe| pipe.read(buffer.as_mut_slice())) {
            Some(Ok(0)) => stdout = None,
            Some(Ok(read)) => {
                let room = most - printed.len();
                printed.extend_from_slice(buffer.get(..read.min(room)).unwrap_or_default());
                stdout.take_if(|_| printed.len() == most);
                waits = false;
            }
            Some(Err(error)) if is_temporary(&error) => {}
            Some(Err(error)) => return Err(unreadable(error)),
            None => {}
        }
        if !has_ended && ended(child)? {
            has_ended = true;
            until = until.min(Instant::now() + LEFT_OPEN);
        }
        match (has_ended, stdout.is_none(), Instant::now() >= until) {
            (true, true, _) | (true, false, true) => return Ok(printed),
            (false, _, true) => return Err(format!("did not answer within {} s", limit.as_secs())),
            _ if waits => sleep(PAUSE),
            _ => {}
        }
    }
}

fn is_temporary(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Whether the shell has ended. It stays a zombie, so that its number, which is also its group's, is not another's.
fn ended(child: &Child) -> Result<bool, String> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match waitid(WaitId::Pid(Pid::from_child(child)), options) {
        Ok(status) => Ok(status.is_some()),
        Err(error) => Err(format!("cannot be waited for: {error}")),
    }
}

/// A command that runs.
enum Run {
    UnderWay,
    /// It was killed and has not ended: a process of it is in a filesystem that hangs.
    Left(Child, Instant),
}

static RUNS: Mutex<BTreeMap<String, Run>> = Mutex::new(BTreeMap::new());

/// Told at the end of each run.
static ENDED: Condvar = Condvar::new();

fn runs() -> MutexGuard<'static, BTreeMap<String, Run>> {
    RUNS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to run a command. No one else runs the same one.
struct Turn<'a> {
    command: &'a str,
    left: Option<(Child, Instant)>,
}

impl<'a> Turn<'a> {
    fn wait(command: &'a str, limit: Duration) -> Result<Self, String> {
        let (begun, mut runs) = (Instant::now(), runs());
        loop {
            match runs.get_mut(command) {
                None => break,
                Some(Run::UnderWay) => {}
                Some(Run::Left(child, since)) => {
                    if !matches!(child.try_wait(), Ok(None)) && !lives(child.id()) {
                        break;
                    }
                    let since = since.elapsed().as_secs();
                    return Err(format!(
                        "was killed {since} s ago and has not exited, so it is not started again: a \
                         filesystem that it uses hangs"
                    ));
                }
            }
            let left = limit.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(format!("is already running and did not answer within {} s", limit.as_secs()));
            }
            runs = ENDED.wait_timeout(runs, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        runs.insert(command.to_owned(), Run::UnderWay);
        Ok(Self { command, left: None })
    }

    /// Ends a command with all that it started. What does not end is remembered.
    fn end(mut self, mut child: Child, own_group: bool) -> Result<ExitStatus, String> {
        let killed = match own_group {
            true => kill_process_group(Pid::from_child(&child), Signal::KILL).map_err(Into::into),
            false => child.kill(),
        };
        let cannot = |error| format!("cannot be ended: {error}");
        let begun = Instant::now();
        while !ended(&child)? {
            if begun.elapsed() >= TO_END {
                self.left = Some((child, begun));
                return Err(killed.map_or_else(cannot, |()| "did not exit although it was killed".to_owned()));
            }
            sleep(PAUSE);
        }
        let status = child.wait().map_err(cannot)?;
        while own_group && lives(child.id()) {
            if begun.elapsed() >= TO_END {
                self.left = Some((child, begun));
                break;
            }
            sleep(PAUSE);
        }
        Ok(status)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut runs = runs();
        runs.remove(self.command);
        if let Some((child, since)) = self.left.take() {
            runs.insert(self.command.to_owned(), Run::Left(child, since));
        }
        ENDED.notify_all();
    }
}

/// Whether a process of that group runs; one that has ended and is not waited for does not.
fn lives(group: u32) -> bool {
    let Ok(all) = std::fs::read_dir("/proc") else { return false };
    all.flatten().any(|process| {
        let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        // The name, in parentheses, may hold anything; then come the state, the parent and the group (proc(5)).
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let mut fields = fields.split_ascii_whitespace();
        let state = fields.next().unwrap_or("Z");
        !matches!(state, "Z" | "X") && fields.nth(1) == Some(group.to_string().as_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a process with exactly these arguments runs.
    fn runs(arguments: &str) -> bool {
        let wanted = arguments.replace(' ', "\0") + "\0";
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        all.map(|process| std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default())
            .any(|command| command == wanted)
    }

    #[test]
    fn a_command_that_hangs_is_ended_with_all_that_it_started() {
        let limit = Duration::from_secs(1);
        let begun = Instant::now();
        let error = run_for(limit, "sleep 7001 | cat", None, true).unwrap_err();
        assert!(error.contains("did not answer within 1 s"), "{error}");
        assert!(begun.elapsed() < limit * 5, "{:?}", begun.elapsed());
        assert!(!runs("sleep 7001"), "it still runs");
        let error = run_for(limit, "sleep 7002", Some(&[b'x'; 1 << 20]), true).unwrap_err();
        assert!(error.contains("did not answer within 1 s") && !runs("sleep 7002"), "{error}");
    }

    #[test]
    fn what_a_command_leaves_behind_keeps_no_answer_back_and_is_ended() {
        let begun = Instant::now();
        let printed = run_for(LIMIT, "sleep 7003 & echo secret", None, true).unwrap();
        assert_eq!(printed.as_slice(), b"secret\n");
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        assert!(!runs("sleep 7003"), "it still runs");
        // Without a group of its own it is not waited for either.
        let printed = run_for(LIMIT, "sleep 7005 & echo $!", None, false).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        let left = std::str::from_utf8(&printed).unwrap().trim_end().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(left).unwrap(), Signal::KILL).unwrap();
    }

    #[test]
    fn a_command_is_under_way_once_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let alone = dir.path().join("alone");
        let command = format!("mkdir {0} || exit 9; sleep 0.2; rmdir {0}; echo secret", alone.display());
        std::thread::scope(|scope| {
            let all = [(); 4].map(|()| scope.spawn(|| run_for(LIMIT, &command, None, true)));
            for one in all {
                assert_eq!(one.join().unwrap().unwrap().as_slice(), b"secret\n");
            }
        });
        let limit = Duration::from_secs(1);
        let slow = || run_for(limit * 3, "sleep 2; echo late", None, true);
        std::thread::scope(|scope| {
            let first = scope.spawn(slow);
            while !super::runs().contains_key("sleep 2; echo late") {
                sleep(PAUSE);
            }
            let error = run_for(limit, "sleep 2; echo late", None, true).unwrap_err();
            assert!(error.contains("already running"), "{error}");
            assert_eq!(first.join().unwrap().unwrap().as_slice(), b"late\n");
        });
        assert!(super::runs().is_empty());
    }

    #[test]
    fn a_group_lives_until_its_last_process_has_ended() {
        let mut child = Command::new("sleep").arg("7004").process_group(0).spawn().unwrap();
        assert!(lives(child.id()));
        child.kill().unwrap();
        while !ended(&child).unwrap() {
            sleep(PAUSE);
        }
        assert!(!lives(child.id()), "a zombie");
        child.wait().unwrap();
    }
}
