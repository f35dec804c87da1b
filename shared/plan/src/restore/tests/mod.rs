//! The planner against tables written by hand and a brute-force oracle.

mod consistency;
mod latest;
mod oracle;
mod removal;
mod tables;
