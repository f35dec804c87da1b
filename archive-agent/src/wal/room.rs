//! Memory for what is sealed and not stored yet, of all clusters together.
//!
//! How much a segment takes is known when it is sealed. It begins with what segments took lately and takes more while there is
//! more. What always holds: nobody waits for memory while holding some. Who finds none left gives back what it has and starts
//! over with as much as a segment can take at the most; so everybody gets on, in the order in which they asked.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

/// Bytes in all: one segment of the largest size that is one object, even if nothing in it compresses.
pub(crate) const ROOM: usize = 32 << 20;

/// What is left of them.
static LEFT: Semaphore = Semaphore::const_new(ROOM);

/// A share, given back when dropped.
#[derive(Debug)]
pub(crate) struct Room {
    permit: Option<SemaphorePermit<'static>>,
    /// It never takes more.
    most: usize,
}

impl Room {
    /// For what takes hardly any memory: holds all that it is asked to.
    pub(crate) fn unlimited() -> Self {
        Self { permit: None, most: 0 }
    }

    /// Waits for `bytes`, for something that takes `most` bytes at the most. Both are cut to [`ROOM`].
    pub(crate) async fn wait_for(bytes: usize, most: usize) -> Self {
        let most = most.min(ROOM);
        // Never closed; if it were, memory would not be limited.
        let permit = LEFT.acquire_many(permits(bytes.min(most))).await.ok();
        Self { permit, most }
    }

    /// The most that it may take.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// Makes sure that it holds `bytes`, without waiting; whether it does.
    pub(crate) fn hold(&mut self, bytes: u64) -> bool {
        let Some(permit) = &mut self.permit else { return true };
        let wanted = usize::try_from(bytes).unwrap_or(usize::MAX).min(self.most);
        let missing = wanted.saturating_sub(permit.num_permits());
        if missing == 0 {
            return true;
        }
        let more = LEFT.try_acquire_many(permits(missing));
        more.map(|more| permit.merge(more)).is_ok()
    }

    /// Gives back all but `bytes`.
    pub(crate) fn keep(&mut self, bytes: u64) {
        if let Some(permit) = &mut self.permit {
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            drop(permit.split(permit.num_permits().saturating_sub(bytes)));
        }
    }
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes.min(ROOM)).unwrap_or(u32::MAX)
}

/// What the segments of a cluster took lately, in bytes for each repository.
#[derive(Debug, Default)]
pub(crate) struct Habit(AtomicUsize);

impl Habit {
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
    use super::*;

    #[test]
    fn what_one_takes_is_expected_of_the_next_ones() {
        let habit = Habit::default();
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

    /// The whole of the room in one test: it is one for the process.
    #[tokio::test]
    async fn a_share_grows_while_there_is_room_and_nobody_waits_for_ever() {
        let mut first = Room::wait_for(4 << 20, 16 << 20).await;
        let mut second = Room::wait_for(20 << 20, 64 << 20).await;
        assert!(first.hold(1) && first.hold(12 << 20), "8 MiB were left");
        assert!(!first.hold(13 << 20) && !second.hold(21 << 20), "nothing is left");
        first.keep(1 << 20);
        assert!(second.hold(31 << 20) && !second.hold(32 << 20));
        // What takes no more than its most has it, whatever it says.
        let mut third = Room::unlimited();
        assert!(third.hold(u64::MAX));
        drop(first);
        let waits = tokio::spawn(Room::wait_for(16 << 20, 16 << 20));
        tokio::task::yield_now().await;
        // Who waits comes first.
        assert!(!second.hold(32 << 20));
        drop(second);
        let mut fourth = waits.await.unwrap();
        assert!(fourth.hold(u64::MAX));
        drop(fourth);
        assert_eq!(Room::wait_for(usize::MAX, usize::MAX).await.permit.unwrap().num_permits(), ROOM);
    }
}
