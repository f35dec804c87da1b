//! How long a request may take and how often it is tried.
//!
//! The object store library's own retries are switched off: they keep the first signature, do not know which requests
//! may be repeated, and count a slow upload as a dead connection.

use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;

use super::failure::{Failure, FailureKind};

/// A connection slower than this is as good as none.
const SLOWEST: u64 = 64 << 10;

/// No pause between attempts is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Bounds for the requests of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// How long to wait for the next byte of an answer.
    pub read_timeout: Duration,
    /// How often a request is tried at the most, the first time included. At least 1.
    pub attempts: u32,
    /// No further attempt is begun after this long.
    pub retry_timeout: Duration,
    /// The longest pause before the second attempt; it doubles with each one, up to 5 s.
    pub pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            read_timeout: Duration::from_secs(30),
            attempts: 4,
            retry_timeout: Duration::from_secs(60),
            pause: Duration::from_millis(100),
        }
    }
}

impl Limits {
    /// One attempt, for a caller that retries by itself or must answer soon.
    pub fn once(self) -> Self {
        Self { attempts: 1, ..self }
    }

    /// Without a pause between attempts, for a store in memory.
    #[cfg(any(test, feature = "testing"))]
    pub fn without_pauses(self) -> Self {
        Self { pause: Duration::ZERO, ..self }
    }

    /// How long a request may take that sends that many bytes.
    pub(super) fn sending(&self, bytes: u64) -> Duration {
        self.read_timeout + Duration::from_secs(bytes / SLOWEST)
    }

    /// Tries until it works, fails for good, or the bounds are reached.
    // Boxed futures, not an async closure: callers could not spawn what holds one, as nothing proves it `Send`.
    pub(super) async fn retry<'a, T>(
        &self,
        mut attempt: impl FnMut() -> BoxFuture<'a, Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let mut attempts = self.attempts();
        loop {
            match attempt().await {
                Err(failure) if failure.kind == FailureKind::Transient && attempts.another().await => {}
                result => return result,
            }
        }
    }

    pub(super) fn attempts(&self) -> Attempts {
        Attempts { limits: *self, made: 1, began: Instant::now() }
    }

    /// Fails with a timeout if `future` takes longer than `limit`.
    pub(super) async fn within<T>(
        limit: Duration,
        future: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let timed = tokio::time::timeout(limit, future).await;
        timed.unwrap_or_else(|_| Err(Failure::timeout(limit.as_secs_f64())))
    }
}

/// The attempts at one operation.
#[derive(Debug)]
pub(super) struct Attempts {
    limits: Limits,
    made: u32,
    began: Instant,
}

impl Attempts {
    /// Waits a moment and says yes, or says no at once. Half of the pause is random so that many agents do not come back
    /// together.
    pub(super) async fn another(&mut self) -> bool {
        if self.made >= self.limits.attempts {
            return false;
        }
        let doubled = self.limits.pause.saturating_mul(1 << (self.made - 1).min(10)).min(LONGEST_PAUSE);
        let wait = doubled / 2 + rand::random_range(Duration::ZERO..=doubled / 2);
        if self.began.elapsed() + wait >= self.limits.retry_timeout {
            return false;
        }
        self.made += 1;
        tokio::time::sleep(wait).await;
        true
    }
}
