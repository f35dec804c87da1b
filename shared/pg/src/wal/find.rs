//! Where recovery stops: PostgreSQL's own rule.
//!
//! Source: `recoveryStopsBefore` and `recoveryStopsAfter` in `src/backend/access/transam/xlogrecovery.c` (`xlog.c` in 13
//! and 14). A record is looked at before it is replayed and after. Commit times are not monotone, so only reading the
//! records in order tells where a time target stops.

use walpoint_base::{Lsn, PgTimestamp, RecoveryTarget, SegmentName};

use super::error::WalError;
use super::kind::RecordKind;
use super::reader::RecordReader;
use super::record::WalRecord;
use super::walk::SegmentEnd;

/// A recovery target with everything that decides where it stops.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StopRule {
    /// The target.
    pub target: RecoveryTarget,
    /// `recovery_target_inclusive`; counts for times, LSNs and xids.
    pub inclusive: bool,
    /// Where the base backup is consistent (its stop LSN); counts for [`RecoveryTarget::Immediate`].
    pub consistent: Lsn,
}

impl StopRule {
    /// Whether recovery stops before it replays this record.
    pub fn stops_before(&self, record: &WalRecord) -> bool {
        let end = record.kind.transaction_end();
        match (&self.target, self.inclusive, end) {
            (RecoveryTarget::Lsn(lsn), false, _) => record.start >= *lsn,
            (RecoveryTarget::Xid(xid), false, Some(end)) => end.xid == *xid,
            // Several transactions may share a time: inclusive stops behind the last of them, exclusive before the first.
            (RecoveryTarget::Time(time), true, Some(end)) => end.time > *time,
            (RecoveryTarget::Time(time), false, Some(end)) => end.time >= *time,
            _ => false,
        }
    }

    /// Whether recovery stops once it has replayed this record.
    pub fn stops_after(&self, record: &WalRecord) -> bool {
        match (&self.target, &record.kind) {
            (RecoveryTarget::Name(wanted), RecordKind::RestorePoint { name, .. }) => name == wanted,
            (RecoveryTarget::Lsn(lsn), _) => self.inclusive && record.start >= *lsn,
            (RecoveryTarget::Xid(xid), kind) => {
                self.inclusive && kind.transaction_end().is_some_and(|end| end.xid == *xid)
            }
            (RecoveryTarget::Immediate, _) => record.next >= self.consistent,
            _ => false,
        }
    }
}

/// Where recovery stops.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stop {
    /// The record that decides.
    pub record: WalRecord,
    /// Whether that record is still replayed.
    pub replayed: bool,
}

impl Stop {
    /// The position up to which WAL is replayed.
    pub fn end(&self) -> Lsn {
        if self.replayed { self.record.next } else { self.record.start }
    }
}

/// How far a search that has not found its stop came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Where the last record that was looked at starts.
    pub last_record: Option<Lsn>,
    /// The time of the last commit or abort that would be replayed.
    pub last_time: Option<PgTimestamp>,
    /// Where the WAL ended early, if it did: no later segment can follow.
    pub ended: Option<Lsn>,
}

/// Looks for the stop in one segment after the other.
///
/// The end of a transaction may begin in one segment and end in the next: the decision then falls in the next, so a
/// search that was narrowed to a segment needs the one after it too.
#[derive(Debug)]
pub struct StopFinder {
    rule: StopRule,
    from: Lsn,
    reader: RecordReader,
    progress: Progress,
}

impl StopFinder {
    /// A search that looks at records from `from` (the backup's redo position) on.
    pub fn new(rule: StopRule, from: Lsn) -> Self {
        Self { rule, from, reader: RecordReader::new(), progress: Progress::default() }
    }

    /// Reads the next segment. The stop, if it is in it.
    pub fn segment(&mut self, name: SegmentName, content: &[u8]) -> Result<Option<Stop>, WalError> {
        let mut records = self.reader.segment(name, content)?;
        for record in records.by_ref() {
            let record = record?;
            if record.start < self.from {
                continue;
            }
            if self.rule.stops_before(&record) {
                return Ok(Some(Stop { record, replayed: false }));
            }
            self.progress.last_record = Some(record.start);
            if let Some(end) = record.kind.transaction_end() {
                self.progress.last_time = Some(end.time);
            }
            if self.rule.stops_after(&record) {
                return Ok(Some(Stop { record, replayed: true }));
            }
        }
        if let Some(SegmentEnd::Ended(at)) = records.outcome() {
            self.progress.ended = Some(at);
        }
        Ok(None)
    }

    /// How far it came.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Whether a record that starts in the segments read so far goes on in the next one, and may decide there.
    pub fn continues(&self) -> bool {
        self.reader.continues()
    }
}

/// Looks for the stop in consecutive segments, up to the first one that ends early.
pub fn find<C: AsRef<[u8]>>(
    rule: StopRule,
    from: Lsn,
    segments: impl IntoIterator<Item = (SegmentName, C)>,
) -> Result<Option<Stop>, WalError> {
    let mut finder = StopFinder::new(rule, from);
    for (name, content) in segments {
        let stop = finder.segment(name, content.as_ref())?;
        if stop.is_some() || finder.progress.ended.is_some() {
            return Ok(stop);
        }
    }
    Ok(None)
}
