//! What a load left on the server. A connection that breaks while the transaction commits leaves the client without an answer, so what a
//! client says of a failure does not decide: the server does.

use walpoint_base::Diagnostic;
use walpoint_base::diagnostic::shown;
use walpoint_pg::connect::Error;

use super::super::sql::{identifier, literal};
use super::target::TargetServer;

/// The schema is there already: seen at once, or by its index after a wait for the transaction that created it.
const EXISTS: &[&str] = &["42P06", "23505"];

/// What became of the transaction of a load that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was rolled back.
    RolledBack,
    /// It was committed: the schema is there, with the comment that the load gives it.
    Committed,
    /// There is a schema of the name, which need not be of this load.
    Exists,
    /// The server did not say.
    Unknown {
        /// Why not.
        why: String,
    },
}

impl TargetServer {
    /// What became of the transaction that creates a schema with a comment. It may be committing still, so a look for the schema is not
    /// enough: another one of the same name, which is rolled back, can be created only once the first is gone.
    pub(super) async fn outcome(&self, schema: &str, comment: &str) -> Outcome {
        let asked = async {
            let mut connection = self.connect().await?;
            let sql = format!(
                "BEGIN READ WRITE; SET LOCAL lock_timeout = '20s'; CREATE SCHEMA {}; ROLLBACK",
                identifier(schema)
            );
            let outcome = match Outcome::read(connection.execute(&sql).await) {
                Outcome::Exists => {
                    connection.execute("ROLLBACK").await?;
                    let sql = format!(
                        "SELECT pg_catalog.obj_description(oid, 'pg_namespace') AS comment FROM pg_catalog.pg_namespace \
                         WHERE nspname = {}",
                        literal(schema)
                    );
                    let found: Option<String> = connection.query(&sql).await?.one()?.nullable("comment")?;
                    Outcome::of_comment(found.as_deref(), comment)
                }
                other => other,
            };
            connection.close().await;
            anyhow::Ok(outcome)
        };
        asked.await.unwrap_or_else(|error| Outcome::Unknown { why: format!("{error:#}") })
    }

    /// How many tables a schema has.
    pub(super) async fn count_tables(&self, schema: &str) -> anyhow::Result<u64> {
        let mut connection = self.connect().await?;
        let sql = format!(
            "SELECT pg_catalog.count(*) AS tables FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = {} AND c.relkind IN ('r', 'p', 'f', 'm')",
            literal(schema)
        );
        let tables = connection.query(&sql).await?.one()?.get("tables")?;
        connection.close().await;
        Ok(tables)
    }
}

impl Outcome {
    fn read(created: Result<(), Error>) -> Self {
        match created {
            Ok(()) => Self::RolledBack,
            Err(error) if error.sqlstate().is_some_and(|state| EXISTS.contains(&state)) => Self::Exists,
            Err(error) => Self::Unknown { why: error.to_string() },
        }
    }

    /// Whose a schema is, by its comment: `own` is the one of this load.
    fn of_comment(found: Option<&str>, own: &str) -> Self {
        if found == Some(own) { Self::Committed } else { Self::Exists }
    }

    /// A failure of the load, and what it means.
    pub(super) fn explain(&self, failed: Diagnostic, server: &str, schema: &str) -> Diagnostic {
        let schema = shown(schema);
        match self {
            Self::RolledBack => {
                failed.detail(format!("The transaction at {server} was rolled back: nothing was loaded."))
            }
            Self::Committed => {
                failed.detail(format!("The transaction at {server} was committed: everything was loaded."))
            }
            Self::Exists => failed
                .detail(format!("There is a schema \"{schema}\" at {server} now."))
                .hint("If nothing else created it meanwhile, the transaction was committed and the load is complete."),
            Self::Unknown { why } => {
                let why = Diagnostic::new(why);
                failed
                    .detail(format!("Whether the transaction was committed is not known: {}.", why.message()))
                    .hint(format!(
                        "Look for schema \"{schema}\" at {server}: if it is there, the load is complete; else nothing was loaded. A \
                         transaction that is still open appears in pg_stat_activity."
                    ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_it_left_only_as_far_as_the_server_said() {
        let failed = || Diagnostic::new("pg_restore failed (exit status: 1): server closed the connection");
        let unknown = Outcome::Unknown { why: "no connection\nHINT: Start it.".to_owned() };
        for (outcome, expected, other) in [
            (Outcome::RolledBack, "app@db1/shop was rolled back: nothing was loaded.", "not known"),
            (Outcome::Committed, "was committed: everything was loaded.", "rolled back"),
            (Outcome::Exists, "a schema \"before\" at app@db1/shop now.", "rolled back"),
            (unknown, "committed is not known: no connection.", "rolled back"),
        ] {
            let why = outcome.explain(failed(), "app@db1/shop", "before").to_string();
            assert!(why.contains(expected) && !why.contains(other), "{why}");
            assert!(why.starts_with("pg_restore failed (exit status: 1): server closed"), "{why}");
        }
        let lost = Error::Timeout { host: "db1".to_owned(), after: std::time::Duration::from_secs(60) };
        assert!(matches!(Outcome::read(Err(lost)), Outcome::Unknown { .. }));
        assert_eq!(Outcome::read(Ok(())), Outcome::RolledBack);
        // A schema of the name that another one created is no proof of a commit.
        for (found, expected) in [
            (Some("of this load"), Outcome::Committed),
            (Some("of another"), Outcome::Exists),
            (None, Outcome::Exists),
        ] {
            assert_eq!(Outcome::of_comment(found, "of this load"), expected);
        }
    }
}
