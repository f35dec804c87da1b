//! Base backups by the low-level interface: start, copy, stop, in one session.
//!
//! The server keeps a backup in progress for exactly as long as the session lives. Dropping [`BackupSession`], a crash
//! of this program or a broken connection therefore ends the backup on the server without a trace; what was copied
//! until then is no backup. Versions 13 and 14 have other names for the two functions than later ones.

use std::time::Duration;

use walpoint_base::{Lsn, PgMajor, PgTimestamp, TimelineId};

use super::error::ServerError;
use super::role::Right;
use super::session::Server;
use super::tablespaces::TablespaceDirectory;
use crate::connect::Row;

/// How long a start without `fast` may wait for the next checkpoint, and one with it for its own.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(2 * 3600);

/// `pg_backup_stop` without waiting for the archive writes and flushes one record and one file.
const STOP_LIMIT: Duration = Duration::from_secs(600);

/// PostgreSQL's limit for a label, in bytes (MAXPGPATH).
const MAX_LABEL: usize = 1024;

/// A backup in progress.
#[derive(Debug)]
pub struct BackupSession {
    server: Server,
    start: BackupStart,
}

/// How a backup began.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupStart {
    /// Where recovery from the backup will start (the redo position).
    pub lsn: Lsn,
    /// The timeline of the checkpoint it starts from. On a standby that follows a promotion just then, the label that
    /// [`BackupSession::stop`] gives is what counts.
    pub timeline: TimelineId,
    /// Whether the server was in recovery. Then no segment is switched at the end, and pg_control must be copied last.
    pub in_recovery: bool,
    /// What [`Server::replayed_until`] said then: the backup holds it.
    pub replayed: Option<PgTimestamp>,
    /// The server process of the session.
    pub process: i32,
}

/// What a finished backup needs besides the files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupStop {
    /// The end of the WAL that the backup needs, exclusive.
    pub lsn: Lsn,
    /// The content of `backup_label`, to be stored byte by byte.
    pub label: Vec<u8>,
    /// The content of `tablespace_map`, likewise; `None` if no such file must be written.
    pub tablespace_map: Option<Vec<u8>>,
    /// The server process that ended it.
    pub process: i32,
}

/// The checkpoint that a server made last, as its `pg_control` has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LastCheckpoint {
    /// Where its record starts.
    pub lsn: Lsn,
    /// Where recovery from it starts.
    pub redo: Lsn,
    /// Its timeline.
    pub timeline: TimelineId,
    /// When it was made, in seconds since 1970-01-01 UTC.
    pub time: i64,
}

impl Server {
    /// The checkpoint that the server made last; on a standby the one that its last restart point was made from.
    pub async fn last_checkpoint(&mut self) -> Result<LastCheckpoint, ServerError> {
        let sql = "SELECT checkpoint_lsn, redo_lsn, timeline_id, \
            pg_catalog.floor(pg_catalog.date_part('epoch', checkpoint_time))::pg_catalog.int8 AS made \
            FROM pg_catalog.pg_control_checkpoint()";
        self.one("asking for the last checkpoint", Right::Connect, sql, |row| {
            Ok(LastCheckpoint {
                lsn: row.get("checkpoint_lsn")?,
                redo: row.get("redo_lsn")?,
                timeline: row.get("timeline_id")?,
                time: row.get("made")?,
            })
        })
        .await
    }
}

impl BackupSession {
    /// Starts a backup in a session of its own. With `fast` the server does its checkpoint at once; without, it takes
    /// its time. An error ends the session; nothing stays behind on the server.
    pub async fn start(mut server: Server, label: &str, fast: bool) -> Result<Self, ServerError> {
        let action = "starting a backup";
        if label.len() > MAX_LABEL || label.contains(['\n', '\r', '\0']) {
            let why = format!("the label must be one line of at most {MAX_LABEL} bytes");
            return Err(ServerError::State { action, why });
        }
        let major = server.major;
        // A backup takes hours of silence in this session, and what the server sends is copied byte by byte: paths in
        // the tablespace map may be in any encoding.
        let idle = if major.get() >= 14 { "SET idle_session_timeout = 0; " } else { "" };
        let prepare = format!(
            "{idle}SET statement_timeout = 0; SET lock_timeout = 0; SET client_encoding = 'SQL_ASCII'"
        );
        server.query(action, Right::Connect, &prepare).await?;
        server.connection.set_limit(Some(CHECKPOINT_LIMIT));
        let literal = postgres_protocol::escape::escape_literal(label);
        let (name, exclusive) =
            if major.get() < 15 { ("pg_start_backup", ", false") } else { ("pg_backup_start", "") };
        let sql = format!(
            "SELECT pg_catalog.{name}({}, {fast}{exclusive}) AS lsn, pg_catalog.pg_backend_pid() AS process",
            literal.trim()
        );
        let read = |row: &Row| Ok((row.get("lsn")?, row.get("process")?));
        let (lsn, process) = server.one(action, Right::StartBackup(major), &sql, read).await?;
        let sql = "SELECT timeline_id, pg_catalog.pg_is_in_recovery() AS in_recovery \
            FROM pg_catalog.pg_control_checkpoint()";
        let read = server
            .one(action, Right::Connect, sql, |row| Ok((row.get("timeline_id")?, row.get("in_recovery")?)));
        let (timeline, in_recovery) = read.await?;
        let replayed = server.replayed_until().await?;
        server.connection.set_limit(Some(STOP_LIMIT));
        Ok(Self { server, start: BackupStart { lsn, timeline, in_recovery, replayed, process } })
    }

    /// How it began.
    pub fn started(&self) -> &BackupStart {
        &self.start
    }

    /// The server's major version.
    pub fn major(&self) -> PgMajor {
        self.server.major
    }

    /// Whether the session still lives, and with it the backup. To be called now and then during a long copy, so that
    /// a lost connection is noticed before everything is copied.
    pub async fn check(&mut self) -> Result<(), ServerError> {
        self.server.query("keeping the backup's session", Right::Connect, "SELECT 1").await.map(drop)
    }

    /// Where WAL ends now, as [`Server::position`].
    pub async fn position(&mut self) -> Result<Option<Lsn>, ServerError> {
        self.server.position().await
    }

    /// Where the server keeps files, as [`Server::places`].
    pub async fn places(&mut self) -> Result<Vec<TablespaceDirectory>, ServerError> {
        self.server.places().await
    }

    /// Ends the backup without waiting for the archive: whoever stores it waits for the WAL up to [`BackupStop::lsn`].
    /// On a primary the segment that holds it is switched. An error means that what was copied is no backup. Gives the
    /// session back, for what else is asked of this very server.
    pub async fn stop(mut self) -> Result<(BackupStop, Server), ServerError> {
        let action = "ending the backup";
        let major = self.server.major;
        let call = if major.get() < 15 { "pg_stop_backup(false, false)" } else { "pg_backup_stop(false)" };
        let sql = format!(
            "SELECT lsn, labelfile, spcmapfile, pg_catalog.pg_backend_pid() AS process FROM pg_catalog.{call}"
        );
        let read = self.server.one(action, Right::StopBackup(major), &sql, |row| {
            let content =
                |column| Ok(row.bytes(column)?.filter(|bytes| !bytes.is_empty()).map(<[u8]>::to_vec));
            Ok((row.get("lsn")?, content("labelfile")?, content("spcmapfile")?, row.get("process")?))
        });
        let (lsn, label, tablespace_map, process) = read.await?;
        let label = label
            .ok_or_else(|| ServerError::State { action, why: "the server gave no backup label".into() })?;
        Ok((BackupStop { lsn, label, tablespace_map, process }, self.server))
    }
}
