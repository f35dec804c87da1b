//! The histories of the timelines that a backup lies on: recovery asks for the history of its target's timeline before
//! anything else, and goes nowhere without it.
//!
//! PostgreSQL archives a history once, at the moment of the promotion. A server that was promoted while `archive_mode` was
//! off, such as a restored copy that became the server later, has never archived its own. So it is stored here if need be,
//! or the backup is not announced. A crash leaves the history or nothing.

use std::path::Path;

use anyhow::{Context, bail};
use tokio::sync::Mutex;
use walpoint_base::{Lsn, TimelineHistory, TimelineId, WalFileName};
use walpoint_pg::server::Server;
use walpoint_repo::wal::WalArchive;
use walpoint_runtime::config::ClusterSettings;

use crate::check::repository::Destination;
use crate::check::source;
use crate::wal::identity::other_history;
use crate::wal::split_brain::SplitBrain;

/// SQLSTATE of a file that the server does not have.
const UNDEFINED_FILE: &str = "58P01";

/// Where histories are looked for: in `pg_wal` where it is visible, else the server is asked for those it has there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Histories<'a> {
    /// The data directory, where it is visible.
    pub(crate) pgdata: Option<&'a Path>,
    /// How the server is reached.
    pub(crate) settings: &'a ClusterSettings,
    /// A session on the backup's server.
    pub(crate) server: &'a Mutex<Server>,
}

impl Histories<'_> {
    /// Makes sure that the history of `timeline` is in the archive.
    pub(crate) async fn store(&self, archive: &WalArchive, timeline: TimelineId) -> anyhow::Result<()> {
        if timeline == TimelineId::FIRST {
            return Ok(());
        }
        let name = WalFileName::History(timeline);
        let (stored, own) = (archive.get(name).await?, self.content(timeline).await?);
        let repository = archive.repository().name();
        let content = match (stored, own) {
            (Some(stored), Some(own)) if stored.content != own => {
                let what = other_history(archive, timeline, &own, &stored.content);
                archive.put_refused_history(timeline, own).await?;
                bail!("no backup was made: {}", SplitBrain::new(archive, timeline, what));
            }
            (Some(_), _) => return Ok(()),
            (None, Some(own)) => own,
            (None, None) => bail!(
                "no backup was made: {name} is neither in repository {repository} nor in {}, and without it recovery on \
                 timeline {timeline} does not begin\nHINT: Look for it on a standby or on the server that was promoted, and \
                 store it with \"archive-agent push\". If there never was one (pg_resetwal), run \"archive-agent push \
                 --no-ancestors {name}\".",
                self.pgdata.map_or("the server's pg_wal".to_owned(), |pgdata| pgdata
                    .join("pg_wal")
                    .display()
                    .to_string())
            ),
        };
        TimelineHistory::parse(timeline, &content)
            .with_context(|| format!("{name} of the server is no history of timeline {timeline}"))?;
        archive.put_file(name, content).await?;
        tracing::warn!(
            repository,
            "{name} was not in the archive and is now\nDETAIL: The server was promoted while it did not archive."
        );
        Ok(())
    }

    /// The history of the timeline on which a standby stopped the backup.
    pub(crate) async fn of_the_stop(
        &self,
        start: TimelineId,
        stop: Lsn,
        destinations: &[Destination],
    ) -> anyhow::Result<TimelineHistory> {
        let now = self.server.lock().await.identity().await?.timeline;
        if now == start {
            return Ok(TimelineHistory::root(start));
        }
        let history = self.find(now, destinations).await?;
        let stopped = history.timeline_at(stop - 1);
        match stopped {
            _ if stopped == now => Ok(history),
            _ if stopped == start => Ok(TimelineHistory::root(start)),
            _ => self.find(stopped, destinations).await,
        }
    }

    /// The history of a timeline, from wherever it is.
    pub(crate) async fn find(
        &self,
        timeline: TimelineId,
        destinations: &[Destination],
    ) -> anyhow::Result<TimelineHistory> {
        if let Some(content) = self.content(timeline).await? {
            return Ok(TimelineHistory::parse(timeline, &content)?);
        }
        for destination in destinations {
            if let Some(history) = destination.archive().history(timeline).await? {
                return Ok(history);
            }
        }
        bail!("the history of timeline {timeline} is neither in pg_wal nor in a repository")
    }

    /// What the server has in `pg_wal`; `None` if it has none.
    async fn content(&self, timeline: TimelineId) -> anyhow::Result<Option<Vec<u8>>> {
        let Some(pgdata) = self.pgdata else {
            let mut walsender = source::walsender(self.settings, &mut *self.server.lock().await).await?;
            return match walsender.timeline_history(timeline).await {
                Ok(history) => Ok(history.map(|(content, _)| content)),
                Err(error) if error.sqlstate() == Some(UNDEFINED_FILE) => Ok(None),
                Err(error) => Err(error.into()),
            };
        };
        let path = pgdata.join("pg_wal").join(WalFileName::History(timeline).to_string());
        match tokio::fs::read(&path).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            content => content.map(Some).with_context(|| format!("{} cannot be read", path.display())),
        }
    }
}
