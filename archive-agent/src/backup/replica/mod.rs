//! The copies of one backup, one in each repository.

pub(crate) mod streams;
