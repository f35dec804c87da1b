//! What one segment says about itself, and whether it may be archived under its name.
//!
//! Refusing good WAL fills `pg_wal` and stops the database; accepting bad WAL is found out when it is needed. So a
//! segment is judged by what it proves by itself: headers, sizes, page positions and timelines, the chain of records and
//! the CRC of every record that lies whole inside it. Valid, though odd:
//!
//! * the parent's timeline in the first pages of a new timeline's first segment: it never exceeds the file's and never
//!   decreases (with the timeline's history it is known where it changes);
//! * a first record that began, and a last one that ends, in another segment;
//! * a record that was never completed and the page that takes the place of its rest;
//! * a segment in which no record starts;
//! * anything after a segment switch;
//! * content that ends early under a full name: then `whole` is false and `end` says where.
//!
//! The content comes in pieces of any length, in order, and none is kept: memory is a page and a bounded number of restore points,
//! whatever the segment's size. Who wants all of them takes them out as they come ([`Inspector::take_points`]).
//!
//! Content that ends early is told from damage by what follows: zeros, or pages that a recycled file held before, are an
//! end; a page or record of this segment after the break proves damage.

use walpoint_base::chain::ChainFacts;
use walpoint_base::crossing::CrossingFacts;
use walpoint_base::facts::{RestorePoint, SegmentMarks, TransactionRange};
use walpoint_base::{Lsn, SegmentFacts, SegmentName, TimelineHistory, TimelineId};

use super::edges;
use super::error::WalError;
use super::kind::RecordKind;
use super::page::LONG_HEADER;
use super::record::WalRecord;
use super::segment::{NO_PAGE, Segment, WalPage};
use super::walk::{Carry, SegmentEnd, Walk};
use crate::bytes;

/// Decodes a whole segment file and checks it against its name: [`Inspector`] in one step.
pub fn inspect(name: SegmentName, content: &[u8]) -> Result<SegmentFacts, WalError> {
    inspect_whole(name, content, None)
}

/// [`inspect`], and every page must be of the timeline that `history`, that of the timeline in the name, says for its
/// position.
pub fn inspect_on_path(
    name: SegmentName,
    content: &[u8],
    history: &TimelineHistory,
) -> Result<SegmentFacts, WalError> {
    inspect_whole(name, content, Some(history))
}

fn inspect_whole(
    name: SegmentName,
    content: &[u8],
    history: Option<&TimelineHistory>,
) -> Result<SegmentFacts, WalError> {
    let mut inspector = Inspector::new(name, u64::try_from(content.len()).unwrap_or(u64::MAX), history);
    inspector.feed(content)?;
    inspector.finish()
}

/// Decodes a segment file piece by piece and checks it against its name. Which cluster it should come from is
/// [`Identity::check`](super::WalIdentity::check)'s to say.
///
/// Of a transaction's end or a restore point whose record goes on in the next segment each segment's facts have a piece
/// ([`walpoint_base::crossing`]); [`RecordReader`](super::RecordReader) over both decodes it.
#[derive(Debug)]
pub struct Inspector<'h> {
    name: SegmentName,
    length: u64,
    history: Option<&'h TimelineHistory>,
    /// Bytes so far.
    fed: u64,
    /// Of these, bytes before the zeros at their end.
    content_len: usize,
    /// The beginning of a page whose rest has not come yet.
    held: Vec<u8>,
    stage: Stage<'h>,
}

#[derive(Debug)]
enum Stage<'h> {
    /// The header of the first page is not complete.
    Opening,
    /// It is zeros, and the rest decides what that is called.
    Zeros,
    Walking(Box<Walking<'h>>),
}

#[derive(Debug)]
struct Walking<'h> {
    walk: Walk<'h>,
    /// Where the next page begins.
    offset: usize,
    facts: SegmentFacts,
    /// Where the first record that starts here points back to.
    previous: Option<Lsn>,
}

impl<'h> Inspector<'h> {
    /// For a file of that name and length. With `history`, that of the timeline in the name, every page must be of the
    /// timeline that it says for the page's position.
    pub fn new(name: SegmentName, length: u64, history: Option<&'h TimelineHistory>) -> Self {
        let (held, stage) = (Vec::new(), Stage::Opening);
        Self { name, length, history, fed: 0, content_len: 0, held, stage }
    }

    /// Takes the next bytes. After an error nothing more is to be learnt.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), WalError> {
        let used = bytes::len_before_zeros(bytes);
        let before = usize::try_from(self.fed).unwrap_or(usize::MAX);
        self.fed = self.fed.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if used > 0 {
            self.content_len = before.saturating_add(used);
        }
        if self.fed > self.length {
            return Err(WalError::WrongLength { name: self.name, len: self.fed, expected: self.length });
        }
        let mut rest = bytes;
        if matches!(self.stage, Stage::Opening) {
            rest = self.open(rest)?;
        }
        let Stage::Walking(walking) = &mut self.stage else { return Ok(()) };
        let block = walking.walk.segment().block;
        if !self.held.is_empty() {
            rest = fill(&mut self.held, block, rest);
            if self.held.len() < block {
                return Ok(());
            }
            walking.page(&self.held)?;
            self.held.clear();
        }
        let pages = rest.chunks_exact(block);
        self.held.extend_from_slice(pages.remainder());
        pages.into_iter().try_for_each(|page| walking.page(page))
    }

    /// Takes the restore points out that were found since the last time: in 64 KiB are fewer than are kept.
    pub fn take_points(&mut self) -> Vec<RestorePoint> {
        match &mut self.stage {
            Stage::Walking(walking) => std::mem::take(&mut walking.facts.restore_points),
            Stage::Opening | Stage::Zeros => Vec::new(),
        }
    }

    /// Looks at the header of the first page once all of it is there; gives what is not used or held yet.
    fn open<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], WalError> {
        let (beginning, rest) = if self.held.is_empty() && bytes.len() >= LONG_HEADER {
            (bytes, bytes)
        } else {
            let rest = fill(&mut self.held, LONG_HEADER, bytes);
            if self.held.len() < LONG_HEADER {
                return Ok(rest);
            }
            (self.held.as_slice(), rest)
        };
        let beginning = beginning.get(..LONG_HEADER).unwrap_or(beginning);
        self.stage = if bytes::len_before_zeros(beginning) == 0 {
            Stage::Zeros
        } else {
            let segment = Segment::open(self.name, self.length, beginning, self.history)?;
            Stage::Walking(Box::new(Walking::new(segment)))
        };
        Ok(rest)
    }

    /// What the segment is, after its last byte.
    pub fn finish(self) -> Result<SegmentFacts, WalError> {
        match self.stage {
            Stage::Walking(walking) if self.fed == self.length => walking.finish(self.content_len),
            Stage::Walking(_) => {
                Err(WalError::WrongLength { name: self.name, len: self.fed, expected: self.length })
            }
            Stage::Zeros if self.content_len > 0 => {
                Err(WalError::NotWal { name: self.name, what: NO_PAGE.to_owned() })
            }
            // Zeros only, or fewer bytes than a header.
            Stage::Opening | Stage::Zeros => {
                let beginning = [0; LONG_HEADER];
                let length = usize::try_from(self.fed).unwrap_or(LONG_HEADER).min(LONG_HEADER);
                let beginning = beginning.get(..length).unwrap_or_default();
                Segment::open(self.name, self.fed, beginning, None)
                    .and(Err(WalError::NotWal { name: self.name, what: NO_PAGE.to_owned() }))
            }
        }
    }
}

/// Takes bytes until `held` has `want` of them; gives the rest.
fn fill<'b>(held: &mut Vec<u8>, want: usize, bytes: &'b [u8]) -> &'b [u8] {
    let (taken, rest) = bytes.split_at(want.saturating_sub(held.len()).min(bytes.len()));
    held.extend_from_slice(taken);
    rest
}

impl<'h> Walking<'h> {
    fn new(segment: Segment<'h>) -> Self {
        let timeline = TimelineId::new(segment.first.page.timeline).unwrap_or(segment.name.timeline);
        let facts = SegmentFacts {
            name: segment.name,
            system_id: segment.first.system_id,
            major: segment.major,
            size: segment.size,
            block_size: segment.first.block_size,
            first_page_timeline: timeline,
            content_len: 0,
            first_record: None,
            last_record: None,
            end: segment.start,
            whole: false,
            switched: false,
            records: 0,
            transactions: None,
            crossing: CrossingFacts::default(),
            chain: ChainFacts::default(),
            marks: SegmentMarks::default(),
            restore_points: Vec::new(),
            further_points: 0,
        };
        Self { walk: Walk::new(segment, Carry::default()), offset: 0, facts, previous: None }
    }

    fn page(&mut self, bytes: &[u8]) -> Result<(), WalError> {
        let page = WalPage { offset: self.offset, bytes };
        self.offset = page.end();
        while let Some(record) = self.walk.next(page)? {
            if self.facts.records == 0 {
                self.previous = Some(record.previous);
            }
            starts(&mut self.facts, record.start);
            note(&mut self.facts, record);
        }
        Ok(())
    }

    fn finish(self, content_len: usize) -> Result<SegmentFacts, WalError> {
        let Self { mut walk, mut facts, mut previous, .. } = self;
        let outcome = walk.finish(content_len)?;
        let complete = facts.last_record;
        facts.chain.end = edges::closed_end(complete);
        if let Some(pending) = walk.unfinished() {
            if let Some(start) = pending.start() {
                if facts.records == 0 {
                    previous = pending.previous();
                }
                starts(&mut facts, start);
            }
            let (end, marks) = edges::open_end(pending, complete);
            (facts.chain.end, facts.marks) = (end, facts.marks.or(marks));
            facts.crossing.open = edges::open(pending);
        }
        let carried = walk.carried();
        facts.crossing.rest = edges::rest(&carried);
        let (begin, marks) = edges::begin(&carried, previous);
        (facts.chain.begin, facts.marks) = (begin, facts.marks.or(marks));
        facts.content_len = u64::try_from(content_len).unwrap_or(u64::MAX);
        facts.end = walk.end();
        facts.whole = !matches!(outcome, SegmentEnd::Ended(_));
        facts.switched = outcome == SegmentEnd::Switched;
        Ok(facts)
    }
}

fn starts(facts: &mut SegmentFacts, start: Lsn) {
    facts.first_record.get_or_insert(start);
    facts.last_record = Some(start);
    facts.records = facts.records.saturating_add(1);
}

fn note(facts: &mut SegmentFacts, record: WalRecord) {
    facts.marks = facts.marks.or(edges::marks(&record));
    if let Some(end) = record.kind.transaction_end() {
        facts.transactions = Some(TransactionRange::add(facts.transactions, end.time, end.xid));
    } else if let RecordKind::RestorePoint { name, time } = record.kind {
        if facts.restore_points.len() < SegmentFacts::POINTS {
            facts.restore_points.push(RestorePoint { name, time, lsn: record.start, end: record.next });
        } else {
            facts.further_points = facts.further_points.saturating_add(1);
        }
    }
}
