//! What the instance holds: its databases, and the schemas and tables of one.
//!
//! The size of a table that a prepared transaction has locked is not known: it cannot be asked for.

use schemars::JsonSchema;
use serde::Serialize;
use walpoint_pg::connect::{Row, RowError};

use crate::server::Instance;

/// All databases. One whose removal had begun at that moment has no size.
const DATABASES: &str = "SELECT d.datname AS name, d.datallowconn AS accepts, \
     CASE WHEN d.datconnlimit = -2 THEN NULL ELSE pg_catalog.pg_database_size(d.oid) END AS bytes \
     FROM pg_catalog.pg_database d ORDER BY 1";

/// Schemas that are a person's own, empty ones too.
const SCHEMAS: &str = "SELECT nspname AS name FROM pg_catalog.pg_namespace \
     WHERE nspname <> 'information_schema' AND nspname !~ '^pg_' ORDER BY 1";

/// The tables of these. Statistics of a table that was never analyzed say nothing of its rows.
const TABLES: &str = "SELECT n.nspname AS schema, c.relname AS name, \
     pg_catalog.format('%I.%I', n.nspname, c.relname) AS quoted, c.relkind AS kind, \
     CASE WHEN c.relispartition THEN (SELECT pg_catalog.format('%I.%I', pn.nspname, p.relname) \
     FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class p ON p.oid = i.inhparent \
     JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace WHERE i.inhrelid = c.oid LIMIT 1) END AS parent, \
     CASE WHEN EXISTS (SELECT 1 FROM pg_catalog.pg_locks l WHERE l.relation = c.oid AND l.granted \
     AND l.mode = 'AccessExclusiveLock' AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d \
     WHERE d.datname = pg_catalog.current_database())) THEN NULL \
     ELSE pg_catalog.pg_total_relation_size(c.oid) END AS bytes, \
     CASE WHEN c.reltuples < 0 OR c.reltuples = 0 AND c.relpages = 0 THEN NULL ELSE c.reltuples::bigint END AS rows \
     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'p', 'm', 'f') AND c.relpersistence <> 't' \
     AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' ORDER BY 1, 2";

/// A database.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct Database {
    /// The database.
    #[serde(rename = "database")]
    pub(super) name: String,
    /// Its size. Absent if it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) total_bytes: Option<u64>,
    /// Whether it accepts connections; what does not cannot be extracted from.
    pub(super) accepts_connections: bool,
}

/// A table.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "ListedTable")]
pub(super) struct Table {
    /// The schema.
    pub(super) schema: String,
    /// The table.
    #[serde(rename = "table")]
    pub(super) name: String,
    /// Both as SQL names them, which is a pattern that matches only this table.
    pub(super) quoted_name: String,
    /// What kind of table it is.
    pub(super) kind: TableKind,
    /// The table whose partition it is, as SQL names it. Absent if it is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) partition_of: Option<String>,
    /// Its size, with its indexes and what is stored out of line. Absent if it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) total_bytes: Option<u64>,
    /// The number of its rows by the planner's statistics. Absent if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) estimated_row_count: Option<u64>,
}

/// A kind of table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum TableKind {
    /// A table with rows of its own.
    Table,
    /// A table whose rows are in its partitions.
    PartitionedTable,
    /// A materialized view.
    MaterializedView,
    /// A table of another server.
    ForeignTable,
}

/// What a database holds.
#[derive(Debug, Clone)]
pub(super) struct Contents {
    /// The schemas.
    pub(super) schemas: Vec<String>,
    /// The tables.
    pub(super) tables: Vec<Table>,
}

/// All databases.
pub(super) async fn databases(instance: &Instance) -> anyhow::Result<Vec<Database>> {
    let mut connection = instance.connect(instance.database(), None).await?;
    let rows = connection.query(DATABASES).await?;
    let read = |row: &Row| -> Result<Database, RowError> {
        Ok(Database {
            name: row.get("name")?,
            total_bytes: row.nullable("bytes")?,
            accepts_connections: row.get("accepts")?,
        })
    };
    let databases: Result<Vec<Database>, RowError> = rows.iter().map(read).collect();
    connection.close().await;
    Ok(databases?)
}

/// What a database holds.
pub(super) async fn of_database(instance: &Instance, database: &str) -> anyhow::Result<Contents> {
    let mut connection = instance.connect(database, None).await?;
    let rows = connection.query(SCHEMAS).await?;
    let schemas: Result<Vec<String>, RowError> = rows.iter().map(|row| row.get("name")).collect();
    let rows = connection.query(TABLES).await?;
    let tables: Result<Vec<Table>, RowError> = rows.iter().map(table).collect();
    connection.close().await;
    Ok(Contents { schemas: schemas?, tables: tables? })
}

fn table(row: &Row) -> Result<Table, RowError> {
    let kind: String = row.get("kind")?;
    Ok(Table {
        schema: row.get("schema")?,
        name: row.get("name")?,
        quoted_name: row.get("quoted")?,
        kind: match kind.as_str() {
            "p" => TableKind::PartitionedTable,
            "m" => TableKind::MaterializedView,
            "f" => TableKind::ForeignTable,
            _ => TableKind::Table,
        },
        partition_of: row.nullable("parent")?,
        total_bytes: row.nullable("bytes")?,
        estimated_row_count: row.nullable("rows")?,
    })
}
