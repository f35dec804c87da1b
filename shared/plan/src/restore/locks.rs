//! What is locked at the target: by transactions that have not ended there, and by prepared ones, which outlive
//! recovery.
//!
//! PostgreSQL stops at the end of a transaction; where nothing else was committed meanwhile that is the end of the accident
//! itself, whose locks are held by then. Ending recovery rolls back what has not ended, and so releases its locks. A prepared
//! transaction is not rolled back: its locks are held until someone ends it.

use std::collections::BTreeSet;

use super::facts::BackupFacts;
use super::note::{Locked, Note, UnlockedPosition};
use super::request::TargetAction;
use super::stop::{HeldLock, Removal, Stop};

/// How long before the target a removal counts, in microseconds: people look for what they lost minutes ago.
const LATELY: i64 = 3_600_000_000;

/// The notes about a stop, if recovery does that there.
pub(super) fn notes(stop: &Stop, backup: &BackupFacts, action: TargetAction) -> Vec<Note> {
    let is_prepared = |lock: &&HeldLock| stop.prepared.iter().any(|p| p.holds(lock.xid));
    let (by_prepared, others): (Vec<&HeldLock>, Vec<&HeldLock>) = stop.locks.iter().partition(is_prepared);
    let mut notes: Vec<Note> = lately_removed(stop).map(Note::RemovedBefore).into_iter().collect();
    if action == TargetAction::Pause {
        notes.extend(unfinished(&others, stop, backup).map(Note::Locked));
    }
    if !stop.prepared.is_empty() {
        notes.push(Note::Prepared { open: stop.prepared.clone(), relations: relations(&by_prepared) });
    }
    notes
}

/// What a person who looks for the moment before an accident may have come too late for.
fn lately_removed(stop: &Stop) -> Option<Removal> {
    let ended = stop.time?;
    stop.removal.filter(|removal| ended.0.saturating_sub(removal.time.0) <= LATELY)
}

/// What a paused recovery does not let anybody read, and where it could be read.
fn unfinished(locks: &[&HeldLock], stop: &Stop, backup: &BackupFacts) -> Option<Locked> {
    let first = locks.first()?;
    let since = first.since.filter(|since| *since > backup.end);
    Some(Locked {
        xid: first.xid,
        relations: relations(locks),
        before: since.map(|lsn| UnlockedPosition { lsn, same_transactions: stop.locked_since_last_end }),
        // Who locked before what was read may have been prepared there.
        perhaps_prepared: locks.iter().any(|lock| lock.since.is_none()),
    })
}

/// The OIDs of what is locked, each once.
fn relations(locks: &[&HeldLock]) -> Vec<u32> {
    let relations: BTreeSet<u32> = locks.iter().map(|lock| lock.relation).collect();
    relations.into_iter().collect()
}
