//! What a configuration says about a directory.

use std::path::PathBuf;

/// Where the directory is. There is nothing else to set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirectorySettings {
    /// Absolute.
    pub path: PathBuf,
}
