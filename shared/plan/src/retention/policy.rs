//! What a configuration asks for.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

/// Which backups stay. What one rule keeps stays, whatever the others say; only [`Self::max_age`] takes away.
#[derive(Clone, Debug)]
pub struct Policy {
    /// For backups whose label has no rule of its own.
    pub rule: Rule,
    /// For backups with these labels, in place of `rule`.
    pub labels: BTreeMap<String, Rule>,
    /// Every moment of this span before now can be recovered, on every timeline that was in use in it.
    pub window: Option<Span>,
    /// So many backups stay in any case, the newest ones; never less than one.
    pub minimum: u32,
    /// Nothing older stays but what is held, and `minimum`: a ceiling for personal data.
    pub max_age: Option<Span>,
    /// Backups with pages that failed their checksum when they were taken count like sound ones.
    pub accept_damaged_pages: bool,
}

/// A rule about backups by number and date.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    /// The newest so many.
    pub count: Option<u32>,
    /// Those that ended within this span before now.
    pub age: Option<Span>,
    /// The last one of each of the newest so many days that have one. Days, weeks, months and years are those of UTC.
    pub daily: u32,
    /// The last one of each of the newest so many weeks that have one.
    pub weekly: u32,
    /// The last one of each of the newest so many months that have one.
    pub monthly: u32,
    /// The last one of each of the newest so many years that have one.
    pub yearly: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            rule: Rule::default(),
            labels: BTreeMap::new(),
            window: None,
            minimum: 1,
            max_age: None,
            accept_damaged_pages: false,
        }
    }
}

impl Policy {
    /// Whether it can drop anything.
    pub fn drops(&self) -> bool {
        !self.rule.is_empty() || self.window.is_some() || self.max_age.is_some() || !self.labels.is_empty()
    }

    /// The rule for backups of that label, and whether it is the label's own.
    pub(super) fn rule_for(&self, label: &str) -> (&Rule, bool) {
        self.labels.get(label).map_or((&self.rule, false), |rule| (rule, true))
    }
}

impl Rule {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        let Self { count, age, daily, weekly, monthly, yearly } = self;
        count.is_none() && age.is_none() && [daily, weekly, monthly, yearly].iter().all(|n| **n == 0)
    }
}

/// The moment a span before `now`, by the calendar of UTC; the beginning of time if the span reaches beyond it.
pub fn since(now: Timestamp, span: Span) -> Timestamp {
    let earlier = now.to_zoned(TimeZone::UTC).checked_sub(span.abs());
    earlier.map_or(Timestamp::MIN, |at| at.timestamp())
}
