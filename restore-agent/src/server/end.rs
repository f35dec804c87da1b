//! Whether a recovery ended where it was planned to. No IO here.
//!
//! A server that is paused, or has ended recovery, has not necessarily reached what was planned: it also pauses where its settings are
//! too low to continue. So the position is compared with the plan.

use walpoint_base::{Lsn, RecoveryTarget};

use crate::plan::Planned;

/// A page of WAL.
const PAGE: u64 = 8192;

/// The longest header of a page, that of the first page of a segment: it may lie between the end of a record and the next record.
const HEADER: u64 = 40;

/// Whether recovery ended where it was planned to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reached {
    /// It did.
    Target,
    /// It ended elsewhere; how, in words.
    Elsewhere(String),
}

/// Where a recovery has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlannedEnd {
    /// Before the record that starts here, which is not replayed.
    Before(Lsn),
    /// With the record between these positions.
    With { record: Lsn, end: Lsn },
    /// Where the backup is consistent, which ends here.
    Consistent(Lsn),
    /// Where the archive ends. `last_record`: where the last complete record starts, if that is known.
    Archive { last_record: Option<Lsn>, until: Lsn },
}

impl PlannedEnd {
    /// By a plan.
    pub(crate) fn of(planned: &Planned) -> Self {
        let plan = &planned.plan;
        match &plan.stop {
            Some(stop) if plan.replayed_until() == stop.record => Self::Before(stop.record),
            Some(stop) => Self::With { record: stop.record, end: stop.end },
            None if plan.target == RecoveryTarget::Immediate => Self::Consistent(plan.backup.end),
            None => Self::Archive { last_record: planned.last_record, until: plan.until },
        }
    }

    /// Compares it with the end of the last record that was replayed. `segment`: the size of a segment of WAL.
    pub(crate) fn judge(self, lsn: Lsn, segment: u64) -> Reached {
        let (planned, right) = match self {
            Self::Before(record) => (record, is_right_before(lsn, record)),
            Self::With { record, end } => (end, lsn > record && lsn < end + PAGE),
            // PostgreSQL itself decides which record is the first one there.
            Self::Consistent(end) => (end, lsn + PAGE >= end),
            // Commit times do not always grow with the WAL, so the position alone decides. A later record may have been archived since.
            Self::Archive { last_record: Some(record), .. } => (record + 1, lsn > record),
            // The last record of the archive may begin in an earlier segment than it would end in.
            Self::Archive { last_record: None, until } => (until, lsn + segment.saturating_mul(2) >= until),
        };
        match (right, self) {
            (true, _) => Reached::Target,
            (false, Self::Archive { last_record: Some(record), .. }) => Reached::Elsewhere(format!(
                "recovery ended at {lsn}, and the archive has more: its last record starts at {record}"
            )),
            (false, _) => {
                Reached::Elsewhere(format!("recovery ended at {lsn}, and the plan leads to {planned}"))
            }
        }
    }
}

/// Whether no record lies between the end of one and the start of another: only the header of a page may.
fn is_right_before(end: Lsn, start: Lsn) -> bool {
    let between = start.0.checked_sub(end.0);
    between == Some(0) || end.0.is_multiple_of(PAGE) && between.is_some_and(|between| between <= HEADER)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 1 << 20;

    #[test]
    fn a_recovery_that_ends_before_or_after_what_was_planned_has_not_reached_it() {
        // A record of 48 bytes in a page, and one behind the header of a segment.
        let (record, end, first) = (Lsn(0x0320_1000), Lsn(0x0320_1030), Lsn(0x0330_0028));
        let before = PlannedEnd::Before(record);
        let with = PlannedEnd::With { record, end };
        let archive = PlannedEnd::Archive { last_record: Some(record), until: Lsn(0x0330_0000) };
        let unknown = PlannedEnd::Archive { last_record: None, until: Lsn(0x0330_0000) };
        for (what, planned, lsn, right) in [
            ("exclusive: right before", before, record, true),
            ("exclusive: a record of 24 bytes early", before, record - 24, false),
            ("exclusive: a record too many", before, end, false),
            ("exclusive: before the header of a segment", PlannedEnd::Before(first), first - 40, true),
            ("exclusive: one record before that", PlannedEnd::Before(first), first - 64, false),
            (
                "exclusive: before the header of a page",
                PlannedEnd::Before(Lsn(0x0320_2018)),
                Lsn(0x0320_2000),
                true,
            ),
            ("inclusive: right", with, end, true),
            ("inclusive: a record early", with, record, false),
            ("archive: right", archive, end, true),
            ("archive: with what was archived since", archive, Lsn(0x0340_0000), true),
            ("archive: a record early", archive, record, false),
            ("archive: a segment early", archive, record - SEGMENT, false),
            ("archive: last record unknown", unknown, Lsn(0x0330_0000) - 2 * SEGMENT, true),
            ("archive: further away", unknown, Lsn(0x0330_0000) - 2 * SEGMENT - 8, false),
            ("immediate: right", PlannedEnd::Consistent(end), end, true),
            ("immediate: a segment early", PlannedEnd::Consistent(end), end - SEGMENT, false),
        ] {
            assert_eq!(planned.judge(lsn, SEGMENT) == Reached::Target, right, "{what}");
        }
    }
}
