//! Why a server did not do what it was asked, and which right is missing when that is the reason.

use crate::connect::{self, RowError};

use super::role::Right;

/// A call to a server that failed.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No connection, or the statement failed.
    #[error("{action} failed: {source}")]
    Connection {
        /// What was being done, such as `starting a backup`.
        action: &'static str,
        /// Why.
        source: connect::Error,
    },
    /// The role may not do this.
    #[error(
        "{action} failed: the role \"{role}\" lacks a right: {message}\nHINT: As a superuser, connected to database \
         \"{database}\", run: {grant}"
    )]
    Rights {
        /// What was being done.
        action: &'static str,
        /// The role of the session.
        role: String,
        /// The database of the session: rights to functions are given in each database by itself.
        database: String,
        /// What the server said.
        message: String,
        /// The statement that gives the right.
        grant: String,
    },
    /// The answer is not what this version of PostgreSQL gives.
    #[error("{action}: unexpected answer: {source}")]
    Answer {
        /// What was being done.
        action: &'static str,
        /// What was unexpected about it.
        source: RowError,
    },
    /// A version this program does not know.
    #[error("the server is PostgreSQL {version}\nDETAIL: This program works with 13 to 19.")]
    Version {
        /// What the server calls itself.
        version: String,
    },
    /// What was asked for is not possible in the state the server or its settings are in.
    #[error("{action} is not possible: {why}")]
    State {
        /// What was being done.
        action: &'static str,
        /// Why, and what to do.
        why: String,
    },
}

impl ServerError {
    /// The server's SQLSTATE, when it refused a statement.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Connection { source, .. } => source.sqlstate(),
            Self::Rights { .. } => Some(INSUFFICIENT_PRIVILEGE),
            _ => None,
        }
    }

    /// Whether another try may succeed without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Connection { source, .. } if source.is_transient())
    }
}

/// SQLSTATE of a missing right.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// Puts an error of the connection into words: a missing right becomes the statement that gives it.
pub(crate) fn explain(
    action: &'static str,
    right: Right,
    role: &str,
    database: &str,
    source: connect::Error,
) -> ServerError {
    match source.report() {
        Some(report) if report.sqlstate == INSUFFICIENT_PRIVILEGE => ServerError::Rights {
            action,
            role: role.to_owned(),
            database: database.to_owned(),
            message: report.message.clone(),
            grant: right.grant(role),
        },
        _ => ServerError::Connection { action, source },
    }
}
