//! The way from `pg_backup_start` to the manifest.

mod facts;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use futures_util::future::join_all;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use walpoint_base::{BackupId, Lsn, TimelineHistory};
use walpoint_pg::checksum::Checksums;
use walpoint_pg::control::{CONTROL_FILE, CheckpointCopy, ControlFile};
use walpoint_pg::server::{BackupSession, Identity, Server};
use walpoint_repo::backup::{BackupFacts, BackupWriter, BlockSize, Draft, Foundation, Intent, TablePath};
use walpoint_runtime::args::Selection;
use walpoint_runtime::progress::{Progress, human_bytes};
use walpoint_storage::store::StoreSettings;

pub(super) use self::facts::Said;
use super::lease::BackupLeases;
use super::needed_wal::NeededWal;
use super::own_wal::Checkpoints;
use super::preflight::Chosen;
use super::publish::{self, Published, Publishing};
use super::replica::streams::{Failures, Lanes};
use super::report::Outcome;
use super::source::local::copy::{copy, note_progress, positions};
use super::source::local::reader::{Counts, Shared};
use super::source::owners::Owners;
use super::source::pages::{InForce, Newest, PageCheck};
use crate::check::repository::Destination;
use crate::check::{Examined, LocalSource, source, visible, whose_files};
use crate::walk::directory::Seen;

/// What an interrupted backup says.
pub(crate) const INTERRUPTED: &str = "interrupted by a signal: no backup was made";

/// The version that made a backup.
const AGENT: &str = env!("CARGO_PKG_VERSION");
/// PostgreSQL wants a label.
pub(super) const DEFAULT_LABEL: &str = "walpoint";

/// How long an interrupted backup may take to note what it stored.
const LAST_NOTE: Duration = Duration::from_secs(10);

/// A session on the backup's server that several tasks ask.
pub(super) type SharedServer = Arc<tokio::sync::Mutex<Server>>;

/// What is wanted.
pub(crate) struct Run<'a> {
    /// A person's label.
    pub(crate) label: String,
    /// Whether the first checkpoint is done at full speed.
    pub(crate) fast: bool,
    /// Whether earlier backups are left alone.
    pub(crate) full: bool,
    /// Whether to begin though another backup seems to be running.
    pub(crate) force: bool,
    /// Whether a damaged page means that there is no backup.
    pub(crate) strict: bool,
    /// The cluster.
    pub(crate) selection: &'a Selection<StoreSettings>,
    /// Cancelled by a signal.
    pub(crate) stop: &'a CancellationToken,
    /// Whether somebody watches.
    pub(crate) show_progress: bool,
}

/// A backup that was copied and stopped.
pub(super) struct Copied {
    /// What its manifest will say.
    pub(super) facts: BackupFacts,
    /// The history of the timeline on which it stopped.
    pub(super) history: TimelineHistory,
    /// The last checkpoint by the `pg_control` that was copied.
    pub(super) checkpoint: CheckpointCopy,
    /// What was counted on the way.
    pub(super) shared: Arc<Shared>,
}

impl Run<'_> {
    /// Makes the backup, with a copy in each of the chosen repositories that does not fail meanwhile.
    pub(crate) async fn make(&self, examined: Examined, chosen: &Chosen) -> anyhow::Result<Outcome> {
        let copies = copies(&examined.source.destinations, chosen);
        self.alone(&copies, |forced| self.make_copies(examined, chosen, &copies, forced)).await
    }

    /// Does the work of a backup while nobody else makes one. It is told whether somebody's lease was taken by force: that
    /// backup may still be running.
    pub(super) async fn alone<W: Future<Output = anyhow::Result<Outcome>>>(
        &self,
        copies: &[Destination],
        work: impl FnOnce(bool) -> W,
    ) -> anyhow::Result<Outcome> {
        let cluster = &self.selection.cluster;
        let mut leases = self.unless_stopped(BackupLeases::take(cluster, copies, AGENT, self.force)).await?;
        let work = work(leases.forced);
        let made = tokio::select! {
            made = work => made,
            () = leases.keep() => Err(anyhow!("the leases ended")),
        };
        tokio::time::timeout(LAST_NOTE, leases.release()).await.ok();
        made
    }

    async fn make_copies(
        &self,
        examined: Examined,
        chosen: &Chosen,
        copies: &[Destination],
        forced: bool,
    ) -> anyhow::Result<Outcome> {
        let failures = Failures::new(chosen);
        let waiting = Progress::waiting("waiting for PostgreSQL's checkpoint", self.show_progress);
        let Examined { mut server, source: examined } = examined;
        // All that is asked of the server from here on is asked in this session: another connection may lead elsewhere.
        let proven = self.unless_stopped(whose_files::prove(&mut server, &examined.pgdata)).await?;
        let label = if self.label.is_empty() { DEFAULT_LABEL } else { &self.label };
        let started = server.clock().await?.to_time();
        let session = self.unless_stopped(BackupSession::start(server, label, self.fast)).await;
        waiting.end();
        let session = session?;
        let start = session.started().clone();
        whose_files::same_process(proven, start.process)?;
        let id = BackupId::new(started, start.timeline, start.lsn, rand::random());
        tracing::info!(backup = %id, size = human_bytes(examined.measure.bytes), "copying");

        let writers = self.writers(copies, (id, started), examined.control.block_size, forced).await?;
        let copied = self.copy(session, &writers, &failures, &examined, id, started).await;
        let (copied, server) = self.or_noted(copied, &writers, &failures).await?;
        let server = Arc::new(tokio::sync::Mutex::new(server));
        let whereabouts = (server, examined.destinations.as_slice(), Some(examined.pgdata.as_path()));
        self.announce(copied, writers, copies, &failures, whereabouts).await
    }

    /// Begins to write the backup in each repository that gets a copy; `forced`: beside another that may still be running.
    pub(super) async fn writers(
        &self,
        copies: &[Destination],
        (id, started): (BackupId, Timestamp),
        block_size: u32,
        forced: bool,
    ) -> anyhow::Result<Vec<BackupWriter>> {
        let options = self.options(copies.len());
        let block_size = BlockSize::new(block_size).context("no cluster has such blocks")?;
        let mut writers = Vec::new();
        for destination in copies {
            let intent = self.intent(id, started, destination, forced).await?;
            let writer = destination.backups().begin(intent, block_size, &options).await?;
            self.tell_foundation(destination.name(), &writer);
            writers.push(writer);
        }
        Ok(writers)
    }

    /// What was copied; if the copying failed, what is stored so far is noted for the next backup.
    pub(super) async fn or_noted<T>(
        &self,
        copied: anyhow::Result<T>,
        writers: &[BackupWriter],
        failures: &Failures,
    ) -> anyhow::Result<T> {
        match copied {
            Ok(copied) => Ok(copied),
            Err(error) => {
                tokio::time::timeout(LAST_NOTE, note_progress(writers, failures, true)).await.ok();
                Err(if self.stop.is_cancelled() { anyhow!(INTERRUPTED) } else { error })
            }
        }
    }

    /// Everything was copied: waits for the WAL and creates the manifests. `whereabouts` are a session on the server, the
    /// repositories of the cluster, and the data directory where it is visible.
    pub(super) async fn announce(
        &self,
        copied: Copied,
        writers: Vec<BackupWriter>,
        copies: &[Destination],
        failures: &Failures,
        (server, destinations, pgdata): (SharedServer, &[Destination], Option<&Path>),
    ) -> anyhow::Result<Outcome> {
        let Copied { facts, history, checkpoint, shared } = copied;
        let adopted: Vec<_> = writers.iter().map(|writer| writer.adopted().to_vec()).collect();
        let drafts = self.unless_stopped(drafts(writers, copies, &facts, failures)).await?;
        if self.strict {
            publish::refuse_damage(&drafts, copies).await?;
        }
        let needed = NeededWal::new(&facts, history)?;
        let checkpoints = Checkpoints::new(&facts, checkpoint)?;
        let stopped = Instant::now();
        let publishing = Publishing {
            run: self,
            needed: &needed,
            checkpoints: &checkpoints,
            server: &server,
            destinations,
            pgdata,
            copies,
            failures,
        };
        let waiting = Progress::waiting("waiting for the WAL that the backup needs", self.show_progress);
        let published = publishing.publish(drafts).await;
        waiting.end();
        let published = published?;
        end_adopted(copies, &adopted, &published).await;
        let cluster = self.selection.cluster.as_str();
        let mut outcome = Outcome::of(cluster, &published, needed.stored())?;
        outcome.count(&shared.counts);
        outcome.failed = failures.all();
        outcome.wal_seconds = stopped.elapsed().as_secs_f64();
        Ok(outcome)
    }

    /// A future that ends with a signal.
    pub(crate) async fn unless_stopped<T, E: Into<anyhow::Error>>(
        &self,
        future: impl Future<Output = Result<T, E>>,
    ) -> anyhow::Result<T> {
        tokio::select! {
            result = future => result.map_err(Into::into),
            () = self.stop.cancelled() => Err(anyhow!(INTERRUPTED)),
        }
    }

    /// What the backup announces in a repository: also what of that repository it builds on.
    async fn intent(
        &self,
        id: BackupId,
        started: Timestamp,
        destination: &Destination,
        forced: bool,
    ) -> anyhow::Result<Intent> {
        let Foundation { parents, mut adopted } = match self.full {
            true => Foundation::default(),
            false => Foundation::choose(&destination.backups().list().await?),
        };
        if forced {
            // One of them may still be running: it is neither gone on with nor ended.
            adopted.clear();
        }
        let lineage = destination.lineage.id;
        let (host, agent, label) = (host(), AGENT.to_owned(), self.label.clone());
        Ok(Intent { id, lineage, started, host, agent, label, parents, adopted })
    }

    fn tell_foundation(&self, repository: &str, writer: &BackupWriter) {
        writer.take_notes().iter().for_each(|note| tracing::warn!(repository, "{note}"));
        match writer.parent() {
            Some(parent) => tracing::info!(repository, "comparing with backup {parent}"),
            None if self.full => tracing::info!(repository, "storing everything, as --full asks"),
            None => tracing::info!(repository, "storing everything: there is no backup to compare with"),
        }
    }

    /// Copies everything, `pg_control` last, and stops the backup.
    async fn copy(
        &self,
        mut session: BackupSession,
        writers: &[BackupWriter],
        failures: &Arc<Failures>,
        examined: &LocalSource,
        id: BackupId,
        started: Timestamp,
    ) -> anyhow::Result<(Copied, Server)> {
        let start = session.started().clone();
        let places = self.unless_stopped(session.places()).await?;
        let (newest, positions) = positions();
        let progress = Progress::bytes("copying", examined.measure.bytes, self.show_progress);
        let shared = Arc::new(Shared {
            block_size: usize::try_from(examined.control.block_size)?,
            pages: page_check(&examined.identity, start.lsn, newest, in_force(&examined.pgdata)),
            stop: self.stop.child_token(),
            progress: progress.clone(),
            owners: Mutex::new(Owners::default()),
            counts: Counts::default(),
        });
        let readers = self.readers(writers.len());
        let copied =
            copy(&examined.ground, &shared, writers, failures, readers, (&mut session, positions)).await;
        progress.end();
        let entered = copied?;
        // After everything else: on a standby it says how far recovery has to go before the copy is consistent.
        let (pgdata, lanes) = (examined.pgdata.clone(), Lanes::new(writers, failures));
        let control = tokio::task::spawn_blocking(move || copy_control(&pgdata, lanes)).await??;
        if control.system_id != examined.control.system_id {
            bail!("{} became another cluster while it was copied", examined.pgdata.display());
        }
        let (stop, mut server) = self.unless_stopped(session.stop()).await?;
        let ended = server.clock().await?.to_time();
        // Once more: another directory may have been mounted there meanwhile.
        let proven = self.unless_stopped(whose_files::prove(&mut server, &examined.pgdata)).await?;
        self.unless_stopped(visible::all_seen(&mut server, &examined.ground, &places, &entered)).await?;
        whose_files::same_process(start.process, stop.process)?;
        whose_files::same_process(stop.process, proven)?;
        let server = tokio::sync::Mutex::new(server);
        let times = (id, started, ended);
        let checksums = had_checksums(&shared, &control);
        let said = (&start, stop, checksums);
        let (facts, history) = self.facts(examined, &shared, said, times, &server).await?;
        Ok((Copied { facts, history, checkpoint: control.checkpoint, shared }, server.into_inner()))
    }
}

/// The repositories that get a copy.
pub(super) fn copies(destinations: &[Destination], chosen: &Chosen) -> Vec<Destination> {
    let chosen = |d: &&Destination| chosen.names.iter().any(|name| name == d.name());
    destinations.iter().filter(chosen).cloned().collect()
}

/// Ends the writing of each copy.
async fn drafts(
    writers: Vec<BackupWriter>,
    copies: &[Destination],
    facts: &BackupFacts,
    failures: &Failures,
) -> anyhow::Result<Vec<Option<Draft>>> {
    let ended = writers.into_iter().zip(copies).enumerate().map(|(copy, (writer, destination))| async move {
        if failures.has(copy) {
            return None;
        }
        let facts = BackupFacts { lineage: destination.lineage.id, ..facts.clone() };
        writer.finish(facts).await.map_err(|error| failures.note(copy, error)).ok()
    });
    let drafts = join_all(ended).await;
    failures.any_left()?;
    Ok(drafts)
}

/// Ends the unfinished backups that were gone on with, where the new one exists: nobody needs them any more.
async fn end_adopted(copies: &[Destination], adopted: &[Vec<BackupId>], published: &[Published]) {
    for (destination, adopted) in copies.iter().zip(adopted) {
        let copy = published.iter().find(|copy| copy.repository == destination.name());
        let Some(id) = copy.map(|copy| copy.summary.id) else { continue };
        for dead in adopted {
            match destination.backups().bury(*dead, &format!("backup {id} went on with it")).await {
                // It was finished after all.
                Ok(()) | Err(walpoint_storage::RepoError::Conflict { .. }) => {}
                Err(error) => tracing::warn!(
                    repository = destination.name(),
                    "the unfinished backup {dead} was not ended, \"archive-agent expire\" will do that: {error}"
                ),
            }
        }
    }
}

/// How pages are verified, if they carry checksums.
pub(super) fn page_check(
    identity: &Identity,
    start: Lsn,
    newest: Newest,
    in_force: InForce,
) -> Option<PageCheck> {
    let on = identity.checksums == Checksums::On;
    let block_size = usize::try_from(identity.block_size).ok().filter(|_| on)?;
    Some(PageCheck { block_size, segment_blocks: identity.relation_segment_blocks, start, newest, in_force })
}

/// Whether checksums are on by the `pg_control` of a data directory, where the server notes it first.
fn in_force(pgdata: &Path) -> InForce {
    let pgdata = pgdata.to_owned();
    InForce::new(move || source::read_control(&pgdata).map_or(true, |(_, control)| control.has_checksums()))
}

/// Whether all pages of a backup carried checksums, from its first page to the `pg_control` that was copied last.
pub(super) fn had_checksums(shared: &Shared, control: &ControlFile) -> bool {
    shared.pages.as_ref().is_some_and(|pages| !pages.in_force.has_ended()) && control.has_checksums()
}

/// Copies `pg_control` in a state that PostgreSQL wrote as a whole. Blocks.
fn copy_control(pgdata: &Path, mut lanes: Lanes) -> anyhow::Result<ControlFile> {
    let (bytes, control) = source::read_control(pgdata)?;
    let meta = std::fs::metadata(pgdata.join(CONTROL_FILE)).context("pg_control vanished")?;
    let mut file = lanes.file(&TablePath::data(CONTROL_FILE)?);
    file.write(&bytes)?;
    file.finish(Seen::from(&meta).attributes)?;
    lanes.finish()?;
    Ok(control)
}

/// The name of this machine.
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
