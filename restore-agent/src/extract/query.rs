//! The rows of a query, as COPY writes them.
//!
//! The query is prepared by itself first: only what is a statement alone stays between the parentheses of COPY.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::ValueEnum;
use walpoint_base::diagnostic::shown;
use walpoint_pg::connect::Error;

use super::client;
use super::destination::Destination;
use crate::server::{Instance, ServerUser};

/// The program that writes the rows, of any size.
pub(super) const PROGRAM: &str = "psql";

/// How long it may take to prepare a query.
const PREPARING: Duration = Duration::from_secs(600);

/// What every transaction begins with. A snapshot that is serializable cannot be had in recovery.
const BEGIN: &str = "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// How COPY writes rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum CopyFormat {
    /// Comma-separated values, with a line of the columns' names.
    #[default]
    Csv,
    /// COPY's own text format.
    Text,
    /// COPY's binary format.
    Binary,
}

impl CopyFormat {
    /// The options of COPY.
    fn options(self) -> &'static str {
        match self {
            Self::Csv => "FORMAT csv, HEADER",
            Self::Text => "FORMAT text",
            Self::Binary => "FORMAT binary",
        }
    }
}

/// A query and how its rows are written.
#[derive(Debug)]
pub(super) struct Query<'a> {
    pub(super) program: PathBuf,
    pub(super) database: &'a str,
    pub(super) sql: &'a str,
    pub(super) format: CopyFormat,
}

/// A query without what may end it.
pub(super) fn statement(sql: &str) -> &str {
    sql.trim_end_matches(|c: char| c.is_whitespace() || c == ';')
}

impl Query<'_> {
    /// Writes the rows.
    pub(super) async fn run(
        &self,
        destination: &Destination,
        instance: &Instance,
        user: &ServerUser,
    ) -> anyhow::Result<()> {
        let sql = statement(self.sql);
        self.prepare(sql, instance).await?;
        let mut command = client::command(&self.program, user);
        client::connect(&mut command, instance);
        command.args(["--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1"]);
        command.arg(client::dbname(self.database)).arg(format!("--command={BEGIN}"));
        // A comment may end the query.
        command.arg(format!("--command=COPY ({sql}\n) TO STDOUT ({})", self.format.options()));
        match client::run(PROGRAM, command, destination.stdout()?).await? {
            Ok(()) => Ok(()),
            Err(failed) => Err(failed.diagnostic().into()),
        }
    }

    /// Fails unless it is one statement that the server understands.
    async fn prepare(&self, sql: &str, instance: &Instance) -> anyhow::Result<()> {
        let mut connection = instance.connect_to_check(self.database, Some(PREPARING)).await?;
        connection.batch(BEGIN).await?;
        let prepared = connection.batch(&format!("PREPARE walpoint_query AS {sql}\n")).await;
        if let Err(error) = prepared {
            return Err(refused(error));
        }
        let rows = connection
            .query("SELECT count(*) AS statements FROM pg_catalog.pg_prepared_statements WHERE name = 'walpoint_query'")
            .await;
        let statements: u64 = rows.context("the query is not one statement")?.one()?.get("statements")?;
        connection.close().await;
        match statements {
            1 => Ok(()),
            _ => bail!("the query is not one statement"),
        }
    }
}

fn refused(error: Error) -> anyhow::Error {
    match error.report() {
        Some(report) => anyhow!("PostgreSQL refuses the query: {}", shown(&report.message)),
        None => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_query_is_left_out() {
        for (given, expected) in
            [("select 1", "select 1"), ("select 1 ;\n; ", "select 1"), ("select ';' -- x", "select ';' -- x")]
        {
            assert_eq!(statement(given), expected);
        }
    }
}
