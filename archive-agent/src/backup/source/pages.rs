//! Verifying PostgreSQL's page checksums while the pages pass.
//!
//! A page may be read while PostgreSQL writes it. Then half of it is old, and its checksum wrong; a moment later it is
//! right, or its LSN shows that it was written after the backup started, so that replay repairs it. What stays wrong is bad,
//! unless the server is switching checksums off, as it can from version 19 on while it runs: it changes its state before it
//! writes the first page without one, so the state that is asked for after a page was read decides about that page.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use walpoint_base::Lsn;
use walpoint_pg::checksum::{Checksums, PageState, page_lsn, verify_page};
use walpoint_pg::files::{self, RelationFile};
use walpoint_pg::server::ServerIdentity;

/// Waits before a bad page is read once more; a write takes less.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(1), Duration::from_millis(20), Duration::from_millis(100)];

/// Where WAL ends, asked of the server when it matters: no page can be newer.
pub(crate) struct Newest {
    known: AtomicU64,
    ask: Box<dyn Fn() -> Option<Lsn> + Send + Sync>,
}

impl std::fmt::Debug for Newest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Newest({})", Lsn(self.known.load(Ordering::Relaxed)))
    }
}

impl Newest {
    /// `ask` says where WAL ends; `None` if that cannot be found out.
    pub(crate) fn new(ask: impl Fn() -> Option<Lsn> + Send + Sync + 'static) -> Self {
        Self { known: AtomicU64::new(0), ask: Box::new(ask) }
    }

    /// Whether WAL up to `lsn` exists. Only a page whose checksum is wrong asks, so the server is rarely troubled.
    fn covers(&self, lsn: Lsn) -> bool {
        if lsn.0 <= self.known.load(Ordering::Relaxed) {
            return true;
        }
        let Some(now) = (self.ask)() else { return true };
        self.known.fetch_max(now.0, Ordering::Relaxed);
        lsn <= now
    }
}

/// Whether the pages of the cluster still carry checksums, asked where a page is bad.
pub(crate) struct InForce {
    ended: AtomicBool,
    ask: Box<dyn Fn() -> bool + Send + Sync>,
}

impl std::fmt::Debug for InForce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InForce({})", !self.has_ended())
    }
}

impl InForce {
    /// `ask` says whether checksums are on. Where that cannot be found out it says yes: damage is rather reported.
    pub(crate) fn new(ask: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self { ended: AtomicBool::new(false), ask: Box::new(ask) }
    }

    /// Whether they were off when a page was bad. Then no page of this backup is judged any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn holds(&self) -> bool {
        if !self.has_ended() && !(self.ask)() {
            tracing::warn!(
                "data checksums were switched off during the backup: the remaining pages are not verified"
            );
            self.ended.store(true, Ordering::Relaxed);
        }
        !self.has_ended()
    }
}

/// How pages of a cluster with checksums are verified.
#[derive(Debug)]
pub(crate) struct PageCheck {
    /// Bytes of a page.
    pub(crate) block_size: usize,
    /// Pages of a full file of a relation.
    pub(crate) segment_blocks: u32,
    /// Where the backup started.
    pub(crate) start: Lsn,
    /// Where WAL ends.
    pub(crate) newest: Newest,
    /// Whether a wrong checksum means damage.
    pub(crate) in_force: InForce,
}

/// What the file of a bad page turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadPage {
    /// Which block of the file.
    pub(crate) block: u64,
    /// The checksum in its header.
    pub(crate) stored: u16,
    /// That of its content.
    pub(crate) computed: u16,
}

impl PageCheck {
    /// How the pages of a cluster are verified by a backup that started there; `None` if they carry no checksums.
    pub(crate) fn of(
        identity: &ServerIdentity,
        start: Lsn,
        newest: Newest,
        in_force: InForce,
    ) -> Option<Self> {
        let on = identity.checksums == Checksums::On;
        let block_size = usize::try_from(identity.block_size).ok().filter(|_| on)?;
        Some(Self { block_size, segment_blocks: identity.relation_segment_blocks, start, newest, in_force })
    }

    /// What the file's name says, if its pages carry checksums.
    pub(crate) fn relation(&self, path: &Path) -> Option<RelationFile> {
        files::relation(path)
    }

    /// Verifies the whole pages in `bytes`, which were read at `at`. A bad one is read again, into its place. Gives the bad
    /// pages to `bad`, and how many bytes are still there: fewer if the file was cut meanwhile.
    pub(crate) fn verify(
        &self,
        relation: RelationFile,
        file: &File,
        at: u64,
        bytes: &mut [u8],
        mut bad: impl FnMut(BadPage),
    ) -> io::Result<usize> {
        let size = u64::try_from(self.block_size).unwrap_or(u64::MAX);
        let (first, length) = (at / size, bytes.len());
        for (n, page) in bytes.chunks_exact_mut(self.block_size).enumerate() {
            let block = first + u64::try_from(n).unwrap_or(u64::MAX);
            let number = u32::try_from(block).ok();
            let number = number.and_then(|block| relation.block_in_relation(block, self.segment_blocks));
            let Some(number) = number else { continue };
            if self.in_force.has_ended() || self.is_fine(self.state(page, number)) {
                continue;
            }
            match self.read_again(file, block * size, page, number)? {
                None => return Ok((n * self.block_size).min(length)),
                Some(PageState::Bad { stored, computed }) if self.in_force.holds() => {
                    bad(BadPage { block, stored, computed });
                }
                Some(_) => {}
            }
        }
        Ok(length)
    }

    /// Verifies the whole pages in `bytes`, which a server sent that read a bad one again itself. Gives the bad pages to
    /// `bad`.
    pub(crate) fn verify_received(
        &self,
        relation: RelationFile,
        at: u64,
        bytes: &[u8],
        mut bad: impl FnMut(BadPage),
    ) {
        let first = at / u64::try_from(self.block_size).unwrap_or(u64::MAX);
        for (block, page) in (first..).zip(bytes.chunks_exact(self.block_size)) {
            let number = u32::try_from(block).ok();
            let number = number.and_then(|block| relation.block_in_relation(block, self.segment_blocks));
            let Some(PageState::Bad { stored, computed }) = number.map(|number| self.state(page, number))
            else {
                continue;
            };
            if self.in_force.holds() {
                bad(BadPage { block, stored, computed });
            }
        }
    }

    /// As the server verifies it. A page that claims to be newer than all WAL is bad: its LSN is what was damaged.
    fn state(&self, page: &[u8], number: u32) -> PageState {
        match verify_page(page, number, Some(self.start..=Lsn(u64::MAX))) {
            PageState::NewerThanBackup if page_lsn(page).is_some_and(|lsn| !self.newest.covers(lsn)) => {
                verify_page(page, number, None)
            }
            state => state,
        }
    }

    fn is_fine(&self, state: PageState) -> bool {
        !matches!(state, PageState::Bad { .. })
    }

    /// Reads a page until it is fine or stays bad; `None` if the file ends before it.
    fn read_again(
        &self,
        file: &File,
        at: u64,
        page: &mut [u8],
        number: u32,
    ) -> io::Result<Option<PageState>> {
        let mut state = PageState::New;
        for pause in PAUSES {
            std::thread::sleep(pause);
            // Past what the kernel holds: a page damaged in memory is not a damaged file.
            let length = u64::try_from(page.len()).ok().and_then(std::num::NonZeroU64::new);
            rustix::fs::fadvise(file, at, length, rustix::fs::Advice::DontNeed).ok();
            match file.read_exact_at(page, at) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                result => result?,
            }
            state = self.state(page, number);
            if self.is_fine(state) {
                break;
            }
        }
        Ok(Some(state))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use walpoint_pg::checksum::page_checksum;

    use super::*;

    const SIZE: usize = 8192;

    fn page(lsn: u32, number: u32) -> Vec<u8> {
        let mut page = vec![7; SIZE];
        page[0..4].fill(0);
        page[4..8].copy_from_slice(&lsn.to_le_bytes());
        let sum = page_checksum(&page, number);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    fn check() -> PageCheck {
        PageCheck {
            block_size: SIZE,
            segment_blocks: 100,
            start: Lsn(1000),
            newest: Newest::new(|| Some(Lsn(2000))),
            in_force: InForce::new(|| true),
        }
    }

    /// Verifies `read`, as if it had been read from a file that holds `disk`: the bad blocks, the bytes still there.
    fn verify(disk: &[Vec<u8>], read: &[Vec<u8>]) -> (Vec<u64>, usize, Vec<u8>) {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&disk.concat(), 0).unwrap();
        let relation = RelationFile::parse("16384.2".as_ref()).unwrap();
        let (mut bytes, mut bad) = (read.concat(), Vec::new());
        let there = check().verify(relation, &file, 0, &mut bytes, |page| bad.push(page.block)).unwrap();
        (bad, there, bytes)
    }

    #[test]
    fn a_page_that_is_bad_on_disk_is_reported_with_its_block() {
        let good = vec![page(500, 200), page(500, 201), vec![0; SIZE]];
        assert_eq!(verify(&good, &good).0, Vec::<u64>::new());
        let mut bad = good.clone();
        bad[1][3000] ^= 1;
        assert_eq!(verify(&bad, &bad).0, [1]);
    }

    #[test]
    fn pages_are_not_judged_once_checksums_were_switched_off() {
        let mut pages = [page(500, 200), page(500, 201)];
        pages[1][3000] ^= 1;
        let relation = RelationFile::parse("16384.2".as_ref()).unwrap();
        for on in [true, false] {
            let check = PageCheck { in_force: InForce::new(move || on), ..check() };
            let mut bad = Vec::new();
            check.verify_received(relation, 0, &pages.concat(), |page| bad.push(page.block));
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&pages.concat(), 0).unwrap();
            check.verify(relation, &file, 0, &mut pages.concat(), |page| bad.push(page.block)).unwrap();
            assert_eq!((bad.len(), check.in_force.has_ended()), if on { (2, false) } else { (0, true) });
        }
    }

    #[test]
    fn a_page_that_was_torn_while_it_was_read_is_read_again_and_not_reported() {
        let good = vec![page(500, 200), page(500, 201)];
        let mut torn = good.clone();
        torn[1][4096..].fill(9);
        let (bad, there, bytes) = verify(&good, &torn);
        assert_eq!((bad, there), (vec![], 2 * SIZE));
        assert!(bytes == good.concat(), "what is stored is what was read last");
    }

    #[test]
    fn a_newer_page_may_be_torn_but_not_newer_than_all_wal() {
        let mut pages = vec![page(1500, 200), page(3000, 201)];
        pages[0][5000] ^= 1;
        assert_eq!(verify(&pages, &pages).0, Vec::<u64>::new());
        pages[1][5000] ^= 1;
        assert_eq!(verify(&pages, &pages).0, [1], "no WAL record has such a position");
        pages[1].fill(0xFF);
        assert_eq!(verify(&pages, &pages).0, [1], "nor has it that of a page of ones");
    }

    #[test]
    fn a_file_that_was_cut_meanwhile_ends_there() {
        let good = vec![page(500, 200), page(500, 201)];
        let mut torn = good.clone();
        torn[1][5000] ^= 1;
        let (bad, there, _) = verify(&good[..1], &torn);
        assert_eq!((bad, there), (vec![], SIZE));
    }
}
