//! Tables whose rows are in other tables: partitions, and children by inheritance, as the chunks of a hypertable are. pg_dump takes each
//! for a table of its own, so a parent alone would be loaded without rows, and look complete.

use anyhow::bail;
use walpoint_pg::connect::{Connection, RowError};

use super::moving::{LISTED, listed};
use crate::shell;

/// Fails if a query finds children of tables of which no child is selected.
pub(super) async fn require_children(connection: &mut Connection, query: &str) -> anyhow::Result<()> {
    let rows = connection.query(query).await?;
    let read: Result<Vec<(String, String)>, RowError> =
        rows.iter().map(|row| Ok((row.get("name")?, row.get("parent")?))).collect();
    let (children, mut parents): (Vec<String>, Vec<String>) = read?.into_iter().unzip();
    parents.dedup();
    if parents.is_empty() {
        return Ok(());
    }
    bail!(
        "the rows of these tables are in partitions or inheriting tables, none of which is extracted: {}: nothing was loaded\nDETAIL: \
         These have the rows: {}.\nHINT: Choose the tables with --table, and these with them: {}. Or write the rows to files with --query.",
        listed(&parents),
        listed(&children),
        patterns(&children)
    )
}

/// Options that select tables, whose names are complete: one pattern if their names have a beginning in common that says enough.
fn patterns(names: &[String]) -> String {
    let option = |pattern: &str| shell::line(&["--table".to_owned(), pattern.to_owned()]);
    let first = names.first().map_or("", String::as_str);
    let common = names.iter().fold(first, |common, name| common_beginning(common, name));
    // A schema alone, or a part of a quoted name, is no pattern.
    let says_enough =
        common.contains('.') && !common.ends_with('.') && common.matches('"').count().is_multiple_of(2);
    if names.len() > 1 && says_enough {
        return option(&format!("{common}*"));
    }
    let options: Vec<String> = names.iter().take(LISTED).map(|name| option(name)).collect();
    options.join(" ")
}

fn common_beginning<'a>(one: &'a str, other: &str) -> &'a str {
    let differs = one.char_indices().zip(other.chars()).find(|((_, one), other)| one != other);
    let end = differs.map_or(one.len().min(other.len()), |((at, _), _)| at);
    one.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_named_by_options_that_take_them() {
        for (names, expected) in [
            (&["public.m_old"][..], "--table public.m_old"),
            (&["public.m_1", "public.m_2"], "--table 'public.m_*'"),
            (&["public.m", "public.m_2"], "--table 'public.m*'"),
            (&["public.a", "public.b"], "--table public.a --table public.b"),
            (&["one.m_1", "other.m_1"], "--table one.m_1 --table other.m_1"),
            (&["\"Old Sales\".m1", "\"Old Sales\".m2"], "--table '\"Old Sales\".m*'"),
            (&["s.\"It's 1\"", "s.\"It's 2\""], "--table 's.\"It'\\''s 1\"' --table 's.\"It'\\''s 2\"'"),
            (&["s.mä1", "s.mö1"], "--table 's.m*'"),
        ] {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(patterns(&names), expected);
        }
    }
}
