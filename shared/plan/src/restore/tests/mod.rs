//! The planner against tables written by hand and a brute-force oracle.

mod begun;
mod consistency;
mod immediate;
mod latest;
mod oracle;
mod removal;
mod streamed;
mod tables;
