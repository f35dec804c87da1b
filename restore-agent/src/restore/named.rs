//! Directories outside PGDATA that the command line names.
//!
//! All others come from the links of a data directory, or from the backup: for root these are another user's word.

use std::path::{Path, PathBuf};

use super::directory::{self, DirectoryError};
use super::tablespaces::Mapping;
use super::{RestoreArgs, decided, reach};

const TABLESPACE_DIR: &str = "--tablespace-dir";
const WAL_DIR: &str = "--wal-dir";
const EXTRA_DIR: &str = "--extra-dir";

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
        // Of the way that the command line gives: without its links it would be anybody's own.
        let plain = |path: &Path| std::path::absolute(path).is_ok_and(|path| reach::is_plain(&path));
        let named = |option, path: &Option<PathBuf>| {
            let path = path.as_deref().filter(|path| plain(path))?;
            directory::spelled(option, path).ok()
        };
        let spaces = args.tablespaces.iter().map(Mapping::new_place).filter(|path| plain(path));
        let mut directories: Vec<PathBuf> = spaces.map(Path::to_owned).collect();
        directories.extend(named(WAL_DIR, &args.wal_dir));
        directories.extend(named(EXTRA_DIR, &args.extra_dir));
        directories.push(decided::default_extra(pgdata));
        Self { directories, spaces: named(TABLESPACE_DIR, &args.tablespace_dir), pgdata: plain(&args.pgdata) }
    }

    /// Whether it is one of them.
    pub(crate) fn has(&self, directory: &Path) -> bool {
        let in_spaces = directory.parent().is_some_and(|parent| self.spaces.as_deref() == Some(parent));
        in_spaces || self.directories.iter().any(|named| named == directory)
    }
}

/// The options that name directories outside PGDATA, with their paths as the layout has them. Links in these are seen through when they
/// are opened.
#[derive(Debug)]
pub(crate) struct OutsideOptions {
    pub(crate) tablespaces: Option<PathBuf>,
    pub(crate) wal: Option<PathBuf>,
    pub(crate) extra: Option<PathBuf>,
}

impl OutsideOptions {
    /// Takes them from the options; refuses a path that leads nowhere. `--tablespace` takes none with `..`.
    pub(crate) fn of(args: &RestoreArgs) -> Result<Self, DirectoryError> {
        let spelled = |option, path: &Option<PathBuf>| {
            path.as_deref().map(|path| directory::spelled(option, path)).transpose()
        };
        Ok(Self {
            tablespaces: spelled(TABLESPACE_DIR, &args.tablespace_dir)?,
            wal: spelled(WAL_DIR, &args.wal_dir)?,
            extra: spelled(EXTRA_DIR, &args.extra_dir)?,
        })
    }
}
