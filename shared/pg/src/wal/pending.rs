//! A record that is put together from the pages, and the segments, over which it extends.
//!
//! Memory: the body is kept only where it will be decoded, and never more of it than was read; the check is computed as
//! the pieces come.

use walpoint_base::crossing::RecordPiece;
use walpoint_base::{Lsn, PgMajor};

use super::kind::RecordKind;
use super::record::{RECORD_HEADER, RecordCrc, RecordHeader};
use crate::bytes;

/// The pieces so far. One value is used again for record after record, so that its buffer is allocated once.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    /// Where the record starts; `None` if its beginning was not read.
    start: Option<Lsn>,
    missing: u32,
    raw: [u8; RECORD_HEADER],
    have: usize,
    /// The first bytes of a rest.
    head: RecordPiece,
    /// Bytes taken of a rest.
    taken: usize,
    /// Over the body so far; of a rest, over all of it.
    crc: RecordCrc,
    body: Vec<u8>,
    keep: bool,
    /// Whose bodies are kept beside those that are always decoded.
    keeps_too: Option<fn(&RecordHeader) -> bool>,
    /// Whether the header has been found right.
    pub(super) checked: bool,
}

impl Pending {
    /// One that also keeps the bodies of the records that `keeps_too` names.
    pub(super) fn keeping(keeps_too: fn(&RecordHeader) -> bool) -> Self {
        Self { keeps_too: Some(keeps_too), ..Self::default() }
    }

    /// Begins a record that starts at `start` and is `total` bytes long.
    pub(super) fn begin(&mut self, start: Lsn, total: u32) {
        self.reset(Some(start), total);
    }

    /// Begins the rest of a record whose beginning was not read.
    pub(super) fn begin_rest(&mut self, missing: u32) {
        self.reset(None, missing);
    }

    fn reset(&mut self, start: Option<Lsn>, missing: u32) {
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        *self = Self { start, missing, body, keeps_too: self.keeps_too, ..Self::default() };
    }

    /// Where the record starts, if that was read.
    pub(super) fn start(&self) -> Option<Lsn> {
        self.start
    }

    /// Bytes still to come.
    pub(super) fn missing(&self) -> u32 {
        self.missing
    }

    /// Takes as much of the record as `bytes` holds; how much that was.
    pub(super) fn take(&mut self, bytes: &[u8]) -> usize {
        let missing = usize::try_from(self.missing).unwrap_or(usize::MAX);
        let piece = bytes.get(..missing).unwrap_or(bytes);
        self.missing = self.missing.saturating_sub(u32::try_from(piece.len()).unwrap_or(u32::MAX));
        if self.start.is_none() {
            self.head.extend(piece);
            self.taken = self.taken.saturating_add(piece.len());
            self.crc = self.crc.body(piece);
            return piece.len();
        }
        let header_left = RECORD_HEADER.saturating_sub(self.have).min(piece.len());
        let (head, body) = piece.split_at(header_left);
        if let Some(place) = self.raw.get_mut(self.have..self.have + header_left) {
            place.copy_from_slice(head);
        }
        self.have += header_left;
        if header_left > 0 {
            let too = self.keeps_too;
            let keeps = |header| RecordKind::is_decoded(&header) || too.is_some_and(|too| too(&header));
            self.keep = self.header().is_some_and(keeps);
        }
        self.crc = self.crc.body(body);
        if self.keep {
            self.body.extend_from_slice(body);
        }
        piece.len()
    }

    /// What was taken of a record whose beginning was not read: its CRC, its length, its first bytes.
    pub(super) fn rest(&self) -> (u32, usize, RecordPiece) {
        (self.crc.so_far(), self.taken, self.head)
    }

    /// What was read of a record from its beginning: its header, as much as there is, and the CRC of its body.
    pub(super) fn read(&self) -> (&[u8], u32) {
        (self.raw.get(..self.have).unwrap_or(&self.raw), self.crc.so_far())
    }

    /// The first bytes of a record that was read from its beginning; of one whose kind is not decoded, those of its header.
    pub(super) fn first_bytes(&self) -> RecordPiece {
        let mut first = RecordPiece::of(self.raw.get(..self.have).unwrap_or(&self.raw));
        first.extend(&self.body);
        first
    }

    /// The header, once all of it was read.
    pub(super) fn header(&self) -> Option<RecordHeader> {
        (self.have == RECORD_HEADER).then(|| RecordHeader::parse(&self.raw))
    }

    /// Where the record points back to, once that was read.
    pub(super) fn previous(&self) -> Option<Lsn> {
        let read = self.start.is_some() && self.have >= 16;
        read.then(|| bytes::u64(&self.raw, 8).map(Lsn)).flatten()
    }

    /// The check over all pieces.
    pub(super) fn crc(&self) -> u32 {
        self.crc.finish(&self.raw)
    }

    /// The body of a complete record, if it was kept.
    pub(super) fn body(&self) -> Option<&[u8]> {
        self.keep.then_some(&self.body)
    }

    /// What the complete record means.
    pub(super) fn kind(&self, header: &RecordHeader, major: PgMajor) -> RecordKind {
        if self.keep { RecordKind::decode(header, &self.body, major) } else { RecordKind::Other }
    }
}
