//! S3 and the stores that speak its protocol.

mod credentials;
mod open;

pub(super) use self::open::open;
