//! Where a repository's objects are, what they look like and what they are called. What they mean is above, in
//! `walpoint-repo`.
//!
//! | module | owns |
//! |---|---|
//! | [`error`] | what can go wrong, split by what a caller does about it |
//! | [`ids`] | what tells repositories and contents apart |
//! | [`layout`] | the names of objects |
//! | [`object`] | what an object looks like: frames, checks, encryption (`FORMAT.md`) |
//! | [`document`] | the few objects that are JSON |
//! | [`store`] | where objects are: a directory, S3, Google Cloud Storage, Azure Blob |
//! | [`descriptor`] | what a repository is |
//! | [`keys`] | key slots: what opens an encrypted repository |

pub mod descriptor;
pub mod document;
pub mod error;
pub mod ids;
pub mod keys;
pub mod layout;
pub mod object;
pub mod store;

pub use error::{RepoError, Result, found};
