//! What became of each replica, shared by everything that works on it, threads included.
//!
//! What always holds: a replica that has failed stays failed, for the first reason. Only when all of them have does the backup
//! end.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::anyhow;
use walpoint_base::Diagnostic;
use walpoint_words::format_chain;

/// Whether one repository still gets its copy of the backup, and why not.
#[derive(Debug)]
pub(crate) struct ReplicaOutcome {
    repository: String,
    failure: Mutex<Option<anyhow::Error>>,
}

impl ReplicaOutcome {
    /// Of a replica that is being written.
    pub(super) fn open(repository: &str) -> Arc<Self> {
        Arc::new(Self { repository: repository.to_owned(), failure: Mutex::new(None) })
    }

    /// Of one that was left out before the backup began.
    pub(super) fn left_out(repository: &str, why: &str) -> Arc<Self> {
        Arc::new(Self { repository: repository.to_owned(), failure: Mutex::new(Some(anyhow!("{why}"))) })
    }

    /// The replica has failed. Only the first reason counts.
    pub(crate) fn fail(&self, error: impl Into<anyhow::Error>) {
        let error = error.into();
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.is_none() {
            tracing::error!(
                repository = self.repository,
                "the copy of the backup in this repository failed: {}",
                format_chain(&error)
            );
            *failure = Some(error);
        }
    }

    /// Whether it has.
    pub(crate) fn has_failed(&self) -> bool {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// What failed and why, for a person.
    fn failure(&self) -> Option<String> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.as_ref().map(|why| format!("repository {}: {}", self.repository, format_chain(why)))
    }
}

/// The outcomes of all repositories that should get a copy, behind them those that were left out.
#[derive(Debug, Clone)]
pub(crate) struct Outcomes(Arc<[Arc<ReplicaOutcome>]>);

impl Outcomes {
    pub(super) fn new(outcomes: impl Iterator<Item = Arc<ReplicaOutcome>>) -> Self {
        Self(outcomes.collect())
    }

    /// Fails if every replica has.
    pub(crate) fn any_left(&self) -> anyhow::Result<()> {
        if self.0.iter().any(|outcome| !outcome.has_failed()) {
            return Ok(());
        }
        Err(Diagnostic::gather("", self.failures()).into())
    }

    /// What failed and why, for a person.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.0.iter().filter_map(|outcome| outcome.failure()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backup_ends_with_its_last_replica_and_names_the_first_reason_of_each() {
        let (one, two) = (ReplicaOutcome::open("one"), ReplicaOutcome::open("two"));
        let all =
            [Arc::clone(&one), Arc::clone(&two), ReplicaOutcome::left_out("three", "it is not mounted")];
        let outcomes = Outcomes::new(all.into_iter());
        one.fail(anyhow!("the disk is full"));
        one.fail(anyhow!("a later reason"));
        outcomes.any_left().unwrap();
        assert!(one.has_failed() && !two.has_failed());
        two.fail(anyhow!("access denied"));
        let error = outcomes.any_left().unwrap_err().to_string();
        let each = "repository one: the disk is full; repository two: access denied; repository three: it is not mounted";
        assert_eq!(error, each);
    }
}
