//! A walsender session and the commands of the replication protocol that answer with rows.

use std::time::Duration;

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

    /// After how long a silent client is disconnected (`wal_sender_timeout`, as it is for this session); `None` if never.
    pub async fn sender_timeout(&mut self) -> Result<Option<Duration>, ServerError> {
        let action = "asking how long a client may be silent (SHOW wal_sender_timeout)";
        let sql = "SHOW wal_sender_timeout";
        let rows = session::query(&mut self.connection, action, Right::Replication, sql).await?;
        let text: String = rows
            .one()
            .and_then(|row| row.get("wal_sender_timeout"))
            .map_err(|source| ServerError::Answer { action, source })?;
        let why = || ServerError::State { action, why: format!("the answer is \"{text}\", not a time") };
        parse_span(&text).map(|span| Some(span).filter(|span| !span.is_zero())).ok_or_else(why)
    }

    /// Ends the session.
    pub async fn close(self) {
        self.connection.close().await;
    }
}

/// Reads a time as PostgreSQL shows a setting of milliseconds: in the largest unit of which it is a multiple.
fn parse_span(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at_checked(digits)?;
    let milliseconds: u64 = match unit {
        "" | "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(milliseconds).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_shown() {
        for (text, seconds) in
            [("0", 0), ("5s", 5), ("1min", 60), ("2h", 7200), ("1d", 86_400), ("3000ms", 3)]
        {
            assert_eq!(parse_span(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "s", "5 s", "-1", "5us", "99999999999999999999s"] {
            assert_eq!(parse_span(text), None, "{text}");
        }
    }
}
