//! A directory as a store: how its files are written and read, and what killed writes left in it.

mod leftovers;
mod local;
mod open;
mod settings;

pub(super) use self::local::Local;
pub use self::local::{DIRECTORY_MODE, grant};
pub(super) use self::open::open;
pub use self::settings::DirectorySettings;
