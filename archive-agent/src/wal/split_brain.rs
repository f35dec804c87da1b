//! Another server's WAL where this one's would go: what is said about it, and the task that looks for it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use walpoint_base::{ClusterName, Diagnostic, LineageId, TimelineId, WalFileName};
use walpoint_repo::wal::WalArchive;

use super::archiver::Archiver;
use super::identity::{Evidence, compare};
use super::target::{TargetError, WalTarget};
use super::unreadable;
use super::unwritten::unwritten;
use super::upload::Uploader;
use super::{claim, fork, history};

/// How often to look again whether all is well.
const INTERVAL: Duration = Duration::from_secs(60);

/// How every message begins that tells of one.
const SPLIT_BRAIN: &str = "split brain";

/// Another server's WAL is where this one's would go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SplitBrain {
    repository: String,
    cluster: ClusterName,
    lineage: LineageId,
    timeline: TimelineId,
    what: String,
    /// Whether something shows that it is another server's; otherwise, nothing shows that it is this one's.
    shown: bool,
    /// Whether the timeline itself is another server's than the one it left, whichever server asks.
    of_the_timeline: bool,
    /// Whether the timeline comes from another server's timeline than the one of an ancestor's number that is stored.
    of_another_ancestor: bool,
}

impl SplitBrain {
    /// Of a timeline in an archive; `what` shows it.
    pub(crate) fn new(archive: &WalArchive, timeline: TimelineId, what: String) -> Self {
        Self {
            repository: archive.repository().name().to_owned(),
            cluster: archive.lineage().cluster.clone(),
            lineage: archive.lineage().id,
            timeline,
            what,
            shown: true,
            of_the_timeline: false,
            of_another_ancestor: false,
        }
    }

    /// The same, where the timeline itself is another server's than the one that it left.
    pub(super) fn of_the_timeline(self) -> Self {
        Self { of_the_timeline: true, ..self }
    }

    /// The same, where the timeline comes from another server's timeline than the stored one.
    pub(super) fn of_another_ancestor(self) -> Self {
        Self { of_another_ancestor: true, ..self }
    }

    /// The same, where nothing shows that what is stored is another server's.
    pub(crate) fn not_shown(self) -> Self {
        Self { shown: false, ..self }
    }

    /// Whether something shows that what is stored is another server's.
    pub(crate) fn is_shown(&self) -> bool {
        self.shown
    }

    /// The timeline that both claim.
    pub(crate) fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// What there is to do.
    pub(crate) fn advice(&self) -> String {
        if self.of_the_timeline {
            return format!(
                "On the server that writes timeline {0}, set archive_mode = off, or run \"archive-agent init --new-lineage \
                 --cluster {1}\" and then back it up. Then run \"archive-agent lineage settle --timeline {0} --abandoned \
                 --reason TEXT\". Until then a restore has to name its timeline (--target-timeline). If timeline {0} is the \
                 one that counts, run \"archive-agent lineage settle --timeline {0} --reason TEXT\".",
                self.timeline, self.cluster
            );
        }
        let if_this = if self.shown { "If this" } else { "Unless that command applies: if this" };
        let then = match self.of_another_ancestor {
            true => format!(
                " Then run \"archive-agent lineage settle --timeline {} --reason TEXT\". Until then a restore has to name its \
                 timeline (--target-timeline).",
                self.timeline
            ),
            false => String::new(),
        };
        format!(
            "{if_this} server is the one to archive from now on, run \"archive-agent init --new-lineage --cluster {}\" on it \
             and then back it up. If it is a copy, set archive_mode = off on it.{then}",
            self.cluster
        )
    }

    /// What was found, without the advice.
    pub(crate) fn found(&self) -> String {
        let Self { repository, lineage, timeline, what, .. } = self;
        if self.of_the_timeline {
            return format!(
                "{SPLIT_BRAIN}: timeline {timeline} in lineage {lineage} in repository {repository} is of another server than the timeline \
                 that it left, so nothing more is stored of it: {what}"
            );
        }
        if self.of_another_ancestor {
            return format!(
                "{SPLIT_BRAIN}: timeline {timeline} comes from another server's timeline than the one that lineage {lineage} in \
                 repository {repository} holds, so nothing of it is stored there: {what}"
            );
        }
        format!(
            "{SPLIT_BRAIN}: lineage {lineage} in repository {repository} holds timeline {timeline} of another server, so nothing \
             of this server's timeline {timeline} is stored there: {what}"
        )
    }
}

impl fmt::Display for SplitBrain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nHINT: {}", self.found(), self.advice())
    }
}

/// What is wrong between a server and its repositories, a split brain among it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct SplitBrains(Diagnostic);

impl SplitBrains {
    /// What was found, in words.
    pub(crate) fn new(found: Diagnostic) -> Self {
        Self(found)
    }
}

/// Compares a server with each of its repositories that can be read.
pub(crate) async fn split_brains(uploader: &Uploader) -> anyhow::Result<Vec<SplitBrain>> {
    let cluster = uploader.identity().await?;
    let Some(timeline) = uploader.newest_timeline().await? else { return Ok(Vec::new()) };
    let written = uploader.written_timeline().await?;
    let wal = uploader.wal_directory();
    let writes = uploader.writes(timeline).await?;
    let mut found = Vec::new();
    for target in uploader.targets() {
        // That a repository cannot be read is told elsewhere.
        let Ok(archive) = target.archive(&cluster).await else { continue };
        found.extend(fork::disputed(&archive).await.unwrap_or_default());
        let compared = compare(&archive, &cluster, &wal, timeline).await;
        if let Ok(Evidence::Other(split)) = compared {
            found.push(split);
        } else if writes
            && let Ok(Some(split)) = unwritten(&archive, &wal, timeline, cluster.segment_size).await
        {
            found.push(split);
        } else if written == Some(timeline) {
            let places = [wal.join(WalFileName::History(timeline).to_string())];
            let around = (wal.as_path(), uploader.targets());
            let history = history::find(target, &archive, &cluster, timeline, &places, around).await;
            if let Err(TargetError::SplitBrain(split)) = history {
                found.push(*split);
            }
        }
    }
    Ok(found)
}

/// Compares the forks at which segments came too fast to look for them.
async fn compare_left(uploader: &Uploader) {
    for target in uploader.targets().iter().filter(|target| target.has_forks_left()) {
        // That something cannot be read is told elsewhere.
        let Ok(cluster) = uploader.identity().await else { return };
        let Ok(archive) = target.archive(&cluster).await else { continue };
        let compared = fork::compare_left(target, &archive, &uploader.wal_directory()).await;
        if let Err(TargetError::SplitBrain(split)) = compared {
            target.refuse(&split, None);
        }
    }
}

/// Compares at the start, then looks whether anything was refused as another server's; `working` is called whenever nothing
/// was. An error names what was: it is started again.
pub(crate) async fn keep(archiver: Arc<Archiver>, working: impl Fn()) -> anyhow::Result<()> {
    let uploader = archiver.uploader();
    claim::prepare(&uploader.wal_directory()).await;
    let found = split_brains(uploader).await?;
    let mut all: Vec<String> = found.iter().map(ToString::to_string).collect();
    loop {
        let targets = uploader.targets();
        let known = targets.iter().flat_map(|target| [target.split_brains(), target.disputed_timelines()]);
        all.extend(known.flatten().map(|split| split.to_string()));
        let is_split = !all.is_empty();
        all.extend(targets.iter().flat_map(|target| target.damaged_histories()));
        all.extend(targets.iter().filter_map(WalTarget::unnoted));
        if let Some(target) = targets.first() {
            all.extend(unreadable::reports(&target.cluster).await);
        }
        if !all.is_empty() {
            all.sort_unstable();
            all.dedup();
            let all = Diagnostic::gather("", &all);
            return Err(if is_split { SplitBrains::new(all).into() } else { all.into() });
        }
        working();
        tokio::time::timeout(INTERVAL, uploader.refused.notified()).await.ok();
        compare_left(uploader).await;
    }
}
