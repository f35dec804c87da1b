//! From where on a repository should have all of a timeline.

use std::cmp::Ordering;

use futures_util::TryStreamExt;
use walpoint_base::{BackupId, SegmentName, SegmentNo, SegmentSize, TimelineId};
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::wal::WalArchive;

use crate::wal::target::{Missed, WalTarget};
use crate::wal::upload::Uploader;
use crate::wal::{base, complete, disk};

/// Of each timeline, from what it missed, and more where that is not all.
pub(super) struct Ranges {
    pub(super) missed: Missed,
    pub(super) unknown: Option<Unknown>,
}

/// From where on it should have what it may have missed before that is known.
pub(super) struct Unknown {
    /// Up to this segment this or an earlier daemon found that it lacks nothing, or from here on it left files that it could not copy.
    complete: Option<SegmentName>,
    kept: Kept,
}

impl Unknown {
    pub(super) async fn of(
        uploader: &Uploader,
        (target, to): (&WalTarget, &WalArchive),
        kept: Kept,
    ) -> anyhow::Result<Self> {
        let (wal, place) = (uploader.wal_directory(), complete::place(to.repository().id(), to.lineage()));
        let noted = disk::run(uploader.pgdata(), move || complete::read(&wal, &place)).await?;
        // What this process knows may not be noted yet, or it must not write there.
        let complete = noted.into_iter().chain(target.beside.complete()).min();
        Ok(Self { complete, kept })
    }
}

/// What it keeps: what is older than that may have been expired.
pub(super) enum Kept {
    /// From its newest backup, on that timeline and later ones.
    SinceBackup(BackupId, SegmentSize),
    /// From its first file: it has no backup.
    SinceFirst(Vec<TimelineId>),
}

impl Ranges {
    /// Of a repository that `missed` something; `known`: and nothing else.
    pub(super) async fn of(
        uploader: &Uploader,
        (target, to): (&WalTarget, &WalArchive),
        cluster: &WalIdentity,
        missed: &Missed,
        known: bool,
    ) -> anyhow::Result<Self> {
        let missed = missed.clone();
        if known {
            return Ok(Self { missed, unknown: None });
        }
        let newest = match base::path(uploader, to).await? {
            Some(path) => base::newest_backup(to, &path).await?,
            None => None,
        };
        let kept = match newest {
            Some(backup) => Kept::SinceBackup(backup, cluster.segment_size),
            None => Kept::SinceFirst(to.timelines().await?),
        };
        Ok(Self { missed, unknown: Some(Unknown::of(uploader, (target, to), kept).await?) })
    }

    /// The first file that it should have; `None` if it needs nothing of that timeline.
    pub(super) async fn first(
        &self,
        to: &WalArchive,
        timeline: TimelineId,
    ) -> anyhow::Result<Option<SegmentName>> {
        let mut first = self.missed.get(&timeline).copied();
        if let Some(Unknown { complete, kept }) = &self.unknown {
            let others = [complete.and_then(|last| since(last, timeline)), kept.first(to, timeline).await?];
            first = first.into_iter().chain(others.into_iter().flatten()).min();
        }
        Ok(first)
    }
}

/// The first file of a timeline that was written after a segment, or not before.
fn since(last: SegmentName, timeline: TimelineId) -> Option<SegmentName> {
    match timeline.cmp(&last.timeline) {
        Ordering::Less => None,
        Ordering::Equal => Some(last),
        Ordering::Greater => Some(SegmentName { timeline, log: 0, segment: 0 }),
    }
}

impl Kept {
    async fn first(&self, to: &WalArchive, timeline: TimelineId) -> anyhow::Result<Option<SegmentName>> {
        Ok(match self {
            Self::SinceBackup(backup, size) => {
                let start = SegmentNo::of(backup.start(), *size).name(timeline, *size);
                (timeline >= backup.timeline()).then_some(start)
            }
            Self::SinceFirst(timelines) if timelines.contains(&timeline) => {
                let first = to.list(timeline, None).try_next().await?;
                first.and_then(|(entry, _)| entry.segment())
            }
            // If it has nothing at all, what it holds begins with what is archived next.
            Self::SinceFirst(timelines) => {
                let later = timelines.last().is_some_and(|last| *last < timeline);
                later.then_some(SegmentName { timeline, log: 0, segment: 0 })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::fixtures::{Bed, size};

    #[tokio::test]
    async fn what_a_daemon_left_is_compared_though_a_newer_backup_exists() {
        let bed = Bed::new().await;
        let name = |text: &str| Some(text.parse::<SegmentName>().unwrap());
        let timeline = |number: &str| number.parse::<TimelineId>().unwrap();
        let backup: BackupId = "20261121T101500Z-00000002-0000000000900028-9f3a0c11".parse().unwrap();
        let ranges = |complete, unknown: bool| {
            let kept = Kept::SinceBackup(backup, size());
            let missed = Missed::from([(timeline("2"), name("000000020000000000000008").unwrap())]);
            Ranges { missed, unknown: unknown.then_some(Unknown { complete, kept }) }
        };
        let to = &bed.archive;
        let complete = name("000000020000000000000005");
        assert_eq!(ranges(complete, true).first(to, timeline("1")).await.unwrap(), None);
        assert_eq!(ranges(complete, true).first(to, timeline("2")).await.unwrap(), complete);
        assert_eq!(
            ranges(complete, true).first(to, timeline("3")).await.unwrap(),
            name("000000030000000000000000")
        );
        let missed = name("000000020000000000000008");
        assert_eq!(ranges(None, true).first(to, timeline("2")).await.unwrap(), missed);
        assert_eq!(ranges(complete, false).first(to, timeline("2")).await.unwrap(), missed);
        assert_eq!(ranges(complete, false).first(to, timeline("3")).await.unwrap(), None);
    }
}
