//! Connections to PostgreSQL 13 to 19, for SQL and for replication commands.
//!
//! | module | owns |
//! |---|---|
//! | `settings` | connection strings and URIs, `PG*` variables, service and password files |
//! | `open` | which host, address and kind of encryption to try next |
//! | `tls` | the six `sslmode`s, certificates, channel binding |
//! | `auth` | the exchange of passwords |
//! | `connection` | a session: statements, notices, cancellation |
//! | `pieces` | an answer piece by piece, for what streams; replies to it |
//! | `wire`, `socket` | messages in both directions over TCP, Unix sockets and TLS |
//!
//! What a user of libpq has configured works the same here, or is refused by name.

mod auth;
mod cancel;
mod connection;
mod error;
mod open;
mod pieces;
mod report;
mod rows;
mod settings;
mod socket;
mod tls;
mod wire;

pub use self::cancel::Cancel;
pub use self::connection::Connection;
pub use self::error::{ConnectAttempt, ConnectAttempts, ConnectFailure, Error};
pub use self::pieces::{AnswerPiece, AnswerPieces};
pub use self::report::ServerReport;
pub use self::rows::{FromText, Row, RowError, Rows};
pub use self::settings::{
    ChannelBinding, ConnInfo, Environment, Host, Replication, ServerAddress, SessionTarget, SettingsError,
    SslMode,
};
