//! Planning against repositories.

mod archived;
mod damaged;
mod decoder;
mod distance;
mod report;
mod simulate;
