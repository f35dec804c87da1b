//! Google Cloud Storage.

mod credentials;
mod open;
mod settings;

pub(super) use self::open::{contradictions, open};
pub use self::settings::GoogleSettings;
