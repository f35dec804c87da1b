//! Where a key stands in the configuration, for what is found wrong with it only after the whole text was read.

use std::ops::Range;

use toml::de::DeTable;
use walpoint_base::table::WrongKey;

/// What is wrong with a key of `[tables[0].tables[1]…]`, below its line: in the form in which the parser shows its own errors.
pub(crate) fn shown(text: &str, tables: &[&str], wrong: &WrongKey) -> String {
    let shown = span(text, tables, wrong.key).and_then(|span| marked(text, &span));
    // The text has the key, because it was read from there; should it not be found, the table is named at least.
    let place = shown.unwrap_or_else(|| format!("[{}]", tables.join(".")));
    format!("{place}\n{wrong}")
}

fn span(text: &str, tables: &[&str], key: &str) -> Option<Range<usize>> {
    let document = DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    for name in tables {
        table = table.get(*name)?.get_ref().as_table()?;
    }
    Some(table.get_key_value(key)?.0.span())
}

/// The line, with its number and a mark below the span.
fn marked(text: &str, span: &Range<usize>) -> Option<String> {
    let before = text.get(..span.start)?;
    let line = before.matches('\n').count() + 1;
    let begin = before.rfind('\n').map_or(0, |end| end + 1);
    let content = text.get(begin..)?.lines().next()?;
    let indent = text.get(begin..span.start)?.chars().count();
    let mark = "^".repeat(text.get(span.clone())?.chars().count());
    let margin = " ".repeat(line.to_string().len());
    Some(format!(
        "error at line {line}, column {}\n{margin} |\n{line} | {content}\n{margin} | {:indent$}{mark}",
        indent + 1,
        ""
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_shown_in_its_line() {
        let wrong = WrongKey { key: "k", what: "\"k\" is wrong".to_owned(), hint: "Remove it.".to_owned() };
        let tail = "\n\"k\" is wrong\nHINT: Remove it.";
        for (text, place) in [
            ("[a.b]\nj = 1\n  k = 2 # two\n", "error at line 3, column 3\n  |\n3 |   k = 2 # two\n  |   ^"),
            (
                "a.b = { 'ä' = 1, 'k' = 2 }",
                "error at line 1, column 18\n  |\n1 | a.b = { 'ä' = 1, 'k' = 2 }\n  |                  ^^^",
            ),
            ("[a]\nk = 1\n[a.'b']\nk = 2", "error at line 4, column 1\n  |\n4 | k = 2\n  | ^"),
            ("[c]\nk = 1\n", "[a.b]"),
        ] {
            assert_eq!(shown(text, &["a", "b"], &wrong), format!("{place}{tail}"), "{text}");
        }
        let later = format!("{}[a.b]\r\nk = 1\r\n", "\n".repeat(98));
        assert!(
            shown(&later, &["a", "b"], &wrong)
                .starts_with("error at line 100, column 1\n    |\n100 | k = 1\n    | ^\n")
        );
    }
}
