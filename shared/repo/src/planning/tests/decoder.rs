//! Segments of an invented format, and the decoder that stands in for the real one: the records that a segment holds any
//! byte of, as text.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use walpoint_base::chain::ChainFacts;
use walpoint_base::crossing::{CrossingFacts, RecordPiece};
use walpoint_base::facts::{RestorePoint, SegmentMarks, TransactionRange};
use walpoint_base::{Lsn, PgMajor, PgTimestamp, SegmentFacts, SegmentName, SegmentNo, SystemId, TimelineId};
use walpoint_plan::restore::created::TablespaceSearch;
use walpoint_plan::restore::removal::RemovalSearch;
use walpoint_plan::restore::required::RequiredSearch;
use walpoint_plan::restore::stop::{SearchState, SegmentDecoder, Stop, StopRule, StopSearch};
use walpoint_plan::restore::testing::world::{Record, TestRecordKind, World, decides, size};

/// The content of a timeline's segment.
pub(super) fn content(world: &World, timeline: TimelineId, number: SegmentNo) -> Vec<u8> {
    let (start, end) = (number.start(size()), number.end(size()));
    let mut text = String::new();
    for r in world.path_records(timeline).into_iter().filter(|r| r.end > start && r.start < end) {
        let kind = match &r.kind {
            TestRecordKind::Commit { time, xid } => format!("commit {} {xid}", time.0),
            TestRecordKind::Point(name) => format!("point {name} 0"),
            TestRecordKind::Minimal => "minimal 0 0".to_owned(),
            TestRecordKind::Other => "other 0 0".to_owned(),
        };
        text.push_str(&format!("{} {} {} {kind}\n", r.timeline, r.start.0, r.end.0));
    }
    let mut bytes = text.into_bytes();
    bytes.resize(size().as_usize(), 0);
    bytes
}

pub(super) fn records(content: &[u8]) -> Vec<Record> {
    let text = content.split(|b| *b == 0).next().unwrap();
    let line = |line: &str| {
        let f: Vec<&str> = line.split(' ').collect();
        let kind = match f[3] {
            "commit" => TestRecordKind::Commit {
                time: PgTimestamp(f[4].parse().unwrap()),
                xid: f[5].parse().unwrap(),
            },
            "point" => TestRecordKind::Point(f[4].to_owned()),
            "minimal" => TestRecordKind::Minimal,
            _ => TestRecordKind::Other,
        };
        let lsn = |field: &str| Lsn(field.parse().unwrap());
        Record { timeline: f[0].parse().unwrap(), start: lsn(f[1]), end: lsn(f[2]), kind }
    };
    std::str::from_utf8(text).unwrap().lines().map(line).collect()
}

/// The bytes of a record from a position on, up to the end of the segment, as PostgreSQL would write them.
fn piece(record: &Record, from: Lsn) -> RecordPiece {
    let (rmgr, info, xid, data) = match &record.kind {
        TestRecordKind::Commit { time, xid } => (1, 0x00, *xid, time.0.to_le_bytes().to_vec()),
        TestRecordKind::Point(name) => (0, 0x70, 0, [&[0; 8], name.as_bytes(), &[0]].concat()),
        TestRecordKind::Minimal => (0, 0x60, 0, vec![0; 24]),
        TestRecordKind::Other => (10, 0x00, 9, Vec::new()),
    };
    let mut bytes = vec![0; 24];
    bytes[4..8].copy_from_slice(&xid.to_le_bytes());
    (bytes[16], bytes[17]) = (info, rmgr);
    bytes.extend([255, u8::try_from(data.len()).unwrap()]);
    bytes.extend(data);
    bytes.resize(128.max(bytes.len()), 0);
    let offset = |lsn: Lsn| usize::try_from(lsn.since(record.start)).unwrap().min(bytes.len());
    let end = SegmentNo::of(from, size()).end(size()).min(record.end);
    RecordPiece::of(&bytes[offset(from)..offset(end)])
}

/// What the WAL reader would say about a segment: of a record that ends in the next one no more than a piece.
pub(super) fn facts(system_id: SystemId, name: SegmentName, content: &[u8]) -> SegmentFacts {
    let number = name.number(size()).unwrap();
    let (start, end) = (number.start(size()), number.end(size()));
    let all = records(content);
    let inside: Vec<&Record> = all.iter().filter(|r| r.start >= start).collect();
    let complete: Vec<&&Record> = inside.iter().filter(|r| r.end <= end).collect();
    let transactions = complete.iter().fold(None, |range, r| match r.kind {
        TestRecordKind::Commit { time, xid } => Some(TransactionRange::add(range, time, xid)),
        _ => range,
    });
    let points = complete.iter().filter_map(|r| match &r.kind {
        TestRecordKind::Point(name) => {
            Some(RestorePoint { name: name.clone(), time: PgTimestamp(0), lsn: r.start, end: r.end })
        }
        _ => None,
    });
    let open = inside.last().filter(|r| r.end > end && r.kind != TestRecordKind::Other);
    let rest = all.iter().find(|r| r.start < start).map(|r| piece(r, start)).unwrap_or_default();
    SegmentFacts {
        name,
        system_id,
        major: PgMajor::new(17).unwrap(),
        size: size(),
        block_size: 8192,
        first_page_timeline: name.timeline,
        content_len: size().bytes(),
        first_record: inside.first().map(|r| r.start),
        last_record: inside.last().map(|r| r.start),
        end: all.iter().map(|r| r.end).filter(|e| *e <= end).max().unwrap_or(start),
        whole: true,
        switched: false,
        records: u32::try_from(inside.len()).unwrap(),
        transactions,
        chain: ChainFacts::default(),
        marks: SegmentMarks::default(),
        crossing: CrossingFacts { open: open.map(|r| piece(r, r.start)), rest },
        restore_points: points.collect(),
        further_points: 0,
    }
}

/// Decodes the invented format.
#[derive(Debug)]
pub(super) struct Decoder;

struct Search {
    rule: StopRule,
    from: Lsn,
    until: Lsn,
    open: Option<Record>,
}

impl SegmentDecoder for Decoder {
    fn search(&self, rule: &StopRule, from: Lsn, until: Lsn) -> Box<dyn StopSearch> {
        Box::new(Search { rule: rule.clone(), from, until, open: None })
    }

    fn tablespaces(&self) -> Box<dyn TablespaceSearch> {
        unreachable!("the invented format has no tablespaces")
    }

    fn required(&self) -> Box<dyn RequiredSearch> {
        unreachable!("the invented format has no settings")
    }

    fn removals(&self, _: Lsn) -> Option<Box<dyn RemovalSearch>> {
        None
    }
}

impl StopSearch for Search {
    fn next_xid(&self) -> Option<walpoint_base::target::FullXid> {
        None
    }

    fn feed(&mut self, name: SegmentName, content: &[u8]) -> Result<SearchState, String> {
        let number = name.number(size()).unwrap();
        let (start, end) = (number.start(size()), number.end(size()));
        let open = self.open.take();
        for record in records(content) {
            // Its beginning was not seen unless the segment before was fed.
            if record.start < start && open.as_ref() != Some(&record) {
                continue;
            }
            let counts = record.start >= self.from && record.end <= self.until;
            let may = counts && decides(&self.rule, &record);
            if record.end > end {
                // Only the header is readable here.
                let by_position = matches!(self.rule, StopRule::Lsn { .. } | StopRule::Consistent(_));
                if counts && if by_position { may } else { record.kind != TestRecordKind::Other } {
                    self.open = Some(record);
                    return Ok(SearchState::More);
                }
            } else if may {
                let (time, xid) = match record.kind {
                    TestRecordKind::Commit { time, xid } => (Some(time), Some(xid)),
                    _ => (None, None),
                };
                let Record { timeline, start, end, .. } = record;
                return Ok(SearchState::Stop(Stop {
                    timeline,
                    record: start,
                    end,
                    time,
                    xid,
                    full_xid: None,
                    locks: Vec::new(),
                    unlocked: None,
                    prepared: Vec::new(),
                    drops: Vec::new(),
                    removal: None,
                }));
            }
        }
        Ok(SearchState::Nothing)
    }
}

/// Decodes the invented format, and counts segments.
#[derive(Debug, Default)]
pub(super) struct Counting(Arc<AtomicUsize>);

impl Counting {
    /// Segments that were decoded.
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

struct Counted(Box<dyn StopSearch>, Arc<AtomicUsize>);

impl SegmentDecoder for Counting {
    fn search(&self, rule: &StopRule, from: Lsn, until: Lsn) -> Box<dyn StopSearch> {
        // The search for an epoch's checkpoint reads on until there is one, and here there is none.
        match rule {
            StopRule::Lsn { at, .. } if at.0 == u64::MAX => Decoder.search(rule, from, until),
            _ => Box::new(Counted(Decoder.search(rule, from, until), self.0.clone())),
        }
    }

    fn tablespaces(&self) -> Box<dyn TablespaceSearch> {
        Decoder.tablespaces()
    }

    fn required(&self) -> Box<dyn RequiredSearch> {
        Decoder.required()
    }

    fn removals(&self, before: Lsn) -> Option<Box<dyn RemovalSearch>> {
        Decoder.removals(before)
    }
}

impl StopSearch for Counted {
    fn next_xid(&self) -> Option<walpoint_base::target::FullXid> {
        self.0.next_xid()
    }

    fn feed(&mut self, name: SegmentName, content: &[u8]) -> Result<SearchState, String> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.feed(name, content)
    }
}
