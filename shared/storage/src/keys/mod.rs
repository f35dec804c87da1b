//! Key slots: the master key of an encrypted repository, wrapped, beside the data that it protects (`FORMAT.md`).
//!
//! | module | owns |
//! |---|---|
//! | [`slot`] | what a slot looks like, wrapping and unwrapping |
//! | [`source`] | the secrets that open slots, and where they come from |
//! | [`stretch`] | making a key of a passphrase |
//! | [`slots`] | the slots of a repository: listing, opening, adding, removing |
//! | [`unlock`] | the master key for whoever opens a repository, once in a process |
//!
//! What always holds: a slot is created once and never changed; data is never touched when slots come and go; the master key
//! and the secrets are in memory only, wiped when they are dropped, and in no message. A crash while a slot is made leaves it or
//! not; a slot of an `init` that did not finish names another repository and is passed over.

pub mod slot;
pub mod slots;
pub mod source;
pub mod stretch;
pub mod unlock;

pub use self::slot::{Slot, SlotKind};
pub use self::slots::{KeySlots, ListedSlot, OpenedSlot, Removal};
pub use self::source::KeySource;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
