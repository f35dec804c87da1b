//! The walk over the records of one segment, by PostgreSQL's own rules (`XLogDecodeNextRecord`): each record's check is
//! verified, records that extend over pages are put together, and where the chain of records breaks it is decided
//! whether the WAL ends there or is damaged (`doubt`).
//!
//! A walk may begin in the middle of things, knowing nothing of what came before, or carry on from the segment before.
//! It is given one page after the other and keeps none; what a break in the chain means is decided by the pages behind it.
//! It allocates nothing per record.

mod doubt;

use walpoint_base::Lsn;

use self::doubt::ChainBreak;
use super::edges::{Carried, Rest};
use super::error::WalError;
use super::kind::{RecordKind, XLOG_SWITCH};
use super::page::{LONG_HEADER, PageHeader};
use super::pending::Pending;
use super::record::{RecordCrc, RecordHeader, Rmgr, WalRecord, check_total};
use super::segment::{Segment, WalPage, WalPageFault};
use crate::bytes;

/// How the records of a segment end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentEnd {
    /// They reach its last byte; the last one may go on in the next segment.
    Whole,
    /// A segment switch ends it: what follows in it is padding.
    Switched,
    /// The content is incomplete: from this position on there is no WAL of this segment.
    Ended(Lsn),
}

/// What a walk needs to know of the segments before.
#[derive(Clone, Debug, Default)]
pub(super) struct Carry {
    /// Whether the segment before was read at all.
    pub(super) known: bool,
    /// The last page's timeline.
    pub(super) timeline: u32,
    /// Where the last complete record starts, if one was read.
    pub(super) previous: Option<Lsn>,
    /// The record that goes on, if `open`; else a buffer to use again.
    pub(super) pending: Pending,
    /// Whether a record goes on in the next segment.
    pub(super) open: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    FirstPage,
    Records,
    /// The pending record goes on in the next page.
    Collecting,
    /// The chain is broken; the pages that follow decide what that means.
    Doubt,
    Done(SegmentEnd),
}

/// See the module. The pages are given one after the other, each until nothing more comes of it.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    segment: Segment<'a>,
    carry: Carry,
    state: State,
    doubt: Option<ChainBreak>,
    /// Where the next record starts, or the pending one goes on; may be the start of a page. A multiple of 8.
    position: usize,
    /// The end of the last record that ends in this segment, not aligned.
    end: Lsn,
    /// Whether in the page where the pending record starts something behind it points back to it.
    followed: bool,
    /// If there are only zeros from here on, a segment switch ended here.
    switch: Option<usize>,
    /// What the segment begins with.
    carried: Carried,
    /// Where the body of the last complete record is.
    body: BodyPlace,
}

/// Where the body of a record is.
#[derive(Clone, Copy, Debug)]
enum BodyPlace {
    /// In the page in which it ends: from there on, so long.
    Page(usize, usize),
    /// In what was put together of several pages.
    Pending,
}

impl<'a> Walk<'a> {
    pub(super) fn new(segment: Segment<'a>, carry: Carry) -> Self {
        let (state, end) = (State::FirstPage, segment.start);
        let carried = Carried::default();
        let body = BodyPlace::Pending;
        Self {
            segment,
            carry,
            state,
            doubt: None,
            position: 0,
            end,
            followed: false,
            switch: None,
            carried,
            body,
        }
    }

    /// The segment that is walked over.
    pub(super) fn segment(&self) -> &Segment<'a> {
        &self.segment
    }

    /// Whether the pages that follow mean nothing.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, State::Done(_))
    }

    /// The next record that ends in this page; `None` when the next page is wanted, or [`finish`](Self::finish) after the
    /// last one.
    pub(super) fn next(&mut self, page: WalPage<'_>) -> Result<Option<WalRecord>, WalError> {
        while self.position < page.end() {
            let record = match self.state {
                State::Done(_) => return Ok(None),
                State::FirstPage => self.first_page(page)?,
                State::Records => self.record(page)?,
                State::Collecting => self.go_on(page)?,
                State::Doubt => {
                    self.weigh(page)?;
                    None
                }
            };
            if record.is_some() {
                return Ok(record);
            }
        }
        Ok(None)
    }

    /// The body of the record that [`next`](Self::next) gave last, for that page; `None` if it extends over several pages and was
    /// not kept.
    pub(super) fn body<'b>(&'b self, page: WalPage<'b>) -> Option<&'b [u8]> {
        match self.body {
            BodyPlace::Page(at, length) => page.from(at).get(..length),
            BodyPlace::Pending => self.carry.pending.body(),
        }
    }

    /// How the records end, after the last page. `content_len`: bytes of the segment before its zero tail.
    pub(super) fn finish(&mut self, content_len: usize) -> Result<SegmentEnd, WalError> {
        let end = match (self.state, self.doubt.take()) {
            (State::Done(end), _) => end,
            (_, Some(doubt)) => self.decide(&doubt, content_len)?,
            _ => SegmentEnd::Whole,
        };
        Ok(match (end, self.switch) {
            (SegmentEnd::Ended(_), Some(at)) if content_len <= at => SegmentEnd::Switched,
            _ => end,
        })
    }

    /// The end of the last record that ended so far, not aligned; the segment's start if none did.
    pub(super) fn end(&self) -> Lsn {
        self.end
    }

    /// The record that goes on in the next segment, if one does.
    pub(super) fn unfinished(&self) -> Option<&Pending> {
        self.carry.open.then_some(&self.carry.pending)
    }

    /// What the segment begins with, after the last page.
    pub(super) fn carried(&self) -> Carried {
        let goes_on = self.unfinished().filter(|pending| pending.start().is_none());
        Carried { rest: goes_on.map(Rest::of).or(self.carried.rest), ..self.carried }
    }

    /// What the walk over the next segment needs.
    pub(super) fn into_carry(self) -> Carry {
        Carry { known: true, ..self.carry }
    }

    fn first_page(&mut self, page: WalPage<'_>) -> Result<Option<WalRecord>, WalError> {
        self.state = State::Records;
        let header = self.enter(page).map_err(|fault| self.segment.refuse(0, fault))?;
        self.position = header.length();
        if header.overwrites() {
            self.carried.overwritten = true;
            self.carry.open = false;
            return Ok(None);
        }
        let missing = if self.carry.open { self.carry.pending.missing() } else { 0 };
        if !header.continues() {
            return match missing {
                0 => Ok(None),
                _ => {
                    Err(self.segment.damaged(0, format!("{missing} bytes of the last record should follow")))
                }
            };
        }
        if header.remaining == 0 || (self.carry.known && header.remaining != missing) {
            let what = format!(
                "the page has {} bytes of the last record, {missing} should follow",
                header.remaining
            );
            return Err(self.segment.damaged(0, what));
        }
        self.carried.length = header.remaining;
        if !self.carry.open {
            self.carry.pending.begin_rest(header.remaining);
            self.carry.open = true;
        }
        self.collect(page)
    }

    fn record(&mut self, page: WalPage<'_>) -> Result<Option<WalRecord>, WalError> {
        if self.position == page.offset {
            let header = match self.enter(page) {
                Ok(header) => header,
                Err(fault) => return self.strange_page(page, fault),
            };
            if header.continues() {
                let what = "the page continues a record, but the last one is complete".to_owned();
                return Err(self.segment.damaged(self.position, what));
            }
            self.position += header.length();
        }
        let start = self.segment.lsn(self.position);
        let rest = page.from(self.position);
        let total = bytes::u32(rest, 0).unwrap_or(0);
        if let Some((raw, after)) = rest.split_first_chunk() {
            let header = RecordHeader::parse(raw);
            if let Err(what) = header.check(start, self.carry.previous, self.segment.major) {
                return self.broken_record(page, self.position, what);
            }
            let body =
                usize::try_from(total).ok().and_then(|total| after.get(..total.checked_sub(raw.len())?));
            if let Some(body) = body {
                let crc = RecordCrc::default().body(body).finish(raw);
                if crc != header.crc {
                    return self.broken_record(page, self.position, wrong_crc(header.crc, crc));
                }
                let kind = if RecordKind::is_decoded(&header) {
                    RecordKind::decode(&header, body, self.segment.major)
                } else {
                    RecordKind::Other
                };
                self.body = BodyPlace::Page(self.position + raw.len(), body.len());
                self.position += raw.len() + body.len();
                return Ok(Some(self.complete(start, &header, kind)));
            }
        } else if let Err(what) = check_cut_header(rest, total, self.carry.previous) {
            return self.broken_record(page, self.position, what);
        }
        self.followed = self.points_back_into(page, self.position + 8, start);
        self.carry.pending.begin(start, total);
        self.carry.open = true;
        self.collect(page)
    }

    /// Reads the pending record from the current position to the end of the page, or its own.
    fn collect(&mut self, page: WalPage<'_>) -> Result<Option<WalRecord>, WalError> {
        self.position += self.carry.pending.take(page.from(self.position));
        if let (false, Some(header), Some(start)) =
            (self.carry.pending.checked, self.carry.pending.header(), self.carry.pending.start())
        {
            if let Err(what) = header.check(start, self.carry.previous, self.segment.major) {
                return self.broken_pending(page, start, what);
            }
            self.carry.pending.checked = true;
        }
        if self.carry.pending.missing() == 0 {
            self.state = State::Records;
            return self.collected(page);
        }
        self.state = State::Collecting;
        Ok(None)
    }

    /// The pending record should go on in this page.
    fn go_on(&mut self, page: WalPage<'_>) -> Result<Option<WalRecord>, WalError> {
        let header = match self.enter(page) {
            Ok(header) => header,
            Err(fault) => return self.strange_page(page, fault),
        };
        if header.overwrites() {
            // The server crashed before it wrote the rest; recovery goes on here as if the record had never begun.
            self.carried.overwritten |= self.carry.pending.start().is_none();
            self.carry.open = false;
            self.state = State::Records;
            self.position += header.length();
            return Ok(None);
        }
        let missing = self.carry.pending.missing();
        if !header.continues() || header.remaining != missing {
            let what = match header.continues() {
                true => {
                    format!(
                        "the page has {} bytes of the last record, {missing} should follow",
                        header.remaining
                    )
                }
                false => format!("{missing} bytes of the last record should follow"),
            };
            return Err(self.segment.damaged(self.position, what));
        }
        self.position += header.length();
        self.collect(page)
    }

    /// All of the pending record has been read.
    fn collected(&mut self, page: WalPage<'_>) -> Result<Option<WalRecord>, WalError> {
        self.carry.open = false;
        let (Some(start), Some(header)) = (self.carry.pending.start(), self.carry.pending.header()) else {
            // The rest of a record of which nothing is known.
            self.carried.rest = Some(Rest::of(&self.carry.pending));
            self.end = self.segment.lsn(self.position);
            self.switch = self.may_end_a_switch(page).then_some(self.position);
            self.position = self.position.next_multiple_of(8);
            return Ok(None);
        };
        let crc = self.carry.pending.crc();
        if crc != header.crc {
            return self.broken_pending(page, start, wrong_crc(header.crc, crc));
        }
        let kind = self.carry.pending.kind(&header, self.segment.major);
        self.body = BodyPlace::Pending;
        Ok(Some(self.complete(start, &header, kind)))
    }

    /// A record that ends at the current position is right.
    fn complete(&mut self, start: Lsn, header: &RecordHeader, kind: RecordKind) -> WalRecord {
        self.end = self.segment.lsn(self.position);
        self.carry.previous = Some(start);
        self.position = self.position.next_multiple_of(8);
        if kind == RecordKind::Switch {
            self.position = self.segment.size.as_usize();
            self.state = State::Done(SegmentEnd::Switched);
        }
        WalRecord {
            start,
            end: self.end,
            next: self.segment.lsn(self.position),
            previous: header.previous,
            xid: header.xid,
            rmgr: header.rmgr,
            info: header.info,
            kind,
        }
    }

    /// Whether the rest of a record that has just been skipped is that of a segment switch, if zeros follow: it has no body,
    /// so at most 16 bytes of it lie here, the flags and the resource manager 8 bytes before its end.
    fn may_end_a_switch(&self, page: WalPage<'_>) -> bool {
        let len = self.position.saturating_sub(LONG_HEADER);
        let tail = self.position.checked_sub(8).and_then(|at| bytes::array(page.from(at), 0));
        let switch = matches!(tail, Some([info, rmgr, 0, 0, _, _, _, _])
            if info & 0xF0 == XLOG_SWITCH && rmgr == Rmgr::XLOG.0);
        page.offset == 0 && matches!(len, 8 | 16) && switch
    }

    /// The header of a page, if it is the right one.
    fn enter(&mut self, page: WalPage<'_>) -> Result<PageHeader, WalPageFault> {
        let header = self.segment.page(page, self.carry.timeline.max(1))?;
        self.carry.timeline = header.timeline;
        Ok(header)
    }
}

/// Whether a header of which the page holds only `rest` can be one; the error says what is wrong.
fn check_cut_header(rest: &[u8], total: u32, previous: Option<Lsn>) -> Result<(), String> {
    check_total(total)?;
    match (bytes::u64(rest, 8).map(Lsn), previous) {
        (Some(found), Some(previous)) if found != previous => {
            Err(format!("the record points back to {found}, the one before starts at {previous}"))
        }
        _ => Ok(()),
    }
}

fn wrong_crc(stored: u32, computed: u32) -> String {
    format!("the record has the CRC {stored:#010X}, its content gives {computed:#010X}")
}
