//! How long to wait before trying again, and when to give up.

use std::time::Duration;

use tokio::time::Instant;
use walpoint_base::span;

/// Waits that double from a first to a longest one, each cut by up to a quarter at random, within a budget.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
    deadline: Instant,
    random: u64,
}

impl Backoff {
    /// Waits from `first` to `longest`, for `budget` from this moment on.
    pub fn new(first: Duration, longest: Duration, budget: Duration) -> Self {
        // Agents that started together should not come back together.
        let clock = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(1, |t| u64::from(t.subsec_nanos()));
        let random = clock << 16 ^ u64::from(std::process::id()) | 1;
        // A budget that the clock cannot count to is as good as the longest one.
        let now = Instant::now();
        let deadline = now.checked_add(budget).unwrap_or_else(|| now + span::LONGEST.unsigned_abs());
        Self { next: first, longest, deadline, random }
    }

    /// The next wait; `None` when the budget is spent. The last wait ends with the budget.
    pub fn next_wait(&mut self) -> Option<Duration> {
        let left = self.deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        // xorshift64: only has to differ between agents.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let cut = u32::try_from(self.random % 256).unwrap_or_default();
        Some((wait - wait * cut / 1024).min(left))
    }

    /// When the budget is spent.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Waits, or returns `false` at once when the budget is spent.
    pub async fn wait(&mut self) -> bool {
        match self.next_wait() {
            Some(wait) => {
                tokio::time::sleep(wait).await;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest_and_end_with_the_budget() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(1000), Duration::from_secs(3600));
        let waits: Vec<_> = (0..8).filter_map(|_| backoff.next_wait()).collect();
        for (wait, full) in waits.iter().zip([100, 200, 400, 800, 1000, 1000]) {
            assert!(*wait <= ms(full) && *wait >= ms(full) * 3 / 4, "{wait:?} of {full}");
        }
        assert_eq!(
            Backoff::new(ms(1), ms(1), Duration::MAX).next_wait().map(|wait| wait <= ms(1)),
            Some(true)
        );
        assert_eq!(Backoff::new(ms(1), ms(1), Duration::ZERO).next_wait(), None);
        assert!(Backoff::new(ms(5000), ms(5000), ms(50)).next_wait().unwrap() <= ms(50));
    }
}
