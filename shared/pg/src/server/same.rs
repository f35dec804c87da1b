//! Whether two sessions are on one server. Several hosts in a connection string, a load balancer or a failover lead each new
//! connection where they like, so everything that one task asks has to prove it.
//!
//! The second session carries a random name (`application_name`), and the first one looks for it among the sessions of its
//! own server. That works for replication sessions too, which take no SQL, and needs no right: a role sees its own sessions.

use super::error::ServerError;
use super::role::Right;
use super::session::Server;
use crate::connect::ConnInfo;

/// PostgreSQL's limit for the name of an application, in bytes (NAMEDATALEN less its end).
const MAX_NAME: usize = 63;

/// The name by which a session is found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionName(String);

impl SessionName {
    /// What `info` says, followed by a number that no other session has: the caller chooses it at random.
    pub fn new(info: &ConnInfo, number: u64) -> Self {
        let suffix = format!("-{number:016x}");
        let mut name = info.application_name().to_owned();
        // The server replaces what is no printable ASCII, and cuts what is too long.
        name.retain(|c| c.is_ascii_graphic() || c == ' ');
        name.truncate(MAX_NAME - suffix.len());
        Self(name + &suffix)
    }

    /// The settings for the session of this name.
    pub fn of(&self, info: &ConnInfo) -> ConnInfo {
        info.clone().with_application_name(&self.0)
    }
}

impl Server {
    /// Whether a session of that name is on this session's server.
    pub async fn confirms(&mut self, name: &SessionName) -> Result<bool, ServerError> {
        let sql = format!(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE application_name OPERATOR(pg_catalog.=) {}) AS found",
            postgres_protocol::escape::escape_literal(&name.0)
        );
        self.one("looking for a session in pg_stat_activity", Right::Connect, &sql, |row| row.get("found"))
            .await
    }
}
