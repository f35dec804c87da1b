//! Decoding for the planner: the repository says which segments may hold the record at which recovery stops, this says
//! whether they do.

use walpoint_base::target::FullXid;
use walpoint_base::{Lsn, RecoveryTarget, SegmentName, TimelineId};
use walpoint_pg::wal;
use walpoint_pg::wal::find::{self, RemovalFinder, StopFinder, Taken};
use walpoint_pg::wal::{LongHeader, PageHeader, RecordKind, RecordReader, RelationLock};
use walpoint_plan::restore::{
    CreatedTablespace, DatabaseDrop, HeldLock, PreparedTransaction, Removal, RemovalSearch, RequiredSearch,
    RequiredSettings, SearchState, SegmentDecoder, Stop, StopRule, StopSearch, TablespaceSearch,
    UnlockedPosition,
};

/// PostgreSQL's WAL.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WalDecoder;

impl SegmentDecoder for WalDecoder {
    fn search(&self, rule: &StopRule, from: Lsn, until: Lsn) -> Box<dyn StopSearch> {
        // Where the backup is consistent counts only for `immediate`.
        let mut consistent = Lsn::INVALID;
        let (target, inclusive) = match rule.clone() {
            StopRule::Time { at, inclusive } => (RecoveryTarget::Time(at), inclusive),
            StopRule::Lsn { at, inclusive } => (RecoveryTarget::Lsn(at), inclusive),
            StopRule::Xid { xid, inclusive } => (RecoveryTarget::Xid(xid), inclusive),
            StopRule::Name(name) => (RecoveryTarget::Name(name), true),
            StopRule::Consistent(at) => {
                consistent = at;
                (RecoveryTarget::Immediate, true)
            }
            StopRule::Minimal => {
                return Box::new(MinimalSearch { reader: RecordReader::new(), from, until });
            }
        };
        let rule = find::TargetRule { target, inclusive, consistent };
        Box::new(Search { finder: StopFinder::new(rule, from), until, last_page: None })
    }

    fn tablespaces(&self) -> Box<dyn TablespaceSearch> {
        Box::new(Tablespaces(RecordReader::new()))
    }

    fn required(&self) -> Box<dyn RequiredSearch> {
        Box::new(Required(RecordReader::new()))
    }

    fn removals(&self, before: Lsn) -> Option<Box<dyn RemovalSearch>> {
        Some(Box::new(Removals(RemovalFinder::new(before))))
    }
}

/// A search for the first change to `wal_level = minimal`.
#[derive(Debug)]
struct MinimalSearch {
    reader: RecordReader,
    from: Lsn,
    until: Lsn,
}

impl StopSearch for MinimalSearch {
    fn feed(&mut self, name: SegmentName, content: &[u8]) -> Result<SearchState, String> {
        for record in self.reader.segment(name, content).map_err(|e| e.to_string())? {
            let record = record.map_err(|e| e.to_string())?;
            let minimal =
                matches!(&record.kind, RecordKind::ParameterChange(change) if change.wal_level == MINIMAL);
            if minimal && record.start >= self.from && record.end <= self.until {
                return Ok(SearchState::Stop(Stop {
                    timeline: name.timeline,
                    record: record.start,
                    end: record.end,
                    time: None,
                    xid: None,
                    full_xid: None,
                    locks: Vec::new(),
                    unlocked: None,
                    prepared: Vec::new(),
                    drops: Vec::new(),
                    removal: None,
                }));
            }
        }
        Ok(if self.reader.continues() { SearchState::More } else { SearchState::Nothing })
    }

    fn next_xid(&self) -> Option<FullXid> {
        None
    }
}

/// `WAL_LEVEL_MINIMAL`.
const MINIMAL: i32 = 0;

/// One search for tablespaces over consecutive segments.
struct Tablespaces(RecordReader);

impl TablespaceSearch for Tablespaces {
    fn feed(&mut self, name: SegmentName, content: &[u8]) -> Result<Vec<CreatedTablespace>, String> {
        let mut found = Vec::new();
        for record in self.0.segment(name, content).map_err(|e| e.to_string())? {
            let record = record.map_err(|e| e.to_string())?;
            if let RecordKind::TablespaceCreate { oid, location } = record.kind {
                found.push(CreatedTablespace { record: record.start, oid, location });
            }
        }
        Ok(found)
    }
}

/// One search for removed relations over consecutive segments.
struct Removals(RemovalFinder);

impl RemovalSearch for Removals {
    fn feed(&mut self, name: SegmentName, content: &[u8]) -> Result<(), String> {
        self.0.segment(name, content).map_err(|e| e.to_string())
    }

    fn last(&self) -> Option<Removal> {
        self.0.last().map(removal)
    }
}

fn removal(found: find::Removal) -> Removal {
    let find::Removal { xid, time, lsn, unlocked, database } = found;
    Removal { xid, time, lsn, unlocked: unlocked.map(unlocked_position), database }
}

fn database_drop((found, before): (wal::DatabaseDrop, find::Unlocked)) -> DatabaseDrop {
    DatabaseDrop { xid: found.xid, database: found.database, before: unlocked_position(before) }
}

fn unlocked_position(found: find::Unlocked) -> UnlockedPosition {
    UnlockedPosition { lsn: found.lsn, same_transactions: found.same_transactions }
}

/// One search for settings over consecutive segments.
struct Required(RecordReader);

impl RequiredSearch for Required {
    fn feed(&mut self, name: SegmentName, content: &[u8]) -> Result<Vec<(Lsn, RequiredSettings)>, String> {
        let mut found = Vec::new();
        for record in self.0.segment(name, content).map_err(|e| e.to_string())? {
            let record = record.map_err(|e| e.to_string())?;
            if let RecordKind::ParameterChange(change) = record.kind {
                // None of them is ever negative.
                let number = |value: i32| u32::try_from(value).unwrap_or_default();
                let settings = RequiredSettings {
                    max_connections: number(change.max_connections),
                    max_worker_processes: number(change.max_worker_processes),
                    max_wal_senders: number(change.max_wal_senders),
                    max_prepared_transactions: number(change.max_prepared_transactions),
                    max_locks_per_transaction: number(change.max_locks_per_transaction),
                };
                found.push((record.start, settings));
            }
        }
        Ok(found)
    }
}

/// One search over consecutive segments.
#[derive(Debug)]
struct Search {
    finder: StopFinder,
    until: Lsn,
    /// The timeline of the last page of the segment before.
    last_page: Option<TimelineId>,
}

impl StopSearch for Search {
    fn feed(&mut self, name: SegmentName, content: &[u8]) -> Result<SearchState, String> {
        let stop = self.finder.segment(name, content).map_err(|e| e.to_string())?;
        if let Some(stop) = stop {
            let there = stop.record.next <= self.until || stop.record.end <= self.until;
            return Ok(if there {
                SearchState::Stop(self.stop(name, content, &stop))
            } else {
                SearchState::Nothing
            });
        }
        self.last_page = LongHeader::parse(content)
            .and_then(|header| header.valid_block_size())
            .and_then(|block| page_timeline(content, content.len().checked_sub(block)?));
        Ok(if self.finder.continues() { SearchState::More } else { SearchState::Nothing })
    }

    fn next_xid(&self) -> Option<FullXid> {
        self.finder.progress().next_xid
    }
}

impl Search {
    fn stop(&self, name: SegmentName, content: &[u8], stop: &find::TargetStop) -> Stop {
        let find::TargetStop { record, locks, .. } = stop;
        let removal = locks.last_removal().map(removal);
        let unlocked = locks.unlocked().map(unlocked_position);
        let held = |(taken, RelationLock { xid, database, relation })| {
            let since = match taken {
                Taken::At(lsn) => Some(lsn),
                Taken::Before(_) => None,
            };
            HeldLock { since, xid, database, relation }
        };
        let locks: Vec<HeldLock> = locks.all().into_iter().map(held).collect();
        let prepared = stop.locks.prepared().map(|find::PreparedXact { xid, gid, subtransactions }| {
            PreparedTransaction { xid: *xid, gid: gid.clone(), subtransactions: subtransactions.clone() }
        });
        let end = record.kind.transaction_end();
        let time = match &record.kind {
            RecordKind::RestorePoint { time, .. } => Some(*time),
            _ => end.map(|end| end.time),
        };
        Stop {
            timeline: self.timeline_at(content, record.start).unwrap_or(name.timeline),
            record: record.start,
            end: record.end,
            time,
            xid: end.map(|end| end.xid),
            full_xid: None,
            unlocked,
            locks,
            prepared: prepared.collect(),
            drops: stop.locks.drops().map(database_drop).collect(),
            removal,
        }
    }

    /// The timeline of the page on which a record starts. One that goes on from an earlier segment is on the timeline of
    /// that segment's last page: timelines change only where a record begins.
    fn timeline_at(&self, content: &[u8], lsn: Lsn) -> Option<TimelineId> {
        let header = LongHeader::parse(content)?;
        let block = header.valid_block_size()?;
        if lsn < header.page.address {
            return self.last_page;
        }
        let offset = usize::try_from(lsn.since(header.page.address)).ok()?;
        page_timeline(content, offset / block * block)
    }
}

fn page_timeline(content: &[u8], offset: usize) -> Option<TimelineId> {
    PageHeader::parse(content.get(offset..)?).and_then(|page| TimelineId::new(page.timeline))
}
