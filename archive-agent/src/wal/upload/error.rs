//! Why a file is not stored, as PostgreSQL's log says it.

use walpoint_base::Diagnostic;
use walpoint_storage::RepoError;
use walpoint_storage::error::error_chain;

use crate::wal::check::CheckError;
use crate::wal::disk::DiskError;
use crate::wal::prepare::PrepareError;
use crate::wal::target::{TargetError, WalTarget};

/// Why a file is not stored.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct UploadError {
    /// For PostgreSQL's log.
    pub(crate) text: String,
    /// Whether trying again at once is useless.
    pub(crate) permanent: bool,
}

impl UploadError {
    /// Trying again at once is useless.
    pub(in crate::wal) fn permanent(error: impl ToString) -> Self {
        Self { text: error.to_string(), permanent: true }
    }
}

impl From<CheckError> for UploadError {
    fn from(error: CheckError) -> Self {
        Self::permanent(error)
    }
}

impl From<RepoError> for UploadError {
    fn from(error: RepoError) -> Self {
        let permanent = !error.is_transient();
        Self { text: error_chain(&error), permanent }
    }
}

impl From<DiskError> for UploadError {
    fn from(error: DiskError) -> Self {
        Self { text: error.to_string(), permanent: false }
    }
}

impl From<PrepareError> for UploadError {
    fn from(error: PrepareError) -> Self {
        match error {
            PrepareError::Check(error) => error.into(),
            PrepareError::Seal(error) => error.into(),
            PrepareError::NoMemory => Self { text: error.to_string(), permanent: false },
        }
    }
}

pub(in crate::wal) fn upload_error(target: &WalTarget, error: &TargetError) -> UploadError {
    UploadError {
        permanent: !error.is_transient(),
        text: format!("repository {}: {}", target.name(), error_chain(error)),
    }
}

/// The errors of several repositories as one. What helps one may not help the other: as long as one may recover, it is
/// worth trying again.
pub(super) fn together(errors: Vec<UploadError>) -> Option<UploadError> {
    errors.into_iter().reduce(|first, next| UploadError {
        text: match first.text == next.text {
            true => first.text,
            false => Diagnostic::gather("", [first.text, next.text]).into(),
        },
        permanent: first.permanent && next.permanent,
    })
}
