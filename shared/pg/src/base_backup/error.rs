//! What can go wrong on the way from a server's stream to a cluster's files.

use crate::server::ServerError;

/// Why a base backup cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BaseBackupError {
    /// No connection, or the server refused or gave up.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The stream is not what PostgreSQL 13 to 19 sends.
    #[error("the server's base backup cannot be understood: {0}")]
    Malformed(String),
    /// The server left out what a cluster cannot do without.
    #[error(
        "the server did not send the directory {0}\nDETAIL: It is probably a symbolic link, and BASE_BACKUP follows none but \
         those of tablespaces and pg_wal."
    )]
    LeftOut(&'static str),
    /// What arrived is not what the server says it sent.
    #[error(
        "what arrived is not what the server says it sent ({0})\nDETAIL: Something between the server's disk and this program \
         changes data.\nHINT: Check the memory and the network of both machines, then run the backup again."
    )]
    Differs(String),
    /// The scratch file, or whoever takes the files, failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl BaseBackupError {
    pub(super) fn malformed(what: impl Into<String>) -> Self {
        Self::Malformed(what.into())
    }
}

/// Bytes of a name as readable text of bounded length.
pub(super) fn shown(bytes: &[u8]) -> String {
    bytes.get(..200).unwrap_or(bytes).escape_ascii().to_string()
}
