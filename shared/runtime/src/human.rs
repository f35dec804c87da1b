//! Sizes, spans of time, counts and moments for people: the one place where they are formatted.
//!
//! What is printed can be written into the configuration: it is read as the same size or span, up to the digits that were left
//! out.

use std::time::Duration;

use jiff::Timestamp;

/// Units of size, each 1024 times the one before it.
const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// Bytes: `1023 B`, `3.2 MiB`.
pub fn size(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // 1023.96 of one unit is 1.0 of the next.
    let mut unit = 0;
    while unit + 1 < UNITS.len() && rounded(bytes, unit) >= 10_240 {
        unit += 1;
    }
    let tenths = rounded(bytes, unit);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS.get(unit).copied().unwrap_or_default())
}

/// Bytes as tenths of a unit, to the nearest.
fn rounded(bytes: u64, unit: usize) -> u128 {
    let one = 1u128 << (10 * unit);
    (u128::from(bytes) * 10 + one / 2) / one
}

/// A span of time: `250ms`, `1.8s`, `1m 20s`, `3h 12m`.
pub fn span(span: Duration) -> String {
    // To the nearest of what is printed, before it is decided what that is.
    let tenths = (span.as_millis() + 50) / 100;
    let seconds = (span.as_millis() + 500) / 1000;
    let minutes = (seconds + 30) / 60;
    match (span.as_millis(), tenths, seconds) {
        (milliseconds @ 0..1000, ..) => format!("{milliseconds}ms"),
        (_, tenths @ 0..600, _) => match tenths % 10 {
            0 => format!("{}s", tenths / 10),
            rest => format!("{}.{rest}s", tenths / 10),
        },
        (.., seconds @ 0..3600) => pair((seconds / 60, "m"), (seconds % 60, "s")),
        _ => pair((minutes / 60, "h"), (minutes % 60, "m")),
    }
}

fn pair((large, unit): (u128, &str), (small, below): (u128, &str)) -> String {
    match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit} {small}{below}"),
    }
}

/// A text behind what introduces it, each further line of it indented to its first, without a final line end.
pub fn hanging(lead: &str, text: &str) -> String {
    format!("{lead}{}", text.replace('\n', &format!("\n{:width$}", "", width = lead.chars().count())))
}

/// A count of things: `1 segment`, `2 segments`.
pub fn count(count: u64, one: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {one}s"),
    }
}

/// A number with its digits in groups: `2,100,000`.
pub fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A moment in UTC, to the second: RFC 3339.
pub fn time(time: Timestamp) -> String {
    format!("{time:.0}")
}

#[cfg(test)]
mod tests {
    use bytesize::ByteSize;
    use proptest::prelude::*;

    use super::*;

    fn read_size(text: &str) -> u64 {
        text.parse::<ByteSize>().unwrap_or_else(|e| panic!("{text:?}: {e}")).as_u64()
    }

    fn read_span(text: &str) -> Duration {
        let read = walpoint_base::span::parse(text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        read.try_into().unwrap()
    }

    #[test]
    fn digits_are_grouped() {
        for (value, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (2_100_000, "2,100,000")] {
            assert_eq!(number(value), text);
        }
        assert_eq!(number(u64::MAX), "18,446,744,073,709,551,615");
    }

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (16 << 20, "16.0 MiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            ((1 << 20) - 51, "1.0 MiB"),
            ((1 << 20) - 52, "1023.9 KiB"),
            ((1 << 20) - 103, "1023.9 KiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn spans_counts_and_moments() {
        for (milliseconds, text) in [
            (0, "0ms"),
            (999, "999ms"),
            (1000, "1s"),
            (1840, "1.8s"),
            (59_949, "59.9s"),
            (59_950, "1m"),
            (125_000, "2m 5s"),
            (3_599_500, "1h"),
            (11_525_000, "3h 12m"),
            (100 * 3_600_000, "100h"),
        ] {
            assert_eq!(span(Duration::from_millis(milliseconds)), text);
        }
        assert_eq!((count(1, "segment"), count(0, "segment")), ("1 segment".into(), "0 segments".into()));
        let moment: Timestamp = "2026-11-24T10:00:00.123Z".parse().unwrap();
        assert_eq!(time(moment), "2026-11-24T10:00:00Z");
        assert_eq!(time(moment).parse::<Timestamp>().unwrap().as_second(), moment.as_second());
    }

    proptest! {
        /// What is printed can be written into the configuration, means what was printed, and is printed the same again.
        #[test]
        fn the_configuration_reads_what_is_printed(bytes in prop_oneof![any::<u64>(), 0..1u64 << 21], shift in 0..50u32, milliseconds in 0..10_000_000_000u64) {
            let bytes = bytes >> shift;
            let read = read_size(&size(bytes));
            prop_assert_eq!(size(read), size(bytes));
            prop_assert!(read.abs_diff(bytes) <= bytes / 20, "{bytes} is read as {read}");
            let exact = Duration::from_millis(milliseconds >> (shift % 30));
            let read = read_span(&span(exact));
            prop_assert_eq!(span(read), span(exact));
            prop_assert!(read.abs_diff(exact) <= exact / 20, "{exact:?} is read as {read:?}");
        }
    }
}
