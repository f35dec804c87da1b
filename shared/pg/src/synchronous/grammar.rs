//! The grammar of `synchronous_standby_names`: a list of names, `NUM (list)`, `ANY NUM (list)` or `FIRST NUM (list)`. A name is an
//! identifier, anything in double quotes, `*`, or a number.

use super::{Method, StandbyNames};

/// It is not what PostgreSQL takes for `synchronous_standby_names`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SyntaxError {
    /// Something else is expected there.
    #[error("unexpected {found} at byte {at}")]
    Unexpected {
        /// What is there.
        found: String,
        /// Where, in bytes from the beginning.
        at: usize,
    },
    /// A name in quotes has no end.
    #[error("a quoted name without its closing quote at byte {0}")]
    Unterminated(usize),
    /// No number of standbys.
    #[error("the number of standbys is {0}: it must be 1 or greater")]
    Count(String),
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Token {
    Name(String),
    Number(String),
    Any,
    First,
    Mark(char),
    End,
}

impl Token {
    fn shown(&self) -> String {
        match self {
            Self::Name(text) | Self::Number(text) => format!("\"{text}\""),
            Self::Any => "keyword ANY".to_owned(),
            Self::First => "keyword FIRST".to_owned(),
            Self::Mark(mark) => format!("\"{mark}\""),
            Self::End => "end of the text".to_owned(),
        }
    }
}

pub(super) fn parse(text: &str) -> Result<Option<StandbyNames>, SyntaxError> {
    if text.is_empty() {
        return Ok(None);
    }
    let tokens = scan(text)?;
    let mut parser = Parser { tokens: &tokens };
    let read = match (parser.peek(0), parser.peek(1)) {
        (Token::Any, _) => {
            parser.next();
            parser.counted(Method::Quorum)?
        }
        (Token::First, _) => {
            parser.next();
            parser.counted(Method::Priority)?
        }
        (Token::Number(_), Token::Mark('(')) => parser.counted(Method::Priority)?,
        _ => StandbyNames { method: Method::Priority, count: 1, names: parser.list()? },
    };
    match parser.next() {
        (Token::End, _) => Ok(Some(read)),
        other => Err(unexpected(&other)),
    }
}

fn unexpected((found, at): &(Token, usize)) -> SyntaxError {
    SyntaxError::Unexpected { found: found.shown(), at: *at }
}

/// Each token with where it begins; the last one is the end.
fn scan(text: &str) -> Result<Vec<(Token, usize)>, SyntaxError> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = text.get(at..).and_then(|rest| rest.chars().next()) {
        let rest = text.get(at..).unwrap_or_default();
        let length = match first {
            ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c' => first.len_utf8(),
            '"' => {
                let (name, length) = quoted(rest).ok_or(SyntaxError::Unterminated(at))?;
                tokens.push((Token::Name(name), at));
                length
            }
            '0'..='9' => {
                let digits = run(rest, |c| c.is_ascii_digit());
                tokens.push((Token::Number(digits.to_owned()), at));
                digits.len()
            }
            _ if starts_name(first) => {
                let word = run(rest, |c| starts_name(c) || c.is_ascii_digit() || c == '$');
                tokens.push((keyword(word), at));
                word.len()
            }
            '*' => {
                tokens.push((Token::Name("*".to_owned()), at));
                1
            }
            // A mark that nothing can be is what the parser does not expect.
            mark => {
                tokens.push((Token::Mark(mark), at));
                mark.len_utf8()
            }
        };
        at += length;
    }
    tokens.push((Token::End, at));
    Ok(tokens)
}

/// PostgreSQL looks at bytes: each from 0x80 on may begin a name.
fn starts_name(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

fn run(text: &str, inside: impl Fn(char) -> bool) -> &str {
    text.find(|c| !inside(c)).and_then(|end| text.get(..end)).unwrap_or(text)
}

fn keyword(word: &str) -> Token {
    match word {
        _ if word.eq_ignore_ascii_case("any") => Token::Any,
        _ if word.eq_ignore_ascii_case("first") => Token::First,
        _ => Token::Name(word.to_owned()),
    }
}

/// A name in quotes, in which two quotes are one, and its length with the quotes.
fn quoted(text: &str) -> Option<(String, usize)> {
    let mut name = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c != '"' {
            name.push(c);
        } else if chars.next_if(|(_, next)| *next == '"').is_some() {
            name.push('"');
        } else {
            return Some((name, at + 1));
        }
    }
    None
}

struct Parser<'a> {
    tokens: &'a [(Token, usize)],
}

impl Parser<'_> {
    fn peek(&self, ahead: usize) -> &Token {
        self.tokens.get(ahead).map_or(&Token::End, |(token, _)| token)
    }

    /// The next token; the end again and again.
    fn next(&mut self) -> (Token, usize) {
        let Some((next, rest)) = self.tokens.split_first() else { return (Token::End, 0) };
        if !rest.is_empty() {
            self.tokens = rest;
        }
        next.clone()
    }

    fn mark(&mut self, mark: char) -> Result<(), SyntaxError> {
        match self.next() {
            (Token::Mark(found), _) if found == mark => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// A number and a list in parentheses.
    fn counted(&mut self, method: Method) -> Result<StandbyNames, SyntaxError> {
        let digits = match self.next() {
            (Token::Number(digits), _) => digits,
            other => return Err(unexpected(&other)),
        };
        self.mark('(')?;
        let names = self.list()?;
        self.mark(')')?;
        // As PostgreSQL does, after the syntax.
        let count = digits.parse().ok().filter(|count| (1..=i32::MAX.unsigned_abs()).contains(count));
        let count = count.ok_or(SyntaxError::Count(digits))?;
        Ok(StandbyNames { method, count, names })
    }

    fn list(&mut self) -> Result<Vec<String>, SyntaxError> {
        let mut names = Vec::new();
        loop {
            match self.next() {
                (Token::Name(name) | Token::Number(name), _) => names.push(name),
                other => return Err(unexpected(&other)),
            }
            if *self.peek(0) != Token::Mark(',') {
                return Ok(names);
            }
            self.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_syntax_is_read_as_postgresql_reads_it() {
        use Method::{Priority, Quorum};
        for (text, method, count, names) in [
            ("walpoint", Priority, 1, &["walpoint"][..]),
            ("s1, s2 ,s3", Priority, 1, &["s1", "s2", "s3"]),
            ("2 (s1, s2)", Priority, 2, &["s1", "s2"]),
            ("2(s1)", Priority, 2, &["s1"]),
            ("First 3 (s1,*)", Priority, 3, &["s1", "*"]),
            ("any 1(\"a\"\"b\", \"\")", Quorum, 1, &["a\"b", ""]),
            ("ANY\n2\t(x_1$, ÄÖ)", Quorum, 2, &["x_1$", "ÄÖ"]),
            // A number may be a name, and a keyword one in quotes or as part of a word.
            ("2", Priority, 1, &["2"]),
            ("2, 3", Priority, 1, &["2", "3"]),
            ("FIRST 1 (7)", Priority, 1, &["7"]),
            ("\"any\", first1, any_1", Priority, 1, &["any", "first1", "any_1"]),
            ("007 (a)", Priority, 7, &["a"]),
            ("\"*\"", Priority, 1, &["*"]),
        ] {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(parse(text), Ok(Some(StandbyNames { method, count, names })), "{text}");
        }
        assert_eq!(parse(""), Ok(None));
    }

    #[test]
    fn what_postgresql_refuses_is_no_setting() {
        for (text, expected) in [
            (" ", "unexpected end of the text at byte 1"),
            ("a,", "unexpected end of the text at byte 2"),
            ("a b", "unexpected \"b\" at byte 2"),
            ("any", "unexpected end of the text at byte 3"),
            ("a, first", "unexpected keyword FIRST at byte 3"),
            ("ANY (a)", "unexpected \"(\" at byte 4"),
            ("ANY 1 a", "unexpected \"a\" at byte 6"),
            ("FIRST 1 ()", "unexpected \")\" at byte 9"),
            ("2 (a", "unexpected end of the text at byte 4"),
            ("2 (a) b", "unexpected \"b\" at byte 6"),
            ("a-b", "unexpected \"-\" at byte 1"),
            ("\"a", "a quoted name without its closing quote at byte 0"),
            ("0 (a)", "the number of standbys is 0: it must be 1 or greater"),
            ("ANY 99999999999 (a)", "the number of standbys is 99999999999: it must be 1 or greater"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_setting_or_an_error(text in "[a-c1*(),\" \\nÄ$-]{0,30}") {
            if let Ok(Some(read)) = parse(&text) {
                prop_assert!(read.count > 0 && !read.names.is_empty());
            }
        }
    }
}
