//! What can go wrong between this program and a server.

use std::fmt;
use std::io;
use std::time::Duration;

use walpoint_base::Diagnostic;

use super::report::ServerReport;
use super::settings::SettingsError;

/// Why there is no connection, or no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings cannot be used; nothing was tried.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// None of the servers gave a usable session.
    #[error("no connection to PostgreSQL: {attempts}")]
    Connect {
        /// What was tried, in order.
        attempts: ConnectAttempts,
    },
    /// The server refused a statement.
    #[error("PostgreSQL at {host}: {report}")]
    Server {
        /// The server.
        host: String,
        /// What it said.
        report: Box<ServerReport>,
    },
    /// The connection is gone: the server ended or the network failed. The statement may or may not have been executed.
    #[error("the connection to PostgreSQL at {host} is lost: {source}")]
    Lost {
        /// The server.
        host: String,
        /// How it was noticed.
        source: io::Error,
    },
    /// No answer in time. The statement is cancelled before the connection is used again.
    #[error("PostgreSQL at {host} did not answer within {after:?}")]
    Timeout {
        /// The server.
        host: String,
        /// How long was waited.
        after: Duration,
    },
    /// The server sent something that is not PostgreSQL's protocol, or not what this statement answers.
    #[error("PostgreSQL at {host} sent an unexpected answer: {what}")]
    Unexpected {
        /// The server.
        host: String,
        /// What was wrong with it.
        what: String,
    },
}

impl Error {
    /// What the server said, when this is its refusal of a statement or of the last connection tried.
    pub fn report(&self) -> Option<&ServerReport> {
        match self {
            Self::Server { report, .. } => Some(report),
            Self::Connect { attempts } => match &attempts.0.last()?.failure {
                ConnectFailure::Server(report) => Some(report),
                _ => None,
            },
            _ => None,
        }
    }

    /// The server's SQLSTATE.
    pub fn sqlstate(&self) -> Option<&str> {
        self.report().map(|report| report.sqlstate.as_str())
    }

    /// Whether another try may succeed without anybody doing anything: the server is down, starting, or out of reach.
    pub fn is_transient(&self) -> bool {
        let passing = |report: &ServerReport| {
            let class = report.sqlstate.get(..2).unwrap_or_default();
            matches!(class, "08" | "53" | "57" | "58") && report.sqlstate != "57014"
        };
        match self {
            Self::Lost { .. } | Self::Timeout { .. } => true,
            Self::Server { report, .. } => passing(report),
            Self::Connect { attempts } => attempts.0.iter().any(|attempt| match &attempt.failure {
                ConnectFailure::Resolve(_)
                | ConnectFailure::Network(_)
                | ConnectFailure::Timeout(_)
                | ConnectFailure::Target(_) => true,
                ConnectFailure::Server(report) => passing(report),
                ConnectFailure::Tls(_) | ConnectFailure::Authentication(_) | ConnectFailure::Protocol(_) => {
                    false
                }
            }),
            Self::Settings(_) | Self::Unexpected { .. } => false,
        }
    }
}

/// The tries of one [`Error::Connect`], never empty.
#[derive(Debug)]
pub struct ConnectAttempts(pub Vec<ConnectAttempt>);

impl fmt::Display for ConnectAttempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tried = self.0.iter().map(|attempt| format!("{}: {}", attempt.host, attempt.failure));
        write!(f, "{}", Diagnostic::gather("", tried))
    }
}

/// One try at one server.
#[derive(Debug)]
pub struct ConnectAttempt {
    /// The server, with the address that was tried if its name has one.
    pub host: String,
    /// Why it gave no session.
    pub failure: ConnectFailure,
}

/// Why a try at a server failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectFailure {
    /// The name has no address.
    #[error("the host name cannot be resolved: {0}")]
    Resolve(io::Error),
    /// Nothing listens, or the connection broke.
    #[error("{}", network(.0))]
    Network(io::Error),
    /// Too slow.
    #[error("no connection within {0:?} (connect_timeout)")]
    Timeout(Duration),
    /// No TLS though it is asked for, or a certificate that is not trusted.
    #[error("{0}")]
    Tls(String),
    /// The server asks for something that cannot or may not be given.
    #[error("{0}")]
    Authentication(String),
    /// The server refused.
    #[error("{0}")]
    Server(Box<ServerReport>),
    /// Not PostgreSQL.
    #[error("not the answer of a PostgreSQL server: {0}")]
    Protocol(String),
    /// A session, but not of the kind that `target_session_attrs` asks for.
    #[error("{0}")]
    Target(String),
}

impl ConnectFailure {
    /// Whether libpq goes on to the next server of the list after this.
    pub(super) fn next_host_may_do(&self) -> bool {
        match self {
            Self::Resolve(_) | Self::Network(_) | Self::Timeout(_) | Self::Target(_) => true,
            Self::Server(report) => report.sqlstate == "57P03",
            Self::Tls(_) | Self::Authentication(_) | Self::Protocol(_) => false,
        }
    }
}

fn network(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            format!("there is no such socket: {error}\nHINT: Check that the server is running there.")
        }
        io::ErrorKind::ConnectionRefused => {
            format!("{error}\nHINT: Check that the server is running there and listening.")
        }
        _ => error.to_string(),
    }
}
