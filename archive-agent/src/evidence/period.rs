//! From when to when.

use anyhow::anyhow;
use clap::Args;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use walpoint_base::target::{self, TimeError};
use walpoint_runtime::exit::Failure;

/// The options.
#[derive(Debug, Clone, Args)]
pub(crate) struct PeriodArgs {
    /// Leave out records before this date or time ("2026-01-01", "2026-01-01 08:00:00+01", "90 days ago").
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Leave out records after this date, or from this time on.
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
}

/// A period; without an end or a beginning it is open there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Period {
    /// Not before this.
    pub(super) from: Option<Timestamp>,
    /// Before this.
    pub(super) to: Option<Timestamp>,
}

impl PeriodArgs {
    /// What they say. A date is one of UTC.
    pub(super) fn period(&self, now: Timestamp) -> Result<Period, Failure> {
        let from = self.from.as_deref().map(|text| moment("--from", text, (now, false))).transpose();
        let to = self.to.as_deref().map(|text| moment("--to", text, (now, true))).transpose();
        let period = Period { from: from.map_err(Failure::usage)?, to: to.map_err(Failure::usage)? };
        match (period.from, period.to) {
            (Some(from), Some(to)) if from >= to => {
                Err(Failure::usage(anyhow!("--from {from} is not before --to {to}")))
            }
            _ => Ok(period),
        }
    }
}

impl Period {
    /// Whether a moment lies in it.
    pub(super) fn has(&self, time: Timestamp) -> bool {
        self.from.is_none_or(|from| from <= time) && self.to.is_none_or(|to| time < to)
    }
}

/// A moment; of a date its beginning, or its end.
fn moment(option: &str, text: &str, (now, end): (Timestamp, bool)) -> anyhow::Result<Timestamp> {
    let text = text.trim();
    if let Some(day) = text.parse::<jiff::civil::Date>().ok().filter(|_| text.len() == "2026-12-31".len()) {
        let day = if end { day.tomorrow()? } else { day };
        return Ok(day.to_zoned(TimeZone::UTC)?.timestamp());
    }
    let parsed = target::parse_time(text, now).map_err(|error| match error {
        TimeError::Unreadable(_) => anyhow!(
            "{option} {text} cannot be read\nHINT: Give a date (\"2026-12-31\"), a time with its zone (\"2026-12-31 18:00:00+01\"), or \
             a span before now (\"90 days ago\")."
        ),
        TimeError::Twice { .. } | TimeError::Never { .. } | TimeError::SeveralZones { .. } => anyhow!("{option}: {error}"),
    });
    Ok(parsed?.to_time())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn period(from: &str, to: &str) -> Result<Period, Failure> {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        PeriodArgs { from: some(from), to: some(to) }.period("2026-11-21T12:00:00Z".parse().unwrap())
    }

    #[test]
    fn a_date_is_a_whole_day() {
        let one = period("2026-11-20", "2026-11-20").unwrap();
        for (time, inside) in [
            ("2026-11-19T23:59:59Z", false),
            ("2026-11-20T00:00:00Z", true),
            ("2026-11-20T23:59:59Z", true),
            ("2026-11-21T00:00:00Z", false),
        ] {
            assert_eq!(one.has(time.parse().unwrap()), inside, "{time}");
        }
        assert!(period("", "").unwrap().has(Timestamp::UNIX_EPOCH));
        let relative = period("2 hours ago", "2026-11-21 12:30:00+01").unwrap();
        assert_eq!(relative.from, Some("2026-11-21T10:00:00Z".parse().unwrap()));
        assert_eq!(relative.to, Some("2026-11-21T11:30:00Z".parse().unwrap()));
    }

    #[test]
    fn what_is_no_period_is_refused() {
        for (from, to) in
            [("soon", ""), ("", "2026-13-01"), ("2026-11-21 10:00:00", ""), ("2026-11-21", "2026-11-20")]
        {
            assert_eq!(period(from, to).unwrap_err().status, 2, "{from} {to}");
        }
    }
}
