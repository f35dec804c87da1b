//! When to look for forks that others stored: at each of a few segments, and in a torrent of them now and then.

use std::time::{Duration, Instant};

/// How often to look, if segments come that often for long.
const INTERVAL: Duration = Duration::from_secs(15);

/// So many looks follow each other without a pause. The segment that completes a fork may be the last one for hours, and came soon
/// after another.
pub(super) const IN_A_ROW: u32 = 4;

/// When the next look is due.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When it would be if they were evenly spread.
    next: Option<Instant>,
}

impl Pace {
    /// Whether to look now, which counts as done then.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let next = self.next.map_or(now, |next| next.max(now));
        let due = next.duration_since(now) <= INTERVAL * (IN_A_ROW - 1);
        if due {
            self.next = Some(next + INTERVAL);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What completes a fork soon after a look is compared all the same, unless segments come in a torrent.
    #[test]
    fn a_few_segments_in_a_row_are_each_looked_for() {
        let (mut pace, begun) = (Pace::default(), Instant::now());
        let mut looks = |from: u64, to: u64| {
            (from..to).filter(|second| pace.is_due(begun + Duration::from_secs(*second))).count()
        };
        assert_eq!(looks(0, 4), 4);
        let hour = looks(4, 3600);
        assert!((3600 / 15 - 4..=3600 / 15).contains(&hour), "{hour}");
        assert_eq!(looks(3700, 3703), 3);
    }
}
