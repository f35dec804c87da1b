//! The planner against tables written by hand and a brute-force oracle.

pub(crate) mod oracle;
pub(crate) mod tables;
pub(crate) mod world;
