//! The tables `[cluster.NAME.retention]` and `[cluster.NAME.retention.label.LABEL]`: which backups `expire` keeps.
//!
//! Only what is written in the file is here; what it means is decided by the repository crate.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Span, Timestamp, tz::TimeZone};
use serde::Deserialize;
use walpoint_base::span;

/// Which backups stay. A backup stays if one of the keys keeps it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionSettings {
    /// The newest so many backups stay.
    pub count: Option<u32>,
    /// Backups stay this long.
    pub age: Option<Span>,
    /// Every moment of this span before now can be recovered: the backups and all WAL for it stay.
    pub window: Option<Span>,
    /// The last backup of each of the newest so many days that have one stays.
    pub daily: u32,
    /// The same of weeks.
    pub weekly: u32,
    /// The same of months.
    pub monthly: u32,
    /// The same of years.
    pub yearly: u32,
    /// So many backups stay in any case, the newest ones.
    pub minimum: u32,
    /// Nothing older stays but what is held, and `minimum`: a ceiling for personal data.
    pub max_age: Option<Span>,
    /// How long what is announced waits before it is deleted.
    #[serde(deserialize_with = "span::deserialize")]
    pub grace: SignedDuration,
    /// Backups with pages that failed their checksum when they were taken count like sound ones.
    pub accept_damaged_pages: bool,
    /// Rules for the backups with a label, in place of the ones above.
    pub label: BTreeMap<String, LabelSettings>,
}

/// Which backups with a label stay.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LabelSettings {
    /// The newest so many of them.
    pub count: Option<u32>,
    /// Those that are not older.
    pub age: Option<Span>,
    /// The last one of each of the newest so many days that have one.
    pub daily: u32,
    /// The same of weeks.
    pub weekly: u32,
    /// The same of months.
    pub monthly: u32,
    /// The same of years.
    pub yearly: u32,
}

impl Default for RetentionSettings {
    fn default() -> Self {
        Self {
            count: None,
            age: None,
            window: None,
            daily: 0,
            weekly: 0,
            monthly: 0,
            yearly: 0,
            minimum: 1,
            max_age: None,
            grace: SignedDuration::from_hours(24),
            accept_damaged_pages: false,
            label: BTreeMap::new(),
        }
    }
}

impl RetentionSettings {
    /// What its keys contradict: the label if it is about one, a key, and what is wrong with it.
    pub(crate) fn contradictions(&self) -> Vec<(Option<&str>, &'static str, String)> {
        let mut found = Vec::new();
        let mut refuse =
            |label, key: &'static str, what: &str| found.push((label, key, format!("\"{key}\" {what}")));
        if self.minimum == 0 {
            refuse(None, "minimum", "must be at least 1: the last backup is never dropped");
        }
        if self.grace.is_negative() {
            refuse(None, "grace", "must not be negative");
        }
        let spans = [("age", self.age), ("window", self.window), ("max_age", self.max_age)];
        for (key, span) in spans {
            if span.is_some_and(|span| before(span).is_none()) {
                refuse(None, key, "must be a span of time above zero, such as \"7d\" or \"1y\"");
            }
        }
        if self.count == Some(0) {
            refuse(None, "count", "must be at least 1");
        }
        if let (Some(window), Some(max)) = (self.window.and_then(before), self.max_age.and_then(before))
            && max > window
        {
            let what = "must not be shorter than \"window\"\nDETAIL: Backups and WAL that the window \
                needs would be deleted.";
            refuse(None, "max_age", what);
        }
        for (label, rule) in &self.label {
            let LabelSettings { count, age, daily, weekly, monthly, yearly } = rule;
            let calendar = [daily, weekly, monthly, yearly].iter().any(|n| **n > 0);
            if *count == Some(0) {
                refuse(Some(label.as_str()), "count", "must be at least 1");
            }
            if age.is_some_and(|span| before(span).is_none()) {
                refuse(
                    Some(label.as_str()),
                    "age",
                    "must be a span of time above zero, such as \"7d\" or \"1y\"",
                );
            }
            if count.is_none() && age.is_none() && !calendar {
                let what = "or another key is needed: no backup with this label would be kept";
                refuse(Some(label.as_str()), "count", what);
            }
        }
        found
    }
}

/// The moment that lies the span before a certain day; `None` if it does not lie before it.
fn before(span: Span) -> Option<Timestamp> {
    let day = Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
    let earlier = day.checked_sub(span).ok()?;
    (earlier < day).then(|| earlier.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<RetentionSettings, String> {
        let settings: RetentionSettings = toml::from_str(text).map_err(|e| e.to_string())?;
        match settings.contradictions()[..] {
            [] => Ok(settings),
            [(.., ref what), ..] => Err(what.clone()),
        }
    }

    #[test]
    fn the_usual_is_accepted() {
        let settings = read(
            "count = 5\nwindow = \"7d\"\ndaily = 7\nweekly = 4\nmonthly = 12\nyearly = 7\nminimum = 2\n\
             max_age = \"10y\"\ngrace = \"36h\"\n[label.pre-deploy]\nage = \"2 weeks\"\n",
        )
        .unwrap();
        assert_eq!((settings.count, settings.daily, settings.yearly), (Some(5), 7, 7));
        assert_eq!(settings.grace, SignedDuration::from_hours(36));
        assert!(settings.label["pre-deploy"].age.is_some());
        assert_eq!(read("grace = \"7d\"").unwrap().grace, SignedDuration::from_hours(7 * 24));
        assert!(read("grace = \"0s\"").unwrap().grace.is_zero());
        let nothing = read("").unwrap();
        assert_eq!((nothing.minimum, nothing.grace), (1, SignedDuration::from_hours(24)));
    }

    #[test]
    fn nonsense_is_refused() {
        for (text, told) in [
            ("minimum = 0", "at least 1"),
            ("count = 0", "at least 1"),
            ("age = \"0d\"", "above zero"),
            ("window = \"7d ago\"", "above zero"),
            ("window = \"yesterday\"", "window"),
            ("window = \"8d\"\nmax_age = \"7d\"", "shorter than \"window\""),
            ("grace = \"-1h\"", "negative"),
            ("grace = \"110000000h\"", "longer than 10 years"),
            ("[label.x]\n", "or another key is needed"),
            ("[label.x]\ncount = 0", "at least 1"),
            ("dayly = 7", "dayly"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
