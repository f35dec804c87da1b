//! A directory as a store: how its files are written and read, to whom they belong, how many threads its calls may take, and what
//! killed writes left in it.

mod clock;
mod leftovers;
mod local;
mod mounts;
mod open;
mod owner;
mod reach;
mod settings;
mod share;

pub(super) use self::local::Local;
pub use self::local::{DIRECTORY_MODE, grant};
pub(super) use self::open::open;
pub use self::owner::Owner;
pub use self::reach::Unusable;
pub use self::settings::DirectorySettings;
