//! Why a file is not stored, as PostgreSQL's log says it.

use walpoint_storage::RepoError;
use walpoint_storage::error::error_chain;

use crate::wal::check::CheckError;
use crate::wal::disk::DiskError;
use crate::wal::prepare::PrepareError;
use crate::wal::target::{Target, TargetError};

/// Why a file is not stored.
#[derive(Debug)]
pub(crate) struct Trouble {
    /// For PostgreSQL's log.
    pub(crate) text: String,
    /// Whether trying again at once is useless.
    pub(crate) lasting: bool,
}

impl Trouble {
    /// Trying again at once is useless.
    pub(in crate::wal) fn lasting(error: impl ToString) -> Self {
        Self { text: error.to_string(), lasting: true }
    }
}

impl From<CheckError> for Trouble {
    fn from(error: CheckError) -> Self {
        Self::lasting(error)
    }
}

impl From<RepoError> for Trouble {
    fn from(error: RepoError) -> Self {
        let lasting = !error.is_transient();
        Self { text: error_chain(&error), lasting }
    }
}

impl From<DiskError> for Trouble {
    fn from(error: DiskError) -> Self {
        Self { text: error.to_string(), lasting: false }
    }
}

impl From<PrepareError> for Trouble {
    fn from(error: PrepareError) -> Self {
        match error {
            PrepareError::Check(error) => error.into(),
            PrepareError::Seal(error) => error.into(),
            PrepareError::NoRoom => Self { text: error.to_string(), lasting: false },
        }
    }
}

pub(super) fn trouble(target: &Target, error: &TargetError) -> Trouble {
    Trouble {
        lasting: !error.is_transient(),
        text: format!("repository {}: {}", target.name(), error_chain(error)),
    }
}

/// The troubles of several repositories as one. What helps one may not help the other: as long as one may recover, it is
/// worth trying again.
pub(super) fn together(troubles: Vec<Trouble>) -> Option<Trouble> {
    troubles.into_iter().reduce(|first, next| Trouble {
        text: if first.text == next.text { first.text } else { format!("{}; {}", first.text, next.text) },
        lasting: first.lasting && next.lasting,
    })
}
