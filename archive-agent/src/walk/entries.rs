//! One walk, entry by entry: what is part of a backup, what is left out, which links are followed and which are kept as links.
//!
//! A directory is visited before what is in it. One of a tablespace that is reached in two ways is visited once. What vanishes
//! between two looks is left out.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, bail};
use walpoint_pg::control::CONTROL_FILE;
use walpoint_pg::files::{self, Action, Unlogged};
use walpoint_repo::backup::TablePath;

use super::directory::{OpenDirectory, SeenEntry, present};
use super::{BackupRoots, Entered, FoundFile, FoundKind, SpacesThere};

/// Deeper nesting can only be links that lead in a circle.
const MAX_DEPTH: usize = 100;

pub(super) struct Walk<'a> {
    pub(super) roots: &'a BackupRoots,
    pub(super) visit: &'a mut dyn FnMut(FoundFile) -> anyhow::Result<()>,
    pub(super) spaces: SpacesThere,
    pub(super) entered: Entered,
}

impl Walk<'_> {
    pub(super) fn visit(
        &mut self,
        path: &TablePath,
        place: &Path,
        kind: FoundKind,
        seen: &SeenEntry,
    ) -> anyhow::Result<()> {
        let attributes = seen.attributes;
        (self.visit)(FoundFile { path: path.clone(), place: place.to_owned(), kind, attributes })
    }

    pub(super) fn data_directory(
        &mut self,
        path: &TablePath,
        place: &Path,
        depth: usize,
    ) -> anyhow::Result<()> {
        if depth > MAX_DEPTH {
            bail!("{} is nested too deep\nHINT: Check whether links lead in a circle.", place.display());
        }
        let Some(directory) = OpenDirectory::open(place)? else { return Ok(()) };
        self.entered.note(path.path.as_path(), &directory);
        let mut unlogged = Unlogged::default();
        if files::is_relation_directory(path.path.as_path()) {
            directory.names().for_each(|name| unlogged.note(name));
        }
        directory.each(place, |name, seen| {
            self.data_entry(&child(path, name)?, &place.join(name), seen, &unlogged, depth)
        })
    }

    fn data_entry(
        &mut self,
        path: &TablePath,
        place: &Path,
        seen: &SeenEntry,
        unlogged: &Unlogged,
        depth: usize,
    ) -> anyhow::Result<()> {
        if self.of_another_version(path.path.as_path()) {
            return Ok(());
        }
        if seen.is_directory() {
            self.directory(path, place, seen, depth)
        } else if seen.is_link() {
            self.data_link(path, place, seen, depth)
        } else if seen.is_file()
            && path.path.as_path() != Path::new(CONTROL_FILE)
            && files::file(path.path.as_path(), unlogged) == Action::Keep
        {
            self.visit(path, place, FoundKind::File(seen.occupied), seen)
        } else {
            Ok(())
        }
    }

    fn directory(
        &mut self,
        path: &TablePath,
        place: &Path,
        seen: &SeenEntry,
        depth: usize,
    ) -> anyhow::Result<()> {
        let relative = path.path.as_path();
        if self.spaces.directories.contains(&seen.identity) {
            return Ok(());
        }
        match files::directory(relative) {
            Action::LeaveOut => Ok(()),
            Action::KeepEmpty => self.visit(path, place, FoundKind::Directory, seen),
            Action::Keep => {
                self.visit(path, place, FoundKind::Directory, seen)?;
                self.data_directory(path, place, depth + 1)
            }
        }
    }

    /// Whether this lies in a tablespace and beside the directory of this version: another version's, or of none.
    fn of_another_version(&self, relative: &Path) -> bool {
        let in_space = relative.starts_with("pg_tblspc") && relative.components().count() == 3;
        in_space && relative.file_name() != Some(self.roots.version_directory.as_ref())
    }

    /// A link in the data directory.
    fn data_link(
        &mut self,
        path: &TablePath,
        place: &Path,
        seen: &SeenEntry,
        depth: usize,
    ) -> anyhow::Result<()> {
        let relative = path.path.as_path();
        let is_space = relative.parent() == Some(Path::new("pg_tblspc"));
        if is_space && relative.file_name().is_none_or(|name| !self.spaces.links.contains(name)) {
            // Created since. Replay creates it once more, and cannot where it is filled already.
            return Ok(());
        }
        let Some(target) = present(fs::read_link(place), place)? else { return Ok(()) };
        let target = target.as_os_str().as_bytes().to_vec();
        let action = files::directory(relative);
        let behind = match fs::metadata(place) {
            Err(error) if rustix::io::Errno::from_io_error(&error) == Some(rustix::io::Errno::LOOP) => {
                return Err(error).with_context(|| {
                    format!("{}\nHINT: Check whether links lead in a circle.", place.display())
                });
            }
            behind => behind.ok().map(|meta| SeenEntry::from(&meta)).filter(SeenEntry::is_directory),
        };
        if behind.is_none() && relative.starts_with("pg_tblspc") {
            // A tablespace that was dropped just now, or left behind by one.
            return Ok(());
        }
        let Some(behind) = behind.filter(|_| action != Action::LeaveOut && is_the_servers(relative)) else {
            return match action {
                Action::LeaveOut => Ok(()),
                _ => self.visit(path, place, FoundKind::Link(target), seen),
            };
        };
        if action == Action::KeepEmpty && relative != Path::new("pg_wal") {
            // As BASE_BACKUP does: what is empty needs no place elsewhere.
            return self.visit(path, place, FoundKind::Directory, &behind);
        }
        if is_space {
            self.entered.note_link(relative);
        }
        self.visit(path, place, FoundKind::LinkedDirectory(target), &behind)?;
        if action == Action::Keep { self.data_directory(path, place, depth + 1) } else { Ok(()) }
    }

    /// A file or directory outside the data directory, with everything in it.
    pub(super) fn extra(
        &mut self,
        path: &TablePath,
        place: &Path,
        seen: &SeenEntry,
        depth: usize,
    ) -> anyhow::Result<()> {
        if seen.is_file() {
            return self.visit(path, place, FoundKind::File(seen.occupied), seen);
        }
        if seen.is_link() {
            let Some(target) = present(fs::read_link(place), place)? else { return Ok(()) };
            let target = target.as_os_str().as_bytes().to_vec();
            return self.visit(path, place, FoundKind::Link(target), seen);
        }
        if !seen.is_directory() || depth > MAX_DEPTH {
            return Ok(());
        }
        self.visit(path, place, FoundKind::Directory, seen)?;
        let Some(directory) = OpenDirectory::open(place)? else { return Ok(()) };
        directory
            .each(place, |name, seen| self.extra(&child(path, name)?, &place.join(name), seen, depth + 1))
    }
}

/// Whether PostgreSQL itself keeps something at this path that a cluster cannot do without; a `log` that is a link
/// somewhere is none of that.
fn is_the_servers(relative: &Path) -> bool {
    let first = relative.components().next().map(|first| first.as_os_str().as_bytes().to_vec());
    first.is_some_and(|first| {
        first == b"base" || first == b"global" || (first.starts_with(b"pg_") && first != b"pg_log")
    })
}

fn child(path: &TablePath, name: &OsStr) -> anyhow::Result<TablePath> {
    let joined = path.path.join(name.as_bytes());
    Ok(TablePath { root: path.root, path: joined.context("a file has a name that cannot be backed up")? })
}
