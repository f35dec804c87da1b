//! Files that survive a power cut, and that nobody ever sees half-written.
//!
//! A new file is written under a temporary name in the target's directory, synced, given its name, and the directory is
//! synced: after a crash the name is either absent or leads to the whole content. A crash in between leaves a file
//! whose name starts with [`TEMPORARY_PREFIX`]; whoever owns the directory removes those ([`remove_abandoned`]).
#![allow(clippy::disallowed_methods, reason = "this is where renaming is made durable")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// How the names of unfinished files begin.
pub const TEMPORARY_PREFIX: &str = ".walpoint-tmp-";

/// What [`create`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Created {
    /// The name was free and now leads to the new content.
    New,
    /// The name was taken; nothing was changed.
    Exists,
}

/// Creates `path` with `content` and mode 0600, all or nothing, and never replaces a file.
pub fn create(path: &Path, content: &[u8]) -> io::Result<Created> {
    let (temporary, _) = write_temporary(path, content, 0o600)?;
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    match linked {
        Ok(()) => sync_parent(path).map(|()| Created::New),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Created::Exists),
        Err(error) => Err(error),
    }
}

/// Gives `path` the `content` and, whatever the umask is, the mode, replacing what was there: afterwards it is the old file or the new
/// one.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let (temporary, _) = write_temporary(path, content, mode)?;
    put_in_place(&temporary, path)
}

/// [`replace`], for a file that belongs to the owner of its directory also where root writes it.
pub fn replace_for_owner(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let (temporary, file) = write_temporary(path, content, mode)?;
    crate::owned::give(&file, parent(path)).inspect_err(|_| {
        // The error of giving it away is the one to report.
        fs::remove_file(&temporary).ok();
    })?;
    put_in_place(&temporary, path)
}

fn put_in_place(temporary: &Path, path: &Path) -> io::Result<()> {
    fs::rename(temporary, path).inspect_err(|_| {
        // The rename's own error is the one to report.
        fs::remove_file(temporary).ok();
    })?;
    sync_parent(path)
}

/// Renames a file that is already synced, replacing `to`, and syncs the directories of both names.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    if from.parent() != to.parent() {
        sync_parent(from)?;
    }
    sync_parent(to)
}

/// Renames without syncing: for files whose reader does that itself, such as PostgreSQL with a restored segment.
pub fn hand_over(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)
}

/// Removes a file, durably. One that is not there is no error.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes the names in a directory durable.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Creates a directory and its missing parents with mode 0700, and makes their names durable.
pub fn create_directories(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        create_directories(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !path.is_dir() => Err(error),
        _ => sync_parent(path),
    }
}

/// Creates a directory and its missing parents with mode 0755 whatever the umask is: for programs and pages that every user may use
/// and only the owner may replace.
pub fn create_public_directories(path: &Path) -> io::Result<()> {
    const MODE: u32 = 0o755;
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        create_public_directories(parent)?;
    }
    match fs::DirBuilder::new().mode(MODE).create(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(MODE))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(error),
    }
    sync_parent(path)
}

/// Makes the name of `path` durable.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    sync_directory(parent(path))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A name beside `path` that no other process or thread uses at the same time.
pub fn temporary_beside(path: &Path) -> PathBuf {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |t| t.subsec_nanos());
    parent(path).join(format!("{TEMPORARY_PREFIX}{name}-{}-{nanos}-{n}", std::process::id()))
}

/// Creates a temporary file for writing and locks it for as long as it is open: [`remove_abandoned`] leaves it alone.
pub fn create_locked(temporary: &Path) -> io::Result<File> {
    create_locked_with(temporary, 0o600)
}

fn create_locked_with(temporary: &Path, mode: u32) -> io::Result<File> {
    loop {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(temporary)?;
        // A filesystem without locks has none for those who tidy up either: they leave everything.
        file.lock().ok();
        // Tidied away between the two calls: no name leads to it any more.
        if file.metadata()?.nlink() > 0 {
            return Ok(file);
        }
    }
}

/// Removes what killed processes left in a directory: temporary files that nobody holds open. How many.
pub fn remove_abandoned(directory: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let ours = entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX);
        if !ours || !entry.file_type()?.is_file() {
            continue;
        }
        let Ok(file) = File::open(entry.path()) else { continue };
        if file.try_lock().is_ok() && fs::remove_file(entry.path()).is_ok() {
            removed += 1;
        }
    }
    Ok(removed)
}

fn write_temporary(path: &Path, content: &[u8], mode: u32) -> io::Result<(PathBuf, File)> {
    let temporary = temporary_beside(path);
    let mut file = create_locked_with(&temporary, mode)?;
    // Whatever it lacks, the umask took. A filesystem without modes has none to give.
    file.set_permissions(fs::Permissions::from_mode(mode)).ok();
    let written = file.write_all(content).and_then(|()| file.sync_all());
    written.inspect_err(|_| {
        // The write's own error is the one to report.
        fs::remove_file(&temporary).ok();
    })?;
    Ok((temporary, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_created_file_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(create(&path, b"first").unwrap(), Created::New);
        assert_eq!(create(&path, b"second").unwrap(), Created::Exists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        replace(&path, b"third", 0o640).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"third");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn only_abandoned_temporary_files_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let open = temporary_beside(&dir.path().join("open"));
        let held = create_locked(&open).unwrap();
        let abandoned = temporary_beside(&dir.path().join("abandoned"));
        drop(create_locked(&abandoned).unwrap());
        fs::write(dir.path().join("other"), "").unwrap();
        assert_eq!(remove_abandoned(dir.path()).unwrap(), 1);
        assert!(open.exists() && !abandoned.exists() && dir.path().join("other").exists());
        drop(held);
        assert_eq!(remove_abandoned(dir.path()).unwrap(), 1);
    }

    #[test]
    fn directories_and_removal() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        create_directories(&deep).unwrap();
        create_directories(&deep).unwrap();
        let path = deep.join("x");
        create(&path, b"").unwrap();
        rename(&path, &dir.path().join("y")).unwrap();
        remove(&path).unwrap();
        remove(&dir.path().join("y")).unwrap();
        assert!(create(&dir.path().join("missing/z"), b"").is_err());
    }
}
