//! Names that queries give, and lists of them in messages.

use walpoint_base::diagnostic::shown;
use walpoint_pg::connect::{Connection, RowError};

/// Names that are listed.
const LISTED: usize = 10;

/// The names that a query gives.
pub(super) async fn names(connection: &mut Connection, query: &str) -> anyhow::Result<Vec<String>> {
    let rows = connection.query(query).await?;
    let names: Result<Vec<String>, RowError> = rows.iter().map(|row| row.get("name")).collect();
    Ok(names?)
}

/// The first names of many, and how many more there are.
pub(super) fn listed(names: &[String]) -> String {
    let first: Vec<String> = names.iter().take(LISTED).map(|name| shown(name)).collect();
    let more = names.len().saturating_sub(LISTED);
    match more {
        0 => first.join(", "),
        _ => format!("{}, and {more} more", first.join(", ")),
    }
}
