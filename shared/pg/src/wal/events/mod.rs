//! What happened, read from WAL: how each transaction ended and what it changed, and what happened to the server.
//!
//! | module | owns |
//! |---|---|
//! | `event` | what is found |
//! | `change` | what one record says that a transaction changed |
//! | `open` | the transactions that have not ended |
//!
//! Rows are counted where they are changed and given out with the end of their transaction. What was rolled back to a savepoint is no
//! part of what is committed. Memory is bounded: a page, the events that were not taken yet, and for each open transaction its counts by
//! relation, up to [`ENTRIES`] in all. What is counted is exact, unless an event says that it may be more.

mod change;
mod event;
mod open;
#[cfg(test)]
mod tests;

use walpoint_base::{Lsn, SegmentName};

use self::change::is_decoded;
pub use self::event::{FileRemoval, ObjectChange, RelationFile, RowCounts, TransactionEvent, WalEvent};
pub use self::open::ENTRIES;
use self::open::Tally;
use super::error::WalError;
use super::page::LONG_HEADER;
use super::pending::Pending;
use super::segment::{Segment, WalPage};
use super::walk::{Carry, SegmentEnd, Walk};
use crate::bytes;

/// Reads consecutive segments, each in pieces of any length.
#[derive(Debug)]
pub struct EventReader {
    carry: Carry,
    /// What the segment that is being read continues, until one of its records ended.
    continued: Option<Carry>,
    tally: Tally,
    found: Vec<WalEvent>,
    segment: Option<Reading>,
    /// The end of the last record that was read.
    position: Lsn,
}

/// A segment that is being read.
#[derive(Debug)]
struct Reading {
    name: SegmentName,
    length: u64,
    /// Bytes so far.
    fed: u64,
    /// Of these, bytes before the zeros at their end.
    content_len: usize,
    /// The beginning of a page whose rest has not come yet; of the first one, until its header has.
    held: Vec<u8>,
    /// Once the header of the first page has come.
    walk: Option<Box<Walk<'static>>>,
    /// Where the next page begins.
    offset: usize,
}

impl Default for EventReader {
    fn default() -> Self {
        Self {
            carry: unknown(),
            continued: None,
            tally: Tally::default(),
            found: Vec::new(),
            segment: None,
            position: Lsn::INVALID,
        }
    }
}

/// Nothing is known of what lies before.
fn unknown() -> Carry {
    Carry { pending: Pending::keeping(is_decoded), ..Carry::default() }
}

impl EventReader {
    /// A reader that has read nothing yet. What it reads first it takes from the first record that starts there.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins the next segment, which follows the one before unless [`gap`](Self::gap) says otherwise. After an error another copy of
    /// the same segment may be begun while none of its records ended.
    pub fn begin(&mut self, name: SegmentName, length: u64) {
        if let Some(continued) = self.continued.take() {
            self.carry = continued;
        }
        let held = Vec::new();
        self.segment = Some(Reading { name, length, fed: 0, content_len: 0, held, walk: None, offset: 0 });
    }

    /// What lies between what was read and what comes next is not known: neither how the open transactions ended, nor what they
    /// changed there.
    pub fn gap(&mut self) {
        self.segment = None;
        self.carry = unknown();
        self.continued = None;
        self.tally.gap();
    }

    /// Takes the next bytes of the segment. After an error nothing more of it can be read: a [`gap`](Self::gap).
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), WalError> {
        let Some(reading) = &mut self.segment else { return Ok(()) };
        let used = bytes::len_before_zeros(bytes);
        let before = usize::try_from(reading.fed).unwrap_or(usize::MAX);
        reading.fed = reading.fed.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if used > 0 {
            reading.content_len = before.saturating_add(used);
        }
        if reading.fed > reading.length {
            return Err(reading.wrong_length());
        }
        let mut rest = bytes;
        if reading.walk.is_none() {
            rest = reading.fill(LONG_HEADER, rest);
            if reading.held.len() < LONG_HEADER {
                return Ok(());
            }
            let segment = Segment::open(reading.name, reading.length, &reading.held, None)?;
            let carry = std::mem::replace(&mut self.carry, unknown());
            self.continued = Some(carry.clone());
            reading.walk = Some(Box::new(Walk::new(segment, carry)));
        }
        let Some(block) = reading.walk.as_ref().map(|walk| walk.segment().block) else { return Ok(()) };
        if !reading.held.is_empty() {
            rest = reading.fill(block, rest);
            if reading.held.len() < block {
                return Ok(());
            }
            let held = std::mem::take(&mut reading.held);
            self.page(&held)?;
        }
        let pages = rest.chunks_exact(block);
        let remainder = pages.remainder();
        for page in pages {
            self.page(page)?;
        }
        if let Some(reading) = &mut self.segment {
            reading.held.extend_from_slice(remainder);
        }
        Ok(())
    }

    /// The segment's last byte has come: how its records end. Behind one that ended early is a [`gap`](Self::gap).
    pub fn end(&mut self) -> Result<SegmentEnd, WalError> {
        let Some(reading) = self.segment.take() else { return Ok(SegmentEnd::Ended(self.position)) };
        let wrong = reading.wrong_length();
        let (fed, length, content_len) = (reading.fed, reading.length, reading.content_len);
        let Some(mut walk) = reading.walk.filter(|_| fed == length) else { return Err(wrong) };
        let end = walk.finish(content_len)?;
        // A segment switch extends to the end of its segment.
        let position = if end == SegmentEnd::Switched { walk.segment().start + length } else { walk.end() };
        self.position = self.position.max(position);
        self.carry = walk.into_carry();
        self.continued = None;
        Ok(end)
    }

    /// What was found since the last time.
    pub fn take(&mut self) -> Vec<WalEvent> {
        std::mem::take(&mut self.found)
    }

    /// The end of the last record that was read, or where the segment began if none was. That of a segment switch is the end of its
    /// segment once that was read.
    pub fn position(&self) -> Lsn {
        let walk = self.segment.as_ref().and_then(|reading| reading.walk.as_ref());
        walk.map_or(self.position, |walk| walk.end().max(self.position))
    }

    /// Transactions that changed something and of whose end there is no record: a server that crashed, or the end of what was read.
    pub fn without_end(&self) -> u64 {
        self.tally.without_end()
    }

    /// Files that were created and of which no record says by which transaction.
    pub fn unattributed_files(&self) -> u64 {
        self.tally.unattributed_files()
    }

    fn page(&mut self, bytes: &[u8]) -> Result<(), WalError> {
        let Some(reading) = &mut self.segment else { return Ok(()) };
        let Some(walk) = &mut reading.walk else { return Ok(()) };
        let page = WalPage { offset: reading.offset, bytes };
        reading.offset = page.end();
        while let Some(record) = walk.next(page)? {
            let major = walk.segment().major;
            self.tally.record(&record, walk.body(page), major, &mut self.found);
            self.position = record.end;
            self.continued = None;
        }
        Ok(())
    }
}

impl Reading {
    /// Takes bytes until there are `want` of them; gives the rest.
    fn fill<'b>(&mut self, want: usize, bytes: &'b [u8]) -> &'b [u8] {
        let (taken, rest) = bytes.split_at(want.saturating_sub(self.held.len()).min(bytes.len()));
        self.held.extend_from_slice(taken);
        rest
    }

    fn wrong_length(&self) -> WalError {
        WalError::WrongLength { name: self.name, len: self.fed, expected: self.length }
    }
}
