//! What recovery cannot pass although all WAL is there.
//!
//! A server that runs with `wal_level = minimal` leaves out of its WAL what it does meanwhile, and PostgreSQL ends recovery at
//! the record that says so (`CheckRequiredParameterValues` in xlogrecovery.c; before 14 it may go on, with data missing). Such a
//! spell leaves a gap if it is longer than a segment, because nothing is archived meanwhile. A short one lies inside a segment
//! that is completed and archived later.

use std::collections::{BTreeMap, BTreeSet};

use walpoint_base::{Lsn, SegmentNo, TimelineId};
use walpoint_storage::error::{RepoError, Result};

use super::facts::{Asking, Facts, Question, StopQuestion};
use super::path::{Coverage, Path, SegmentRange};
use super::planner::{Attempt, Planner, Refusal};
use super::search::{Place, Search, groups};
use super::stop::StopRule;
use super::unreachable::Why;
use crate::catalog::TimelineWal;
use crate::index::SegmentEntry;

impl<'a> Path<'a> {
    /// Where on the path the server was set to `wal_level = minimal`: where each such record starts, in order.
    pub(super) fn minimal(&self) -> Asking<&'a [Lsn]> {
        self.asked_of_all(Question::Minimal(self.timeline()), Facts::minimal)
    }

    /// Where on the path a segment begins that does not continue the one before it, in order.
    pub(super) fn breaks(&self) -> Asking<&'a [Lsn]> {
        self.asked_of_all(Question::Breaks(self.timeline()), Facts::breaks)
    }

    /// Asked once it is known which files are there: the answer needs them.
    fn asked_of_all(
        &self,
        question: Question,
        known: impl Fn(&Facts, TimelineId) -> Option<&[Lsn]>,
    ) -> Asking<&'a [Lsn]> {
        if let Some(known) = known(self.facts(), self.timeline()) {
            return Ok(known);
        }
        self.present()?;
        Err(question)
    }

    /// How far recovery that begins at `from` gets: as far as all WAL is there, and not past a change to `wal_level = minimal`.
    pub fn replayable(&self, from: Lsn) -> Asking<Coverage> {
        let coverage = self.coverage(SegmentNo::of(from, self.facts().segment_size))?;
        let barred = self.minimal()?.iter().find(|at| from <= **at && **at < coverage.until).copied();
        Ok(Coverage { until: barred.unwrap_or(coverage.until), minimal: barred, ..coverage })
    }
}

impl Planner<'_> {
    /// Refused, if it is such a change that ends what recovery can replay.
    pub(super) fn not_past_minimal(
        &self,
        path: &Path<'_>,
        backup: walpoint_base::BackupId,
        coverage: &Coverage,
    ) -> Option<Attempt> {
        let at = coverage.minimal?;
        Some(Err(Refusal::on(path.timeline(), Why::MinimalWal { backup, at })))
    }
}

impl Search<'_> {
    /// Every such record on the path; where a segment cannot be decoded, its beginning.
    pub(crate) async fn minimal(&mut self, facts: &Facts, path: TimelineId) -> Result<Vec<Lsn>> {
        let unknown = || RepoError::Internal(format!("the path to timeline {path} was not looked at yet"));
        let present = Path::to(facts, path).ok_or_else(unknown)?.present().map_err(|_| unknown())?;
        let mut found = BTreeSet::new();
        for files in present.chunk_by(|before, next| before.last.next() == next.first) {
            let mut before: Option<Place> = None;
            for (range, file) in files.iter().enumerate() {
                for (n, first, last) in groups(*file) {
                    let wal = self.timeline(file.timeline)?;
                    if wal.summary(n).is_some_and(|summary| summary.marks.minimal == 0) {
                        before = Some(Place { range, number: last });
                        continue;
                    }
                    for (number, entry) in readable(wal, first, last).await? {
                        let place = Place { range, number };
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
        place: Place,
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
pub(super) async fn readable(
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
