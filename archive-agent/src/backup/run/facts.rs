//! What a manifest will say of a backup, from what the server said when it began and when it stopped.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};
use jiff::Timestamp;
use walpoint_base::{BackupId, Lsn, PgTimestamp, TimelineHistory};
use walpoint_pg::label::{BackupLabel, TablespaceMap};
use walpoint_pg::server::{BackupStart, BackupStop, Identity, Server};
use walpoint_repo::backup::{BackupFacts, HexBytes, Method, Tablespace};

use super::{AGENT, Run, host};
use crate::backup::needed_history::Histories;
use crate::backup::source::local::reader::Shared;
use crate::backup::source::owners::Owners;
use crate::check::LocalSource;
use crate::check::repository::Destination;

/// What the server said about a backup that is complete.
pub(in crate::backup) struct Said<'a> {
    pub(in crate::backup) method: Method,
    pub(in crate::backup) identity: &'a Identity,
    /// When it began and stopped, by the server's clock: commit times are of that clock, too.
    pub(in crate::backup) times: (Timestamp, Timestamp),
    /// The latest time at which it is known that a transaction ended that it holds, by what the server had replayed.
    pub(in crate::backup) replayed: Option<PgTimestamp>,
    /// Whether pages carried checksums all the time.
    pub(in crate::backup) checksums: bool,
    pub(in crate::backup) label: Vec<u8>,
    pub(in crate::backup) tablespace_map: Vec<u8>,
    pub(in crate::backup) stop: Lsn,
    pub(in crate::backup) history: &'a TimelineHistory,
    /// The data directory on the server.
    pub(in crate::backup) pgdata: &'a Path,
    pub(in crate::backup) extra_paths: &'a [PathBuf],
    pub(in crate::backup) owners: &'a Mutex<Owners>,
    pub(in crate::backup) destinations: &'a [Destination],
}

impl Run<'_> {
    pub(super) async fn facts(
        &self,
        examined: &LocalSource,
        shared: &Shared,
        (start, stop, checksums): (&BackupStart, BackupStop, bool),
        (id, started, ended): (BackupId, Timestamp, Timestamp),
        server: &tokio::sync::Mutex<Server>,
    ) -> anyhow::Result<(BackupFacts, TimelineHistory)> {
        let LocalSource { pgdata, identity, destinations, .. } = examined;
        let timeline = self.label(&stop.label, id)?.timeline;
        let history = match start.in_recovery {
            false => TimelineHistory::root(timeline),
            true => {
                let settings = &self.selection.settings;
                let histories = Histories { pgdata: Some(pgdata), settings, server };
                histories.of_the_stop(timeline, stop.lsn, destinations).await?
            }
        };
        let said = Said {
            method: Method::Local,
            identity,
            times: (started, ended),
            replayed: start.replayed,
            checksums,
            label: stop.label,
            tablespace_map: stop.tablespace_map.unwrap_or_default(),
            stop: stop.lsn,
            history: &history,
            pgdata,
            extra_paths: &self.selection.settings.extra_paths,
            owners: &shared.owners,
            destinations,
        };
        Ok((self.said(said)?, history))
    }

    /// PostgreSQL's label, which has to be that of this backup.
    pub(in crate::backup) fn label(&self, label: &[u8], id: BackupId) -> anyhow::Result<BackupLabel> {
        let label = BackupLabel::parse(label).context("PostgreSQL's backup label cannot be used")?;
        if (label.start, label.timeline) != (id.start(), id.timeline()) {
            bail!(
                "the server changed to timeline {} while the backup began (it was {}): run the backup again",
                label.timeline,
                id.timeline()
            );
        }
        Ok(label)
    }

    /// What the manifest will say.
    pub(in crate::backup) fn said(&self, said: Said<'_>) -> anyhow::Result<BackupFacts> {
        let Said { identity, tablespace_map, .. } = said;
        let label = BackupLabel::parse(&said.label).context("PostgreSQL's backup label cannot be used")?;
        let tablespaces =
            TablespaceMap::parse(&tablespace_map, identity.major).context("PostgreSQL's tablespace map")?;
        let tablespaces = tablespaces.tablespaces.into_iter();
        let owners = said.owners.lock().unwrap_or_else(PoisonError::into_inner);
        let path = |path: &Path| HexBytes(path.as_os_str().as_bytes().to_vec());
        Ok(BackupFacts {
            label: self.label.clone(),
            agent: AGENT.to_owned(),
            host: host(),
            started: said.times.0,
            ended: said.times.1,
            method: said.method,
            from_standby: label.from_standby,
            lineage: said.destinations.first().context("no repository is left")?.lineage.id,
            major: identity.major,
            block_size: identity.block_size,
            relation_segment_blocks: identity.relation_segment_blocks,
            wal_segment_size: identity.segment_size.bytes(),
            data_checksums: said.checksums,
            start_timeline: label.timeline,
            start_lsn: label.start,
            stop_timeline: said.history.timeline(),
            stop_lsn: said.stop,
            latest_commit: said.replayed.map(PgTimestamp::to_time),
            backup_label: HexBytes(said.label),
            tablespace_map: HexBytes(tablespace_map),
            pgdata: path(said.pgdata),
            tablespaces: tablespaces.map(|t| Tablespace { oid: t.oid, path: HexBytes(t.path) }).collect(),
            extra_paths: said.extra_paths.iter().map(|extra| path(extra)).collect(),
            users: owners.users(),
            groups: owners.groups(),
        })
    }
}
