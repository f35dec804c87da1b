//! Refusals that waiting does not change: another server's WAL, a repository that was made anew, a plan that the archive has outgrown.
//!
//! Archive recovery is stopped at once by them; whatever else is uncertain is tried again first. An answer that would end recovery
//! is never made of either.

use walpoint_base::TimelineId;

use crate::wal::archive::FetchResult;
use crate::wal::source::Failed;

/// An error that a later attempt meets again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct LastingError(pub(crate) String);

/// What ends a refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Remedy {
    /// The cause is fixed, and PostgreSQL started again.
    Fix,
    /// Another restore: the plan is outdated.
    Restore,
    /// Another restore, which follows a younger timeline.
    RestoreAlong,
    /// The same, or one that stays on this timeline.
    RestoreAlongOrStay(TimelineId),
    /// Another restore, to the end of what there is of a segment or to a moment before it.
    RestorePart,
}

impl Remedy {
    /// What to do, where another start of the server is not enough.
    pub(crate) fn restore_again(self) -> Option<String> {
        match self {
            Self::Fix => None,
            Self::Restore => Some("Restore again.".to_owned()),
            Self::RestoreAlong => Some("Restore again to recover along it.".to_owned()),
            Self::RestoreAlongOrStay(timeline) => Some(format!(
                "Restore again to recover along it, or with --target-timeline {timeline} to do without it."
            )),
            Self::RestorePart => Some(
                "Restore again: with --use-partial to recover to the end of what there is, or with a target before it."
                    .to_owned(),
            ),
        }
    }
}

/// Why something is not proven.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Unproven {
    /// It may be found out later.
    Uncertain(String),
    /// It will not.
    Refused(String, Remedy),
}

impl Unproven {
    /// Because of what failed: a later attempt may go well unless every failure is a refusal.
    pub(crate) fn by(failures: &[Failed], why: String) -> Self {
        match !failures.is_empty() && failures.iter().all(|failed| failed.refused) {
            true => Self::Refused(why, Remedy::Fix),
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
            Unproven::Refused(why, remedy) => Self::Refused(why, remedy),
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
        assert_eq!(by(&[failed(true), failed(true)]), Unproven::Refused("why".into(), Remedy::Fix));
        assert_eq!(by(&[failed(true), failed(false)]), Unproven::Uncertain("why".into()));
        assert_eq!(by(&[]), Unproven::Uncertain("why".into()));
    }
}
