//! Waiting for something to become true, with a limit and a reason when it does not.

use std::time::{Duration, Instant};

/// Long enough for anything that should happen at once on a machine that does much else.
pub const SOON: Duration = Duration::from_secs(30);

/// Polls `probe` until it gives a value; panics with `what` after `limit`.
#[track_caller]
pub fn until<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(pause);
        pause = (pause * 3 / 2).min(Duration::from_millis(100));
    }
}

/// Polls `condition` until it holds; panics with `what` after `limit`.
#[track_caller]
pub fn until_true(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    until(limit, what, || condition().then_some(()));
}

/// Watches that `condition` keeps holding for all of `span`; panics with `what` as soon as it does not.
#[track_caller]
pub fn holds_for(span: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while start.elapsed() < span {
        assert!(condition(), "after {:?}: {what}", start.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
}
