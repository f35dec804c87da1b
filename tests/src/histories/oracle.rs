//! The row oracle: what was committed, when, at which position, on which branch. Filled by the histories themselves from
//! what PostgreSQL answered to the statement that did it; Walpoint is never asked.
//!
//! A branch is one server's history: everything on the path to it from the beginning, so a fork is a copy of the events up
//! to it. Statements come one at a time, so positions and times rise along a branch.

use std::collections::{BTreeMap, BTreeSet};

use walpoint_base::Lsn;

use super::world::SEGMENT;

/// What a server has: for each transaction's number its rows, and the prepared transactions that are open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Rows by the number of the transaction that wrote them.
    pub rows: BTreeMap<i64, i64>,
    /// Names of open prepared transactions.
    pub prepared: BTreeSet<String>,
}

/// What a statement changes once its end is replayed.
#[derive(Debug, Clone)]
pub enum Effect {
    /// A transaction wrote `added` (its number, its rows) and removed all rows of others.
    Commit {
        /// Number of the transaction and its rows.
        added: (i64, i64),
        /// Numbers of transactions whose rows it removed.
        removed: Vec<i64>,
    },
    /// A transaction was prepared.
    Prepare(String),
    /// A prepared transaction was committed; number and rows.
    CommitPrepared(String, (i64, i64)),
    /// A prepared transaction was rolled back.
    RollbackPrepared(String),
    /// A restore point.
    Point(String),
    /// A base backup: its id.
    Backup(String),
    /// A transaction ended that changed no rows.
    Ended,
    /// No row changes, and no transaction that is known to end.
    Nothing,
}

/// One thing that happened.
#[derive(Debug, Clone)]
pub struct HistoryEvent {
    /// The timeline it was written on.
    pub timeline: u32,
    /// Where WAL ended before: the record that counts starts here or later.
    pub before: Lsn,
    /// Where WAL ended afterwards: the record that counts ends here or earlier.
    pub after: Lsn,
    /// The server's clock before, with microseconds and zone; of one form, so texts compare as times.
    pub time_before: String,
    /// The server's clock afterwards.
    pub time_after: String,
    /// The transaction's id with its epoch, if it ended one.
    pub xid: Option<u64>,
    /// What it changed.
    pub effect: Effect,
}

impl HistoryEvent {
    /// Does it write a record with a time that a time target stops at?
    pub fn ends_transaction(&self) -> bool {
        let prepared = matches!(self.effect, Effect::CommitPrepared(..) | Effect::RollbackPrepared(_));
        prepared || self.xid.is_some() || matches!(self.effect, Effect::Commit { .. } | Effect::Ended)
    }
}

/// Where the record behind a position starts: records are aligned, and a page begins with a header.
pub fn next_record(position: Lsn) -> Lsn {
    let aligned = position.0.next_multiple_of(8);
    Lsn(match (aligned % SEGMENT, aligned % 8192) {
        (0, _) => aligned + 40,
        (_, 0) => aligned + 24,
        _ => aligned,
    })
}

/// One server's history from the beginning on.
#[derive(Debug, Clone)]
pub struct Branch {
    /// The timeline that it writes.
    pub timeline: u32,
    /// Its timelines and where each begins, oldest first.
    pub path: Vec<(u32, Lsn)>,
    /// Everything that happened on the path to its end.
    pub events: Vec<HistoryEvent>,
    /// How many of these happened before it left its parent.
    pub inherited: usize,
    /// Whether its server archives, in the histories' intention.
    pub archived: bool,
}

impl Branch {
    /// The first server's.
    pub fn first() -> Branch {
        let path = vec![(1, Lsn(0))];
        Branch { timeline: 1, path, events: Vec::new(), inherited: 0, archived: true }
    }

    /// A branch that leaves this one after `kept` events, at `fork`.
    pub fn fork(&self, kept: usize, timeline: u32, fork: Lsn) -> Branch {
        let mut path: Vec<(u32, Lsn)> = self.path.clone();
        path.retain(|(_, begin)| *begin < fork || begin.0 == 0);
        if timeline != self.timeline {
            path.push((timeline, fork));
        }
        Branch { timeline, path, events: self.events[..kept].to_vec(), inherited: kept, archived: true }
    }

    /// What a server has that replayed the first `count` events.
    pub fn state(&self, count: usize) -> State {
        let mut state = State::default();
        for event in &self.events[..count] {
            match &event.effect {
                Effect::Commit { added: (number, rows), removed } => {
                    state.rows.retain(|number, _| !removed.contains(number));
                    state.rows.insert(*number, *rows);
                }
                Effect::Prepare(name) => drop(state.prepared.insert(name.clone())),
                Effect::CommitPrepared(name, (number, rows)) => {
                    state.prepared.remove(name);
                    state.rows.insert(*number, *rows);
                }
                Effect::RollbackPrepared(name) => drop(state.prepared.remove(name)),
                Effect::Point(_) | Effect::Backup(_) | Effect::Ended | Effect::Nothing => {}
            }
        }
        state
    }

    /// How many events end at or before a position.
    pub fn ended_by(&self, position: Lsn) -> usize {
        self.events.iter().take_while(|event| next_record(event.after) <= next_record(position)).count()
    }

    /// The timeline on whose segment a position is read: the newest that had begun in this segment.
    pub fn timeline_of_segment(&self, segment: u64, size: u64) -> u32 {
        let begun = self.path.iter().rev().find(|(_, begin)| begin.0 / size <= segment);
        begun.map_or(1, |(timeline, _)| *timeline)
    }

    /// The prepared transactions that are open at its end, with number and rows as `CommitPrepared` will say them.
    pub fn open(&self) -> Vec<String> {
        self.state(self.events.len()).prepared.into_iter().collect()
    }
}
