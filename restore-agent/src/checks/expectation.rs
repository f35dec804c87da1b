//! What a check expects, and whether an answer is that. No IO here.

use std::fmt;

use walpoint_base::diagnostic::shown;

/// The longest answer that a message quotes, in characters.
const QUOTED: usize = 200;

/// What a check expects.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Expectation {
    /// Nothing but that it succeeds.
    Success,
    /// That its one value, or its output, is this.
    Value(Expected),
    /// That the query gives this many rows.
    Rows(u64),
    /// That its one value lies between these, ends included.
    Between {
        /// The least, if any.
        least: Option<f64>,
        /// The most, if any.
        most: Option<f64>,
    },
}

/// A value that is expected.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Expected {
    /// True or false.
    Truth(bool),
    /// A number, however it is written.
    Number(f64),
    /// Exactly this text.
    Text(String),
}

/// What a check answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Rows: how many, and of the first one the first value; that is `None` if it is NULL.
    Rows {
        /// How many.
        count: usize,
        /// The first value of the first row, if there is a row.
        first: Option<Option<String>>,
    },
    /// The output of a command that succeeded, without its final line end.
    Output(String),
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truth(truth) => write!(f, "{truth}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "\"{}\"", quoted(text)),
        }
    }
}

impl Expected {
    fn is(&self, value: &str) -> bool {
        match self {
            Self::Truth(true) => matches!(value, "t" | "true"),
            Self::Truth(false) => matches!(value, "f" | "false"),
            Self::Number(number) => value.trim().parse::<f64>().is_ok_and(|value| value == *number),
            Self::Text(text) => value == text,
        }
    }
}

impl Expectation {
    /// Compares an answer; says what is wrong with it.
    pub(crate) fn compare(&self, answer: &Answer) -> Result<(), String> {
        match self {
            Self::Success => Ok(()),
            Self::Rows(expected) => {
                let Answer::Rows { count, .. } = answer else {
                    return Err("it gave no rows".to_owned());
                };
                match u64::try_from(*count).is_ok_and(|count| count == *expected) {
                    true => Ok(()),
                    false => Err(format!("expected {expected} rows, got {count}")),
                }
            }
            Self::Value(expected) => {
                let value = only(answer).map_err(|got| format!("expected {expected}, got {got}"))?;
                match expected.is(value) {
                    true => Ok(()),
                    false => Err(format!("expected {expected}, got \"{}\"", quoted(value))),
                }
            }
            Self::Between { least, most } => {
                let range = match (least, most) {
                    (Some(least), Some(most)) => format!("a number from {least} to {most}"),
                    (Some(least), None) => format!("a number of at least {least}"),
                    (None, Some(most)) => format!("a number of at most {most}"),
                    (None, None) => "a number".to_owned(),
                };
                let value = only(answer).map_err(|got| format!("expected {range}, got {got}"))?;
                let lies = |number: f64| {
                    least.is_none_or(|least| number >= least) && most.is_none_or(|most| number <= most)
                };
                match value.trim().parse::<f64>().is_ok_and(lies) {
                    true => Ok(()),
                    false => Err(format!("expected {range}, got \"{}\"", quoted(value))),
                }
            }
        }
    }
}

/// The one value of an answer, or what there is instead.
fn only(answer: &Answer) -> Result<&str, String> {
    match answer {
        Answer::Output(output) => Ok(output),
        Answer::Rows { count: 1, first: Some(Some(value)) } => Ok(value),
        Answer::Rows { count: 1, .. } => Err("NULL".to_owned()),
        Answer::Rows { count: 0, .. } => Err("no row".to_owned()),
        Answer::Rows { count, .. } => Err(format!("{count} rows")),
    }
}

/// A text for a message: on one line, and not too long.
pub(crate) fn quoted(text: &str) -> String {
    let mut text = shown(text);
    if let Some((at, _)) = text.char_indices().nth(QUOTED) {
        text.truncate(at);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(value: &str) -> Answer {
        Answer::Rows { count: 1, first: Some(Some(value.to_owned())) }
    }

    #[test]
    fn answers_are_compared_with_what_is_expected() {
        let none = Answer::Rows { count: 0, first: None };
        let null = Answer::Rows { count: 1, first: Some(None) };
        let truth = Expectation::Value(Expected::Truth(true));
        let number = Expectation::Value(Expected::Number(3.0));
        let text = Expectation::Value(Expected::Text("t".into()));
        let between = Expectation::Between { least: Some(1.0), most: Some(5.0) };
        for (expectation, answer, wrong) in [
            (&truth, one("t"), None),
            (&truth, one("f"), Some("expected true, got \"f\"")),
            (&truth, null.clone(), Some("expected true, got NULL")),
            (&truth, none.clone(), Some("expected true, got no row")),
            (&number, one("3.00"), None),
            (&number, one("4"), Some("expected 3, got \"4\"")),
            (&text, one("t"), None),
            (&text, one("true"), Some("expected \"t\", got \"true\"")),
            (&between, one("5"), None),
            (&between, one("5.5"), Some("expected a number from 1 to 5, got \"5.5\"")),
            (&between, one("x\ny"), Some("expected a number from 1 to 5, got \"x\\ny\"")),
            (&Expectation::Rows(0), none, None),
            (&Expectation::Rows(0), one("x"), Some("expected 0 rows, got 1")),
            (&Expectation::Success, null, None),
            (&Expectation::Value(Expected::Text("ok".into())), Answer::Output("ok".into()), None),
        ] {
            assert_eq!(expectation.compare(&answer).err().as_deref(), wrong, "{expectation:?} {answer:?}");
        }
        let not_a_number = Expectation::Between { least: None, most: Some(f64::INFINITY) };
        assert!(not_a_number.compare(&one("NaN")).is_err());
    }
}
