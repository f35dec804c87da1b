//! How long to try before an answer is given, and what the answer is then.

use std::time::Duration;

use walpoint_runtime::backoff::Backoff;
use walpoint_runtime::human;

use crate::wal::archive::FetchResult;

/// A standby serves readers and waits for nothing: one attempt, of this length.
pub(crate) const STANDBY_ATTEMPT: Duration = Duration::from_millis(1400);

/// Waits between attempts in archive recovery grow from the first to the second.
const WAITS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// Attempts until one is certain, or no other can be, or the budget is spent. `told` hears why each uncertain one was.
pub(crate) async fn until_certain<F: Future<Output = FetchResult>>(
    budget: Duration,
    mut attempt: impl FnMut() -> F,
    told: impl Fn(&str),
) -> FetchResult {
    let mut backoff = Backoff::new(WAITS.0, WAITS.1, budget);
    loop {
        let outcome = attempt().await;
        let FetchResult::Uncertain(why) = &outcome else { return outcome };
        told(why);
        if !backoff.wait().await {
            return outcome;
        }
    }
}

/// One attempt that ends in time.
pub(crate) async fn at_once(within: Duration, attempt: impl Future<Output = FetchResult>) -> FetchResult {
    let outcome = tokio::time::timeout(within, attempt).await;
    outcome.unwrap_or_else(|_| {
        FetchResult::Uncertain(format!("no repository answered within {}", human::span(within)))
    })
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;
    use crate::wal::archive::Landed;

    fn landed() -> FetchResult {
        FetchResult::Landed(Landed::of(5))
    }

    #[tokio::test(start_paused = true)]
    async fn uncertainty_is_tried_away_within_the_budget() {
        let (calls, told) = (Cell::new(0), RefCell::new(Vec::new()));
        let attempt = || {
            calls.set(calls.get() + 1);
            let n = calls.get();
            async move { if n < 3 { FetchResult::Uncertain(format!("no {n}")) } else { landed() } }
        };
        let outcome =
            until_certain(Duration::from_secs(60), attempt, |why| told.borrow_mut().push(why.to_owned()));
        assert!(outcome.await == landed());
        assert_eq!(*told.borrow(), ["no 1", "no 2"]);
    }

    #[tokio::test]
    async fn a_spent_budget_leaves_it_uncertain() {
        let attempt = || async { FetchResult::Uncertain("down".to_owned()) };
        let outcome = until_certain(Duration::from_millis(20), attempt, |_| {}).await;
        assert!(matches!(outcome, FetchResult::Uncertain(why) if why == "down"));
    }

    #[tokio::test]
    async fn a_standby_does_not_wait() {
        let never = std::future::pending::<FetchResult>();
        assert!(matches!(at_once(Duration::from_millis(10), never).await, FetchResult::Uncertain(_)));
    }
}
