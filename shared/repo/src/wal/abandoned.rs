//! Abandoned timelines: a person says that nothing of value was written on one, so it is not the latest any more.
//!
//! `<TLI>.history.abandoned/<segment>.<TLI>-<LSN>` is a document, created once. It names the timeline by its number and by where it left its
//! parent, and counts only where the stored history is that one: a number may be another server's in another repository, or later. It covers
//! the timeline up to that segment, the last one that was stored then: WAL that comes later shows that a server still writes there, and the
//! timeline counts again. Nothing that is stored changes.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use walpoint_base::diagnostic::shown;
use walpoint_base::{Lsn, SegmentName, TimelineHistory, TimelineId, WalFileName};
use walpoint_storage::descriptor::now;
use walpoint_storage::document::{self, as_text};
use walpoint_storage::error::{RepoError, Result, found};
use walpoint_storage::layout::{AbandonedUntil, WalEntry};

use super::WalArchive;
use crate::lineage::LineageFork;

/// Who gave a timeline up, and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Abandonment {
    pub(crate) format: u16,
    /// The timeline.
    #[serde(with = "as_text")]
    pub timeline: TimelineId,
    /// The last segment that it covers; the one before the timeline's first if there was none.
    #[serde(with = "as_text")]
    pub until: SegmentName,
    /// The timeline that it left, and where; `None` if it has no ancestors, or no history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork: Option<LineageFork>,
    /// Why it does not count.
    pub reason: String,
    /// Who says so.
    pub who: String,
    /// When.
    pub settled: Timestamp,
}

impl std::fmt::Display for Abandonment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { timeline, until, reason, who, settled, .. } = self;
        let (reason, who) = (shown(reason), shown(who));
        write!(f, "timeline {timeline}: abandoned up to {until}; settled by {who} on {settled}: {reason}")
    }
}

impl Abandonment {
    /// What it is called.
    fn name(&self) -> AbandonedUntil {
        let fork = self.fork.map(|LineageFork { timeline, lsn }| (timeline, lsn));
        AbandonedUntil { until: self.until, fork }
    }
}

/// What a repository says of where a timeline begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimelineOrigin {
    /// Its stored history: the timeline that it left, and where; `None` if it has no ancestors.
    Stored(Option<(TimelineId, Lsn)>),
    /// No history is stored.
    Absent,
    /// It cannot be read.
    Damaged,
}

impl TimelineOrigin {
    /// Of a stored history.
    pub fn of(history: &TimelineHistory) -> Self {
        Self::Stored(history.parent().map(|entry| (entry.parent, entry.switch)))
    }

    /// Whether a record of that timeline is about this one.
    pub fn is(self, name: &AbandonedUntil) -> bool {
        match self {
            Self::Stored(fork) => fork == name.fork,
            Self::Absent => name.fork.is_none(),
            Self::Damaged => false,
        }
    }
}

impl WalArchive {
    /// Where a timeline begins, as its stored history says.
    pub async fn origin_of(&self, timeline: TimelineId) -> Result<TimelineOrigin> {
        match self.history(timeline).await {
            Ok(Some(history)) => Ok(TimelineOrigin::of(&history)),
            Ok(None) => Ok(TimelineOrigin::Absent),
            Err(RepoError::Corrupt { .. }) => Ok(TimelineOrigin::Damaged),
            Err(error) => Err(error),
        }
    }

    /// Of listed records those that are about timelines as they are stored, the last one of each.
    pub async fn abandoned_here(
        &self,
        listed: &[AbandonedUntil],
    ) -> Result<BTreeMap<TimelineId, AbandonedUntil>> {
        let (mut origins, mut here) = (BTreeMap::new(), BTreeMap::<TimelineId, AbandonedUntil>::new());
        for name in listed {
            let timeline = name.until.timeline;
            let origin = match origins.get(&timeline) {
                Some(origin) => *origin,
                None => *origins.entry(timeline).or_insert(self.origin_of(timeline).await?),
            };
            if origin.is(name) && here.get(&timeline).is_none_or(|last| last.until < name.until) {
                here.insert(timeline, *name);
            }
        }
        Ok(here)
    }

    /// Of listed records those of [`Self::abandoned_here`] whose timelines have had no WAL since.
    pub async fn still_abandoned(
        &self,
        listed: &[AbandonedUntil],
    ) -> Result<BTreeMap<TimelineId, AbandonedUntil>> {
        let mut still = BTreeMap::new();
        for (timeline, name) in self.abandoned_here(listed).await? {
            if self.stored_behind(name.until).await?.is_none() {
                still.insert(timeline, name);
            }
        }
        Ok(still)
    }

    /// A stored segment of the same timeline that lies behind one.
    pub async fn stored_behind(&self, until: SegmentName) -> Result<Option<SegmentName>> {
        let mut entries = self.list(until.timeline, Some(until));
        while let Some((entry, _)) = entries.try_next().await? {
            if let WalEntry::File(WalFileName::Segment(name)) = entry
                && name > until
            {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Says that a timeline was abandoned. What was said before stays as it is.
    pub async fn abandon_timeline(&self, name: AbandonedUntil, reason: &str, who: &str) -> Result<()> {
        let record = Abandonment {
            format: walpoint_storage::object::FORMAT_VERSION,
            timeline: name.until.timeline,
            until: name.until,
            fork: name.fork.map(|(timeline, lsn)| LineageFork { timeline, lsn }),
            reason: reason.to_owned(),
            who: who.to_owned(),
            settled: now(),
        };
        self.note_abandonment(&record).await
    }

    pub(super) async fn note_abandonment(&self, record: &Abandonment) -> Result<()> {
        let key = self.paths().abandoned_timeline(record.name());
        let document = document::seal(Some(self.sealer()), &key, record)?;
        match self.store().create_document(&document).await {
            Ok(_) | Err(RepoError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The record that a timeline was abandoned, if there is one of that name.
    pub async fn abandonment(&self, name: AbandonedUntil) -> Result<Option<Abandonment>> {
        let key = self.paths().abandoned_timeline(name);
        let Some(bytes) = found(self.store().get(&key).await)? else { return Ok(None) };
        let record: Abandonment = document::open(Some(self.sealer()), &key, &bytes)?;
        if (record.timeline, record.name()) != (name.until.timeline, name) {
            return Err(RepoError::corrupt(&key, "it is about another timeline"));
        }
        Ok(Some(record))
    }
}
