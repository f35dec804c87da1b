//! The way from `BASE_BACKUP` to the manifest of the backup.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use jiff::Timestamp;
use tokio::sync::Mutex;
use walpoint_base::{BackupId, PgTimestamp, TimelineHistory};
use walpoint_pg::base_backup::{Archive, BaseBackup, Command, End, Space, Start};
use walpoint_pg::checksum::Checksums;
use walpoint_pg::label::{self, TablespaceMap};
use walpoint_pg::server::{Identity, Server, Tablespace};
use walpoint_repo::backup::{BackupWriter, Method};
use walpoint_runtime::progress::{Progress, human_bytes};

use super::early::Began;
use super::pump::receive;
use super::unpack::{Announced, Delivered};
use crate::backup::needed_history::Histories;
use crate::backup::preflight::Chosen;
use crate::backup::replica::streams::Failures;
use crate::backup::report::Outcome;
use crate::backup::run::{Copied, DEFAULT_LABEL, Run, Said, SharedServer, copies, had_checksums, page_check};
use crate::backup::source::local::copy::HEARTBEAT;
use crate::backup::source::local::reader::{Counts, Shared};
use crate::backup::source::owners::Owners;
use crate::backup::source::pages::{InForce, Newest};
use crate::check::remote::{RemoteSource, is_the_server};
use crate::check::repository::Destination;
use crate::check::source;

/// The mode of a data directory that the server does not tell.
const DEFAULT_MODE: u16 = 0o700;

/// The server that sends a backup, and what was learned about it beforehand.
struct Sender<'a> {
    server: &'a SharedServer,
    identity: &'a Identity,
    destinations: &'a [Destination],
    pgdata: Option<&'a Path>,
    /// The tablespaces of the catalog, all of which have to come.
    expected: &'a [Tablespace],
    /// Whether its WAL is the stored one.
    began: Began,
    /// What it had replayed when the backup began.
    replayed: Option<PgTimestamp>,
}

impl Run<'_> {
    /// Makes the backup from what the server sends, with a copy in each of the chosen repositories that does not fail
    /// meanwhile.
    pub(crate) async fn make_remote(
        &self,
        examined: RemoteSource,
        chosen: &Chosen,
    ) -> anyhow::Result<Outcome> {
        let copies = copies(&examined.destinations, chosen);
        self.alone(&copies, |forced| self.make_remote_copies(examined, chosen, &copies, forced)).await
    }

    async fn make_remote_copies(
        &self,
        mut examined: RemoteSource,
        chosen: &Chosen,
        copies: &[Destination],
        forced: bool,
    ) -> anyhow::Result<Outcome> {
        let failures = Failures::new(chosen);
        let mode = examined.server.setting("data_directory_mode").await?;
        let mode = mode.and_then(|mode| u16::from_str_radix(&mode, 8).ok()).unwrap_or(DEFAULT_MODE);
        let waiting = Progress::waiting("waiting for PostgreSQL's checkpoint", self.show_progress);
        let mut walsender = source::walsender(&self.selection.settings, &mut examined.server).await?;
        is_the_server(&mut walsender, &examined.identity).await?;
        let label = if self.label.is_empty() { DEFAULT_LABEL } else { &self.label };
        let started = examined.server.clock().await?.to_time();
        let before = examined.server.tablespaces().await?;
        let inside = before.iter().any(|tablespace| tablespace.location.is_relative());
        let map = Command::can_map(examined.identity.major, inside);
        let command = Command { label, fast: self.fast, map };
        let stream = self.unless_stopped(BaseBackup::start(walsender, &command)).await;
        waiting.end();
        let stream = stream?;
        // What was created before the start is not in the WAL that replay reads.
        let expected = examined.server.tablespaces().await?;
        let inside = expected.iter().any(|tablespace| tablespace.location.is_relative());
        if map && !Command::can_map(examined.identity.major, inside) {
            bail!(
                "a tablespace inside the data directory was created while the backup began: run the backup again"
            );
        }
        let mut began = Began::new(examined.server.last_checkpoint().await?, copies);
        began.look().await?;
        // A standby's own clock may be behind that of the server whose transactions it holds.
        let replayed = examined.server.replayed_until().await?;
        let start = stream.started();
        let id = BackupId::new(started, start.timeline, start.lsn, rand::random());
        let bytes = stream.spaces().iter().map(|space| space.bytes).fold(0, u64::saturating_add);
        tracing::info!(backup = %id, size = human_bytes(bytes), "copying");

        let writers = self.writers(copies, (id, started), examined.identity.block_size, forced).await?;
        let progress = Progress::bytes("copying", bytes, self.show_progress);
        let RemoteSource { server, identity, destinations, pgdata, .. } = examined;
        let server = Arc::new(Mutex::new(server));
        let sender = Sender {
            server: &server,
            identity: &identity,
            destinations: &destinations,
            pgdata: pgdata.as_deref(),
            expected: &expected,
            began,
            replayed,
        };
        let times = (id, started, mode);
        let copied = self.received(stream, &writers, &failures, sender, progress.clone(), times).await;
        progress.end();
        let copied = self.or_noted(copied, &writers, &failures).await?;
        let whereabouts = (server, destinations.as_slice(), pgdata.as_deref());
        self.announce(copied, writers, copies, &failures, whereabouts).await
    }

    /// Stores what the server sends, and looks at whether it is what was asked for.
    async fn received(
        &self,
        stream: BaseBackup,
        writers: &[BackupWriter],
        failures: &Arc<Failures>,
        sender: Sender<'_>,
        progress: Progress,
        (id, started, mode): (BackupId, Timestamp, u16),
    ) -> anyhow::Result<Copied> {
        let Sender { server, identity, destinations, pgdata, expected, mut began, replayed } = sender;
        let start = stream.started();
        let shared = Arc::new(Shared {
            block_size: usize::try_from(identity.block_size)?,
            pages: page_check(identity, start.lsn, newest(server), in_force(server)),
            stop: self.stop.child_token(),
            progress,
            owners: std::sync::Mutex::new(Owners::default()),
            counts: Counts::default(),
        });
        let spaces = stream.spaces().to_vec();
        let map = map_of(&spaces).to_bytes(identity.major);
        let announced = Announced { spaces, data_directory: identity.data_directory.clone(), mode };
        let damaged = Arc::new(AtomicU64::new(0));
        let readers = self.readers(writers.len());
        let delivered = tokio::select! {
            delivered = receive(stream, announced, &shared, writers, failures, readers, &damaged) => delivered?,
            never = keep(server) => match never {},
            other = began.watch() => return Err(other),
        };
        let ended = server.lock().await.clock().await?.to_time();
        let Delivered { label, tablespace_map, tablespaces, control, manifest, end } = delivered;
        all_came(&mut *server.lock().await, expected, &tablespaces).await?;
        let tablespace_map = if tablespace_map.is_empty() { map } else { tablespace_map };
        if control.system_id != identity.system_id
            || manifest.system_id.is_some_and(|system| system != identity.system_id)
        {
            bail!("the server sent the cluster {}, not {}", control.system_id, identity.system_id);
        }
        covers(&manifest.wal, start, &end)?;
        self.damage(&end, damaged.load(Ordering::Relaxed))?;
        self.label(&label, id)?;
        let history = match end.timeline == start.timeline {
            true => TimelineHistory::root(start.timeline),
            false => {
                let histories = Histories { pgdata, settings: &self.selection.settings, server };
                histories.find(end.timeline, destinations).await?
            }
        };
        // Numbers of users are those of the server's machine, which may have other names than this one.
        let unknown = std::sync::Mutex::default();
        let facts = self.said(Said {
            method: Method::Remote,
            identity,
            times: (started, ended),
            replayed,
            checksums: had_checksums(&shared, &control),
            label,
            tablespace_map,
            stop: end.lsn,
            history: &history,
            pgdata: Path::new(&identity.data_directory),
            extra_paths: &[],
            owners: if pgdata.is_some() { &shared.owners } else { &unknown },
            destinations,
        })?;
        Ok(Copied { facts, history, checkpoint: control.checkpoint, shared })
    }

    /// What the server says at the end about damaged pages, of which so many are known.
    fn damage(&self, end: &End, known: u64) -> anyhow::Result<()> {
        match &end.damage {
            Some(text) if known == 0 && self.strict => {
                bail!(
                    "no backup was made, because of --strict: the server says \"{text}\"; its log names the pages"
                )
            }
            Some(text) if known == 0 => {
                tracing::warn!(
                    "the server says \"{text}\", about pages of files that are no relation's: its log names them"
                );
                Ok(())
            }
            _ => Ok(()),
        }
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
        Archive::Tablespace(oid) if space.location.is_absolute() => {
            Some(label::Tablespace { oid, path: space.location.as_os_str().as_bytes().to_vec() })
        }
        _ => None,
    });
    TablespaceMap { tablespaces: linked.collect() }
}

/// Whether every tablespace that was there at the beginning was sent, or dropped meanwhile. The server's own manifest lacks
/// what the server left out.
async fn all_came(server: &mut Server, expected: &[Tablespace], came: &BTreeSet<u32>) -> anyhow::Result<()> {
    let mut left_out = expected.iter().filter(|tablespace| !came.contains(&tablespace.oid)).peekable();
    if left_out.peek().is_none() {
        return Ok(());
    }
    let left = server
        .tablespaces()
        .await
        .context("whether tablespaces that the server did not send were dropped")?;
    if let Some(Tablespace { oid, name, .. }) =
        left_out.find(|tablespace| left.iter().any(|l| l.oid == tablespace.oid))
    {
        bail!(
            "the server did not send tablespace {name:?} (pg_tblspc/{oid}), so there would be no backup of it; its log says \
             why, if there is a link that leads nowhere; a backup without --remote, on the server's machine, reads the directory \
             itself"
        )
    }
    Ok(())
}

/// The manifest has to name the same WAL as the results before and after the copy.
fn covers(
    wal: &[(walpoint_base::TimelineId, walpoint_base::Lsn, walpoint_base::Lsn)],
    start: Start,
    end: &End,
) -> anyhow::Result<()> {
    let starts = wal.iter().any(|(timeline, from, _)| (*timeline, *from) == (start.timeline, start.lsn));
    let ends = wal.iter().any(|(timeline, _, to)| (*timeline, *to) == (end.timeline, end.lsn));
    (starts && ends).then_some(()).context("the server's manifest names other WAL than the server does")
}
