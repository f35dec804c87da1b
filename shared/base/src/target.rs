//! Recovery targets: as a person writes them and as PostgreSQL wants them.

use std::fmt;
use std::str::FromStr;

use jiff::{SignedDuration, Span, Timestamp, Zoned, tz::TimeZone};

use crate::{Lsn, ParseError, PgTimestamp, TimelineId};

/// The moment to recover to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecoveryTarget {
    /// The end of the archive on the timeline.
    Latest,
    /// The end of the base backup: the first moment at which it is consistent.
    Immediate,
    /// The first commit or abort past this time, in LSN order, is the first that is not replayed.
    Time(PgTimestamp),
    /// The record that starts at or after this position.
    Lsn(Lsn),
    /// The end of this transaction.
    Xid(u32),
    /// A restore point made by `pg_create_restore_point`.
    Name(String),
}

impl fmt::Display for RecoveryTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("the latest moment"),
            Self::Immediate => f.write_str("the end of the backup"),
            Self::Time(time) => write!(f, "time {time}"),
            Self::Lsn(lsn) => write!(f, "LSN {lsn}"),
            Self::Xid(xid) => write!(f, "transaction {xid}"),
            Self::Name(name) => write!(f, "restore point \"{name}\""),
        }
    }
}

/// On which timeline the target lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TargetTimeline {
    /// The newest one in the archive that can be reached from the backup.
    #[default]
    Latest,
    /// The one that the backup was taken on.
    Current,
    /// This one.
    Id(TimelineId),
}

impl fmt::Display for TargetTimeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Current => f.write_str("current"),
            Self::Id(timeline) => write!(f, "{timeline}"),
        }
    }
}

impl FromStr for TargetTimeline {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "latest" => Ok(Self::Latest),
            "current" => Ok(Self::Current),
            _ => text
                .parse()
                .map(Self::Id)
                .map_err(|_| ParseError::new("a timeline (latest, current or a number)", text)),
        }
    }
}

/// Reads a point in time as a person writes it, relative to `now`: `2026-11-21 10:00:00+02`, `…Z`, `…[Europe/Rome]`,
/// `5 minutes ago`, `now`. A local time without a zone is refused: on the day it matters nobody should have to guess.
pub fn parse_time(text: &str, now: Timestamp) -> Result<PgTimestamp, ParseError> {
    let trimmed = text.trim();
    if trimmed.eq_ignore_ascii_case("now") {
        return Ok(PgTimestamp::from_time(now));
    }
    if let Some(amount) = trimmed.strip_suffix("ago") {
        let error = || ParseError::new("a span of time before now (such as \"5 minutes ago\")", text);
        let span: Span = amount.trim().parse().map_err(|_| error())?;
        let earlier = Zoned::new(now, TimeZone::UTC).checked_sub(span.abs()).map_err(|_| error())?;
        return Ok(PgTimestamp::from_time(earlier.timestamp()));
    }
    let zoned = trimmed.parse::<Zoned>().map(|z| z.timestamp());
    let time = zoned.or_else(|_| trimmed.parse::<Timestamp>()).map_err(|_| {
        let is_local = |text: &str| text.trim_end().parse::<jiff::civil::DateTime>().is_ok();
        let expected = if is_local(trimmed) {
            "a time with a zone (add an offset: \"2026-11-21 10:00:00+02\", \"…Z\" or \"…[Europe/Rome]\")"
        } else if is_local(trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic())) {
            "a time with a zone that means the same everywhere, as CET and EST do not (\"…+01\" or \"…[Europe/Rome]\")"
        } else if names_no_day(trimmed) {
            "a time: there is no such day in the calendar"
        } else {
            "a time (such as \"2026-11-21 10:00:00+02\", \"2026-11-21T08:00:00Z\" or \"5 minutes ago\")"
        };
        ParseError::new(expected, text)
    })?;
    Ok(PgTimestamp::from_time(time))
}

/// Whether it begins as a date does that does not exist.
fn names_no_day(text: &str) -> bool {
    let is_date = |date: &&str| {
        let mut places = "0000-00-00".chars().zip(date.chars());
        places.all(|(like, c)| if like == '0' { c.is_ascii_digit() } else { c == like })
    };
    text.get(..10).filter(is_date).is_some_and(|date| date.parse::<jiff::civil::Date>().is_err())
}

/// How long ago `time` was at `now`; zero if it lies ahead.
pub fn age(time: PgTimestamp, now: Timestamp) -> SignedDuration {
    now.duration_since(time.to_time()).max(SignedDuration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Result<String, ParseError> {
        parse_time(text, "2026-11-21T12:00:00Z".parse().unwrap()).map(|t| t.to_string())
    }

    #[test]
    fn times_as_people_write_them() {
        for (text, utc) in [
            ("2026-11-21 10:00:00+02", "2026-11-21 08:00:00.000000+00"),
            ("2026-11-21T10:00:00.25Z", "2026-11-21 10:00:00.250000+00"),
            ("2026-11-21 10:00:00+05:30", "2026-11-21 04:30:00.000000+00"),
            ("2026-11-21 10:00:00[Europe/Rome]", "2026-11-21 09:00:00.000000+00"),
            ("5 minutes ago", "2026-11-21 11:55:00.000000+00"),
            ("1h 30m ago", "2026-11-21 10:30:00.000000+00"),
            (" 2 days ago ", "2026-11-19 12:00:00.000000+00"),
            ("now", "2026-11-21 12:00:00.000000+00"),
        ] {
            assert_eq!(at(text).as_deref(), Ok(utc), "{text}");
        }
    }

    #[test]
    fn a_time_without_a_zone_is_refused_with_a_hint() {
        assert!(at("2026-11-21 10:00:00").unwrap_err().to_string().contains("with a zone"));
        assert!(at("2026-11-21 10:00:00 CET").unwrap_err().to_string().contains("as CET and EST do not"));
        assert!(at("2026-02-30 10:00:00Z").unwrap_err().to_string().contains("no such day"));
        for bad in ["", "ago", "yesterday", "10:00", "2026-13-01 00:00:00Z", "5 parsecs ago"] {
            assert!(at(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn timelines() {
        assert_eq!("latest".parse(), Ok(TargetTimeline::Latest));
        assert_eq!("current".parse(), Ok(TargetTimeline::Current));
        assert_eq!("3".parse(), Ok(TargetTimeline::Id(TimelineId::new(3).unwrap())));
        assert_eq!("0x1A".parse(), Ok(TargetTimeline::Id(TimelineId::new(26).unwrap())));
        assert!("0".parse::<TargetTimeline>().is_err());
    }
}
