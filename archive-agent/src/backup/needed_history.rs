//! The histories of the timelines that a backup lies on: recovery asks for the history of its target's timeline before
//! anything else, and goes nowhere without it.
//!
//! PostgreSQL archives a history once, at the moment of the promotion. A server that was promoted while `archive_mode` was
//! off, such as a restored copy that became the server later, has never archived its own. So it is stored here if need be,
//! after the WAL of the backup, or the backup is not announced. A crash leaves the history or nothing.

use std::path::Path;

use anyhow::{Context, bail};
use tokio::sync::Mutex;
use walpoint_base::{Lsn, TimelineHistory, TimelineId, WalFileName};
use walpoint_pg::server::Server;
use walpoint_repo::wal::{Stored, WalArchive};
use walpoint_runtime::config::ClusterSettings;

use crate::check::repository::Destination;
use crate::check::source;
use crate::wal::contradiction;
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

/// The history of a timeline that an archive does not have, as the server that is backed up has it.
#[derive(Debug)]
pub(crate) struct LackingHistory {
    timeline: TimelineId,
    content: Vec<u8>,
}

impl LackingHistory {
    /// `own`: what the server has in `place`. An error says that the archive has another server's, or that there is none at all.
    async fn of(
        archive: &WalArchive,
        timeline: TimelineId,
        own: Option<Vec<u8>>,
        place: &str,
    ) -> anyhow::Result<Option<Self>> {
        let name = WalFileName::History(timeline);
        let content = match (archive.get(name).await?, own) {
            (Some(stored), Some(own)) if stored.content != own => {
                let what = other_history(archive, timeline, &own, &stored.content);
                archive.put_refused_history(timeline, own).await?;
                bail!("no backup was taken: {}", SplitBrain::new(archive, timeline, what));
            }
            (Some(_), _) => return Ok(None),
            (None, Some(own)) => own,
            (None, None) => bail!(
                "no backup was taken: {name} is neither in repository {} nor in {place}, and without it \
                 recovery on timeline \
                 {timeline} does not begin\nHINT: Look for it on a standby or on the server that was promoted, and store it \
                 with \"archive-agent push\". If there never was one (pg_resetwal), run \"archive-agent push \
                 --no-ancestors {name}\".",
                archive.repository().name()
            ),
        };
        let history = TimelineHistory::parse(timeline, &content)
            .with_context(|| format!("{name} of the server is not a history of timeline {timeline}"))?;
        if let Some(split) = contradiction::refuse(archive, &history, &content, None).await? {
            bail!("no backup was taken: {split}");
        }
        Ok(Some(Self { timeline, content }))
    }

    /// Stores it. The WAL of the backup has to be proven before: a history of another server would make readers follow its timeline.
    pub(crate) async fn store(self, archive: &WalArchive) -> anyhow::Result<()> {
        let name = WalFileName::History(self.timeline);
        if archive.put_file(name, self.content).await? == Stored::New {
            tracing::warn!(
                repository = archive.repository().name(),
                "{name} was not in the archive and is now\nDETAIL: The server was promoted while it did not archive."
            );
        }
        Ok(())
    }
}

impl Histories<'_> {
    /// What the archive lacks of the history of `timeline`, to be stored when the WAL of the backup is proven to be this server's.
    pub(crate) async fn lacking(
        &self,
        archive: &WalArchive,
        timeline: TimelineId,
    ) -> anyhow::Result<Option<LackingHistory>> {
        if timeline == TimelineId::FIRST {
            return Ok(None);
        }
        let own = self.content(timeline).await?;
        let place = self
            .pgdata
            .map_or("the server's pg_wal".to_owned(), |pgdata| pgdata.join("pg_wal").display().to_string());
        LackingHistory::of(archive, timeline, own, &place).await
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

    /// The newest timeline that the server has been on.
    pub(super) async fn newest_timeline(&self) -> anyhow::Result<Option<TimelineId>> {
        match self.pgdata {
            Some(pgdata) => Ok(source::read_control(pgdata)?.1.newest_timeline()),
            None => Ok(Some(self.server.lock().await.identity().await?.timeline)),
        }
    }

    /// What the server has in `pg_wal`; `None` if it has none.
    pub(super) async fn content(&self, timeline: TimelineId) -> anyhow::Result<Option<Vec<u8>>> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::fixtures::{Bed, switch_in};

    #[tokio::test]
    async fn a_history_is_stored_only_when_it_is_asked_for_and_another_ones_never() {
        let (bed, timeline) = (Bed::new().await, TimelineId::new(2).unwrap());
        let own = switch_in("000000010000000000000003", 0x800);
        let lacking = || LackingHistory::of(&bed.archive, timeline, Some(own.clone()), "pg_wal");
        let (first, second) = (lacking().await.unwrap().unwrap(), lacking().await.unwrap().unwrap());
        let stored = async || bed.archive.get(WalFileName::History(timeline)).await.unwrap();
        assert!(stored().await.is_none(), "the WAL of the backup is not proven yet");
        first.store(&bed.archive).await.unwrap();
        second.store(&bed.archive).await.unwrap();
        assert_eq!(stored().await.unwrap().content, own);
        assert!(lacking().await.unwrap().is_none());

        let other = switch_in("000000010000000000000004", 0x800);
        let told = LackingHistory::of(&bed.archive, timeline, Some(other), "pg_wal").await.unwrap_err();
        assert!(told.to_string().contains("split brain"), "{told}");
        let third = TimelineId::new(3).unwrap();
        let told =
            LackingHistory::of(&bed.archive, third, None, "/data/pg_wal").await.unwrap_err().to_string();
        assert!(
            told.contains("00000003.history is neither in repository main nor in /data/pg_wal"),
            "{told}"
        );
    }
}
