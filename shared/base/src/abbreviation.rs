//! Times with the abbreviation of a zone, as PostgreSQL logs them where `log_timezone` names a place: `2026-11-21 10:00:00.250 CET`.
//!
//! What an abbreviation means is not the same everywhere: `IST` is a time in India, in Ireland and in Israel. It counts where all zones
//! of the system's time zone database that use it at that time of the clock agree about the moment.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{self, Offset};

/// A time of the clock, and an abbreviation behind it.
pub(crate) fn split(text: &str) -> Option<(DateTime, &str)> {
    let time = text.trim_end_matches(|c: char| c.is_ascii_uppercase());
    let name = text.get(time.len()..).filter(|name| (2..=5).contains(&name.len()))?;
    Some((time.trim_end().parse().ok()?, name))
}

/// The moments that a time of the clock can be, each with the offset of a zone that calls itself so then.
pub(crate) fn moments(time: DateTime, name: &str) -> BTreeMap<Timestamp, Offset> {
    let mut moments = BTreeMap::new();
    for zone in tz::db().available() {
        // Those that count leap seconds are no clocks that PostgreSQL has.
        let Some(zone) = Some(zone.as_str()).filter(|zone| !zone.starts_with("right/")) else { continue };
        let Ok(zone) = tz::db().get(zone) else { continue };
        let either = zone.to_ambiguous_timestamp(time);
        for moment in [either.earlier(), either.later()].into_iter().flatten() {
            let there = zone.to_offset_info(moment);
            // Clocks that are put forward show some times never.
            if there.abbreviation() == name && there.offset().to_datetime(moment) == time {
                moments.insert(moment, there.offset());
            }
        }
    }
    moments
}
