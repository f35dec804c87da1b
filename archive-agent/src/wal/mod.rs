//! Archiving WAL: from a file of `pg_wal` to an object in every repository, and from `archive_status` to an answer.
//!
//! | module | owns |
//! |---|---|
//! | [`order`] | the order in which PostgreSQL archives |
//! | [`read`] | reading a file of `pg_wal` as one state of it |
//! | [`check`] | whether a file is this cluster's and sound |
//! | [`prepare`] | a file read, checked and sealed from the same bytes |
//! | [`points`] | the restore points of a segment that holds masses of them |
//! | [`memory`], [`writes`] | the memory for what is sealed, and for what is being written to a repository |
//! | [`target`], [`target_error`] | one repository of a cluster, and why it stores nothing |
//! | [`opening`] | the place of the WAL in it: opened when needed, in the lineage of the data directory |
//! | [`presence`] | whether it is still the one that was opened |
//! | [`identity`] | whether an archive holds this server's WAL or another's |
//! | [`comparison`] | how a segment compares with the stored one |
//! | [`ownership`] | whose the segment is that an archive has under a name |
//! | [`damaged_copy`] | whether a damaged segment is the stored one all the same |
//! | [`contradiction`] | histories that descend from another server's timeline than the stored one |
//! | [`split_brain`] | what is said of another server's WAL, and looking for it |
//! | [`unwritten`] | whether it holds what this server has not written yet |
//! | [`history`], [`neighbors`] | what has to fit before a segment is stored |
//! | [`look_back`] | whether it continues what is stored before it |
//! | [`ancestry`] | whether WAL of earlier timelines continues what is stored |
//! | [`fork`], [`beginning`] | whether a timeline begins with what its parent's server wrote; reading what a segment begins with |
//! | [`pace`] | when to look for forks that others stored |
//! | `fixtures` | repositories with WAL for the tests of all of these, without a server |
//! | [`known`] | what this process knows of a lineage |
//! | [`control`] | who a server is and what it writes |
//! | [`lineage`] | which lineage an unbound data directory archives to |
//! | [`claim`] | what `pg_wal` remembers of each archive |
//! | [`upload`] | one file into every repository, within the limits of memory and processors; its `admission`: whether it may go there; its `contract`: what the archiver needs of it |
//! | [`stored`] | what is known to be durable |
//! | [`index`] | telling the repository's index what was stored |
//! | [`beside`] | what waits for a repository that does not have to acknowledge |
//! | [`noting`] | noting for the next daemon up to where one lacks nothing |
//! | [`follows`] | whether a segment may be stored there directly, behind the one before it |
//! | [`resting`] | which of those failed a moment ago, for the next command |
//! | [`catch_up`] | what a repository missed that does not have to acknowledge |
//! | [`unreadable`] | objects that cannot be read though their repository answers |
//! | [`unfinished`] | what could not be copied to one so far, and when that is tried again |
//! | [`blocked`] | what one lacks because a damaged object is in its place |
//! | [`queue`], [`dropped`] | how much may wait, and what was dropped beyond that |
//! | [`problems`] | what is wrong with all of that, looked for from time to time |
//! | [`reach`] | whether all that is archived can be recovered |
//! | [`bypass`] | whether finished WAL reaches the archive at all |
//! | [`backfill`] | what the primary before a promotion did not archive |
//! | [`listed`] | which of many segments an archive lists |
//! | [`archiver`] | one cluster: one upload for each file, however many ask; its `tests`: all of that without a server |
//! | [`asking`] | whether PostgreSQL asks for its WAL to be archived |
//! | [`postmaster`] | which start of PostgreSQL this is, whether it is stopping, and how long a push may take |
//! | [`ready`] | looking ahead in `archive_status` |
//! | [`stream`] | the WAL stream: what the server has flushed of the open segment |
//! | [`socket`], [`serve`] | answering `archive-push` |
//! | [`push`], [`once`] | archiving without a daemon: one file, everything that is ready |
//! | [`handed_over`] | whether a file that is pushed without a daemon may be another server's |

mod ancestry;
pub(crate) mod archiver;
pub(crate) mod asking;
pub(crate) mod backfill;
mod base;
mod beginning;
pub(crate) mod beside;
mod blocked;
pub(crate) mod bypass;
pub(crate) mod catch_up;
pub(crate) mod check;
pub(crate) mod claim;
pub(crate) mod comparison;
mod complete;
pub(crate) mod contradiction;
pub(crate) mod control;
mod damaged_copy;
pub(crate) mod disk;
pub(crate) mod dropped;
mod elsewhere;
#[cfg(test)]
pub(crate) mod fixtures;
mod follows;
mod fork;
mod handed_over;
mod history;
pub(crate) mod identity;
pub(crate) mod index;
mod known;
pub(crate) mod lineage;
mod listed;
mod look_back;
pub(crate) mod memory;
mod neighbors;
mod noting;
pub(crate) mod once;
mod opening;
pub(crate) mod order;
mod ownership;
mod pace;
mod points;
pub(crate) mod postmaster;
pub(crate) mod prepare;
mod presence;
pub(crate) mod problems;
pub(crate) mod push;
pub(crate) mod queue;
pub(crate) mod reach;
pub(crate) mod read;
pub(crate) mod ready;
mod resting;
pub(crate) mod serve;
mod shown;
pub(crate) mod socket;
pub(crate) mod split_brain;
pub(crate) mod stored;
pub(crate) mod stream;
mod switched;
pub(crate) mod target;
mod target_error;
mod unfinished;
mod unreadable;
pub(crate) mod unwritten;
pub(crate) mod upload;
mod writes;
