//! The directories that a restore writes to, held open: what lies below them is reached from there, never through a link.
//!
//! A restore as root writes where another user may rename and link at the same time. Whatever that user does, no file outside
//! these directories is opened, made, removed or given away: the kernel resolves every path beneath the open directory and
//! refuses links (`openat2`); where it cannot, each component is opened by itself. Owners and modes are set on what is
//! open. Nothing here outlives the process.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::directory::{self, MARKER};
use super::identity::Identity;
use super::owners::Owner;

/// A directory is opened to be entered, synced, and given away.
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The open directories, by their names.
#[derive(Debug)]
pub(crate) struct OpenRoots(Vec<(PathBuf, OwnedFd)>);

/// A directory held open, under a name that stays its own.
#[derive(Debug)]
pub(crate) struct Anchor {
    directory: File,
    path: PathBuf,
    /// What a person calls it.
    shown: PathBuf,
}

impl OpenRoots {
    /// Directories that are open already.
    pub(crate) fn of(directories: Vec<(PathBuf, OwnedFd)>) -> Self {
        Self(directories)
    }

    /// The open directory that holds a path, and the rest of the path.
    fn root<'a>(&self, path: &'a Path) -> io::Result<(BorrowedFd<'_>, &'a Path)> {
        let holding = self.0.iter().filter_map(|(root, fd)| Some((fd, path.strip_prefix(root).ok()?)));
        // They do not lie within each other.
        let (fd, rest) = holding.min_by_key(|(_, rest)| rest.as_os_str().len()).ok_or_else(outside)?;
        Ok((fd.as_fd(), rest))
    }

    /// Whether it is one of these directories itself.
    pub(crate) fn is_root(&self, path: &Path) -> bool {
        self.0.iter().any(|(root, _)| root == path)
    }

    /// Opens what lies at a path.
    pub(crate) fn file(&self, path: &Path, flags: OFlags, mode: u32) -> io::Result<File> {
        let (root, rest) = self.root(path)?;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Ok(File::from(open_beneath(root, rest, flags, Mode::from_raw_mode(mode))?))
    }

    /// Opens a file to be read.
    pub(crate) fn read(&self, path: &Path) -> io::Result<File> {
        self.file(path, OFlags::RDONLY, 0)
    }

    /// Opens a directory.
    pub(crate) fn directory(&self, path: &Path) -> io::Result<File> {
        self.file(path, DIRECTORY, 0)
    }

    /// Makes a directory that only we can write to.
    pub(crate) fn make_directory(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(rustix::fs::mkdirat(&parent, name, Mode::RWXU)?)
    }

    /// Makes a link.
    pub(crate) fn link(&self, target: &Path, path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(rustix::fs::symlinkat(target, &parent, name)?)
    }

    /// Gives a link itself away.
    pub(crate) fn give_link(&self, path: &Path, owner: Owner) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        let (uid, gid) = (rustix::fs::Uid::from_raw(owner.uid), rustix::fs::Gid::from_raw(owner.gid));
        Ok(rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Whether a link, or anything else, lies at a path; `None` if nothing does.
    pub(crate) fn kind(&self, path: &Path) -> io::Result<Option<FileType>> {
        let (parent, name) = match self.parent(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            parent => parent?,
        };
        match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            stat => Ok(Some(FileType::from_raw_mode(stat?.st_mode))),
        }
    }

    /// Removes a file, a link, or a directory with all that is in it.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        remove_at(parent.as_fd(), name)
    }

    /// Holds a directory under a name of its own: what lies directly in it can be reached by that, whatever becomes of the
    /// path. Only root needs that.
    pub(crate) fn anchor(&self, path: &Path) -> io::Result<Anchor> {
        Ok(Anchor::of(self.directory(path)?, path))
    }

    /// The directory in which a path lies, and the name there.
    fn parent<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let (root, rest) = self.root(path)?;
        let name = rest.file_name().ok_or_else(outside)?;
        let parent = rest.parent().unwrap_or(Path::new(""));
        Ok((open_beneath(root, parent, DIRECTORY, Mode::empty())?, name))
    }
}

impl Anchor {
    /// Opens a directory. Links on the way to it are followed: what is open has to be judged.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self::of(File::from(rustix::fs::open(path, flags, Mode::empty())?), path))
    }

    /// Of a directory that is open already.
    pub(crate) fn of(directory: File, path: &Path) -> Self {
        let shown = path.to_owned();
        let path = match rustix::process::geteuid().is_root() {
            true => PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())),
            false => path.to_owned(),
        };
        Self { directory, path, shown }
    }

    /// The open directory.
    pub(crate) fn directory(&self) -> &File {
        &self.directory
    }

    /// The open directory, without the name.
    pub(crate) fn into_directory(self) -> File {
        self.directory
    }

    /// Which directory is open, whatever its name leads to by now.
    pub(crate) fn identity(&self) -> io::Result<Identity> {
        self.directory.metadata().map(|meta| Identity::from(&meta))
    }

    /// The names in the directory.
    pub(crate) fn names(&self) -> io::Result<Vec<OsString>> {
        // The entries have an offset of their own.
        let listing = rustix::fs::openat(&self.directory, ".", DIRECTORY, Mode::empty())?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&listing)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Removes all that is in the directory but some names. Links are removed, not followed.
    pub(crate) fn clear(&self, but: &[&str]) -> io::Result<()> {
        for name in self.names()? {
            if !but.iter().any(|kept| name == *kept) {
                remove_at(self.directory.as_fd(), &name)?;
            }
        }
        self.directory.sync_all()
    }

    /// What a person calls it.
    pub(crate) fn shown(&self) -> &Path {
        &self.shown
    }

    /// Its name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// An error about what lies in it, with the name that a person knows.
    pub(crate) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let (text, own) = (walpoint_words::format_chain(&error), self.path.to_string_lossy());
        // A longer number is another directory's.
        let is_own = |rest: &&str| !rest.starts_with(|next: char| next.is_ascii_digit());
        let mut parts = text.split(&*own);
        let mut explained = parts.next().unwrap_or_default().to_owned();
        let mut changed = false;
        for rest in parts {
            let known = is_own(&rest);
            changed |= known;
            explained += &if known { self.shown.to_string_lossy() } else { own.clone() };
            explained += rest;
        }
        if changed && self.path != self.shown { anyhow::Error::msg(explained) } else { error }
    }

    /// Gives the directory an owner and a mode.
    pub(crate) fn give(&self, owner: Option<Owner>, mode: u32) -> io::Result<()> {
        if let Some(owner) = owner {
            fchown(&self.directory, Some(owner.uid), Some(owner.gid))?;
        }
        Ok(rustix::fs::fchmod(&self.directory, Mode::from_raw_mode(mode))?)
    }

    /// Makes what was given, and the names in it, durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.directory.sync_all()
    }

    /// Refuses, as root, a directory that is not the one that was looked at: it holds something that counts, and belongs neither to the
    /// user who will get it nor, with the marker of an interrupted restore, to root.
    pub(crate) fn require_ours(&self, owner: Option<Owner>) -> io::Result<()> {
        let Some(owner) = owner else { return Ok(()) };
        if self.directory.metadata()?.uid() == owner.uid {
            return Ok(());
        }
        let mut something = false;
        for name in self.names()? {
            if name == MARKER {
                let stat = rustix::fs::statat(&self.directory, MARKER, AtFlags::SYMLINK_NOFOLLOW)?;
                let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                if regular && stat.st_uid == 0 {
                    return Ok(());
                }
            } else {
                something |= directory::counts(&name);
            }
        }
        if something {
            return Err(io::Error::other(format!(
                "the directory became another one that is not empty and does not belong to uid {}: nothing was written to it",
                owner.uid
            )));
        }
        Ok(())
    }
}

fn outside() -> io::Error {
    io::Error::other("internal error: it lies in none of the directories that the restore writes to")
}

/// Opens what lies beneath a directory, following no link.
fn open_beneath(root: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, path, flags, mode, resolve) {
        // Linux before 5.6, and containers whose filter knows only older calls.
        Err(Errno::NOSYS | Errno::PERM) => Ok(open_each(root, path, flags, mode)?),
        opened => Ok(opened?),
    }
}

/// The same, one component after the other.
fn open_each(root: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let names: Vec<&OsStr> = path
        .components()
        .map(|component| match component {
            Component::Normal(name) => Ok(name),
            Component::CurDir => Ok(OsStr::new(".")),
            _ => Err(Errno::XDEV),
        })
        .collect::<Result<_, _>>()?;
    let Some((last, between)) = names.split_last() else { return Err(Errno::NOENT) };
    let mut at: Option<OwnedFd> = None;
    for name in between {
        let directory = at.as_ref().map_or(root, AsFd::as_fd);
        at = Some(rustix::fs::openat(directory, *name, DIRECTORY, Mode::empty())?);
    }
    let directory = at.as_ref().map_or(root, AsFd::as_fd);
    rustix::fs::openat(directory, *last, flags | OFlags::NOFOLLOW, mode)
}

/// Removes what a directory has under a name.
fn remove_at(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let refused = match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        // Some filesystems say the second of a directory, and all of them of what is immutable.
        Err(refused @ (Errno::ISDIR | Errno::PERM)) => refused,
        removed => return Ok(removed?),
    };
    let directory = match rustix::fs::openat(parent, name, DIRECTORY, Mode::empty()) {
        Err(Errno::NOTDIR | Errno::LOOP) => return Err(refused.into()),
        directory => directory?,
    };
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            remove_at(directory.as_fd(), name)?;
        }
    }
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_is_reached_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("root/inner")).unwrap();
        fs::create_dir_all(path("outside")).unwrap();
        walpoint_base::durable::create(&path("outside/file"), b"kept").unwrap();
        symlink(path("outside"), path("root/link")).unwrap();
        symlink(path("outside/file"), path("root/inner/file")).unwrap();
        let root = rustix::fs::open(path("root"), DIRECTORY, Mode::empty()).unwrap();
        let roots = OpenRoots::of(vec![(path("root"), root)]);
        let write = OFlags::WRONLY | OFlags::CREATE;
        for name in
            ["root/link/file", "root/link/new", "root/inner/file", "root/../outside/file", "elsewhere"]
        {
            assert!(roots.file(&path(name), write, 0o600).is_err(), "{name}");
            assert!(roots.anchor(&path(name)).is_err(), "{name}");
        }
        assert!(roots.make_directory(&path("root/link/new")).is_err());
        assert!(roots.link(Path::new("x"), &path("root/link/new")).is_err());
        assert!(roots.remove(&path("root/link/file")).is_err());
        roots.file(&path("root/inner/own"), write, 0o600).unwrap();
        assert_eq!(roots.kind(&path("root/link")).unwrap(), Some(FileType::Symlink));
        assert_eq!(roots.kind(&path("root/nothing/new")).unwrap(), None);
        for name in ["root/inner", "root/link"] {
            roots.remove(&path(name)).unwrap();
            assert!(!path(name).exists(), "{name}");
        }
        assert_eq!(fs::read(path("outside/file")).unwrap(), b"kept");
    }

    #[test]
    fn a_file_that_may_not_be_removed_is_not_called_no_directory() {
        // Nothing can be removed there.
        let own = File::open("/proc/self").unwrap();
        let error = remove_at(own.as_fd(), OsStr::new("comm")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
    }

    #[test]
    fn what_a_restore_left_that_was_killed_before_its_first_marker_is_no_other_directory() {
        let dir = tempfile::tempdir().unwrap();
        let anchor = Anchor::open(dir.path()).unwrap();
        let another = Some(Owner { uid: fs::metadata(dir.path()).unwrap().uid() + 1, gid: 0 });
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        let half_made = walpoint_base::durable::temporary_beside(&dir.path().join(MARKER));
        drop(walpoint_base::durable::create_locked(&half_made).unwrap());
        anchor.require_ours(another).unwrap();
        assert_eq!(directory::example(&anchor).unwrap(), None, "both judge alike");
        walpoint_base::durable::create(&dir.path().join("PG_VERSION"), b"17\n").unwrap();
        anchor.require_ours(another).unwrap_err();
    }

    #[test]
    fn errors_name_what_a_person_knows() {
        let dir = tempfile::tempdir().unwrap();
        let directory = File::open(dir.path()).unwrap();
        let anchor = Anchor { directory, path: "/proc/self/fd/1".into(), shown: "/data".into() };
        let explain = |text: &str| format!("{:#}", anchor.explain(anyhow::Error::msg(text.to_owned())));
        assert_eq!(explain("/proc/self/fd/1/x and /proc/self/fd/12/x"), "/data/x and /proc/self/fd/12/x");
        assert_eq!(explain("could not write /proc/self/fd/1: full"), "could not write /data: full");
        assert_eq!(explain("another"), "another");
    }

    #[test]
    fn an_old_kernel_follows_no_link_either() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("inner/deep")).unwrap();
        symlink(path("inner"), path("link")).unwrap();
        let root = rustix::fs::open(dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let open = |name: &str| open_each(root.as_fd(), Path::new(name), DIRECTORY, Mode::empty());
        assert!(open("inner/deep").is_ok() && open(".").is_ok());
        for name in ["link/deep", "link", "inner/../inner", ".."] {
            assert!(open(name).is_err(), "{name}");
        }
    }
}
