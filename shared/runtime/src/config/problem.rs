//! What is wrong with a configuration file, and where it stands.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;
use toml::de::DeTable;
use walpoint_base::Diagnostic;

/// Something that is wrong with a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "ConfigurationError")]
pub struct Problem {
    /// The line, counted from 1.
    pub line_number: usize,
    /// The table, such as `cluster.main`. Absent outside of all tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// The key. Absent if it is about no single key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What is wrong; it names the key.
    pub message: String,
    /// Facts about it, in full sentences; several are lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What to do, in full sentences; several are lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Problem {
    /// What was found in a line.
    pub(super) fn new(line: usize, table: Option<String>, key: Option<&str>, found: &Diagnostic) -> Self {
        let lines = |parts: &[String]| (!parts.is_empty()).then(|| parts.join("\n"));
        Self {
            line_number: line,
            table,
            key: key.map(ToOwned::to_owned),
            message: found.message().to_owned(),
            detail: lines(found.details()),
            hint: lines(found.hints()),
        }
    }

    /// The table and what is wrong with it, without the line.
    pub fn diagnostic(&self) -> Diagnostic {
        let table = self.table.as_ref().map_or(String::new(), |table| format!("[{table}]: "));
        let found = Diagnostic::new(format!("{table}{}", self.message));
        let found = self.detail.iter().flat_map(|detail| detail.lines()).fold(found, Diagnostic::detail);
        self.hint.iter().flat_map(|hint| hint.lines()).fold(found, Diagnostic::hint)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let after = if self.table.is_some() { "," } else { ":" };
        write!(f, "line {}{after} {}", self.line_number, self.diagnostic())
    }
}

/// Everything that is wrong with a file, in the order of its lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    /// A line for each, then the details and hints, which name the line if there are several.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = &self.0[..] {
            return only.fmt(f);
        }
        let all: Vec<(usize, Diagnostic)> =
            self.0.iter().map(|one| (one.line_number, one.to_string().into())).collect();
        let messages: Vec<&str> = all.iter().map(|(_, one)| one.message()).collect();
        let mut text = Diagnostic::new(messages.join("\n"));
        for (line, one) in &all {
            text =
                one.details().iter().fold(text, |text, detail| text.detail(format!("Line {line}: {detail}")));
            text = one.hints().iter().fold(text, |text, hint| text.hint(format!("Line {line}: {hint}")));
        }
        text.fmt(f)
    }
}

/// The text of a file, and where its tables and keys stand in it.
#[derive(Debug)]
pub(super) struct Document<'a> {
    pub(super) text: &'a str,
    pub(super) root: &'a DeTable<'a>,
}

impl Document<'_> {
    /// The line in which a key stands, or else the table that lacks it.
    pub(super) fn line(&self, tables: &[&str], key: Option<&str>) -> usize {
        let (mut table, mut offset) = (self.root, 0);
        for name in tables.iter().copied().chain(key) {
            let Some((key, value)) = table.get_key_value(name) else { break };
            offset = key.span().start;
            match value.get_ref().as_table() {
                Some(below) => table = below,
                None => break,
            }
        }
        self.line_at(offset)
    }

    /// The line of a byte.
    pub(super) fn line_at(&self, offset: usize) -> usize {
        self.text.get(..offset).map_or(1, |before| before.matches('\n').count() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_tables_are_found() {
        for (text, line, of_table) in [
            ("[a.b]\nj = 1\n  k = 2 # two\n", 3, 1),
            ("\n\na.b = { 'ä' = 1, 'k' = 2 }", 3, 3),
            ("[a]\nk = 1\n[a.'b']\nk = 2", 4, 3),
            ("[a.b]\r\nj = 1\r\nk = 1\r\n", 3, 1),
            ("[c]\nk = 1\n", 1, 1),
            ("j = 1\n[a]\nk = 1\n", 2, 2),
        ] {
            let root = DeTable::parse(text).unwrap();
            let document = Document { text, root: root.get_ref() };
            assert_eq!(document.line(&["a", "b"], Some("k")), line, "{text}");
            assert_eq!(document.line(&["a", "b"], Some("missing")), of_table, "{text}");
        }
    }
}
