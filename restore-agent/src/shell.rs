//! Words of the shell's language, for command lines that an operator or PostgreSQL runs.

use walpoint_runtime::sibling;

/// A word quoted so that a shell reads it as it is.
pub(crate) fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=@+,%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// A command line, or a part of one, that a person copies: names in it are others', and control no terminal.
pub(crate) fn line(words: &[String]) -> String {
    words.iter().map(|one| sibling::quoted(one)).collect::<Vec<String>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(word("/usr/bin/x-1.0"), "/usr/bin/x-1.0");
        assert_eq!(word("/my dir/it's"), "'/my dir/it'\\''s'");
        assert_eq!(word(""), "''");
        assert_eq!(
            line(&["--target-name".to_owned(), "before upgrade".to_owned()]),
            "--target-name 'before upgrade'"
        );
        assert_eq!(line(&["a\nHINT: b".to_owned()]), "$'a\\012HINT: b'");
    }
}
