//! Where the files of a backup come from.
//!
//! | module | owns |
//! |---|---|
//! | [`local`] | the data directory: walked over, read in parallel, verified |
//! | [`remote`] | the server, which sends the cluster (`BASE_BACKUP`) |
//! | [`pages`] | verifying page checksums while the pages pass |
//! | [`owners`] | whose files they are |

pub(crate) mod local;
pub(crate) mod owners;
pub(crate) mod pages;
pub(crate) mod remote;
