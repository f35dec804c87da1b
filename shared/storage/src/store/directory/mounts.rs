//! On which mount a directory lies. Tests mount nothing: they say so here.

use std::path::Path;

pub(super) use walpoint_base::mounts::leads_to;

/// The number of the mount on which a path lies; `None` where it is not known.
pub(super) fn of(path: &Path) -> Option<u64> {
    #[cfg(test)]
    if let Some(number) = testing::number(path) {
        return Some(number);
    }
    walpoint_base::mounts::of(path)
}

/// Mounts that are none.
#[cfg(test)]
pub(super) mod testing {
    use std::collections::HashMap;
    use std::path::{Path, PathBuf};
    use std::sync::{LazyLock, Mutex};

    static MOUNTED: LazyLock<Mutex<HashMap<PathBuf, u64>>> = LazyLock::new(Mutex::default);

    /// From now on a path lies on the mount of that number.
    pub(in super::super) fn mount(path: &Path, number: u64) {
        MOUNTED.lock().unwrap().insert(path.to_owned(), number);
    }

    pub(super) fn number(path: &Path) -> Option<u64> {
        MOUNTED.lock().unwrap().get(path).copied()
    }
}
