//! The end of a backup: its WAL has arrived, then its manifest is created, in each repository by itself. One that fails has no
//! copy; the others have theirs all the same.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use futures_util::future::join_all;
use tokio::sync::Mutex;
use walpoint_base::{BackupId, PgTimestamp, TimelineId};
use walpoint_pg::server::Server;
use walpoint_repo::backup::{Draft, Finding, Summary};
use walpoint_repo::catalog::latest_commit_before;
use walpoint_repo::wal::WalArchive;
use walpoint_runtime::config::duration;
use walpoint_storage::error::error_chain;

use super::database_copies;
use super::needed_history::Histories;
use super::needed_wal::NeededWal;
use super::own_wal::{self, Checkpoints};
use super::replica::streams::Failures;
use super::run::Run;
use crate::check::repository::Destination;
use crate::check::source;
use crate::wal::identity::{self, Evidence};
use crate::wal::unwritten::unwritten;
use crate::wal::{check, control};

/// Bad pages that an error names.
const NAMED: usize = 10;
/// How long another repository may take to say what it knows of commit times.
const OTHERS_LIMIT: Duration = Duration::from_secs(60);

/// A copy that exists.
#[derive(Debug)]
pub(crate) struct Published {
    /// The repository's name.
    pub(crate) repository: String,
    /// What the manifest says.
    pub(crate) summary: Summary,
    /// The finished backup that it was compared with.
    pub(crate) parent: Option<BackupId>,
    /// The bad pages that it names.
    pub(crate) findings: Vec<Finding>,
}

/// What it takes to announce a backup.
pub(crate) struct Publishing<'a> {
    pub(crate) run: &'a Run<'a>,
    pub(crate) needed: &'a NeededWal,
    /// The checkpoints of the server that was copied.
    pub(crate) checkpoints: &'a Checkpoints,
    /// A session on the backup's server.
    pub(crate) server: &'a Mutex<Server>,
    /// The repositories of the cluster.
    pub(crate) destinations: &'a [Destination],
    /// The data directory, where it is visible.
    pub(crate) pgdata: Option<&'a Path>,
    /// Where the copies are.
    pub(crate) copies: &'a [Destination],
    /// Which of them failed.
    pub(crate) failures: &'a Failures,
}

impl Publishing<'_> {
    /// Waits for the WAL and creates the manifests. `drafts` are in the order of the copies. An error means that there is no
    /// backup in any repository.
    pub(crate) async fn publish(&self, drafts: Vec<Option<Draft>>) -> anyhow::Result<Vec<Published>> {
        // A backup counts on every repository that has to acknowledge WAL, also on those that get no copy.
        let others = self.destinations.iter().filter(|destination| destination.acknowledges);
        let others = others.filter(|other| !self.copies.iter().any(|copy| copy.name() == other.name()));
        let others = join_all(others.map(|other| self.wal(other))).await;
        others.into_iter().collect::<anyhow::Result<()>>()?;

        let drafts = drafts.into_iter().zip(self.copies).enumerate();
        let drafts = drafts.filter_map(|(copy, (draft, to))| Some((copy, draft?, to)));
        let attempts = drafts.map(|(copy, draft, to)| async move {
            let published = self.copy(draft, to).await;
            published.map_err(|error| self.failures.note(copy, error)).ok()
        });
        let published = join_all(attempts).await.into_iter().flatten().collect();
        self.failures.any_left()?;
        Ok(published)
    }

    async fn copy(&self, mut draft: Draft, to: &Destination) -> anyhow::Result<Published> {
        self.wal(to).await?;
        let latest = self.run.unless_stopped(self.latest_commit(&draft, to)).await?;
        draft.note_latest_commit(latest);
        let (findings, parent) = (draft.manifest().findings.clone(), draft.parent());
        draft.notes().iter().for_each(|note| tracing::warn!(repository = to.name(), "{note}"));
        // Packs and WAL took hours: a backup is only in the repository that they went into.
        to.archive().repository().read_descriptor_again().await?;
        let summary = draft.publish(self.needed.stored()).await?;
        // The backup is there, whatever becomes of this.
        if let Err(error) = to.backups().tidy(summary.id).await {
            tracing::warn!(
                repository = to.name(),
                "what the backup left was not tidied up: {}",
                error_chain(&error)
            );
        }
        Ok(Published { repository: to.name().to_owned(), summary, parent, findings })
    }

    /// The latest commit time before the backup, by all that the repositories know: a new one has no WAL from before it.
    async fn latest_commit(&self, draft: &Draft, to: &Destination) -> anyhow::Result<Option<PgTimestamp>> {
        let facts = &draft.manifest().summary.facts;
        let (timeline, start) = (facts.start_timeline, facts.start_lsn);
        let in_one = |one: &Destination| {
            let (repository, lineage) = (one.repository.clone(), one.lineage.clone());
            async move { latest_commit_before(&repository, &lineage.cluster, lineage.id, timeline, start).await }
        };
        let others = self.destinations.iter().filter(|other| other.name() != to.name());
        let others = others.map(|other| async move {
            let repository = other.name();
            match tokio::time::timeout(OTHERS_LIMIT, in_one(other)).await {
                Ok(Ok(latest)) => latest,
                Ok(Err(error)) => {
                    tracing::warn!(
                        repository,
                        "the commit times here were not looked at: {}",
                        error_chain(&error)
                    );
                    None
                }
                Err(_) => {
                    tracing::warn!(
                        repository,
                        "the commit times here were not looked at: it does not answer"
                    );
                    None
                }
            }
        });
        let (own, others) = tokio::join!(in_one(to), join_all(others));
        Ok(own?.max(others.into_iter().max().flatten()))
    }

    /// Waits until a repository has the WAL that the backup needs.
    async fn wal(&self, destination: &Destination) -> anyhow::Result<()> {
        let (archive, settings) = (destination.archive(), &self.run.selection.settings);
        let limit = duration(settings.backup_wal_timeout);
        let histories = Histories { pgdata: self.pgdata, settings, server: self.server };
        let stored = self.needed.stored();
        let arrived = async {
            for timeline in [stored.first.timeline, stored.last.timeline] {
                histories.store(&archive, timeline).await?;
            }
            let copied = self.needed.wait(&archive, limit, self.server, self.pgdata).await?;
            // What arrived under these names may be another server's.
            self.checkpoints.prove(&archive, self.needed).await?;
            database_copies::refuse(&archive, self.needed, &copied, self.checkpoints.range()).await?;
            if let Some(pgdata) = self.pgdata {
                refuse_split_brain(&archive, pgdata, self.needed).await?;
            }
            anyhow::Ok(archive.repository().read_descriptor_again().await?)
        };
        self.run.unless_stopped(arrived).await
    }
}

/// There is no backup where another server's WAL is.
async fn refuse_split_brain(archive: &WalArchive, pgdata: &Path, needed: &NeededWal) -> anyhow::Result<()> {
    let (_, found) = source::read_control(pgdata)?;
    let timeline = TimelineId::new(found.checkpoint.timeline.max(found.min_recovery_point_timeline));
    let Some(timeline) = timeline else { return Ok(()) };
    let (cluster, wal) = (check::identity(&found), pgdata.join("pg_wal"));
    own_wal::compare(archive, &cluster, &wal, needed).await?;
    if let Evidence::Other(split) = identity::compare(archive, &cluster, &wal, timeline).await? {
        bail!("no backup was made: {split}");
    }
    if control::writes(pgdata, &found, timeline)
        && let Some(split) = unwritten(archive, &wal, timeline, cluster.segment_size).await?
    {
        bail!("no backup was made: {split}");
    }
    Ok(())
}

/// With `--strict` a damaged page means that there is no backup, and never will be one of this id.
pub(crate) async fn refuse_damage(drafts: &[Option<Draft>], copies: &[Destination]) -> anyhow::Result<()> {
    let Some(manifest) =
        drafts.iter().flatten().map(Draft::manifest).find(|m| m.summary.totals.bad_pages > 0)
    else {
        return Ok(());
    };
    let bad = manifest.summary.totals.bad_pages;
    let named = manifest.findings.iter().take(NAMED).map(|f| format!("{} block {}", f.path, f.block));
    let reason = format!("{bad} damaged pages: {}", named.collect::<Vec<_>>().join(", "));
    for destination in copies {
        destination.backups().bury(manifest.summary.id, &reason).await?;
    }
    bail!("no backup was made, because of --strict: {reason}")
}
