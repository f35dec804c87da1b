//! The files, directories and links of a restore: made, written to piece by piece, given to their owners, completed.
//!
//! Everything is reached from the open roots of the restore ([`beneath`](super::beneath)), never through a link. The disk begins with what was written when enough of it lies together, instead of when
//! memory is full of it or everything is waited for. A crash leaves files of any content and length: see [`copy`](super::copy).

use std::fs::{self, File};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use rustix::fs::{Advice, FileType, OFlags};
use walpoint_repo::backup::{EntryContent, FileEntry};

use super::beneath::OpenRoots;
use super::layout::{Layout, Spot};
use super::owners::{Owner, Owners};

/// A file of a window, for the workers.
#[derive(Debug)]
pub(crate) struct FileTarget {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// From where it is reached.
    roots: Arc<OpenRoots>,
    /// What it shall be.
    pub(crate) entry: Arc<FileEntry>,
    /// How many of its bytes were there before: any content.
    pub(crate) present: u64,
    /// Who gets it.
    owner: Option<Owner>,
    /// Bytes of this window that were written in pieces too small to make the disk begin with.
    scattered: AtomicU64,
    /// How long it is so far; `None` before it is created. Of files that are there, or that other windows know too, the whole
    /// length.
    length: Mutex<Option<u64>>,
}

impl FileTarget {
    /// `created`: how long it was made, if it is there already.
    pub(crate) fn new(
        path: PathBuf,
        roots: Arc<OpenRoots>,
        entry: Arc<FileEntry>,
        present: u64,
        owner: Option<Owner>,
        created: Option<u64>,
    ) -> Self {
        Self { path, roots, entry, present, owner, scattered: AtomicU64::new(0), length: Mutex::new(created) }
    }

    /// Opens it for writing; creates it if it is not there yet.
    fn open(&self) -> anyhow::Result<File> {
        let mut length = self.length.lock().unwrap_or_else(PoisonError::into_inner);
        if length.is_some() {
            return Ok(self.roots.file(&self.path, OFlags::WRONLY, 0)?);
        }
        let file = create_file(&self.roots, &self.path, &self.entry, self.owner)?;
        *length = Some(0);
        Ok(file)
    }

    /// Opens it to be read.
    pub(crate) fn read(&self) -> std::io::Result<File> {
        self.roots.read(&self.path)
    }

    /// Opens it, which is there, to be read and changed.
    pub(crate) fn change(&self) -> std::io::Result<File> {
        self.roots.file(&self.path, OFlags::RDWR, 0)
    }

    /// Remembers that it was written up to there.
    fn reaches(&self, end: u64) {
        let mut length = self.length.lock().unwrap_or_else(PoisonError::into_inner);
        *length = (*length).max(Some(end));
    }

    /// Creates it if nothing was written to it, and makes it as long as it shall be: what is zero at its end is not written.
    pub(crate) fn lengthen(&self) -> anyhow::Result<()> {
        let EntryContent::File(content) = &self.entry.content else { return Ok(()) };
        let length = *self.length.lock().unwrap_or_else(PoisonError::into_inner);
        if length.is_none_or(|length| length < content.length) {
            let file = self.open()?;
            if content.length > 0 {
                file.set_len(content.length)?;
            }
        }
        Ok(())
    }

    /// Makes the disk begin with what came from many packs, a little from each. Not in a file that was there: what is right in
    /// it would leave memory, too, and the next windows of it are still to be read.
    pub(crate) fn begin_writeback(&self, range: &Range<u64>) {
        if self.present == 0 && self.scattered.load(Ordering::Relaxed) >= WRITEBACK {
            // To be read: a file that ends in a later window may be closed to writers by now.
            if let Ok(file) = self.read() {
                begin_writeback(&file, range.start, range.end.saturating_sub(range.start));
            }
        }
    }
}

/// The file of the last piece, and what was written to it without a break.
pub(crate) struct LastFile {
    part: usize,
    file: File,
    from: u64,
    to: u64,
}

impl LastFile {
    /// Makes the disk begin with what was written, instead of when memory is full of it or everything is waited for.
    pub(crate) fn begin_writeback(&self, targets: &[Option<FileTarget>]) {
        let length = self.to - self.from;
        if length >= WRITEBACK {
            begin_writeback(&self.file, self.from, length);
        } else if let Some(target) = targets.get(self.part).and_then(Option::as_ref) {
            target.scattered.fetch_add(length, Ordering::Relaxed);
        }
    }
}

/// Advice: what the system cannot do now is done at the end.
fn begin_writeback(file: &File, from: u64, length: u64) {
    rustix::fs::fadvise(file, from, NonZeroU64::new(length), Advice::DontNeed).ok();
}

/// Less than this is left to the system, which puts small writes together.
const WRITEBACK: u64 = 512 << 10;

/// Writes a piece; keeps the file of the last piece open, because pieces of a file lie together in a pack.
pub(crate) fn write(
    targets: &[Option<FileTarget>],
    open: &mut Option<LastFile>,
    part: usize,
    offset: u64,
    bytes: &[u8],
) -> anyhow::Result<()> {
    let Some(target) = targets.get(part).and_then(Option::as_ref) else { return Ok(()) };
    let context = || format!("{} cannot be written", target.path.display());
    let file = match open {
        Some(last) if last.part == part => last,
        _ => {
            if let Some(last) = open.take() {
                last.begin_writeback(targets);
            }
            let file = target.open().with_context(context)?;
            open.insert(LastFile { part, file, from: offset, to: offset })
        }
    };
    file.file.write_all_at(bytes, offset).with_context(context)?;
    target.reaches(offset + bytes.len() as u64);
    if file.to != offset {
        file.begin_writeback(targets);
        file.from = offset;
    }
    file.to = offset + bytes.len() as u64;
    Ok(())
}

/// Makes a file that is there as long as it shall be and gives how many of its bytes were there before; what else is there
/// was found to be right. `None` if nothing is there.
pub(crate) fn keep(
    roots: &OpenRoots,
    path: &Path,
    entry: &FileEntry,
    owner: Option<Owner>,
) -> std::io::Result<Option<u64>> {
    let EntryContent::File(content) = &entry.content else {
        if roots.is_root(path) {
            return Ok(None);
        }
        // A directory is entered as it is; a link was removed unless it leads to the right place.
        return Ok((roots.kind(path)? == Some(FileType::Symlink)).then_some(0));
    };
    let file = match roots.file(path, OFlags::WRONLY, 0) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        // As a key file is that nobody may write to: it is made anew.
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            return roots.remove(path).map(|()| None);
        }
        file => file?,
    };
    let found = file.metadata()?;
    let length = found.len();
    if length != content.length {
        file.set_len(content.length)?;
    }
    // Even the mode that it has already would be written to the disk once more.
    let owned = owner.is_none_or(|owner| (found.uid(), found.gid()) == (owner.uid, owner.gid));
    if !owned || found.mode() & 0o7777 != mode(entry) | OURS {
        give(&file, entry, owner)?;
    }
    Ok(Some(length.min(content.length)))
}

pub(crate) fn create(
    roots: &OpenRoots,
    path: &Path,
    entry: &FileEntry,
    layout: &Layout,
    owner: Option<Owner>,
) -> anyhow::Result<()> {
    match &entry.content {
        EntryContent::File(content) => {
            let file = create_file(roots, path, entry, owner)?;
            if content.length > 0 {
                file.set_len(content.length)?;
            }
        }
        EntryContent::Directory | EntryContent::LinkedDirectory { .. } => match layout.spot(&entry.path) {
            Spot::Inside => make_directory(roots, path)?,
            // The directory itself was made when it was claimed.
            Spot::Elsewhere(directory) => roots.link(&directory, path)?,
        },
        EntryContent::Link { .. } if layout.is_wal(&entry.path) => {
            anyhow::bail!(
                "the backup has a link in its place, which it cannot be: the backup is not what it should be"
            )
        }
        EntryContent::Link { target } => roots.link(Path::new(std::ffi::OsStr::from_bytes(target)), path)?,
    }
    Ok(())
}

/// Creates an empty file where nothing is.
fn create_file(
    roots: &OpenRoots,
    path: &Path,
    entry: &FileEntry,
    owner: Option<Owner>,
) -> std::io::Result<File> {
    let file = roots.file(path, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, OURS)?;
    if owner.is_some() || mode(entry) | OURS != OURS {
        give(&file, entry, owner)?;
    }
    Ok(file)
}

/// Creates a directory that only we can write to until it gets its own mode; a root of the layout may be there already.
fn make_directory(roots: &OpenRoots, path: &Path) -> std::io::Result<()> {
    if roots.is_root(path) {
        return Ok(());
    }
    match roots.make_directory(path) {
        Err(e)
            if e.kind() == std::io::ErrorKind::AlreadyExists
                && roots.kind(path)? == Some(FileType::Directory) =>
        {
            Ok(())
        }
        made => made,
    }
}

/// What we need of a file until it is written.
const OURS: u32 = 0o600;

fn mode(entry: &FileEntry) -> u32 {
    u32::from(entry.attributes.mode) & 0o777
}

/// Gives a file its owner and mode. Whoever it lets in is kept out by the data directory until the end.
fn give(file: &File, entry: &FileEntry, owner: Option<Owner>) -> std::io::Result<()> {
    if let Some(owner) = owner {
        std::os::unix::fs::fchown(file, Some(owner.uid), Some(owner.gid))?;
    }
    file.set_permissions(fs::Permissions::from_mode(mode(entry) | OURS))
}

/// Takes away what a file's mode does not allow even its owner.
pub(crate) fn close_off(target: &FileTarget) -> std::io::Result<()> {
    let mode = mode(&target.entry);
    if mode & OURS == OURS {
        return Ok(());
    }
    let file = target.read()?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    // Hardly any file is like this.
    file.sync_all()
}

/// Gives a directory its owner and mode, and its link, if it has one, its owner.
pub(crate) fn finish_directory(
    roots: &OpenRoots,
    layout: &Layout,
    path: &Path,
    entry: &FileEntry,
    owners: &Owners,
    sync: bool,
) -> std::io::Result<()> {
    let attributes = &entry.attributes;
    let owner = owners.of(attributes.uid, attributes.gid);
    let spot = layout.spot(&entry.path);
    let directory = match &spot {
        Spot::Elsewhere(directory) => {
            if let Some(owner) = owner {
                roots.give_link(path, owner)?;
            }
            directory
        }
        Spot::Inside => path,
    };
    let anchor = roots.anchor(directory)?;
    anchor.give(owner, directory_mode(entry))?;
    if sync { anchor.sync() } else { Ok(()) }
}

/// The mode that a directory of the backup gets.
pub(crate) fn directory_mode(entry: &FileEntry) -> u32 {
    // PostgreSQL refuses to start in a data directory that others can write to, whatever the backup says.
    let mask = if entry.path.path.is_root() { 0o750 } else { 0o777 };
    u32::from(entry.attributes.mode) & mask | 0o700
}
