//! One attempt at a backup: from the leases to the manifests, wherever its files come from.
//!
//! The order is what a crash leaves behind. The leases come first, since they end by themselves. The server has begun the
//! backup before there is an intent, and ends it with its session. An intent is in each repository before anything is stored
//! there. The server has stopped the backup before WAL is waited for. A manifest comes last, when everything that it needs was
//! found: until then there is no backup, and the next one resumes what was stored.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use walpoint_repo::backup::BackupWriter;
use walpoint_runtime::human;
use walpoint_runtime::progress::ByteProgress;

use super::deleted_wal;
use super::lease::BackupLeases;
use super::needed_wal::BackupWal;
use super::own_wal::Checkpoints;
use super::preflight::Chosen;
use super::publish::{self, Publishing};
use super::replica::Replicas;
use super::report::BackupReport;
use super::request::{AGENT, BackupRequest, INTERRUPTED};
use super::source::{BackupSource, Copied, Started};
use crate::check::repository::Destination;

/// How long an interrupted backup may take to note what it stored.
const LAST_NOTE: Duration = Duration::from_secs(10);

/// Makes the backup, with a replica in each of the chosen repositories that does not fail meanwhile, while no other backup
/// of the cluster is made.
pub(crate) async fn make<S: BackupSource>(
    request: &BackupRequest<'_>,
    source: S,
    chosen: &Chosen,
) -> anyhow::Result<BackupReport> {
    let gets_one = |d: &&Destination| chosen.names.iter().any(|name| name == d.name());
    let copies: Vec<Destination> = source.destinations().iter().filter(gets_one).cloned().collect();
    let cluster = &request.selection.cluster;
    let taken = BackupLeases::take(cluster, &copies, AGENT, request.steal_lease);
    let mut leases = request.unless_stopped(taken).await?;
    let attempt = Attempt { request, chosen, copies: &copies, stolen: leases.stolen };
    let made = tokio::select! {
        made = attempt.make(source) => made,
        () = leases.keep() => Err(anyhow!("the leases ended")),
    };
    tokio::time::timeout(LAST_NOTE, leases.release()).await.ok();
    made
}

/// A backup that has the leases.
struct Attempt<'a> {
    request: &'a BackupRequest<'a>,
    chosen: &'a Chosen,
    /// The repositories that get a replica.
    copies: &'a [Destination],
    /// Whether another backup's lease was stolen: that backup may still be running.
    stolen: bool,
}

impl Attempt<'_> {
    async fn make<S: BackupSource>(&self, source: S) -> anyhow::Result<BackupReport> {
        let Self { request, chosen, copies, stolen } = *self;
        let started = source.start(request, copies).await?;
        let begun = started.begun();
        request.unless_stopped(deleted_wal::refuse(begun, copies)).await?;
        tracing::info!(backup = %begun.id, size = human::size(begun.bytes), "copying");
        let replicas = Replicas::begin(request, begun, copies, chosen, stolen).await?;
        let copied = started.copy(request, &replicas).await;
        let copied = self.or_noted(copied, &replicas).await?;
        self.announce(copied, replicas).await
    }

    /// What was copied; if the copying failed, what is stored so far is noted for the next backup.
    async fn or_noted(
        &self,
        copied: anyhow::Result<Copied>,
        replicas: &Replicas<BackupWriter>,
    ) -> anyhow::Result<Copied> {
        match copied {
            Ok(copied) => Ok(copied),
            Err(error) => {
                tokio::time::timeout(LAST_NOTE, replicas.note_progress(true)).await.ok();
                Err(if self.request.stop.is_cancelled() { anyhow!(INTERRUPTED) } else { error })
            }
        }
    }

    /// Everything was copied: waits for the WAL and creates the manifests.
    async fn announce(
        &self,
        copied: Copied,
        replicas: Replicas<BackupWriter>,
    ) -> anyhow::Result<BackupReport> {
        let request = self.request;
        let Copied { facts, history, control, origin, shared } = copied;
        let needed = BackupWal::new(&facts, history)?;
        let checkpoints = Checkpoints::new(&facts, control)?;
        let drafts = request.unless_stopped(replicas.finish(&facts)).await?;
        if request.strict {
            publish::refuse_damage(&drafts).await?;
        }
        let stopped = Instant::now();
        let publishing = Publishing { request, needed: &needed, checkpoints: &checkpoints, origin: &origin };
        let waiting =
            ByteProgress::waiting("waiting for the WAL that the backup needs", request.show_progress);
        let published = publishing.publish(drafts).await;
        waiting.end();
        let published = published?;
        publish::end_resumed(&published).await;
        let mut report = BackupReport::of(&request.selection.cluster, &published, needed.stored())?;
        report.count(&shared.counts);
        report.wal_wait_seconds = stopped.elapsed().as_secs_f64();
        Ok(report)
    }
}
