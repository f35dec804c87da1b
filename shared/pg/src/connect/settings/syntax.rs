//! The two ways to write a connection string: `host=db1 dbname='my db'` and `postgresql://user@db1,db2/name?sslmode=…`.
//!
//! Both give pairs of keyword and value, in the order written. Source: `conninfo_parse` and `conninfo_uri_parse` of libpq.

use super::SettingsError;

/// A keyword and its value, both as written.
pub(super) type Pair = (String, String);

/// Reads a connection string of either kind. An empty one gives nothing.
pub(super) fn parse(text: &str) -> Result<Vec<Pair>, SettingsError> {
    for scheme in ["postgresql://", "postgres://"] {
        if let Some(rest) = text.strip_prefix(scheme) {
            return uri(rest);
        }
    }
    pairs(text)
}

fn wrong(what: impl Into<String>) -> SettingsError {
    SettingsError::Syntax { what: what.into() }
}

/// `keyword = value`, blanks around `=` allowed; values with blanks in `'…'`; `\` takes the next character as it is.
fn pairs(text: &str) -> Result<Vec<Pair>, SettingsError> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) =
            rest.split_at(rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len()));
        let after = after.trim_start();
        let Some(after) = after.strip_prefix('=') else {
            return Err(wrong(format!("\"=\" is missing after {name:?}")));
        };
        if name.is_empty() {
            return Err(wrong("a keyword is missing before \"=\""));
        }
        let (value, after) = value(after.trim_start()).ok_or_else(|| {
            // The value may be a password: it is not shown.
            wrong(format!("the value of {name:?} has no closing quote"))
        })?;
        found.push((name.to_owned(), value));
        rest = after.trim_start();
    }
    Ok(found)
}

/// The value at the start of `text` and what follows it; `None` without a closing quote.
fn value(text: &str) -> Option<(String, &str)> {
    let (quoted, text) = text.strip_prefix('\'').map_or((false, text), |rest| (true, rest));
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\'' if quoted => return Some((value, text.get(at + 1..).unwrap_or_default())),
            c if !quoted && c.is_whitespace() => return Some((value, text.get(at..).unwrap_or_default())),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (!quoted).then_some((value, ""))
}

/// What follows `postgresql://`.
fn uri(text: &str) -> Result<Vec<Pair>, SettingsError> {
    let mut found = Vec::new();
    let mut keep = |name: &str, value: String| {
        if !value.is_empty() {
            found.push((name.to_owned(), value));
        }
    };
    let mut rest = text;
    if let Some((user, after)) = text.split_once('@').filter(|(user, _)| !user.contains('/')) {
        let (user, password) = user.split_once(':').unwrap_or((user, ""));
        keep("user", decode(user, "the user")?);
        keep("password", decode(password, "the password")?);
        rest = after;
    }
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    loop {
        let (host, after) = if let Some(inside) = rest.strip_prefix('[') {
            let closed = inside.split_once(']').filter(|(address, _)| !address.is_empty());
            let (address, after) =
                closed.ok_or_else(|| wrong("the IPv6 address in the URI has no closing \"]\""))?;
            if !after.is_empty() && !after.starts_with([':', '/', '?', ',']) {
                return Err(wrong("unexpected text after the \"]\" of an IPv6 address in the URI"));
            }
            (address, after)
        } else {
            rest.split_at(rest.find([':', '/', '?', ',']).unwrap_or(rest.len()))
        };
        let (port, after) = match after.strip_prefix(':') {
            Some(after) => after.split_at(after.find(['/', '?', ',']).unwrap_or(after.len())),
            None => ("", after),
        };
        hosts.push(decode(host, "a host")?);
        ports.push(decode(port, "a port")?);
        match after.strip_prefix(',') {
            Some(after) => rest = after,
            None => {
                rest = after;
                break;
            }
        }
    }
    keep("host", hosts.join(","));
    if ports.iter().any(|port| !port.is_empty()) {
        keep("port", ports.join(","));
    }
    let (path, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    keep("dbname", decode(path.strip_prefix('/').unwrap_or(path), "the database")?);
    for parameter in parameters.split('&').filter(|p| !p.is_empty()) {
        let pair = parameter.split_once('=').filter(|(name, value)| !name.is_empty() && !value.contains('='));
        let (name, value) = pair.ok_or_else(|| wrong("a parameter of the URI is not name=value"))?;
        let (name, value) = (decode(name, "a parameter")?, decode(value, "a parameter's value")?);
        match (name.as_str(), value.as_str()) {
            // The way of JDBC, which libpq understands too.
            ("ssl", "true") => found.push(("sslmode".to_owned(), "require".to_owned())),
            _ => found.push((name, value)),
        }
    }
    Ok(found)
}

/// Undoes percent-encoding.
fn decode(text: &str, what: &str) -> Result<String, SettingsError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(b) = rest.next() {
        if b != b'%' {
            bytes.push(b);
            continue;
        }
        let mut digit =
            || rest.next().and_then(|b| char::from(b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
        let byte = digit().zip(digit()).map(|(high, low)| high << 4 | low);
        let byte = byte.ok_or_else(|| {
            wrong(format!("{what} in the URI holds a \"%\" without two hexadecimal digits"))
        })?;
        if byte == 0 {
            return Err(wrong(format!("{what} in the URI holds %00, which no value may")));
        }
        bytes.push(byte);
    }
    String::from_utf8(bytes).map_err(|_| wrong(format!("{what} in the URI is not UTF-8 after decoding")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap_or_else(|e| panic!("{text:?}: {e}"))
    }

    fn expect(text: &str, expected: &[(&str, &str)]) {
        let expected: Vec<Pair> = expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(read(text), expected, "{text:?}");
    }

    #[test]
    fn strings_of_keywords_and_values() {
        expect("", &[]);
        expect("  ", &[]);
        expect("host=a port = 5 ", &[("host", "a"), ("port", "5")]);
        expect(r"password='it\'s \\ here' user=x\ y", &[("password", r"it's \ here"), ("user", "x y")]);
        expect("options='-c a=b' dbname=''", &[("options", "-c a=b"), ("dbname", "")]);
        expect("host=", &[("host", "")]);
        for bad in ["host", "host x", "=x", "host='x", "host=a user", r"host='x\'"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn uris() {
        expect("postgresql://", &[]);
        expect("postgres://h", &[("host", "h")]);
        expect(
            "postgresql://us%20er:p%40ss@h1:1,h2,[::1]:3/my%2Fdb?sslmode=require&options=-c%20a%3Db",
            &[
                ("user", "us er"),
                ("password", "p@ss"),
                ("host", "h1,h2,::1"),
                ("port", "1,,3"),
                ("dbname", "my/db"),
                ("sslmode", "require"),
                ("options", "-c a=b"),
            ],
        );
        expect("postgresql://%2Fvar%2Frun/db", &[("host", "/var/run"), ("dbname", "db")]);
        expect(
            "postgresql:///db?host=/tmp&ssl=true",
            &[("dbname", "db"), ("host", "/tmp"), ("sslmode", "require")],
        );
        expect("postgresql://u@/", &[("user", "u")]);
        for bad in [
            "postgresql://[::1",
            "postgresql://[]",
            "postgresql://[::1]x",
            "postgresql://h%2",
            "postgresql://h%00",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        for bad in ["postgresql://h?x", "postgresql://h?=x", "postgresql://h?a=b=c", "postgresql://%FF"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_error_does_not_show_a_password() {
        let error = parse("password='secret").unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,80}") {
            let _result = parse(&text);
            let _result = parse(&format!("postgresql://{text}"));
        }

        #[test]
        fn quoted_values_come_back(value in "\\PC{0,40}") {
            let quoted = value.replace('\\', r"\\").replace('\'', r"\'");
            prop_assert_eq!(parse(&format!("a='{quoted}' b=c")).unwrap()[0].1.clone(), value);
        }
    }
}
