//! Where the chain of records breaks: whether the WAL ends there or is damaged.
//!
//! A file that was used before holds other WAL behind the end, and a crash cuts a record off, so what is wrong at the break
//! says little. What follows decides: a page that belongs to this segment, or a record that points back to one of it, proves
//! damage. Else the WAL ends if only zeros follow, or what a recycled file held, or if the record was cut off.

use walpoint_base::Lsn;

use super::super::error::WalError;
use super::super::page::PageHeader;
use super::super::record::{RecordCrc, RecordHeader, WalRecord};
use super::super::segment::{WalPage, WalPageFault};
use super::{SegmentEnd, State, Walk};
use crate::bytes;

/// A break in the chain of records: where, and what is wrong there if it is damage.
#[derive(Debug)]
pub(super) struct ChainBreak {
    offset: usize,
    what: String,
    kind: DoubtKind,
}

#[derive(Clone, Copy, Debug)]
enum DoubtKind {
    /// A page that does not belong here: an end, unless one follows that does.
    Page,
    /// Something that is no right record: an end, unless a page follows that belongs here, if
    Record {
        /// the file was used before, and that is known to be enough: what it held goes on in the next page, or ended in
        /// this one and only zeros follow,
        if_recycled: bool,
        /// or the record, whose header makes sense and which ends there, was cut off.
        cut_before: Option<usize>,
        /// What the next page says.
        recycled: bool,
        /// Where this page ends.
        page_end: usize,
    },
    /// A page of a timeline that cannot be here. One among good ones is damaged; a renamed file has no good one after it.
    Timeline { found: u32, expected: u32 },
}

impl Walk<'_> {
    /// The page is not the one that should be there. If nothing of this segment follows, it ends here: a standby that was
    /// not sent more, a segment rebuilt from what was streamed.
    pub(super) fn strange_page(
        &mut self,
        page: WalPage<'_>,
        fault: WalPageFault,
    ) -> Result<Option<WalRecord>, WalError> {
        let offset = page.offset;
        match fault {
            WalPageFault::Damaged(what) => Err(self.segment.damaged(offset, what)),
            WalPageFault::Timeline { found, expected } => {
                let what = format!("the page says it is of timeline {found}");
                self.doubt(page, ChainBreak { offset, what, kind: DoubtKind::Timeline { found, expected } })
            }
            WalPageFault::Strange(what) => {
                let open = self.carry.pending.start().filter(|_| self.carry.open);
                let since = open.or(self.carry.previous).unwrap_or(self.segment.start);
                // A record that only seems to extend to this page, because its length is wrong, has others behind it.
                let begun_here = open.is_some_and(|start| start >= self.segment.start);
                if self.points_back_into(page, offset, since) || (begun_here && self.followed) {
                    return Err(self.segment.damaged(offset, what));
                }
                self.doubt(page, ChainBreak { offset, what, kind: DoubtKind::Page })
            }
        }
    }

    /// The pending record, all of whose pages are there, is wrong.
    pub(super) fn broken_pending(
        &mut self,
        page: WalPage<'_>,
        start: Lsn,
        what: String,
    ) -> Result<Option<WalRecord>, WalError> {
        let offset =
            start.0.checked_sub(self.segment.start.0).and_then(|offset| usize::try_from(offset).ok());
        match offset {
            Some(offset) if offset >= page.offset => self.broken_record(page, offset, what),
            // A page behind its start belongs here.
            _ => Err(WalError::Damaged { name: self.segment.name, at: start, what }),
        }
    }

    /// At `offset`, inside this page, there should be a record, and there is none or a wrong one. That is the end of the
    /// content if only zeros follow, or what a recycled file held before, or a record that was cut off; anything else is
    /// damage.
    pub(super) fn broken_record(
        &mut self,
        page: WalPage<'_>,
        offset: usize,
        what: String,
    ) -> Result<Option<WalRecord>, WalError> {
        if self.points_back_into(page, offset + 8, self.segment.lsn(offset)) {
            return Err(self.segment.damaged(offset, what));
        }
        let rest = page.from(offset);
        let header = rest.first_chunk().map(RecordHeader::parse);
        let end = |header: &RecordHeader| {
            let sound =
                header.check(self.segment.lsn(offset), self.carry.previous, self.segment.major).is_ok();
            let total = usize::try_from(header.total).unwrap_or(usize::MAX);
            sound.then(|| offset.saturating_add(total))
        };
        // Left-overs in this page come with left-over pages after it, or end in it: a small segment that was switched, or the
        // last one of a timeline, was recycled.
        let (if_recycled, cut_before) = match (header, self.carry.previous) {
            (None, _) => (true, None),
            (Some(header), Some(previous)) if header.previous == previous => (false, end(&header)),
            // Not the record after the last one: another's bytes, unless it is that record with a wrong pointer.
            (Some(header), Some(previous)) => {
                (!is_record_but_for_pointer(rest, &RecordHeader { previous, ..header }), None)
            }
            // The first record that is read: nothing but what follows tells it from another's.
            (Some(header), None) => (true, end(&header)),
        };
        let kind = DoubtKind::Record { if_recycled, cut_before, recycled: false, page_end: page.end() };
        self.doubt(page, ChainBreak { offset, what, kind })
    }

    /// Leaves the decision to what follows this page.
    fn doubt(&mut self, page: WalPage<'_>, doubt: ChainBreak) -> Result<Option<WalRecord>, WalError> {
        self.carry.open = false;
        self.state = State::Doubt;
        self.doubt = Some(doubt);
        self.position = page.end();
        Ok(None)
    }

    /// What a page after the break in the chain says about it.
    pub(super) fn weigh(&mut self, page: WalPage<'_>) -> Result<(), WalError> {
        self.position = page.end();
        let (segment, timeline) = (self.segment, self.carry.timeline);
        let Some(doubt) = &mut self.doubt else { return Ok(()) };
        if let DoubtKind::Timeline { found, expected } = doubt.kind {
            return Err(match segment.page(page, 1) {
                Ok(_) => segment.damaged(doubt.offset, std::mem::take(&mut doubt.what)),
                Err(_) => segment.refuse(doubt.offset, WalPageFault::Timeline { found, expected }),
            });
        }
        if segment.has(page, timeline) {
            return Err(segment.damaged(doubt.offset, std::mem::take(&mut doubt.what)));
        }
        let is_next = page.offset.saturating_sub(doubt.offset) <= segment.block;
        if let (true, DoubtKind::Record { recycled, .. }) = (is_next, &mut doubt.kind) {
            // A page of WAL, of another position: then the file was used before.
            *recycled = PageHeader::parse(page.bytes)
                .is_some_and(|page| page.magic == segment.first.page.magic && page.flags_known());
        }
        Ok(())
    }

    /// What the break in the chain is, when no page behind it belongs here.
    pub(super) fn decide(&self, doubt: &ChainBreak, content_len: usize) -> Result<SegmentEnd, WalError> {
        const SECTOR: usize = 512;
        let offset = doubt.offset;
        let ends = match doubt.kind {
            DoubtKind::Page => true,
            DoubtKind::Timeline { found, expected } => {
                return Err(self.segment.refuse(offset, WalPageFault::Timeline { found, expected }));
            }
            DoubtKind::Record { if_recycled, cut_before, recycled, page_end } => {
                // A record that was cut off lacks its end, which is zero from some disk sector on.
                let cut = content_len.next_multiple_of(SECTOR);
                let is_cut_off = cut_before.is_some_and(|end| offset < cut && cut < end);
                content_len <= offset || (if_recycled && (recycled || content_len <= page_end)) || is_cut_off
            }
        };
        if ends {
            Ok(SegmentEnd::Ended(self.segment.lsn(offset)))
        } else {
            Err(self.segment.damaged(offset, doubt.what.clone()))
        }
    }

    /// Whether some record in the page, at or behind `offset`, points back to one at or after `since`, as only records of
    /// this segment can: a pointer into so small a range is no chance.
    pub(super) fn points_back_into(&self, page: WalPage<'_>, offset: usize, since: Lsn) -> bool {
        let offset = offset.next_multiple_of(8);
        let places = page.from(offset);
        // A record's pointer lies 8 bytes behind its start, and more of the record behind that.
        let pointers = places.get(8..places.len().saturating_sub(8)).unwrap_or_default();
        let mut reach = self.segment.lsn(offset).0.saturating_sub(since.0);
        pointers.chunks_exact(8).any(|pointer| {
            let pointer = bytes::u64(pointer, 0).unwrap_or(0).wrapping_sub(since.0);
            let found = pointer < reach;
            reach = reach.saturating_add(8);
            found
        })
    }
}

/// Whether `rest` starts with a record that is right once its header is replaced by `header`.
fn is_record_but_for_pointer(rest: &[u8], header: &RecordHeader) -> bool {
    let total = usize::try_from(header.total).unwrap_or(usize::MAX);
    let Some((raw, body)) = rest.get(..total).and_then(|record| record.split_first_chunk()) else {
        return false;
    };
    let mut raw = *raw;
    if let Some(place) = raw.get_mut(8..16) {
        place.copy_from_slice(&header.previous.0.to_le_bytes());
    }
    RecordCrc::default().body(body).finish(&raw) == header.crc
}
