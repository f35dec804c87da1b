//! The end of a backup: its WAL has arrived, then its manifest is created, in each repository by itself. One that fails has no
//! copy; the others have theirs all the same.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use futures_util::FutureExt;
use futures_util::future::join_all;
use walpoint_base::{BackupId, PgTimestamp};
use walpoint_repo::backup::{BackupSummary, Draft, PageFinding};
use walpoint_repo::catalog::latest_commit_before;
use walpoint_repo::wal::WalArchive;
use walpoint_runtime::config::duration;
use walpoint_storage::RepoError;
use walpoint_storage::error::error_chain;

use super::database_copies;
use super::needed_wal::BackupWal;
use super::own_wal::{self, Checkpoints};
use super::replica::Replicas;
use super::request::BackupRequest;
use super::source::BackupOrigin;
use crate::check::repository::Destination;
use crate::check::source;
use crate::wal::identity::{self, Evidence};
use crate::wal::unwritten::unwritten;
use crate::wal::{check, control};

/// Bad pages that an error names.
const NAMED: usize = 10;
/// How long another repository may take to say what it knows of commit times.
const OTHERS_LIMIT: Duration = Duration::from_secs(60);

/// A replica that exists.
#[derive(Debug)]
pub(crate) struct PublishedReplica {
    /// What the manifest says.
    pub(crate) summary: BackupSummary,
    /// The finished backup that it was compared with.
    pub(crate) parent: Option<BackupId>,
    /// The bad pages that it names.
    pub(crate) findings: Vec<PageFinding>,
}

/// What it takes to announce a backup.
pub(crate) struct Publishing<'a> {
    pub(crate) request: &'a BackupRequest<'a>,
    pub(crate) needed: &'a BackupWal,
    /// The checkpoints of the server that was copied.
    pub(crate) checkpoints: &'a Checkpoints,
    /// That server.
    pub(crate) origin: &'a BackupOrigin,
}

impl Publishing<'_> {
    /// Waits for the WAL and creates the manifests. An error means that there is no backup in any repository.
    pub(crate) async fn publish(
        &self,
        drafts: Replicas<Draft>,
    ) -> anyhow::Result<Replicas<PublishedReplica>> {
        // A backup counts on every repository that has to acknowledge WAL, also on those that get no copy.
        let others = self.origin.destinations.iter().filter(|destination| destination.acknowledges);
        let others =
            others.filter(|other| !drafts.iter().any(|copy| copy.destination.name() == other.name()));
        let others = join_all(others.map(|other| self.wal(other))).await;
        others.into_iter().collect::<anyhow::Result<()>>()?;
        drafts.advance(async |destination, draft| self.replica(destination, draft).await).await
    }

    async fn replica(&self, to: &Destination, mut draft: Draft) -> anyhow::Result<PublishedReplica> {
        // One that was suspended for days was aborted meanwhile, and the WAL that it waits for was deleted.
        tokio::select! {
            biased;
            error = draft.aborted() => return Err(error.into()),
            stored = self.wal(to) => stored?,
        }
        let latest = self.request.unless_stopped(self.latest_commit(&draft, to)).await?;
        draft.note_latest_commit(latest);
        let (findings, parent) = (draft.manifest().findings.clone(), draft.parent());
        let remarks = draft.notes().iter().map(walpoint_words::remark);
        remarks.for_each(|note| tracing::warn!(repository = to.name(), "{note}"));
        // Packs and WAL took hours: a backup is only in the repository that they went into.
        to.archive().repository().read_descriptor_again().await?;
        let summary = draft.publish(self.needed.stored()).await?;
        // The backup is there, whatever becomes of this.
        if let Err(error) = to.backups().tidy(summary.id).await {
            tracing::warn!(
                repository = to.name(),
                "could not clean up after the backup: {}",
                error_chain(&error)
            );
        }
        Ok(PublishedReplica { summary, parent, findings })
    }

    /// The latest commit time before the backup, by all that the repositories know: a new one has no WAL from before it.
    async fn latest_commit(&self, draft: &Draft, to: &Destination) -> anyhow::Result<Option<PgTimestamp>> {
        let facts = &draft.manifest().summary.facts;
        let (timeline, start) = (facts.start_timeline, facts.start_lsn);
        let in_one = |one: &Destination| {
            let (repository, lineage) = (one.repository.clone(), one.lineage.clone());
            async move { latest_commit_before(&repository, &lineage.cluster, lineage.id, timeline, start).await }
        };
        let others = self.origin.destinations.iter().filter(|other| other.name() != to.name());
        let others = others.map(|other| async move {
            let repository = other.name();
            match tokio::time::timeout(OTHERS_LIMIT, in_one(other)).await {
                Ok(Ok(latest)) => latest,
                Ok(Err(error)) => {
                    tracing::warn!(
                        repository,
                        "the commit times here were not checked: {}",
                        error_chain(&error)
                    );
                    None
                }
                Err(_) => {
                    tracing::warn!(repository, "the commit times here were not checked: it does not answer");
                    None
                }
            }
        });
        let (own, others) = tokio::join!(in_one(to), join_all(others));
        Ok(own?.max(others.into_iter().max().flatten()))
    }

    /// Waits until a repository has the WAL that the backup needs.
    async fn wal(&self, destination: &Destination) -> anyhow::Result<()> {
        let (archive, settings) = (destination.archive(), self.request.settings());
        let limit = duration(settings.backup_wal_timeout);
        let (histories, pgdata) = (self.origin.histories(settings), self.origin.pgdata());
        let stored = self.needed.stored();
        let arrived = async {
            let mut lacking = Vec::new();
            for timeline in BTreeSet::from([stored.first.timeline, stored.last.timeline]) {
                lacking.extend(histories.lacking(&archive, timeline).await?);
            }
            let copied = self.needed.wait(&archive, limit, histories).await?;
            // What arrived under these names may be another server's.
            self.checkpoints.prove(&archive, self.needed).await?;
            database_copies::refuse(&archive, self.needed, &copied, self.checkpoints.range()).await?;
            if let Some(pgdata) = pgdata {
                refuse_split_brain(&archive, pgdata, self.needed).await?;
            }
            // Not before: a backup of another server would leave its history here.
            for history in lacking {
                history.store(&archive).await?;
            }
            anyhow::Ok(archive.repository().read_descriptor_again().await?)
        };
        self.request.unless_stopped(arrived.boxed()).await
    }
}

/// There is no backup where another server's WAL is.
async fn refuse_split_brain(archive: &WalArchive, pgdata: &Path, needed: &BackupWal) -> anyhow::Result<()> {
    let (_, found) = source::read_control(pgdata)?;
    let Some(timeline) = found.newest_timeline() else { return Ok(()) };
    let (cluster, wal) = (check::identity(&found), pgdata.join("pg_wal"));
    own_wal::compare(archive, &cluster, &wal, needed).await?;
    if let Evidence::Other(split) = identity::compare(archive, &cluster, &wal, timeline).await? {
        bail!("no backup was taken: {split}");
    }
    if control::writes(pgdata, &found, timeline)
        && let Some(split) = unwritten(archive, &wal, timeline, cluster.segment_size).await?
    {
        bail!("no backup was taken: {split}");
    }
    Ok(())
}

/// With `--strict` a damaged page means that there is no backup, and never will be one of this id.
pub(crate) async fn refuse_damage(drafts: &Replicas<Draft>) -> anyhow::Result<()> {
    let Some(manifest) = drafts.stages().map(Draft::manifest).find(|m| m.summary.totals.bad_pages > 0) else {
        return Ok(());
    };
    let bad = manifest.summary.totals.bad_pages;
    let named = manifest.findings.iter().take(NAMED).map(|f| format!("{} block {}", f.path, f.block));
    let reason = format!("{bad} damaged pages: {}", named.collect::<Vec<_>>().join(", "));
    for replica in drafts.iter() {
        replica.destination.backups().abort(manifest.summary.id, &reason).await?;
    }
    bail!("no backup was taken, because of --strict: {reason}")
}

/// Ends the unfinished backups that were resumed, where the new one exists: nothing needs them any more.
pub(crate) async fn end_resumed(published: &Replicas<PublishedReplica>) {
    for replica in published.iter() {
        let Some(PublishedReplica { summary, .. }) = replica.stage() else { continue };
        let (destination, id) = (&replica.destination, summary.id);
        for resumed in &replica.resumed {
            match destination.backups().abort(*resumed, &format!("backup {id} resumed it")).await {
                // It was finished after all.
                Ok(()) | Err(RepoError::Conflict { .. }) => {}
                Err(error) => tracing::warn!(
                    repository = destination.name(),
                    "the unfinished backup {resumed} was not aborted: {error}\nDETAIL: \"archive-agent expire\" will abort it."
                ),
            }
        }
    }
}
