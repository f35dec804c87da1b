//! What is loaded and reads the server's own tables there: a view that is created locks them until the load commits, and a materialized view
//! is filled with the rows that they have today.

use walpoint_base::Diagnostic;
use walpoint_pg::connect::{Connection, RowError};

use super::super::names::{listed, names};
use super::needs;
use crate::shell;

/// Objects in a schema that use tables and views outside of it, and these.
const READERS: &str = "SELECT DISTINCT pg_catalog.format('%s %s uses %s %s', u.type, u.identity, o.type, o.identity) AS name FROM part p \
     JOIN pg_catalog.pg_depend d ON d.classid = p.classid AND d.objid = p.objid AND d.deptype = 'n' AND d.refobjid >= 16384 \
     AND d.refclassid = 'pg_catalog.pg_class'::regclass \
     JOIN pg_catalog.pg_class c ON c.oid = d.refobjid AND c.relkind IN ('r', 'p', 'f', 'v', 'm') \
     LEFT JOIN pg_catalog.pg_rewrite r ON p.classid = 'pg_catalog.pg_rewrite'::regclass AND r.oid = p.objid, \
     LATERAL pg_catalog.pg_identify_object(CASE WHEN r.oid IS NULL THEN p.classid ELSE 'pg_catalog.pg_class'::regclass::oid END, \
     COALESCE(r.ev_class, p.objid), 0) u, \
     LATERAL pg_catalog.pg_identify_object('pg_catalog.pg_class'::regclass, c.oid, 0) o \
     WHERE NOT EXISTS (SELECT FROM part s WHERE s.classid = d.refclassid AND s.objid = d.refobjid) ORDER BY 1";

/// Materialized views in a schema that hold rows, and what they read elsewhere, also by way of views and functions of the schema: tables,
/// and functions that may read any. The rows of a foreign table are elsewhere wherever it is itself. What belongs to an extension is the
/// same on each server, but for its tables.
const FILLED_ELSEWHERE: &str = ", reached(view, classid, objid) AS (SELECT c.oid, 'pg_catalog.pg_class'::regclass::oid, c.oid \
     FROM pg_catalog.pg_class c WHERE c.relnamespace = $NAMESPACE AND c.relkind = 'm' AND c.relispopulated \
     UNION SELECT x.view, d.refclassid, d.refobjid FROM reached x JOIN part p ON p.classid = x.classid AND p.objid = x.objid \
     LEFT JOIN pg_catalog.pg_rewrite r ON x.classid = 'pg_catalog.pg_class'::regclass AND r.ev_class = x.objid AND r.ev_type = '1' \
     JOIN pg_catalog.pg_depend d ON d.deptype = 'n' AND (d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid \
     OR x.classid = 'pg_catalog.pg_proc'::regclass AND d.classid = x.classid AND d.objid = x.objid)) \
     SELECT DISTINCT pg_catalog.quote_ident(v.relname) AS view, pg_catalog.format('%s %s', i.type, i.identity) AS used \
     FROM reached x JOIN pg_catalog.pg_class v ON v.oid = x.view \
     LEFT JOIN pg_catalog.pg_class o ON x.classid = 'pg_catalog.pg_class'::regclass AND o.oid = x.objid, \
     LATERAL pg_catalog.pg_identify_object(x.classid, x.objid, 0) i \
     WHERE x.objid >= 16384 AND (o.relkind = 'f' OR NOT EXISTS (SELECT FROM part p WHERE p.classid = x.classid AND p.objid = x.objid) \
     AND (o.relkind IN ('r', 'p', 'v', 'm', 'S') \
     OR (x.classid = 'pg_catalog.pg_proc'::regclass OR x.classid = 'pg_catalog.pg_operator'::regclass) \
     AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend e WHERE e.classid = x.classid AND e.objid = x.objid AND e.deptype = 'e'))) \
     ORDER BY 1, 2";

/// Materialized views in a schema that hold rows.
const FILLED: &str = "SELECT pg_catalog.quote_ident(relname) AS name FROM pg_catalog.pg_class \
     WHERE relnamespace = $NAMESPACE AND relkind = 'm' AND relispopulated ORDER BY 1";

/// A warning about the server's own tables that what is loaded of a schema reads, and that the load locks.
pub(super) async fn readers(connection: &mut Connection, schema: &str) -> anyhow::Result<Option<String>> {
    let readers = names(connection, &needs::about(schema, READERS)).await?;
    Ok((!readers.is_empty()).then(|| {
        format!(
            "what is loaded uses tables or views of the server itself, and views show the rows that these have today: {}\nDETAIL: The load \
             holds ACCESS SHARE locks on them until it commits, so a statement that needs an exclusive lock there waits.",
            listed(&readers)
        )
    }))
}

/// A warning about materialized views of a schema, none of which reads anything elsewhere.
pub(super) async fn filled(connection: &mut Connection, schema: &str) -> anyhow::Result<Option<String>> {
    let filled = names(connection, &needs::about(schema, FILLED)).await?;
    Ok((!filled.is_empty()).then(|| {
        format!(
            "materialized views are filled anew from what is loaded, and may have had other rows at that moment, if they were not refreshed \
             right before: {}",
            listed(&filled)
        )
    }))
}

/// Fails if materialized views of a schema would be filled with rows that are not from the backup.
pub(super) async fn require_own_rows(connection: &mut Connection, schema: &str) -> anyhow::Result<()> {
    let rows = connection.query(&needs::about(schema, FILLED_ELSEWHERE)).await?;
    let read: Result<Vec<(String, String)>, RowError> =
        rows.iter().map(|row| Ok((row.get("view")?, row.get("used")?))).collect();
    match &read?[..] {
        [] => Ok(()),
        views => Err(refused(views).into()),
    }
}

/// Says that views, as SQL names them, would have rows of today, by what they use.
fn refused(views: &[(String, String)]) -> Diagnostic {
    let mut names: Vec<String> = views.iter().map(|(view, _)| view.clone()).collect();
    names.dedup();
    let refused = Diagnostic::new(format!(
        "materialized views would be filled with rows that the server has today: {}: nothing was loaded",
        listed(&names)
    ));
    let uses: Vec<String> = views.iter().map(|(view, used)| format!("{view} uses {used}")).collect();
    let left_out: Vec<String> = names.iter().map(|name| format!("--exclude-table=*.{name}")).collect();
    refused
        .detail(format!(
            "PostgreSQL fills a materialized view where it is loaded, and these use what is not extracted: {}.",
            listed(&uses)
        ))
        .hint(format!(
            "Write their rows to files with --query, and leave them out of the load: -- {}. Or extract the tables that they use, too.",
            shell::line(&left_out)
        ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_with_rows_of_today_are_refused_with_the_options_that_leave_them_out() {
        let uses = [("a", "table public.x"), ("a", "table public.y"), ("\"B c\"", "function public.f()")];
        let uses = uses.map(|(view, used)| (view.to_owned(), used.to_owned()));
        let why = refused(&uses).to_string();
        for expected in [
            "has today: a, \"B c\": nothing was loaded",
            "a uses table public.x, a uses table public.y, \"B c\" uses function public.f().",
            "of the load: -- '--exclude-table=*.a' '--exclude-table=*.\"B c\"'.",
        ] {
            assert!(why.contains(expected), "{expected}: {why}");
        }
    }
}
