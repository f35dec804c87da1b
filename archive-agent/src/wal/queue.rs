//! How much WAL may wait for being archived, where that is limited (`queue_max`).
//!
//! Beyond the limit a full disk is worse than a gap in the archive: PostgreSQL hears of the oldest files that they were
//! archived, and removes them. Only what exceeds the limit is dropped, and only what cannot be stored in a while. The command
//! that PostgreSQL runs puts it on record first ([`walpoint_base::dropped`]).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use walpoint_base::dropped::{DropReason, Dropped};
use walpoint_base::{SegmentSize, WalFileName};
use walpoint_runtime::human;

use super::disk::{self, DiskError};
use super::problems::Looks;
use super::ready;

/// How long a file of a queue that is too long is tried before it is dropped, and for each MiB of it a little longer. Longer
/// than an upload rests after a failure.
const RETRY_BUDGET: Duration = Duration::from_secs(8);
const RETRY_PER_MIB: Duration = Duration::from_millis(125);

/// The same after one was dropped and nothing was stored since.
const NO_HOPE: Duration = Duration::from_secs(1);

/// A process that stands in for the daemon goes by what the one before it dropped at most so many seconds ago: after three failures
/// PostgreSQL rests for a minute.
const LATELY: i64 = 120;

/// Where each file has a process of its own, one after so many that were dropped in a row is tried as long as the first one: the store
/// may be back, and take longer than that to be opened and to store a file.
const HOPES_AFTER: usize = 8;

/// A file that is stored at once is not worth a look at the queue.
pub(crate) const AT_ONCE: Duration = Duration::from_millis(100);

/// How often to look whether the queue became too long.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// Files that were dropped are remembered up to so many.
const REMEMBERED: usize = 1024;

/// The files of a cluster that wait.
#[derive(Debug)]
pub(crate) struct Queue {
    wal: PathBuf,
    /// In bytes.
    max: Option<u64>,
    /// Whether a file was dropped and none was stored since.
    dropping: AtomicBool,
    /// What this process dropped and did not store since, oldest first: where the disk is full, it is on no record.
    lately: Mutex<Vec<Dropped>>,
    /// Notified after every file that was dropped.
    pub(crate) dropped: Notify,
    /// For the task that looks for problems.
    pub(super) looks: Looks,
}

/// A queue that is longer than it may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Overflow {
    files: usize,
    bytes: u64,
    max: u64,
}

impl fmt::Display for Overflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { files, bytes, max } = *self;
        let (bytes, max) = (human::size(bytes), human::size(max));
        write!(f, "{files} files ({bytes}) are waiting to be archived, more than queue_max ({max})")
    }
}

impl Queue {
    /// What waits in a directory of WAL, at most so many bytes if they are limited.
    pub(crate) fn new(wal: &Path, max: Option<u64>) -> Self {
        Self {
            wal: wal.to_owned(),
            max,
            dropping: AtomicBool::new(false),
            lately: Mutex::default(),
            dropped: Notify::new(),
            looks: Looks::from_now(),
        }
    }

    /// Whether anything is ever dropped.
    pub(crate) fn is_limited(&self) -> bool {
        self.max.is_some()
    }

    /// What is too much, if it is; `segment`: bytes of one, which each file that waits is reckoned as.
    pub(crate) async fn overflow(&self, segment: u64) -> Option<Overflow> {
        let max = self.max?;
        let status = self.wal.join("archive_status");
        let scanned = disk::run(&self.wal, move || ready::scan(&status, 0, None)).await;
        let files = match scanned.map_err(std::io::Error::other).and_then(|scan| scan) {
            Ok(scan) => scan.count,
            Err(error) => {
                tracing::warn!("could not determine how much WAL is waiting, so nothing is dropped: {error}");
                return None;
            }
        };
        let bytes = segment.saturating_mul(files as u64);
        (bytes > max).then_some(Overflow { files, bytes, max })
    }

    /// Whether PostgreSQL waits for a file. What a person pushes by hand before or after that is not dropped.
    pub(crate) async fn holds(&self, name: WalFileName) -> Result<bool, DiskError> {
        let mark = self.wal.join(format!("archive_status/{name}.ready"));
        disk::look(&self.wal, move || mark.exists()).await
    }

    /// Whether an operator asked to go on without a file: PostgreSQL hears that it was archived, unless it can be stored. A
    /// record that cannot be read says nothing. Blocks.
    pub(crate) fn is_skipped(&self, name: WalFileName) -> bool {
        walpoint_base::dropped::is_skipped(&self.wal, name).unwrap_or(false)
    }

    /// Drops a file that an operator skipped; returns the message for PostgreSQL's log.
    pub(crate) fn skip(&self, name: WalFileName, problem: &str) -> String {
        self.dropped.notify_one();
        let says = format!(
            "dropped and not archived, as requested with push --skip: {problem}\nDETAIL: Recovery cannot \
             pass this file.\nHINT: \
             Take a new backup."
        );
        tracing::error!(file = %name, "{says}");
        says
    }

    /// How long a file of that many bytes may be tried before the queue is looked at again, or, if that is too long, before it
    /// is dropped.
    pub(crate) fn retry_budget(&self, bytes: u64, overflow: Option<&Overflow>) -> Duration {
        match overflow {
            None => INTERVAL,
            Some(_) if self.dropping.load(Ordering::Relaxed) => NO_HOPE,
            Some(_) => RETRY_BUDGET + RETRY_PER_MIB * u32::try_from(bytes >> 20).unwrap_or(u32::MAX),
        }
    }

    /// Takes over from a process that dropped the file before this one, or this one: PostgreSQL asks for one after the other, so
    /// nothing was stored since. A record that cannot be read says nothing. Blocks.
    pub(crate) fn take_over(&self, name: WalFileName, size: SegmentSize) {
        let Ok(Some(newest)) = walpoint_base::dropped::newest(&self.wal) else { return };
        let age = jiff::Timestamp::now().as_second() - newest.at;
        if newest.reason == DropReason::QueueMax
            && (0..=LATELY).contains(&age)
            && comes_next(newest.name, name, size)
            && !in_a_row(&walpoint_base::dropped::read(&self.wal).unwrap_or_default())
                .is_multiple_of(HOPES_AFTER)
        {
            self.dropping.store(true, Ordering::Relaxed);
        }
    }

    /// A file was stored: there is hope again.
    pub(crate) fn stored(&self, name: WalFileName) {
        self.dropping.store(false, Ordering::Relaxed);
        self.lately().retain(|dropped| dropped.name != name);
    }

    /// What this process dropped and did not store since, whether or not it is on record.
    pub(super) fn dropped_lately(&self) -> Vec<Dropped> {
        self.lately().clone()
    }

    fn lately(&self) -> MutexGuard<'_, Vec<Dropped>> {
        self.lately.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops a file. What PostgreSQL's log says about it.
    pub(crate) fn drop_file(&self, name: WalFileName, overflow: &Overflow, problem: &str) -> String {
        self.dropping.store(true, Ordering::Relaxed);
        let at = jiff::Timestamp::now().as_second();
        let mut lately = self.lately();
        if lately.len() < REMEMBERED && lately.iter().all(|dropped| dropped.name != name) {
            lately.push(Dropped { name, at, reason: DropReason::QueueMax });
        }
        drop(lately);
        self.dropped.notify_one();
        let message = format!(
            "dropped and not archived: {overflow}: {problem}\nDETAIL: Recovery cannot pass this file.\nHINT: Fix the store, \
             then take a new backup."
        );
        tracing::error!(file = %name, "{message}");
        message
    }
}

/// How many files at the end of the record were dropped one soon after the other.
fn in_a_row(record: &[Dropped]) -> usize {
    let of_queue = record.iter().rev().take_while(|dropped| dropped.reason == DropReason::QueueMax);
    let times: Vec<i64> = of_queue.map(|dropped| dropped.at).collect();
    let soon = times.windows(2).take_while(|pair| matches!(pair, [later, at] if later - at <= LATELY));
    usize::from(!times.is_empty()) + soon.count()
}

/// Whether a file belongs to the segment of another one or to the next.
fn comes_next(before: WalFileName, name: WalFileName, size: SegmentSize) -> bool {
    let (Some(before), Some(name)) = (before.segment(), name.segment()) else { return false };
    let (Some(first), Some(second)) = (before.number(size), name.number(size)) else { return false };
    before.timeline == name.timeline && (first == second || first.next() == second)
}

#[cfg(test)]
mod tests {
    use walpoint_base::dropped::{Recorded, record};

    use super::*;

    #[test]
    fn a_file_right_behind_one_that_was_dropped_is_not_tried_long() {
        let dir = tempfile::tempdir().unwrap();
        let size = SegmentSize::new(16 << 20).unwrap();
        let overflow = Overflow { files: 9, bytes: 9 << 24, max: 1 };
        let retry_budget = |name: &str| {
            let queue = Queue::new(dir.path(), Some(1));
            queue.take_over(name.parse().unwrap(), size);
            queue.retry_budget(16 << 20, Some(&overflow))
        };
        let long = RETRY_BUDGET + RETRY_PER_MIB * 16;
        let note = |name: &str, reason| {
            assert_eq!(record(dir.path(), name.parse().unwrap(), reason).unwrap(), Recorded::Yes);
        };
        assert_eq!(retry_budget("0000000100000000000000FF"), long);
        note("0000000100000000000000FE", DropReason::QueueMax);
        assert_eq!(retry_budget("0000000100000000000000FF"), NO_HOPE);
        assert_eq!(retry_budget("0000000100000000000000FE.00000028.backup"), NO_HOPE);
        note("0000000100000000000000FF", DropReason::QueueMax);
        assert_eq!(retry_budget("000000010000000100000000"), NO_HOPE);
        for other in [
            "000000010000000100000001",
            "000000020000000100000000",
            "0000000100000000000000FE",
            "00000002.history",
        ] {
            assert_eq!(retry_budget(other), long, "{other}");
        }
        note("000000010000000100000000", DropReason::Skipped);
        assert_eq!(retry_budget("000000010000000100000001"), long, "an operator decided");
        let path = dir.path().join(walpoint_base::dropped::FILE);
        let old = format!("000000010000000100000001 {}\n", jiff::Timestamp::now().as_second() - LATELY - 1);
        walpoint_base::durable::replace(&path, old.as_bytes(), 0o600).unwrap();
        assert_eq!(retry_budget("000000010000000100000002"), long, "long ago");
    }

    #[test]
    fn what_was_dropped_is_remembered_until_it_is_stored() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::new(dir.path(), Some(1));
        let overflow = Overflow { files: 9, bytes: 9 << 24, max: 1 };
        let names = ["000000010000000000000005", "000000010000000000000006"];
        let [first, second] = names.map(|name| name.parse::<WalFileName>().unwrap());
        for name in [first, second, first] {
            queue.drop_file(name, &overflow, "no answer");
        }
        let dropped = || queue.dropped_lately().iter().map(|dropped| dropped.name).collect::<Vec<_>>();
        assert_eq!(dropped(), [first, second]);
        queue.stored(first);
        assert_eq!(dropped(), [second]);
    }

    #[test]
    fn a_store_that_is_back_is_not_tried_for_a_second_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let overflow = Overflow { files: 99, bytes: 99 << 24, max: 1 };
        let name = |n: usize| format!("0000000100000000{n:08X}").parse::<WalFileName>().unwrap();
        let tried_long = (0..2 * HOPES_AFTER + 1).filter(|n| {
            let queue = Queue::new(dir.path(), Some(1));
            queue.take_over(name(*n), SegmentSize::new(16 << 20).unwrap());
            let long = queue.retry_budget(16 << 20, Some(&overflow)) > NO_HOPE;
            record(dir.path(), name(*n), DropReason::QueueMax).unwrap();
            long
        });
        assert_eq!(tried_long.collect::<Vec<_>>(), [0, HOPES_AFTER, 2 * HOPES_AFTER]);
    }

    #[test]
    fn only_files_that_were_dropped_one_soon_after_the_other_are_a_row() {
        let row = |times: &[(i64, DropReason)]| {
            let name = "000000010000000000000005".parse().unwrap();
            in_a_row(&times.iter().map(|&(at, reason)| Dropped { name, at, reason }).collect::<Vec<_>>())
        };
        let (full, skipped) = (DropReason::QueueMax, DropReason::Skipped);
        assert_eq!((row(&[]), row(&[(7, skipped)]), row(&[(7, full)])), (0, 0, 1));
        assert_eq!(row(&[(0, full), (LATELY + 1, full), (LATELY + 2, full)]), 2);
        assert_eq!(row(&[(1, full), (2, skipped), (3, full), (4, full)]), 2);
    }
}
