//! Where a server was set to `wal_level = minimal`: recovery cannot pass that.

use std::collections::{BTreeMap, BTreeSet};

use walpoint_base::{Lsn, SegmentNo, TimelineId};
use walpoint_plan::restore::decide::RangedSegment;
use walpoint_plan::restore::facts::{Facts, StopQuestion};
use walpoint_plan::restore::path::{Path, SegmentRange};
use walpoint_plan::restore::stop::StopRule;
use walpoint_storage::error::{RepoError, Result};

use super::super::TimelineWal;
use super::{Search, groups};
use crate::index::SegmentEntry;

impl Search<'_> {
    /// Every such record on the path; where a segment cannot be decoded, its beginning.
    pub(crate) async fn minimal(&mut self, facts: &Facts, path: TimelineId) -> Result<Vec<Lsn>> {
        let unknown = || RepoError::Internal(format!("the path to timeline {path} was not looked at yet"));
        let present = Path::to(facts, path).ok_or_else(unknown)?.present().map_err(|_| unknown())?;
        let mut found = BTreeSet::new();
        for files in present.chunk_by(|before, next| before.last.next() == next.first) {
            let mut before: Option<RangedSegment> = None;
            for (range, file) in files.iter().enumerate() {
                for (n, first, last) in groups(*file) {
                    let wal = self.timeline(file.timeline)?;
                    if wal.summary(n).is_some_and(|summary| summary.marks.minimal == 0) {
                        before = Some(RangedSegment { range, number: last });
                        continue;
                    }
                    for (number, entry) in readable(wal, first, last).await? {
                        let place = RangedSegment { range, number };
                        let earlier = before.replace(place);
                        if entry.marks.minimal {
                            // Where the end of a segment cuts its header, the record begins in the segment before.
                            for place in earlier.into_iter().chain([place]) {
                                self.minimal_from(path, files, place, number, &mut found).await?;
                            }
                        }
                    }
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    /// The records in the segment at `place`, which was looked at because `marked` is marked.
    async fn minimal_from(
        &mut self,
        path: TimelineId,
        files: &[SegmentRange],
        place: RangedSegment,
        marked: SegmentNo,
        found: &mut BTreeSet<Lsn>,
    ) -> Result<()> {
        let size = self.segment_size();
        if self.decoder.is_none() {
            found.insert(marked.start(size));
            return Ok(());
        }
        let until = Lsn(u64::MAX);
        let mut question = StopQuestion { path, rule: StopRule::Minimal, from: Lsn::INVALID, until };
        loop {
            match self.decode(&question, files, place).await {
                Ok(Some(stop)) => {
                    found.insert(stop.record);
                    question.from = stop.record + 1;
                }
                Ok(None) => return Ok(()),
                Err(RepoError::Corrupt { .. } | RepoError::NotFound { .. }) => {
                    found.insert(marked.start(size));
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// What the segments of a group say about themselves, those left out that cannot be read: recovery ends there in any case.
pub(crate) async fn readable(
    wal: &mut TimelineWal,
    first: SegmentNo,
    last: SegmentNo,
) -> Result<BTreeMap<SegmentNo, SegmentEntry>> {
    match wal.entries(first, last).await {
        Err(RepoError::Corrupt { .. }) => {}
        entries => return entries,
    }
    let mut readable = BTreeMap::new();
    for number in (first.0..=last.0).map(SegmentNo) {
        match wal.entries(number, number).await {
            Ok(entries) => readable.extend(entries),
            Err(RepoError::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(readable)
}
