//! Calls about WAL: restore points, segment switches, the archiver's counters, the progress of recovery.

use walpoint_base::{Lsn, PgTimestamp};

use super::error::ServerError;
use super::role::Right;
use super::session::Server;

/// PostgreSQL's limit for the name of a restore point, in bytes (MAXFNAMELEN less its end).
const MAX_RESTORE_POINT_NAME: usize = 63;

/// `pg_stat_archiver`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ArchiverStats {
    /// Files archived since the counters were reset.
    pub archived_count: u64,
    /// The last file archived.
    pub last_archived_wal: Option<String>,
    /// When.
    pub last_archived_time: Option<PgTimestamp>,
    /// Failed attempts since the counters were reset. Commands that ended above 125 or by a signal are not counted.
    pub failed_count: u64,
    /// The file of the last failed attempt.
    pub last_failed_wal: Option<String>,
    /// When.
    pub last_failed_time: Option<PgTimestamp>,
    /// When the counters were reset.
    pub stats_reset: Option<PgTimestamp>,
}

impl ArchiverStats {
    /// Whether the latest attempt failed: archiving does not go on by itself.
    pub fn is_failing(&self) -> bool {
        self.last_failed_time
            .is_some_and(|failed| self.last_archived_time.is_none_or(|archived| failed > archived))
    }
}

/// How far recovery is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplayState {
    /// Whether the server is in recovery at all; the rest is what it left otherwise.
    pub in_recovery: bool,
    /// The end of the WAL that was received by streaming and flushed.
    pub received: Option<Lsn>,
    /// The end of the WAL that was replayed.
    pub replayed: Option<Lsn>,
    /// The time of the last transaction replayed.
    pub last_commit: Option<PgTimestamp>,
    /// Whether replay is paused.
    pub paused: bool,
}

/// A server that receives WAL from this one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Receiver {
    /// What it calls itself; `None` where the role may not see it.
    pub name: Option<String>,
    /// Its address; `None` over a local socket, or where the role may not see it.
    pub address: Option<String>,
    /// Since when it is connected; `None` where the role may not see it.
    pub since: Option<PgTimestamp>,
}

/// A column of microseconds since the Unix epoch, or NULL.
macro_rules! micros {
    ($expression:literal) => {
        concat!(
            "(pg_catalog.date_part('epoch', ",
            $expression,
            ") OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8"
        )
    };
}

impl Server {
    /// What the server's clock says.
    pub async fn clock(&mut self) -> Result<PgTimestamp, ServerError> {
        let sql = "SELECT pg_catalog.round(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) \
            OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8 AS micros";
        self.one("reading the server's clock", Right::Connect, sql, |row| row.get("micros"))
            .await
            .map(PgTimestamp::from_unix_micros)
    }

    /// The encoding of the database that this session is in, such as `UTF8`.
    pub async fn encoding(&mut self) -> Result<String, ServerError> {
        let sql = "SELECT pg_catalog.current_setting('server_encoding') AS encoding";
        self.one("reading the encoding of the database", Right::Connect, sql, |row| row.get("encoding")).await
    }

    /// Creates a named restore point; its position. Not in recovery.
    pub async fn create_restore_point(&mut self, name: &str) -> Result<Lsn, ServerError> {
        let action = "creating a restore point";
        if name.is_empty() || name.len() > MAX_RESTORE_POINT_NAME {
            let why = format!(
                "its name must have 1 to {MAX_RESTORE_POINT_NAME} bytes, and {name:?} has {}",
                name.len()
            );
            return Err(ServerError::State { action, why });
        }
        let name = postgres_protocol::escape::escape_literal(name);
        let sql = format!("SELECT pg_catalog.pg_create_restore_point({name}) AS lsn");
        self.one(action, Right::CreateRestorePoint, &sql, |row| row.get("lsn")).await
    }

    /// Switches to a new segment, unless the present one is empty. The end of the switched one's WAL, exclusive. Not in
    /// recovery.
    pub async fn switch_wal(&mut self) -> Result<Lsn, ServerError> {
        let sql = "SELECT pg_catalog.pg_switch_wal() AS lsn";
        self.one("switching to a new WAL segment", Right::SwitchWal, sql, |row| row.get("lsn")).await
    }

    /// The archiver's counters.
    pub async fn archiver_stats(&mut self) -> Result<ArchiverStats, ServerError> {
        const SQL: &str = concat!(
            "SELECT archived_count, last_archived_wal, failed_count, last_failed_wal, ",
            micros!("last_archived_time"),
            " AS archived_micros, ",
            micros!("last_failed_time"),
            " AS failed_micros, ",
            micros!("stats_reset"),
            " AS reset_micros FROM pg_catalog.pg_stat_archiver"
        );
        self.one("reading pg_stat_archiver", Right::Connect, SQL, |row| {
            let time = |column| Ok(row.nullable(column)?.map(PgTimestamp::from_unix_micros));
            Ok(ArchiverStats {
                archived_count: row.get("archived_count")?,
                last_archived_wal: row.nullable("last_archived_wal")?,
                last_archived_time: time("archived_micros")?,
                failed_count: row.get("failed_count")?,
                last_failed_wal: row.nullable("last_failed_wal")?,
                last_failed_time: time("failed_micros")?,
                stats_reset: time("reset_micros")?,
            })
        })
        .await
    }

    /// The servers that receive WAL, but for base backups under way, by process.
    pub async fn receivers(&mut self) -> Result<Vec<Receiver>, ServerError> {
        const SQL: &str = concat!(
            "SELECT application_name, pg_catalog.host(client_addr) AS address, ",
            micros!("backend_start"),
            " AS since_micros FROM pg_catalog.pg_stat_replication \
             WHERE state IS NULL OR state OPERATOR(pg_catalog.<>) 'backup' ORDER BY pid"
        );
        let action = "reading pg_stat_replication";
        let mut found = Vec::new();
        for row in self.query(action, Right::Connect, SQL).await? {
            let answer = |source| ServerError::Answer { action, source };
            found.push(Receiver {
                name: row.nullable("application_name").map_err(answer)?,
                address: row.nullable("address").map_err(answer)?,
                since: row.nullable("since_micros").map_err(answer)?.map(PgTimestamp::from_unix_micros),
            });
        }
        Ok(found)
    }

    /// A time before which transactions ended that the server got by recovery, by the clock of the one that wrote them: that of the
    /// last transaction replayed, and on a standby that of the checkpoint of its last restart point, which is also known where it
    /// has replayed none since it was started. `None`: nothing is known of any.
    pub async fn replayed_until(&mut self) -> Result<Option<PgTimestamp>, ServerError> {
        const SQL: &str = concat!(
            "SELECT ",
            micros!(
                "greatest(pg_catalog.pg_last_xact_replay_timestamp(), \
                 CASE WHEN pg_catalog.pg_is_in_recovery() THEN c.checkpoint_time END)"
            ),
            " AS micros FROM pg_catalog.pg_control_checkpoint() c"
        );
        let micros =
            self.one("reading what was replayed", Right::Connect, SQL, |row| row.nullable("micros")).await?;
        Ok(micros.map(PgTimestamp::from_unix_micros))
    }

    /// How far recovery is.
    pub async fn replay_state(&mut self) -> Result<ReplayState, ServerError> {
        const SQL: &str = concat!(
            "SELECT pg_catalog.pg_is_in_recovery() AS in_recovery, pg_catalog.pg_last_wal_receive_lsn() AS received, \
             pg_catalog.pg_last_wal_replay_lsn() AS replayed, \
             CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_is_wal_replay_paused() ELSE false END AS paused, ",
            micros!("pg_catalog.pg_last_xact_replay_timestamp()"),
            " AS commit_micros"
        );
        self.one("reading how far recovery is", Right::Connect, SQL, |row| {
            Ok(ReplayState {
                in_recovery: row.get("in_recovery")?,
                received: row.nullable("received")?,
                replayed: row.nullable("replayed")?,
                last_commit: row.nullable("commit_micros")?.map(PgTimestamp::from_unix_micros),
                paused: row.get("paused")?,
            })
        })
        .await
    }
}
