//! Whether PostgreSQL asks for its WAL to be archived.
//!
//! A data directory can be a copy beside production, with production's configuration and with archiving switched off. What
//! such a server writes does not belong into the archive, so nothing is stored ahead of its questions: not before it has asked
//! once since it and the daemon started, and not after it stopped asking: files wait, or it archives them by other means. Nothing here survives the process; the archiver asks
//! again soon, at the latest a minute after a file is ready.
//!
//! Where no server runs, a person or a script hands over what a server left behind. A file by itself is stored by itself. Several in
//! order, each of which was stored, are a queue that is being worked off, and the rest of it is stored ahead for as long as that goes
//! on. A file that is refused, or handed over again, is no step of it: three tries with one file, or the files of another server that
//! comes to this socket, begin nothing.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use walpoint_base::WalFileName;

use super::disk::{self, DiskError};
use super::postmaster::{ServerStart, started};

/// A file that waits for so long without a question means that the server stopped asking: its archiver asks again every
/// minute.
const SILENCE: Duration = Duration::from_secs(180);

/// So many files that were stored in order, where no server runs, are a queue.
const IN_A_ROW: u32 = 3;

/// No longer lies between two of them.
const PAUSE: Duration = Duration::from_secs(5);

/// The questions of one server.
#[derive(Debug)]
pub(crate) struct OpenQuestions {
    pgdata: PathBuf,
    state: Mutex<State>,
    /// Told after every question that follows silence. For one listener each.
    pub(crate) look_ahead: Notify,
    pub(crate) backfill: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The server that asked last.
    server: Option<ServerStart>,
    /// Files that were stored in order, and the last of them.
    row: u32,
    stored: Option<WalFileName>,
    /// When a question came or was answered last.
    last: Option<Instant>,
    /// Questions that wait for their answer.
    open: usize,
    /// Since when files wait and no question came.
    unasked: Option<Instant>,
    /// The server archived a file without a question, and none came since.
    bypassed: bool,
}

impl State {
    fn ask(&mut self, server: Option<ServerStart>, now: Instant) {
        if !self.goes_on(now) || server != self.server {
            (self.row, self.stored) = (0, None);
        }
        self.server = server;
        self.last = Some(now);
        self.unasked = None;
        self.bypassed = false;
        self.open += 1;
    }

    /// With the name of the file, if it was stored.
    fn answer(&mut self, stored: Option<WalFileName>, now: Instant) {
        self.open = self.open.saturating_sub(1);
        self.row = match stored {
            Some(_) if stored > self.stored => self.row.saturating_add(1),
            _ => 0,
        };
        self.stored = stored;
        self.last = Some(now);
        self.unasked = None;
    }

    /// Whether a question now follows on the last one.
    fn goes_on(&self, now: Instant) -> bool {
        self.open > 0 || self.last.is_some_and(|last| now.duration_since(last) <= PAUSE)
    }

    /// Files wait, or none does.
    fn see(&mut self, waiting: bool, now: Instant) {
        match waiting {
            true => drop(self.unasked.get_or_insert(now)),
            false => self.unasked = None,
        }
    }

    /// For how long files wait that a running server does not ask about, if that is too long.
    fn neglected(&self, running: Option<ServerStart>, now: Instant) -> Option<Duration> {
        let since = self.unasked.filter(|_| running.is_some() && self.open == 0)?;
        Some(now.duration_since(since)).filter(|span| *span > SILENCE)
    }

    /// A file that waited since then was archived. Whether that is the first one without a question.
    fn bypass(&mut self, since: Instant) -> bool {
        let asked = self.open > 0 || self.last.is_some_and(|last| last >= since);
        !asked && self.server.is_some() && !std::mem::replace(&mut self.bypassed, true)
    }

    fn asks(&self, running: Option<ServerStart>, now: Instant) -> bool {
        let silent = self.unasked.is_some_and(|since| now.duration_since(since) > SILENCE);
        running == self.server
            && match running {
                Some(_) => self.open > 0 || !(silent || self.bypassed),
                None => self.row >= IN_A_ROW && self.goes_on(now),
            }
    }
}

/// A question that waits for its answer, until dropped.
pub(crate) struct OpenQuestion<'a> {
    questions: &'a OpenQuestions,
    stored: Option<WalFileName>,
}

impl OpenQuestion<'_> {
    /// The answer is that this file is stored.
    pub(crate) fn stored(&mut self, name: WalFileName) {
        self.stored = Some(name);
    }
}

impl Drop for OpenQuestion<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let begins = self.questions.with(|state| {
            // What runs now is asked when it matters.
            let server = state.server;
            let asked = state.asks(server, now);
            state.answer(self.stored, now);
            !asked && state.asks(server, now)
        });
        if begins {
            self.questions.wake();
        }
    }
}

impl OpenQuestions {
    /// Of the server of a data directory, which has not asked yet.
    pub(crate) fn new(pgdata: &Path) -> Self {
        Self {
            pgdata: pgdata.to_owned(),
            state: Mutex::default(),
            look_ahead: Notify::new(),
            backfill: Notify::new(),
        }
    }

    /// A question came.
    pub(crate) async fn ask(&self) -> OpenQuestion<'_> {
        // Of one whose directory does not answer nothing is known.
        let (server, now) = (self.started().await.unwrap_or_default(), Instant::now());
        let asked = self.with(|state| {
            let asked = state.asks(server, now);
            state.ask(server, now);
            asked
        });
        if !asked {
            self.wake();
        }
        OpenQuestion { questions: self, stored: None }
    }

    /// There may be something to do for those who listen.
    fn wake(&self) {
        self.look_ahead.notify_one();
        self.backfill.notify_one();
    }

    /// Whether files wait for being asked for.
    pub(crate) fn see(&self, waiting: bool) {
        self.with(|state| state.see(waiting, Instant::now()));
    }

    /// A file that waited since then was archived. Without a question from then on the server does something else with its WAL, and is
    /// taken to ask no more; whether that is new.
    pub(crate) fn bypass(&self, since: Instant) -> bool {
        self.with(|state| state.bypass(since))
    }

    /// The server that asked last.
    pub(crate) fn server(&self) -> Option<ServerStart> {
        self.with(|state| state.server)
    }

    /// For how long files wait that the running server does not ask about, if that is longer than it takes an archiver that asks.
    pub(crate) async fn neglected(&self) -> Result<Option<Duration>, DiskError> {
        let server = self.started().await?;
        Ok(self.with(|state| state.neglected(server, Instant::now())))
    }

    /// Whether the server asks.
    pub(crate) async fn asks(&self) -> Result<bool, DiskError> {
        let server = self.started().await?;
        Ok(self.with(|state| state.asks(server, Instant::now())))
    }

    /// Whether the last file was handed over where no server ran.
    pub(crate) fn is_by_hand(&self) -> bool {
        self.with(|state| state.server.is_none())
    }

    /// The server that runs.
    async fn started(&self) -> Result<Option<ServerStart>, DiskError> {
        let pgdata = self.pgdata.clone();
        disk::look(&self.pgdata, move || started(&pgdata)).await
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        // Whole between any two statements, so a panic elsewhere does not spoil it.
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(start: u64) -> Option<ServerStart> {
        Some(ServerStart { pid: 7, start })
    }

    #[test]
    fn a_server_asks_from_its_first_question_to_its_end() {
        let (mut state, now) = (State::default(), Instant::now());
        assert!(!state.asks(server(1), now), "it has not asked yet");
        state.ask(server(1), now);
        assert!(state.asks(server(1), now));
        state.answer(None, now);
        assert!(state.asks(server(1), now + SILENCE * 9), "nothing waits");
        assert_eq!(state.neglected(server(1), now + SILENCE * 9), None);
        assert!(!state.asks(None, now), "it ended");
        assert!(!state.asks(server(2), now), "another start has not asked yet");
    }

    #[test]
    fn files_that_wait_without_a_question_mean_that_it_stopped_asking() {
        let (mut state, now) = (State::default(), Instant::now());
        state.ask(server(1), now);
        state.see(true, now);
        assert!(state.asks(server(1), now + SILENCE * 9), "a question waits for its answer");
        state.answer(None, now);
        state.see(true, now);
        state.see(true, now + SILENCE);
        assert!(state.asks(server(1), now + SILENCE));
        let late = now + SILENCE + Duration::from_secs(1);
        assert!(!state.asks(server(1), late), "archive_command was switched off");
        assert!(state.neglected(server(1), late).is_some() && state.neglected(None, late).is_none());
        state.ask(server(1), late);
        state.answer(None, late);
        assert!(state.asks(server(1), late), "it asks again");
        state.see(true, late);
        state.see(false, late + SILENCE);
        assert!(state.asks(server(1), late + SILENCE * 2), "what waited was archived or removed");
    }

    #[test]
    fn a_server_that_archives_without_a_question_asks_no_more() {
        let (mut state, now) = (State::default(), Instant::now());
        let second = Duration::from_secs(1);
        assert!(!state.bypass(now), "no server has asked yet");
        state.ask(server(1), now);
        assert!(!state.bypass(now), "the question waits for its answer");
        state.answer(None, now + second);
        assert!(!state.bypass(now + second) && state.asks(server(1), now + second), "it waited before");
        assert!(state.bypass(now + second * 2));
        assert!(!state.asks(server(1), now + second * 2));
        assert!(!state.bypass(now + second * 3), "that is known");
        state.ask(server(1), now + second * 4);
        state.answer(None, now + second * 4);
        assert!(state.asks(server(1), now + second * 4));
    }

    fn segment(number: u32) -> Option<WalFileName> {
        format!("0000000100000000{number:08X}").parse().ok()
    }

    #[test]
    fn a_queue_without_a_server_is_asked_for_while_it_is_worked_off() {
        let (mut state, mut now) = (State::default(), Instant::now());
        assert!(!state.asks(None, now), "nothing was asked for");
        let mut hand_over = |state: &mut State, number: u32, after: Duration| {
            now += after;
            state.ask(None, now);
            state.answer(segment(number), now);
            (state.asks(None, now), now)
        };
        let second = Duration::from_secs(1);
        assert!(!hand_over(&mut state, 1, second).0, "a file by itself");
        assert!(!hand_over(&mut state, 2, PAUSE + second).0, "and another one");
        assert!(!hand_over(&mut state, 3, second).0);
        let (asks, now) = hand_over(&mut state, 4, second);
        assert!(asks, "the third in order");
        assert!(state.asks(None, now + PAUSE) && !state.asks(None, now + PAUSE + second), "it ended");
        assert!(!state.asks(server(1), now), "a server that was started has not asked");
        state.ask(server(1), now);
        state.answer(segment(5), now);
        assert!(state.asks(server(1), now) && !state.asks(None, now), "and one that ended asks no more");
        assert_eq!(state.neglected(None, now + SILENCE * 9), None);
    }

    #[test]
    fn what_is_refused_or_handed_over_again_is_no_queue() {
        let now = Instant::now();
        let asks = |answers: &[Option<WalFileName>]| {
            let mut state = State::default();
            for stored in answers {
                state.ask(None, now);
                state.answer(*stored, now);
            }
            state.asks(None, now)
        };
        assert!(asks(&[1, 2, 3].map(segment)));
        assert!(!asks(&[None; 3]), "the files of another server");
        assert!(!asks(&[segment(1); 9]), "one file, again and again");
        assert!(!asks(&[segment(1), segment(2), None, segment(3), segment(4)]));
        assert!(!asks(&[3, 2, 1].map(segment)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_looks_ahead_is_woken_where_a_queue_begins() {
        let dir = tempfile::tempdir().unwrap();
        let asking = OpenQuestions::new(dir.path());
        for number in 1..=3 {
            let mut question = asking.ask().await;
            tokio::time::timeout(Duration::ZERO, asking.look_ahead.notified()).await.ok();
            question.stored(segment(number).unwrap());
        }
        assert!(tokio::time::timeout(Duration::ZERO, asking.look_ahead.notified()).await.is_ok());
        assert!(asking.is_by_hand());
    }

    /// Opening a pipe into which nothing is ever written does not return.
    #[tokio::test]
    async fn a_directory_that_hangs_is_told_and_keeps_nothing_else_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("postmaster.pid");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .unwrap();
        let asking = OpenQuestions::new(dir.path());
        let (asks, others) = tokio::join!(asking.asks(), async {
            tokio::task::yield_now().await;
            Instant::now()
        });
        assert!(
            asks.is_err() && others.elapsed() > Duration::from_millis(100),
            "what else there is to do is done meanwhile"
        );
        assert!(asking.neglected().await.is_err());
        drop(asking.ask().await);
        // A writer that comes and goes ends the reads.
        drop(std::fs::OpenOptions::new().read(true).write(true).open(pipe).unwrap());
    }
}
