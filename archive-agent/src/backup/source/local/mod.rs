//! The data directory as the source of a backup's files, between `pg_backup_start` and `pg_backup_stop`.
//!
//! | module | owns |
//! |---|---|
//! | [`copy`] | the threads between start and stop |
//! | [`reader`] | one of them: a file into every replica |
//! | [`holes`] | what of sparse files is not read |
//!
//! What always holds: the files are proven to be the server's before the start and after the stop, all in one session. A crash
//! ends the session, and with it the backup on the server.

mod copy;
mod holes;
mod reader;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use jiff::Timestamp;
use walpoint_base::{TimelineHistory, TimelineId};
use walpoint_pg::control::{CONTROL_FILE, ControlFile};
use walpoint_pg::label::TablespaceMap;
use walpoint_pg::server::{BackupSession, BackupStart, BackupStop, Server, TablespaceDirectory};
use walpoint_repo::backup::{BackupWriter, Method, TablePath};
use walpoint_runtime::progress::ByteProgress;

use self::copy::{CopyThreads, positions};
use super::facts::{ServerFacts, label};
use super::pages::{InForce, PageCheck};
use super::shared::Shared;
use super::{BackupOrigin, BackupSource, Copied, Started};
use crate::backup::begun::Begun;
use crate::backup::memory::MemoryBudget;
use crate::backup::replica::{Replicas, Streams};
use crate::backup::request::BackupRequest;
use crate::check::repository::Destination;
use crate::check::{Examined, LocalSource, source, visible, whose_files};
use crate::walk::Entered;
use crate::walk::directory::SeenEntry;

/// A backup in progress whose files are read here.
pub(crate) struct LocalBackup {
    session: BackupSession,
    source: LocalSource,
    begun: Begun,
}

/// What the server said when the backup stopped.
struct Stopped {
    stop: BackupStop,
    ended: Timestamp,
    server: Server,
}

impl BackupSource for Examined {
    type Started = LocalBackup;

    fn destinations(&self) -> &[Destination] {
        &self.source.destinations
    }

    async fn start(
        self,
        request: &BackupRequest<'_>,
        _copies: &[Destination],
    ) -> anyhow::Result<LocalBackup> {
        let waiting = ByteProgress::waiting("waiting for PostgreSQL's checkpoint", request.show_progress);
        let Examined { mut server, source } = self;
        // All that is asked of the server from here on is asked in this session: another connection may lead elsewhere.
        let proven = request.unless_stopped(whose_files::prove(&mut server, &source.pgdata)).await?;
        let started = server.clock().await?.to_time();
        let session = BackupSession::start(server, request.server_label(), request.fast);
        let session = request.unless_stopped(session).await;
        waiting.end();
        let session = session?;
        let BackupStart { lsn, timeline, process, .. } = *session.started();
        whose_files::same_process(proven, process)?;
        let begun = Begun::new(started, timeline, lsn, source.control.block_size, source.measure.bytes);
        Ok(LocalBackup { session, source, begun })
    }
}

impl Started for LocalBackup {
    fn begun(&self) -> &Begun {
        &self.begun
    }

    /// Copies everything, `pg_control` last, and stops the backup.
    async fn copy(
        self,
        request: &BackupRequest<'_>,
        replicas: &Replicas<BackupWriter>,
    ) -> anyhow::Result<Copied> {
        let Self { mut session, source, begun } = self;
        let start = session.started().clone();
        let places = request.unless_stopped(session.places()).await?;
        let (newest, positions) = positions();
        let pages = PageCheck::of(&source.identity, start.lsn, newest, in_force(&source.pgdata));
        let progress = ByteProgress::bytes("copying", begun.bytes, request.show_progress);
        let shared = Shared::new(begun.block_size, pages, request.stop.child_token(), progress.clone())?;
        let shared = Arc::new(shared);
        let readers = MemoryBudget::of(request.settings(), replicas.len()).readers;
        let threads = CopyThreads { roots: &source.roots, shared: &shared, replicas, readers };
        let entered = threads.copy(&mut session, positions).await;
        progress.end();
        let entered = entered?;
        // After everything else: on a standby it says how far recovery has to go before the copy is consistent.
        let (pgdata, streams) = (source.pgdata.clone(), replicas.streams());
        let control = tokio::task::spawn_blocking(move || copy_control(&pgdata, streams)).await??;
        if control.system_id != source.control.system_id {
            bail!("{} became another cluster while it was copied", source.pgdata.display());
        }
        let stopped = stop(session, request, &source, &places, &entered).await?;
        let Stopped { stop, ended, server } = stopped;
        let LocalSource { pgdata, identity, destinations, .. } = source;
        let origin = BackupOrigin::new(server, destinations, Some(pgdata.clone()));
        let map = stop.tablespace_map.as_deref().unwrap_or_default();
        let map = TablespaceMap::parse(map, identity.major).context("PostgreSQL's tablespace map")?;
        entered.require_mapped(&map)?;
        let timeline = label(&stop.label, &begun)?.timeline;
        let history = history(&start, &stop, timeline, &origin, request).await?;
        let facts = ServerFacts {
            method: Method::Local,
            identity: &identity,
            begun: &begun,
            ended,
            replayed: start.replayed,
            checksums: shared.had_checksums(&control),
            label: stop.label,
            tablespace_map: stop.tablespace_map.unwrap_or_default(),
            stop: stop.lsn,
            history: &history,
            pgdata: &pgdata,
            extra_paths: &request.settings().extra_paths,
            owners: &shared.owners,
            destinations: &origin.destinations,
        };
        let facts = facts.of_manifest(request)?;
        Ok(Copied { facts, history, control, origin, shared })
    }
}

/// Stops the backup, and proves that what was read were the server's files, and all of them. `places` were there when it
/// began, `entered` is what the walk met.
async fn stop(
    session: BackupSession,
    request: &BackupRequest<'_>,
    source: &LocalSource,
    places: &[TablespaceDirectory],
    entered: &Entered,
) -> anyhow::Result<Stopped> {
    let start = session.started().process;
    let (stop, mut server) = request.unless_stopped(session.stop()).await?;
    let ended = server.clock().await?.to_time();
    // Once more: another directory may have been mounted there meanwhile.
    let proven = request.unless_stopped(whose_files::prove(&mut server, &source.pgdata)).await?;
    request.unless_stopped(visible::all_seen(&mut server, &source.roots, places, entered)).await?;
    whose_files::same_process(start, stop.process)?;
    whose_files::same_process(stop.process, proven)?;
    Ok(Stopped { stop, ended, server })
}

/// The history of the timeline on which the backup stopped; it began on `timeline`.
async fn history(
    start: &BackupStart,
    stop: &BackupStop,
    timeline: TimelineId,
    origin: &BackupOrigin,
    request: &BackupRequest<'_>,
) -> anyhow::Result<TimelineHistory> {
    match start.in_recovery {
        false => Ok(TimelineHistory::root(timeline)),
        true => {
            let histories = origin.histories(request.settings());
            histories.of_the_stop(timeline, stop.lsn, &origin.destinations).await
        }
    }
}

/// Whether checksums are on by the `pg_control` of a data directory, where the server notes it first.
fn in_force(pgdata: &Path) -> InForce {
    let pgdata = pgdata.to_owned();
    InForce::new(move || source::read_control(&pgdata).map_or(true, |(_, control)| control.has_checksums()))
}

/// Copies `pg_control` in a state that PostgreSQL wrote as a whole. Blocks.
fn copy_control(pgdata: &Path, mut streams: Streams) -> anyhow::Result<ControlFile> {
    let (bytes, control) = source::read_control(pgdata)?;
    let meta = std::fs::metadata(pgdata.join(CONTROL_FILE)).context("pg_control vanished")?;
    let mut file = streams.file(&TablePath::data(CONTROL_FILE)?);
    file.write(&bytes)?;
    file.finish(SeenEntry::from(&meta).attributes)?;
    streams.finish()?;
    Ok(control)
}
