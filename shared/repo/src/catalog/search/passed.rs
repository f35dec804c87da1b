//! Whether a transaction before a position ended after a time, and when the latest one ended that a new backup holds: the index
//! tells of whole segments, and only the segment in which the position lies may have to be decoded.

use std::collections::BTreeSet;

use walpoint_base::crossing::Crossing;
use walpoint_base::{PgTimestamp, SegmentNo, TimelineId};
use walpoint_plan::restore::facts::{ExtentQuestion, Facts, PassedQuestion, StopQuestion};
use walpoint_plan::restore::path::{Path, SegmentRange};
use walpoint_storage::error::{RepoError, Result};

use super::Search;

impl Search<'_> {
    /// The commit time of a transaction that ended before a position and stops recovery. Only in WAL that is there.
    pub(crate) async fn passed(
        &mut self,
        facts: &Facts,
        question: &PassedQuestion,
    ) -> Result<Option<PgTimestamp>> {
        let PassedQuestion { path, rule, before } = question;
        let (path, until, size) = (*path, *before, facts.segment_size);
        let unknown = || RepoError::Internal(format!("the path to timeline {path} was not looked at yet"));
        let present = Path::to(facts, path).and_then(|path| path.present().ok()).ok_or_else(unknown)?;
        let last = SegmentNo::before(until, size);
        let runs = consecutive(present, last);
        for run in &runs {
            let Some(first) = run.first().map(|range| range.first) else { continue };
            let latest = self.latest(facts, &ExtentQuestion { path, first, until }, run).await?;
            if let Some(latest) = latest.filter(|latest| rule.stops_at(*latest)) {
                return Ok(Some(latest));
            }
        }
        // The segment that the position lies in, and the record that goes on there from the one before.
        let tail = runs.last().map(|run| tail(run)).unwrap_or_default();
        let Some(first) = tail.first().filter(|_| last.end(size) > until).map(|range| range.first) else {
            return Ok(None);
        };
        if tail.last().is_none_or(|range| range.last != last) {
            return Ok(None);
        }
        let question = StopQuestion { path, rule: rule.clone(), from: first.start(size), until };
        let stop = self.in_order(&question, &tail, &BTreeSet::new()).await?;
        Ok(stop.and_then(|stop| stop.time))
    }

    /// The latest time at which a transaction ended before a segment of the path, the one included whose record goes on in it. Only in
    /// WAL that is there.
    pub(crate) async fn latest_before(
        &mut self,
        facts: &Facts,
        path: TimelineId,
        segment: SegmentNo,
    ) -> Result<Option<PgTimestamp>> {
        let unknown = || RepoError::Internal(format!("the path to timeline {path} was not looked at yet"));
        let present = Path::to(facts, path).and_then(|path| path.present().ok()).ok_or_else(unknown)?;
        let until = segment.start(facts.segment_size);
        let runs = consecutive(present, segment);
        let mut latest = None;
        for run in &runs {
            let Some(first) = run.first().map(|range| range.first) else { continue };
            latest = latest.max(self.latest(facts, &ExtentQuestion { path, first, until }, run).await?);
        }
        let tail = runs.last().map(|run| tail(run)).unwrap_or_default();
        let tail = tail.iter().flat_map(|range| {
            (range.first.0..=range.last.0).map(|number| (range.timeline, SegmentNo(number)))
        });
        if let [(before_on, before), (on, last)] = *tail.collect::<Vec<_>>()
            && last == segment
        {
            let open = self.entry(before_on, before).await?.and_then(|entry| entry.crossing.open);
            if let Some(entry) = self.entry(on, last).await? {
                latest =
                    latest.max(Crossing::between(open.as_ref(), &entry.crossing, &entry.chain.begin).time());
            }
        }
        Ok(latest)
    }
}

/// What is there up to segment `last`, by unbroken run.
fn consecutive(present: Vec<SegmentRange>, last: SegmentNo) -> Vec<Vec<SegmentRange>> {
    let mut runs: Vec<Vec<SegmentRange>> = Vec::new();
    for range in present.into_iter().filter(|range| range.first <= last) {
        let range = SegmentRange { last: range.last.min(last), ..range };
        match runs.last_mut() {
            Some(run) if run.last().is_some_and(|before| before.last.next() == range.first) => {
                run.push(range)
            }
            _ => runs.push(vec![range]),
        }
    }
    runs
}

/// The last two segments of a run.
fn tail(run: &[SegmentRange]) -> Vec<SegmentRange> {
    let Some((last, before)) = run.split_last() else { return Vec::new() };
    if last.first < last.last {
        let first = SegmentNo(last.last.0.saturating_sub(1));
        return vec![SegmentRange { first, ..*last }];
    }
    let before = before.last().map(|range| SegmentRange { first: range.last, ..*range });
    before.into_iter().chain([*last]).collect()
}
