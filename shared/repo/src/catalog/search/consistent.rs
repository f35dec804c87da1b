//! The last record that a backup needs: the one that ends at a position, or behind it.

use walpoint_base::{Lsn, SegmentNo};
use walpoint_plan::restore::decide::RangedSegment;
use walpoint_plan::restore::facts::StopQuestion;
use walpoint_plan::restore::path::SegmentRange;
use walpoint_plan::restore::stop::Stop;
use walpoint_storage::error::Result;

use super::Search;

impl Search<'_> {
    /// It starts in the last segment before that position in which a record starts before it.
    pub(super) async fn ending_at(
        &mut self,
        question: &StopQuestion,
        files: &[SegmentRange],
        end: Lsn,
    ) -> Result<Option<Stop>> {
        let last = SegmentNo::before(end, self.segment_size());
        for (range, file) in files.iter().enumerate().rev() {
            for number in (file.first.0..=file.last.min(last).0).rev().map(SegmentNo) {
                let entry = self.entry(file.timeline, number).await?;
                if entry.is_none_or(|entry| entry.first_record.is_some_and(|first| first < end)) {
                    return self.decode(question, files, RangedSegment { range, number }).await;
                }
            }
        }
        Ok(None)
    }
}
