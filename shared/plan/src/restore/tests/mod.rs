//! The planner against tables written by hand and a brute-force oracle.

mod oracle;
mod tables;
