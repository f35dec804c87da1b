//! What another process acknowledged last: a daemon whose place this one took, or a command while none answered.
//!
//! A repository that does not have to acknowledge may lack it, and as long as no segment follows, nothing in the line of this process
//! shows that. So the newest segment that PostgreSQL marked as archived is looked for from time to time.

use std::time::Duration;

use walpoint_base::{SegmentName, WalFileName};
use walpoint_pg::wal::WalIdentity;

use crate::wal::bypass;
use crate::wal::follows::is_stored;
use crate::wal::target::WalTarget;
use crate::wal::upload::Uploader;

/// How often to look.
const INTERVAL: Duration = Duration::from_secs(20);

/// What was looked for.
#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    /// The newest segment whose place is known. It is not asked about again, whatever came of it.
    looked: Option<SegmentName>,
}

impl Elsewhere {
    /// Waits until a repository turns out to lack a segment that PostgreSQL marked as archived and that one which acknowledges has.
    pub(super) async fn was_acknowledged(&mut self, uploader: &Uploader, target: &WalTarget) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            // What cannot be found out now is asked again.
            match self.look(uploader, target).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::debug!(
                    repository = target.name(),
                    "not compared with what was archived last: {}",
                    walpoint_words::format_chain(&error)
                ),
            }
        }
    }

    async fn look(&mut self, uploader: &Uploader, target: &WalTarget) -> anyhow::Result<bool> {
        let Some(newest) = bypass::newest_archived(uploader).await? else { return Ok(false) };
        self.lacks(uploader, target, &uploader.identity().await?, newest).await
    }

    /// Whether a repository lacks a segment that one which acknowledges has, and this process does not store it there.
    async fn lacks(
        &mut self,
        uploader: &Uploader,
        target: &WalTarget,
        cluster: &WalIdentity,
        segment: SegmentName,
    ) -> anyhow::Result<bool> {
        let is_ours =
            || target.beside.has_taken(segment) || target.beside.awaits(WalFileName::Segment(segment));
        if self.looked == Some(segment) || is_ours() {
            return Ok(false);
        }
        let lacks = !is_stored(&target.archive(cluster).await?, segment).await?;
        if lacks && uploader.holder(cluster, segment).await?.is_none() {
            return Ok(false);
        }
        self.looked = Some(segment);
        // It may have come through here meanwhile.
        Ok(lacks && !is_ours())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::fixtures::two;

    #[tokio::test]
    async fn a_repository_lacks_what_one_that_acknowledges_has() {
        let (main, _far, uploader, cluster) = two().await;
        let target = &uploader.targets()[1];
        let name: SegmentName = "000000010000000000000003".parse().unwrap();
        let mut elsewhere = Elsewhere::default();
        let mut lacks = async || elsewhere.lacks(&uploader, target, &cluster, name).await.unwrap();
        assert!(!lacks().await, "it was dropped, or is not stored yet");
        main.put(&name.to_string(), 1).await;
        assert!(lacks().await);
        assert!(!lacks().await, "that is known by now");
        elsewhere = Elsewhere::default();
        target.beside.was_stored(WalFileName::Segment(name));
        assert!(!elsewhere.lacks(&uploader, target, &cluster, name).await.unwrap(), "it is ours");
    }
}
