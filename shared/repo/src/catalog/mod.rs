//! What a cluster has in a repository: lineages with their timelines and WAL, and backups.
//!
//! Reads only, and only what is asked for: [`Catalog::load`] takes a handful of listings, the WAL of a timeline and the
//! manifest of a backup are read when a planner asks for them. Nothing is kept between two loads, so an answer is as
//! fresh as the catalog.
//!
//! | module | owns |
//! |---|---|
//! | `search` | answers about the content of WAL: index first, then decoding |
//! | `inventory` | the WAL of a timeline: index and tail |
//! | `outline` | what listings show before anything is read |
//! | `lineage` | one lineage, as far as it was asked about |
//! | `histories` | how its timelines hang together |
//! | `answer` | the answers to a planner's questions about it |
//! | `standing` | what a backup is to a planner |
//! | `abandoned` | timelines that a person says were abandoned, and when each was written to last |
//! | `beside` | timelines that are written at the same time |
//! | `ahead` | reading at the same time what a planner will most likely ask for |
//! | `confirm` | whether the store itself has what the index names |
//! | `latest` | the latest commit time in what a new backup holds |
//! | `lacking` | what a backup lacks of the WAL that makes it consistent |
//! | `chain` | whether the segments of a path continue each other |
//! | `joined` | the WAL of several repositories together |
//! | `points` | the named restore points that recovery can stop at |
//! | [`status`] | all of it as data |

mod abandoned;
mod ahead;
mod answer;
mod beside;
mod chain;
mod confirm;
mod end;
mod found_damaged;
mod histories;
mod inventory;
mod joined;
mod lacking;
mod latest;
mod lineage;
mod outline;
mod points;
mod search;
mod standing;
pub mod status;

use jiff::Timestamp;
use walpoint_base::ClusterName;
use walpoint_plan::graph::TimelineGraph;
use walpoint_plan::succession::settle;

pub use abandoned::LastUse;
pub use beside::{Newer, TimelineUses};
pub use chain::BrokenChain;
pub use end::Unreached;
pub use histories::{newer_than, stored_histories};
pub use inventory::{Expected, TimelineWal};
pub use lacking::Lacking;
pub(crate) use lacking::wal_of;
pub use latest::latest_commit_before;
pub use lineage::LineageCatalog;
pub use points::{Newest, RestorePointStatus};
pub use search::OpenSegment;
pub(crate) use search::readable;

use crate::Repository;
use crate::backup::ListedBackup;
use crate::lineage::DamagedLineage;

/// Lineages that are read at the same time.
const AT_ONCE: usize = 8;

/// A cluster in a repository.
#[derive(Debug)]
pub struct Catalog {
    repository: Repository,
    cluster: ClusterName,
    backups: Vec<ListedBackup>,
    lineages: Vec<LineageCatalog>,
    damaged: Vec<DamagedLineage>,
    loaded: Timestamp,
}

impl Catalog {
    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Every backup listed, finished or not, of all lineages, oldest first.
    pub fn backups(&self) -> &[ListedBackup] {
        &self.backups
    }

    /// The lineages whose facts cannot be read: nothing else is known of them.
    pub fn damaged_lineages(&self) -> &[DamagedLineage] {
        &self.damaged
    }

    /// The lineages that can be read, oldest first.
    pub fn lineages(&self) -> &[LineageCatalog] {
        &self.lineages
    }

    /// The lineages, to ask them.
    pub fn lineages_mut(&mut self) -> &mut [LineageCatalog] {
        &mut self.lineages
    }

    /// When it was loaded, by this machine's clock.
    pub fn loaded(&self) -> Timestamp {
        self.loaded
    }
}

/// Sorts backups of one lineage, oldest first, by their positions where clocks contradict them.
fn by_position(graph: &TimelineGraph, backups: &mut [ListedBackup], now: Timestamp) {
    let mut graph = graph.clone();
    backups.iter().for_each(|listed| graph.add_known(listed.id.timeline()));
    let mut times = backups.iter().filter_map(|listed| Some((listed.id, listed.id.started()?))).collect();
    settle(&graph, &mut times, now);
    backups.sort_by_key(|listed| (times.get(&listed.id).copied(), listed.id.start(), listed.id));
}
