//! The last transaction before a position that removed relations, as far back as it is cheap to look: for a note, for which no plan
//! waits long or fails. The index does not tell of it, so segments are decoded.

use std::time::Duration;

use futures_util::future::join_all;
use walpoint_base::{SegmentNo, WalFileName};
use walpoint_plan::restore::decide::cut;
use walpoint_plan::restore::facts::Facts;
use walpoint_plan::restore::removal::{Removal, RemovalQuestion, RemovalSearch};
use walpoint_storage::error::Result;

use super::{Search, files};
use crate::cpu;

/// WAL that is looked at.
const REACH: u64 = 256 << 20;

/// WAL that is looked at before what is older: most people come minutes too late. No more than that is read ahead.
const PART: u64 = 64 << 20;

/// How long a plan waits for it: a person hardly notices.
const TIME_LIMIT: Duration = Duration::from_millis(500);

/// Segments that are read at the same time.
const AT_ONCE: usize = 16;

/// A file to look into, and how many of its bytes count, if not all do.
type Counted = (WalFileName, Option<u64>);

impl Search<'_> {
    /// The last one found in time.
    pub(crate) async fn removal(&self, facts: &Facts, question: &RemovalQuestion) -> Option<Removal> {
        self.decoder?.removals(question.before)?;
        match tokio::time::timeout(TIME_LIMIT, self.look_back(facts, question)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::debug!("could not look for removed relations: {error}");
                None
            }
            Err(_) => {
                tracing::debug!("stopped looking for removed relations after {TIME_LIMIT:?}");
                None
            }
        }
    }

    async fn look_back(&self, facts: &Facts, question: &RemovalQuestion) -> Result<Option<Removal>> {
        let size = facts.segment_size;
        let first = SegmentNo::of(question.after, size);
        let (ranges, partial) = files(facts, question.path, first, question.before)?;
        let partial =
            partial.map(|p| (WalFileName::Partial(p.name), Some(p.until.since(p.number.start(size)))));
        let whole = ranges.iter().rev().flat_map(|range| {
            let names = (range.first.0..=range.last.0).rev();
            names.map(|number| (WalFileName::Segment(SegmentNo(number).name(range.timeline, size)), None))
        });
        let segments = |bytes: u64| usize::try_from(bytes / size.bytes()).unwrap_or(usize::MAX).max(1);
        let files: Vec<Counted> = partial.into_iter().chain(whole).take(segments(REACH)).collect();
        let (part, at_once) = (segments(PART), segments(PART).min(AT_ONCE));
        for first in (0..files.len()).step_by(part) {
            // A commit and what it locked may lie in two segments, so each part begins with the last one of the part before.
            let part = files.iter().skip(first.saturating_sub(1)).take(part + first.min(1));
            let (found, all_read) = self.last_removal(question, part.copied().collect(), at_once).await?;
            if found.is_some() || !all_read {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The last one in files, which are newest first, and whether all could be read: what lies before one that could not be does not
    /// count.
    async fn last_removal(
        &self,
        question: &RemovalQuestion,
        newest_first: Vec<Counted>,
        at_once: usize,
    ) -> Result<(Option<Removal>, bool)> {
        let read = |(name, length): Counted| async move {
            let read = match name {
                WalFileName::Partial(segment) => self.archive.get_incomplete(segment).await,
                _ => self.archive.get(name).await,
            };
            let mut content = read.ok().flatten()?.content;
            if let Some(length) = length {
                cut(&mut content, length);
            }
            Some((name.segment()?, content))
        };
        let (mut search, mut all_read): (Option<Box<dyn RemovalSearch>>, bool) = (None, true);
        let oldest_first: Vec<Counted> = newest_first.into_iter().rev().collect();
        for files in oldest_first.chunks(at_once) {
            // Nothing is read while something is decoded: a read that waits for a core would hold up the decoder.
            for read in join_all(files.iter().copied().map(read)).await {
                let begun = search.take().or_else(|| self.decoder?.removals(question.before));
                if let (Some(mut begun), Some((name, content))) = (begun, read) {
                    search = cpu::run(move || begun.feed(name, &content).is_ok().then_some(begun)).await?;
                }
                all_read &= search.is_some();
            }
        }
        Ok((search.and_then(|search| search.last()), all_read))
    }
}
