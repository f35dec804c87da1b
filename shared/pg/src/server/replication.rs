//! A walsender session and the commands of the replication protocol that answer with rows.

use walpoint_base::timeline::HistoryError;
use walpoint_base::{Lsn, PgMajor, SystemId, TimelineHistory, TimelineId};

use super::error::{ServerError, explain};
use super::role::Right;
use super::session;
use crate::connect::{ConnInfo, Connection, Replication};

/// A session for replication commands.
#[derive(Debug)]
pub struct Walsender {
    connection: Connection,
    major: PgMajor,
}

/// The answer to `IDENTIFY_SYSTEM`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SystemIdentity {
    /// The system identifier.
    pub system_id: SystemId,
    /// The timeline of the WAL that the server writes, or on a standby replays.
    pub timeline: TimelineId,
    /// The end of the WAL that is flushed, or on a standby replayed.
    pub position: Lsn,
    /// The database of the session, if it has one.
    pub database: Option<String>,
}

impl Walsender {
    /// Connects as a physical replication client, or with a database if `info` says so.
    pub async fn connect(info: &ConnInfo) -> Result<Self, ServerError> {
        let info = match info.replication() {
            Replication::Off => info.clone().with_replication(Replication::Physical),
            Replication::Physical | Replication::Database => info.clone(),
        };
        let opened = Connection::open(&info).await;
        let connection = opened.map_err(|source| {
            explain("connecting for replication", Right::Replication, info.user(), info.database(), source)
        })?;
        let major = session::major(&connection)?;
        Ok(Self { connection, major })
    }

    /// The major version.
    pub fn major(&self) -> PgMajor {
        self.major
    }

    /// The session, for other commands.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// The session itself, for a command that takes all of it.
    pub fn into_connection(self) -> Connection {
        self.connection
    }

    /// `IDENTIFY_SYSTEM`.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, ServerError> {
        let action = "asking which system this is (IDENTIFY_SYSTEM)";
        let rows =
            session::query(&mut self.connection, action, Right::Replication, "IDENTIFY_SYSTEM").await?;
        let read = rows.one().and_then(|row| {
            Ok(SystemIdentity {
                system_id: row.get("systemid")?,
                timeline: row.get("timeline")?,
                position: row.get("xlogpos")?,
                database: row.nullable("dbname")?,
            })
        });
        read.map_err(|source| ServerError::Answer { action, source })
    }

    /// The content of a timeline's history file, as the server has it, and what it says. The first timeline has none:
    /// `None` without asking.
    pub async fn timeline_history(
        &mut self,
        timeline: TimelineId,
    ) -> Result<Option<(Vec<u8>, TimelineHistory)>, ServerError> {
        let action = "fetching a timeline's history (TIMELINE_HISTORY)";
        if timeline == TimelineId::FIRST {
            return Ok(None);
        }
        let sql = format!("TIMELINE_HISTORY {}", timeline.get());
        let rows = session::query(&mut self.connection, action, Right::Replication, &sql).await?;
        let answer = |source| ServerError::Answer { action, source };
        let row = rows.one().map_err(answer)?;
        let content = row.bytes("content").map_err(answer)?.unwrap_or_default().to_vec();
        let state = |error: HistoryError| ServerError::State { action, why: error.to_string() };
        let history = TimelineHistory::parse(timeline, &content).map_err(state)?;
        Ok(Some((content, history)))
    }

    /// Ends the session.
    pub async fn close(self) {
        self.connection.close().await;
    }
}
