//! Google Cloud Storage.

mod credentials;
mod open;

pub(super) use self::open::open;
