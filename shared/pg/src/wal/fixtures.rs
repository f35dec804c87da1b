//! WAL made for tests: records laid over pages and segments as PostgreSQL lays them.

use walpoint_base::{Lsn, PgMajor, SegmentName, SegmentNo, SegmentSize, TimelineId};

use super::page::{LONG_HEADER, magic_of_major, overwrite_flag};
use super::record::{RECORD_HEADER, RecordCrc, RecordHeader, Rmgr};
use super::shared_tuple::SharedTuple;

pub(super) const SYSTEM_ID: u64 = 7_000_000_000_000_000_001;
pub(super) const BLOCK: usize = 8192;
const FIRST_SEGMENT: u64 = 5;

/// Writes WAL from the start of a segment on; the fifth unless said.
pub(super) struct WalFixture {
    pub(super) major: PgMajor,
    pub(super) size: SegmentSize,
    pub(super) timeline: u32,
    bytes: Vec<u8>,
    first: SegmentNo,
    previous: Lsn,
    overwrite: bool,
}

impl WalFixture {
    pub(super) fn new(major: u32, mib: u64) -> Self {
        Self::at(major, mib, FIRST_SEGMENT)
    }

    /// From another segment on.
    pub(super) fn at(major: u32, mib: u64, segment: u64) -> Self {
        let size = SegmentSize::new(mib << 20).unwrap();
        Self {
            major: PgMajor::new(major).unwrap(),
            size,
            timeline: 1,
            bytes: Vec::new(),
            first: SegmentNo(segment),
            previous: SegmentNo(segment).start(size) - 64,
            overwrite: false,
        }
    }

    pub(super) fn start(&self) -> Lsn {
        self.first.start(self.size)
    }

    /// Where the next byte goes.
    pub(super) fn position(&self) -> Lsn {
        self.start() + self.bytes.len() as u64
    }

    pub(super) fn left_in_segment(&self) -> usize {
        self.size.as_usize() - self.bytes.len() % self.size.as_usize()
    }

    fn page_header(&mut self, remaining: u32) {
        let first = self.bytes.len().is_multiple_of(self.size.as_usize());
        let overwrite = std::mem::take(&mut self.overwrite);
        let magic = magic_of_major(self.major);
        let overwrite = if overwrite { overwrite_flag(magic) } else { 0 };
        let info = u16::from(remaining > 0) | u16::from(first) << 1 | overwrite;
        let address = self.position();
        self.bytes.extend(magic.to_le_bytes());
        self.bytes.extend(info.to_le_bytes());
        self.bytes.extend(self.timeline.to_le_bytes());
        self.bytes.extend(address.0.to_le_bytes());
        self.bytes.extend(remaining.to_le_bytes());
        self.bytes.extend([0; 4]);
        if first {
            self.bytes.extend(SYSTEM_ID.to_le_bytes());
            self.bytes.extend(u32::try_from(self.size.bytes()).unwrap().to_le_bytes());
            self.bytes.extend(u32::try_from(BLOCK).unwrap().to_le_bytes());
        }
    }

    fn begin_page_if_at_boundary(&mut self) {
        if self.bytes.len().is_multiple_of(BLOCK) {
            self.page_header(0);
        }
    }

    fn encode(&self, rmgr: u8, info: u8, xid: u32, body: &[u8]) -> Vec<u8> {
        let mut record = Vec::new();
        record.extend(u32::try_from(RECORD_HEADER + body.len()).unwrap().to_le_bytes());
        record.extend(xid.to_le_bytes());
        record.extend(self.previous.0.to_le_bytes());
        record.extend([info, rmgr, 0, 0, 0, 0, 0, 0]);
        let crc = RecordCrc::default().body(body).finish(record.first_chunk().unwrap());
        record[20..24].copy_from_slice(&crc.to_le_bytes());
        record.extend_from_slice(body);
        record
    }

    /// Lays `bytes` over as many pages as they need, up to `limit` page boundaries.
    fn lay(&mut self, mut bytes: &[u8], mut boundaries: usize) {
        while !bytes.is_empty() {
            if self.bytes.len().is_multiple_of(BLOCK) {
                if boundaries == 0 {
                    return;
                }
                boundaries -= 1;
                self.page_header(u32::try_from(bytes.len()).unwrap());
            }
            let take = bytes.len().min(BLOCK - self.bytes.len() % BLOCK);
            self.bytes.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    /// A record's body with no more than this data.
    pub(super) fn data(data: &[u8]) -> Vec<u8> {
        short_data(data)
    }

    /// A record; where it starts.
    pub(super) fn record(&mut self, rmgr: u8, info: u8, xid: u32, body: &[u8]) -> Lsn {
        self.begin_page_if_at_boundary();
        let (start, record) = (self.position(), self.encode(rmgr, info, xid, body));
        self.lay(&record, usize::MAX);
        self.previous = start;
        start
    }

    /// A record of another resource manager that fills `len` bytes, its header included.
    pub(super) fn filler(&mut self, len: usize) -> Lsn {
        let body: Vec<u8> = (0..len - RECORD_HEADER).map(|i| u8::try_from(i % 251).unwrap() | 1).collect();
        self.record(10, 0, 9, &body)
    }

    /// Fillers until `left` bytes of the current segment are free. Some of them extend over two pages.
    pub(super) fn fill_segment_but(&mut self, left: usize) {
        assert!(left.is_multiple_of(8) && left <= BLOCK / 2);
        self.begin_page_if_at_boundary();
        while self.left_in_segment() > BLOCK {
            let rest = BLOCK - self.bytes.len() % BLOCK;
            let over = rest < RECORD_HEADER || (self.bytes.len() / BLOCK).is_multiple_of(3);
            self.filler(match rest {
                3064.. => 3000,
                _ if over => rest + 64,
                _ => rest,
            });
            self.begin_page_if_at_boundary();
        }
        while self.left_in_segment() > left + 3064 {
            self.filler(3000);
        }
        self.filler(self.left_in_segment() - left);
    }

    pub(super) fn commit(&mut self, xid: u32, time: i64) -> Lsn {
        self.record(1, 0x00, xid, &short_data(&time.to_le_bytes()))
    }

    pub(super) fn abort(&mut self, xid: u32, time: i64) -> Lsn {
        self.record(1, 0x20, xid, &short_data(&time.to_le_bytes()))
    }

    pub(super) fn commit_prepared(&mut self, xid: u32, time: i64) -> Lsn {
        let mut data = time.to_le_bytes().to_vec();
        data.extend((1u32 << 4).to_le_bytes());
        data.extend(xid.to_le_bytes());
        self.record(1, 0x80 | 0x30, 0, &short_data(&data))
    }

    /// A relation that a transaction locks.
    pub(super) fn lock(&mut self, xid: u32, relation: u32) -> Lsn {
        self.locks(xid, xid, relation)
    }

    /// The same as a checkpoint says it, which is no transaction's.
    pub(super) fn repeat_lock(&mut self, xid: u32, relation: u32) -> Lsn {
        self.locks(0, xid, relation)
    }

    fn locks(&mut self, by: u32, xid: u32, relation: u32) -> Lsn {
        let data: Vec<u8> = [1, xid, 5, relation].into_iter().flat_map(u32::to_le_bytes).collect();
        self.record(8, 0x00, by, &short_data(&data))
    }

    pub(super) fn commit_with(&mut self, xid: u32, subtransaction: u32, time: i64) -> Lsn {
        let mut data = time.to_le_bytes().to_vec();
        data.extend([1u32 << 1, 1, subtransaction].into_iter().flat_map(u32::to_le_bytes));
        self.record(1, 0x80, xid, &short_data(&data))
    }

    /// One that removes the files of a relation.
    pub(super) fn commit_removing(&mut self, xid: u32, time: i64) -> Lsn {
        let mut data = time.to_le_bytes().to_vec();
        data.extend([1u32 << 2, 1, 1663, 5, 16384].into_iter().flat_map(u32::to_le_bytes));
        self.record(1, 0x80, xid, &short_data(&data))
    }

    /// A tuple of a shared catalog that is changed in place, by no transaction.
    pub(super) fn change_in_place(&mut self, tuple: SharedTuple) -> Lsn {
        self.record(10, 0x70, 0, &shared_tuple(tuple, false))
    }

    /// One that a transaction deletes.
    pub(super) fn delete_shared(&mut self, xid: u32, tuple: SharedTuple) -> Lsn {
        self.record(10, 0x10, xid, &shared_tuple(tuple, true))
    }

    /// The files of a database that are removed, in one tablespace.
    pub(super) fn remove_database(&mut self, xid: u32, database: u32) -> Lsn {
        let info = if self.major.get() >= 15 { 0x20 } else { 0x10 };
        self.record(4, info, xid, &short_data(&words(&[database, 1, 1663])))
    }

    pub(super) fn restore_point(&mut self, name: &str, time: i64) -> Lsn {
        let mut data = time.to_le_bytes().to_vec();
        data.extend(name.as_bytes());
        data.resize(72, 0);
        self.record(0, 0x70, 0, &short_data(&data))
    }

    /// A segment switch: pads with zeros, which may start in the segment after the current one.
    pub(super) fn switch(&mut self) -> Lsn {
        let start = self.record(0, 0x40, 0, &[]);
        let end = self.bytes.len().next_multiple_of(self.size.as_usize());
        self.bytes.resize(end, 0);
        start
    }

    /// A record that is broken off at the `boundaries`-th page boundary from here, and the page that takes its place.
    pub(super) fn abandon(&mut self, len: usize, boundaries: usize) -> Lsn {
        self.begin_page_if_at_boundary();
        let start = self.position();
        let record = self.encode(10, 0, 9, &vec![1; len - RECORD_HEADER]);
        self.lay(&record, boundaries);
        assert!(self.bytes.len().is_multiple_of(BLOCK), "the record does not reach that boundary");
        self.overwrite = true;
        let mut data = start.0.to_le_bytes().to_vec();
        data.extend(77i64.to_le_bytes());
        self.record(0, 0xD0, 0, &short_data(&data));
        start
    }

    /// All segments so far; the last one is padded with zeros.
    pub(super) fn segments(&self) -> Vec<(SegmentName, Vec<u8>)> {
        let timeline = TimelineId::new(self.timeline).unwrap();
        let pieces = self.bytes.chunks(self.size.as_usize()).zip(self.first.0..);
        pieces
            .map(|(piece, number)| {
                let mut content = piece.to_vec();
                content.resize(self.size.as_usize(), 0);
                (SegmentNo(number).name(timeline, self.size), content)
            })
            .collect()
    }
}

fn short_data(data: &[u8]) -> Vec<u8> {
    let mut body = vec![255, u8::try_from(data.len()).unwrap()];
    body.extend_from_slice(data);
    body
}

/// Where the first record of a segment starts if none goes on in it.
pub(super) const FIRST: u64 = LONG_HEADER as u64;

/// The header of a record that is decoded without a page around it.
pub(super) fn header(rmgr: Rmgr, info: u8, xid: u32) -> RecordHeader {
    RecordHeader { total: 24, xid, previous: Lsn(0), info, rmgr, crc: 0 }
}

/// Words as they lie in a record.
pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// A body with no more than main data.
pub(super) fn with_prefix(data: &[u8]) -> Vec<u8> {
    let mut body = vec![254];
    body.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
    body.extend_from_slice(data);
    body
}

/// The body of a record that deletes a tuple, or changes it in place.
pub(super) fn shared_tuple(tuple: SharedTuple, deleted: bool) -> Vec<u8> {
    let SharedTuple { relation, block, offset } = tuple;
    let mut body = vec![0, 0, 0, 0];
    body.extend(words(&[1664, 0, relation, block]));
    let xid = if deleted { 740u32.to_le_bytes().to_vec() } else { Vec::new() };
    let mut main = [xid, offset.to_le_bytes().to_vec()].concat();
    main.resize(8, 0);
    body.extend([255, 8]);
    body.extend(main);
    body
}
