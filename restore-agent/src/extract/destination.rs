//! Where the output goes: to standard output, or to a file or a directory that has its name only once it is complete.
//!
//! It is written under a temporary name beside the final one, synced, and renamed. A crash leaves the temporary name, which the next run
//! with the same output removes, unless a process still writes there. A file that exists is replaced only with `--force`; anything else
//! that exists never is.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use walpoint_base::durable::{self, Created, TEMPORARY_PREFIX};
use walpoint_base::user;

use super::passed_on::Shape;
use crate::restore;
use crate::server::ServerUser;

/// Where the output goes.
#[derive(Debug)]
pub(super) enum Destination {
    /// Standard output.
    Standard,
    /// A new file or directory.
    New(Pending),
}

/// A file or a directory that has not its name yet. Dropping it removes what was written.
#[derive(Debug)]
pub(super) struct Pending {
    path: PathBuf,
    temporary: PathBuf,
    shape: Shape,
    force: bool,
    /// The file, or the directory; locked for as long as this lives.
    file: File,
    is_placed: bool,
}

impl Destination {
    /// Makes the temporary file or directory: that proves that there is a place for it.
    pub(super) fn prepare(output: Option<&Path>, shape: Shape, force: bool) -> anyhow::Result<Self> {
        let Some(output) = output else { return Ok(Self::Standard) };
        Ok(Self::New(Pending::make(output, shape, force)?))
    }

    /// Where it goes, if not to standard output.
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Self::Standard => None,
            Self::New(pending) => Some(&pending.path),
        }
    }

    /// What the program that writes it gets as its standard output.
    pub(super) fn stdout(&self) -> io::Result<Stdio> {
        match self {
            Self::New(Pending { shape: Shape::File, file, .. }) => file.try_clone().map(Stdio::from),
            Self::New(_) => Ok(Stdio::null()),
            Self::Standard => Ok(Stdio::inherit()),
        }
    }

    /// The directory into which the program writes, which is given to the user who runs it; `None` if it writes to standard output.
    pub(super) fn directory(&self, user: &ServerUser) -> anyhow::Result<Option<&Path>> {
        match self {
            Self::New(Pending { shape: Shape::Directory, temporary, .. }) => {
                let given = user.give(temporary);
                given.with_context(|| format!("could not prepare \"{}\"", temporary.display()))?;
                Ok(Some(temporary))
            }
            _ => Ok(None),
        }
    }

    /// How much was written to a file so far; nothing is known of anything else.
    pub(super) fn written(&self) -> anyhow::Result<u64> {
        match self {
            Self::New(Pending { shape: Shape::File, file, .. }) => Ok(file.metadata()?.len()),
            _ => bail!("the size of the output is not known"),
        }
    }

    /// Gives it its name: what was written is complete. Its size, where it is known.
    pub(super) fn place(self) -> anyhow::Result<Option<u64>> {
        match self {
            Self::Standard => Ok(None),
            Self::New(mut pending) => {
                let size = pending
                    .place()
                    .with_context(|| format!("could not complete \"{}\"", pending.path.display()))?;
                Ok(Some(size))
            }
        }
    }
}

impl Pending {
    fn make(output: &Path, shape: Shape, force: bool) -> anyhow::Result<Self> {
        let path = restore::spelled("--output", output)?;
        if path.file_name().is_none() {
            bail!("--output {}: this names no file", output.display());
        }
        require_free(&path, shape, force)?;
        remove_left(&path);
        let temporary = durable::temporary_beside(&path);
        let context = || {
            format!(
                "could not create \"{}\": nothing was restored\nHINT: Name a file in a directory that this process's user can write to.",
                path.display()
            )
        };
        let file = match shape {
            Shape::File => durable::create_locked(&temporary),
            Shape::Directory => create_locked_directory(&temporary),
        };
        let file = file.with_context(context)?;
        Ok(Self { path, temporary, shape, force, file, is_placed: false })
    }

    fn place(&mut self) -> anyhow::Result<u64> {
        let size = match self.shape {
            Shape::File => self.file.metadata()?.len(),
            Shape::Directory => take_over(&self.temporary)?,
        };
        self.file.sync_all()?;
        if self.force {
            require_free(&self.path, self.shape, true)?;
            durable::rename(&self.temporary, &self.path)?;
        } else if rename_new(&self.temporary, &self.path)? == Created::Exists {
            bail!("a file of that name was made meanwhile");
        }
        self.is_placed = true;
        // What still wrote for a killed run when this one began has ended since, with its server.
        remove_left(&self.path);
        Ok(size)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.is_placed
            && let Err(error) = remove(&self.temporary)
        {
            tracing::warn!("could not remove \"{}\": {error}", self.temporary.display());
        }
    }
}

/// Renames what is already synced to a name that is free, durably. A name that is taken is never replaced.
fn rename_new(from: &Path, to: &Path) -> io::Result<Created> {
    let renamed = renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE);
    match renamed.map_err(io::Error::from) {
        Ok(()) => durable::sync_parent(to).map(|()| Created::New),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Created::Exists),
        // Not every filesystem can; there, what appears under the name between these two calls would be replaced.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
            match fs::symlink_metadata(to) {
                Err(missing) if missing.kind() == ErrorKind::NotFound => {
                    durable::rename(from, to).map(|()| Created::New)
                }
                Err(error) => Err(error),
                Ok(_) => Ok(Created::Exists),
            }
        }
        Err(error) => Err(error),
    }
}

/// Fails if the name is taken by what may not be replaced.
fn require_free(path: &Path, shape: Shape, force: bool) -> anyhow::Result<()> {
    let shown = path.display();
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).with_context(|| format!("could not look at \"{shown}\"")),
        Ok(meta) if force && shape == Shape::File && meta.is_file() => Ok(()),
        Ok(meta) if meta.is_file() && shape == Shape::File => bail!(
            "\"{shown}\" exists: nothing was changed\nHINT: Name another file, or replace it with --force."
        ),
        Ok(_) => bail!(
            "\"{shown}\" exists: nothing was changed\nDETAIL: Only a file is ever replaced, and only by a file.\nHINT: Choose a name \
             that does not exist yet."
        ),
    }
}

/// Removes what killed runs left of the same output.
fn remove_left(path: &Path) {
    let begin = format!("{TEMPORARY_PREFIX}{}-", path.file_name().unwrap_or_default().to_string_lossy());
    let parent = path.parent().unwrap_or(Path::new("/"));
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_left = entry.file_name().to_str().is_some_and(|name| {
            // The process and two numbers: another output's name may begin in the same way.
            let rest = name.strip_prefix(&begin).map(|rest| rest.split('-').collect::<Vec<_>>());
            let is_number = |part: &&str| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit());
            rest.is_some_and(|parts| parts.len() == 3 && parts.iter().all(is_number))
        });
        if is_left && is_abandoned(&entry.path()) {
            match remove(&entry.path()) {
                Ok(()) => {
                    tracing::info!("removed what an interrupted run left in \"{}\"", entry.path().display())
                }
                Err(error) => tracing::warn!("could not remove \"{}\": {error}", entry.path().display()),
            }
        }
    }
}

/// Whether it is this user's own and no process holds it. Where locks do not work it is not known to be abandoned.
fn is_abandoned(path: &Path) -> bool {
    let of_own = |meta: &fs::Metadata| meta.uid() == user::effective() || user::effective() == 0;
    let is_own =
        fs::symlink_metadata(path).is_ok_and(|meta| (meta.is_file() || meta.is_dir()) && of_own(&meta));
    is_own && File::open(path).is_ok_and(|file| file.try_lock().is_ok())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path)?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

fn create_locked_directory(path: &Path) -> io::Result<File> {
    DirBuilder::new().mode(0o700).create(path)?;
    let directory = File::open(path)?;
    // A filesystem without locks has none for those who tidy up either.
    directory.lock().ok();
    match directory.metadata()?.nlink() {
        0 => Err(io::Error::other("it was removed at once")),
        _ => Ok(directory),
    }
}

/// Makes a directory and the files in it this process's own, and syncs them: PostgreSQL's user wrote them. Their size.
fn take_over(directory: &Path) -> io::Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_type()?.is_file() {
            return Err(io::Error::other(format!("{:?} is no file", entry.file_name())));
        }
        let file = File::open(entry.path())?;
        take(&file)?;
        file.sync_all()?;
        size += file.metadata()?.len();
    }
    take(&File::open(directory)?)?;
    Ok(size)
}

fn take(file: &File) -> io::Result<()> {
    let (uid, gid) = (user::effective(), rustix::process::getegid().as_raw());
    match file.metadata()?.uid() == uid {
        true => Ok(()),
        false => std::os::unix::fs::fchown(file, Some(uid), Some(gid)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn written(output: &Path, force: bool, text: &str) -> anyhow::Result<Option<u64>> {
        let destination = Destination::prepare(Some(output), Shape::File, force)?;
        if let Destination::New(pending) = &destination {
            (&pending.file).write_all(text.as_bytes())?;
        }
        destination.place()
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_output_has_its_name_once_it_is_complete_and_replaces_only_what_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("rows.sql");
        assert_eq!(written(&output, false, "one").unwrap(), Some(3));
        let why = written(&output, false, "two").unwrap_err().to_string();
        assert!(why.contains("exists: nothing was changed") && why.contains("--force"), "{why}");
        assert_eq!(written(&output, true, "three").unwrap(), Some(5));
        assert_eq!(fs::read(&output).unwrap(), b"three");
        fs::create_dir(dir.path().join("directory")).unwrap();
        std::os::unix::fs::symlink(&output, dir.path().join("link")).unwrap();
        for taken in ["directory", "link"] {
            assert!(written(&dir.path().join(taken), true, "four").is_err(), "{taken}");
        }
        assert!(Destination::prepare(Some(&output), Shape::Directory, true).is_err());
        assert!(written(&dir.path().join("none/rows.sql"), false, "").is_err());
        let why = written(&dir.path().join("none/../rows.sql"), true, "").unwrap_err().to_string();
        assert!(why.starts_with("--output ") && why.contains("HINT: Give a path without"), "{why}");
        // What was not placed leaves nothing.
        drop(Destination::prepare(Some(&dir.path().join("other")), Shape::Directory, false).unwrap());
        assert_eq!(names(dir.path()), ["directory", "link", "rows.sql"]);
    }

    #[test]
    fn a_file_that_appears_meanwhile_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("rows.sql");
        let destination = Destination::prepare(Some(&output), Shape::File, false).unwrap();
        durable::create(&output, b"theirs").unwrap();
        assert!(format!("{:#}", destination.place().unwrap_err()).contains("meanwhile"));
        assert_eq!((fs::read(&output).unwrap(), names(dir.path()).len()), (b"theirs".to_vec(), 1));
    }

    #[test]
    fn only_what_a_killed_run_left_of_the_same_output_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let kept = [".walpoint-tmp-rows-1-2-3-4", ".walpoint-tmp-rows-1-2", ".walpoint-tmp-other-1-2-3"];
        for name in [&kept[..], &[".walpoint-tmp-rows-1-2-3"]].concat() {
            durable::create(&path(name), b"").unwrap();
        }
        fs::create_dir(path(".walpoint-tmp-rows-4-5-6")).unwrap();
        let held = durable::create_locked(&path(".walpoint-tmp-rows-7-8-9")).unwrap();
        drop(Destination::prepare(Some(&path("rows")), Shape::File, false).unwrap());
        let mut expected = kept.to_vec();
        expected.push(".walpoint-tmp-rows-7-8-9");
        expected.sort_unstable();
        assert_eq!(names(dir.path()), expected);
        drop(held);
    }
}
