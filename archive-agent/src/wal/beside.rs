//! What goes to a repository that does not have to acknowledge: a daemon stores it after the acknowledgement, by tasks of their own.
//!
//! Each such repository has one line of files that wait for it, in PostgreSQL's order. Only their names wait, and not more than
//! [`LINE`]; the content is read from `pg_wal` when its turn comes. What always holds: nothing is stored directly behind a file that
//! the repository missed. From then on it is behind: [`catch_up`](super::catch_up) copies what it missed, and what is acknowledged
//! meanwhile waits until that is done, or is missed as well if the line is full. A daemon begins that way, because what the one
//! before it left in its line is not known. A crash forgets the line; the next daemon finds what is missing.
//!
//! Other processes acknowledge, too: another daemon, or a command while this one hangs or is stopped. So a segment whose predecessor did
//! not come through this line waits until PostgreSQL was told of that one, and is stored if the repository has it
//! ([`follows`](super::follows)).

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use walpoint_base::{SegmentName, WalFileName};

use super::archiver::Archiver;
use super::follows::{before, whole};
use super::noting::{NOTE_INTERVAL, Notes};
use super::order::{Turn, turn};
use super::target::WalTarget;
use super::upload::{UploadSource, Uploader};

/// Files that wait for one repository.
const LINE: usize = 256;

/// Files that are being stored in one repository.
const AT_ONCE: usize = 4;

/// How often to look whether PostgreSQL was told of a segment.
const LOOK: Duration = Duration::from_millis(500);

/// How long a file waits for that. A person may have pushed it by hand, and PostgreSQL may be stuck at the one before.
const PATIENCE: Duration = Duration::from_secs(10);

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
    waiting: BTreeMap<Turn, Waiting<F>>,
    under_way: usize,
    /// The newest segments that were taken and did not fail.
    taken: VecDeque<SegmentName>,
    /// Up to this segment nothing is missing, as far as this process can know.
    complete: Option<SegmentName>,
    /// The file that waits for PostgreSQL to be told of the one before it, and since when.
    held: Option<(WalFileName, Instant)>,
}

/// A file that waits.
#[derive(Debug)]
struct Waiting<F> {
    name: WalFileName,
    /// The segment before it, if it is one.
    before: Option<SegmentName>,
    file: F,
}

impl<F> Line<F> {
    const fn new() -> Self {
        Self {
            phase: Phase::Behind,
            waiting: BTreeMap::new(),
            under_way: 0,
            taken: VecDeque::new(),
            complete: None,
            held: None,
        }
    }

    /// Takes an acknowledged file; what the repository misses therefore.
    fn add(&mut self, name: WalFileName, before: Option<SegmentName>, file: F) -> Vec<WalFileName> {
        match self.phase {
            Phase::Direct | Phase::Behind if self.waiting.len() < LINE => {
                self.waiting.insert(turn(name), Waiting { name, before, file });
                Vec::new()
            }
            Phase::Direct | Phase::Ending => {
                self.falls_behind();
                vec![name]
            }
            Phase::Behind => self.drain_with(name),
        }
    }

    /// The first file that waits and may be stored; with the segment before it, if that did not come through this line.
    fn first(&self) -> Option<(WalFileName, Option<SegmentName>)> {
        let (_, first) = self.waiting.first_key_value().filter(|_| self.phase != Phase::Behind)?;
        Some((first.name, first.before.filter(|before| !self.has_taken(*before))))
    }

    /// Takes that file, if it still is the first one.
    fn take(&mut self, name: WalFileName) -> Option<F> {
        let (first, _) = self.first()?;
        let Waiting { file, .. } = (first == name).then(|| self.waiting.pop_first())??.1;
        self.under_way += 1;
        self.takes(name);
        Some(file)
    }

    /// Whether a file that is first has waited for long.
    fn has_waited(&mut self, name: WalFileName, now: Instant) -> bool {
        let (_, since) = *self.held.get_or_insert((name, now));
        if self.held.is_some_and(|(held, _)| held != name) {
            self.held = Some((name, now));
            return false;
        }
        now.duration_since(since) >= PATIENCE
    }

    fn takes(&mut self, name: WalFileName) {
        self.taken.extend(whole(name));
        if self.taken.len() > LINE {
            self.taken.pop_front();
        }
    }

    fn has_taken(&self, name: SegmentName) -> bool {
        self.taken.contains(&name)
    }

    /// A file that was taken was stored, or not; what the repository misses therefore. `left`: it lacks files that could not be copied,
    /// so nothing behind them is complete.
    fn ended(&mut self, name: WalFileName, stored: bool, left: bool) -> Vec<WalFileName> {
        self.under_way = self.under_way.saturating_sub(1);
        let missed = if stored { Vec::new() } else { self.drain_with(name) };
        if !stored {
            self.taken.retain(|taken| Some(*taken) != whole(name));
        }
        if !stored || self.phase == Phase::Ending {
            self.falls_behind();
        } else if self.waiting.is_empty() && self.under_way == 0 && !left {
            self.complete = self.taken.back().copied();
        }
        missed
    }

    /// A file, and all that waits.
    fn drain_with(&mut self, name: WalFileName) -> Vec<WalFileName> {
        let waiting = std::mem::take(&mut self.waiting).into_values().map(|waiting| waiting.name);
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
    /// How often it turned out to lack what this process does not know that it missed.
    surprises: AtomicU64,
}

impl Default for Beside {
    fn default() -> Self {
        Self {
            line: Mutex::new(Line::new()),
            ready: Notify::new(),
            behind: Notify::new(),
            surprises: AtomicU64::new(0),
        }
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

    /// It lacks something that another process acknowledged: what is known to be missing there is not all.
    pub(super) fn surprises(&self) {
        self.surprises.fetch_add(1, Ordering::AcqRel);
    }

    /// Changes whenever everything has to be compared.
    pub(super) fn surprised(&self) -> u64 {
        self.surprises.load(Ordering::Acquire)
    }

    /// Nothing is known of what is stored: another repository is in its place.
    pub(super) fn forget(&self) {
        {
            let mut line = self.line();
            line.taken.clear();
            line.complete = None;
        }
        self.falls_behind();
    }

    /// Files were left that could not be copied, by a comparison that began with that segment: so does that of the next daemon.
    pub(super) fn is_left_from(&self, begin: SegmentName) {
        self.line().complete = Some(begin);
    }

    /// Up to where nothing is missing there.
    pub(super) fn complete(&self) -> Option<SegmentName> {
        self.line().complete
    }

    /// A segment was stored there without the line.
    pub(super) fn was_stored(&self, name: WalFileName) {
        self.line().takes(name);
    }

    /// Whether a segment is stored there by this process, or is being stored.
    pub(super) fn has_taken(&self, name: SegmentName) -> bool {
        self.line().has_taken(name)
    }

    /// The next file to be stored; with the segment before it, if the repository has to be asked for that.
    async fn next(&self, uploader: &Uploader) -> (UploadSource, Option<SegmentName>) {
        loop {
            let first = self.line().first();
            let Some((name, before)) = first else {
                self.ready.notified().await;
                continue;
            };
            match before {
                // It comes through the line, if this process stores it, before PostgreSQL is told.
                Some(before)
                    if uploader.is_waiting(before).await && !self.line().has_waited(name, Instant::now()) =>
                {
                    tokio::time::timeout(LOOK, self.ready.notified()).await.ok();
                }
                before => {
                    let taken = self.line().take(name);
                    if let Some(file) = taken {
                        return (file, before);
                    }
                }
            }
        }
    }
}

impl WalTarget {
    /// Stores an acknowledged file when its turn comes, or counts it as missed.
    pub(super) fn store_later(&self, file: UploadSource) {
        let before = before(&file);
        self.beside.change(|line| {
            let missed = line.add(file.name, before, file);
            missed.into_iter().for_each(|name| self.note_missed(name));
        });
    }

    /// A file that was taken from the line was stored, or not.
    fn ended(&self, name: WalFileName, stored: bool) {
        let left = self.unfinished.due().is_some();
        self.beside.change(|line| {
            let missed = line.ended(name, stored, left);
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
    async fn store(mut self, file: UploadSource, before: Option<SegmentName>, stop: CancellationToken) {
        let archiver = Arc::clone(&self.archiver);
        if let Some(target) = archiver.uploader().targets().get(self.repository) {
            self.stored = archiver.uploader().store_waiting((&file, before), target, &stop).await;
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
    let mut notes = Notes::new(&archiver, repository);
    let mut over = pin!(async {
        stop.cancelled().await;
        tokio::time::sleep(drain).await;
    });
    loop {
        let idle = stores.is_empty();
        tokio::select! {
            biased;
            () = &mut over => break,
            _ = stores.join_next(), if !idle => notes.note(NOTE_INTERVAL).await,
            (file, before) = target.beside.next(archiver.uploader()), if stores.len() < AT_ONCE => {
                let name = file.name;
                let taken = Taken { archiver: Arc::clone(&archiver), repository, name, stored: false };
                stores.spawn(taken.store(file, before, stop.clone()));
            }
            () = last.cancelled(), if idle => break,
        }
    }
    notes.note(Duration::ZERO).await;
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

    fn add(line: &mut Line<usize>, n: usize) -> Vec<WalFileName> {
        line.add(name(n), n.checked_sub(1).and_then(|before| name(before).segment()), n)
    }

    fn next(line: &mut Line<usize>) -> Option<usize> {
        let (name, _) = line.first()?;
        line.take(name)
    }

    #[test]
    fn what_did_not_come_through_the_line_is_asked_for() {
        let mut line = direct();
        let asked = |line: &Line<usize>| line.first().map(|(_, before)| before.map(|name| name.segment));
        add(&mut line, 5);
        assert_eq!(asked(&line), Some(Some(4)), "the first one after a start");
        add(&mut line, 4);
        assert_eq!(line.take(name(5)), None, "it came meanwhile");
        assert_eq!((asked(&line), next(&mut line)), (Some(Some(3)), Some(4)));
        assert_eq!((asked(&line), next(&mut line)), (Some(None), Some(5)));
        add(&mut line, 7);
        assert_eq!(asked(&line), Some(Some(6)), "another process acknowledged it");
        line.ended(name(4), true, false);
        line.ended(name(5), false, false);
        line.phase = Phase::Direct;
        add(&mut line, 6);
        assert_eq!(asked(&line), Some(Some(5)), "it failed");
    }

    #[test]
    fn a_file_does_not_wait_for_ever() {
        let (mut line, now) = (direct(), Instant::now());
        assert!(!line.has_waited(name(5), now) && !line.has_waited(name(5), now + PATIENCE / 2));
        assert!(line.has_waited(name(5), now + PATIENCE));
        assert!(!line.has_waited(name(4), now + PATIENCE), "it came meanwhile");
        assert!(line.has_waited(name(4), now + PATIENCE * 2));
    }

    #[test]
    fn files_wait_in_order_until_the_repository_is_caught_up() {
        let mut line = Line::new();
        for n in [3, 1, 2] {
            assert!(add(&mut line, n).is_empty());
        }
        assert_eq!(next(&mut line), None, "what the daemon before it left is not known");
        line.phase = Phase::Direct;
        assert_eq!([next(&mut line), next(&mut line)], [Some(1), Some(2)]);
        assert!(line.ended(name(2), true, false).is_empty() && line.phase == Phase::Direct);
        assert_eq!(line.complete, None, "3 waits, and 1 is being stored");
        assert_eq!(next(&mut line), Some(3));
        line.ended(name(3), true, false);
        assert_eq!(line.complete, None);
        line.ended(name(1), true, false);
        assert_eq!(line.complete, name(3).segment());
        add(&mut line, 4);
        next(&mut line);
        line.ended(name(4), false, false);
        assert_eq!(line.complete, name(3).segment());
    }

    #[test]
    fn nothing_is_complete_behind_files_that_were_left() {
        let mut line = direct();
        for (n, left, complete) in [(1, false, 1), (2, true, 1), (3, true, 1), (4, false, 4)] {
            add(&mut line, n);
            next(&mut line);
            line.ended(name(n), true, left);
            assert_eq!(line.complete, name(complete).segment());
        }
        let beside = Beside::default();
        beside.is_left_from(name(2).segment().unwrap());
        assert_eq!(beside.complete(), name(2).segment());
        beside.forget();
        assert_eq!(beside.complete(), None, "of another repository, or in another lineage");
    }

    #[test]
    fn what_follows_a_missed_file_is_missed() {
        let mut line = direct();
        (1..=4).for_each(|n| assert!(add(&mut line, n).is_empty()));
        assert_eq!([next(&mut line), next(&mut line)], [Some(1), Some(2)]);
        assert_eq!(line.ended(name(1), false, false), [name(1), name(3), name(4)]);
        assert_eq!((line.phase, next(&mut line)), (Phase::Ending, None), "2 is being stored still");
        assert_eq!(add(&mut line, 5), [name(5)]);
        assert!(line.ended(name(2), true, false).is_empty() && line.phase == Phase::Behind);
        assert!(add(&mut line, 6).is_empty() && next(&mut line).is_none());
    }

    #[test]
    fn a_line_that_is_full_ends_before_the_repository_is_caught_up() {
        let mut line = direct();
        (0..LINE).for_each(|n| assert!(add(&mut line, n).is_empty()));
        assert_eq!(add(&mut line, LINE), [name(LINE)]);
        for n in 0..LINE {
            assert_eq!((line.phase, next(&mut line)), (Phase::Ending, Some(n)));
            assert!(line.ended(name(n), true, false).is_empty());
        }
        assert_eq!(line.phase, Phase::Behind);
        (0..LINE).for_each(|n| assert!(add(&mut line, n).is_empty()));
        assert_eq!(add(&mut line, LINE).len(), LINE + 1, "no more than that is remembered");
        assert!(line.phase == Phase::Behind && line.waiting.is_empty());
    }
}
