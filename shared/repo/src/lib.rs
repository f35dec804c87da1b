//! Walpoint's repository: what its objects mean, and the catalog over them. What is decided by it is in
//! `walpoint-plan`.
//!
//! | module | owns |
//! |---|---|
//! | [`repository`], [`lineage`], [`init`] | an open repository and how it is made |
//! | [`wal`] | the WAL of a lineage |
//! | [`index`] | what the headers of a million segments say, in a few objects |
//! | [`agreement`] | whether two repositories hold one server's WAL |
//! | [`catalog`] | what a cluster has: timelines, WAL, backups, restore points |
//! | [`planning`] | restore planning against a repository |
//! | [`scan`] | all WAL between two moments, in order |
//! | [`mod@expire`] | deleting what neither retention nor anything under way needs |
//! | [`mod@forget`] | deleting everything of a cluster |
//! | [`mod@verify`] | proving that what is kept is what was written |
//! | [`reach`] | which objects somebody may still need |
//! | [`holds`] | who forbade to delete what |
//! | [`evidence`] | what was done and proven, as a chain of records |
//! | `whole` | whether an object is what was written |
//! | [`cpu`] | where heavy computing runs |

mod acknowledging;
pub mod agreement;
pub mod backup;
pub mod catalog;
pub mod cpu;
pub mod evidence;
pub mod expire;
pub mod forget;
pub mod holds;
pub mod index;
pub mod init;
pub mod lease;
pub mod lineage;
#[cfg(test)]
mod model;
pub mod planning;
pub mod reach;
pub mod repository;
pub mod scan;
pub mod verify;
pub mod wal;
mod whole;
#[cfg(test)]
mod worlds;

pub use acknowledging::{Acknowledging, is_among, names_all, oldest_first};
pub use lineage::Lineage;
pub use repository::Repository;
