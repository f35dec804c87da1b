//! Whether a damaged segment of a directory is the one that is stored under its name, as its pages show.
//!
//! Two servers that parted in a segment write other pages from there on, all of them sound. Damage leaves no page where one was, or
//! another one before some that are the same.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use walpoint_base::{Lsn, SegmentName, WalFileName};
use walpoint_repo::wal::WalArchive;

use super::disk;

/// XLOG_BLCKSZ, as PostgreSQL is built.
const PAGE: usize = 8192;

/// Takes the stored segment, and compares it with the file as it comes.
struct PageComparison {
    local: File,
    /// Where the next page starts.
    at: Lsn,
    page: Vec<u8>,
    has_same: bool,
    /// Whether a page that another server may have written follows the last one that is the same.
    differs: bool,
}

impl PageComparison {
    fn compare(&mut self) -> io::Result<()> {
        let mut local = Vec::with_capacity(PAGE);
        (&mut self.local).take(PAGE as u64).read_to_end(&mut local)?;
        if self.page.iter().any(|byte| *byte != 0) {
            if local == self.page {
                (self.has_same, self.differs) = (true, false);
            } else if is_page(&local, &self.page, self.at) {
                self.differs = true;
            }
        }
        self.at = self.at + PAGE as u64;
        self.page.clear();
        Ok(())
    }
}

impl Write for PageComparison {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.get(..bytes.len().min(PAGE - self.page.len())).unwrap_or(bytes);
        self.page.extend_from_slice(taken);
        if self.page.len() == PAGE {
            self.compare()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether this is a page of a server of that version at that position: xlp_magic and xlp_pageaddr
/// (src/include/access/xlog_internal.h).
fn is_page(local: &[u8], stored: &[u8], at: Lsn) -> bool {
    let magic = |page: &[u8]| page.get(..2).map(<[u8]>::to_vec);
    magic(local).is_some()
        && magic(local) == magic(stored)
        && local.get(8..16) == Some(&at.0.to_le_bytes()[..])
}

/// Whether the file of a directory is the stored segment, but for pages that are damaged. What cannot be read shows nothing.
pub(super) async fn is_damaged_copy(archive: &WalArchive, wal: &Path, name: SegmentName) -> bool {
    let Some(number) = name.number(archive.lineage().segment_size) else { return false };
    let path = wal.join(name.to_string());
    let Ok(Ok(local)) = disk::run(wal, move || File::open(path)).await else { return false };
    let Ok(Some(reader)) = archive.read(WalFileName::Segment(name)).await else { return false };
    let comparison = PageComparison {
        local,
        at: number.start(archive.lineage().segment_size),
        page: Vec::with_capacity(PAGE),
        has_same: false,
        differs: false,
    };
    matches!(
        reader.write_to(comparison).await,
        Ok((PageComparison { has_same: true, differs: false, .. }, _))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Lsn = Lsn(0x300_0000);

    /// Pages, each of which holds a byte; 0 stands for none.
    fn segment(pages: &[u8]) -> Vec<u8> {
        let page = |(n, byte): (usize, &u8)| {
            let mut page = vec![*byte; PAGE];
            if *byte != 0 {
                page[..2].copy_from_slice(&[0x16, 0xD1]);
                page[8..16].copy_from_slice(&(START.0 + (n * PAGE) as u64).to_le_bytes());
            }
            page
        };
        pages.iter().enumerate().flat_map(page).collect()
    }

    fn is_the_same(local: &[u8], stored: &[u8]) -> bool {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(local).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let mut comparison =
            PageComparison { local: file, at: START, page: Vec::new(), has_same: false, differs: false };
        for piece in segment(stored).chunks(3000) {
            comparison.write_all(piece).unwrap();
        }
        comparison.has_same && !comparison.differs
    }

    /// Promise 3: of another server's segment the pages are sound from where the two parted on.
    #[test]
    fn damage_is_told_from_another_servers_pages() {
        let stored = [1, 2, 3, 4, 5, 0, 0];
        for (what, local, same) in [
            ("no damage", segment(&stored), true),
            ("zeroed in the middle", segment(&[1, 0, 0, 4, 5, 0, 0]), true),
            ("another byte in the middle", segment(&[1, 2, 9, 4, 5, 0, 0]), true),
            ("a lost tail", segment(&[1, 2, 0, 0, 0, 0, 0]), true),
            ("cut", segment(&[1, 2]), true),
            ("parted after two pages", segment(&[1, 2, 9, 9, 9, 0, 0]), false),
            ("parted in the last page", segment(&[1, 2, 3, 4, 9, 0, 0]), false),
            ("parted, and damaged besides", segment(&[1, 2, 0, 9, 9, 0, 0]), false),
            ("another one from its start on", segment(&[9, 9, 9, 9, 9, 9, 9]), false),
            ("nothing of it", segment(&[0; 7]), false),
            ("left over from an earlier use", vec![7; 7 * PAGE], false),
        ] {
            assert_eq!(is_the_same(&local, &stored), same, "{what}");
        }
    }
}
