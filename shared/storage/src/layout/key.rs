//! Names of objects, relative to the repository's root.

use std::fmt;
use std::str::FromStr;

use walpoint_base::ParseError;

/// No key is longer, so that every store can hold it under a prefix of the user's.
pub const MAX_KEY: usize = 512;

/// The name of an object: `[0-9A-Za-z._/-]`, at most [`MAX_KEY`] bytes, no empty, `.` or `..` part, no leading or trailing `/`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

/// A directory of names: like a [`Key`], but everything in it starts with it and a `/`. Empty for the root.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(String);

impl Key {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part after the last `/`.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// What follows `prefix` and its `/`; `None` if this name is not in it.
    pub fn below(&self, prefix: &Prefix) -> Option<&str> {
        if prefix.0.is_empty() {
            return Some(&self.0);
        }
        self.0.strip_prefix(&prefix.0)?.strip_prefix('/')
    }

    /// For names that this crate composes of parts that are valid by their types.
    pub(crate) fn composed(name: String) -> Self {
        debug_assert!(is_valid(&name), "{name:?}");
        Self(name)
    }
}

impl Prefix {
    /// The root of the repository.
    pub fn root() -> Self {
        Self(String::new())
    }

    /// The name, without a `/` at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The object or directory `name` in this directory.
    pub fn key(&self, name: &str) -> Result<Key, ParseError> {
        if self.0.is_empty() { name.parse() } else { format!("{}/{name}", self.0).parse() }
    }

    pub(crate) fn composed(name: String) -> Self {
        debug_assert!(name.is_empty() || is_valid(&name), "{name:?}");
        Self(name)
    }
}

fn is_valid(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let part = |p: &str| !p.is_empty() && p != "." && p != ".." && p.bytes().all(plain);
    name.len() <= MAX_KEY && name.split('/').all(part)
}

impl FromStr for Key {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        is_valid(text)
            .then(|| Self(text.to_owned()))
            .ok_or_else(|| ParseError::new("the name of an object in a repository", text))
    }
}

impl FromStr for Prefix {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.is_empty() {
            return Ok(Self::root());
        }
        text.parse().map(|Key(name)| Self(name))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.0)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_leaves_the_repository() {
        for bad in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            "..",
            "a/../b",
            "a/./b",
            "a b",
            "ä",
            "a#1",
            "a\\b",
            &"x".repeat(513),
        ] {
            assert!(bad.parse::<Key>().is_err(), "{bad:?}");
        }
        let key: Key = "clusters/main/lineages/7-1".parse().unwrap();
        assert_eq!(key.below(&"clusters/main".parse().unwrap()), Some("lineages/7-1"));
        assert_eq!(key.below(&"clusters/ma".parse().unwrap()), None);
        assert_eq!(key.below(&Prefix::root()), Some(key.as_str()));
        assert_eq!(key.file_name(), "7-1");
    }

    proptest! {
        #[test]
        fn any_text_is_a_key_or_an_error(text in "[a-z./ ]{0,20}") {
            if let Ok(key) = text.parse::<Key>() {
                prop_assert!(!key.as_str().split('/').any(|p| p.is_empty() || p == "." || p == ".."));
            }
        }
    }
}
