//! Memory for what is sealed and not stored yet, of all clusters together.
//!
//! How much a segment takes is known when it is sealed. It begins with what segments took lately and takes more while there is
//! more. What always holds: no upload waits for memory while it holds some. One that finds none left gives back what it has and
//! starts over with as much as a segment can take at the most; so each gets on, in the order in which they asked.
//!
//! What is being stored takes its share along ([`Writes`](super::writes::Writes)): a write that hangs keeps it until it returns,
//! whatever became of the upload. Such shares hold nothing up for ever: what a repository needs that has to acknowledge is given to
//! one upload at a time even where nothing is left, and to others as long as they leave half of it. The same holds for the shares of
//! uploads out of a data directory that hangs, whatever they do: they keep nothing from other clusters, and those that wait for a
//! share are no turn before the others'.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use walpoint_runtime::human;

use super::disk;

/// Bytes in all: one segment of the largest size that is one object, even if nothing in it compresses.
pub(crate) const BUDGET: usize = 32 << 20;

/// What is stored in repositories that do not have to acknowledge takes so much of it at the most, unless it is one file that is
/// larger.
const BESIDE: usize = BUDGET / 2;

/// A directory hangs in which a call has not returned for so long.
const HANGS: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(10) };

/// How often to look whether one hangs, or answers again.
const INTERVAL: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(1) };

/// A wait that takes longer is worth a word.
const SLOW: Duration = Duration::from_secs(5);

/// The directories that the work for a share reads: it hangs where one of them does.
pub(crate) type Directories = Arc<[PathBuf]>;

/// What a share is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// An acknowledgement waits for it.
    Acknowledging,
    /// None does.
    Beside,
}

/// Who holds how much, and who waits.
#[derive(Debug)]
struct Shares {
    holders: BTreeMap<u64, Holder>,
    /// Of writes that hang: the uploads ended without them.
    stuck: usize,
    waiting: BTreeMap<u64, Wait>,
    /// Of the next one that waits, or that holds one.
    turn: u64,
}

/// A share.
#[derive(Debug)]
struct Holder {
    of: Directories,
    purpose: Purpose,
    bytes: usize,
}

/// A wait for a share.
#[derive(Debug, Clone)]
struct Wait {
    of: Directories,
    purpose: Purpose,
    bytes: usize,
    /// Whether it had less before: others that hold some may wait for it.
    again: bool,
    since: Instant,
}

/// For how long one of these directories hangs, if one does.
fn hang(of: &Directories) -> Option<(&Path, Duration)> {
    let spans = of.iter().filter_map(|directory| Some((directory.as_path(), disk::oldest(directory)?)));
    spans.filter(|(_, span)| *span >= HANGS).max_by_key(|(_, span)| *span)
}

static SHARES: Mutex<Shares> =
    Mutex::new(Shares { holders: BTreeMap::new(), stuck: 0, waiting: BTreeMap::new(), turn: 0 });

/// Told whenever a share is given back, or a wait ends.
static FREED: Notify = Notify::const_new();

fn shares() -> MutexGuard<'static, Shares> {
    SHARES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shares {
    fn next_turn(&mut self) -> u64 {
        let turn = self.turn;
        self.turn += 1;
        turn
    }

    fn held(&self, purpose: Purpose) -> usize {
        self.holders.values().filter(|holder| holder.purpose == purpose).map(|holder| holder.bytes).sum()
    }

    /// Whether nothing is held for that purpose but by what hangs.
    fn is_free(&self, purpose: Purpose) -> bool {
        let mut held = self.holders.values().filter(|holder| holder.purpose == purpose && holder.bytes > 0);
        held.all(|holder| hang(&holder.of).is_some())
    }

    fn fits(&self, bytes: usize) -> bool {
        self.held(Purpose::Acknowledging) + self.held(Purpose::Beside) + self.stuck + bytes <= BUDGET
    }

    /// Whether something beside would take more than its part.
    fn exceeds(&self, wait: &Wait) -> bool {
        wait.purpose == Purpose::Beside
            && !wait.again
            && !self.is_free(wait.purpose)
            && self.held(wait.purpose) + wait.bytes > BESIDE
    }

    /// Whether it is the turn of one that waits, and there is memory for it.
    fn is_due(&self, turn: u64) -> bool {
        let Some(wait) = self.waiting.get(&turn) else { return false };
        if self.exceeds(wait) {
            return false;
        }
        let before = self.waiting.range(..turn).map(|(_, waits)| waits);
        let mut before = before.filter(|other| hang(&other.of).is_none());
        if hang(&wait.of).is_some() {
            return before.all(|other| self.exceeds(other)) && self.fits(wait.bytes);
        }
        if wait.purpose == Purpose::Acknowledging
            && self.is_free(Purpose::Acknowledging)
            && before.clone().all(|other| other.purpose == Purpose::Beside)
        {
            return true;
        }
        let alone = self.is_free(Purpose::Acknowledging) && self.is_free(Purpose::Beside);
        before.all(|other| self.exceeds(other)) && (alone || self.fits(wait.bytes))
    }

    /// Whether a share of `held` bytes may grow by some: those that wait come first.
    fn may_grow(&self, purpose: Purpose, held: usize, bytes: usize) -> bool {
        let others = self.waiting.values().any(|other| !self.exceeds(other) && hang(&other.of).is_none());
        let alone = self.held(purpose) == held;
        let over = purpose == Purpose::Beside && !alone && self.held(Purpose::Beside) + bytes > BESIDE;
        !over && !others && self.fits(bytes)
    }
}

/// What a share for work in that directory has been waiting for, if it has for long.
pub(crate) fn waits_for(directory: &Path) -> Option<String> {
    let shares = shares();
    let waits = |wait: &Wait| wait.since.elapsed() >= SLOW && wait.of.iter().any(|of| of == directory);
    if !shares.waiting.values().any(waits) {
        return None;
    }
    let mut kept: BTreeMap<&Path, (usize, Duration)> = BTreeMap::new();
    for holder in shares.holders.values() {
        if let Some((of, span)) = hang(&holder.of) {
            kept.entry(of).or_insert((0, span)).0 += holder.bytes;
        }
    }
    let kept = kept.into_iter().map(|(of, (bytes, span))| {
        format!(
            "memory, of which what is read from {} keeps {}: a call there has not returned for {}",
            of.display(),
            human::size(bytes as u64),
            human::span(span)
        )
    });
    let kept: Vec<String> = kept.collect();
    Some(if kept.is_empty() { "memory, which other uploads use".to_owned() } else { kept.join("; ") })
}

/// A wait for a share; over when dropped.
struct Turn(u64);

impl Drop for Turn {
    fn drop(&mut self) {
        shares().waiting.remove(&self.0);
        FREED.notify_waiters();
    }
}

/// A share, given back when dropped.
#[derive(Debug)]
pub(crate) struct WalMemory {
    of: Directories,
    purpose: Purpose,
    held: usize,
    /// It never takes more; `None`: it is not counted.
    most: Option<usize>,
    /// Among those that hold some.
    holder: Option<u64>,
}

impl WalMemory {
    /// For what takes hardly any memory: holds all that it is asked to.
    pub(crate) fn unlimited(purpose: Purpose) -> Self {
        Self { of: Arc::new([]), purpose, held: 0, most: None, holder: None }
    }

    /// Waits for `bytes`, for something that takes `most` bytes at the most. Both are cut to [`BUDGET`].
    pub(crate) async fn wait_for(of: Directories, purpose: Purpose, bytes: usize, most: usize) -> Self {
        Self::wait(Wait { of, purpose, bytes, again: false, since: Instant::now() }, most).await
    }

    /// Waits for all that something may take which found too little. Uploads that hold a share beside may wait for that one to be
    /// stored first, so the part of those that do not have to acknowledge does not limit it.
    pub(crate) async fn wait_again(of: Directories, purpose: Purpose, most: usize) -> Self {
        Self::wait(Wait { of, purpose, bytes: most, again: true, since: Instant::now() }, most).await
    }

    async fn wait(wait: Wait, most: usize) -> Self {
        let most = most.min(BUDGET);
        let wait = Wait { bytes: wait.bytes.min(most), ..wait };
        let turn = {
            let mut shares = shares();
            let turn = shares.next_turn();
            shares.waiting.insert(turn, wait.clone());
            Turn(turn)
        };
        loop {
            let mut freed = pin!(FREED.notified());
            freed.as_mut().enable();
            if let Some(holder) = shares().take(&turn) {
                let Wait { of, purpose, bytes, .. } = wait;
                return Self { of, purpose, held: bytes, most: Some(most), holder: Some(holder) };
            }
            // When a directory begins to hang, or answers again, is told by none.
            drop(tokio::time::timeout(INTERVAL, freed).await);
        }
    }

    /// Where it hangs.
    pub(crate) fn of(&self) -> &Directories {
        &self.of
    }

    /// Holds so many bytes from now on.
    fn set(&mut self, bytes: usize) {
        self.held = bytes;
        if let Some(id) = self.holder
            && let Some(holder) = shares().holders.get_mut(&id)
        {
            holder.bytes = bytes;
        }
    }

    /// What it is for.
    pub(crate) fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// What it holds.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// The most that it may take.
    pub(crate) fn most(&self) -> usize {
        self.most.unwrap_or(0)
    }

    /// Makes sure that it holds `bytes`, without waiting; whether it does. Asked before each piece that is read.
    pub(crate) fn hold(&mut self, bytes: u64) -> bool {
        disk::progresses();
        let Some(most) = self.most else { return true };
        let wanted = usize::try_from(bytes).unwrap_or(usize::MAX).min(most);
        let missing = wanted.saturating_sub(self.held);
        if missing == 0 {
            return true;
        }
        let mut shares = shares();
        let grows = shares.may_grow(self.purpose, self.held, missing);
        if grows && let Some(holder) = self.holder.and_then(|id| shares.holders.get_mut(&id)) {
            holder.bytes += missing;
            self.held += missing;
        }
        grows
    }

    /// Gives back all but `bytes`.
    pub(crate) fn keep(&mut self, bytes: u64) {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        if bytes < self.held {
            self.set(bytes);
            FREED.notify_waiters();
        }
    }

    /// A part of it, as a share of its own: `bytes`, or as much as there is.
    pub(super) fn split(&mut self, bytes: usize) -> Self {
        let (held, purpose) = (bytes.min(self.held), self.purpose);
        let mut part = Self { of: Arc::clone(&self.of), purpose, held, most: self.most, holder: None };
        if self.holder.is_some() {
            self.set(self.held - held);
            let mut shares = shares();
            let id = shares.next_turn();
            shares.holders.insert(id, Holder { of: Arc::clone(&self.of), purpose, bytes: held });
            part.holder = Some(id);
        }
        part
    }

    /// The upload that it belongs to ended, and its bytes are still there.
    pub(super) fn into_stuck(mut self) -> StuckMemory {
        let held = std::mem::take(&mut self.held);
        let mut shares = shares();
        if let Some(id) = self.holder.take() {
            shares.holders.remove(&id);
        }
        shares.stuck += held;
        drop(shares);
        FREED.notify_waiters();
        StuckMemory(held)
    }
}

impl Shares {
    fn take(&mut self, turn: &Turn) -> Option<u64> {
        if !self.is_due(turn.0) {
            return None;
        }
        let Wait { of, purpose, bytes, .. } = self.waiting.remove(&turn.0)?;
        let holder = self.next_turn();
        self.holders.insert(holder, Holder { of, purpose, bytes });
        Some(holder)
    }
}

impl Drop for WalMemory {
    fn drop(&mut self) {
        if let Some(id) = self.holder {
            shares().holders.remove(&id);
            FREED.notify_waiters();
        }
    }
}

/// The share of a write that hangs, given back when dropped.
#[derive(Debug)]
pub(super) struct StuckMemory(usize);

impl Drop for StuckMemory {
    fn drop(&mut self) {
        shares().stuck -= self.0;
        FREED.notify_waiters();
    }
}

/// What the segments of a cluster took lately, in bytes for each repository.
#[derive(Debug, Default)]
pub(crate) struct SizeEstimate(AtomicUsize);

impl SizeEstimate {
    /// What to begin with, of `most`: a little more than the largest of the last few took.
    pub(crate) fn expects(&self, most: usize) -> usize {
        match self.0.load(Ordering::Relaxed) {
            0 => most,
            bytes => bytes.min(most),
        }
    }

    /// Learns what one took.
    pub(crate) fn took(&self, bytes: u64) {
        let with_margin = usize::try_from(bytes + bytes / 4).unwrap_or(usize::MAX).max(1);
        let last = self.0.load(Ordering::Relaxed);
        // Of two that end at the same moment one may not be learned from: the next one will be.
        self.0.store(with_margin.max(last - last / 4), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::Purpose::{Acknowledging, Beside};
    use super::*;

    #[test]
    fn what_one_takes_is_expected_of_the_next_ones() {
        let habit = SizeEstimate::default();
        assert_eq!(habit.expects(100), 100);
        habit.took(40);
        assert_eq!((habit.expects(100), habit.expects(30)), (50, 30));
        habit.took(80);
        assert_eq!(habit.expects(100), 100);
        habit.took(8);
        habit.took(8);
        assert_eq!(habit.expects(100), 57);
        for _ in 0..20 {
            habit.took(8);
        }
        assert_eq!(habit.expects(100), 10);
    }

    const MIB: usize = 1 << 20;

    async fn wait_for(purpose: Purpose, bytes: usize, most: usize) -> WalMemory {
        WalMemory::wait_for(Arc::new([]), purpose, bytes, most).await
    }

    /// All of the memory in one test: it is one for the process.
    #[tokio::test]
    async fn a_share_grows_while_there_is_room_and_no_upload_waits_for_ever() {
        let mut first = wait_for(Acknowledging, 4 * MIB, 16 * MIB).await;
        let mut second = wait_for(Acknowledging, 20 * MIB, 64 * MIB).await;
        assert!(first.hold(1) && first.hold(12 << 20), "8 MiB were left");
        assert!(!first.hold(13 << 20) && !second.hold(21 << 20), "nothing is left");
        first.keep(1 << 20);
        assert!(second.hold(31 << 20) && !second.hold(32 << 20));
        // What takes no more than its most has it, whatever it says.
        let mut third = WalMemory::unlimited(Acknowledging);
        assert!(third.hold(u64::MAX));
        drop(first);
        let waits = tokio::spawn(wait_for(Acknowledging, 16 * MIB, 16 * MIB));
        tokio::task::yield_now().await;
        // Those that wait come first.
        assert!(!second.hold(32 << 20));
        drop(second);
        let mut fourth = waits.await.unwrap();
        assert!(fourth.hold(u64::MAX));
        drop(fourth);
        let all = wait_for(Acknowledging, usize::MAX, usize::MAX).await;
        assert_eq!(all.held, BUDGET);
        drop(all);
        hangs_beside().await;
        hangs_while_it_is_read().await;
        let s = shares();
        assert_eq!((s.holders.len(), s.stuck, s.waiting.len()), (0, 0, 0));
    }

    /// A data directory that hangs while all of the memory is held by what is read from it leaves others one at a time, whatever its
    /// uploads do, and whichever of them waits first.
    async fn hangs_while_it_is_read() {
        let of = |name: &str| -> Directories { Arc::new([PathBuf::from(name)]) };
        let hung = || of("/memory/hangs");
        let own =
            || tokio::spawn(WalMemory::wait_for(of("/memory/answers"), Acknowledging, 8 * MIB, 16 * MIB));
        let all = [
            WalMemory::wait_for(hung(), Acknowledging, 16 * MIB, 16 * MIB).await,
            WalMemory::wait_for(hung(), Acknowledging, 16 * MIB, 16 * MIB).await,
        ];
        let first = tokio::spawn(WalMemory::wait_for(hung(), Acknowledging, 16 * MIB, 16 * MIB));
        let waits = own();
        tokio::time::sleep(HANGS * 3).await;
        assert!(!waits.is_finished(), "none of it hangs");
        let (release, held) = std::sync::mpsc::channel::<()>();
        let wal = Path::new("/memory/hangs/pg_wal");
        let call = tokio::spawn(disk::run(wal, move || held.recv().is_err()));
        let other = waits.await.unwrap();
        let next = own();
        tokio::time::sleep(INTERVAL * 3).await;
        assert!(!next.is_finished() && !first.is_finished(), "one at a time, and none that would hang");
        drop(other);
        drop(next.await.unwrap());
        drop(release);
        assert!(call.await.unwrap().unwrap());
        let waits = own();
        tokio::time::sleep(INTERVAL * 3).await;
        assert!(!waits.is_finished() && !first.is_finished(), "it answers again, and has what it had");
        drop(all);
        drop((first.await.unwrap(), waits.await.unwrap()));
    }

    /// A repository that does not have to acknowledge leaves memory for those that have to, and what hangs leaves it to one at a
    /// time.
    async fn hangs_beside() {
        let mut beside = wait_for(Beside, 10 * MIB, 16 * MIB).await;
        let second = tokio::spawn(wait_for(Beside, 10 * MIB, 16 * MIB));
        tokio::task::yield_now().await;
        assert!(!second.is_finished(), "it has its part");
        let own = wait_for(Acknowledging, 22 * MIB, 32 * MIB).await;
        let written = beside.split(6 * MIB).into_stuck();
        drop(beside);
        let more = tokio::spawn(wait_for(Acknowledging, 20 * MIB, 32 * MIB));
        tokio::task::yield_now().await;
        assert!(!more.is_finished(), "there are 4 MiB");
        drop(own);
        let second = second.await.unwrap();
        let more = more.await.unwrap();
        drop(second);
        drop(more);
        let small = wait_for(Beside, 4 * MIB, 16 * MIB).await;
        let again = WalMemory::wait_again(Arc::new([]), Beside, 16 * MIB).await;
        assert_eq!(again.held, 16 * MIB, "the small one may wait for it");
        drop((small, again));
        let third = wait_for(Acknowledging, 32 * MIB, 32 * MIB).await;
        assert_eq!(third.held, BUDGET, "what hangs holds none up that is alone");
        drop((third, written));
    }
}
