//! Gaps on record: two neighboring segments of one server of which the second does not continue the first. Recovery cannot
//! pass from one to the other, and it is no split brain.
//!
//! `<segment>.gap` beside the second one is a document, created once and before the segment is acknowledged. It goes when its
//! segment goes. Readers look for it only where the records on both sides of a boundary do not fit.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use walpoint_base::SegmentName;
use walpoint_storage::descriptor::now;
use walpoint_storage::document::{self, as_text};
use walpoint_storage::error::{RepoError, Result, found};

use super::WalArchive;

/// A gap that the archiver put on record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RecordedGap {
    format: u16,
    /// The segment behind it.
    #[serde(with = "as_text")]
    pub segment: SegmentName,
    /// The segment before it.
    #[serde(with = "as_text")]
    pub before: SegmentName,
    /// What does not fit, for a person.
    pub what: String,
    /// When it was found.
    pub recorded: Timestamp,
}

impl WalArchive {
    /// Puts on record that a segment does not continue the one before it, though both are one server's. What is on record
    /// stays as it is.
    pub async fn record_gap(&self, before: SegmentName, segment: SegmentName, what: &str) -> Result<()> {
        let (what, format) = (what.to_owned(), walpoint_storage::object::FORMAT_VERSION);
        let gap = RecordedGap { format, segment, before, what, recorded: now() };
        let document = document::seal(Some(self.sealer()), &self.paths().gap(segment), &gap)?;
        match self.store().create_document(&document).await {
            Ok(_) | Err(RepoError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The gap before a segment that is on record, if one is.
    pub async fn recorded_gap(&self, segment: SegmentName) -> Result<Option<RecordedGap>> {
        let key = self.paths().gap(segment);
        let Some(bytes) = found(self.store().get(&key).await)? else {
            return match self.inherited().filter(|inherited| inherited.covers(segment)) {
                Some(inherited) => Box::pin(inherited.archive().recorded_gap(segment)).await,
                None => Ok(None),
            };
        };
        let gap: RecordedGap = document::open(Some(self.sealer()), &key, &bytes)?;
        if gap.segment != segment {
            return Err(RepoError::corrupt(&key, "it is about another segment"));
        }
        Ok(Some(gap))
    }
}
