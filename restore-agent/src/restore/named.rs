//! Directories outside PGDATA that the command line names.
//!
//! All others come from the links of a data directory, or from the backup: for root these are another user's word.

use std::path::{Path, PathBuf};

use super::{RestoreArgs, decided, reach};

/// What the command line names.
#[derive(Debug, Default)]
pub(crate) struct Named {
    /// These, and the places of tablespaces directly in the last one.
    directories: Vec<PathBuf>,
    spaces: Option<PathBuf>,
    /// Whether the way to the data directory is root's own, as the command line gives it.
    pub(crate) pgdata: bool,
}

impl Named {
    /// Takes them from the options. What goes beside the data directory is named with it.
    pub(crate) fn by(args: &RestoreArgs, pgdata: &Path) -> Self {
        let plain = |path: &PathBuf| std::path::absolute(path).is_ok_and(|path| reach::is_plain(&path));
        let mut directories: Vec<PathBuf> =
            args.tablespaces.iter().map(|m| m.new_place().to_owned()).collect();
        directories.extend([&args.wal_dir, &args.extra_dir].into_iter().flatten().cloned());
        let mut directories: Vec<PathBuf> = directories.iter().filter(|d| plain(d)).map(absolute).collect();
        directories.push(decided::default_extra(pgdata));
        let spaces = args.tablespace_dir.as_ref().filter(|d| plain(d)).map(absolute);
        Self { directories, spaces, pgdata: plain(&args.pgdata) }
    }

    /// Whether it is one of them.
    pub(crate) fn has(&self, directory: &Path) -> bool {
        let in_spaces = directory.parent().is_some_and(|parent| self.spaces.as_deref() == Some(parent));
        in_spaces || self.directories.iter().any(|named| named == directory)
    }
}

/// As the layout has it.
pub(crate) fn absolute(path: &PathBuf) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.clone())
}
