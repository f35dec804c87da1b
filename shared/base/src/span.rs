//! Spans of time as people write them, in the configuration and as options: `90s`, `5m`, `1h 30m`, `2d`.

use jiff::{SignedDuration, Span, SpanRelativeTo};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

const LONGEST_YEARS: i64 = 10;

/// No span is longer: a moment that far from now exists for every clock, so that adding one never overflows.
pub const LONGEST: SignedDuration = SignedDuration::from_hours(LONGEST_YEARS * 365 * 24);

/// Reads a span, in which a day has 24 hours. It may be zero or negative: who asks knows what that means.
pub fn parse(text: &str) -> Result<SignedDuration, String> {
    let span = match text.parse::<Span>() {
        Ok(span) => span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| {
            format!("\"{text}\" has no fixed length, because months and years differ: write it in days, such as 30d")
        })?,
        // A calendar's spans end earlier than a clock's.
        Err(_) => text.parse::<SignedDuration>().map_err(|_| {
            format!("\"{text}\" is not a span of time, which has units, such as 90s, 5m, \"1h 30m\" or 2d")
        })?,
    };
    match span <= LONGEST {
        true => Ok(span),
        false => Err(format!("\"{text}\" is longer than {LONGEST_YEARS} years")),
    }
}

/// Reads a setting that is a span.
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SignedDuration, D::Error> {
    parse(&String::deserialize(from)?).map_err(D::Error::custom)
}

/// Reads a setting that is a span, where it is set.
pub fn deserialize_some<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SignedDuration>, D::Error> {
    deserialize(from).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_up_to_days_and_weeks() {
        for (text, seconds) in [
            ("90s", 90),
            ("5m", 300),
            ("1h 30m", 5400),
            ("1h30m", 5400),
            ("1d", 86_400),
            ("1d 2h", 93_600),
            ("7d", 604_800),
            ("2 weeks", 1_209_600),
            ("87600h", 315_360_000),
            ("3650d", 315_360_000),
            ("0s", 0),
            ("-5m", -300),
        ] {
            assert_eq!(parse(text).unwrap(), SignedDuration::from_secs(seconds), "{text}");
        }
        assert_eq!(parse("1.5s").unwrap(), SignedDuration::from_millis(1500));
    }

    #[test]
    fn an_error_names_what_is_wrong() {
        for (text, what) in [
            ("60", "has units"),
            ("", "has units"),
            ("soon", "has units"),
            ("1y", "no fixed length"),
            ("2 months", "no fixed length"),
            ("3651d", "longer than 10 years"),
            ("110000000h", "longer than 10 years"),
            ("9223372036854775807s", "longer than 10 years"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
    }
}
