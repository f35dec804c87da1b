//! WAL for PostgreSQL: `restore_command` and what fetches ahead of it.
//!
//! | module | owns |
//! |---|---|
//! | [`archive`], [`source`] | the repositories of a cluster as one archive; one of them |
//! | [`asking`] | asking several repositories, of which one may hang |
//! | [`flagged`] | which copy of a segment is taken that was archived although damaged |
//! | `abandoned` | histories that a standby passes over |
//! | [`absence`], [`prove`] | when a file is proven not to be in it, and reading what proves it |
//! | [`fetch`] | one file, and the exit status |
//! | [`refusal`] | what waiting does not change |
//! | [`retry_budget`] | attempts, and how long they may take |
//! | [`origin`] | what the recovery began with, without which no end is believed |
//! | [`origin_file`], [`origin_keeper`] | how that is written down; reading and noting it while WAL is fetched |
//! | [`atomic_file`] | files that appear whole |
//! | `streamed` | the open segment of a timeline that is still being streamed |
//! | [`build`], [`cut`] | a segment that a restore planned to build; a segment as its timeline left it |
//! | [`branch`], [`pass`] | how much of a parent's segment belongs to the path; which timelines' files PostgreSQL did not get |
//! | [`creates`] | tablespaces that replay of a segment creates |
//! | [`histories`] | histories that a standby keeps |
//! | `lost_history` | histories that no repository can give any more |
//! | [`parents`] | what PostgreSQL reads at a fork from `pg_wal` |
//! | [`route`] | what recovery asks for next |
//! | [`prefetch`] | fetching that ahead |
//! | [`spool`] | where it waits |
//! | [`note`] | the target that `restore` leaves there |
//! | [`served`] | from which repository recovery has its WAL |
//! | [`own`] | what `pg_wal` shows of a segment that it is about to be given |
//! | [`serve`] | the socket of `restore-fetch` |
//! | [`watchdog`] | when a prefetcher ends |
//! | [`session`] | the command `prefetch` |
//!
//! The one rule above all: PostgreSQL hears "not in the archive" only when that is proven. The only exception is the history of a
//! timeline that a person says was abandoned, for a standby that starts.

mod abandoned;
pub(crate) mod absence;
pub(crate) mod archive;
pub(crate) mod asking;
pub(crate) mod atomic_file;
pub(crate) mod branch;
pub(crate) mod build;
pub(crate) mod creates;
pub(crate) mod cut;
pub(crate) mod fetch;
pub(crate) mod flagged;
pub(crate) mod histories;
mod lost_history;
pub mod note;
pub(crate) mod origin;
mod origin_file;
mod origin_keeper;
pub(crate) mod own;
pub(crate) mod parents;
pub(crate) mod pass;
pub(crate) mod prefetch;
pub(crate) mod prove;
pub(crate) mod refusal;
pub(crate) mod retry_budget;
pub(crate) mod route;
pub(crate) mod serve;
pub(crate) mod served;
pub(crate) mod session;
pub(crate) mod source;
pub mod spool;
mod streamed;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod watchdog;
