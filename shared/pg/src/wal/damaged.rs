//! Whether a damaged content of a segment is a copy of a sound one, as its records show.
//!
//! Two servers that parted in a segment wrote other records from there on, each with a right check. Damage leaves bytes that have none. So
//! every record of the damaged content that has a right check is compared, wherever it lies: another server wrote the segment if one
//! differs, though others behind it are the same, as those of equal loads are. What has no right check shows nothing. Behind it the next
//! record is searched for, as the length of the one before may be what is damaged.
//!
//! Where the only record that differs is the one that is damaged, nothing tells the two servers apart. A segment switch is the same on every server that writes one there, and a longer record than [`LONGEST`] is not looked at: neither
//! shows anything.

use walpoint_base::{Lsn, PgMajor};

use super::kind::XLOG_SWITCH;
use super::page::{LONG_HEADER, PageHeader, SHORT_HEADER};
use super::record::{RECORD_HEADER, RecordCrc, RecordHeader, Rmgr, check_total};
use crate::bytes;

/// The longest record that is compared. More is not held of either content.
const LONGEST: usize = 1 << 20;

/// What the records of a damaged segment show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DamagedRecords {
    /// It is a copy of the sound one: records are the same, and none differs.
    Same,
    /// Nothing.
    Nothing,
    /// Another server wrote it.
    Other,
}

/// Compares a damaged content of a segment with a sound one, page by page.
#[derive(Debug)]
pub struct DamagedComparison {
    segment: Lsn,
    major: PgMajor,
    block: usize,
    /// The pages that are held of both, and where in the segment they begin.
    ours: Vec<u8>,
    theirs: Vec<u8>,
    from: usize,
    /// Where the next record is looked for in the segment, and where the first one should start.
    at: usize,
    first: usize,
    found: DamagedRecords,
    /// Whether a switch was found: nothing is looked for behind it.
    ended: bool,
}

/// What is found where a record may start.
enum Place {
    /// A record with a right check, which ends there.
    Record {
        record: Vec<u8>,
        end: usize,
    },
    Nothing,
    /// It may begin there and end in pages that are still to come.
    More,
}

impl DamagedComparison {
    /// Of a segment that starts there, in pages of that size.
    pub fn new(segment: Lsn, major: PgMajor, block: usize) -> Self {
        Self {
            segment,
            major,
            block,
            ours: Vec::new(),
            theirs: Vec::new(),
            from: 0,
            at: 0,
            first: LONG_HEADER,
            found: DamagedRecords::Nothing,
            ended: false,
        }
    }

    /// Takes the next page of both. What is missing of a page at the end of a file is zeros.
    pub fn page(&mut self, ours: &[u8], theirs: &[u8]) {
        let length = self.ours.len() + self.block;
        for (held, page) in [(&mut self.ours, ours), (&mut self.theirs, theirs)] {
            held.extend_from_slice(page);
            held.resize(length, 0);
        }
        self.walk(false);
        let passed = (self.at - self.from) / self.block * self.block;
        for held in [&mut self.ours, &mut self.theirs] {
            held.drain(..passed.min(length));
        }
        self.from += passed;
    }

    /// What they show, when all pages were given.
    pub fn finish(mut self) -> DamagedRecords {
        self.walk(true);
        self.found
    }

    fn walk(&mut self, all: bool) {
        let end = self.from + self.ours.len();
        while self.at < end {
            if self.ended || self.found == DamagedRecords::Other {
                self.at = end;
            } else if self.at.is_multiple_of(self.block) {
                self.at += self.page_header();
            } else {
                match self.look() {
                    Place::Record { record, end } => self.compare(&record, end),
                    Place::More if !all => return,
                    Place::Nothing | Place::More => self.at += 8,
                }
            }
        }
    }

    /// The length of the header of the page that begins here, or of all of the page if it holds nothing of this segment, such as what a
    /// recycled file held before.
    fn page_header(&mut self) -> usize {
        let header = self.ours.get(self.at - self.from..).and_then(PageHeader::parse);
        let expected = self.segment + self.at as u64;
        let Some(header) = header.filter(|header| header.address == expected) else { return self.block };
        if self.at > 0 {
            return SHORT_HEADER;
        }
        if header.continues() {
            let carried = usize::try_from(header.remaining).unwrap_or(usize::MAX);
            self.first =
                LONG_HEADER.saturating_add(carried).checked_next_multiple_of(8).unwrap_or(usize::MAX);
        }
        LONG_HEADER
    }

    fn look(&self) -> Place {
        let here = self.ours.get(self.at - self.from..).and_then(|here| bytes::u32(here, 0));
        let Some(total) = here.filter(|total| check_total(*total).is_ok()) else { return Place::Nothing };
        let length = usize::try_from(total).unwrap_or(usize::MAX);
        if length > LONGEST {
            return Place::Nothing;
        }
        let Some((header, _)) = self.gather(&self.ours, RECORD_HEADER) else { return Place::More };
        let Some(raw) = header.first_chunk() else { return Place::Nothing };
        let (header, start) = (RecordHeader::parse(raw), self.segment + self.at as u64);
        // Only the first one follows a record of an earlier segment: others that do are what the file held before.
        let is_here = header.previous >= self.segment || self.at == self.first;
        if !is_here || header.check(start, None, self.major).is_err() {
            return Place::Nothing;
        }
        let Some((record, end)) = self.gather(&self.ours, length) else { return Place::More };
        let body = record.get(RECORD_HEADER..).unwrap_or_default();
        if RecordCrc::default().body(body).finish(raw) != header.crc {
            return Place::Nothing;
        }
        Place::Record { record, end }
    }

    fn compare(&mut self, record: &[u8], end: usize) {
        let is_same = self.gather(&self.theirs, record.len()).is_some_and(|(theirs, _)| theirs == record);
        let header = record.first_chunk().map(RecordHeader::parse);
        let switches =
            header.is_some_and(|header| header.rmgr == Rmgr::XLOG && header.info & 0xF0 == XLOG_SWITCH);
        self.found = match (is_same, switches) {
            (false, _) => DamagedRecords::Other,
            (true, true) => self.found,
            (true, false) => DamagedRecords::Same,
        };
        self.ended = switches;
        self.at = end.next_multiple_of(8);
    }

    /// So many bytes of what starts here, without the headers of pages, and where they end; `None` if not all of them are held.
    fn gather(&self, held: &[u8], length: usize) -> Option<(Vec<u8>, usize)> {
        let (mut taken, mut at) = (Vec::new(), self.at);
        while taken.len() < length {
            if at.is_multiple_of(self.block) {
                at += SHORT_HEADER;
            }
            let (from, piece) = (at - self.from, (self.block - at % self.block).min(length - taken.len()));
            taken.extend_from_slice(held.get(from..from + piece)?);
            at += piece;
        }
        Some((taken, at))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{BLOCK, WalFixture};
    use super::*;

    /// A segment that was switched behind these records: transaction and length of each.
    fn content(records: &[(u32, usize)]) -> Vec<u8> {
        let mut fixture = WalFixture::new(17, 1);
        for (xid, length) in records {
            fixture.record(10, 0, *xid, &vec![7; length - RECORD_HEADER]);
        }
        fixture.switch();
        fixture.segments().remove(0).1
    }

    fn compared(ours: &[u8], stored: &[u8]) -> DamagedRecords {
        let start = WalFixture::new(17, 1).start();
        let mut comparison = DamagedComparison::new(start, PgMajor::new(17).unwrap(), BLOCK);
        for (n, page) in stored.chunks(BLOCK).enumerate() {
            let until = ours.len().min((n + 1) * BLOCK);
            comparison.page(ours.get(n * BLOCK..until).unwrap_or_default(), page);
        }
        comparison.finish()
    }

    fn flipped(mut content: Vec<u8>, places: &[usize]) -> Vec<u8> {
        places.iter().for_each(|at| content[*at] ^= 1);
        content
    }

    /// Eight pages of records.
    fn many() -> Vec<(u32, usize)> {
        (1..=40).map(|xid| (xid, 1500)).collect()
    }

    #[test]
    fn a_damaged_copy_has_no_sound_record_that_differs() {
        let stored = content(&many());
        let in_each: Vec<usize> = (0..8).map(|page| page * BLOCK + 100).collect();
        for at in &in_each {
            assert_eq!(compared(&flipped(stored.clone(), &[*at]), &stored), DamagedRecords::Same, "{at}");
        }
        let mut zeroed = stored.clone();
        zeroed[2 * BLOCK..4 * BLOCK].fill(0);
        let mut earlier = WalFixture::at(17, 1, 4);
        for _ in 0..400 {
            earlier.filler(1500);
        }
        let mut torn = stored.clone();
        torn[BLOCK + 512..2 * BLOCK].copy_from_slice(&earlier.segments()[0].1[BLOCK + 512..2 * BLOCK]);
        for (what, ours, expected) in [
            ("no damage", stored.clone(), DamagedRecords::Same),
            ("the length of the first record", flipped(stored.clone(), &[40]), DamagedRecords::Same),
            ("damage in every page", flipped(stored.clone(), &in_each), DamagedRecords::Same),
            ("the address of a page", flipped(stored.clone(), &[3 * BLOCK + 9]), DamagedRecords::Same),
            ("zeroed in the middle", zeroed, DamagedRecords::Same),
            ("a page that was written in part", torn, DamagedRecords::Same),
            ("cut", stored[..2 * BLOCK].to_vec(), DamagedRecords::Same),
            ("nothing of it", vec![0; stored.len()], DamagedRecords::Nothing),
            ("left over from an earlier use", earlier.segments().remove(0).1, DamagedRecords::Nothing),
        ] {
            assert_eq!(compared(&ours, &stored), expected, "{what}");
        }
    }

    /// Promise 3: of another server's segment the records are sound from where the two parted on, whatever is damaged besides.
    #[test]
    fn damage_is_told_from_another_servers_records() {
        let stored = content(&many());
        let with = |change: &dyn Fn(usize, (u32, usize)) -> (u32, usize)| {
            let changed = many().into_iter().enumerate().map(|(n, record)| change(n, record));
            content(&changed.collect::<Vec<_>>())
        };
        // Where the record of that number starts: 1504 bytes each, and the header of each page before.
        let start = |n: usize| (0..=n).fold(LONG_HEADER, |at, n| if n == 0 { at } else { behind(at) });
        let parted = with(&|n, (xid, length)| (xid + if n < 20 { 0 } else { 1000 }, length));
        let longer = with(&|n, (xid, length)| (xid, length + if n < 20 { 0 } else { 80 }));
        let once = with(&|n, (xid, length)| (xid + if n == 20 { 1000 } else { 0 }, length));
        for (what, ours) in [
            ("parted", parted.clone()),
            ("parted, with records of other lengths", longer.clone()),
            ("parted, and the same again behind it", once.clone()),
            ("parted in a record that is damaged", flipped(parted.clone(), &[start(20) + 30])),
            ("of other lengths behind the damage", flipped(longer, &[start(20) + 30])),
            ("damaged before it parted", flipped(once, &[start(3) + 30])),
            ("damaged in the last page", flipped(parted, &[7 * BLOCK + 100])),
            ("another one from its start on", with(&|_, (xid, length)| (xid + 1000, length))),
        ] {
            assert_eq!(compared(&ours, &stored), DamagedRecords::Other, "{what}");
        }
    }

    /// Where the record behind one of [`many`] starts.
    fn behind(at: usize) -> usize {
        let crosses = at / BLOCK != (at + 1503) / BLOCK;
        let next = at + 1504 + if crosses { SHORT_HEADER } else { 0 };
        if next.is_multiple_of(BLOCK) { next + SHORT_HEADER } else { next }
    }

    #[test]
    fn one_page_is_enough() {
        let stored = content(&[(1, 100), (2, 100)]);
        let second = LONG_HEADER + 104;
        for (places, expected) in [
            (&[LONG_HEADER + 30][..], DamagedRecords::Same),
            (&[second + 30], DamagedRecords::Same),
            (&[second], DamagedRecords::Same),
            (&[LONG_HEADER + 30, second + 30], DamagedRecords::Nothing),
        ] {
            assert_eq!(compared(&flipped(stored.clone(), places), &stored), expected, "{places:?}");
        }
        assert_eq!(compared(&content(&[(1, 100), (3, 100)]), &stored), DamagedRecords::Other);
        let damaged = flipped(content(&[(3, 100), (2, 100)]), &[second + 30]);
        assert_eq!(compared(&damaged, &stored), DamagedRecords::Other);
        // A switch at that place is any server's.
        let damaged = flipped(content(&[(3, 100)]), &[LONG_HEADER + 30]);
        assert_eq!(compared(&damaged, &content(&[(1, 100)])), DamagedRecords::Nothing);
    }
}
