//! Reading records over consecutive segments.

use walpoint_base::{Lsn, SegmentName};

use super::error::WalError;
use super::record::WalRecord;
use super::segment::{Segment, WalPage};
use super::walk::{Carry, SegmentEnd, Walk};
use crate::bytes;

/// Reads records from one segment after the other, also those that extend over several.
///
/// It starts with the first record that begins in the first segment it is given, and must then be given each next one,
/// under whichever timeline the path goes on there. Between segments it holds what it has read of a commit or restore
/// point record that is not complete, and of other records only their header and check.
#[derive(Debug, Default)]
pub struct RecordReader {
    carry: Carry,
    next: Option<Lsn>,
    /// Set when a segment ended early: nothing can follow it.
    ended: bool,
}

impl RecordReader {
    /// A reader that has read nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a record that starts in the segments read so far goes on in the next one.
    pub fn continues(&self) -> bool {
        self.carry.open
    }

    /// The records that end in this segment, which must follow the one before.
    pub fn segment<'r, 's>(
        &'r mut self,
        name: SegmentName,
        content: &'s [u8],
    ) -> Result<SegmentRecords<'r, 's>, WalError> {
        let length = u64::try_from(content.len()).unwrap_or(u64::MAX);
        let segment = Segment::open(name, length, content, None)?;
        if let Some(expected) = self.next.filter(|next| self.ended || *next != segment.start) {
            return Err(WalError::NotConsecutive { name, expected });
        }
        let walk = Walk::new(segment, std::mem::take(&mut self.carry));
        self.next = Some(segment.start + segment.size.bytes());
        Ok(SegmentRecords { reader: self, walk: Some(walk), content, page: 0, outcome: None })
    }
}

/// The records of one segment, in order. When dropped before its end, the reader cannot go on to the next segment.
#[derive(Debug)]
pub struct SegmentRecords<'r, 's> {
    reader: &'r mut RecordReader,
    walk: Option<Walk<'s>>,
    content: &'s [u8],
    /// Where the current page begins.
    page: usize,
    outcome: Option<SegmentEnd>,
}

impl SegmentRecords<'_, '_> {
    /// How the segment ends; `None` before its last record has been read, or after an error.
    pub fn outcome(&self) -> Option<SegmentEnd> {
        self.outcome
    }
}

impl SegmentRecords<'_, '_> {
    /// The next record, or how the segment ends.
    fn read(&mut self, walk: &mut Walk<'_>) -> Result<Result<WalRecord, SegmentEnd>, WalError> {
        let block = walk.segment().block;
        while let Some(page) = self.content.get(self.page..self.page + block) {
            if let Some(record) = walk.next(WalPage { offset: self.page, bytes: page })? {
                return Ok(Ok(record));
            }
            if walk.is_done() {
                break;
            }
            self.page += block;
        }
        walk.finish(bytes::len_before_zeros(self.content)).map(Err)
    }
}

impl Iterator for SegmentRecords<'_, '_> {
    type Item = Result<WalRecord, WalError>;

    /// After an error there is nothing more.
    fn next(&mut self) -> Option<Self::Item> {
        let mut walk = self.walk.take()?;
        let result = self.read(&mut walk);
        let result = match result {
            Ok(Ok(record)) => {
                self.walk = Some(walk);
                return Some(Ok(record));
            }
            Ok(Err(end)) => {
                self.outcome = Some(end);
                None
            }
            Err(error) => Some(Err(error)),
        };
        self.reader.ended = !matches!(self.outcome, Some(SegmentEnd::Whole | SegmentEnd::Switched));
        self.reader.carry = walk.into_carry();
        result
    }
}

impl Drop for SegmentRecords<'_, '_> {
    fn drop(&mut self) {
        if self.walk.is_some() {
            self.reader.ended = true;
        }
    }
}
