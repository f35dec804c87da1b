//! Abandoned timelines: a person says that nothing of value was written on one, so it is not the latest any more.
//!
//! `<TLI>.history.abandoned/<segment>` is a document, created once. It covers the timeline up to that segment, the last one that was
//! stored then: WAL that comes later shows that a server still writes there, and the timeline counts again. Nothing that is stored
//! changes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use walpoint_base::{SegmentName, TimelineId};
use walpoint_storage::descriptor::now;
use walpoint_storage::document::{self, as_text};
use walpoint_storage::error::{RepoError, Result, found};

use super::WalArchive;

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
        write!(f, "timeline {timeline}: abandoned up to {until}; settled by {who} on {settled}: {reason}")
    }
}

impl WalArchive {
    /// Says that the timeline in the name of `until` was abandoned, up to that segment. What was said before stays as it is.
    pub async fn abandon_timeline(&self, until: SegmentName, reason: &str, who: &str) -> Result<()> {
        let (reason, who, format) =
            (reason.to_owned(), who.to_owned(), walpoint_storage::object::FORMAT_VERSION);
        let record = Abandonment { format, timeline: until.timeline, until, reason, who, settled: now() };
        self.note_abandonment(&record).await
    }

    pub(super) async fn note_abandonment(&self, record: &Abandonment) -> Result<()> {
        let key = self.paths().abandoned_timeline(record.until);
        let document = document::seal(Some(self.sealer()), &key, record)?;
        match self.store().create_document(&document).await {
            Ok(_) | Err(RepoError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The record that a timeline was abandoned up to a segment, if there is one.
    pub async fn abandonment(&self, until: SegmentName) -> Result<Option<Abandonment>> {
        let key = self.paths().abandoned_timeline(until);
        let Some(bytes) = found(self.store().get(&key).await)? else { return Ok(None) };
        let record: Abandonment = document::open(Some(self.sealer()), &key, &bytes)?;
        if (record.timeline, record.until) != (until.timeline, until) {
            return Err(RepoError::corrupt(&key, "it is about another timeline"));
        }
        Ok(Some(record))
    }
}
