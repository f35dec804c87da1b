//! Placeholders in the configuration: `{name}` becomes what is known under that name, which may hold placeholders itself.
//!
//! Braces around anything but lower-case letters, digits and `_` are left alone, so shell and JSON keep theirs.

use std::collections::BTreeMap;

/// Values for placeholders.
pub type Values = BTreeMap<String, String>;

/// Placeholders in values lead on at most this often.
const DEPTH: u32 = 8;

/// Fills in all placeholders; the error names one that is not known.
pub fn fill(text: &str, values: &Values) -> Result<String, String> {
    fill_to(text, values, DEPTH)
}

fn fill_to(text: &str, values: &Values, depth: u32) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some(begin) = rest.find('{') {
        filled += &rest[..begin];
        rest = &rest[begin..];
        match name(rest) {
            Some(name) => {
                let value =
                    values.get(name).ok_or_else(|| format!("nothing is known as {{{name}}}: {text}"))?;
                if depth == 0 {
                    return Err(format!("{{{name}}} leads back to itself"));
                }
                filled += &fill_to(value, values, depth - 1)?;
                rest = &rest[name.len() + 2..];
            }
            None => {
                filled.push('{');
                rest = &rest[1..];
            }
        }
    }
    Ok(filled + rest)
}

/// The name of the placeholder that `text` begins with.
fn name(text: &str) -> Option<&str> {
    let name = &text[1..text.find('}')?];
    let part_of_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    (!name.is_empty() && name.bytes().all(part_of_name)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&str, &str)]) -> Values {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn placeholders_are_filled_in_through_others() {
        let values = values(&[("bin", "/b"), ("config", "{bin}/c")]);
        assert_eq!(fill("{bin}/x --config {config} %p", &values).unwrap(), "/b/x --config /b/c %p");
    }

    #[test]
    fn other_braces_stay() {
        assert_eq!(fill("${HOME} {\"a\": {}} {", &Values::new()).unwrap(), "${HOME} {\"a\": {}} {");
    }

    #[test]
    fn what_is_not_known_and_circles_are_errors() {
        assert!(fill("{bni}", &Values::new()).unwrap_err().contains("{bni}"));
        let circle = values(&[("a", "{b}"), ("b", "{a}")]);
        assert!(fill("{a}", &circle).unwrap_err().contains("itself"));
    }
}
