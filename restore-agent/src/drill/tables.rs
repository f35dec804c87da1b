//! The largest tables and their rows: what a person compares with production at a glance.
//!
//! Counting reads every row, so a table that cannot be read shows here. Only the limit of time leads to the planner's estimate.

use std::time::{Duration, Instant};

use walpoint_pg::connect::{Connection, Error, Row, RowError};
use walpoint_runtime::human;

use crate::checks::{Outcome, quoted};
use crate::server::Instance;

/// Tables that are listed.
const MOST: usize = 50;

/// How long counting the rows of one table may take, and of all of them. Above that the planner's estimate stands in.
const ONE: Duration = Duration::from_secs(10);
const ALL: Duration = Duration::from_secs(60);

/// What could not be read and is named.
const NAMED: usize = 5;

/// The largest tables of a database. Those that a transaction has locked at the target cannot be looked at; what is unlogged is empty
/// after a recovery; a materialized view that was never filled cannot be read anywhere.
const LARGEST: &str = "SELECT n.nspname AS schema, c.relname AS name, \
     pg_catalog.format('%I.%I', n.nspname, c.relname) AS quoted, \
     pg_catalog.pg_total_relation_size(c.oid) AS bytes, \
     greatest(c.reltuples, 0)::bigint AS estimate \
     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p' AND c.relispopulated \
     AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' \
     AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_locks l WHERE l.relation = c.oid AND l.granted \
     AND l.mode = 'AccessExclusiveLock' \
     AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())) \
     ORDER BY pg_catalog.pg_relation_size(c.oid) DESC, 1, 2 LIMIT 50";

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) database: String,
    pub(super) schema: String,
    pub(super) name: String,
    /// As SQL names it.
    quoted: String,
    /// With its indexes and what is stored out of line.
    pub(super) bytes: u64,
    pub(super) rows: u64,
    /// Whether the rows were counted; else their number is the planner's estimate.
    pub(super) is_counted: bool,
}

/// What was found of the largest tables.
#[derive(Debug, Default)]
pub(super) struct LargestTables {
    /// The tables of all databases, largest first.
    pub(super) tables: Vec<Table>,
    /// What could not be looked at within its time, one sentence each.
    pub(super) notes: Vec<String>,
    /// What could not be read, and why.
    unread: Vec<String>,
}

impl LargestTables {
    /// Whether all that was looked at can be read.
    pub(super) fn outcome(&self) -> Outcome {
        let more = u64::try_from(self.unread.len().saturating_sub(NAMED)).unwrap_or(u64::MAX);
        let mut named: Vec<String> = self.unread.iter().take(NAMED).cloned().collect();
        if more > 0 {
            named.push(format!("and {more} more"));
        }
        let all = self.tables.len();
        let read = self.tables.iter().filter(|table| table.is_counted).count();
        let count = |tables: usize| human::count(u64::try_from(tables).unwrap_or(u64::MAX), "table");
        match (named.is_empty(), read) {
            (false, _) => Outcome::Failed(named.join("; ")),
            (true, read) if read == all => Outcome::Passed(Some(count(all))),
            (true, 0) => {
                Outcome::Skipped(format!("{}, none of which could be read to its end in time", count(all)))
            }
            (true, read) => Outcome::Passed(Some(format!(
                "{} of {all}; the others were not read to their end",
                count(read)
            ))),
        }
    }

    /// Remembers why something could not be looked at.
    fn missed(&mut self, what: &str, error: &anyhow::Error) {
        let text = format!("{what}: {}", quoted(&walpoint_words::format_chain(error)));
        match is_time_limit(error) {
            true => self.notes.push(text),
            false => self.unread.push(text),
        }
    }
}

/// The largest tables of all databases.
pub(super) async fn largest(instance: &Instance) -> LargestTables {
    let mut found = LargestTables::default();
    let databases = match instance.databases().await {
        Ok(databases) => databases,
        Err(error) => {
            found.missed("the databases could not be listed", &error);
            return found;
        }
    };
    for database in databases {
        match of_database(instance, &database).await {
            Ok(tables) => found.tables.extend(tables),
            Err(error) => {
                let what = format!("the tables of database \"{}\" could not be listed", quoted(&database));
                found.missed(&what, &error);
            }
        }
    }
    found.tables.sort_by(|a: &Table, b| b.bytes.cmp(&a.bytes).then_with(|| a.quoted.cmp(&b.quoted)));
    found.tables.truncate(MOST);
    count(instance, &mut found).await;
    found
}

/// Whether an error is only that the answer took too long: the server's limit for a statement, or this program's, which is longer.
fn is_time_limit(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<Error>() {
        Some(Error::Timeout { .. }) => true,
        // query_canceled
        Some(error) => error.sqlstate() == Some("57014"),
        None => false,
    }
}

async fn of_database(instance: &Instance, database: &str) -> anyhow::Result<Vec<Table>> {
    let mut connection = instance.connect(database, Some(ONE.saturating_mul(2))).await?;
    limit(&mut connection, ONE).await?;
    let rows = connection.query(LARGEST).await?;
    let read = |row: &Row| -> Result<Table, RowError> {
        Ok(Table {
            database: database.to_owned(),
            schema: row.get("schema")?,
            name: row.get("name")?,
            quoted: row.get("quoted")?,
            bytes: row.get("bytes")?,
            rows: row.get("estimate")?,
            is_counted: false,
        })
    };
    let tables: Result<Vec<Table>, RowError> = rows.iter().map(read).collect();
    connection.close().await;
    Ok(tables?)
}

/// Counts rows, for as long as that takes little.
async fn count(instance: &Instance, found: &mut LargestTables) {
    let until = Instant::now() + ALL;
    let mut tables = std::mem::take(&mut found.tables);
    for table in &mut tables {
        let left = until.saturating_duration_since(Instant::now()).min(ONE);
        if left.is_zero() {
            break;
        }
        match rows_of(instance, table, left).await {
            Ok(rows) => {
                table.rows = rows;
                table.is_counted = true;
            }
            Err(error) if is_time_limit(&error) => {
                tracing::debug!("the rows of {} were not counted: {error:#}", table.quoted);
            }
            Err(error) => {
                let name = quoted(&format!("{}: {}", table.database, table.quoted));
                found.missed(&format!("table {name} could not be read"), &error);
            }
        }
    }
    found.tables = tables;
}

async fn rows_of(instance: &Instance, table: &Table, limit: Duration) -> anyhow::Result<u64> {
    let mut connection = instance.connect(&table.database, Some(limit.saturating_mul(2))).await?;
    self::limit(&mut connection, limit).await?;
    let rows = connection.query(&format!("SELECT count(*) AS rows FROM {}", table.quoted)).await?;
    let rows = rows.one()?.get("rows")?;
    connection.close().await;
    Ok(rows)
}

async fn limit(connection: &mut Connection, limit: Duration) -> anyhow::Result<()> {
    let limit = limit.as_millis().max(1);
    Ok(connection.execute(&format!("SET statement_timeout = {limit}")).await?)
}

#[cfg(test)]
mod tests {
    use walpoint_pg::connect::ServerReport;

    use super::*;

    fn refused(sqlstate: &str) -> anyhow::Error {
        let report = ServerReport {
            severity: "ERROR".into(),
            sqlstate: sqlstate.into(),
            message: "could not read blocks".into(),
            ..ServerReport::default()
        };
        Error::Server { host: "/socket".into(), report: Box::new(report) }.into()
    }

    #[test]
    fn what_was_not_read_to_its_end_is_not_called_readable() {
        let table = |is_counted| Table {
            database: "shop".into(),
            schema: "public".into(),
            name: "orders".into(),
            quoted: "public.orders".into(),
            bytes: 8192,
            rows: 1,
            is_counted,
        };
        let outcome = |read: &[bool]| {
            let tables = read.iter().map(|is_counted| table(*is_counted)).collect();
            LargestTables { tables, ..LargestTables::default() }.outcome()
        };
        assert_eq!(outcome(&[true, true]), Outcome::Passed(Some("2 tables".into())));
        let some = "1 table of 2; the others were not read to their end";
        assert_eq!(outcome(&[true, false]), Outcome::Passed(Some(some.into())));
        let none = "2 tables, none of which could be read to its end in time";
        assert_eq!(outcome(&[false, false]), Outcome::Skipped(none.into()));
    }

    #[test]
    fn only_a_limit_of_time_excuses_a_table_that_was_not_read() {
        let timeout = Error::Timeout { host: "/socket".into(), after: ONE };
        let mut found = LargestTables::default();
        found.missed("slow", &refused("57014").context("database \"shop\""));
        found.missed("slower", &timeout.into());
        assert_eq!((found.notes.len(), found.outcome()), (2, Outcome::Passed(Some("0 tables".into()))));
        let lost = Error::Lost { host: "/socket".into(), source: std::io::ErrorKind::BrokenPipe.into() };
        let errors = [
            refused("XX001"),
            refused("58P01"),
            lost.into(),
            anyhow::anyhow!("it is gone"),
            refused("42501"),
        ];
        for (n, error) in errors.iter().enumerate() {
            found.missed(&format!("table {n} could not be read"), error);
        }
        found.missed("table 5 could not be read", &refused("XX002"));
        let Outcome::Failed(why) = found.outcome() else { panic!("{found:?}") };
        assert!(why.starts_with("table 0 could not be read: PostgreSQL at /socket: "), "{why}");
        assert!(why.contains("could not read blocks") && why.ends_with("; and 1 more"), "{why}");
    }
}
