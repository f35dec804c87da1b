//! What is known of timelines beside their histories, copied from one repository of a lineage to another: histories that were
//! refused, and what a person settled or gave as abandoned.
//!
//! Each is an object that is created once, so a crash leaves some of them, and copying again adds the rest.

use walpoint_base::{TimelineId, WalFileName};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::AbandonedUntil;

use super::{TimelineOrigin, WalArchive};

impl WalArchive {
    /// Takes over what another repository holds of this lineage's timelines and this one lacks; how many objects that were. What
    /// is damaged there is left. The hash of a history is each repository's own. That a timeline was abandoned is taken together with its
    /// history, and not for another one of that number.
    pub async fn take_verdicts(&self, from: &Self) -> Result<usize> {
        let (there, here) = (from.all_histories().await?, self.all_histories().await?);
        let mut taken = 0;
        for name in there.abandoned.into_iter().filter(|name| !here.abandoned.contains(name)) {
            if !self.takes(&name, from).await? {
                continue;
            }
            if let Some(record) = unless_damaged(from.abandonment(name).await)? {
                self.note_abandonment(&record).await?;
                taken += 1;
            }
        }
        for (timeline, hash) in there.refused {
            let Some(content) = unless_damaged(from.refused_history(timeline, hash).await)? else { continue };
            // What was refused there may be what this one has: of two servers each has its own, and neither is the other's to refuse.
            let stored = async |archive: &Self| archive.stores_history(timeline, &content).await;
            if stored(self).await? && !stored(from).await? {
                continue;
            }
            let own = self.sealer().content_hash(&content);
            let settled =
                there.settled.contains(&(timeline, hash)) && !here.settled.contains(&(timeline, own));
            // Before the history: it would put the timeline in doubt again meanwhile.
            if settled && let Some(record) = unless_damaged(from.settlement(timeline, hash).await)? {
                self.note_settlement(&record.about(own)).await?;
                taken += 1;
            }
            if !here.refused.contains(&(timeline, own)) {
                self.put_refused_history(timeline, content).await?;
                taken += 1;
            }
        }
        Ok(taken)
    }

    /// Whether a timeline's history is stored, with that content.
    async fn stores_history(&self, timeline: TimelineId, content: &[u8]) -> Result<bool> {
        let stored = unless_damaged(self.get(WalFileName::History(timeline)).await)?;
        Ok(stored.is_some_and(|stored| stored.content == content))
    }

    /// Whether the record that a timeline was abandoned is about the one that this repository has, or gets from the other one.
    async fn takes(&self, name: &AbandonedUntil, from: &Self) -> Result<bool> {
        match self.origin_of(name.until.timeline).await? {
            own @ TimelineOrigin::Stored(_) => Ok(own.is(name)),
            TimelineOrigin::Absent | TimelineOrigin::Damaged => {
                Ok(from.origin_of(name.until.timeline).await?.is(name))
            }
        }
    }
}

fn unless_damaged<T>(read: Result<Option<T>>) -> Result<Option<T>> {
    match read {
        Err(RepoError::Corrupt { .. }) => Ok(None),
        read => read,
    }
}
