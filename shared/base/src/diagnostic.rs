//! Errors and warnings in the manner of PostgreSQL: what failed, facts about it (`DETAIL:`), what to do next (`HINT:`).
//!
//! The text form has each part on a line of its own, and [`Diagnostic::new`] reads that form back without loss. So a message keeps its
//! parts wherever it is text for a while: in the `Display` of an error type, behind a context that a caller prepends
//! (`"repository main: …"`), in a message between a thin client and its server. What writes a log or a document takes them apart.
//! Nothing is appended to a message that may have parts: it would become a part of the last one.

use std::fmt;

/// Begins the line of a fact.
const DETAIL: &str = "DETAIL: ";

/// Begins the line of an instruction.
const HINT: &str = "HINT: ";

/// A text that another party chose, such as a name in WAL or in a repository, for a message: on one line, and without what could control a
/// terminal. As it is, a line end and `HINT:` in it would be an instruction of ours.
pub fn shown(text: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

/// A message with its details and its hints.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Diagnostic {
    message: String,
    details: Vec<String>,
    hints: Vec<String>,
}

impl Diagnostic {
    /// A message: its first line says what failed, on what, and why, without a final full stop. Lines that begin with `DETAIL:` or
    /// `HINT:` become parts of their own.
    pub fn new(text: impl AsRef<str>) -> Self {
        let mut read = Self::default();
        for line in text.as_ref().lines() {
            if let Some(detail) = line.strip_prefix(DETAIL) {
                read.add_detail(detail);
            } else if let Some(hint) = line.strip_prefix(HINT) {
                read.add_hint(hint);
            } else {
                if !read.message.is_empty() {
                    read.message.push('\n');
                }
                read.message.push_str(line);
            }
        }
        read
    }

    /// One message of several: theirs in one line behind `lead`, then the details and the hints of all of them.
    pub fn gather<T: AsRef<str>>(lead: &str, texts: impl IntoIterator<Item = T>) -> Self {
        let mut all = Self::default();
        for text in texts {
            let read = Self::new(text);
            all.message.push_str(if all.message.is_empty() { "" } else { "; " });
            all.message.push_str(&read.message);
            all.take_parts(&read);
        }
        if !lead.is_empty() {
            all.message = format!("{lead}: {}", all.message);
        }
        all
    }

    /// Adds a fact: a whole sentence, or several.
    #[must_use]
    pub fn detail(mut self, detail: impl AsRef<str>) -> Self {
        self.add_detail(detail.as_ref());
        self
    }

    /// Adds what to do next: a whole sentence, or several.
    #[must_use]
    pub fn hint(mut self, hint: impl AsRef<str>) -> Self {
        self.add_hint(hint.as_ref());
        self
    }

    /// Adds what is beneath: its message behind this one, its details and hints to these. What is there already is not repeated.
    pub fn add_cause(&mut self, cause: &Self) {
        if !self.message.contains(&cause.message) {
            if !self.message.is_empty() {
                self.message.push_str(": ");
            }
            self.message.push_str(&cause.message);
        }
        self.take_parts(cause);
    }

    /// The message without its parts.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The facts.
    pub fn details(&self) -> &[String] {
        &self.details
    }

    /// What to do next.
    pub fn hints(&self) -> &[String] {
        &self.hints
    }

    /// The message in one line, then a line for each detail and each hint.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let message = std::iter::once(self.message.replace('\n', " "));
        let details = self.details.iter().map(|detail| format!("{DETAIL}{detail}"));
        message.chain(details).chain(self.hints.iter().map(|hint| format!("{HINT}{hint}")))
    }

    /// All of it in one line: for logs whose records are lines.
    pub fn line(&self) -> String {
        self.to_string().replace('\n', " ")
    }

    fn take_parts(&mut self, from: &Self) {
        from.details.iter().for_each(|detail| self.add_detail(detail));
        from.hints.iter().for_each(|hint| self.add_hint(hint));
    }

    fn add_detail(&mut self, detail: &str) {
        add(&mut self.details, detail);
    }

    fn add_hint(&mut self, hint: &str) {
        add(&mut self.hints, hint);
    }
}

/// Adds a part unless it is there: one line, whatever was put into it.
fn add(parts: &mut Vec<String>, part: &str) {
    let part = part.trim().replace('\n', " ");
    if !part.is_empty() && !parts.contains(&part) {
        parts.push(part);
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.details.iter().try_for_each(|detail| write!(f, "\n{DETAIL}{detail}"))?;
        self.hints.iter().try_for_each(|hint| write!(f, "\n{HINT}{hint}"))
    }
}

impl std::error::Error for Diagnostic {}

impl From<&str> for Diagnostic {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Diagnostic {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<Diagnostic> for String {
    fn from(diagnostic: Diagnostic) -> Self {
        diagnostic.to_string()
    }
}

/// Diagnostics as members of JSON documents.
#[cfg(feature = "json")]
mod json {
    use std::borrow::Cow;

    use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
    use serde::ser::{Serialize, SerializeMap, Serializer};

    use super::Diagnostic;

    /// Each part is a member of its own; several details or hints are lines of one.
    impl Serialize for Diagnostic {
        fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            let mut map = to.serialize_map(None)?;
            map.serialize_entry("message", &self.message)?;
            for (name, parts) in [("detail", &self.details), ("hint", &self.hints)] {
                if !parts.is_empty() {
                    map.serialize_entry(name, &parts.join("\n"))?;
                }
            }
            map.end()
        }
    }

    impl JsonSchema for Diagnostic {
        fn schema_name() -> Cow<'static, str> {
            "Message".into()
        }

        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({
                "description": "What happened, with facts about it and what to do.",
                "type": "object",
                "properties": {
                    "message": { "description": "What happened, on what, and why.", "type": "string" },
                    "detail": { "description": "Facts about it, as full sentences; several are lines.", "type": "string" },
                    "hint": { "description": "What to do about it, as full sentences; several are lines.", "type": "string" },
                },
                "required": ["message"],
            })
        }
    }

    /// Texts that documents have as their parts.
    pub trait Parts {
        /// Writes the parts.
        fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error>;
    }

    impl Parts for Option<String> {
        fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            self.as_ref().map(Diagnostic::new).serialize(to)
        }
    }

    impl Parts for Option<&str> {
        fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            self.map(Diagnostic::new).serialize(to)
        }
    }

    impl Parts for String {
        fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            Diagnostic::new(self).serialize(to)
        }
    }

    impl Parts for Vec<String> {
        fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            to.collect_seq(self.iter().map(Diagnostic::new))
        }
    }

    impl Parts for &[String] {
        fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            to.collect_seq(self.iter().map(Diagnostic::new))
        }
    }

    /// For `#[serde(serialize_with)]`: the text form of diagnostics, taken apart.
    pub fn parts<T: Parts, S: Serializer>(text: &T, to: S) -> Result<S::Ok, S::Error> {
        text.write(to)
    }
}
#[cfg(feature = "json")]
pub use json::{Parts, parts};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_that_another_party_chose_makes_no_parts() {
        let name = shown("x\nHINT: run \u{1b}[2Jit\t\u{9b}");
        assert_eq!(name, "x\\nHINT: run \\u{1b}[2Jit\\t\\u{9b}");
        assert!(Diagnostic::new(format!("no \"{name}\"")).hints().is_empty());
        assert_eq!(shown("größer 'q'"), "größer 'q'");
    }

    #[test]
    fn parts_are_taken_out_of_a_text() {
        let read =
            Diagnostic::new("repository main: no answer\nHINT: Look at it.\nDETAIL: It is far.\nHINT: Wait.");
        assert_eq!(read.message(), "repository main: no answer");
        assert_eq!(
            (read.details(), read.hints()),
            (&["It is far.".to_owned()][..], &["Look at it.".to_owned(), "Wait.".to_owned()][..])
        );
        assert_eq!(
            read.to_string(),
            "repository main: no answer\nDETAIL: It is far.\nHINT: Look at it.\nHINT: Wait."
        );
        assert_eq!(
            read.line(),
            "repository main: no answer DETAIL: It is far. HINT: Look at it. HINT: Wait."
        );
        let marked = "error at line 3\n3 | k = 1\n  | ^\n\"k\" is wrong\nHINT: Remove it.";
        assert_eq!(Diagnostic::new(marked).to_string(), marked, "a message of several lines");
    }

    #[test]
    fn a_cause_adds_what_is_not_there_yet() {
        let mut error = Diagnostic::new("could not read x: no such file").hint("Look at it.");
        error.add_cause(&Diagnostic::new("no such file").detail("It was removed.").hint("Look at it."));
        error.add_cause(&Diagnostic::new("os error 2").hint("Put it back."));
        assert_eq!(
            error.to_string(),
            "could not read x: no such file: os error 2\nDETAIL: It was removed.\nHINT: Look at it.\nHINT: Put it back."
        );
    }

    #[test]
    fn several_become_one() {
        let all = ["a: full\nHINT: Make room.", "b: gone\nDETAIL: It was here."];
        assert_eq!(
            Diagnostic::gather("it failed", all).to_string(),
            "it failed: a: full; b: gone\nDETAIL: It was here.\nHINT: Make room."
        );
        assert_eq!(Diagnostic::gather("", ["a", "b"]).to_string(), "a; b");
    }

    #[test]
    #[cfg(feature = "json")]
    fn in_json_each_part_is_a_member() {
        #[derive(serde::Serialize)]
        struct Document<'a> {
            #[serde(serialize_with = "parts")]
            notes: &'a [String],
            #[serde(serialize_with = "parts")]
            error: Option<String>,
        }
        let notes = ["a\nHINT: Wait.\nHINT: Look at it.\nDETAIL: It is far.".to_owned()];
        let document = Document { notes: &notes, error: Some("b".to_owned()) };
        assert_eq!(
            serde_json::to_string(&document).unwrap(),
            r#"{"notes":[{"message":"a","detail":"It is far.","hint":"Wait.\nLook at it."}],"error":{"message":"b"}}"#
        );
    }

    proptest! {
        /// The text form is read back without loss, whatever the parts hold.
        #[test]
        fn what_is_written_is_read(message in "[a-z:\"]{1,20}", details in prop::collection::vec("\\PC{0,9}\n?\\PC{0,9}", 0..3), hints in prop::collection::vec("\\PC{0,9}\n?\\PC{0,9}", 0..3)) {
            let written = details.iter().fold(Diagnostic::new(message), |all, detail| all.detail(detail));
            let written = hints.iter().fold(written, |all, hint| all.hint(hint));
            prop_assert_eq!(Diagnostic::new(written.to_string()), written.clone());
            prop_assert_eq!(written.line().lines().count(), 1);
        }
    }
}
