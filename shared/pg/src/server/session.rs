//! A connection together with what decides how to talk to its server.

use walpoint_base::PgMajor;

use super::error::{ServerError, explain};
use super::role::Right;
use crate::connect::{ConnInfo, Connection, Replication, Row, RowError, Rows};

/// A session for SQL on a server of a known version.
#[derive(Debug)]
pub struct Server {
    pub(super) connection: Connection,
    pub(super) major: PgMajor,
}

impl Server {
    /// Connects. The session is an ordinary one, whatever `info` says about replication.
    pub async fn connect(info: &ConnInfo) -> Result<Self, ServerError> {
        let info = info.clone().with_replication(Replication::Off);
        let opened = Connection::open(&info).await;
        let connection = opened
            .map_err(|source| explain("connecting", Right::Connect, info.user(), info.database(), source))?;
        let major = major(&connection)?;
        Ok(Self { connection, major })
    }

    /// The major version.
    pub fn major(&self) -> PgMajor {
        self.major
    }

    /// The session, for statements of one's own.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Ends the session.
    pub async fn close(self) {
        self.connection.close().await;
    }

    pub(super) async fn query(
        &mut self,
        action: &'static str,
        right: Right,
        sql: &str,
    ) -> Result<Rows, ServerError> {
        query(&mut self.connection, action, right, sql).await
    }

    /// The only row of a query, read by `read`.
    pub(super) async fn one<T>(
        &mut self,
        action: &'static str,
        right: Right,
        sql: &str,
        read: impl FnOnce(&Row) -> Result<T, RowError>,
    ) -> Result<T, ServerError> {
        let rows = self.query(action, right, sql).await?;
        rows.one().and_then(|row| read(&row)).map_err(|source| ServerError::Answer { action, source })
    }
}

/// Executes one statement; says which right is missing if that is why it failed.
pub(super) async fn query(
    connection: &mut Connection,
    action: &'static str,
    right: Right,
    sql: &str,
) -> Result<Rows, ServerError> {
    let result = connection.query(sql).await;
    result.map_err(|source| explain(action, right, connection.user(), connection.database(), source))
}

/// The major version, which every server reports when a session begins.
pub(super) fn major(connection: &Connection) -> Result<PgMajor, ServerError> {
    let version = connection.parameter("server_version").unwrap_or("of unknown version");
    let digits = version.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    let major = digits.parse().ok().and_then(PgMajor::new);
    major.ok_or_else(|| ServerError::Version { version: version.to_owned() })
}
