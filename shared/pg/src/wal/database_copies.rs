//! Databases that were copied file by file, and whether their sources were changed afterwards.
//!
//! Replay of such a record copies the source as it finds it. In a base backup that is what was read from it at any moment
//! until the backup's end, with the changes up to the record replayed: the same as the server copied only if nothing
//! changed the source behind the record.

use walpoint_base::{Lsn, SegmentName};

use super::checkpoint::Cursor;
use super::error::WalError;
use super::kind::{DatabaseCopy, RecordKind};
use super::page::{LongHeader, major_of_magic};
use super::reader::RecordReader;
use super::record::{RECORD_HEADER, RecordHeader, WalRecord};
use super::touched::{HEAD, directories};

/// Pages in which the beginning of a record lies, wherever in the first of them it starts.
const PAGES: usize = 4;

/// A copy, and the first change of what was copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FoundCopy {
    /// Where its record starts.
    pub record: Lsn,
    /// What was copied, and where to.
    pub copy: DatabaseCopy,
    /// The first record behind it that changes its source, or may.
    pub changed: Option<Lsn>,
}

/// Looks for copies in consecutive segments.
#[derive(Debug)]
pub struct DatabaseCopies {
    from: Lsn,
    until: Lsn,
    reader: RecordReader,
    /// WAL from the page on in which the record starts that goes on in the next segment: as much as its beginning takes.
    tail: Tail,
    found: Vec<FoundCopy>,
}

#[derive(Debug, Default)]
struct Tail {
    start: Lsn,
    wal: Vec<u8>,
}

impl DatabaseCopies {
    /// Records that start in this range count. The first segment given has to be one in which, or before which, no copy
    /// starts, or that of `from`.
    pub fn new(from: Lsn, until: Lsn) -> Self {
        Self { from, until, reader: RecordReader::new(), tail: Tail::default(), found: Vec::new() }
    }

    /// What was found so far.
    pub fn found(&self) -> &[FoundCopy] {
        &self.found
    }

    /// Reads the next segment.
    pub fn segment(&mut self, name: SegmentName, content: &[u8]) -> Result<(), WalError> {
        let Self { from, until, reader, tail, found } = self;
        let range = *from..*until;
        let header = LongHeader::parse(content);
        let block = header.as_ref().and_then(LongHeader::valid_block_size).unwrap_or(content.len()).max(1);
        let start = header.as_ref().map(|header| header.page.address).unwrap_or_default();
        let major = header.as_ref().and_then(|header| major_of_magic(header.page.magic));
        // Whole if the record begins that near to the end.
        let crosses_whole = tail.wal.len() < PAGES * block;
        if crosses_whole {
            tail.wal.extend_from_slice(content.get(..PAGES * block).unwrap_or(content));
        }
        let mut last = None;
        for record in reader.segment(name, content)? {
            let record = record?;
            last = Some(record.next);
            if !range.contains(&record.start) {
                continue;
            }
            if !found.is_empty() {
                let (wal, begin) = match record.start >= start {
                    true => (content, start),
                    false => (tail.wal.as_slice(), tail.start),
                };
                let beginning = beginning(&record, wal, begin, block);
                found.iter_mut().filter(|found| found.changed.is_none()).for_each(|found| {
                    let source = found.copy.from;
                    let drops = matches!(record.kind, RecordKind::DatabaseDrop { database } if database == source.database);
                    let mut changes = drops;
                    let told = major.zip(beginning.as_ref()).and_then(|(major, (head, length))| {
                        directories(&record, head, *length, major, &mut |directory| changes |= directory == source)
                    });
                    found.changed = (changes || told.is_none()).then_some(record.start);
                });
            }
            if let RecordKind::DatabaseCopy(copy) = record.kind {
                found.push(FoundCopy { record: record.start, copy, changed: None });
            }
        }
        match (reader.continues(), last) {
            (false, _) => *tail = Tail::default(),
            (true, Some(next)) => {
                let offset = usize::try_from(next.0.saturating_sub(start.0)).unwrap_or(usize::MAX);
                let page = offset - offset % block;
                let rest = content.get(page..).unwrap_or_default();
                let wal = rest.get(..PAGES * block).unwrap_or(rest).to_vec();
                *tail =
                    Tail { start: Lsn(start.0.saturating_add(u64::try_from(page).unwrap_or(u64::MAX))), wal };
            }
            // A record that extends over all of the segment.
            (true, None) => {}
        }
        Ok(())
    }
}

/// The beginning of a record's body and the body's length. `wal` begins with the page at `begin`.
fn beginning(record: &WalRecord, wal: &[u8], begin: Lsn, block: usize) -> Option<(Vec<u8>, usize)> {
    let offset = record.start.0.checked_sub(begin.0)?;
    let page_size = u64::try_from(block).ok()?;
    let page = offset - offset % page_size;
    let mut cursor = Cursor { wal: wal.get(usize::try_from(page).ok()?..)?, page_size, at: offset - page };
    let header = cursor.take(RECORD_HEADER)?;
    let header = RecordHeader::parse(header.first_chunk()?);
    let length = usize::try_from(header.total).ok()?.checked_sub(RECORD_HEADER)?;
    Some((cursor.take(length.min(HEAD))?, length))
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::WalFixture;
    use super::*;
    use crate::wal::{DatabaseDirectory, Rmgr};

    const SOURCE: DatabaseDirectory = DatabaseDirectory { tablespace: 1663, database: 5 };
    const OTHER: DatabaseDirectory = DatabaseDirectory { tablespace: 1663, database: 6 };

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn copied(fixture: &mut WalFixture, to: u32, from: DatabaseDirectory) -> Lsn {
        let body = WalFixture::data(&words(&[to, 1663, from.database, from.tablespace]));
        fixture.record(Rmgr::DBASE.0, 0x01, 700, &body)
    }

    /// A change of a block, so long that it goes on in the next page or segment.
    fn changed(fixture: &mut WalFixture, directory: DatabaseDirectory, length: u16) -> Lsn {
        let mut body = vec![0, 0x20];
        body.extend(length.to_le_bytes());
        body.extend(words(&[directory.tablespace, directory.database, 16384, 3]));
        body.resize(body.len() + usize::from(length), 1);
        fixture.record(10, 0, 700, &body)
    }

    fn look(fixture: &WalFixture, from: Lsn) -> Vec<(Lsn, Option<Lsn>)> {
        let mut copies = DatabaseCopies::new(from, fixture.position());
        for (name, content) in fixture.segments() {
            copies.segment(name, &content).unwrap();
        }
        copies.found().iter().map(|found| (found.record, found.changed)).collect()
    }

    #[test]
    fn a_source_that_is_changed_behind_the_copy_is_found_wherever_a_boundary_lies() {
        for (major, drop) in [(13, 0x10), (17, 0x20)] {
            for left in [8, 16, 24, 40, 56, 72, 200] {
                let mut fixture = WalFixture::new(major, 1);
                changed(&mut fixture, SOURCE, 100);
                let copy = copied(&mut fixture, 7, SOURCE);
                changed(&mut fixture, OTHER, 100);
                copied(&mut fixture, 8, SOURCE);
                let untouched = look(&fixture, Lsn(0));
                assert_eq!(untouched.iter().map(|found| found.1).collect::<Vec<_>>(), [None, None]);
                fixture.fill_segment_but(left);
                let change = changed(&mut fixture, SOURCE, 30_000);
                fixture.filler(200);
                let found = look(&fixture, Lsn(0));
                // The fillers refer to no blocks that make sense, so the first of them may be anything.
                assert!(found.iter().all(|found| found.1.is_some_and(|at| at <= change)), "{found:?}");
                assert_eq!(found[0].0, copy);
                assert_eq!(look(&fixture, copy + 8).len(), 1, "before the backup's start");

                let mut fixture = WalFixture::new(major, 1);
                fixture.fill_segment_but(left);
                let copy = copied(&mut fixture, 7, SOURCE);
                changed(&mut fixture, OTHER, 60_000);
                assert_eq!(look(&fixture, Lsn(0)), [(copy, None)], "{left}");
                let dropped =
                    fixture.record(Rmgr::DBASE.0, drop, 700, &WalFixture::data(&words(&[5, 1, 1663])));
                fixture.filler(64);
                assert_eq!(look(&fixture, Lsn(0)), [(copy, Some(dropped))], "{left}");
            }
        }
    }
}
