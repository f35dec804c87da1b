//! Memory for what is sealed and not stored yet, of all clusters together.
//!
//! How much a segment takes is known when it is sealed. It begins with what segments took lately and takes more while there is
//! more. What always holds: no upload waits for memory while it holds some. One that finds none left gives back what it has and
//! starts over with as much as a segment can take at the most; so each gets on, in the order in which they asked.
//!
//! What is being stored takes its share along ([`Writes`](super::writes::Writes)): a write that hangs keeps it until it returns,
//! whatever became of the upload. Such shares hold nothing up for ever: what a repository needs that has to acknowledge is given to
//! one upload at a time even where nothing is left, and to others as long as they leave half of it. The same holds for the share of
//! an upload whose file cannot be read to its end, because the data directory hangs: it keeps nothing from other clusters.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Bytes in all: one segment of the largest size that is one object, even if nothing in it compresses.
pub(crate) const ROOM: usize = 32 << 20;

/// What is stored in repositories that do not have to acknowledge takes so much of it at the most, unless it is one file that is
/// larger.
const BESIDE: usize = ROOM / 2;

/// After so long without a further piece a read counts as one that hangs.
const HANGS: Duration = Duration::from_secs(10);

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
    acknowledging: usize,
    beside: usize,
    /// Of writes that hang: the uploads ended without them.
    stuck: usize,
    /// Shares of files that are being read.
    reading: BTreeMap<u64, Reading>,
    waiting: BTreeMap<u64, Wait>,
    /// Of the next one that waits, or that is read for.
    turn: u64,
}

/// A share of a file that is being read.
#[derive(Debug, Clone, Copy)]
struct Reading {
    purpose: Purpose,
    bytes: usize,
    /// The last piece.
    since: Instant,
}

/// A wait for a share.
#[derive(Debug, Clone, Copy)]
struct Wait {
    purpose: Purpose,
    bytes: usize,
    /// Whether it had less before: others that hold some may wait for it.
    again: bool,
}

static SHARES: Mutex<Shares> = Mutex::new(Shares {
    acknowledging: 0,
    beside: 0,
    stuck: 0,
    reading: BTreeMap::new(),
    waiting: BTreeMap::new(),
    turn: 0,
});

/// Told whenever a share is given back, or a wait ends.
static FREED: Notify = Notify::const_new();

fn shares() -> MutexGuard<'static, Shares> {
    SHARES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shares {
    fn held(&mut self, purpose: Purpose) -> &mut usize {
        match purpose {
            Purpose::Acknowledging => &mut self.acknowledging,
            Purpose::Beside => &mut self.beside,
        }
    }

    /// What reads that hang hold of it.
    fn hanging(&self, purpose: Purpose) -> usize {
        let hangs = |read: &&Reading| read.purpose == purpose && read.since.elapsed() >= HANGS;
        self.reading.values().filter(hangs).map(|read| read.bytes).sum()
    }

    /// Whether nothing is held for that purpose but by reads that hang.
    fn is_free(&self, purpose: Purpose) -> bool {
        let held = match purpose {
            Purpose::Acknowledging => self.acknowledging,
            Purpose::Beside => self.beside,
        };
        held <= self.hanging(purpose)
    }

    fn fits(&self, bytes: usize) -> bool {
        self.acknowledging + self.beside + self.stuck + bytes <= ROOM
    }

    /// Whether something beside would take more than its part.
    fn exceeds(&self, wait: Wait) -> bool {
        let Wait { purpose, bytes, again } = wait;
        purpose == Purpose::Beside && !again && !self.is_free(purpose) && self.beside + bytes > BESIDE
    }

    /// Whether it is the turn of one that waits, and there is room for it.
    fn is_due(&self, turn: u64) -> bool {
        let Some(&wait) = self.waiting.get(&turn) else { return false };
        if self.exceeds(wait) {
            return false;
        }
        let mut before = self.waiting.range(..turn).map(|(_, waits)| *waits);
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
    fn may_grow(&mut self, purpose: Purpose, held: usize, bytes: usize) -> bool {
        let others = self.waiting.values().any(|other| !self.exceeds(*other));
        let alone = *self.held(purpose) == held;
        let over = purpose == Purpose::Beside && !alone && self.beside + bytes > BESIDE;
        !over && !others && self.fits(bytes)
    }
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
    purpose: Purpose,
    held: usize,
    /// It never takes more; `None`: it is not counted.
    most: Option<usize>,
    /// That it is read for.
    reading: Option<u64>,
}

impl WalMemory {
    /// For what takes hardly any memory: holds all that it is asked to.
    pub(crate) fn unlimited(purpose: Purpose) -> Self {
        Self { purpose, held: 0, most: None, reading: None }
    }

    /// Waits for `bytes`, for something that takes `most` bytes at the most. Both are cut to [`ROOM`].
    pub(crate) async fn wait_for(purpose: Purpose, bytes: usize, most: usize) -> Self {
        Self::wait(Wait { purpose, bytes, again: false }, most).await
    }

    /// Waits for all that something may take which found too little. Uploads that hold a share beside may wait for that one to be
    /// stored first, so the part of those that do not have to acknowledge does not limit it.
    pub(crate) async fn wait_again(purpose: Purpose, most: usize) -> Self {
        Self::wait(Wait { purpose, bytes: most, again: true }, most).await
    }

    async fn wait(wait: Wait, most: usize) -> Self {
        let most = most.min(ROOM);
        let (purpose, bytes) = (wait.purpose, wait.bytes.min(most));
        let turn = {
            let mut shares = shares();
            let turn = shares.turn;
            shares.turn += 1;
            shares.waiting.insert(turn, Wait { bytes, ..wait });
            Turn(turn)
        };
        loop {
            let mut freed = pin!(FREED.notified());
            freed.as_mut().enable();
            if shares().take(&turn, purpose, bytes) {
                return Self { purpose, held: bytes, most: Some(most), reading: None };
            }
            // When a read begins to hang is not known.
            drop(tokio::time::timeout(HANGS, freed).await);
        }
    }

    /// Its file is read from now on, a piece after each [`Self::hold`].
    pub(crate) fn begin_reading(&mut self) {
        self.end_reading();
        let mut shares = shares();
        let id = shares.turn;
        shares.turn += 1;
        let reading = Reading { purpose: self.purpose, bytes: self.held, since: Instant::now() };
        shares.reading.insert(id, reading);
        self.reading = Some(id);
    }

    /// Its file is read.
    pub(crate) fn end_reading(&mut self) {
        if let Some(id) = self.reading.take() {
            shares().reading.remove(&id);
        }
    }

    fn note_piece(&self) {
        let Some(id) = self.reading else { return };
        if let Some(reading) = shares().reading.get_mut(&id) {
            *reading = Reading { bytes: self.held, since: Instant::now(), ..*reading };
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

    /// Makes sure that it holds `bytes`, without waiting; whether it does.
    pub(crate) fn hold(&mut self, bytes: u64) -> bool {
        let Some(most) = self.most else { return true };
        let wanted = usize::try_from(bytes).unwrap_or(usize::MAX).min(most);
        let missing = wanted.saturating_sub(self.held);
        let grows = missing == 0 || {
            let mut shares = shares();
            let grows = shares.may_grow(self.purpose, self.held, missing);
            if grows {
                *shares.held(self.purpose) += missing;
                self.held += missing;
            }
            grows
        };
        self.note_piece();
        grows
    }

    /// Gives back all but `bytes`.
    pub(crate) fn keep(&mut self, bytes: u64) {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        drop(self.split(self.held.saturating_sub(bytes)));
    }

    /// A part of it, as a share of its own: `bytes`, or as much as there is.
    pub(super) fn split(&mut self, bytes: usize) -> Self {
        let held = bytes.min(self.held);
        self.held -= held;
        self.note_piece();
        Self { purpose: self.purpose, held, most: self.most, reading: None }
    }

    /// The upload that it belongs to ended, and its bytes are still there.
    pub(super) fn into_stuck(mut self) -> StuckRoom {
        let held = std::mem::take(&mut self.held);
        self.note_piece();
        let mut shares = shares();
        *shares.held(self.purpose) -= held;
        shares.stuck += held;
        drop(shares);
        FREED.notify_waiters();
        StuckRoom(held)
    }
}

impl Shares {
    fn take(&mut self, turn: &Turn, purpose: Purpose, bytes: usize) -> bool {
        let due = self.is_due(turn.0);
        if due {
            self.waiting.remove(&turn.0);
            *self.held(purpose) += bytes;
        }
        due
    }
}

impl Drop for WalMemory {
    fn drop(&mut self) {
        self.end_reading();
        if self.held > 0 {
            *shares().held(self.purpose) -= self.held;
            FREED.notify_waiters();
        }
    }
}

/// The share of a write that hangs, given back when dropped.
#[derive(Debug)]
pub(super) struct StuckRoom(usize);

impl Drop for StuckRoom {
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

    /// The whole of the room in one test: it is one for the process.
    #[tokio::test]
    async fn a_share_grows_while_there_is_room_and_no_upload_waits_for_ever() {
        let mut first = WalMemory::wait_for(Acknowledging, 4 * MIB, 16 * MIB).await;
        let mut second = WalMemory::wait_for(Acknowledging, 20 * MIB, 64 * MIB).await;
        assert!(first.hold(1) && first.hold(12 << 20), "8 MiB were left");
        assert!(!first.hold(13 << 20) && !second.hold(21 << 20), "nothing is left");
        first.keep(1 << 20);
        assert!(second.hold(31 << 20) && !second.hold(32 << 20));
        // What takes no more than its most has it, whatever it says.
        let mut third = WalMemory::unlimited(Acknowledging);
        assert!(third.hold(u64::MAX));
        drop(first);
        let waits = tokio::spawn(WalMemory::wait_for(Acknowledging, 16 * MIB, 16 * MIB));
        tokio::task::yield_now().await;
        // Those that wait come first.
        assert!(!second.hold(32 << 20));
        drop(second);
        let mut fourth = waits.await.unwrap();
        assert!(fourth.hold(u64::MAX));
        drop(fourth);
        let all = WalMemory::wait_for(Acknowledging, usize::MAX, usize::MAX).await;
        assert_eq!(all.held, ROOM);
        drop(all);
        hangs_beside().await;
        hangs_while_it_is_read().await;
        assert_eq!(
            {
                let s = shares();
                (s.acknowledging, s.beside, s.stuck, s.waiting.len(), s.reading.len())
            },
            (0, 0, 0, 0, 0)
        );
    }

    /// A data directory that hangs while all of the room is held by what is read from it leaves others one at a time.
    async fn hangs_while_it_is_read() {
        let mut hung = [
            WalMemory::wait_for(Acknowledging, 16 * MIB, 16 * MIB).await,
            WalMemory::wait_for(Acknowledging, 16 * MIB, 16 * MIB).await,
        ];
        hung.iter_mut().for_each(WalMemory::begin_reading);
        let waits = tokio::spawn(WalMemory::wait_for(Acknowledging, 8 * MIB, 16 * MIB));
        tokio::task::yield_now().await;
        assert!(!waits.is_finished(), "they are read at the moment");
        let long_ago = Instant::now().checked_sub(HANGS).unwrap();
        shares().reading.values_mut().for_each(|read| read.since = long_ago);
        FREED.notify_waiters();
        let other = waits.await.unwrap();
        let next = tokio::spawn(WalMemory::wait_for(Acknowledging, 8 * MIB, 16 * MIB));
        tokio::task::yield_now().await;
        assert!(!next.is_finished(), "one at a time");
        drop(other);
        drop(next.await.unwrap());
        assert!(hung[0].hold(1), "it has what it had");
        let waits = tokio::spawn(WalMemory::wait_for(Acknowledging, 8 * MIB, 16 * MIB));
        tokio::task::yield_now().await;
        assert!(!waits.is_finished(), "one of them is read again");
        drop(hung);
        drop(waits.await.unwrap());
    }

    /// A repository that does not have to acknowledge leaves room for those that have to, and what hangs leaves it to one at a
    /// time.
    async fn hangs_beside() {
        let mut beside = WalMemory::wait_for(Beside, 10 * MIB, 16 * MIB).await;
        let second = tokio::spawn(WalMemory::wait_for(Beside, 10 * MIB, 16 * MIB));
        tokio::task::yield_now().await;
        assert!(!second.is_finished(), "it has its part");
        let own = WalMemory::wait_for(Acknowledging, 22 * MIB, 32 * MIB).await;
        let written = beside.split(6 * MIB).into_stuck();
        drop(beside);
        let more = tokio::spawn(WalMemory::wait_for(Acknowledging, 20 * MIB, 32 * MIB));
        tokio::task::yield_now().await;
        assert!(!more.is_finished(), "there are 4 MiB");
        drop(own);
        let second = second.await.unwrap();
        let more = more.await.unwrap();
        drop(second);
        drop(more);
        let small = WalMemory::wait_for(Beside, 4 * MIB, 16 * MIB).await;
        let again = WalMemory::wait_again(Beside, 16 * MIB).await;
        assert_eq!(again.held, 16 * MIB, "the small one may wait for it");
        drop((small, again));
        let third = WalMemory::wait_for(Acknowledging, 32 * MIB, 32 * MIB).await;
        assert_eq!(third.held, ROOM, "what hangs holds none up that is alone");
        drop((third, written));
    }
}
