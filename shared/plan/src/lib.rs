//! What is decided: restore plans, windows and gaps, which backups stay, which WAL is needed.
//!
//! Pure: facts and the time come in, a decision, a refusal or a question comes out. Neither a store nor a runtime nor a clock is
//! among what this crate is built from, so that nothing here can wait, fail for a reason outside or answer differently twice.
//!
//! | module | owns |
//! |---|---|
//! | [`graph`] | the timelines and how they hang together |
//! | [`runs`] | sets of segments |
//! | [`succession`] | which backup came after which, when clocks were wrong |
//! | [`restore`] | restore plans, windows, gaps |
//! | [`retention`] | which backups stay, and why |
//! | [`reach`] | which segments are needed |

pub mod graph;
pub mod reach;
pub mod restore;
pub mod retention;
pub mod runs;
pub mod succession;
