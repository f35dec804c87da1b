//! `restore --start`: the restored server is started, watched until recovery is where it was to stop, and checked.
//!
//! | module | owns |
//! |---|---|
//! | [`options`] | what the command line says of it |
//! | [`launch`] | starting it so that it outlives this program, its address and its log |
//! | [`watch`], [`unseen`] | how far it is, by its own word or from outside |
//! | [`unanswered`] | why it takes no sessions, though it should |
//! | [`pace`] | what a person is shown of that |
//! | [`arrival`] | how a server is judged that has arrived |
//! | [`document`], [`mod@text`] | what became of it, as JSON and for a person |
//! | [`ended`] | what to do about a server that has not arrived |
//!
//! What always holds: the server runs in a session of its own, so nothing that ends this program ends it, and it is never stopped or
//! started again here. Its programs and the checks are looked for before anything is restored.

mod arrival;
mod document;
mod ended;
mod launch;
mod options;
mod pace;
mod text;
mod unanswered;
mod unseen;
mod watch;

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use tokio::signal::unix::{SignalKind, signal};
use walpoint_base::diagnostic::shown;
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::Failure;
use walpoint_words::format_chain;

use self::arrival::Arrival;
use self::document::ServerState;
pub(super) use self::document::StartedDocument;
use self::ended::When;
use self::launch::Launched;
pub(super) use self::options::StartArgs;
pub(super) use self::text::text;
use self::watch::{Arrived, Known, Watch, Watched};
use super::RestoreArgs;
use super::confined;
use super::owners::Owner;
use crate::checks::{self, Check, CheckDocument, CheckOutcome, CheckResult};
use crate::plan::{CommandLine, Planned};
use crate::server::{self, Programs, Reached, ServerUser};
use crate::shell;

/// What a person puts in the place of `TIME`.
const ANOTHER: [&str; 2] = ["--target-time", "TIME"];

/// How long a server may take to end that a broken session or a failed check was perhaps the first sign of.
const ENDING: Duration = Duration::from_secs(2);

/// What a restored server is started with.
#[derive(Debug, Clone)]
pub(super) struct LaunchPlan {
    /// The data directory.
    pub(super) pgdata: PathBuf,
    /// Who owns it, if not this process's user.
    pub(super) owner: Option<Owner>,
    /// The server's options.
    pub(super) options: Vec<String>,
    /// Whether it is a standby, which does not end recovery by itself.
    pub(super) is_standby: bool,
    /// Whether it is to pause at the target.
    pub(super) pauses: bool,
    /// Whether it takes sessions during recovery.
    pub(super) takes_sessions: bool,
    /// The command that starts it again.
    pub(super) start_command: String,
    /// The same at another port.
    pub(super) beside_command: String,
}

/// A start that was asked for.
#[derive(Debug)]
pub(super) struct Starting {
    args: StartArgs,
    checks: Vec<Check>,
    /// Found once there is a plan.
    found: Option<(Programs, PathBuf)>,
}

/// A server that was started, and what is wrong with it.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) document: StartedDocument,
    pub(super) failure: Option<anyhow::Error>,
}

impl Starting {
    /// What the options ask for. A file of checks is read at once.
    pub(super) fn asked(args: &RestoreArgs) -> Result<Option<Self>, Failure> {
        args.start.require_possible(args.target_action)?;
        if !args.start.start {
            return Ok(None);
        }
        let checks = match &args.start.check {
            Some(file) => checks::read("--check", file).map_err(Failure::usage)?,
            None => Vec::new(),
        };
        Ok(Some(Self { args: args.start.clone(), checks, found: None }))
    }

    /// Finds what the server is started with, before anything is restored.
    pub(super) async fn find_programs(&mut self, planned: &Planned) -> anyhow::Result<()> {
        let owner = confined::owner_of(planned).await.unwrap_or_else(|error| {
            tracing::debug!("the owner of the files is not known yet: {error:#}");
            None
        });
        let user = server::user_before_restore(owner);
        let programs = Programs::find(self.args.pg_bindir.as_deref(), planned.lineage.major, &user)?;
        self.found = Some((programs, launch::find_setsid()?));
        Ok(())
    }

    /// Starts the server, waits for it, and checks it. Whatever comes of that, it is left as it is.
    pub(super) async fn start(
        &self,
        common: &CommonArgs,
        planned: &Planned,
        plan: &LaunchPlan,
    ) -> anyhow::Result<Started> {
        let Some((programs, setsid)) = &self.found else {
            return Err(anyhow!("PostgreSQL's programs were not looked for"));
        };
        let user = ServerUser::of(plan.owner);
        // From here on a signal ends the waiting in order, so that the commands that stop the server are printed.
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let began = Instant::now();
        let mut launched = Launched::start(programs, &user, setsid, plan)?;
        tracing::info!(
            "started PostgreSQL {} in {}: process {}",
            programs.version,
            plan.pgdata.display(),
            launched.pid
        );
        let watch = Watch {
            planned,
            plan,
            user: &user,
            peer: plan.owner.map(|owner| user.peer(owner)),
            until: self.args.start_timeout.map(|limit| began + limit),
            show_progress: common.show_progress(),
        };
        let mut known = Known::default();
        let mut attempt = Attempt { plan, programs, user: &user, began, checks: Vec::new() };
        let arrived = tokio::select! {
            watched = watch.watch(&mut launched, &mut known) => Some(watched),
            _ = interrupt.recv() => None,
            _ = terminate.recv() => None,
        };
        let started = match arrived {
            None => attempt.left(&launched, &known, ended::interrupted()),
            // A server that ends takes its session along.
            Some(Err(error)) => match launched.end_within(ENDING).await {
                Some(status) => attempt.ended(&mut launched, &known, (When::Before, status)).await,
                None => attempt.left(&launched, &known, error),
            },
            Some(Ok(Watched::Late)) => {
                attempt.left(&launched, &known, ended::late(self.args.start_timeout.unwrap_or_default()))
            }
            Some(Ok(Watched::Refused(error))) => attempt.left(&launched, &known, ended::refused(error)),
            Some(Ok(Watched::Consistent)) => attempt.standby(&launched, &known),
            Some(Ok(Watched::Ended(status))) => {
                attempt.ended(&mut launched, &known, (When::Before, status)).await
            }
            Some(Ok(Watched::Arrived(arrived))) => {
                attempt.show_start(&launched);
                // Elsewhere, they would say nothing about the moment that was asked for.
                let is_there = arrived.instance.reached == Reached::Target;
                let checks = if is_there { &self.checks[..] } else { &[] };
                let checked = tokio::select! {
                    checked = checks::run_all(checks, &arrived.instance, &user) => Some(checked),
                    _ = interrupt.recv() => None,
                    _ = terminate.recv() => None,
                };
                let is_interrupted = checked.is_none();
                let checked = checked.unwrap_or_default();
                // A server that has ended is neither paused nor promoted, whatever its checks found.
                let has_failed = checked.iter().any(CheckResult::has_failed);
                let ended = launched.end_within(if has_failed { ENDING } else { Duration::ZERO }).await;
                attempt.checks = checked.iter().map(CheckDocument::of).collect();
                match ended {
                    Some(status) => attempt.ended(&mut launched, &known, (When::After, status)).await,
                    None => attempt.arrived(&launched, &arrived, is_interrupted),
                }
            }
        };
        Ok(started)
    }
}

/// A server that is looked at.
struct Attempt<'a> {
    plan: &'a LaunchPlan,
    programs: &'a Programs,
    user: &'a ServerUser,
    began: Instant,
    checks: Vec<CheckDocument>,
}

impl Attempt<'_> {
    /// What is known of it in any case.
    fn document(&self, launched: &Launched, known: &Known) -> StartedDocument {
        let retry = CommandLine::given().over().with_target(&ANOTHER.map(str::to_owned));
        StartedDocument {
            state: ServerState::Recovering,
            pid: Some(launched.pid),
            host: known.address.as_ref().map(|address| address.host.clone()),
            port: known.address.as_ref().and_then(|address| address.port.parse().ok()),
            log: launched.log().display().to_string(),
            replayed_lsn: known.seen.lsn,
            timeline: None,
            last_commit_time: known.seen.last_commit,
            recovery_seconds: self.began.elapsed().as_secs_f64(),
            checks: Vec::new(),
            verdict: None,
            problems: Vec::new(),
            resume_command: None,
            stop_command: self.user.stop_command(self.programs, &self.plan.pgdata),
            retry_command: shell::line(&retry),
        }
    }

    /// It runs, and was not waited for to its end.
    fn left(&self, launched: &Launched, known: &Known, error: anyhow::Error) -> Started {
        let document = self.document(launched, known);
        let watch = match (&document.host, document.port) {
            (Some(host), Some(port)) if self.plan.takes_sessions => {
                let sql = "select pg_last_wal_replay_lsn(), pg_last_xact_replay_timestamp(), pg_is_wal_replay_paused()";
                self.psql(host, &port.to_string(), "postgres", sql)
            }
            _ => shell::line(&["tail".to_owned(), "-f".to_owned(), document.log.clone()]),
        };
        let error = error.context(format!(
            "the cluster was restored, and its server runs (process {})\nHINT: To watch it: {watch}\nHINT: To stop it: {}",
            launched.pid, document.stop_command
        ));
        failed(document, error)
    }

    fn standby(&self, launched: &Launched, known: &Known) -> Started {
        let document = StartedDocument { state: ServerState::Standby, ..self.document(launched, known) };
        Started { document, failure: None }
    }

    async fn ended(
        &mut self,
        launched: &mut Launched,
        known: &Known,
        (when, status): (When, ExitStatus),
    ) -> Started {
        let complaint = launched.complaint().await;
        let error = ended::ended(launched, self.plan, when, (status, complaint));
        let (document, checks) = (self.document(launched, known), std::mem::take(&mut self.checks));
        failed(StartedDocument { state: ServerState::Ended, pid: None, checks, ..document }, error)
    }

    /// It is where it was to stop, or where it stopped by itself.
    fn arrived(mut self, launched: &Launched, arrived: &Arrived, is_interrupted: bool) -> Started {
        let Arrived { instance, timeline } = arrived;
        let position = instance.position;
        let state = match (position.is_in_recovery, self.plan.is_standby) {
            (true, true) => ServerState::Standby,
            (true, false) => ServerState::Paused,
            (false, _) => ServerState::Promoted,
        };
        let failed_checks = self.checks.iter().filter(|check| check.result == CheckOutcome::Failed).count();
        let arrival = Arrival {
            state,
            pauses: self.plan.pauses,
            reached: &instance.reached,
            checks: (self.checks.len(), failed_checks),
            is_interrupted,
        };
        let resume = arrival.may_be_accepted().then(|| {
            let server = &instance.server;
            self.psql(&server.host, &server.port, &instance.superuser, "select pg_wal_replay_resume()")
        });
        let document = self.document(launched, &Known::default());
        let document = StartedDocument {
            state,
            host: Some(instance.server.host.clone()),
            port: instance.server.port.parse().ok(),
            replayed_lsn: Some(position.lsn),
            timeline: Some(*timeline),
            last_commit_time: position.last_commit,
            checks: std::mem::take(&mut self.checks),
            verdict: arrival.verdict(),
            resume_command: resume,
            ..document
        };
        match arrival.problem() {
            Some(error) => failed(document, error),
            None => Started { document, failure: None },
        }
    }

    /// What the server printed before its configuration sent its log elsewhere.
    fn show_start(&self, launched: &Launched) {
        for line in launched.printed_before_the_log() {
            tracing::info!("PostgreSQL: {}", shown(&line));
        }
    }

    /// A command that asks the server.
    fn psql(&self, host: &str, port: &str, role: &str, sql: &str) -> String {
        let psql = self.programs.optional("psql").unwrap_or_else(|| PathBuf::from("psql"));
        let mut words = self.user.words();
        words.push(psql.display().to_string());
        let options = ["-h", host, "-p", port, "-U", role, "-d", "postgres", "-c", sql];
        words.extend(options.map(str::to_owned));
        shell::line(&words)
    }
}

fn failed(document: StartedDocument, error: anyhow::Error) -> Started {
    Started {
        document: StartedDocument { problems: vec![format_chain(&error)], ..document },
        failure: Some(error),
    }
}

impl Started {
    /// Whether it says more than that the restore succeeded.
    pub(super) fn is_notable(&self) -> bool {
        self.failure.is_some() || !self.document.checks.is_empty()
    }

    /// How many checks passed and failed, for the record.
    pub(super) fn summary(&self) -> String {
        let of = |result| self.document.checks.iter().filter(|check| check.result == result).count();
        let lsn = self.document.replayed_lsn.map_or(String::new(), |lsn| format!(" at {lsn}"));
        let state = match self.document.state {
            ServerState::Paused => "paused",
            ServerState::Promoted => "promoted",
            ServerState::Standby => "a standby",
            ServerState::Recovering => "recovering",
            ServerState::Ended => "ended",
        };
        let mut text = format!("started: {state}{lsn}");
        if !self.document.checks.is_empty() {
            let (passed, failed) = (of(CheckOutcome::Passed), of(CheckOutcome::Failed));
            let passed = walpoint_runtime::human::count(passed as u64, "check");
            text.push_str(&format!("; {passed} passed, {failed} failed"));
        }
        text
    }

    /// What failed, for the record: the checks one by one, unless their server has ended; else what is wrong.
    pub(super) fn issues(&self) -> Vec<String> {
        let failed = self.document.checks.iter().filter(|check| check.result == CheckOutcome::Failed);
        let failed: Vec<String> = failed
            .map(|check| format!("{}: {}", check.name, check.message.as_deref().unwrap_or("failed")))
            .collect();
        match failed.is_empty() || self.document.state == ServerState::Ended {
            true => self.document.problems.clone(),
            false => failed,
        }
    }
}
