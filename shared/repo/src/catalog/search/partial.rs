//! What an incomplete copy of a segment holds: only its bytes up to a position are ever looked at, with zeros behind, as
//! PostgreSQL will see them.

use std::collections::BTreeMap;
use std::sync::Arc;

use walpoint_base::{Lsn, SegmentName, WalFileName};
use walpoint_plan::restore::decide::{PartialEnd, cut, last_end, last_start};
use walpoint_plan::restore::facts::StopQuestion;
use walpoint_plan::restore::path::SegmentRange;
use walpoint_plan::restore::stop::{SearchState, SegmentDecoder, Stop};
use walpoint_storage::error::{RepoError, Result};

use super::Search;
use crate::cpu;
use crate::wal::WalArchive;

impl WalArchive {
    /// Where the last complete record ends in what was streamed of a segment, or in a longer copy that continues it; `None` if nothing was.
    pub async fn streamed_until(
        &self,
        segment: SegmentName,
        decoder: &Arc<dyn SegmentDecoder>,
    ) -> Result<Option<Lsn>> {
        if !self.is_streamed(segment).await? {
            return Ok(None);
        }
        Search::new(self, &mut BTreeMap::new(), Some(decoder)).partial(segment).await
    }
}

impl Search<'_> {
    /// Where the last complete record of an incomplete copy ends, or the segment's begin where no record in it is complete; `None`
    /// if there is no copy, or nothing that decodes it.
    pub(crate) async fn partial(&self, name: SegmentName) -> Result<Option<Lsn>> {
        let size = self.archive.lineage().segment_size;
        let (Some(number), Some(decoder)) = (name.number(size), self.decoder.cloned()) else {
            return Ok(None);
        };
        let Some(file) = self.archive.get_incomplete(name).await? else { return Ok(None) };
        let (start, end) = (number.start(size), number.end(size));
        let until = cpu::run(move || last_end(&*decoder, name, &file.content, (start, end))).await?;
        Ok(Some(until))
    }

    /// The record that decides in a `.partial` file, of those that end in it.
    pub(super) async fn stop_in_partial(
        &self,
        question: &StopQuestion,
        files: &[SegmentRange],
        partial: PartialEnd,
    ) -> Result<Option<Stop>> {
        let Some(decoder) = self.decoder else { return Ok(None) };
        let size = self.archive.lineage().segment_size;
        let mut search = decoder.search(&question.rule, question.from, partial.until.min(question.until));
        // A record may begin in the segment before.
        let before = files.last().filter(|range| range.last.next() == partial.number);
        let before = before.map(|range| WalFileName::Segment(range.last.name(range.timeline, size)));
        for file in before.into_iter().chain([WalFileName::Partial(partial.name)]) {
            let key = self.archive.paths().file(file);
            let read = match file {
                WalFileName::Partial(segment) => self.archive.get_incomplete(segment).await?,
                _ => self.archive.get(file).await?,
            };
            let Some(read) = read else {
                let store = self.archive.repository().store().name().to_owned();
                return Err(RepoError::NotFound { key, store });
            };
            let name = file.segment().unwrap_or(partial.name);
            let mut content = read.content;
            if name == partial.name {
                cut(&mut content, partial.until.since(partial.number.start(size)));
            }
            let (returned, found) = cpu::run(move || {
                let found = search.feed(name, &content);
                (search, found)
            })
            .await?;
            search = returned;
            if let SearchState::Stop(stop) = found.map_err(|what| RepoError::corrupt(&key, what))? {
                return Ok(Some(stop));
            }
        }
        Ok(None)
    }

    /// Where the last record starts that ends in a `.partial` file before its end counts.
    pub(super) async fn last_in_partial(&self, partial: PartialEnd) -> Result<Option<Lsn>> {
        let Some(decoder) = self.decoder.cloned() else { return Ok(None) };
        let Some(file) = self.archive.get_incomplete(partial.name).await? else { return Ok(None) };
        let start = partial.number.start(self.archive.lineage().segment_size);
        let mut content = file.content;
        cpu::run(move || {
            cut(&mut content, partial.until.since(start));
            last_start(&*decoder, partial.name, &content, start, partial.until)
        })
        .await
    }
}
