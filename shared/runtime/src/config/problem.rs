//! What is wrong with a configuration file, and where it stands.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;
use toml::de::DeTable;

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
    /// What to do, in full sentences.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Problem {
    /// The table and what is wrong with it, without the line.
    pub fn text(&self) -> String {
        let table = self.table.as_ref().map_or(String::new(), |table| format!("[{table}]: "));
        let hint = self.hint.as_ref().map_or(String::new(), |hint| format!("\nHINT: {hint}"));
        format!("{table}{}{hint}", self.message)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let after = if self.table.is_some() { "," } else { ":" };
        write!(f, "line {}{after} {}", self.line_number, self.text())
    }
}

/// Everything that is wrong with a file, in the order of its lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
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
