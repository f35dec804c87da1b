//! Planning against repositories.

mod archived;
mod decoder;
mod distance;
mod report;
mod simulate;
