//! The planner against tables written by hand and a brute-force oracle; its driver against repositories.

mod archived;
mod decoder;
mod distance;
mod oracle;
mod report;
mod simulate;
mod tables;
mod world;
