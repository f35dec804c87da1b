//! A removal of relations before the target, as JSON.

use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{Lsn, PgTimestamp};
use walpoint_plan::restore::{Hint, Note, RemovedBefore, RestorePlan, Unreachable};

use super::words::{CommandLine, options};

/// The last transaction before the target, or before the end of the archive, that removed a database, or relations, as `DROP` and `TRUNCATE` do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Removal")]
pub(crate) struct RemovalDocument {
    /// The transaction.
    xid: u32,
    /// When it was committed.
    time: PgTimestamp,
    /// The position at which the record of its commit starts.
    lsn: Lsn,
    /// The OID of the database, if it removed one.
    #[serde(skip_serializing_if = "Option::is_none")]
    database_oid: Option<u32>,
    /// The last position before it at which no relation is locked, or at which the database can still be opened. Absent if it is not known,
    /// or, of relations, if recovery does not pause at the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    unlocked_lsn: Option<Lsn>,
    /// Whether other transactions ended between `unlocked_lsn` and `lsn`. Absent if that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    other_transactions_between: Option<bool>,
    /// The options of `restore-agent` that reach the moment before it.
    options: Vec<String>,
    /// The given command with these options in place of its target, one word each.
    command: Vec<String>,
}

impl RemovalDocument {
    /// That which a plan notes.
    pub(super) fn of_plan(plan: &RestorePlan, given: &CommandLine) -> Option<Self> {
        plan.notes.iter().find_map(|note| match note {
            Note::RemovedBefore(removed) => Some(Self::of(removed, given)),
            _ => None,
        })
    }

    /// That which a refusal hints at.
    pub(super) fn of_refusal(refusal: &Unreachable, given: &CommandLine) -> Option<Self> {
        refusal.hints.iter().find_map(|hint| match hint {
            Hint::RemovedBefore(removed) => Some(Self::of(removed, given)),
            _ => None,
        })
    }

    fn of(removed: &RemovedBefore, given: &CommandLine) -> Self {
        let removal = removed.removal;
        let options = options::before_removal(removed);
        Self {
            xid: removal.xid,
            time: removal.time,
            lsn: removal.lsn,
            database_oid: removal.database,
            unlocked_lsn: removal.unlocked.map(|unlocked| unlocked.lsn),
            other_transactions_between: removal.unlocked.map(|unlocked| !unlocked.same_transactions),
            command: given.with_target(&options),
            options,
        }
    }
}
