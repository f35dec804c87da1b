//! The planner against tables written by hand and a brute-force oracle.

mod consistency;
mod immediate;
mod latest;
mod oracle;
mod removal;
mod tables;
