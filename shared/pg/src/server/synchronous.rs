//! The settings of synchronous replication, as they are in force on a server.

use super::error::ServerError;
use super::replication::Walsender;
use super::role::Right;
use super::session::{self, Server};

/// A value of `synchronous_commit` that is set for a role, a database, or a role in a database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommitException {
    /// The role; `None`: every one.
    pub role: Option<String>,
    /// The database; `None`: every one.
    pub database: Option<String>,
    /// The value as it was written.
    pub value: String,
}

impl Server {
    /// `synchronous_standby_names`.
    pub async fn synchronous_standby_names(&mut self) -> Result<String, ServerError> {
        let sql = "SELECT pg_catalog.current_setting('synchronous_standby_names') AS names";
        self.one("reading synchronous_standby_names", Right::Connect, sql, |row| row.get("names")).await
    }

    /// The values of `synchronous_commit` that roles and databases have of their own (`pg_db_role_setting`).
    pub async fn commit_exceptions(&mut self) -> Result<Vec<CommitException>, ServerError> {
        const SQL: &str = "SELECT r.rolname AS role, d.datname AS database, \
            pg_catalog.substr(c.entry, 20) AS value \
            FROM pg_catalog.pg_db_role_setting s \
            CROSS JOIN LATERAL pg_catalog.unnest(s.setconfig) AS c(entry) \
            LEFT JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) s.setrole \
            LEFT JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) s.setdatabase \
            WHERE pg_catalog.lower(pg_catalog.substr(c.entry, 1, 19)) OPERATOR(pg_catalog.=) 'synchronous_commit=' \
            ORDER BY 2 NULLS FIRST, 1 NULLS FIRST";
        let action = "reading pg_db_role_setting";
        let mut found = Vec::new();
        for row in self.query(action, Right::Connect, SQL).await? {
            let answer = |source| ServerError::Answer { action, source };
            found.push(CommitException {
                role: row.nullable("role").map_err(answer)?,
                database: row.nullable("database").map_err(answer)?,
                value: row.get("value").map_err(answer)?,
            });
        }
        Ok(found)
    }
}

impl Walsender {
    /// `synchronous_commit` as it is for every session that has no value of its own: what is set for roles and databases does not
    /// apply to a session for replication.
    pub async fn synchronous_commit(&mut self) -> Result<String, ServerError> {
        let action = "asking how long a commit waits (SHOW synchronous_commit)";
        let sql = "SHOW synchronous_commit";
        let rows = session::query(self.connection(), action, Right::Replication, sql).await?;
        let read = rows.one().and_then(|row| row.get("synchronous_commit"));
        read.map_err(|source| ServerError::Answer { action, source })
    }
}
