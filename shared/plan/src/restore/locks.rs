//! What is locked at the target: by transactions that have not ended there, and by prepared ones, which outlive
//! recovery. And what is lost there: a database whose removal has begun.
//!
//! PostgreSQL stops at the end of a transaction; where nothing else was committed meanwhile that is the end of the accident
//! itself, whose locks are held by then. Ending recovery rolls back what has not ended, and so releases its locks. A prepared
//! transaction is not rolled back: its locks are held until someone ends it.

use std::collections::BTreeSet;

use super::facts::BackupFacts;
use super::note::{Dropped, Locked, Note};
use super::request::TargetAction;
use super::stop::{DatabaseDrop, HeldLock, Stop};

/// The notes about a stop, if recovery does that there.
pub(super) fn notes(stop: &Stop, backup: &BackupFacts, action: TargetAction) -> Vec<Note> {
    let is_prepared = |lock: &&HeldLock| stop.prepared.iter().any(|p| p.holds(lock.xid));
    let (by_prepared, others): (Vec<&HeldLock>, Vec<&HeldLock>) = stop.locks.iter().partition(is_prepared);
    let mut notes: Vec<Note> = stop.drops.iter().map(|drop| Note::Dropped(dropped(drop, backup))).collect();
    if action == TargetAction::Pause {
        notes.extend(unfinished(&others, stop, backup).map(Note::Locked));
    }
    if !stop.prepared.is_empty() {
        notes.push(Note::Prepared { open: stop.prepared.clone(), relations: relations(&by_prepared) });
    }
    notes
}

/// What a paused recovery does not let anybody read, and where it could be read.
fn unfinished(locks: &[&HeldLock], stop: &Stop, backup: &BackupFacts) -> Option<Locked> {
    Some(Locked {
        xid: locks.first()?.xid,
        relations: relations(locks),
        lineage: None,
        before: stop.unlocked.filter(|unlocked| unlocked.lsn > backup.end),
        // Who locked before what was read may have been prepared there.
        perhaps_prepared: locks.iter().any(|lock| lock.since.is_none()),
    })
}

/// A database that is lost there, and where it was whole.
fn dropped(drop: &DatabaseDrop, backup: &BackupFacts) -> Dropped {
    let before = Some(drop.before).filter(|before| before.lsn > backup.end);
    Dropped { xid: drop.xid, database: drop.database, before, lineage: None }
}

/// The OIDs of what is locked, each once.
fn relations(locks: &[&HeldLock]) -> Vec<u32> {
    let relations: BTreeSet<u32> = locks.iter().map(|lock| lock.relation).collect();
    relations.into_iter().collect()
}
