//! The replicas of one backup: one reading of the cluster, a copy in each repository.
//!
//! | module | owns |
//! |---|---|
//! | [`begin`] | the intent of each, and what it builds on |
//! | [`streams`] | one thread's way into all of them |
//! | [`outcome`] | which of them have failed, and why |
//!
//! What always holds: a replica is begun, drafted and published in this order, and one that has failed at a step takes no
//! further one; the others continue. A crash leaves an intent in each repository that was begun, and a manifest in those that
//! were published.

mod begin;
mod outcome;
mod streams;

use std::sync::Arc;

use futures_util::future::join_all;
use walpoint_base::BackupId;
use walpoint_repo::backup::{BackupDescription, BackupWriter, Draft};
use walpoint_storage::error::error_chain;

use self::outcome::{Outcomes, ReplicaOutcome};
use self::streams::Stream;
pub(crate) use self::streams::{ReplicaFiles, Streams};
use crate::check::repository::Destination;

/// The copy of the backup in one repository.
#[derive(Debug)]
pub(crate) struct Replica<S> {
    /// The repository.
    pub(crate) destination: Destination,
    /// The unfinished backups that it resumes.
    pub(crate) resumed: Vec<BackupId>,
    outcome: Arc<ReplicaOutcome>,
    /// How far it is; `None` once it has failed.
    stage: Option<S>,
}

impl<S> Replica<S> {
    /// How far it is; `None` if it has failed.
    pub(crate) fn stage(&self) -> Option<&S> {
        self.stage.as_ref().filter(|_| !self.outcome.has_failed())
    }
}

/// All copies of the backup, at the same stage. Those that have failed are among them.
#[derive(Debug)]
pub(crate) struct Replicas<S> {
    all: Vec<Replica<S>>,
    outcomes: Outcomes,
}

impl<S> Replicas<S> {
    /// All of them, failed ones included.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Replica<S>> {
        self.all.iter()
    }

    /// What those that have not failed are.
    pub(crate) fn stages(&self) -> impl Iterator<Item = &S> {
        self.all.iter().filter_map(Replica::stage)
    }

    /// How many there are, failed ones included.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// What failed and why, for a person; repositories that were left out before the backup began are named, too.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.outcomes.failures()
    }

    /// Takes those that have not failed one step further, all at once. One whose step fails has failed; an error says that
    /// none is left.
    pub(crate) async fn advance<T>(
        self,
        step: impl AsyncFn(&Destination, S) -> anyhow::Result<T>,
    ) -> anyhow::Result<Replicas<T>> {
        let step = &step;
        let advanced = self.all.into_iter().map(|replica| async move {
            let Replica { destination, resumed, outcome, stage } = replica;
            let stage = match stage.filter(|_| !outcome.has_failed()) {
                Some(stage) => step(&destination, stage).await.map_err(|error| outcome.fail(error)).ok(),
                None => None,
            };
            Replica { destination, resumed, outcome, stage }
        });
        let all = join_all(advanced).await;
        self.outcomes.any_left()?;
        Ok(Replicas { all, outcomes: self.outcomes })
    }
}

impl Replicas<BackupWriter> {
    /// One more thread's way into all of them.
    pub(crate) fn streams(&self) -> Streams {
        let streams = self.all.iter().filter_map(|replica| {
            Some(Stream { packs: replica.stage()?.stream(), outcome: Arc::clone(&replica.outcome) })
        });
        Streams::new(streams, &self.outcomes)
    }

    /// Notes what is stored by now, where that is due; with `last` everything, as the backup ends early. Nothing depends on it
    /// but how much the next backup stores again.
    pub(crate) async fn note_progress(&self, last: bool) {
        for writer in self.stages().filter(|writer| last || writer.progress_is_due()) {
            let noted = if last { writer.progress().await } else { writer.note_progress().await };
            if let Err(error) = noted {
                tracing::warn!("could not record what the backup has stored so far: {}", error_chain(&error));
            }
        }
    }

    /// Everything was copied: ends the writing of each.
    pub(crate) async fn finish(self, facts: &BackupDescription) -> anyhow::Result<Replicas<Draft>> {
        self.advance(async |destination, writer| {
            let facts = BackupDescription { lineage: destination.lineage.id, ..facts.clone() };
            Ok(writer.finish(facts).await?)
        })
        .await
    }
}
