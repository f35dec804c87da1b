//! How long a request may take and how often it is tried.
//!
//! The object store library's own retries are switched off: they keep the first signature, do not know which requests
//! may be repeated, and count a slow upload as a dead connection.

use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use jiff::SignedDuration;

use super::failure::{Failure, FailureKind};
use super::table::StoreTable;
use crate::error::{RepoError, Result};

/// A connection slower than this is as good as none.
const SLOWEST: u64 = 64 << 10;

/// No pause between attempts is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A store that fails for so long is not waited for within one request.
const LONGEST_RETRY_TIMEOUT: Duration = Duration::from_secs(300);

/// A person who waits for several stores waits so long for the next byte of one of them.
const SOON: SignedDuration = SignedDuration::from_secs(10);

/// So often a request is repeated for that person.
const FEW_RETRIES: u32 = 1;

/// What a configuration says about the bounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LimitSettings {
    /// How long a connection may take to be made, such as `5s`. Default 5 s.
    pub connect_timeout: Option<SignedDuration>,
    /// How long to wait for the next byte of an answer. Default 30 s.
    pub read_timeout: Option<SignedDuration>,
    /// How often a failed request is repeated. Default 3.
    pub retries: Option<u32>,
    /// No request is repeated after this long. Default 60 s, at most 5 minutes.
    pub retry_timeout: Option<SignedDuration>,
}

impl LimitSettings {
    pub(super) fn of(table: &StoreTable) -> Self {
        Self {
            connect_timeout: table.connect_timeout,
            read_timeout: table.read_timeout,
            retries: table.retries,
            retry_timeout: table.retry_timeout,
        }
    }

    pub(super) fn impatient(self) -> Self {
        Self {
            retries: Some(self.retries.unwrap_or(FEW_RETRIES).min(FEW_RETRIES)),
            read_timeout: Some(self.read_timeout.unwrap_or(SOON).min(SOON)),
            ..self
        }
    }

    pub(super) fn connect_timeout(&self) -> Result<Duration> {
        duration("connect_timeout", self.connect_timeout, Duration::from_secs(5))
    }
}

fn duration(setting: &'static str, value: Option<SignedDuration>, default: Duration) -> Result<Duration> {
    let Some(value) = value else { return Ok(default) };
    let positive = Duration::try_from(value).ok().filter(|d| !d.is_zero());
    positive.ok_or_else(|| RepoError::settings(setting, "must be longer than nothing, such as \"30s\""))
}

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
    /// The bounds that the settings ask for.
    pub fn of(settings: &LimitSettings) -> Result<Self> {
        let defaults = Self::default();
        let retry_timeout = duration("retry_timeout", settings.retry_timeout, defaults.retry_timeout)?;
        if retry_timeout > LONGEST_RETRY_TIMEOUT {
            return Err(RepoError::settings("retry_timeout", "must not be longer than 5 minutes"));
        }
        Ok(Self {
            read_timeout: duration("read_timeout", settings.read_timeout, defaults.read_timeout)?,
            attempts: settings.retries.map_or(defaults.attempts, |r| r.saturating_add(1)),
            retry_timeout,
            ..defaults
        })
    }

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
