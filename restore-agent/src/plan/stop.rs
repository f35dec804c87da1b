//! The record that ends recovery, as JSON.

use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{Lsn, PgTimestamp, TimelineId};
use walpoint_plan::restore::Stop;

/// Locks and prepared transactions that are listed: a transaction may drop any number of relations.
const LOCKS: usize = 100;

/// The record that ends recovery.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Stop")]
pub(crate) struct StopDocument {
    /// The timeline that it belongs to.
    pub(crate) timeline: TimelineId,
    /// The position at which it starts.
    pub(crate) lsn: Lsn,
    /// The position at which it ends.
    pub(crate) end_lsn: Lsn,
    /// Whether the record itself is replayed.
    pub(crate) replayed: bool,
    /// Its time. Absent if it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) time: Option<PgTimestamp>,
    /// The transaction that it ends. Absent if it ends none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) xid: Option<u32>,
    /// The same with its epoch, as `pg_current_xact_id()` returns it. Only if the target is a transaction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) full_xid: Option<u64>,
    /// Relations that cannot be read while recovery pauses there, a hundred at most. Absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) locks: Vec<LockDocument>,
    /// Prepared transactions that are known to be open there and stay open, a hundred at most. Absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) prepared_transactions: Vec<PreparedDocument>,
}

/// A prepared transaction.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[schemars(rename = "PreparedTransaction")]
pub(crate) struct PreparedDocument {
    /// Its id.
    pub(crate) xid: u32,
    /// Its identifier for `COMMIT PREPARED`.
    pub(crate) gid: String,
}

/// A relation that a transaction keeps locked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Lock")]
pub(crate) struct LockDocument {
    /// The transaction, or a subtransaction of it.
    pub(crate) xid: u32,
    /// The OID of the database; 0 for a relation that all databases share.
    pub(crate) database_oid: u32,
    /// The OID of the relation.
    pub(crate) relation_oid: u32,
    /// The position at which it was locked, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) since_lsn: Option<Lsn>,
}

impl StopDocument {
    pub(super) fn of(stop: &Stop, replayed: bool) -> Self {
        Self {
            timeline: stop.timeline,
            lsn: stop.record,
            end_lsn: stop.end,
            replayed,
            time: stop.time,
            xid: stop.xid,
            full_xid: stop.full_xid.map(|full| full.0),
            prepared_transactions: stop
                .prepared
                .iter()
                .take(LOCKS)
                .map(|prepared| PreparedDocument { xid: prepared.xid, gid: prepared.gid.clone() })
                .collect(),
            locks: stop
                .locks
                .iter()
                .take(LOCKS)
                .map(|lock| LockDocument {
                    xid: lock.xid,
                    database_oid: lock.database,
                    relation_oid: lock.relation,
                    since_lsn: lock.since,
                })
                .collect(),
        }
    }
}
