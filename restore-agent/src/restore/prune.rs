//! Removing what a backup does not have, before a data directory is repaired.
//!
//! The directory and the file table are walked side by side in the same order, so memory does not grow with either. A file
//! stays if the backup has one at its path; what is in it is compared later. Links are never followed. The directories that
//! the layout has outside PGDATA, which were found to be this cluster's, are walked whatever the link in the data directory
//! is: a file that stayed there because of a link's spelling would be taken for the cluster's own. In a tablespace everything
//! but the versions' directories that the backup has is left alone, because another cluster may have its own there. What goes is
//! gone for good when the directory it was in has been synced, which happens to all of them at the end of the restore.

use std::cmp::Ordering;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use walpoint_repo::backup::{BackupReader, Entries, EntryContent, FileEntry, RelativePath, Root, TablePath};

use super::beneath::OpenRoots;
use super::copy;
use super::directory::{self, MARKER};
use super::identity;
use super::layout::{Layout, Spot};

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    /// Files, links and directories, each directory counted once with all that was in it.
    pub(crate) entries: u64,
    /// Directories outside to which links of tablespaces led that the backup does not have; they are left as they are.
    pub(crate) unlinked: Vec<PathBuf>,
}

/// Removes from the data directory, and from what belongs to it outside, all that the backup does not have.
pub(crate) async fn prune(
    reader: &BackupReader,
    layout: &Layout,
    roots: &OpenRoots,
) -> anyhow::Result<Removed> {
    let mut table = Table { entries: reader.entries(), next: None, ended: false };
    let mut removed = Removed::default();
    let mut walk = vec![children(&RelativePath::default(), layout.pgdata(), layout)?];
    while let Some(names) = walk.last_mut() {
        let Some(path) = names.pop() else {
            walk.pop();
            continue;
        };
        let table_path = TablePath { root: Root::Data, path: path.clone() };
        let place = layout.path(&table_path);
        let meta = fs::symlink_metadata(&place).ok();
        let entry = table.at(&path).await?;
        let Some(meta) = meta else {
            // An interrupted run took the link away: its directory is walked all the same.
            if let (Some(_), Spot::Elsewhere(directory)) = (entry, layout.spot(&table_path)) {
                walk.push(children(&path, &directory, layout)?);
            }
            continue;
        };
        match entry {
            _ if is_ours(&path, layout) => {}
            None if lies_in_tablespace(&path, layout) => {}
            Some(entry) if stays(entry, &place, &meta, layout) => {
                if entry.content.is_directory() {
                    let spot = layout.spot(&table_path);
                    let directory = if let Spot::Elsewhere(directory) = &spot { directory } else { &place };
                    walk.push(children(&path, directory, layout)?);
                }
            }
            entry => {
                let is_directory = entry.is_some_and(|entry| entry.content.is_directory());
                if meta.is_symlink() && split(&path).0 == b"pg_tblspc" {
                    removed.unlinked.extend(abandoned(&place, layout));
                }
                remove(roots, &place)?;
                removed.entries += 1;
                // Its link will be made; what lies there already is this cluster's, and perhaps not the backup's.
                if let Spot::Elsewhere(directory) = layout.spot(&table_path)
                    && is_directory
                {
                    walk.push(children(&path, &directory, layout)?);
                }
            }
        }
    }
    Ok(removed)
}

/// The file table of the data directory, read in its order.
struct Table {
    entries: Entries,
    next: Option<FileEntry>,
    ended: bool,
}

impl Table {
    /// The entry at a path; paths are asked for in ascending order.
    async fn at(&mut self, path: &RelativePath) -> anyhow::Result<Option<&FileEntry>> {
        loop {
            if self.next.is_none() && !self.ended {
                self.next = self.entries.next().await?.filter(|entry| entry.path.root == Root::Data);
                self.ended = self.next.is_none();
            }
            match self.next.as_ref().map(|entry| entry.path.path.cmp(path)) {
                Some(Ordering::Less) => self.next = None,
                Some(Ordering::Equal) => return Ok(self.next.as_ref()),
                Some(Ordering::Greater) | None => return Ok(None),
            }
        }
    }
}

/// Whether what lies there can be turned into the entry in its place.
fn stays(entry: &FileEntry, place: &Path, meta: &Metadata, layout: &Layout) -> bool {
    if copy::is_left_out(&entry.path, layout) {
        return false;
    }
    let leads_to = |target: &Path| fs::read_link(place).is_ok_and(|found| found == target);
    match &entry.content {
        // Under a second name the file is somebody's copy, and not to be written to.
        EntryContent::File(_) => meta.is_file() && meta.nlink() == 1,
        EntryContent::Directory | EntryContent::LinkedDirectory { .. } => match layout.spot(&entry.path) {
            Spot::Inside => meta.is_dir(),
            Spot::Elsewhere(directory) => meta.is_symlink() && identity::same(place, &directory),
        },
        EntryContent::Link { target } => leads_to(Path::new(OsStr::from_bytes(target))),
    }
}

/// The path of the directory in which something lies, and its name there.
fn split(path: &RelativePath) -> (&[u8], &[u8]) {
    let bytes = path.as_bytes();
    match bytes.iter().rposition(|b| *b == b'/') {
        Some(slash) => (bytes.get(..slash).unwrap_or_default(), bytes.get(slash + 1..).unwrap_or_default()),
        None => (&[], bytes),
    }
}

fn is_elsewhere(directory: &[u8], layout: &Layout) -> bool {
    TablePath::data(directory).is_ok_and(|path| matches!(layout.spot(&path), Spot::Elsewhere(_)))
}

/// Whether it is the marker of this restore, or what a filesystem has in its own root.
fn is_ours(path: &RelativePath, layout: &Layout) -> bool {
    let (parent, name) = split(path);
    let root = parent.is_empty() || parent == b"pg_wal" || is_elsewhere(parent, layout);
    root && (name == MARKER.as_bytes() || name == b"lost+found")
}

/// Whether it lies directly in a tablespace outside the data directory, beside what this cluster has there.
fn lies_in_tablespace(path: &RelativePath, layout: &Layout) -> bool {
    let (parent, _) = split(path);
    parent.starts_with(b"pg_tblspc/") && is_elsewhere(parent, layout)
}

/// The directory to which the link of a tablespace leads, unless the restore uses it too.
fn abandoned(link: &Path, layout: &Layout) -> Option<PathBuf> {
    let target = directory::resolve(&fs::read_link(link).ok()?).ok()?;
    let used = layout.others().iter().any(|other| identity::same(other, &target));
    (!used && target.exists()).then_some(target)
}

/// The paths of what lies in a directory, and of the links that the layout has there, last one first.
fn children(path: &RelativePath, directory: &Path, layout: &Layout) -> anyhow::Result<Vec<RelativePath>> {
    let context = || format!("{} cannot be read", directory.display());
    let mut names = Vec::new();
    match fs::read_dir(directory) {
        // A link that leads nowhere: its directory will be made.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        entries => {
            for entry in entries.with_context(context)? {
                names.push(entry.with_context(context)?.file_name());
            }
        }
    }
    names.extend(layout.links_in(path));
    let join = |name: OsString| path.join(&name.into_vec());
    let mut paths = names.into_iter().map(join).collect::<Result<Vec<_>, _>>().with_context(context)?;
    paths.sort_unstable_by(|a, b| b.cmp(a));
    paths.dedup();
    Ok(paths)
}

fn remove(roots: &OpenRoots, place: &Path) -> anyhow::Result<()> {
    roots
        .remove(place)
        .with_context(|| format!("{} does not belong to the backup and cannot be removed", place.display()))
}
