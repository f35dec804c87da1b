//! `pg_amcheck` over the databases that have the extension amcheck.
//!
//! It ends with the same status where it finds corruption and where a query fails, and shows both alike. Only the SQLSTATE, which it prints
//! when it is verbose, says which is which: the B-tree checks report corruption as an error too.

use std::fmt;
use std::time::{Duration, Instant};

use walpoint_runtime::human;

use crate::checks::{self, Outcome, quoted};
use crate::server::{Instance, Programs, ServerUser};

/// How long all of it may take.
const LONGEST: Duration = Duration::from_secs(12 * 3600);

/// How long it waits for a lock. What a transaction holds at the target is not released while recovery is paused there.
const LOCK: Duration = Duration::from_secs(60);

const HAS: &str = "SELECT 1 FROM pg_catalog.pg_extension WHERE extname = 'amcheck'";

/// Runs it.
pub(super) async fn run(instance: &Instance, programs: &Programs, user: &ServerUser) -> Outcome {
    let Some(program) = programs.optional("pg_amcheck") else {
        let bindir = programs.bindir().display();
        return Outcome::Skipped(format!("{bindir} has no pg_amcheck, which PostgreSQL has from 14 on"));
    };
    let (with, without) = match divided(instance).await {
        Ok(divided) => divided,
        Err(error) => return Outcome::Failed(walpoint_words::format_chain(&error)),
    };
    if with.is_empty() {
        return Outcome::Skipped("no database has the extension amcheck".to_owned());
    }
    let until = Instant::now() + LONGEST;
    for database in &with {
        let mut command = user.command(program.as_os_str());
        // A connection string: a name alone would be read as one, or as an option.
        let name = database.replace('\\', "\\\\").replace('\'', "\\'");
        command
            .args(["--no-password", "--verbose"])
            .arg(format!("dbname='{name}'"))
            .current_dir("/")
            .envs(instance.environment())
            .env("PGOPTIONS", options(instance))
            .env("LC_ALL", "C");
        let left = until.saturating_duration_since(Instant::now());
        let output = match checks::output(command, Some(left)).await {
            Ok(output) => output,
            Err(error) if left.is_zero() || Instant::now() >= until => {
                tracing::debug!("pg_amcheck was ended: {error:#}");
                let (limit, database) = (human::span(LONGEST), quoted(database));
                return Outcome::Failed(format!(
                    "pg_amcheck did not end within {limit}, in database \"{database}\""
                ));
            }
            Err(error) => return Outcome::Failed(walpoint_words::format_chain(&error)),
        };
        if !output.success {
            let what = match Finding::worst(&output.stdout) {
                Some(finding) => finding.to_string(),
                None => {
                    // Most of what it says is what it checks.
                    let error = output.stderr.lines().find(|line| line.starts_with("pg_amcheck: error:"));
                    let said = error.map_or_else(|| output.said(), quoted);
                    format!("failed ({}): {said}", output.status)
                }
            };
            return Outcome::Failed(format!("in database \"{}\" pg_amcheck {what}", quoted(database)));
        }
    }
    let mut message = format!("sound: {}", listed(&with));
    if !without.is_empty() {
        message += &format!("; without the extension amcheck, and not checked: {}", listed(&without));
    }
    Outcome::Passed(Some(message))
}

/// What its sessions ask for.
fn options(instance: &Instance) -> String {
    let lock = LOCK.as_millis();
    let environment = instance.environment();
    let given = environment.iter().find(|(name, _)| *name == "PGOPTIONS").map(|(_, value)| value.as_str());
    // "ERROR" is translated like the messages.
    format!("{} -c lock_timeout={lock} -c lc_messages=C", given.unwrap_or_default())
}

/// What `pg_amcheck` printed about a relation.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Finding {
    /// It was not checked because of a limit.
    Limited(String),
    /// It could not be checked.
    Unchecked(String),
    /// It is corrupt.
    Corrupt(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limited(what) => {
                write!(f, "reached a limit of time, or waited {} for a lock: {what}", human::span(LOCK))
            }
            Self::Unchecked(what) => write!(f, "could not check all: {what}"),
            Self::Corrupt(what) => write!(f, "found corruption: {what}"),
        }
    }
}

impl Finding {
    /// The worst of an output, the first of several that are equally bad.
    fn worst(output: &str) -> Option<Self> {
        let mut found: Option<Self> = None;
        let mut lines = output.lines().peekable();
        while let Some(line) = lines.next() {
            let is_named = ["heap table ", "btree index "].iter().any(|kind| line.starts_with(kind));
            let Some(relation) = line.strip_suffix(':').filter(|_| is_named) else { continue };
            let Some(message) = lines.next_if(|next| next.starts_with(' ')) else { continue };
            let finding = Self::of(relation, message.trim());
            let rank = |finding: &Self| match finding {
                Self::Limited(_) => 0,
                Self::Unchecked(_) => 1,
                Self::Corrupt(_) => 2,
            };
            if found.as_ref().is_none_or(|found| rank(found) < rank(&finding)) {
                found = Some(finding);
            }
        }
        found
    }

    fn of(relation: &str, message: &str) -> Self {
        let what = quoted(&format!("{relation}: {message}"));
        let Some(error) = message.strip_prefix("ERROR:") else { return Self::Corrupt(what) };
        match error.trim_start().get(..5).unwrap_or_default() {
            // lock_not_available, query_canceled
            "55P03" | "57014" => Self::Limited(what),
            // internal_error, data_corrupted, index_corrupted
            state if state.starts_with("XX") => Self::Corrupt(what),
            _ => Self::Unchecked(what),
        }
    }
}

/// The databases that have the extension, and those that do not.
async fn divided(instance: &Instance) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for database in instance.databases().await? {
        let mut connection = instance.connect(&database, Some(Duration::from_secs(60))).await?;
        let has = !connection.query(HAS).await?.is_empty();
        connection.close().await;
        if has { with.push(database) } else { without.push(database) }
    }
    Ok((with, without))
}

/// Names of databases, the first ones of many.
fn listed(databases: &[String]) -> String {
    const NAMED: usize = 10;
    let mut names: Vec<String> = databases.iter().take(NAMED).map(|name| quoted(name)).collect();
    if let Some(more) = databases.len().checked_sub(NAMED).filter(|more| *more > 0) {
        names.push(format!("and {} more", human::count(u64::try_from(more).unwrap_or(u64::MAX), "database")));
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_corrupt_is_called_corruption() {
        let lock = "heap table \"shop.public.orders\":\n    ERROR:  55P03: canceling statement due to lock timeout\n    \
                    LOCATION:  ProcessInterrupts, postgres.c:3431\n";
        let missing = "btree index \"shop.public.o_pkey\":\n    ERROR:  42883: function bt_index_check does not exist\n";
        let index = "btree index \"shop.public.o_pkey\":\n    ERROR:  XX002: item order invariant violated\n    \
                     DETAIL:  Lower index tid=(1,1)\n";
        let heap =
            "heap table \"shop.public.orders\", block 0, offset 1, attribute 2:\n    line pointer is wrong\n";
        let is_what = |output: &str| match Finding::worst(output) {
            None => "nothing",
            Some(Finding::Limited(_)) => "limited",
            Some(Finding::Unchecked(_)) => "unchecked",
            Some(Finding::Corrupt(_)) => "corrupt",
        };
        for (output, what) in [
            (String::new(), "nothing"),
            ("anything else\n".to_owned(), "nothing"),
            (lock.to_owned(), "limited"),
            (missing.to_owned(), "unchecked"),
            (lock.to_owned() + missing, "unchecked"),
            (index.to_owned(), "corrupt"),
            (heap.to_owned(), "corrupt"),
            (heap.to_owned() + lock + missing, "corrupt"),
        ] {
            assert_eq!(is_what(&output), what, "{output}");
        }
        let shown = Finding::worst(&(lock.to_owned() + heap)).unwrap().to_string();
        assert!(shown.starts_with("found corruption: heap table \"shop.public.orders\", block 0"), "{shown}");
    }
}
