//! Which cluster a server runs, and what about it never or rarely changes.

use std::path::PathBuf;

use walpoint_base::{Lsn, PgMajor, SegmentSize, SystemId, TimelineId};

use super::error::ServerError;
use super::role::Right;
use super::session::Server;
use crate::checksum::Checksums;
use crate::connect::RowError;

/// A cluster as its server describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerIdentity {
    /// What the server calls its version, such as `17.5 (Debian 17.5-1)`.
    pub version: String,
    /// The major version.
    pub major: PgMajor,
    /// The system identifier.
    pub system_id: SystemId,
    /// The data directory on the server's machine, as the server was told; may hold symbolic links.
    pub data_directory: PathBuf,
    /// Whether the server is in recovery: a standby, or a restored cluster that has not ended recovery.
    pub in_recovery: bool,
    /// The timeline: of new WAL on a primary; in recovery that of the latest restart point or WAL replayed, which may
    /// lag behind.
    pub timeline: TimelineId,
    /// Bytes of a WAL segment.
    pub segment_size: SegmentSize,
    /// Bytes of a WAL page.
    pub wal_block_size: u32,
    /// Bytes of a page of a relation.
    pub block_size: u32,
    /// Pages in one file of a relation.
    pub relation_segment_blocks: u32,
    /// Whether pages carry checksums, at present.
    pub checksums: Checksums,
}

/// The settings that decide whether WAL is archived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ArchiveSettings {
    /// `minimal`, `replica` or `logical`.
    pub wal_level: String,
    /// `off`, `on` or `always`.
    pub archive_mode: String,
    /// As configured; empty if none.
    pub archive_command: String,
    /// As configured; empty if none, and before version 15.
    pub archive_library: String,
    /// Seconds after which a segment is switched; 0 for never.
    pub archive_timeout: u32,
    /// As configured; what a restored server would call.
    pub restore_command: String,
}

/// Where a server's configuration is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigFiles {
    /// `postgresql.conf`.
    pub config_file: Option<PathBuf>,
    /// `pg_hba.conf`.
    pub hba_file: Option<PathBuf>,
    /// `pg_ident.conf`.
    pub ident_file: Option<PathBuf>,
    /// Every file that is included by them, as far as it holds a setting in force; needs a superuser or
    /// `pg_read_all_settings`.
    pub sources: Vec<PathBuf>,
}

// Of checksums `pg_control_init()` knows only, from 19 on, what `initdb` chose.
const IDENTITY: &str = "\
SELECT s.system_identifier, i.bytes_per_wal_segment, i.wal_block_size, i.database_block_size, i.blocks_per_segment, \
pg_catalog.current_setting('data_checksums') AS data_checksums, pg_catalog.pg_is_in_recovery() AS in_recovery, \
pg_catalog.current_setting('data_directory') AS data_directory, \
greatest(c.timeline_id, r.min_recovery_end_timeline) AS control_timeline, \
CASE WHEN NOT pg_catalog.pg_is_in_recovery() \
THEN pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()) END AS walfile \
FROM pg_catalog.pg_control_system() s, pg_catalog.pg_control_init() i, pg_catalog.pg_control_checkpoint() c, \
pg_catalog.pg_control_recovery() r";

impl Server {
    /// Which cluster this is. Needs `pg_read_all_settings`, for the data directory.
    pub async fn identity(&mut self) -> Result<ServerIdentity, ServerError> {
        let action = "reading the cluster's identity";
        let version = self.connection.parameter("server_version").unwrap_or_default().to_owned();
        let major = self.major;
        let rows = self.query(action, Right::ReadSettings, IDENTITY).await?;
        let answer = |source| ServerError::Answer { action, source };
        let row = rows.one().map_err(answer)?;
        let state = |why: &str| ServerError::State { action, why: why.to_owned() };
        let segment_size = SegmentSize::new(row.get("bytes_per_wal_segment").map_err(answer)?);
        let data_directory = row.path("data_directory").map_err(answer)?;
        let walfile: Option<String> = row.nullable("walfile").map_err(answer)?;
        // Right after a promotion pg_control still names the old timeline; the WAL being written does not.
        let current =
            walfile.and_then(|name| u32::from_str_radix(name.get(..8)?, 16).ok()).and_then(TimelineId::new);
        let read = || -> Result<_, RowError> {
            let timeline = match current {
                Some(timeline) => timeline,
                None => row.get("control_timeline")?,
            };
            Ok(ServerIdentity {
                version,
                major,
                // PostgreSQL shows it as a signed number.
                system_id: SystemId(row.get::<i64>("system_identifier")?.cast_unsigned()),
                data_directory: data_directory.unwrap_or_default(),
                in_recovery: row.get("in_recovery")?,
                timeline,
                segment_size: segment_size.unwrap_or(SegmentSize::DEFAULT),
                wal_block_size: row.get("wal_block_size")?,
                block_size: row.get("database_block_size")?,
                relation_segment_blocks: row.get("blocks_per_segment")?,
                checksums: Checksums::from_setting(&row.get::<String>("data_checksums")?),
            })
        };
        if segment_size.is_none() {
            return Err(state("the server reports a WAL segment size that no cluster can have"));
        }
        read().map_err(answer)
    }

    /// The settings of archiving. `restore_command` needs `pg_read_all_settings`.
    pub async fn archive_settings(&mut self) -> Result<ArchiveSettings, ServerError> {
        let sql = "SELECT pg_catalog.current_setting('wal_level') AS wal_level, \
            pg_catalog.current_setting('archive_mode') AS archive_mode, \
            pg_catalog.current_setting('archive_command') AS archive_command, \
            pg_catalog.current_setting('archive_library', true) AS archive_library, \
            (SELECT setting FROM pg_catalog.pg_settings WHERE name OPERATOR(pg_catalog.=) 'archive_timeout') AS archive_timeout, \
            pg_catalog.current_setting('restore_command') AS restore_command";
        self.one("reading the settings of archiving", Right::ReadSettings, sql, |row| {
            Ok(ArchiveSettings {
                wal_level: row.get("wal_level")?,
                archive_mode: row.get("archive_mode")?,
                archive_command: disabled(row.get("archive_command")?),
                archive_library: row.nullable("archive_library")?.unwrap_or_default(),
                archive_timeout: row.get("archive_timeout")?,
                restore_command: row.get("restore_command")?,
            })
        })
        .await
    }

    /// Whether pages carry checksums now.
    pub async fn checksums(&mut self) -> Result<Checksums, ServerError> {
        let value = self.setting("data_checksums").await?;
        Ok(Checksums::from_setting(value.as_deref().unwrap_or_default()))
    }

    /// One setting as `SHOW` prints it; `None` if this version has none of that name.
    pub async fn setting(&mut self, name: &str) -> Result<Option<String>, ServerError> {
        let sql = format!(
            "SELECT pg_catalog.current_setting({}, true) AS value",
            postgres_protocol::escape::escape_literal(name)
        );
        self.one("reading a setting", Right::ReadSettings, &sql, |row| row.nullable("value")).await
    }

    /// Where the configuration is; Debian keeps it outside the data directory. Needs `pg_read_all_settings`.
    pub async fn config_files(&mut self) -> Result<ConfigFiles, ServerError> {
        let action = "reading where the configuration is";
        let sql = "SELECT pg_catalog.current_setting('config_file') AS config_file, \
            pg_catalog.current_setting('hba_file') AS hba_file, pg_catalog.current_setting('ident_file') AS ident_file";
        let mut files = self
            .one(action, Right::ReadSettings, sql, |row| {
                Ok(ConfigFiles {
                    config_file: row.path("config_file")?,
                    hba_file: row.path("hba_file")?,
                    ident_file: row.path("ident_file")?,
                    sources: Vec::new(),
                })
            })
            .await?;
        let sql =
            "SELECT DISTINCT sourcefile FROM pg_catalog.pg_settings WHERE sourcefile IS NOT NULL ORDER BY 1";
        for row in self.query(action, Right::ReadSettings, sql).await? {
            let path = row.path("sourcefile").map_err(|source| ServerError::Answer { action, source })?;
            files.sources.extend(path);
        }
        Ok(files)
    }

    /// Where WAL ends now: the insert position on a primary, what is replayed in recovery (`None` before anything is).
    pub async fn position(&mut self) -> Result<Option<Lsn>, ServerError> {
        let sql = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
            ELSE pg_catalog.pg_current_wal_insert_lsn() END AS position";
        self.one("reading the WAL position", Right::Connect, sql, |row| row.nullable("position")).await
    }
}

/// PostgreSQL shows an archive_command without effect as `(disabled)`.
fn disabled(command: String) -> String {
    if command == "(disabled)" { String::new() } else { command }
}
