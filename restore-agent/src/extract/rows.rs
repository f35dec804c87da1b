//! Whether what patterns select comes with its rows. pg_dump takes each partition, and each table that inherits, for a table of its own, so a
//! parent alone would come without rows, and look complete. A view has no rows of its own, an unlogged table has lost its rows in the
//! recovery, and a pattern without a schema matches PostgreSQL's own tables, too.

use walpoint_base::Diagnostic;
use walpoint_pg::connect::{Connection, Row, RowError};

use super::names::{listed, names};
use super::sql::oids;
use crate::shell;

/// Partitions and other children, down to the leaves, that are not selected of selected tables, with each of these. `is_empty`: no child with
/// rows comes with that table, and it has none itself. Those of a session's own are lost by a recovery.
const MISSING: &str = "WITH RECURSIVE below(root, oid, relkind, is_attached) AS ( \
     SELECT i.inhparent, c.oid, c.relkind, c.oid = ANY ($SELECTED) FROM pg_catalog.pg_inherits i \
     JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relpersistence <> 't' WHERE i.inhparent = ANY ($SELECTED) \
     UNION SELECT b.root, c.oid, c.relkind, b.is_attached AND c.oid = ANY ($SELECTED) FROM below b \
     JOIN pg_catalog.pg_inherits i ON i.inhparent = b.oid JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relpersistence <> 't') \
     SELECT DISTINCT pg_catalog.format('%s', b.oid::regclass) AS name, pg_catalog.format('%s', b.root::regclass) AS parent, \
     b.children_have_rows AND NOT b.some_come_along AND (r.relkind = 'p' OR pg_catalog.pg_relation_size(r.oid) = 0) AS is_empty \
     FROM (SELECT *, pg_catalog.bool_or(relkind <> 'p') OVER (PARTITION BY root) AS children_have_rows, \
     pg_catalog.bool_or(relkind <> 'p' AND is_attached) OVER (PARTITION BY root) AS some_come_along FROM below) b \
     JOIN pg_catalog.pg_class r ON r.oid = b.root WHERE b.oid <> ALL ($SELECTED) ORDER BY 2, 1";

/// Selected tables that are unlogged.
const UNLOGGED: &str = "SELECT pg_catalog.format('%s', oid::regclass) AS name FROM pg_catalog.pg_class \
     WHERE oid = ANY ($SELECTED) AND relkind = 'r' AND relpersistence = 'u' ORDER BY 1";

/// Selected views and materialized views.
const VIEWS: &str = "SELECT pg_catalog.format('%s', oid::regclass) AS name FROM pg_catalog.pg_class \
     WHERE oid = ANY ($SELECTED) AND relkind IN ('v', 'm') AND oid >= 16384 ORDER BY 1";

/// Selected tables and views that `initdb` made.
const OF_SYSTEM: &str = "SELECT pg_catalog.format('%s', oid::regclass) AS name FROM pg_catalog.pg_class \
     WHERE oid = ANY ($SELECTED) AND oid < 16384 ORDER BY 1";

/// What to do if PostgreSQL's own tables match a pattern.
const NAME_THE_SCHEMA: &str = "Name the schema in the pattern, as in --table 'public.p*'. Write the rows of PostgreSQL's own with --query.";

/// A child that does not come along.
#[derive(Debug, Clone)]
struct Missing {
    name: String,
    parent: String,
    /// Whether the parent comes without any row.
    is_empty: bool,
}

/// What a person should know of the rows of selected tables, in a session without a search path. Fails if rows are required and a table would
/// come without any, because all of them are in children that no pattern selects.
pub(super) async fn warnings(
    connection: &mut Connection,
    selected: &[u32],
    requires_rows: bool,
) -> anyhow::Result<Vec<String>> {
    let rows = connection.query(&about(MISSING, selected)).await?;
    let missing: Result<Vec<Missing>, RowError> = rows.iter().map(missing).collect();
    let missing = missing?;
    if requires_rows && let Some(refused) = refused(&missing) {
        return Err(refused.into());
    }
    let mut warnings = Vec::new();
    let left_out = distinct(missing.iter().map(|missing| &missing.name));
    if !left_out.is_empty() {
        warnings.push(format!(
            "partitions and inheriting tables that no pattern matches are left out with their rows, and their parent is extracted without \
             them: {}",
            listed(&left_out)
        ));
    }
    let unlogged = names(connection, &about(UNLOGGED, selected)).await?;
    if requires_rows && !unlogged.is_empty() {
        warnings.push(format!(
            "unlogged tables are extracted without rows, because a recovery empties them: {}",
            listed(&unlogged)
        ));
    }
    Ok(warnings)
}

/// Fails if PostgreSQL's own tables or views are selected, which cannot be moved into another schema.
pub(super) async fn require_none_of_system(
    connection: &mut Connection,
    selected: &[u32],
) -> anyhow::Result<()> {
    let own = names(connection, &about(OF_SYSTEM, selected)).await?;
    if own.is_empty() {
        return Ok(());
    }
    Err(Diagnostic::new(format!(
        "the patterns match tables or views of PostgreSQL itself, which cannot be loaded: {}: nothing was loaded",
        listed(&own)
    ))
    .hint(NAME_THE_SCHEMA)
    .into())
}

/// What a person should know of a script with what is selected.
pub(super) async fn warnings_of_script(
    connection: &mut Connection,
    selected: &[u32],
) -> anyhow::Result<Vec<String>> {
    let mut warnings = Vec::new();
    let own = names(connection, &about(OF_SYSTEM, selected)).await?;
    if !own.is_empty() {
        warnings.push(format!(
            "the patterns match tables or views of PostgreSQL itself, which no server lets the output create: {}\nHINT: {NAME_THE_SCHEMA}",
            listed(&own)
        ));
    }
    let views = names(connection, &about(VIEWS, selected)).await?;
    if !views.is_empty() {
        warnings.push(format!(
            "views are extracted without rows: where the output is loaded, they show what that server has, and materialized views are filled \
             with it: {}\nHINT: Write their rows with --query.",
            listed(&views)
        ));
    }
    Ok(warnings)
}

fn about(query: &str, selected: &[u32]) -> String {
    query.replace("$SELECTED", &oids(selected))
}

fn missing(row: &Row) -> Result<Missing, RowError> {
    Ok(Missing { name: row.get("name")?, parent: row.get("parent")?, is_empty: row.get("is_empty")? })
}

/// Says which tables would come without any row, with options for all that has their rows.
fn refused(missing: &[Missing]) -> Option<Diagnostic> {
    let empty = || missing.iter().filter(|missing| missing.is_empty);
    let parents = distinct(empty().map(|missing| &missing.parent));
    let children = distinct(empty().map(|missing| &missing.name));
    if parents.is_empty() {
        return None;
    }
    let choose = children.iter().flat_map(|name| ["--table".to_owned(), name.clone()]);
    let find: Vec<String> = parents.iter().map(|name| format!("--table-and-children={name}")).collect();
    let refused = Diagnostic::new(format!(
        "the rows of these tables are in partitions or inheriting tables, none of which is extracted: {}: nothing was extracted",
        listed(&parents)
    ));
    Some(
        refused
            .detail(format!("These have the rows: {}.", listed(&children)))
            .hint(format!(
                "Choose tables with --table, and these with them: {}.",
                shell::line(&choose.collect::<Vec<String>>())
            ))
            .hint(format!("Or let pg_dump of PostgreSQL 16 or newer find them: -- {}.", shell::line(&find)))
            .hint("Or write the rows with --query, or leave all rows out: -- --schema-only."),
    )
}

/// Names without those that are repeated, in order.
fn distinct<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = names.collect();
    names.into_iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(name: &str, parent: &str, is_empty: bool) -> Missing {
        Missing { name: name.to_owned(), parent: parent.to_owned(), is_empty }
    }

    #[test]
    fn a_refusal_names_every_table_that_has_rows_by_options_that_take_it_alone() {
        let mut all: Vec<Missing> =
            (10..60).map(|n| missing(&format!("public.m_{n}"), "public.m", true)).collect();
        all.push(missing("s.\"It's 1\"", "s.\"P 1\"", true));
        // Of a tree of partitions, each table above a leaf misses it.
        all.push(missing("s.\"It's 1\"", "s.p", true));
        all.push(missing("public.only_warned", "public.has_rows", false));
        let why = refused(&all).unwrap().to_string();
        for n in 10..60 {
            assert!(why.contains(&format!("--table public.m_{n} --table ")), "{n}: {why}");
        }
        for expected in [
            "none of which is extracted: public.m, s.\"P 1\", s.p: nothing was extracted",
            "--table 's.\"It'\\''s 1\"'.\n",
            "-- --table-and-children=public.m '--table-and-children=s.\"P 1\"' --table-and-children=s.p",
        ] {
            assert!(why.contains(expected), "{expected}: {why}");
        }
        assert!(!why.contains('*') && !why.contains("only_warned") && !why.contains("has_rows"), "{why}");
        assert_eq!(why.matches("--table 's.").count(), 1, "{why}");
        assert!(refused(&all[52..]).is_none());
    }
}
