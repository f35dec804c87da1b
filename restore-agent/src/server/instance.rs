//! The running instance, and sessions on it.

use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use walpoint_base::{Lsn, PgMajor};
use walpoint_pg::connect::Connection;
use walpoint_runtime::human;

use super::end::Reached;
use super::session::{Reachable, session_options};

/// How long a promotion may take, and how much longer its answer.
const PROMOTING: Duration = Duration::from_secs(600);
const GRACE: Duration = Duration::from_secs(10);

/// A server that has reached the moment, and takes no writes by itself.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    /// How the server is reached.
    pub(crate) server: Reachable,
    pub(crate) major: PgMajor,
    /// The role that connects.
    pub(crate) superuser: String,
    /// The role whose rights a person's checks have; the superuser's if none was given.
    pub(crate) role: Option<String>,
    /// The database of sessions that name none.
    pub(crate) database: String,
    /// Where recovery ended.
    pub(crate) position: Position,
    /// Whether that is the target.
    pub(crate) reached: Reached,
}

/// Where recovery ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Position {
    /// The end of the last record that was replayed.
    pub(crate) lsn: Lsn,
    /// The time in the last commit or abort that was replayed.
    pub(crate) last_commit: Option<Timestamp>,
    /// Whether the server is still in recovery: paused at the target.
    pub(crate) is_in_recovery: bool,
}

impl Instance {
    /// The version.
    pub(crate) fn major(&self) -> PgMajor {
        self.major
    }

    /// The database of sessions that name none.
    pub(crate) fn database(&self) -> &str {
        &self.database
    }

    /// The variables of the environment with which libpq's programs find it, as the superuser.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        self.environment_as(None)
    }

    /// The same for a person's checks.
    pub(crate) fn check_environment(&self) -> Vec<(&'static str, String)> {
        self.environment_as(self.role.as_deref())
    }

    fn environment_as(&self, role: Option<&str>) -> Vec<(&'static str, String)> {
        let mut environment = vec![
            ("PGHOST", self.server.host.clone()),
            ("PGPORT", self.server.port.clone()),
            ("PGUSER", self.superuser.clone()),
            ("PGDATABASE", self.database.clone()),
            ("PGOPTIONS", session_options(self.major, role)),
        ];
        environment.extend(self.server.secrets.iter().cloned());
        environment
    }

    /// Opens a session of the superuser on a database. Its settings are those of the original's databases and roles, but for what leads
    /// outside.
    pub(crate) async fn connect(
        &self,
        database: &str,
        limit: Option<Duration>,
    ) -> anyhow::Result<Connection> {
        self.connect_as(None, database, limit).await
    }

    /// The same for a person's checks.
    pub(crate) async fn connect_to_check(
        &self,
        database: &str,
        limit: Option<Duration>,
    ) -> anyhow::Result<Connection> {
        self.connect_as(self.role.as_deref(), database, limit).await
    }

    async fn connect_as(
        &self,
        role: Option<&str>,
        database: &str,
        limit: Option<Duration>,
    ) -> anyhow::Result<Connection> {
        let options = session_options(self.major, role);
        let opened = self.server.connect(&options, &self.superuser, database).await;
        let mut connection =
            opened.with_context(|| format!("database \"{database}\" of {}", self.server.called))?;
        // It was emptied when the session began.
        connection.execute("RESET search_path").await?;
        connection.set_limit(limit);
        Ok(connection)
    }

    /// Ends recovery where it is paused. A server that is stopped in recovery writes no more than it has since the last checkpoint of the
    /// original that it replayed; one that was promoted writes every page when it shuts down.
    pub(crate) async fn promote(&self) -> anyhow::Result<()> {
        let mut connection = self.connect(&self.database, Some(PROMOTING.saturating_add(GRACE))).await?;
        let sql = format!("SELECT pg_catalog.pg_promote(true, {}) AS promoted", PROMOTING.as_secs());
        connection.execute("SET statement_timeout = 0").await?;
        let is_promoted = connection.query(&sql).await?.one()?.get("promoted")?;
        connection.close().await;
        match is_promoted {
            true => Ok(()),
            false => bail!("{} was not promoted within {}", self.server.called, human::span(PROMOTING)),
        }
    }

    /// Promotes it, unless it has ended recovery already.
    pub(crate) async fn end_recovery(&self) -> anyhow::Result<()> {
        let mut connection = self.connect(&self.database, Some(Duration::from_secs(60))).await?;
        let sql = "SELECT pg_catalog.pg_is_in_recovery() AS recovering";
        let is_in_recovery: bool = connection.query(sql).await?.one()?.get("recovering")?;
        connection.close().await;
        if is_in_recovery { self.promote().await } else { Ok(()) }
    }

    /// The databases that take sessions. What an interrupted `DROP DATABASE` left does not (`DATCONNLIMIT_INVALID_DB`).
    pub(crate) async fn databases(&self) -> anyhow::Result<Vec<String>> {
        let mut connection = self.connect(&self.database, Some(Duration::from_secs(60))).await?;
        let sql = "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY datname";
        let rows = connection.query(sql).await?;
        let names: Result<Vec<String>, _> = rows.iter().map(|row| row.get("datname")).collect();
        connection.close().await;
        Ok(names?)
    }
}
