//! What a person may have meant by a pattern that matches nothing.

use std::time::Duration;

use walpoint_base::Diagnostic;
use walpoint_base::diagnostic::shown;
use walpoint_pg::connect::RowError;

use crate::server::Instance;

/// Names that are listed.
const LISTED: usize = 10;

/// How long the names may take.
const LIMIT: Duration = Duration::from_secs(60);

/// The longest part of a pattern that is compared: names have at most 63 bytes.
const LONGEST: usize = 128;

/// What pg_dump's patterns of tables match, but for the system's own.
const TABLES: &str = "SELECT c.relname AS name, pg_catalog.format('%I.%I', n.nspname, c.relname) AS quoted \
     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' ORDER BY 2";

const SCHEMAS: &str = "SELECT nspname AS name, pg_catalog.quote_ident(nspname) AS quoted FROM pg_catalog.pg_namespace \
     WHERE nspname <> 'information_schema' AND nspname !~ '^pg_' ORDER BY 2";

/// A name, and as SQL has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    name: String,
    quoted: String,
}

/// Says that nothing matches a pattern, and what has a similar name. `kind`: table or schema.
pub(super) async fn not_found(instance: &Instance, database: &str, kind: &str, pattern: &str) -> Diagnostic {
    let missing = Diagnostic::new(format!(
        "no {kind} of database \"{}\" matches \"{}\" at that moment",
        shown(database),
        shown(pattern)
    ));
    let names = match names(instance, database, kind).await {
        Ok(names) => names,
        Err(error) => {
            tracing::debug!("the names of database \"{}\" are not known: {error:#}", shown(database));
            return missing;
        }
    };
    let similar = similar(pattern, &names);
    let listed: Vec<String> = similar.iter().map(|quoted| shown(quoted)).collect();
    let missing = match listed.is_empty() {
        true => missing.detail(format!("No {kind} has a similar name.")),
        false => missing.detail(format!("Similar names: {}.", listed.join(", "))),
    };
    missing
        .hint("With this database and this target, extract --list shows all tables.")
        .hint("A name with capitals or special characters has to be in double quotes.")
}

async fn names(instance: &Instance, database: &str, kind: &str) -> anyhow::Result<Vec<Name>> {
    let mut connection = instance.connect(database, Some(LIMIT)).await?;
    let rows = connection.query(if kind == "schema" { SCHEMAS } else { TABLES }).await?;
    let names: Result<Vec<Name>, RowError> =
        rows.iter().map(|row| Ok(Name { name: row.get("name")?, quoted: row.get("quoted")? })).collect();
    connection.close().await;
    Ok(names?)
}

/// The names that are like a pattern, the most similar first.
fn similar<'a>(pattern: &str, names: &'a [Name]) -> Vec<&'a str> {
    let wanted = last_part(pattern).to_lowercase();
    let far = (wanted.chars().count() / 3).max(1);
    let score = |name: &Name| {
        let name = name.name.to_lowercase();
        let contains = wanted.len() > 2 && (name.contains(&wanted) || wanted.contains(&name));
        match strsim::osa_distance(&wanted, &name) {
            distance if distance <= far => Some(distance),
            _ if contains => Some(far),
            _ => None,
        }
    };
    let mut scored: Vec<(usize, &Name)> =
        names.iter().filter_map(|name| Some((score(name)?, name))).collect();
    scored.sort_by_key(|(score, _)| *score);
    scored.into_iter().take(LISTED).map(|(_, name)| name.quoted.as_str()).collect()
}

/// The name in a pattern: what follows its last dot outside of quotes, without wildcards.
fn last_part(pattern: &str) -> String {
    let (mut part, mut is_quoted) = (String::new(), false);
    let mut characters = pattern.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '"' if is_quoted && characters.next_if_eq(&'"').is_some() => part.push('"'),
            '"' => is_quoted = !is_quoted,
            '.' if !is_quoted => part.clear(),
            '*' | '?' if !is_quoted => {}
            c => part.push(c),
        }
    }
    part.chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similar_names_are_found_most_similar_first() {
        let names: Vec<Name> = ["accounts", "Accounts", "account_history", "orders", "a.b", "x"]
            .map(|name| Name { name: name.to_owned(), quoted: format!("public.{name}") })
            .to_vec();
        for (pattern, expected) in [
            ("acounts", &["public.accounts", "public.Accounts"][..]),
            ("old.accounts", &["public.accounts", "public.Accounts"]),
            ("account*", &["public.accounts", "public.Accounts", "public.account_history"]),
            ("\"a.b\"", &["public.a.b"]),
            ("payments", &[]),
            ("", &["public.x"]),
        ] {
            assert_eq!(similar(pattern, &names), expected, "{pattern}");
        }
        assert_eq!(last_part("\"a\"\"b\".\"c\"\"*\"?"), "c\"*");
        assert_eq!(last_part(&"x".repeat(1000)).len(), LONGEST);
    }
}
