//! Fetching WAL for recovery: promise 4, behaviours F1 to F6.

mod answers;
mod archive;
mod flagged;
mod hanging;
mod load;
mod mixed;
mod origin;
mod prefetch;
mod promotion;
mod recovery;
mod standby;
mod target;
