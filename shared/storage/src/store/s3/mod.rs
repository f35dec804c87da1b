//! S3 and the stores that speak its protocol.

mod credentials;
mod open;
mod settings;

pub(super) use self::open::{contradictions, open};
pub use self::settings::S3Settings;
