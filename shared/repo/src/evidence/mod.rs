//! Evidence: what was done with a cluster and what was proven, as a chain of records that shows what was changed in it later.
//!
//! `clusters/<name>/evidence/<n>` is a numbered sequence of small objects, counted from 1. The content of each is JSON, and SHA-256 of
//! the content is the record's hash; each record holds the hash of the one before it. An edited, exchanged or removed record shows by
//! the next one, a cut tail by a hash and a number that were noted elsewhere ([`Head`]).
//!
//! | module | owns |
//! |---|---|
//! | [`record`] | what a record says |
//! | [`head`] | a record's hash and number, and the copy of the last one's |
//! | [`append`] | the next record |
//! | [`read`] | all records in their order, or the newest ones backward, read in parallel |
//! | [`check`] | whether the chain is what was written |
//!
//! Two writers at once make one chain: who creates the next number first has it, the other one reads that record and tries the number
//! after it. A crash leaves a record or none; between a record and the copy of its hash (`evidence/head`) it leaves an older copy,
//! from which the next writer lists.

pub mod append;
pub mod check;
pub mod head;
pub mod read;
pub mod record;
#[cfg(test)]
mod tests;

use walpoint_base::ClusterName;
use walpoint_storage::layout::ClusterPaths;
use walpoint_storage::object::{RepositoryId, Sealer};
use walpoint_storage::store::Store;

use crate::Repository;

pub use self::append::Appended;
pub use self::check::{ChainReport, Fault, FaultKind};
pub use self::head::{Head, RecordHash};
pub use self::read::ReadRecord;
pub use self::record::{Attachment, Draft, Kind, Objective, Outcome, Record};

/// The evidence of one cluster in one repository.
#[derive(Clone, Debug)]
pub struct Evidence {
    repository: RepositoryId,
    cluster: ClusterName,
    store: Store,
    sealer: Sealer,
    paths: ClusterPaths,
}

impl Evidence {
    /// Of `cluster` in `repository`.
    pub fn of(repository: &Repository, cluster: &ClusterName) -> Self {
        Self {
            repository: repository.id(),
            cluster: cluster.clone(),
            store: repository.store().clone(),
            sealer: repository.sealer().clone(),
            paths: ClusterPaths::new(cluster),
        }
    }

    /// The id of the repository.
    pub fn repository_id(&self) -> String {
        self.repository.to_string()
    }
}
