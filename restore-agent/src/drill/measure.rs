//! Recovery time and recovery point, and whether they miss their targets.

use std::time::Duration;

use jiff::Timestamp;
use walpoint_runtime::human;

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Measured {
    /// From the start until the last check had passed; `None` if one failed.
    pub(super) rto: Option<Duration>,
    /// From the newest commit that can be recovered to the start; `None` if that is unknown.
    pub(super) rpo: Option<Duration>,
}

impl Measured {
    /// The targets that were missed, one sentence each. A recovery time that a failed check left without an end is told by that check.
    pub(super) fn missed(
        self,
        rto: Option<Duration>,
        rpo: Option<Duration>,
        has_failed: bool,
    ) -> Vec<String> {
        let above = |what: &str, value: Option<Duration>, target: Option<Duration>, none: Option<&str>| {
            let target = target?;
            let shown = human::span(target);
            match value {
                Some(value) if value <= target => None,
                Some(value) => Some(format!("{what} is {}, above its target of {shown}", human::span(value))),
                None => none.map(|why| format!("{what} {why}, and its target is {shown}")),
            }
        };
        let no_rto = (!has_failed).then_some("is unknown");
        [
            above("the recovery time", self.rto, rto, no_rto),
            above("the recovery point", self.rpo, rpo, Some("is unknown")),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// The newest commit that could be recovered at the start. `known`: what the archive's windows showed then. `replayed`: the last one of a
/// recovery to the end of the archive, in which is what was archived since the start, too. `backup`: the latest one that the backup holds.
pub(super) fn newest_commit(
    known: Option<Timestamp>,
    replayed: Option<Timestamp>,
    backup: Option<Timestamp>,
    start: Timestamp,
) -> Option<Timestamp> {
    match (known, replayed) {
        (Some(known), Some(replayed)) => Some(known.min(replayed)),
        (Some(known), None) => Some(known),
        (None, Some(replayed)) if replayed <= start => Some(replayed),
        // A backup holds what was committed before it ended; without a later commit that is what is certain.
        (None, _) => backup,
    }
}

/// How long before `start` it was; nothing where clocks disagree.
pub(super) fn since(time: Timestamp, start: Timestamp) -> Duration {
    Duration::try_from(start.duration_since(time)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_missed_above_it_and_where_nothing_is_known() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let measured = Measured { rto: seconds(90), rpo: None };
        assert!(measured.missed(None, None, false).is_empty());
        assert!(measured.missed(seconds(90), None, false).is_empty());
        let missed = measured.missed(seconds(60), seconds(5), false);
        assert_eq!(missed[0], "the recovery time is 1m 30s, above its target of 1m");
        assert_eq!(missed[1], "the recovery point is unknown, and its target is 5s");
        let failed = Measured { rto: None, rpo: seconds(1) };
        assert!(failed.missed(seconds(60), seconds(5), true).is_empty(), "the check says why");
        let (early, late) =
            ("2026-11-21T10:00:00Z".parse().unwrap(), "2026-11-21T10:01:00Z".parse().unwrap());
        assert_eq!((since(early, late), since(late, early)), (Duration::from_secs(60), Duration::ZERO));
    }

    #[test]
    fn only_what_the_archive_had_at_the_start_counts_for_the_recovery_point() {
        let at = |minute: u32| Some(format!("2026-11-21T10:{minute:02}:00Z").parse::<Timestamp>().unwrap());
        let start = at(30).unwrap();
        for (known, replayed, newest) in [
            // Archived during the drill, and committed before it or during it.
            (at(10), at(29), at(10)),
            (at(10), at(40), at(10)),
            (at(10), None, at(10)),
            // What was not replayed was not recovered.
            (at(20), at(15), at(15)),
            (None, at(25), at(25)),
            (None, at(40), at(5)),
            (None, None, at(5)),
        ] {
            assert_eq!(newest_commit(known, replayed, at(5), start), newest, "{known:?} {replayed:?}");
        }
    }
}
