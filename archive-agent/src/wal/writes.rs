//! What is being written to one repository, with the memory that it takes.
//!
//! A call into a filesystem that hangs cannot be cancelled: the upload times out, and the write keeps its bytes until it returns.
//! What always holds: the share of memory is given back when the last byte is dropped, and while a write of an upload that ended
//! has not returned, nothing more is written to that repository, so what hangs there does not grow. Where another repository or
//! filesystem has taken its place, what hangs in the old one keeps its memory and holds up nothing more; twice at the most.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use walpoint_storage::object::Keeper;

use super::memory::{StuckMemory, WalMemory};

/// The writes to one repository that have not returned.
#[derive(Debug, Clone, Default)]
pub(crate) struct Writes(Arc<Mutex<Under>>);

#[derive(Debug, Default)]
struct Under {
    way: BTreeMap<u64, Write>,
    next: u64,
    /// How often another one took the repository's place while writes hung.
    generation: u64,
}

/// In so many repositories that were replaced writes may hang.
const LEFT_BEHIND: usize = 2;

#[derive(Debug)]
struct Write {
    since: Instant,
    /// Its upload ended without it.
    stuck: bool,
    generation: u64,
}

impl Under {
    fn current(&self) -> impl Iterator<Item = &Write> {
        self.way.values().filter(|write| write.generation == self.generation)
    }
}

impl Writes {
    fn under(&self) -> MutexGuard<'_, Under> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a write that takes that share of memory.
    pub(crate) fn begin(&self, memory: WalMemory) -> Loan {
        let mut under = self.under();
        let id = under.next;
        under.next += 1;
        let generation = under.generation;
        under.way.insert(id, Write { since: Instant::now(), stuck: false, generation });
        Loan(Arc::new(Lent { id, writes: self.clone(), share: Mutex::new(Share::Held(memory)) }))
    }

    /// Whether a write hangs whose upload has ended.
    pub(crate) fn hang(&self) -> bool {
        self.under().current().any(|write| write.stuck)
    }

    /// Another repository or filesystem has taken the place of the one that these writes are in.
    pub(crate) fn leave_behind(&self) {
        let mut under = self.under();
        let hang: BTreeSet<u64> = under.way.values().map(|write| write.generation).collect();
        if hang.len() <= LEFT_BEHIND {
            under.generation += 1;
        }
    }

    /// For how long the oldest one has not returned.
    pub(crate) fn oldest(&self) -> Option<Duration> {
        self.under().current().map(|write| write.since.elapsed()).max()
    }
}

/// The memory of a write, as its upload holds it.
#[derive(Debug)]
pub(crate) struct Loan(Arc<Lent>);

impl Loan {
    /// For the bytes that are written.
    pub(crate) fn keeper(&self) -> Keeper {
        Arc::clone(&self.0) as Keeper
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        // Otherwise all is given back at once.
        if Arc::strong_count(&self.0) > 1 {
            self.0.mark_stuck();
        }
    }
}

#[derive(Debug)]
struct Lent {
    id: u64,
    writes: Writes,
    share: Mutex<Share>,
}

/// Given back when dropped.
#[derive(Debug)]
enum Share {
    Held(WalMemory),
    Stuck { _memory: StuckMemory },
    Moving,
}

impl Lent {
    fn mark_stuck(&self) {
        if let Some(write) = self.writes.under().way.get_mut(&self.id) {
            write.stuck = true;
        }
        let mut share = self.share.lock().unwrap_or_else(PoisonError::into_inner);
        *share = match std::mem::replace(&mut *share, Share::Moving) {
            Share::Held(memory) => Share::Stuck { _memory: memory.into_stuck() },
            other => other,
        };
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.writes.under().way.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::Purpose;
    use super::*;

    #[test]
    fn a_write_hangs_from_the_end_of_its_upload_until_its_bytes_are_dropped() {
        let writes = Writes::default();
        let loan = writes.begin(WalMemory::unlimited(Purpose::Beside));
        let bytes = loan.keeper();
        assert!(!writes.hang() && writes.oldest().is_some());
        drop(loan);
        assert!(writes.hang());
        drop(bytes);
        assert!(!writes.hang() && writes.oldest().is_none());
        drop(writes.begin(WalMemory::unlimited(Purpose::Beside)));
        assert!(!writes.hang());
    }

    #[test]
    fn what_hangs_in_a_repository_that_was_replaced_holds_up_the_new_one_no_more() {
        let writes = Writes::default();
        let hang = || {
            let loan = writes.begin(WalMemory::unlimited(Purpose::Beside));
            let bytes = loan.keeper();
            drop(loan);
            assert!(writes.hang());
            bytes
        };
        let _left: Vec<Keeper> = [(); LEFT_BEHIND]
            .map(|()| {
                let bytes = hang();
                writes.leave_behind();
                assert!(!writes.hang() && writes.oldest().is_none());
                bytes
            })
            .into();
        let last = hang();
        writes.leave_behind();
        assert!(writes.hang(), "no more than that is left behind");
        drop(last);
        assert!(!writes.hang());
    }
}
