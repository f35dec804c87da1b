//! What was found of one bound: a value in each counted round, and what it should have been there.

use crate::figures::{GoodSide, QUIET, number};
use crate::stats::{max, median};

/// Values beside their bound.
#[derive(Debug, Clone)]
pub struct BoundFinding {
    /// The row.
    pub row: &'static str,
    /// What is bounded.
    pub what: String,
    /// The unit of values and limits.
    pub unit: &'static str,
    /// Which side of the limit is good.
    pub side: GoodSide,
    /// The value and the limit of each counted round.
    pub rounds: Vec<(f64, f64)>,
    /// How the limit is made, in words; empty if it is a number.
    pub rule: String,
    /// What a reader should know.
    pub note: String,
    /// Others used the machine meanwhile: their share of it.
    pub foreign: f64,
}

impl BoundFinding {
    /// Of values that are bounded by a number.
    pub fn within(
        what: &str,
        unit: &'static str,
        side: GoodSide,
        limit: f64,
        values: &[f64],
    ) -> BoundFinding {
        BoundFinding::beside(what, unit, side, values.iter().map(|&value| (value, limit)).collect())
    }

    /// Of values with a limit for each.
    pub fn beside(what: &str, unit: &'static str, side: GoodSide, rounds: Vec<(f64, f64)>) -> BoundFinding {
        let (what, rule, note) = (what.to_owned(), String::new(), String::new());
        BoundFinding { row: "", what, unit, side, rounds, rule, note, foreign: 0.0 }
    }

    /// Says how the limit is made.
    pub fn by(self, rule: impl Into<String>) -> BoundFinding {
        BoundFinding { rule: rule.into(), ..self }
    }

    /// Says what a reader should know.
    pub fn noting(self, note: impl Into<String>) -> BoundFinding {
        BoundFinding { note: note.into(), ..self }
    }

    /// By how much it is missed, as a share of the limit: the median over the rounds; not positive when met.
    pub fn missed_by(&self) -> f64 {
        let each = self.rounds.iter().map(|&(value, limit)| self.side.missed_by(value, limit));
        median(&each.collect::<Vec<f64>>())
    }

    fn values(&self) -> Vec<f64> {
        self.rounds.iter().map(|round| round.0).collect()
    }

    /// The median of the values, with the unit.
    pub fn measured(&self) -> String {
        self.with_unit(median(&self.values()))
    }

    /// The smallest and the largest value.
    pub fn range(&self) -> String {
        let values = self.values();
        let smallest = -max(&values.iter().map(|value| -value).collect::<Vec<f64>>());
        match values.len() {
            0 | 1 => String::new(),
            _ => format!("{}–{}", number(smallest), number(max(&values))),
        }
    }

    /// The limit, and how it is made.
    pub fn bound(&self) -> String {
        let limits: Vec<f64> = self.rounds.iter().map(|round| round.1).collect();
        let limit = format!("{} {}", self.side.sign(), self.with_unit(median(&limits)));
        if self.rule.is_empty() { limit } else { format!("{limit} ({})", self.rule) }
    }

    /// Met or missed.
    pub fn verdict(&self) -> String {
        let missed_by = self.missed_by();
        let mut verdict = match missed_by {
            by if by.is_nan() => "**not measured**".to_owned(),
            by if by > 0.0 => format!("**missed by {:.0} %**", (by * 100.0).ceil()),
            _ => "met".to_owned(),
        };
        if self.foreign > QUIET {
            verdict += &format!(" (others took {:.0} % of the machine)", self.foreign * 100.0);
        }
        verdict
    }

    fn with_unit(&self, value: f64) -> String {
        let space = if self.unit == "×" { "" } else { " " };
        format!("{}{space}{}", number(value), self.unit).trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_of_each_round_is_judged_in_that_round() {
        let finding =
            BoundFinding::beside("x", "MB", GoodSide::AtMost, vec![(1.0, 2.0), (30.0, 20.0), (5.0, 6.0)]);
        assert!(finding.missed_by() < 0.0);
        assert_eq!((finding.measured(), finding.range()), ("5.00 MB".to_owned(), "1.00–30.0".to_owned()));
        assert_eq!((finding.bound(), finding.verdict()), ("≤ 6.00 MB".to_owned(), "met".to_owned()));
    }

    #[test]
    fn a_miss_is_told_as_a_share_of_the_limit() {
        let finding = BoundFinding::within("x", "MB/s", GoodSide::AtLeast, 700.0, &[350.0]);
        assert_eq!((finding.verdict(), finding.range()), ("**missed by 50 %**".to_owned(), String::new()));
        let nothing = BoundFinding::within("x", "×", GoodSide::AtMost, 0.5, &[]);
        assert_eq!(nothing.verdict(), "**not measured**");
    }
}
