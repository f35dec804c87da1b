//! One segment, once its first page has proved that it is one: what it is, and whether a page belongs to it.

use walpoint_base::{Lsn, PgMajor, SegmentName, SegmentNo, SegmentSize, TimelineHistory};

use super::error::WalError;
use super::page::{LongHeader, PageHeader, major_of_magic};
use crate::bytes;

/// A segment whose first page names a known version, the right size and the position that the file's name says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment<'a> {
    pub(super) name: SegmentName,
    pub(super) start: Lsn,
    pub(super) size: SegmentSize,
    /// Bytes of a page; divides the size.
    pub(super) block: usize,
    pub(super) major: PgMajor,
    pub(super) first: LongHeader,
    history: Option<&'a TimelineHistory>,
}

/// The bytes of one page.
#[derive(Clone, Copy, Debug)]
pub(super) struct WalPage<'p> {
    /// Where in the segment they begin.
    pub(super) offset: usize,
    pub(super) bytes: &'p [u8],
}

impl<'p> WalPage<'p> {
    /// Where in the segment the next page begins.
    pub(super) fn end(&self) -> usize {
        self.offset + self.bytes.len()
    }

    /// The bytes from that place in the segment on; nothing if that lies outside.
    pub(super) fn from(&self, offset: usize) -> &'p [u8] {
        offset.checked_sub(self.offset).and_then(|at| self.bytes.get(at..)).unwrap_or_default()
    }
}

/// Why a page is not the one that should be there.
#[derive(Debug)]
pub(super) enum WalPageFault {
    /// Its position is right: it is ours, and something else in its header is wrong.
    Damaged(String),
    /// Nothing says that it belongs here: zeros, what a recycled file held before, garbage.
    Strange(String),
    /// It is of a timeline that cannot be here.
    Timeline { found: u32, expected: u32 },
}

impl<'a> Segment<'a> {
    /// Checks the beginning of a file of `length` bytes against its name: a page header at least, if it has that many.
    pub(super) fn open(
        name: SegmentName,
        length: u64,
        beginning: &[u8],
        history: Option<&'a TimelineHistory>,
    ) -> Result<Self, WalError> {
        let not_wal = |what: &str| WalError::NotWal { name, what: what.to_owned() };
        if length == 0 {
            return Err(not_wal("it is empty"));
        }
        let Some(first) = LongHeader::parse(beginning) else {
            return Err(not_wal("it is shorter than the header of a segment"));
        };
        let Some(major) = major_of_magic(first.page.magic) else {
            let looks_like_wal =
                first.page.is_long() && first.page.flags_known() && first.valid_block_size().is_some();
            return Err(match bytes::len_before_zeros(beginning) {
                0 => not_wal("all its bytes are zero"),
                _ if looks_like_wal => WalError::UnknownVersion { name, magic: first.page.magic },
                _ => not_wal(NO_PAGE),
            });
        };
        let size = SegmentSize::new(u64::from(first.segment_size));
        let (Some(size), Some(block), true) = (size, first.valid_block_size(), first.page.is_long()) else {
            return Err(not_wal("the header of its first page makes no sense"));
        };
        if length != size.bytes() {
            return Err(WalError::WrongLength { name, len: length, expected: size.bytes() });
        }
        let start = name.number(size).map(|number: SegmentNo| number.start(size));
        let Some(start) = start.filter(|start| *start == first.page.address) else {
            return Err(WalError::OtherSegment { name, found: first.page.address });
        };
        let segment = Self { name, start, size, block, major, first, history };
        match segment.page(WalPage { offset: 0, bytes: beginning }, 1) {
            Ok(_) => Ok(segment),
            Err(fault) => Err(segment.refuse(0, fault)),
        }
    }

    /// The position of the byte at `offset`.
    pub(super) fn lsn(&self, offset: usize) -> Lsn {
        self.start + u64::try_from(offset).unwrap_or(u64::MAX)
    }

    /// The header of a page, if it is the page that belongs there and its timeline is at least `timeline`.
    pub(super) fn page(&self, page: WalPage<'_>, timeline: u32) -> Result<PageHeader, WalPageFault> {
        let offset = page.offset;
        let Some(page) = PageHeader::parse(page.bytes) else {
            return Err(WalPageFault::Strange("the file ends here".to_owned()));
        };
        let address = self.lsn(offset);
        if page.address != address {
            let what = match page {
                PageHeader { magic: 0, address: Lsn::INVALID, .. } => "the page is empty".to_owned(),
                _ => format!("the page says it belongs at {}", page.address),
            };
            return Err(WalPageFault::Strange(what));
        }
        if page.magic != self.first.page.magic {
            return Err(WalPageFault::Damaged(format!("the page has the magic number {:#06X}", page.magic)));
        }
        if !page.flags_known() || page.is_long() != (offset == 0) {
            return Err(WalPageFault::Damaged(format!("the page has impossible flags, {:#06X}", page.info)));
        }
        let highest = self.name.timeline.get();
        let expected = self.history.map(|history| history.timeline_at(address).get());
        if page.timeline > highest || expected.is_some_and(|expected| expected != page.timeline) {
            return Err(WalPageFault::Timeline {
                found: page.timeline,
                expected: expected.unwrap_or(highest),
            });
        }
        if page.timeline < timeline {
            // The same position of an older timeline: what a recycled file held before.
            return Err(WalPageFault::Strange(format!(
                "the page is of timeline {}, after {timeline}",
                page.timeline
            )));
        }
        Ok(page)
    }

    /// Whether a page belongs to this segment, sound or not: then what lies before it is no end.
    pub(super) fn has(&self, page: WalPage<'_>, timeline: u32) -> bool {
        !matches!(self.page(page, timeline), Err(WalPageFault::Strange(_)))
    }

    /// The error for a page that makes the segment unusable.
    pub(super) fn refuse(&self, offset: usize, fault: WalPageFault) -> WalError {
        match fault {
            WalPageFault::Damaged(what) | WalPageFault::Strange(what) => self.damaged(offset, what),
            WalPageFault::Timeline { found, expected } => {
                WalError::WrongTimeline { name: self.name, page: self.lsn(offset), found, expected }
            }
        }
    }

    /// The error for what is wrong at `offset`.
    pub(super) fn damaged(&self, offset: usize, what: String) -> WalError {
        WalError::Damaged { name: self.name, at: self.lsn(offset), what }
    }
}

/// What a file is that begins with zeros, though not all of it is zero.
pub(super) const NO_PAGE: &str = "it does not start with the header of a WAL page";
