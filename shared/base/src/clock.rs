//! PostgreSQL's timestamps: microseconds since 2000-01-01 00:00:00 UTC, as commit records carry them.

use std::fmt;

/// A moment as a commit, abort or restore point record states it, in microseconds since 2000-01-01 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgTimestamp(pub i64);

/// Seconds from the Unix epoch to PostgreSQL's.
pub const POSTGRES_EPOCH_SECONDS: i64 = 946_684_800;

impl PgTimestamp {
    /// Microseconds since the Unix epoch; saturates.
    pub fn unix_micros(self) -> i64 {
        self.0.saturating_add(POSTGRES_EPOCH_SECONDS * 1_000_000)
    }

    /// From microseconds since the Unix epoch; saturates.
    pub fn from_unix_micros(micros: i64) -> Self {
        Self(micros.saturating_sub(POSTGRES_EPOCH_SECONDS * 1_000_000))
    }
}

#[cfg(feature = "time")]
impl PgTimestamp {
    /// As a point in time; clamped to what the calendar can express (years -9999 to 9999).
    pub fn to_time(self) -> jiff::Timestamp {
        let limit = if self.0 < 0 { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX };
        jiff::Timestamp::from_microsecond(self.unix_micros()).unwrap_or(limit)
    }

    /// The last microsecond at or before `time`.
    pub fn from_time(time: jiff::Timestamp) -> Self {
        let floor = i64::from(time.subsec_nanosecond().rem_euclid(1000) != 0 && time.as_microsecond() < 0);
        Self::from_unix_micros(time.as_microsecond() - floor)
    }
}

impl fmt::Display for PgTimestamp {
    /// `2026-11-21 10:00:00.123456+00`, which PostgreSQL reads back.
    #[cfg(feature = "time")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+00", self.to_time().strftime("%Y-%m-%d %H:%M:%S%.6f"))
    }

    #[cfg(not(feature = "time"))]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} us after 2000-01-01", self.0)
    }
}

impl fmt::Debug for PgTimestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(all(test, feature = "time"))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn prints_as_postgresql_does() {
        assert_eq!(PgTimestamp(0).to_string(), "2000-01-01 00:00:00.000000+00");
        assert_eq!(PgTimestamp(-1).to_string(), "1999-12-31 23:59:59.999999+00");
    }

    proptest! {
        #[test]
        fn any_value_can_be_printed(value: i64) {
            prop_assert!(PgTimestamp(value).to_string().ends_with("+00"));
        }

        #[test]
        fn time_and_back(value in -4_000_000_000_000_000i64..4_000_000_000_000_000) {
            prop_assert_eq!(PgTimestamp::from_time(PgTimestamp(value).to_time()), PgTimestamp(value));
        }
    }
}
