//! Invented clusters, for tests.
#![allow(clippy::unwrap_used, missing_docs, reason = "for tests, which fail loudly; the names say it")]

pub mod forked;
pub mod random;
pub mod world;
