//! Azure Blob Storage.

mod credentials;
mod open;
mod settings;

pub(super) use self::open::open;
pub use self::settings::AzureSettings;
