//! A bound on the bytes that pass in a second, so that a backup or a restore leaves room on a line that others need.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many bytes a second, over all stores that share it. It is kept on average: an object passes at full speed, and the next one waits
/// until the time of the one before is over.
#[derive(Debug)]
pub struct Rate {
    bytes_per_second: NonZeroU64,
    /// When the time of everything that has asked is over.
    over: Mutex<Option<Instant>>,
}

impl Rate {
    /// `None` for no bound: unset, or 0.
    pub fn limit(bytes_per_second: Option<u64>) -> Option<Arc<Self>> {
        let bytes_per_second = bytes_per_second.and_then(NonZeroU64::new)?;
        Some(Arc::new(Self { bytes_per_second, over: Mutex::default() }))
    }

    /// Waits for as long as so many bytes take, behind everything that has asked before.
    pub(super) async fn pass(&self, bytes: u64) {
        let over = self.book(bytes, Instant::now());
        tokio::time::sleep_until(over.into()).await;
    }

    /// When the time of so many bytes is over. What passes after a pause does not make up for it.
    fn book(&self, bytes: u64, now: Instant) -> Instant {
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second.get());
        let takes = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = over.map_or(now, |over| over.max(now));
        // A time that no clock can express is as good as none.
        let ends = begins.checked_add(takes).unwrap_or(begins);
        *over = Some(ends);
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_and_zero_are_no_bound() {
        assert!(Rate::limit(None).is_none() && Rate::limit(Some(0)).is_none());
    }

    #[test]
    fn bytes_follow_each_other_and_a_pause_is_not_made_up_for() {
        let (rate, begun) = (Rate::limit(Some(1000)).unwrap(), Instant::now());
        let after = |bytes: u64, at: u64| {
            rate.book(bytes, begun + Duration::from_millis(at)).duration_since(begun).as_millis()
        };
        assert_eq!([after(500, 0), after(1000, 0), after(0, 100)], [500, 1500, 1500]);
        assert_eq!([after(100, 5000), after(100, 5000)], [5100, 5200]);
    }
}
