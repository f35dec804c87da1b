//! Processes that tests start: run to the end with a time limit, or held by a guard that ends them by their own id.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::schema::{self, JsonCommand};

/// Resident pages of an optimised program, in bytes: unoptimised it has several times as many.
pub const PROGRAM: u64 = 16 << 20;

/// What a finished process left.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit status as a shell shows it: the code, or 128 + the signal's number.
    pub status: i32,
    /// Standard output, as text.
    pub stdout: String,
    /// Standard error, as text.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Output {
    /// Did it exit 0?
    pub fn success(&self) -> bool {
        self.status == 0
    }

    /// Panics unless the exit status is `status`; shows what was printed.
    #[track_caller]
    pub fn expect_status(self, status: i32) -> Output {
        assert!(self.status == status, "expected exit {status}, got {self:#?}");
        self
    }

    /// Panics unless it exited 0.
    #[track_caller]
    pub fn expect_success(self) -> Output {
        self.expect_status(0)
    }
}

/// Runs a command to its end; after `limit` it is killed and the test fails. What the programs under test print with `--json` has to
/// be what their schemas describe ([`schema`]).
#[track_caller]
pub fn run(command: &mut Command, limit: Duration) -> Output {
    run_with_input(command, &[], limit)
}

/// Like [`run`], with bytes for standard input.
#[track_caller]
pub fn run_with_input(command: &mut Command, input: &[u8], limit: Duration) -> Output {
    let start = Instant::now();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("start {command:?}: {e}"));
    let mut stdin = child.stdin.take().expect("piped");
    let (mut stdout, mut stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let (status, out, err) = std::thread::scope(|scope| {
        scope.spawn(move || drop(stdin.write_all(input)));
        let read = |pipe: &mut dyn Read| {
            let mut bytes = Vec::new();
            drop(pipe.read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let out = scope.spawn(move || read(&mut stdout));
        let err = scope.spawn(move || read(&mut stderr));
        let status = wait_for(&mut child, limit);
        if status.is_none() {
            kill_pid(child.id(), Signal::KILL);
            drop(child.wait());
        }
        (status, out.join().expect("reader"), err.join().expect("reader"))
    });
    let Some(status) = status else {
        panic!("not finished within {limit:?}: {command:?}\nstdout: {out}\nstderr: {err}")
    };
    let output = Output { status: code(status), stdout: out, stderr: err, took: start.elapsed() };
    schema::check(command, &output);
    output
}

/// A process in the background. Dropping it kills it (SIGKILL, this process only).
#[derive(Debug)]
pub struct Background {
    child: Child,
    log: PathBuf,
    /// How long the log was before.
    log_begin: usize,
    what: String,
    started: Instant,
    json: Option<Box<JsonCommand>>,
}

impl Background {
    /// Starts `command` with both outputs appended to the file `log`.
    #[track_caller]
    pub fn start(command: &mut Command, log: &Path) -> Background {
        let file =
            || -> File { OpenOptions::new().create(true).append(true).open(log).expect("open the log") };
        command.stdin(Stdio::null()).stdout(file()).stderr(file());
        let log_begin = fs::read(log).map_or(0, |bytes| bytes.len());
        let json = JsonCommand::of(command).map(Box::new);
        let started = Instant::now();
        let child = command.spawn().unwrap_or_else(|e| panic!("start {command:?}: {e}"));
        let what =
            Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        Background { child, log: log.to_owned(), log_begin, what, started, json }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it printed so far.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Its exit status when it has ended (as in [`Output::status`]).
    pub fn try_status(&mut self) -> Option<i32> {
        self.child.try_wait().expect("wait").map(code)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_pid(self.child.id(), signal);
    }

    /// Waits for its end; panics after `limit`. What it printed with `--json` has to be what its schemas describe.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> i32 {
        let Some(status) = wait_for(&mut self.child, limit).map(code) else {
            panic!("{} (pid {}) has not ended within {limit:?}\n{}", self.what, self.pid(), self.log())
        };
        self.check(status);
        status
    }

    /// Panics if what it printed with `--json` is not what its schemas describe.
    #[track_caller]
    fn check(&self, status: i32) {
        let Some(json) = &self.json else { return };
        let log = fs::read(&self.log).unwrap_or_default();
        let printed = String::from_utf8_lossy(log.get(self.log_begin..).unwrap_or_default());
        let (stdout, stderr) = schema::printed(&printed);
        json.check(&Output { status, stdout, stderr, took: self.started.elapsed() });
    }

    /// Waits for its end and watches its memory: its exit status, and the most that was resident, in bytes. The pages of the program are
    /// counted as those of the one that is released ([`PROGRAM`]).
    #[track_caller]
    pub fn wait_watched(&mut self, limit: Duration) -> (i32, u64) {
        let (start, mut highest) = (Instant::now(), 0);
        loop {
            // The kernel keeps the peak itself; the last look before the end is what is known of it.
            let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
            if let (Some(peak), Some(program)) = (memory(&status, "VmHWM:"), memory(&status, "RssFile:")) {
                highest = highest.max(peak.saturating_sub(program) + PROGRAM);
            }
            if let Some(status) = self.try_status() {
                self.check(status);
                return (status, highest);
            }
            assert!(start.elapsed() < limit, "{} has not ended within {limit:?}\n{}", self.what, self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// kill -9, and waits until it is gone.
    pub fn kill(&mut self) {
        if self.try_status().is_none() {
            self.signal(Signal::KILL);
            drop(self.child.wait());
        }
    }
}

/// A figure of `/proc/<pid>/status`, in bytes; `None` once the process has ended.
pub fn memory(status: &str, figure: &str) -> Option<u64> {
    let text = status.lines().find_map(|line| line.strip_prefix(figure))?;
    text.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

impl Drop for Background {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- the last lines of {} ({}):", self.what, self.log.display());
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// Sends a signal to one process; one that is gone is fine.
pub fn kill_pid(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Does the process live (a zombie does not)?
pub fn alive(pid: u32) -> bool {
    parent_and_state(pid).is_some_and(|(_, state)| state != 'Z' && state != 'X')
}

/// All descendants of a process, parents before children.
pub fn descendants(pid: u32) -> Vec<u32> {
    let mut links = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if let Some((parent, _)) = parent_and_state(child) {
            links.push((parent, child));
        }
    }
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(links.iter().filter(|(p, _)| *p == parent).map(|(_, child)| *child));
        next += 1;
    }
    found.split_off(1)
}

fn parent_and_state(pid: u32) -> Option<(u32, char)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((fields.next()?.parse().ok()?, state))
}

fn wait_for(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(500);
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return Some(status);
        }
        if start.elapsed() >= limit {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
