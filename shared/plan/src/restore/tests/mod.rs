//! The planner against tables written by hand and a brute-force oracle.

mod latest;
mod oracle;
mod tables;
