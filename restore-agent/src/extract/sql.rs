//! Names and values in SQL that is made here.

/// A name as SQL has it.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A value as SQL has it, however a session reads backslashes.
pub(super) fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// An array of OIDs.
pub(super) fn oids(oids: &[u32]) -> String {
    let oids: Vec<String> = oids.iter().map(u32::to_string).collect();
    format!("'{{{}}}'::pg_catalog.oid[]", oids.join(","))
}

/// A list of values, for `IN`; never empty.
pub(super) fn list<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let texts: Vec<String> = texts.into_iter().map(literal).collect();
    if texts.is_empty() { "NULL".to_owned() } else { texts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_of_any_characters_are_one_word() {
        assert_eq!(identifier("a\"b'c\\"), "\"a\"\"b'c\\\"");
        assert_eq!(literal("it's \\ x"), "E'it''s \\\\ x'");
        assert_eq!(
            (oids(&[1, 22]).as_str(), oids(&[]).as_str()),
            ("'{1,22}'::pg_catalog.oid[]", "'{}'::pg_catalog.oid[]")
        );
        assert_eq!((list(["a", "b'"]).as_str(), list([]).as_str()), ("E'a', E'b'''", "NULL"));
    }
}
