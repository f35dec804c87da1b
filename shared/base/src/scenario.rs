//! The names of configured drills.

use std::fmt;
use std::str::FromStr;

use crate::ParseError;

/// The name of a table `[cluster.NAME.drill.SCENARIO]`: `[a-z0-9][a-z0-9._-]{0,62}`, as the names of clusters are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScenarioName(String);

impl ScenarioName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ScenarioName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ScenarioName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for ScenarioName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(lower);
        if first && text.len() <= 63 && bytes.all(|b| lower(b) || matches!(b, b'.' | b'_' | b'-')) {
            return Ok(Self(text.to_owned()));
        }
        Err(ParseError::new(
            "the name of a scenario (1 to 63 of a-z, 0-9, '.', '_', '-', starting with a letter or digit)",
            text,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_and_plain() {
        for name in ["nightly", "0", "a.b_c-d", &"a".repeat(63)] {
            assert_eq!(name.parse::<ScenarioName>().unwrap().as_str(), name);
        }
        for name in ["", "-a", "Nightly", "a b", "ä", "a\n", &"a".repeat(64)] {
            let error = name.parse::<ScenarioName>().unwrap_err().to_string();
            assert!(error.contains("the name of a scenario"), "{error}");
        }
    }
}
