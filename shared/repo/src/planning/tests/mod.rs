//! Planning against repositories.

mod archived;
mod damaged;
mod decoder;
mod distance;
mod removal;
mod report;
mod simulate;
mod split_off;
mod streamed;
