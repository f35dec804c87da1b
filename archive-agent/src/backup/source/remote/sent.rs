//! What the server sends, from the first archive to its end, and whether it is what was asked for.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, bail};
use walpoint_base::TimelineHistory;
use walpoint_pg::base_backup::{ServerManifest, Space, Start, StreamArchive, StreamEnd};
use walpoint_pg::checksum::Checksums;
use walpoint_pg::label::{self, TablespaceMap};
use walpoint_pg::server::{Server, ServerTablespace};
use walpoint_repo::backup::{BackupWriter, Method};
use walpoint_runtime::progress::ByteProgress;

use super::pump::StoreThreads;
use super::start::RemoteBackup;
use super::unpack::{Announced, Delivered};
use crate::backup::begun::Begun;
use crate::backup::memory::MemoryBudget;
use crate::backup::replica::Replicas;
use crate::backup::request::BackupRequest;
use crate::backup::source::facts::{self, ServerFacts};
use crate::backup::source::pages::{InForce, Newest, PageCheck};
use crate::backup::source::shared::Shared;
use crate::backup::source::{BackupOrigin, Copied, HEARTBEAT, SharedServer, Started};

impl Started for RemoteBackup {
    fn begun(&self) -> &Begun {
        &self.begun
    }

    /// Stores what the server sends, and looks at whether it is what was asked for.
    async fn copy(
        self,
        request: &BackupRequest<'_>,
        replicas: &Replicas<BackupWriter>,
    ) -> anyhow::Result<Copied> {
        let progress = ByteProgress::bytes("copying", self.begun.bytes, request.show_progress);
        let copied = self.copied(request, replicas, progress.clone()).await;
        progress.end();
        copied
    }
}

impl RemoteBackup {
    async fn copied(
        self,
        request: &BackupRequest<'_>,
        replicas: &Replicas<BackupWriter>,
        progress: ByteProgress,
    ) -> anyhow::Result<Copied> {
        let Self { begun, stream, origin, identity, mode, expected, mut early, replayed } = self;
        let (server, start) = (&origin.server, stream.started());
        let pages = PageCheck::of(&identity, start.lsn, newest(server), in_force(server));
        let shared = Shared::new(begun.block_size, pages, request.stop.child_token(), progress)?;
        let shared = Arc::new(shared);
        let spaces = stream.spaces().to_vec();
        let map = map_of(&spaces).to_bytes(identity.major);
        let announced = Announced { spaces, data_directory: identity.data_directory.clone(), mode };
        let workers = MemoryBudget::of(request.settings(), replicas.len()).readers;
        let threads = StoreThreads { shared: &shared, replicas, workers };
        let delivered = tokio::select! {
            delivered = threads.receive(stream, announced) => delivered?,
            never = keep(server) => match never {},
            other = early.watch() => return Err(other),
        };
        let ended = server.lock().await.clock().await?.to_time();
        let Delivered { label, tablespace_map, tablespaces, control, manifest, end } = delivered;
        all_came(&mut *server.lock().await, &expected, &tablespaces).await?;
        if control.system_id != identity.system_id
            || manifest.system_id.is_some_and(|system| system != identity.system_id)
        {
            bail!("the server sent the cluster {}, not {}", control.system_id, identity.system_id);
        }
        covers(&manifest, start, &end)?;
        judge_damage(&end, shared.counts.bad_sent.load(Ordering::Relaxed), request.strict)?;
        facts::label(&label, &begun)?;
        let history = history(start, &end, &origin, request).await?;
        // Numbers of users are those of the server's machine, which may have other names than this one.
        let unknown = std::sync::Mutex::default();
        let facts = ServerFacts {
            method: Method::Remote,
            identity: &identity,
            begun: &begun,
            ended,
            replayed,
            checksums: shared.had_checksums(&control),
            label,
            tablespace_map: if tablespace_map.is_empty() { map } else { tablespace_map },
            stop: end.lsn,
            history: &history,
            pgdata: Path::new(&identity.data_directory),
            extra_paths: &[],
            owners: if origin.pgdata.is_some() { &shared.owners } else { &unknown },
            destinations: &origin.destinations,
        };
        let facts = facts.of_manifest(request)?;
        Ok(Copied { facts, history, control, origin, shared })
    }
}

/// The history of the timeline on which the backup stopped.
async fn history(
    start: Start,
    end: &StreamEnd,
    origin: &BackupOrigin,
    request: &BackupRequest<'_>,
) -> anyhow::Result<TimelineHistory> {
    match end.timeline == start.timeline {
        true => Ok(TimelineHistory::root(start.timeline)),
        false => origin.histories(request.settings()).find(end.timeline, &origin.destinations).await,
    }
}

/// What the server says at the end about damaged pages, of which so many are known.
fn judge_damage(end: &StreamEnd, known: u64, strict: bool) -> anyhow::Result<()> {
    match &end.damage {
        Some(text) if known == 0 && strict => {
            bail!(
                "no backup was taken, because of --strict: the server says \"{text}\"\nDETAIL: Its log \
                 names the pages."
            )
        }
        Some(text) if known == 0 => {
            tracing::warn!(
                "the server says \"{text}\", about pages of files that are no relation's\nDETAIL: Its log names them."
            );
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Where WAL ends, asked in the session beside the backup.
fn newest(server: &SharedServer) -> Newest {
    let (server, runtime) = (Arc::clone(server), tokio::runtime::Handle::current());
    // The readers are threads that may block.
    Newest::new(move || runtime.block_on(async { server.lock().await.position().await.ok().flatten() }))
}

/// Whether checksums are on, asked in the same session.
fn in_force(server: &SharedServer) -> InForce {
    let (server, runtime) = (Arc::clone(server), tokio::runtime::Handle::current());
    let ask = move || runtime.block_on(async { server.lock().await.checksums().await });
    InForce::new(move || ask().map_or(true, |checksums| checksums == Checksums::On))
}

/// Keeps the session beside the backup alive, which has nothing to do for hours.
async fn keep(server: &SharedServer) -> Infallible {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        if let Err(error) = server.lock().await.position().await {
            tracing::debug!("the session beside the backup does not answer: {error}");
        }
    }
}

/// The map that a server writes of these.
fn map_of(spaces: &[Space]) -> TablespaceMap {
    let linked = spaces.iter().filter_map(|space| match space.archive {
        StreamArchive::Tablespace(oid) if space.location.is_absolute() => {
            Some(label::MappedTablespace { oid, path: space.location.as_os_str().as_bytes().to_vec() })
        }
        _ => None,
    });
    TablespaceMap { tablespaces: linked.collect() }
}

/// Whether every tablespace that was there at the beginning was sent, or dropped meanwhile. The server's own manifest lacks
/// what the server left out.
async fn all_came(
    server: &mut Server,
    expected: &[ServerTablespace],
    came: &BTreeSet<u32>,
) -> anyhow::Result<()> {
    let mut left_out = expected.iter().filter(|tablespace| !came.contains(&tablespace.oid)).peekable();
    if left_out.peek().is_none() {
        return Ok(());
    }
    let left = server
        .tablespaces()
        .await
        .context("whether tablespaces that the server did not send were dropped")?;
    if let Some(ServerTablespace { oid, name, .. }) =
        left_out.find(|tablespace| left.iter().any(|l| l.oid == tablespace.oid))
    {
        bail!(
            "the server did not send tablespace {name:?} (pg_tblspc/{oid}), so there would be no backup of it\nHINT: If there \
             is a link that leads nowhere, the server's log says why. A backup without --remote, on the server's machine, \
             reads the directory itself."
        )
    }
    Ok(())
}

/// The manifest has to name the same WAL as the results before and after the copy.
fn covers(manifest: &ServerManifest, start: Start, end: &StreamEnd) -> anyhow::Result<()> {
    let mut wal = manifest.wal.iter();
    let starts = wal.any(|(timeline, from, _)| (*timeline, *from) == (start.timeline, start.lsn));
    let mut wal = manifest.wal.iter();
    let ends = wal.any(|(timeline, _, to)| (*timeline, *to) == (end.timeline, end.lsn));
    (starts && ends).then_some(()).context("the server's manifest names other WAL than the server does")
}
