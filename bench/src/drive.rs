//! The load drivers. Each measurement is made by a process of its own, which does what PostgreSQL does: it runs
//! `archive_command` for the oldest file that is `.ready`, one `sh -c` at a time, and renames `.ready` to `.done`; or
//! `restore_command` for one segment after the other.
//!
//! Over standard input and output it is told what to do ([`DriveOrder`]), says that the daemon is ready, is told to go, and
//! gives a [`DriveReport`]. What the tool leaves running is ended, and counted, before the report.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::processes::{self, Watch};

/// What to measure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DriveOrder {
    /// The work.
    pub work: WorkKind,
    /// The command; `%p` and `%f` are replaced as PostgreSQL does.
    pub command: String,
    /// A process that runs beside it.
    pub daemon: Option<String>,
    /// Succeeds when that is ready.
    pub ready: Option<String>,
    /// The environment of both.
    pub env: BTreeMap<String, String>,
    /// The data directory, where PostgreSQL's commands run.
    pub pgdata: PathBuf,
    /// Where the commands' output goes.
    pub log: PathBuf,
    /// Milliseconds between two looks at the memory.
    pub look_ms: u64,
}

/// The kinds of work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum WorkKind {
    /// `archive_command` for these segments.
    Archive {
        /// Their names, oldest first.
        segments: Vec<String>,
    },
    /// `restore_command` for these segments, into an empty `pg_wal`.
    Fetch {
        /// Their names, oldest first.
        segments: Vec<String>,
        /// How long PostgreSQL replays each.
        pace_ms: u64,
    },
    /// One command.
    Once,
}

/// What was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DriveReport {
    /// From the beginning of the first command to the end of the last.
    pub seconds: f64,
    /// How long each command took, in milliseconds.
    pub commands_ms: Vec<f64>,
    /// When each command had ended, in seconds since the beginning.
    pub ended: Vec<f64>,
    /// CPU seconds of all processes of the tool, from the moment when the daemon was ready.
    pub cpu: f64,
    /// CPU seconds of the driver itself.
    pub driver_cpu: f64,
    /// Peak resident memory of each kind of process.
    pub memory: BTreeMap<String, u64>,
    /// Resident memory of the idle daemon before and after the work.
    pub idle: Option<(u64, u64)>,
    /// Why it failed, with the end of the log.
    pub failure: Option<String>,
}

/// What the driver says when the daemon is ready.
pub const READY: &str = "READY";

/// An idle daemon settles for so long before its memory is read.
const SETTLE: Duration = Duration::from_millis(1000);

/// And for so long after archiving, until it has given back what it needed for that.
const REST: Duration = Duration::from_millis(5000);

/// A daemon becomes ready within this.
const START: Duration = Duration::from_secs(30);

/// Whatever takes longer is ended, and has failed.
const LIMIT: Duration = Duration::from_secs(400);

/// How long what is asked to end may take.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// The driver's process: from standard input to standard output.
pub fn main() {
    processes::adopt_orphans();
    let mut input = std::io::stdin().lock();
    let mut line = String::new();
    input.read_line(&mut line).expect("an order");
    let order: DriveOrder = serde_json::from_str(&line).expect("an order");
    let mut driver = Driver { order, daemon: None, before: 0.0 };
    let begun = driver.start_daemon();
    say(READY);
    line.clear();
    input.read_line(&mut line).expect("the word to go");
    let report = driver.run(begun);
    say(&serde_json::to_string(&report).expect("a report"));
}

fn say(text: &str) {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{text}").and_then(|()| output.flush()).expect("somebody listens");
}

struct Driver {
    order: DriveOrder,
    daemon: Option<Child>,
    /// CPU seconds until the daemon was ready.
    before: f64,
}

/// One run of a command.
struct Ran {
    took: Duration,
    success: bool,
    status: String,
}

impl Driver {
    fn shell(&self, command: &str) -> Command {
        let mut shell = Command::new("sh");
        let log = || -> File {
            OpenOptions::new().create(true).append(true).open(&self.order.log).expect("open the log")
        };
        shell.arg("-c").arg(command).current_dir(&self.order.pgdata).envs(&self.order.env);
        shell.stdin(Stdio::null()).stdout(log()).stderr(log());
        shell
    }

    fn run_shell(&self, command: &str) -> Ran {
        let mut shell = self.shell(command);
        let begun = Instant::now();
        match shell.status() {
            Ok(status) => {
                Ran { took: begun.elapsed(), success: status.success(), status: status.to_string() }
            }
            Err(error) => Ran { took: begun.elapsed(), success: false, status: error.to_string() },
        }
    }

    fn start_daemon(&mut self) -> Result<u64, String> {
        let Some(command) = self.order.daemon.clone() else { return Ok(0) };
        // The shell becomes the daemon, so that its process id is the daemon's.
        let mut daemon =
            self.shell(&format!("exec {command}")).spawn().map_err(|e| format!("the daemon: {e}"))?;
        let begun = Instant::now();
        if let Some(ready) = self.order.ready.clone() {
            while !self.run_shell(&ready).success {
                if let Ok(Some(status)) = daemon.try_wait() {
                    return Err(self.with_log(&format!("the daemon ended: {status}")));
                }
                if begun.elapsed() > START {
                    return Err(self.with_log("the daemon is not ready"));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        std::thread::sleep(SETTLE);
        let idle = processes::resident(daemon.id());
        self.before = processes::reaped_cpu() + processes::cpu_of(daemon.id());
        self.daemon = Some(daemon);
        Ok(idle)
    }

    fn run(mut self, begun: Result<u64, String>) -> DriveReport {
        let mut report = DriveReport {
            seconds: 0.0,
            commands_ms: Vec::new(),
            ended: Vec::new(),
            cpu: 0.0,
            driver_cpu: 0.0,
            memory: BTreeMap::new(),
            idle: None,
            failure: None,
        };
        match begun {
            Err(problem) => report.failure = Some(problem),
            Ok(idle_before) => {
                let own = processes::own_cpu();
                let watch = Watch::start(Duration::from_millis(self.order.look_ms));
                let (done, waited) = std::sync::mpsc::channel::<()>();
                let guard = std::thread::spawn(move || {
                    // Nothing is ever sent: the other end goes when the work is done.
                    if waited.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                        processes::end_all(Duration::ZERO);
                    }
                });
                report.failure = self.work(&mut report).err();
                drop(done);
                guard.join().expect("the guard");
                if let Some(daemon) = &self.daemon {
                    let archived = matches!(self.order.work, WorkKind::Archive { .. });
                    std::thread::sleep(if archived { REST } else { SETTLE });
                    report.idle = Some((idle_before, processes::resident(daemon.id())));
                }
                report.memory = watch.stop();
                report.driver_cpu = processes::own_cpu() - own;
            }
        }
        drop(self.daemon.take());
        processes::end_all(TIME_LIMIT);
        report.cpu = processes::reaped_cpu() - self.before;
        report
    }

    fn work(&self, report: &mut DriveReport) -> Result<(), String> {
        match &self.order.work {
            WorkKind::Archive { segments } => self.archive(segments, report),
            WorkKind::Fetch { segments, pace_ms } => {
                self.fetch(segments, Duration::from_millis(*pace_ms), report)
            }
            WorkKind::Once => {
                let begun = Instant::now();
                let ran = self.run_shell(&self.order.command);
                self.note(report, begun, &ran);
                self.succeeded(&ran, "the command")
            }
        }
    }

    fn archive(&self, segments: &[String], report: &mut DriveReport) -> Result<(), String> {
        let status = self.order.pgdata.join("pg_wal/archive_status");
        let file = |name: &str, ending: &str| status.join(format!("{name}.{ending}"));
        let begun = Instant::now();
        for name in segments {
            File::create(file(name, "ready")).map_err(|e| format!("{name}.ready: {e}"))?;
        }
        for name in segments {
            let ran = self.run_shell(&with_names(&self.order.command, name, &format!("pg_wal/{name}")));
            self.succeeded(&ran, name)?;
            self.note(report, begun, &ran);
            fs::rename(file(name, "ready"), file(name, "done")).map_err(|e| format!("{name}.done: {e}"))?;
        }
        Ok(())
    }

    fn fetch(&self, segments: &[String], pace: Duration, report: &mut DriveReport) -> Result<(), String> {
        let wal = self.order.pgdata.join("pg_wal");
        let recovering = "pg_wal/RECOVERYXLOG";
        // A server runs there, as far as anybody can see: this process.
        let server = format!("{}\n{}\n", std::process::id(), self.order.pgdata.display());
        fs::write(self.order.pgdata.join("postmaster.pid"), server).map_err(|e| e.to_string())?;
        let begun = Instant::now();
        // What PostgreSQL asks first: whether a newer timeline has begun. That there is none is the usual answer.
        if let Some(history) = segments.first().and_then(|name| next_history(name)) {
            self.run_shell(&with_names(&self.order.command, &history, "pg_wal/RECOVERYHISTORY"));
        }
        for name in segments {
            let ran = self.run_shell(&with_names(&self.order.command, name, recovering));
            self.succeeded(&ran, name)?;
            self.note(report, begun, &ran);
            // As PostgreSQL keeps what it replays.
            fs::rename(wal.join("RECOVERYXLOG"), wal.join(name)).map_err(|e| format!("{name}: {e}"))?;
            if !pace.is_zero() {
                std::thread::sleep(pace);
            }
        }
        Ok(())
    }

    fn note(&self, report: &mut DriveReport, begun: Instant, ran: &Ran) {
        report.commands_ms.push(ran.took.as_secs_f64() * 1000.0);
        report.seconds = begun.elapsed().as_secs_f64();
        report.ended.push(report.seconds);
    }

    fn succeeded(&self, ran: &Ran, what: &str) -> Result<(), String> {
        if ran.success { Ok(()) } else { Err(self.with_log(&format!("{what}: {}", ran.status))) }
    }

    fn with_log(&self, problem: &str) -> String {
        let log = fs::read(&self.order.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let last: Vec<&str> = log.lines().rev().take(8).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        format!("{problem}\n{}", last.join("\n"))
    }
}

/// A command with `%f` and `%p` replaced.
fn with_names(command: &str, name: &str, path: &str) -> String {
    command.replace("%f", name).replace("%p", path)
}

/// The history file of the timeline after that of a segment.
fn next_history(segment: &str) -> Option<String> {
    let timeline = u32::from_str_radix(segment.get(..8)?, 16).ok()?;
    Some(format!("{:08X}.history", timeline.checked_add(1)?))
}

/// Removes what an earlier measurement left in `archive_status`.
pub fn clear_archive_status(pgdata: &Path) {
    let status = pgdata.join("pg_wal/archive_status");
    for entry in fs::read_dir(&status).expect("read archive_status").flatten() {
        fs::remove_file(entry.path()).expect("clear archive_status");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_replaced_as_postgresql_does() {
        assert_eq!(with_names("cp %p /a/%f", "0001", "pg_wal/0001"), "cp pg_wal/0001 /a/0001");
        assert_eq!(next_history("0000000A0000000000000001").unwrap(), "0000000B.history");
    }
}
