//! The epoch of a transaction that a search found. WAL records carry the lower half of its id; a checkpoint says what the next
//! full one was, and from there the index counts on.

use walpoint_base::target::FullXid;
use walpoint_plan::restore::facts::StopQuestion;
use walpoint_plan::restore::path::SegmentRange;
use walpoint_plan::restore::stop::Stop;
use walpoint_storage::error::Result;

use super::{Search, groups};

impl Search<'_> {
    /// The full id of the transaction whose end `stop` is. `None` if no checkpoint before it can be read.
    ///
    /// Between one transaction's end and the next in WAL lie fewer than 2^31 ids, so the nearest full id is the right one,
    /// however many transactions there are in all.
    pub(super) async fn full_xid(
        &mut self,
        question: &StopQuestion,
        files: &[SegmentRange],
        stop: &Stop,
    ) -> Result<Option<FullXid>> {
        let Some(xid) = stop.xid else { return Ok(None) };
        let Some(mut at) = self.next_xid(question, files).await? else { return Ok(None) };
        let size = self.segment_size();
        for file in files {
            for (n, first, last) in groups(*file) {
                if first.start(size) > stop.record {
                    return Ok(Some(at.nearest(xid)));
                }
                let wal = self.timeline(file.timeline)?;
                let whole = wal.summary(n).filter(|s| s.last <= last && last.end(size) <= stop.record);
                if let Some(summary) = whole {
                    at = summary.transactions.map_or(at, |t| at.nearest(t.highest_xid));
                    continue;
                }
                let entries = wal.entries(first, last).await?;
                for (_, entry) in entries.iter().filter(|(number, _)| number.end(size) <= stop.record) {
                    at = entry.transactions.map_or(at, |t| at.nearest(t.highest_xid));
                }
            }
        }
        Ok(Some(at.nearest(xid)))
    }
}
