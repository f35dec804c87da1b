//! The largest tables and their rows: what a person compares with production at a glance.

use std::time::{Duration, Instant};

use walpoint_pg::connect::{Connection, Row, RowError};

use crate::scratch::Instance;

/// Tables that are listed.
const MOST: usize = 50;

/// How long counting the rows of one table may take, and of all of them. Above that the planner's estimate stands in.
const ONE: Duration = Duration::from_secs(10);
const ALL: Duration = Duration::from_secs(60);

/// The largest tables of a database. Those that a transaction has locked at the target cannot be looked at; what is unlogged is empty
/// after a recovery.
const LARGEST: &str = "SELECT n.nspname AS schema, c.relname AS name, \
     pg_catalog.format('%I.%I', n.nspname, c.relname) AS quoted, \
     pg_catalog.pg_total_relation_size(c.oid) AS bytes, \
     greatest(c.reltuples, 0)::bigint AS estimate \
     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'm') AND c.relpersistence = 'p' \
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

/// The largest tables of all databases, largest first, and why some databases are not among them.
pub(super) async fn largest(instance: &Instance) -> anyhow::Result<(Vec<Table>, Vec<String>)> {
    let (mut tables, mut problems) = (Vec::new(), Vec::new());
    for database in instance.databases().await? {
        match of_database(instance, &database).await {
            Ok(found) => tables.extend(found),
            Err(error) => problems.push(format!(
                "the tables of database \"{}\" could not be listed: {}",
                super::expectation::quoted(&database),
                walpoint_words::format_chain(&error)
            )),
        }
    }
    tables.sort_by(|a: &Table, b| b.bytes.cmp(&a.bytes).then_with(|| a.quoted.cmp(&b.quoted)));
    tables.truncate(MOST);
    count(instance, &mut tables).await;
    Ok((tables, problems))
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
async fn count(instance: &Instance, tables: &mut [Table]) {
    let until = Instant::now() + ALL;
    for table in tables {
        let left = until.saturating_duration_since(Instant::now()).min(ONE);
        if left.is_zero() {
            return;
        }
        match rows_of(instance, table, left).await {
            Ok(rows) => {
                table.rows = rows;
                table.is_counted = true;
            }
            Err(error) => tracing::debug!("the rows of {} were not counted: {error}", table.quoted),
        }
    }
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
