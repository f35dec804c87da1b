//! Refusals that waiting does not change: another server's WAL, a repository that was made anew, a plan that the archive has outgrown.
//!
//! Archive recovery is stopped at once by them; whatever else is uncertain is tried again first. An answer that would end recovery
//! is never made of either.

use crate::wal::archive::FetchResult;
use crate::wal::source::Failed;

/// An error that a later attempt meets again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct LastingError(pub(crate) String);

/// Why something is not proven.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Unproven {
    /// It may be found out later.
    Uncertain(String),
    /// It will not.
    Refused(String),
}

impl Unproven {
    /// Because of what failed: a later attempt may go well unless every failure is a refusal.
    pub(crate) fn by(failures: &[Failed], why: String) -> Self {
        match !failures.is_empty() && failures.iter().all(|failed| failed.refused) {
            true => Self::Refused(why),
            false => Self::Uncertain(why),
        }
    }
}

impl From<String> for Unproven {
    fn from(why: String) -> Self {
        Self::Uncertain(why)
    }
}

impl From<Unproven> for FetchResult {
    fn from(unproven: Unproven) -> Self {
        match unproven {
            Unproven::Uncertain(why) => Self::Uncertain(why),
            Unproven::Refused(why) => Self::Refused(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_may_answer_later_is_waited_for() {
        let failed = |refused| Failed { repository: "a".into(), why: "x".into(), refused };
        let by = |failures: &[Failed]| Unproven::by(failures, "why".into());
        assert_eq!(by(&[failed(true), failed(true)]), Unproven::Refused("why".into()));
        assert_eq!(by(&[failed(true), failed(false)]), Unproven::Uncertain("why".into()));
        assert_eq!(by(&[]), Unproven::Uncertain("why".into()));
    }
}
