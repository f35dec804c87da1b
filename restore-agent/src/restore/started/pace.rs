//! How far a recovery is, and how long the rest takes. No IO here.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use walpoint_base::Lsn;
use walpoint_runtime::human;

/// The rate is that of this much time.
const WINDOW: Duration = Duration::from_secs(30);

/// A rate of less time than this says nothing.
const LEAST: Duration = Duration::from_secs(2);

/// What is known of a recovery that goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// What it has replayed, or at least that.
    pub(super) lsn: Option<Lsn>,
    /// The time of the last transaction that it has replayed.
    pub(super) last_commit: Option<Timestamp>,
    /// Whether the server says so, which then takes sessions.
    pub(super) by_server: bool,
}

/// What is known of its sessions during recovery.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sessions<'a> {
    /// Where the server begins to take them.
    pub(super) from: Lsn,
    /// Whether it takes any.
    pub(super) are_taken: bool,
    /// Why none could be opened, though it takes them by its own word.
    pub(super) unanswered: Option<&'a str>,
}

/// How fast it goes.
#[derive(Debug)]
pub(super) struct Pace {
    until: Lsn,
    samples: VecDeque<(Duration, Lsn)>,
}

impl Pace {
    /// Towards a position.
    pub(super) fn towards(until: Lsn) -> Self {
        Self { until, samples: VecDeque::new() }
    }

    /// Notes where it is, `at` so long after its start.
    pub(super) fn note(&mut self, at: Duration, lsn: Lsn) {
        self.samples.push_back((at, lsn));
        while self.samples.get(1).is_some_and(|(second, _)| at.saturating_sub(*second) >= WINDOW) {
            self.samples.pop_front();
        }
    }

    /// WAL that is left, and how long that takes; the time is unknown where nothing moves.
    fn left(&self) -> Option<(u64, Option<Duration>)> {
        let (&(first, from), &(last, to)) = (self.samples.front()?, self.samples.back()?);
        let left = self.until.0.saturating_sub(to.0);
        let (took, done) = (last.saturating_sub(first), to.0.saturating_sub(from.0));
        if took < LEAST || done == 0 {
            return Some((left, None));
        }
        // Exact enough for an estimate.
        let seconds = left as f64 / (done as f64 / took.as_secs_f64());
        Some((left, Duration::try_from_secs_f64(seconds).ok()))
    }

    /// Where it is, for a person.
    pub(super) fn line(&self, seen: &Seen, sessions: Sessions<'_>) -> String {
        let mut text = match (seen.lsn, seen.by_server) {
            (Some(lsn), true) => format!("recovering: replayed to {lsn} of {}", self.until),
            (Some(lsn), false) => format!("recovering: at {lsn} or later, of {}", self.until),
            (None, _) => format!("recovering to {}", self.until),
        };
        match self.left() {
            Some((left, Some(time))) => {
                text.push_str(&format!(", {} left, about {}", human::size(left), human::span(time)));
            }
            Some((left, None)) => text.push_str(&format!(", {} left", human::size(left))),
            None => {}
        }
        if let Some(time) = seen.last_commit {
            text.push_str(&format!("; last transaction at {}", human::time(time)));
        }
        let is_behind = seen.lsn.is_some_and(|lsn| lsn >= sessions.from);
        match (sessions.unanswered, sessions.are_taken, is_behind) {
            _ if seen.by_server => {}
            (Some(reason), ..) => text.push_str(&format!("; could not open a session: {reason}")),
            (None, true, true) => {}
            (None, true, false) => {
                text.push_str(&format!("; the server takes no sessions before {}", sessions.from));
            }
            (None, false, _) => {
                text.push_str("; hot_standby is off: the server takes no sessions during recovery");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_rest_takes_as_long_as_the_last_half_minute_says() {
        let mut pace = Pace::towards(Lsn(100 * MIB));
        assert_eq!(pace.left(), None);
        pace.note(Duration::from_secs(1), Lsn(10 * MIB));
        assert_eq!(pace.left(), Some((90 * MIB, None)), "one position has no rate");
        pace.note(Duration::from_secs(11), Lsn(30 * MIB));
        assert_eq!(pace.left(), Some((70 * MIB, Some(Duration::from_secs(35)))));
        // It has slowed down, and what was before is forgotten.
        pace.note(Duration::from_secs(60), Lsn(31 * MIB));
        pace.note(Duration::from_secs(90), Lsn(34 * MIB));
        assert_eq!(pace.left(), Some((66 * MIB, Some(Duration::from_secs(660)))));
        pace.note(Duration::from_secs(200), Lsn(34 * MIB));
        pace.note(Duration::from_secs(240), Lsn(34 * MIB));
        assert_eq!(pace.left(), Some((66 * MIB, None)), "nothing moves");
        pace.note(Duration::from_secs(241), Lsn(101 * MIB));
        assert_eq!(pace.left().unwrap().0, 0, "behind the target");
    }

    #[test]
    fn a_line_says_whose_word_it_is() {
        let mut pace = Pace::towards(Lsn(0x300_0000));
        let from = Lsn(0x200_0000);
        let at = Sessions { from, are_taken: true, unanswered: None };
        assert_eq!(
            pace.line(&Seen::default(), at),
            "recovering to 0/3000000; the server takes no sessions before 0/2000000"
        );
        pace.note(Duration::ZERO, Lsn(0x280_0000));
        let mut seen = Seen { lsn: Some(Lsn(0x280_0000)), ..Seen::default() };
        let hidden = "recovering: at 0/2800000 or later, of 0/3000000, 8.0 MiB left";
        assert_eq!(pace.line(&seen, at), hidden);
        let denied = Sessions { unanswered: Some("/run/pg: Permission denied"), ..at };
        assert_eq!(
            pace.line(&seen, denied),
            format!("{hidden}; could not open a session: /run/pg: Permission denied")
        );
        assert!(
            pace.line(&seen, Sessions { are_taken: false, ..at })
                .ends_with("hot_standby is off: the server takes no sessions during recovery")
        );
        seen.by_server = true;
        seen.last_commit = Some("2026-11-21T10:00:00Z".parse().unwrap());
        assert_eq!(
            pace.line(&seen, at),
            "recovering: replayed to 0/2800000 of 0/3000000, 8.0 MiB left; last transaction at 2026-11-21T10:00:00Z"
        );
    }
}
