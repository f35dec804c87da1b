//! What is locked at the target, in words: by transactions that have not ended there, and by prepared ones, which outlive
//! recovery.
//!
//! PostgreSQL stops at the end of a transaction; where nothing else was committed meanwhile that is the end of the accident
//! itself, whose locks are held by then. Ending recovery rolls back what has not ended, and so releases its locks. A prepared
//! transaction is not rolled back: its locks are held until someone ends it.

use std::collections::BTreeSet;

use super::facts::BackupFacts;
use super::request::TargetAction;
use super::stop::{HeldLock, PreparedTransaction, Stop};

/// Relations, or transactions, that a note lists.
const NAMED: usize = 5;

/// The notes about a stop, if recovery does that there.
pub(super) fn notes(stop: &Stop, backup: &BackupFacts, action: TargetAction) -> Vec<String> {
    let is_prepared = |lock: &&HeldLock| stop.prepared.iter().any(|p| p.holds(lock.xid));
    let (by_prepared, others): (Vec<&HeldLock>, Vec<&HeldLock>) = stop.locks.iter().partition(is_prepared);
    let mut notes = Vec::new();
    if action == TargetAction::Pause {
        notes.extend(unfinished(&others, stop, backup));
    }
    notes.extend(prepared(&stop.prepared, &by_prepared));
    notes
}

/// What a paused recovery does not let anybody read, and how to read it all the same.
fn unfinished(locks: &[&HeldLock], stop: &Stop, backup: &BackupFacts) -> Option<String> {
    let first = locks.first()?;
    let mut note = format!(
        "Transaction {} has not ended there and keeps the relations with the OIDs {} locked, as DROP and TRUNCATE do: queries \
         that read them wait while recovery is paused. select pg_wal_replay_resume() ends recovery, which rolls the transaction \
         back and releases its locks.",
        first.xid,
        relations(locks),
    );
    if let Some(since) = first.since.filter(|since| *since > backup.end) {
        let same = match stop.locked_since_last_end {
            true => "after the same transactions",
            false => "though also before transactions that ended meanwhile",
        };
        note.push_str(&format!(
            " To read them while it is paused: --target-lsn {since} --exclusive, which stops before they were locked, {same}."
        ));
    }
    // Who locked before what was read may have been prepared there.
    if locks.iter().any(|lock| lock.since.is_none()) {
        note.push_str(
            " If select * from pg_prepared_xacts lists it, it was prepared and keeps its locks after recovery too, until COMMIT \
             PREPARED or ROLLBACK PREPARED ends it.",
        );
    }
    Some(note)
}

/// Transactions that are open there and stay open.
fn prepared(open: &[PreparedTransaction], locks: &[&HeldLock]) -> Option<String> {
    if open.is_empty() {
        return None;
    }
    let name = |p: &PreparedTransaction| format!("{} ('{}')", p.xid, p.gid.replace('\'', "''"));
    let mut names: Vec<String> = open.iter().take(NAMED).map(name).collect();
    if open.len() > NAMED {
        names.push(format!("{} more", open.len() - NAMED));
    }
    let locked = match locks.is_empty() {
        true => String::new(),
        false => format!(", the relations with the OIDs {} among what they lock", relations(locks)),
    };
    Some(format!(
        "Prepared transactions are open there: {}. They stay open and keep their locks, also after recovery has ended{locked}, \
         until COMMIT PREPARED or ROLLBACK PREPARED ends them; pg_prepared_xacts lists them all.",
        names.join(", ")
    ))
}

fn relations(locks: &[&HeldLock]) -> String {
    let relations: BTreeSet<u32> = locks.iter().map(|lock| lock.relation).collect();
    let mut names: Vec<String> = relations.iter().take(NAMED).map(u32::to_string).collect();
    if relations.len() > NAMED {
        names.push(format!("{} more", relations.len() - NAMED));
    }
    names.join(", ")
}
