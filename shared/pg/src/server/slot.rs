//! Physical replication slots: what makes a server keep the WAL that a client has not reported as durable.

use walpoint_base::{Lsn, SlotName, TimelineId};

use super::error::ServerError;
use super::replication::Walsender;
use super::role::Right;
use super::session::{self, Server};

/// SQLSTATE of a slot that exists already.
const DUPLICATE_OBJECT: &str = "42710";

/// A physical slot, as `pg_replication_slots` shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotState {
    /// Whether it is a physical one.
    pub physical: bool,
    /// The server process that uses it, if one does.
    pub active_pid: Option<i32>,
    /// The oldest WAL that the server keeps for it; `None` before its first use, unless it was made with RESERVE_WAL.
    pub restart: Option<Lsn>,
    /// Whether that WAL is there: `reserved`, `extended`, `unreserved` or `lost`; `None` where there is no such WAL.
    pub wal_status: Option<String>,
    /// Bytes that can be written until the slot may lose WAL, where `max_slot_wal_keep_size` limits it.
    pub safe_wal_size: Option<i64>,
}

impl SlotState {
    /// Whether the server has removed WAL that it needed: nothing can be streamed with it any more.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost")
    }
}

/// Where WAL kept for a slot begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotPosition {
    /// The position.
    pub restart: Lsn,
    /// The timeline of the server's path that it is on.
    pub timeline: TimelineId,
}

impl Server {
    /// A slot; `None` if there is none of that name.
    pub async fn slot(&mut self, name: &SlotName) -> Result<Option<SlotState>, ServerError> {
        let action = "reading a replication slot (pg_replication_slots)";
        let sql = format!(
            "SELECT slot_type OPERATOR(pg_catalog.=) 'physical' AS physical, active_pid, restart_lsn, wal_status, safe_wal_size \
             FROM pg_catalog.pg_replication_slots WHERE slot_name OPERATOR(pg_catalog.=) '{name}'"
        );
        let rows = self.query(action, Right::Connect, &sql).await?;
        let answer = |source| ServerError::Answer { action, source };
        if rows.is_empty() {
            return Ok(None);
        }
        let row = rows.one().map_err(answer)?;
        let read = || {
            Ok(SlotState {
                physical: row.get("physical")?,
                active_pid: row.nullable("active_pid")?,
                restart: row.nullable("restart_lsn")?,
                wal_status: row.nullable("wal_status")?,
                safe_wal_size: row.nullable("safe_wal_size")?,
            })
        };
        read().map(Some).map_err(answer)
    }

    /// Moves a slot that no session uses on: the server no longer keeps what lies before `to` for it.
    pub async fn advance_slot(&mut self, name: &SlotName, to: Lsn) -> Result<(), ServerError> {
        let action = "moving a replication slot on (pg_replication_slot_advance)";
        let sql = format!("SELECT end_lsn FROM pg_catalog.pg_replication_slot_advance('{name}', '{to}')");
        self.query(action, Right::Replication, &sql).await.map(drop)
    }

    /// Whether a process of this server streams WAL to a client of that name.
    pub async fn has_walsender(&mut self, process: i32, name: &str) -> Result<bool, ServerError> {
        let action = "looking for a session in pg_stat_activity";
        let sql = format!(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE pid OPERATOR(pg_catalog.=) {process} \
             AND application_name OPERATOR(pg_catalog.=) {}) AS found",
            postgres_protocol::escape::escape_literal(name)
        );
        self.one(action, Right::Connect, &sql, |row| row.get("found")).await
    }
}

impl Walsender {
    /// Creates a physical slot that keeps WAL from now on. Whether there was none of that name.
    pub async fn create_slot(&mut self, name: &SlotName) -> Result<bool, ServerError> {
        let action = "creating a replication slot (CREATE_REPLICATION_SLOT)";
        let sql = match self.major().get() {
            ..15 => format!("CREATE_REPLICATION_SLOT \"{name}\" PHYSICAL RESERVE_WAL"),
            15.. => format!("CREATE_REPLICATION_SLOT \"{name}\" PHYSICAL (RESERVE_WAL)"),
        };
        match session::query(self.connection(), action, Right::Replication, &sql).await {
            Ok(_) => Ok(true),
            Err(error) if error.sqlstate() == Some(DUPLICATE_OBJECT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Where the WAL kept for a slot begins (READ_REPLICATION_SLOT). `None` if there is no such slot, if it keeps no WAL, and before
    /// PostgreSQL 15, which cannot be asked.
    pub async fn slot_position(&mut self, name: &SlotName) -> Result<Option<SlotPosition>, ServerError> {
        let action = "reading a replication slot (READ_REPLICATION_SLOT)";
        if self.major().get() < 15 {
            return Ok(None);
        }
        let sql = format!("READ_REPLICATION_SLOT \"{name}\"");
        let rows = session::query(self.connection(), action, Right::Replication, &sql).await?;
        let answer = |source| ServerError::Answer { action, source };
        let row = rows.one().map_err(answer)?;
        let restart: Option<Lsn> = row.nullable("restart_lsn").map_err(answer)?;
        let timeline: Option<TimelineId> = row.nullable("restart_tli").map_err(answer)?;
        Ok(restart.zip(timeline).map(|(restart, timeline)| SlotPosition { restart, timeline }))
    }

    /// Removes a slot that no session uses.
    pub async fn drop_slot(&mut self, name: &SlotName) -> Result<(), ServerError> {
        let action = "removing a replication slot (DROP_REPLICATION_SLOT)";
        let sql = format!("DROP_REPLICATION_SLOT \"{name}\"");
        session::query(self.connection(), action, Right::Replication, &sql).await.map(drop)
    }
}
