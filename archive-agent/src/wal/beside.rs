//! What goes to a repository that does not have to acknowledge: a daemon stores it after the acknowledgement, by tasks of their own.
//!
//! Each such repository has one line of files that wait for it, in PostgreSQL's order. Only their names wait, and not more than
//! [`LINE`]; the content is read from `pg_wal` when its turn comes. What always holds: nothing is stored directly behind a file that
//! the repository missed. From then on it is behind: [`catch_up`](super::catch_up) copies what it missed, and what is acknowledged
//! meanwhile waits until that is done, or is missed as well if the line is full. A daemon begins that way, because what the one
//! before it left in its line is not known. A crash forgets the line; the next daemon finds what is missing.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use walpoint_base::WalFileName;

use super::archiver::Archiver;
use super::order::{Turn, turn};
use super::target::WalTarget;
use super::upload::UploadSource;

/// Files that wait for one repository.
const LINE: usize = 256;

/// Files that are being stored in one repository.
const AT_ONCE: usize = 4;

/// How a repository gets what is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It missed something: what is acknowledged waits until it is caught up.
    Behind,
    /// It missed something, and what came before that is being stored still.
    Ending,
    /// Directly.
    Direct,
}

/// The files that wait, and how the repository gets them.
#[derive(Debug)]
struct Line<F> {
    phase: Phase,
    waiting: BTreeMap<Turn, (WalFileName, F)>,
    under_way: usize,
}

impl<F> Line<F> {
    const fn new() -> Self {
        Self { phase: Phase::Behind, waiting: BTreeMap::new(), under_way: 0 }
    }

    /// Takes an acknowledged file; what the repository misses therefore.
    fn add(&mut self, name: WalFileName, file: F) -> Vec<WalFileName> {
        match self.phase {
            Phase::Direct | Phase::Behind if self.waiting.len() < LINE => {
                self.waiting.insert(turn(name), (name, file));
                Vec::new()
            }
            Phase::Direct | Phase::Ending => {
                self.falls_behind();
                vec![name]
            }
            Phase::Behind => self.drain_with(name),
        }
    }

    fn next(&mut self) -> Option<F> {
        if self.phase == Phase::Behind {
            return None;
        }
        let (_, (_, file)) = self.waiting.pop_first()?;
        self.under_way += 1;
        Some(file)
    }

    /// A file that was taken was stored, or not; what the repository misses therefore.
    fn ended(&mut self, name: WalFileName, stored: bool) -> Vec<WalFileName> {
        self.under_way = self.under_way.saturating_sub(1);
        let missed = if stored { Vec::new() } else { self.drain_with(name) };
        if !stored || self.phase == Phase::Ending {
            self.falls_behind();
        }
        missed
    }

    /// A file, and all that waits.
    fn drain_with(&mut self, name: WalFileName) -> Vec<WalFileName> {
        let waiting = std::mem::take(&mut self.waiting).into_values().map(|(name, _)| name);
        std::iter::once(name).chain(waiting).collect()
    }

    /// Nothing that comes from now on is stored before the repository is caught up.
    fn falls_behind(&mut self) {
        let idle = self.waiting.is_empty() && self.under_way == 0;
        self.phase = if idle || self.phase == Phase::Behind { Phase::Behind } else { Phase::Ending };
    }
}

/// The files that wait for a repository.
#[derive(Debug)]
pub(super) struct Beside {
    line: Mutex<Line<UploadSource>>,
    /// Told when something waits that may be stored. For one listener, which stores it.
    ready: Notify,
    /// Told when it falls behind. For one listener, which catches it up.
    behind: Notify,
}

impl Default for Beside {
    fn default() -> Self {
        Self { line: Mutex::new(Line::new()), ready: Notify::new(), behind: Notify::new() }
    }
}

impl Beside {
    fn line(&self) -> MutexGuard<'_, Line<UploadSource>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the line, and wakes the one whose turn it is.
    fn change<T>(&self, change: impl FnOnce(&mut Line<UploadSource>) -> T) -> T {
        let mut line = self.line();
        let changed = change(&mut line);
        match line.phase {
            Phase::Behind => self.behind.notify_one(),
            Phase::Ending | Phase::Direct => self.ready.notify_one(),
        }
        changed
    }

    /// It missed something.
    pub(super) fn falls_behind(&self) {
        self.change(Line::falls_behind);
    }

    /// Waits until it is behind, and nothing is being stored there.
    pub(super) async fn is_behind(&self) {
        while self.line().phase != Phase::Behind {
            self.behind.notified().await;
        }
    }

    /// Whether a file waits to be stored directly.
    pub(super) fn awaits(&self, name: WalFileName) -> bool {
        self.line().waiting.contains_key(&turn(name))
    }

    /// The next file to be stored.
    async fn next(&self) -> UploadSource {
        loop {
            let next = self.line().next();
            match next {
                Some(file) => return file,
                None => self.ready.notified().await,
            }
        }
    }
}

impl WalTarget {
    /// Stores an acknowledged file when its turn comes, or counts it as missed.
    pub(super) fn store_later(&self, file: UploadSource) {
        self.beside.change(|line| {
            let missed = line.add(file.name, file);
            missed.into_iter().for_each(|name| self.note_missed(name));
        });
    }

    /// A file that was taken from the line was stored, or not.
    fn ended(&self, name: WalFileName, stored: bool) {
        self.beside.change(|line| {
            let missed = line.ended(name, stored);
            missed.into_iter().for_each(|name| self.note_missed(name));
        });
    }

    /// It was caught up with what it is known to have missed. What was missed meanwhile is caught up next.
    pub(super) fn is_caught_up(&self) {
        self.beside.change(|line| {
            if line.phase == Phase::Behind && !self.missed_any() {
                line.phase = Phase::Direct;
            }
        });
    }
}

/// A file that is being stored, until dropped.
struct Taken {
    archiver: Arc<Archiver>,
    repository: usize,
    name: WalFileName,
    stored: bool,
}

impl Taken {
    async fn store(mut self, file: UploadSource, stop: CancellationToken) {
        let archiver = Arc::clone(&self.archiver);
        if let Some(target) = archiver.uploader().targets().get(self.repository) {
            self.stored = archiver.uploader().store_waiting(&file, target, &stop).await;
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(target) = self.archiver.uploader().targets().get(self.repository) {
            target.ended(self.name, self.stored);
        }
    }
}

/// Stores what waits for the repository with that number. From `stop` on it ends as soon as nothing more is acknowledged (`last`)
/// and nothing waits, or after `drain`: what waits then is missed.
pub(crate) async fn store(
    archiver: Arc<Archiver>,
    repository: usize,
    stop: CancellationToken,
    last: CancellationToken,
    drain: Duration,
) {
    let Some(target) = archiver.uploader().targets().get(repository) else { return };
    let mut stores = JoinSet::new();
    let mut over = pin!(async {
        stop.cancelled().await;
        tokio::time::sleep(drain).await;
    });
    loop {
        let idle = stores.is_empty();
        tokio::select! {
            biased;
            () = &mut over => break,
            _ = stores.join_next(), if !idle => {}
            file = target.beside.next(), if stores.len() < AT_ONCE => {
                let name = file.name;
                let taken = Taken { archiver: Arc::clone(&archiver), repository, name, stored: false };
                stores.spawn(taken.store(file, stop.clone()));
            }
            () = last.cancelled(), if idle => break,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: usize) -> WalFileName {
        format!("0000000100000000{n:08X}").parse().unwrap()
    }

    fn direct() -> Line<usize> {
        Line { phase: Phase::Direct, ..Line::new() }
    }

    #[test]
    fn files_wait_in_order_until_the_repository_is_caught_up() {
        let mut line = Line::new();
        for n in [3, 1, 2] {
            assert!(line.add(name(n), n).is_empty());
        }
        assert_eq!(line.next(), None, "what the daemon before it left is not known");
        line.phase = Phase::Direct;
        assert_eq!([line.next(), line.next()], [Some(1), Some(2)]);
        assert!(line.ended(name(2), true).is_empty() && line.phase == Phase::Direct);
    }

    #[test]
    fn what_follows_a_missed_file_is_missed() {
        let mut line = direct();
        (1..=4).for_each(|n| assert!(line.add(name(n), n).is_empty()));
        assert_eq!([line.next(), line.next()], [Some(1), Some(2)]);
        assert_eq!(line.ended(name(1), false), [name(1), name(3), name(4)]);
        assert_eq!((line.phase, line.next()), (Phase::Ending, None), "2 is being stored still");
        assert_eq!(line.add(name(5), 5), [name(5)]);
        assert!(line.ended(name(2), true).is_empty() && line.phase == Phase::Behind);
        assert!(line.add(name(6), 6).is_empty() && line.next().is_none());
    }

    #[test]
    fn a_line_that_is_full_ends_before_the_repository_is_caught_up() {
        let mut line = direct();
        (0..LINE).for_each(|n| assert!(line.add(name(n), n).is_empty()));
        assert_eq!(line.add(name(LINE), LINE), [name(LINE)]);
        for n in 0..LINE {
            assert_eq!((line.phase, line.next()), (Phase::Ending, Some(n)));
            assert!(line.ended(name(n), true).is_empty());
        }
        assert_eq!(line.phase, Phase::Behind);
        (0..LINE).for_each(|n| assert!(line.add(name(n), n).is_empty()));
        assert_eq!(line.add(name(LINE), LINE).len(), LINE + 1, "no more than that is remembered");
        assert!(line.phase == Phase::Behind && line.waiting.is_empty());
    }
}
