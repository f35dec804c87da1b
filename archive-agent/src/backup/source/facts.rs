//! What a manifest will say of a backup, from what the server said when it began and when it stopped.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};
use jiff::Timestamp;
use walpoint_base::{Lsn, PgTimestamp, TimelineHistory};
use walpoint_pg::label::{BackupLabel, TablespaceMap};
use walpoint_pg::server::ServerIdentity;
use walpoint_repo::backup::{BackupDescription, BackupTablespace, HexBytes, Method};

use super::owners::SeenOwners;
use crate::backup::begun::Begun;
use crate::backup::request::{AGENT, BackupRequest, host};
use crate::check::repository::Destination;

/// What the server said about a backup that is complete.
pub(crate) struct ServerFacts<'a> {
    pub(crate) method: Method,
    pub(crate) identity: &'a ServerIdentity,
    /// How it began, by the server's clock as its end: commit times are of that clock, too.
    pub(crate) begun: &'a Begun,
    /// When it stopped.
    pub(crate) ended: Timestamp,
    /// The latest time at which it is known that a transaction ended that it holds, by what the server had replayed.
    pub(crate) replayed: Option<PgTimestamp>,
    /// Whether pages carried checksums all the time.
    pub(crate) checksums: bool,
    pub(crate) label: Vec<u8>,
    pub(crate) tablespace_map: Vec<u8>,
    pub(crate) stop: Lsn,
    pub(crate) history: &'a TimelineHistory,
    /// The data directory on the server.
    pub(crate) pgdata: &'a Path,
    pub(crate) extra_paths: &'a [PathBuf],
    pub(crate) owners: &'a Mutex<SeenOwners>,
    pub(crate) destinations: &'a [Destination],
}

impl ServerFacts<'_> {
    /// What the manifest will say; the lineage is that of one of the repositories.
    pub(crate) fn of_manifest(self, request: &BackupRequest<'_>) -> anyhow::Result<BackupDescription> {
        let Self { identity, tablespace_map, .. } = self;
        let label = BackupLabel::parse(&self.label).context("PostgreSQL's backup label cannot be used")?;
        let tablespaces =
            TablespaceMap::parse(&tablespace_map, identity.major).context("PostgreSQL's tablespace map")?;
        let tablespaces = tablespaces.tablespaces.into_iter();
        let owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        let path = |path: &Path| HexBytes(path.as_os_str().as_bytes().to_vec());
        Ok(BackupDescription {
            label: request.label.clone(),
            agent: AGENT.to_owned(),
            host: host(),
            started: self.begun.started,
            ended: self.ended,
            method: self.method,
            from_standby: label.from_standby,
            lineage: self.destinations.first().context("no repository is left")?.lineage.id,
            major: identity.major,
            block_size: identity.block_size,
            relation_segment_blocks: identity.relation_segment_blocks,
            wal_segment_size: identity.segment_size.bytes(),
            data_checksums: self.checksums,
            start_timeline: label.timeline,
            start_lsn: label.start,
            stop_timeline: self.history.timeline(),
            stop_lsn: self.stop,
            latest_commit: self.replayed.map(PgTimestamp::to_time),
            backup_label: HexBytes(self.label),
            tablespace_map: HexBytes(tablespace_map),
            pgdata: path(self.pgdata),
            tablespaces: tablespaces
                .map(|t| BackupTablespace { oid: t.oid, path: HexBytes(t.path) })
                .collect(),
            extra_paths: self.extra_paths.iter().map(|extra| path(extra)).collect(),
            users: owners.users(),
            groups: owners.groups(),
        })
    }
}

/// PostgreSQL's label, which has to be that of this backup.
pub(crate) fn label(label: &[u8], begun: &Begun) -> anyhow::Result<BackupLabel> {
    let label = BackupLabel::parse(label).context("PostgreSQL's backup label cannot be used")?;
    let id = begun.id;
    if (label.start, label.timeline) != (id.start(), id.timeline()) {
        bail!(
            "the server changed to timeline {} while the backup began (it was {})\nHINT: Run the backup again.",
            label.timeline,
            id.timeline()
        );
    }
    Ok(label)
}
