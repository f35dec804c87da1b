//! The checks that a person asks for: those of the command line, and a file of them in TOML.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;
use walpoint_base::{small_file, span};

use super::expectation::{Expectation, Expected, quoted};

/// How long a check may take unless it says otherwise.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The longest file that is read.
const LONGEST: u64 = 1 << 20;

/// A check.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Check {
    /// What it is called in the report.
    pub(crate) name: String,
    pub(crate) subject: Subject,
    pub(crate) expectation: Expectation,
    pub(crate) timeout: Duration,
}

/// What is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// What a query answers.
    Query {
        sql: String,
        /// The database; the first one that takes sessions if none is given.
        database: Option<String>,
    },
    /// What a command of the shell does.
    Command(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckFile {
    #[serde(default)]
    check: Vec<RawCheck>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCheck {
    name: String,
    query: Option<String>,
    command: Option<String>,
    database: Option<String>,
    expect: Option<RawValue>,
    expect_rows: Option<u64>,
    expect_min: Option<f64>,
    expect_max: Option<f64>,
    timeout: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum RawValue {
    Truth(bool),
    Whole(i32),
    Number(f64),
    Text(String),
}

impl Check {
    /// One that the command line gives: its query has to answer true.
    pub(crate) fn of_query(sql: &str) -> Self {
        Self {
            name: quoted(sql),
            subject: Subject::Query { sql: sql.to_owned(), database: None },
            expectation: Expectation::Value(Expected::Truth(true)),
            timeout: TIMEOUT,
        }
    }
}

/// Reads a file of checks. `option`: by which it was named.
pub(crate) fn read(option: &str, path: &Path) -> anyhow::Result<Vec<Check>> {
    let context = || format!("{option} {}", path.display());
    let bytes = small_file::read(path, LONGEST + 1).with_context(context)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > LONGEST) {
        return Err(anyhow!("the file is longer than {LONGEST} bytes")).with_context(context);
    }
    let text = std::str::from_utf8(&bytes).with_context(context)?;
    parse(text).with_context(context)
}

fn parse(text: &str) -> anyhow::Result<Vec<Check>> {
    let file: CheckFile = toml::from_str(text).map_err(|error| {
        let before = error.span().map(|span| text.get(..span.start).unwrap_or_default());
        let line = before.map(|before| 1 + before.matches('\n').count());
        let line = line.map_or(String::new(), |line| format!("line {line}: "));
        anyhow!("{line}{}", error.message().replace('\n', " "))
    })?;
    if file.check.is_empty() {
        bail!(
            "the file has no check\nHINT: Each check is a table [[check]] with a name, and a query or a command."
        );
    }
    let mut checks: Vec<Check> = Vec::new();
    for raw in file.check {
        let name = raw.name.clone();
        let check = check(raw).with_context(|| format!("check \"{}\"", quoted(&name)))?;
        if checks.iter().any(|other| other.name == check.name) {
            bail!("two checks are called \"{}\"", check.name);
        }
        checks.push(check);
    }
    Ok(checks)
}

fn check(raw: RawCheck) -> anyhow::Result<Check> {
    if raw.name.trim().is_empty() {
        bail!("a check needs a name");
    }
    let subject = match (raw.query, raw.command) {
        (Some(sql), None) => Subject::Query { sql, database: raw.database },
        (None, Some(command)) if raw.database.is_none() => Subject::Command(command),
        (None, Some(_)) => {
            bail!("database belongs to a query; a command finds the server by its environment")
        }
        _ => bail!("it needs either query or command"),
    };
    let is_query = matches!(subject, Subject::Query { .. });
    let value = |value: RawValue| {
        Expectation::Value(match value {
            RawValue::Truth(truth) => Expected::Truth(truth),
            RawValue::Whole(number) => Expected::Number(number.into()),
            RawValue::Number(number) => Expected::Number(number),
            RawValue::Text(text) => Expected::Text(text),
        })
    };
    let expectation =
        match (raw.expect, raw.expect_rows, raw.expect_min.is_some() || raw.expect_max.is_some()) {
            (None, None, false) if is_query => Expectation::Value(Expected::Truth(true)),
            (None, None, false) => Expectation::Success,
            (Some(expected), None, false) => value(expected),
            (None, Some(rows), false) if is_query => Expectation::Rows(rows),
            (None, Some(_), false) => bail!("expect_rows belongs to a query"),
            (None, None, true) => Expectation::Between { least: raw.expect_min, most: raw.expect_max },
            _ => bail!("give one of expect, expect_rows, and expect_min with expect_max"),
        };
    let timeout = match raw.timeout.as_deref().map(span::parse) {
        None => TIMEOUT,
        Some(span) => {
            let span = Duration::try_from(span.map_err(|why| anyhow!("timeout: {why}"))?).unwrap_or_default();
            if span.is_zero() {
                bail!("timeout: a span above zero is needed");
            }
            span
        }
    };
    Ok(Check { name: quoted(&raw.name), subject, expectation, timeout })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_check_is_read() {
        let text = r#"
            [[check]]
            name = "recent orders"
            database = "shop"
            query = "select max(at) > now() - interval '1 day' from orders"
            timeout = "30s"

            [[check]]
            name = "count"
            query = "select count(*) from orders"
            expect_min = 1000

            [[check]]
            name = "orphans"
            query = "select 1 from x"
            expect_rows = 0

            [[check]]
            name = "version"
            query = "select 7"
            expect = 7

            [[check]]
            name = "smoke"
            command = "true"
        "#;
        let checks = parse(text).unwrap();
        let expectations: Vec<&Expectation> = checks.iter().map(|check| &check.expectation).collect();
        assert_eq!(
            expectations,
            [
                &Expectation::Value(Expected::Truth(true)),
                &Expectation::Between { least: Some(1000.0), most: None },
                &Expectation::Rows(0),
                &Expectation::Value(Expected::Number(7.0)),
                &Expectation::Success,
            ]
        );
        assert_eq!((checks[0].timeout, checks[1].timeout), (Duration::from_secs(30), TIMEOUT));
        assert_eq!(checks[4].subject, Subject::Command("true".into()));
    }

    #[test]
    fn what_is_wrong_is_said_with_the_line_or_the_check() {
        for (text, expected) in [
            ("", "no check"),
            ("[[check]]\nname = 'x'", "check \"x\": it needs either"),
            ("[[check]]\nname = 'x'\nquery = '1'\ncommand = '2'", "either query or command"),
            ("[[check]]\nname = 'x'\nquery = '1'\n\nexpected = 3", "line 5: unknown field `expected`"),
            ("[[check]]\nname = 'x'\nquery = '1'\nexpect = 1\nexpect_rows = 2", "give one of"),
            ("[[check]]\nname = 'x'\nquery = '1'\ntimeout = '0s'", "above zero"),
            ("[[check]]\nname = 'x'\ncommand = '1'\nexpect_rows = 2", "belongs to a query"),
            ("[[check]]\nname = 'x'\nquery = '1'\n[[check]]\nname = 'x'\nquery = '1'", "two checks"),
            ("[[check]]\nname = ' '\nquery = '1'", "needs a name"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
