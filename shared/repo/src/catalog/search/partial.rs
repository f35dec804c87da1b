//! What an incomplete copy of a segment holds: only its bytes up to a position are ever looked at, with zeros behind, as
//! PostgreSQL will see them.

use std::collections::BTreeMap;
use std::sync::Arc;

use walpoint_base::{Lsn, SegmentName, SegmentNo, WalFileName};
use walpoint_plan::restore::decide::{PartialEnd, cut, last_end, last_start};
use walpoint_plan::restore::facts::StopQuestion;
use walpoint_plan::restore::path::SegmentRange;
use walpoint_plan::restore::stop::{SearchState, SegmentDecoder, Stop, StopRule};
use walpoint_storage::error::{RepoError, Result};

use super::Search;
use crate::cpu;
use crate::wal::WalArchive;

/// What is stored of a segment that is not there as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenSegment {
    /// Where the last complete record ends in what was streamed of it, or in a longer copy that continues that; `None` if nothing was.
    pub until: Option<Lsn>,
    /// Whether there are copies that were not streamed.
    pub others: bool,
}

impl WalArchive {
    /// Where the last record ends that is complete in the incomplete copy of a segment that is read, as a plan finds it; `None` if none is.
    pub async fn copied_until(
        &self,
        segment: SegmentName,
        decoder: &Arc<dyn SegmentDecoder>,
    ) -> Result<Option<Lsn>> {
        Search::new(self, &mut BTreeMap::new(), Some(decoder)).partial(segment).await
    }

    /// What is stored of a segment that is not there as a whole.
    pub async fn open_segment(
        &self,
        segment: SegmentName,
        decoder: &Arc<dyn SegmentDecoder>,
    ) -> Result<OpenSegment> {
        let others = self.has_other_than_slices(segment).await?;
        let until = match self.is_streamed(segment).await? {
            true => self.copied_until(segment, decoder).await?,
            false => None,
        };
        Ok(OpenSegment { until, others })
    }
}

impl Search<'_> {
    /// Where the last complete record of an incomplete copy ends; `None` if there is no copy, or no record is complete in it: nothing can
    /// be recovered from that. `None` as well without a decoder. What cannot be decoded is damage, though its bytes are those that were
    /// stored.
    pub(crate) async fn partial(&self, name: SegmentName) -> Result<Option<Lsn>> {
        let size = self.archive.lineage().segment_size;
        let (Some(number), Some(decoder)) = (name.number(size), self.decoder.cloned()) else {
            return Ok(None);
        };
        let Some(file) = self.archive.get_incomplete(name).await? else { return Ok(None) };
        let (start, end) = (number.start(size), number.end(size));
        let content = file.content;
        let (until, decoded, content) = cpu::run(move || {
            let until = last_end(&*decoder, name, &content, (start, end));
            let any = StopRule::Lsn { at: start, inclusive: true };
            let decoded = match until > start || content.iter().all(|byte| *byte == 0) {
                true => Ok(()),
                false => decoder.search(&any, start, end).feed(name, &content).map(drop),
            };
            (until, decoded, content)
        })
        .await?;
        if let Err(why) = decoded {
            let key = self.archive.paths().file(WalFileName::Partial(name));
            let what = format!("what is stored of this segment cannot be decoded: {why}");
            return Err(RepoError::corrupt(&key, what));
        }
        match until == start {
            true => self.carried_until(name, number, content).await,
            false => Ok(Some(until)),
        }
    }

    /// Where the record ends that begins before a segment and is complete in a copy of it; `None` if it is not.
    async fn carried_until(
        &self,
        name: SegmentName,
        number: SegmentNo,
        content: Vec<u8>,
    ) -> Result<Option<Lsn>> {
        let size = self.archive.lineage().segment_size;
        let (Some(decoder), mut first) = (self.decoder.cloned(), number) else { return Ok(None) };
        let mut before = Vec::new();
        let at = loop {
            let Some(previous) = first.0.checked_sub(1).map(SegmentNo) else { return Ok(None) };
            let Some((name, begins)) = self.before(name, previous).await? else { return Ok(None) };
            (first, before) = (previous, [vec![name], before].concat());
            if let Some(at) = begins {
                break at;
            }
        };
        let rule = StopRule::Lsn { at, inclusive: true };
        let mut search = decoder.search(&rule, first.start(size), number.end(size));
        for name in before {
            let Some(file) = self.archive.get(WalFileName::Segment(name)).await? else { return Ok(None) };
            let (returned, fed) = cpu::run(move || {
                let fed = search.feed(name, &file.content);
                (search, fed)
            })
            .await?;
            search = returned;
            if fed != Ok(SearchState::More) {
                return Ok(None);
            }
        }
        Ok(match cpu::run(move || search.feed(name, &content)).await? {
            Ok(SearchState::Stop(stop)) if stop.record < number.start(size) => Some(stop.end.align()),
            _ => None,
        })
    }

    /// The segment of that number on the path to another one, and where the last record can start in it that goes on behind its end, if
    /// any record starts in it.
    async fn before(
        &self,
        name: SegmentName,
        number: SegmentNo,
    ) -> Result<Option<(SegmentName, Option<Lsn>)>> {
        let size = self.archive.lineage().segment_size;
        let mut names = vec![number.name(name.timeline, size)];
        if let Some(history) = self.archive.history(name.timeline).await? {
            names = history.candidates(number, size).map(|timeline| number.name(timeline, size)).collect();
        }
        for name in names {
            if let Some(header) = self.archive.header(name).await?.filter(|header| !header.damaged) {
                return Ok(Some((name, header.first_record.map(|_| header.end))));
            }
        }
        Ok(None)
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
