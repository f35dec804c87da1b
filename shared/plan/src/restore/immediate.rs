//! Recovery to the end of a backup.
//!
//! PostgreSQL's own target for that, `recovery_target = 'immediate'`, stops only when it has read one more record after it
//! became consistent (`recoveryStopsBefore` in xlogrecovery.c; `recoveryStopsAfter` notices only behind the end of a
//! transaction). Without such a record PostgreSQL refuses to start. A backup keeps no WAL behind its end, and often there is no
//! record behind it in its last segment: a standby's ends with a whole segment wherever the last record replayed was a switch,
//! and where the server was promoted at its end, its timeline has no more. Then recovery stops after the backup's last record,
//! by its position.

use walpoint_base::{Lsn, SegmentNo};

use super::ending::Ending;
use super::facts::{Asking, BackupFacts, ExtentQuestion, StopQuestion};
use super::path::{Coverage, Path};
use super::planner::{Attempt, Planner};
use super::settings::StopAt;
use super::stop::StopRule;

impl<'a> Planner<'a> {
    /// To the end of a backup, up to which all WAL is there.
    pub(super) fn to_the_backups_end(
        &self,
        path: &Path<'a>,
        backup: &BackupFacts,
        coverage: &Coverage,
    ) -> Asking<Attempt> {
        let mut ending = self.ending(path, backup, coverage, backup.end)?;
        let mut at = StopAt::Requested;
        if !self.continues_behind(&ending, backup.end)? {
            let question = StopQuestion {
                path: path.timeline(),
                rule: StopRule::Consistent(backup.end),
                from: backup.start(),
                until: coverage.until,
            };
            match self.facts.stop(question)? {
                Some(last) if last.record > backup.start() => at = StopAt::After(last.record),
                // The backup begins with the checkpoint of a shutdown, which recovery reads and does not replay, and ends
                // with it. The next record is the first one of the timeline that begins there.
                _ if self.is_left_at_the_end(path, backup, coverage) => {
                    ending = self.ending(path, backup, coverage, backup.end + 1)?;
                }
                _ => {}
            }
        }
        Ok(Ok(self.build(path, backup, &ending, None, (backup.end, at))?))
    }

    /// Whether the segment that recovery ends in has a complete record behind a position in it, or at it. What has to be built holds
    /// no more than is needed.
    fn continues_behind(&self, ending: &Ending, end: Lsn) -> Asking<bool> {
        let size = self.facts.segment_size;
        let number = SegmentNo::before(end, size);
        let Some(path) = Path::to(self.facts, ending.timeline).filter(|_| ending.fork.is_none()) else {
            return Ok(false);
        };
        if path.with_tail(path.coverage(number)?)?.until < number.end(size) {
            return Ok(false);
        }
        let question = ExtentQuestion { path: path.timeline(), first: number, until: number.end(size) };
        Ok(self.facts.extent(question)?.last_record.is_some_and(|last| last >= end))
    }

    /// Whether the path continues on another timeline where the backup ends, within a segment.
    fn is_left_at_the_end(&self, path: &Path<'a>, backup: &BackupFacts, coverage: &Coverage) -> bool {
        let (history, end) = (path.history(), backup.end);
        let within = end > SegmentNo::of(end, self.facts.segment_size).start(self.facts.segment_size);
        within && coverage.until > end && history.timeline_at(end) != history.timeline_at(end - 1)
    }
}
