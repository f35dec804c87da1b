//! Recovery targets: as a person writes them and as PostgreSQL wants them.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use jiff::fmt::temporal::DateTimeParser;
use jiff::tz::{Disambiguation, Offset, TimeZone};
use jiff::{SignedDuration, Span, Timestamp, Zoned};

use crate::abbreviation;
use crate::diagnostic::shown;
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
    /// The end of the transaction with this id in WAL, whatever its epoch: ids repeat after 2^32 transactions.
    Xid(u32),
    /// The end of this transaction: its epoch in the upper half, as `pg_current_xact_id()` counts.
    FullXid(u64),
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
            Self::FullXid(full) => write!(f, "transaction {}", FullXid(*full)),
            Self::Name(name) => write!(f, "restore point \"{}\"", shown(name)),
        }
    }
}

/// A transaction id with its epoch, as `1:703`; PostgreSQL's functions print it as one number, 4294967999.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FullXid(pub u64);

impl FullXid {
    /// How often the ids had begun again before it.
    pub fn epoch(self) -> u64 {
        self.0 >> 32
    }

    /// The id that its WAL records carry.
    pub fn xid(self) -> u32 {
        u32::try_from(self.0 & u64::from(u32::MAX)).unwrap_or_default()
    }

    /// The transaction of this id that is nearest to this one: ids compare modulo 2^32.
    pub fn nearest(self, xid: u32) -> Self {
        // The sign of the difference modulo 2^32, as in transam.c.
        let distance = xid.wrapping_sub(self.xid()).cast_signed();
        Self(self.0.saturating_add_signed(i64::from(distance)))
    }
}

impl fmt::Display for FullXid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch(), self.xid())
    }
}

/// Reads a transaction id: `703` as in WAL and in logs, `4294967999` as `pg_current_xact_id()` prints one of a later epoch,
/// or `1:703`.
pub fn parse_xid(text: &str) -> Result<RecoveryTarget, ParseError> {
    let error = |expected| ParseError::new(expected, text);
    let number = |text: &str| {
        // What Rust takes for a number besides digits would not be one to PostgreSQL.
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u64>().ok().filter(|_| digits)
    };
    let trimmed = text.trim();
    let full = match trimmed.split_once(':') {
        Some((epoch, xid)) => {
            let half = |text| number(text).filter(|n| *n <= u64::from(u32::MAX));
            let (epoch, xid) = (half(epoch), half(xid));
            epoch.zip(xid).map(|(epoch, xid)| epoch << 32 | xid)
        }
        None => number(trimmed),
    };
    let full = full.ok_or_else(|| {
        error("a transaction id (a number as pg_current_xact_id() prints it, or the epoch and the number in WAL: \"1:703\")")
    })?;
    let xid = FullXid(full).xid();
    // 0 to 2 are never given to a transaction that ends (transam.h).
    if xid < 3 {
        return Err(error("the id of a transaction: none has one of the numbers 0 to 2, in any epoch"));
    }
    let bare = !trimmed.contains(':') && full == u64::from(xid);
    Ok(if bare { RecoveryTarget::Xid(xid) } else { RecoveryTarget::FullXid(full) })
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

/// Why a text is no point in time.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TimeError {
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] ParseError),
    /// Clocks are turned back there, and show it twice.
    #[error(
        "{text:?} occurs twice, because clocks in that zone are turned back\nHINT: Write \"{first}\" or \"{second}\"."
    )]
    Twice {
        /// The text as it was given.
        text: String,
        /// The first of the two moments, with its offset.
        first: String,
        /// The second one.
        second: String,
    },
    /// Zones that are called so differ.
    #[error(
        "{text:?} can be several moments: {name} stands for zones with different offsets ({offsets})\nHINT: Write the \
         offset instead, or the zone as in \"…[Europe/Rome]\": that of log_timezone, if PostgreSQL logged the time."
    )]
    SeveralZones {
        /// The text as it was given.
        text: String,
        /// The abbreviation.
        name: String,
        /// The offsets that zones with that abbreviation have then.
        offsets: String,
    },
    /// Clocks are put forward there, and never show it.
    #[error(
        "{text:?} never occurs, because clocks in that zone are turned forward\nHINT: Write \"{before}\" \
         or \"{after}\", as far \
         before or after the change."
    )]
    Never {
        /// The text as it was given.
        text: String,
        /// The moment as long before the change as the text lies before its end, with its offset.
        before: String,
        /// The moment as long after the change as the text lies after its begin.
        after: String,
    },
}

/// Reads a point in time as a person writes it, relative to `now`: `2026-11-21 10:00:00+02`, `…Z`, `…[Europe/Rome]`,
/// `…CET`, `5 minutes ago`, `now`. A local time without a zone is refused, and so is one that its zone's clocks show twice or never, or
/// whose zone is abbreviated as others are:
/// on the day it matters nobody should have to guess.
pub fn parse_time(text: &str, now: Timestamp) -> Result<PgTimestamp, TimeError> {
    let trimmed = text.trim();
    if trimmed.eq_ignore_ascii_case("now") {
        return Ok(PgTimestamp::from_time(now));
    }
    if let Some(amount) = span_ago(trimmed) {
        let error = || ParseError::new("a span of time before now (such as \"5 minutes ago\")", text);
        let span: Span = amount.parse().map_err(|_| error())?;
        let earlier = Zoned::new(now, TimeZone::UTC).checked_sub(span.abs()).map_err(|_| error())?;
        return Ok(PgTimestamp::from_time(earlier.timestamp()));
    }
    let universal = with_letter(trimmed);
    let (written, left_out) = without_second_60(&universal);
    let moment = |time: Timestamp| {
        let time = time.checked_add(left_out).map_err(|_| unreadable(text))?;
        Ok(PgTimestamp::from_time(time))
    };
    let as_if = |way| DateTimeParser::new().disambiguation(way).parse_zoned(written.as_ref());
    if let Ok(zoned) = as_if(Disambiguation::Reject) {
        return moment(zoned.timestamp());
    }
    if let (Ok(earlier), Ok(later)) = (as_if(Disambiguation::Earlier), as_if(Disambiguation::Later)) {
        return Err(unclear(text, &earlier, &later));
    }
    if let Some((time, name)) = abbreviation::split(&written) {
        return moment(abbreviated(text, time, name)?);
    }
    moment(written.parse::<Timestamp>().map_err(|_| unreadable(text))?)
}

/// The moment of a time with the abbreviation of a zone.
fn abbreviated(text: &str, time: jiff::civil::DateTime, name: &str) -> Result<Timestamp, TimeError> {
    let moments = abbreviation::moments(time, name);
    match moments.iter().next() {
        Some((moment, _)) if moments.len() == 1 => Ok(*moment),
        None => Err(unreadable(text).into()),
        Some(_) => Err(TimeError::SeveralZones {
            text: text.chars().take(200).collect(),
            name: name.to_owned(),
            offsets: moments.values().map(Offset::to_string).collect::<Vec<_>>().join(", "),
        }),
    }
}

/// A time in UTC or GMT by that name, as PostgreSQL's log has it, with the letter that stands for it. Names of other zones do not mean
/// the same everywhere.
fn with_letter(text: &str) -> Cow<'_, str> {
    let named = ["UTC", "GMT"].iter().find_map(|name| text.strip_suffix(name)).map(str::trim_end);
    match named.filter(|time| time.ends_with(|c: char| c.is_ascii_digit())) {
        Some(time) => Cow::Owned(format!("{time}Z")),
        None => Cow::Borrowed(text),
    }
}

/// A time of day with second 59 for second 60, and what that leaves out: to PostgreSQL, second 60 is the first one of the next
/// minute.
fn without_second_60(text: &str) -> (Cow<'_, str>, SignedDuration) {
    const LIKE: &[u8] = b"00:00:60";
    let is_it = |window: &[u8]| {
        let pairs = LIKE.iter().zip(window);
        pairs.enumerate().all(
            |(at, (like, byte))| if at < 5 && *like == b'0' { byte.is_ascii_digit() } else { like == byte },
        )
    };
    let begins = text.as_bytes().windows(LIKE.len()).position(is_it);
    let end = begins.map(|at| at + LIKE.len());
    let (Some(begins), Some(rest)) = (begins, end.and_then(|end| text.get(end..))) else {
        return (Cow::Borrowed(text), SignedDuration::ZERO);
    };
    let head = text.get(..begins + 6).unwrap_or_default();
    if rest.starts_with(|c: char| c.is_ascii_digit()) || !begins_time(head) {
        return (Cow::Borrowed(text), SignedDuration::ZERO);
    }
    (Cow::Owned(format!("{head}59{rest}")), SignedDuration::from_secs(1))
}

/// Whether what ends in hours and minutes has them as a time of day, and not as an offset.
fn begins_time(head: &str) -> bool {
    let before = head.len().checked_sub("00:00:".len()).and_then(|at| head.get(..at));
    before.is_some_and(|before| before.ends_with([' ', 'T', 't']))
}

/// Whether it is a span before now: another moment each time it is read.
pub fn is_relative(text: &str) -> bool {
    let trimmed = text.trim();
    trimmed.eq_ignore_ascii_case("now") || span_ago(trimmed).is_some()
}

fn span_ago(text: &str) -> Option<&str> {
    text.strip_suffix("ago").map(str::trim)
}

/// A local time that could be either of two moments.
fn unclear(text: &str, earlier: &Zoned, later: &Zoned) -> TimeError {
    let write = |time: &Zoned| time.strftime("%Y-%m-%d %H:%M:%S%.f%:z").to_string();
    let (text, first, second) = (text.chars().take(200).collect(), write(earlier), write(later));
    // Read either way, a time that is shown twice is still the time on the clock.
    if earlier.datetime() == later.datetime() {
        return TimeError::Twice { text, first, second };
    }
    TimeError::Never { text, before: first, after: second }
}

fn unreadable(text: &str) -> ParseError {
    let trimmed = text.trim();
    let is_local = |text: &str| text.trim_end().parse::<jiff::civil::DateTime>().is_ok();
    let expected = if is_local(trimmed) {
        "a time with a zone (add an offset: \"2026-11-21 10:00:00+02\", \"…Z\" or \"…[Europe/Rome]\")"
    } else if is_local(trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic())) {
        "a time with a zone that is known here (\"…+01\" or \"…[Europe/Rome]\")"
    } else if names_no_day(trimmed) {
        "a time: there is no such day in the calendar"
    } else {
        "a time (such as \"2026-11-21 10:00:00+02\", \"2026-11-21T08:00:00Z\" or \"5 minutes ago\")"
    };
    ParseError::new(expected, text)
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

    fn at(text: &str) -> Result<String, TimeError> {
        parse_time(text, "2026-11-21T12:00:00Z".parse().unwrap()).map(|t| t.to_string())
    }

    #[test]
    fn times_as_people_write_them() {
        for (text, utc) in [
            ("2026-11-21 10:00:00+02", "2026-11-21 08:00:00.000000+00"),
            ("2026-11-21T10:00:00.25Z", "2026-11-21 10:00:00.250000+00"),
            ("2026-11-21 10:00:00.250 UTC", "2026-11-21 10:00:00.250000+00"),
            ("2026-11-21 10:00:00 GMT", "2026-11-21 10:00:00.000000+00"),
            ("2026-11-21 10:00:00.250 CET", "2026-11-21 09:00:00.250000+00"),
            ("2026-07-01 10:00:00 CEST", "2026-07-01 08:00:00.000000+00"),
            ("2026-01-15 10:00:00 EST", "2026-01-15 15:00:00.000000+00"),
            ("2026-11-21 10:00:00+05:30", "2026-11-21 04:30:00.000000+00"),
            ("2026-11-21 10:00:00[Europe/Rome]", "2026-11-21 09:00:00.000000+00"),
            ("2026-11-21 10:00:60+02", "2026-11-21 08:01:00.000000+00"),
            ("2026-12-31T23:59:60.25Z", "2027-01-01 00:00:00.250000+00"),
            ("2026-11-21 10:59:60[Europe/Rome]", "2026-11-21 10:00:00.000000+00"),
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
        assert!(at("2026-11-21 10:00:00 XYZ").unwrap_err().to_string().contains("a zone that is known here"));
        assert!(
            at("2026-07-01 10:00:00 NZDT").unwrap_err().to_string().contains("a zone that is known here")
        );
        let several = at("2026-07-01 10:00:00 IST").unwrap_err().to_string();
        assert!(several.contains("several moments") && several.contains("+05:30"), "{several}");
        assert!(at("2026-02-30 10:00:00Z").unwrap_err().to_string().contains("no such day"));
        for bad in [
            "2026-11-21 10:00:61Z",
            "2026-11-21 10:60:00Z",
            "",
            "ago",
            "yesterday",
            "10:00",
            "2026-13-01 00:00:00Z",
            "5 parsecs ago",
        ] {
            assert!(at(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_time_that_clocks_show_twice_or_never_is_refused_with_both_moments() {
        for (text, first, second) in [
            ("2026-10-25 02:30:00[Europe/Rome]", "2026-10-25 02:30:00+02:00", "2026-10-25 02:30:00+01:00"),
            (
                "2026-10-25T02:00:00.5[Europe/Rome]",
                "2026-10-25 02:00:00.5+02:00",
                "2026-10-25 02:00:00.5+01:00",
            ),
            (
                "2026-04-05 01:45:00[Australia/Lord_Howe]",
                "2026-04-05 01:45:00+11:00",
                "2026-04-05 01:45:00+10:30",
            ),
        ] {
            let told = at(text).unwrap_err();
            assert!(
                matches!(&told, TimeError::Twice { first: a, second: b, .. } if a == first && b == second),
                "{told}"
            );
            assert!(at(first).unwrap() < at(second).unwrap());
        }
        let never = at("2026-03-29 02:30:00[Europe/Rome]").unwrap_err();
        let TimeError::Never { before, after, .. } = &never else { panic!("{never}") };
        assert_eq!((&**before, &**after), ("2026-03-29 01:30:00+01:00", "2026-03-29 03:30:00+02:00"));
        assert!(never.to_string().contains(before) && never.to_string().contains(after));
        // With the offset, and at the edges, there is but one.
        for (text, utc) in [
            ("2026-10-25 02:30:00+01[Europe/Rome]", "2026-10-25 01:30:00.000000+00"),
            ("2026-10-25 02:30:00+02[Europe/Rome]", "2026-10-25 00:30:00.000000+00"),
            ("2026-10-25 01:59:59[Europe/Rome]", "2026-10-24 23:59:59.000000+00"),
            ("2026-10-25 03:00:00[Europe/Rome]", "2026-10-25 02:00:00.000000+00"),
            ("2026-03-29 03:00:00[Europe/Rome]", "2026-03-29 01:00:00.000000+00"),
        ] {
            assert_eq!(at(text).as_deref(), Ok(utc), "{text}");
        }
    }

    #[test]
    fn spans_before_now_are_another_moment_each_time() {
        assert!(is_relative("5 minutes ago") && is_relative(" now ") && is_relative("1h ago"));
        assert!(!is_relative("2026-11-21 10:00:00+02"));
    }

    #[test]
    fn transactions_as_people_write_them() {
        for (text, target) in [
            ("703", RecoveryTarget::Xid(703)),
            ("4294967295", RecoveryTarget::Xid(u32::MAX)),
            ("4294967999", RecoveryTarget::FullXid(1 << 32 | 703)),
            (" 1:703 ", RecoveryTarget::FullXid(1 << 32 | 703)),
            ("0:703", RecoveryTarget::FullXid(703)),
        ] {
            assert_eq!(parse_xid(text), Ok(target), "{text}");
        }
        for bad in [
            "",
            "2",
            "1:2",
            "4294967296",
            "1:4294967296",
            "4294967296:9",
            "1:",
            ":9",
            "-5",
            "+5",
            "0x2bf",
            "1:2:3",
        ] {
            assert!(parse_xid(bad).is_err(), "{bad:?}");
        }
        let last = FullXid(3 << 32 | 0xFFFF_FFFE);
        assert_eq!(last.nearest(5), FullXid(4 << 32 | 5));
        assert_eq!(FullXid(4 << 32 | 5).nearest(0xFFFF_FFFE), last);
        assert_eq!(FullXid(5).nearest(9).to_string(), "0:9");
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
