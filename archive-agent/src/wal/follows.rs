//! Whether a segment may be stored in a repository that does not have to acknowledge: not behind a gap.
//!
//! What always holds of such a repository: it lacks no segment that comes before one of its own and that a repository which acknowledges
//! has. Each process keeps to it, whatever the others do: what did not come through the process itself is looked at. That takes one
//! request after a start, and after each segment that another process acknowledged.

use walpoint_base::{SegmentName, SegmentNo, TimelineId, WalFileName};
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;

use super::contradiction::unless_damaged;
use super::disk;
use super::neighbors::{self, StoredNeighbor};
use super::target::WalTarget;
use super::upload::{UploadError, UploadSource, Uploader, upload_error};

/// The segment that a file is.
pub(super) fn whole(name: WalFileName) -> Option<SegmentName> {
    match name {
        WalFileName::Segment(segment) => Some(segment),
        _ => None,
    }
}

/// The segment before a file that is one. Of the first one of a timeline this is a name that is stored nowhere
/// ([`Uploader::follows`] knows the one meant).
pub(super) fn before(file: &UploadSource) -> Option<SegmentName> {
    whole(file.name).and_then(|name| neighbors::before(name, None, file.segment_size()))
}

impl Uploader {
    /// Whether PostgreSQL was not told of a segment yet: it comes through here, or through another process.
    pub(super) async fn is_waiting(&self, name: SegmentName) -> bool {
        let status = self.wal_directory().join("archive_status");
        let mark = status.join(format!("{name}.ready"));
        disk::look(&status, move || mark.exists()).await.unwrap_or_default()
    }

    /// Refuses to store anything behind a segment that a repository lacks, and one that acknowledges has. Into a repository without WAL
    /// everything may go: what it holds begins with that. Where a timeline begins, the segment before lies on the one that it came from.
    pub(super) async fn follows(
        &self,
        cluster: &WalIdentity,
        before: SegmentName,
        target: &WalTarget,
    ) -> Result<(), UploadError> {
        let archive = open(target, cluster).await?;
        let mut next = Some(before);
        while let Some(before) = next {
            if target.beside.has_taken(before) || is_stored(&archive, before).await? {
                return Ok(());
            }
            if let Some(holder) = self.holder(cluster, before).await? {
                if archive.timelines().await?.is_empty() {
                    return Ok(());
                }
                target.beside.surprises();
                let text = format!("it lacks {before}, which repository {} has", holder.name());
                return Err(UploadError::permanent(text));
            }
            if let Some((holder, lacking)) = self.holder_behind(cluster, &archive, before).await? {
                target.beside.surprises();
                let text = format!("it lacks {lacking}, which repository {} has", holder.name());
                return Err(UploadError::permanent(text));
            }
            next = self.on_earlier_timeline(cluster, before).await?;
            if next.is_none() && !archive.timelines().await?.contains(&before.timeline) {
                // It has nothing of the timeline: what comes before that counts.
                next = self.before_timeline(cluster, before.timeline).await?;
            }
        }
        Ok(())
    }

    /// The first repository that acknowledges and has a segment between the newest one that `archive` has before one, which none has, as
    /// it was dropped, and that one. Of a timeline of which `archive` has nothing, although it has others, any segment before that one.
    async fn holder_behind(
        &self,
        cluster: &WalIdentity,
        archive: &WalArchive,
        before: SegmentName,
    ) -> Result<Option<(&WalTarget, SegmentName)>, UploadError> {
        let newest = neighbors::newest_before(archive, before).await?;
        if newest.is_none() {
            let timelines = archive.timelines().await?;
            // What it holds of the timeline begins behind that, or it holds nothing at all.
            if timelines.is_empty() || timelines.contains(&before.timeline) {
                return Ok(None);
            }
        }
        for target in self.targets().iter().filter(|target| target.acknowledges) {
            let from = open(target, cluster).await?;
            let found = neighbors::stored_between(&from, newest, Some(before), before.timeline).await?;
            if let Some(found) = found {
                return Ok(Some((target, found)));
            }
        }
        Ok(None)
    }

    /// The first repository that acknowledges and has a segment, sound or not.
    pub(super) async fn holder(
        &self,
        cluster: &WalIdentity,
        segment: SegmentName,
    ) -> Result<Option<&WalTarget>, UploadError> {
        for target in self.targets().iter().filter(|target| target.acknowledges) {
            if is_stored(&open(target, cluster).await?, segment).await? {
                return Ok(Some(target));
            }
        }
        Ok(None)
    }

    /// The last segment before a timeline begins, on the one that it came from, as those that acknowledge know.
    async fn before_timeline(
        &self,
        cluster: &WalIdentity,
        timeline: TimelineId,
    ) -> Result<Option<SegmentName>, UploadError> {
        let size = cluster.segment_size;
        for target in self.targets().iter().filter(|target| target.acknowledges) {
            let archive = open(target, cluster).await?;
            if let Some(history) = unless_damaged(archive.history(timeline).await)? {
                let begin =
                    history.begin_of(timeline).map(|begin| SegmentNo::of(begin, size).name(timeline, size));
                return Ok(begin.and_then(|first| neighbors::before(first, Some(&history), size)));
            }
        }
        Ok(None)
    }

    /// A segment's number on the earlier timeline that it belongs to, if its own one begins behind it, as those that acknowledge know.
    async fn on_earlier_timeline(
        &self,
        cluster: &WalIdentity,
        name: SegmentName,
    ) -> Result<Option<SegmentName>, UploadError> {
        let Some(number) = name.number(cluster.segment_size) else { return Ok(None) };
        for target in self.targets().iter().filter(|target| target.acknowledges) {
            let archive = open(target, cluster).await?;
            if let Some(history) = unless_damaged(archive.history(name.timeline).await)? {
                let timeline = history.timeline_at(number.end(cluster.segment_size) - 1);
                return Ok((timeline < name.timeline).then(|| number.name(timeline, cluster.segment_size)));
            }
        }
        Ok(None)
    }
}

async fn open(target: &WalTarget, cluster: &WalIdentity) -> Result<WalArchive, UploadError> {
    target.archive(cluster).await.map_err(|error| upload_error(target, &error))
}

/// Whether a repository has a segment, sound or not.
pub(super) async fn is_stored(archive: &WalArchive, name: SegmentName) -> Result<bool, RepoError> {
    Ok(!matches!(neighbors::header(archive, name).await?, StoredNeighbor::Absent))
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{switch_in, two};
    use super::*;

    #[tokio::test]
    async fn nothing_is_stored_behind_a_segment_that_only_the_others_have() {
        let (main, far, uploader, cluster) = two().await;
        let target = &uploader.targets()[1];
        let names: Vec<String> = (1..=5).map(|n| format!("0000000100000000{n:08X}")).collect();
        let follows =
            async |n: usize| uploader.follows(&cluster, names[n].parse().unwrap(), target).await.is_ok();
        main.put(&names[0], 1).await;
        assert!(follows(0).await, "the repository has no WAL");
        far.put(&names[0], 1).await;
        main.put(&names[1], 1).await;
        assert!(follows(0).await);
        assert_eq!(target.beside.surprised(), 0);
        assert!(!follows(1).await, "another process acknowledged it");
        assert_eq!(target.beside.surprised(), 1);
        assert!(!follows(2).await, "no repository has it, and this one lacks what comes before it");
        far.put(&names[1], 1).await;
        assert!(follows(2).await, "no repository has it");
    }

    #[tokio::test]
    async fn a_timeline_does_not_begin_behind_what_a_repository_missed() {
        let (main, far, uploader, cluster) = two().await;
        let target = &uploader.targets()[1];
        // Timeline 2 begins in segment 5.
        main.put_history(2, switch_in("000000010000000000000005", 4096)).await;
        for name in ["000000010000000000000003", "000000010000000000000004", "000000020000000000000005"] {
            main.put(name, 1).await;
        }
        let before: SegmentName = "000000020000000000000004".parse().unwrap();
        far.put("000000010000000000000003", 1).await;
        let refused = uploader.follows(&cluster, before, target).await.unwrap_err();
        assert!(refused.text.contains("it lacks 000000010000000000000004"), "{}", refused.text);
        assert_eq!(target.beside.surprised(), 1);
        far.put("000000010000000000000004", 1).await;
        assert!(uploader.follows(&cluster, before, target).await.is_ok());
    }

    #[tokio::test]
    async fn a_dropped_segment_hides_nothing_before_it_on_a_timeline_that_a_repository_lacks() {
        let (main, far, uploader, cluster) = two().await;
        let target = &uploader.targets()[1];
        // Timeline 2 begins in segment 5, and its segment 6 was dropped.
        main.put_history(2, switch_in("000000010000000000000005", 4096)).await;
        for name in ["000000010000000000000003", "000000010000000000000004", "000000020000000000000005"] {
            main.put(name, 1).await;
        }
        let dropped: SegmentName = "000000020000000000000006".parse().unwrap();
        assert!(uploader.follows(&cluster, dropped, target).await.is_ok(), "it has no WAL at all");
        far.put("000000010000000000000003", 1).await;
        let refused = uploader.follows(&cluster, dropped, target).await.unwrap_err();
        assert!(refused.text.contains("it lacks 000000020000000000000005"), "{}", refused.text);

        // The one in which the timeline begins was dropped, too.
        let (main, far, uploader, cluster) = two().await;
        let target = &uploader.targets()[1];
        main.put_history(2, switch_in("000000010000000000000005", 4096)).await;
        for name in ["000000010000000000000003", "000000010000000000000004"] {
            main.put(name, 1).await;
        }
        far.put("000000010000000000000003", 1).await;
        let refused = uploader.follows(&cluster, dropped, target).await.unwrap_err();
        assert!(refused.text.contains("it lacks 000000010000000000000004"), "{}", refused.text);
        far.put("000000010000000000000004", 1).await;
        assert!(uploader.follows(&cluster, dropped, target).await.is_ok());
    }
}
