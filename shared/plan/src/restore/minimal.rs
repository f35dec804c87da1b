//! What recovery cannot pass although all WAL is there.
//!
//! A server that runs with `wal_level = minimal` leaves out of its WAL what it does meanwhile, and PostgreSQL ends recovery at
//! the record that says so (`CheckRequiredParameterValues` in xlogrecovery.c; before 14 it may go on, with data missing). Such a
//! spell leaves a gap if it is longer than a segment, because nothing is archived meanwhile. A short one lies inside a segment
//! that is completed and archived later.

use walpoint_base::{Lsn, SegmentNo, TimelineId};

use super::facts::{Asking, Facts, Question};
use super::path::{Coverage, Path};
use super::planner::{Attempt, Planner, Refusal};
use super::unreachable::Why;

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
