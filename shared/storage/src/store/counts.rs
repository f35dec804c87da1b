//! How many requests a store was sent: for tests and benchmarks that hold the design to its numbers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Requests by kind, and bytes. Retries count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Requests {
    /// Whole objects and ranges read.
    pub get: u64,
    /// Looks at an object's size and time.
    pub head: u64,
    /// Pages of listings: one for each thousand entries begun.
    pub list: u64,
    /// Creates.
    pub put: u64,
    /// Deletes.
    pub delete: u64,
    /// Bytes of objects received.
    pub bytes_in: u64,
    /// Bytes of objects sent.
    pub bytes_out: u64,
}

impl Requests {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.get + self.head + self.list + self.put + self.delete
    }
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) get: AtomicU64,
    pub(super) head: AtomicU64,
    pub(super) list: AtomicU64,
    pub(super) put: AtomicU64,
    pub(super) delete: AtomicU64,
    pub(super) bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
}

impl Counts {
    pub(super) fn read(&self) -> Requests {
        Requests {
            get: self.get.load(Relaxed),
            head: self.head.load(Relaxed),
            list: self.list.load(Relaxed),
            put: self.put.load(Relaxed),
            delete: self.delete.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
        }
    }
}

/// One more, or that many more.
pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}
