//! Reaching, as root, what another user may have named.
//!
//! The links of a data directory, and the records and markers in it, are its owner's to write. Root does for that user only
//! what he could do by himself: it fills directories that are his, and makes some where he could make them. What the
//! command line names is the administrator's own choice, unless the way there runs through a link that somebody other than
//! root made, or could have put there. Every check is made on what is open, and what is open is what is used.
//!
//! For any other user nothing is checked here: the kernel does.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use walpoint_base::durable;

use super::directory;
use super::owners::Owner;

/// Opens a directory itself, to be synced and to reach what lies in it.
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens whatever it is, without reading it.
const ANYTHING: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// So many links are followed, as by the kernel.
const LINKS: u32 = 40;

/// How far a path leads.
#[derive(Debug)]
struct Walked {
    /// The last thing on it that exists.
    at: File,
    /// Whether a link of another user is part of the way.
    diverted: bool,
    /// What does not exist, outermost first.
    missing: Vec<OsString>,
}

/// Whether the way that a path takes is root's own, as far as it exists: no other user made a link on it, or could have
/// put one there.
pub(crate) fn is_plain(path: &Path) -> bool {
    walk(path).is_ok_and(|walked| !walked.diverted)
}

/// Refuses a directory that root must not fill for a user, or make for him. `named`: the command line names it.
pub(crate) fn check(path: &Path, named: bool, user: Option<Owner>) -> Result<(), String> {
    let Some(user) = user else { return Ok(()) };
    let walked = walk(path).map_err(|error| format!("{}: {error}", path.display()))?;
    walked.may_be_filled(named, user).map_err(|why| refusal(path, &why))
}

/// Opens a directory that is to be filled for a user, and makes it and its parents, with mode 0700 and for that user, if
/// they are missing. `ours`: what else is accepted besides the user's own directory.
pub(crate) fn make(
    path: &Path,
    named: bool,
    user: Option<Owner>,
    ours: impl Fn(&File) -> bool,
) -> io::Result<OwnedFd> {
    let Some(user) = user else {
        // A link to a directory that was moved aside leads to where it has to be made again.
        durable::create_directories(&directory::resolve(path).map_err(io::Error::other)?)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        return Ok(rustix::fs::open(path, flags, Mode::empty())?);
    };
    let walked = walk(path)?;
    let mut at = File::from(rustix::fs::openat(&walked.at, ".", DIRECTORY, Mode::empty())?);
    if !(walked.missing.is_empty() && ours(&at)) {
        walked.may_be_filled(named, user).map_err(|why| io::Error::other(refusal(path, &why)))?;
    }
    for name in &walked.missing {
        // Under its name it is that user's: root's would be refused by the next run if this one is killed in between.
        let mut temporary = OsString::from(durable::TEMPORARY_PREFIX);
        temporary.push(name);
        match rustix::fs::unlinkat(&at, &temporary, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT) => {}
            removed => removed?,
        }
        rustix::fs::mkdirat(&at, &temporary, Mode::RWXU)?;
        let made = File::from(rustix::fs::openat(&at, &temporary, DIRECTORY, Mode::empty())?);
        if made.metadata()?.uid() != 0 {
            return Err(io::Error::other(format!("another user replaced {}", path.display())));
        }
        fchown(&made, Some(user.uid), Some(user.gid))?;
        made.sync_all()?;
        rename_new(&at, &temporary, name)?;
        at.sync_all()?;
        at = made;
    }
    Ok(at.into())
}

/// Opens the directory in which a path lies, to rename there for a user. `trusted`: the path is root's own word; else it
/// has to be a directory in which that user could rename by himself.
pub(crate) fn parent(path: &Path, trusted: bool, user: Option<Owner>) -> io::Result<(OwnedFd, &OsStr)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let Some(user) = user else {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        return Ok((rustix::fs::open(parent, flags, Mode::empty())?, name));
    };
    let walked = walk(parent)?;
    if !walked.missing.is_empty() {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    let uid = walked.at.metadata()?.uid();
    if uid != user.uid && (!trusted || walked.diverted) {
        return Err(io::Error::other(format!(
            "{} belongs to uid {uid}, and uid {}, who may have named it, could not rename anything there",
            parent.display(),
            user.uid
        )));
    }
    Ok((rustix::fs::openat(&walked.at, ".", DIRECTORY, Mode::empty())?, name))
}

/// Renames within one directory, as [`parent`] allows, durably.
pub(crate) fn rename(from: &Path, to: &Path, trusted: bool, user: Option<Owner>) -> io::Result<()> {
    if user.is_none() {
        return durable::rename(from, to);
    }
    let (parent, name) = parent(from, trusted, user)?;
    let Some(new) = to.file_name().filter(|_| from.parent() == to.parent()) else {
        return Err(io::Error::other("the two names do not lie in one directory"));
    };
    rename_new(&parent, name, new)?;
    Ok(rustix::fs::fsync(&parent)?)
}

/// Renames in a directory to a name that is free. What its owner put there meanwhile is never replaced, not even an empty directory.
fn rename_new(directory: impl AsFd, from: &OsStr, to: &OsStr) -> io::Result<()> {
    let renamed = rustix::fs::renameat_with(&directory, from, &directory, to, RenameFlags::NOREPLACE);
    // Not every filesystem can; there, an empty directory that appears between these two calls would be replaced.
    if !matches!(renamed, Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)) {
        return Ok(renamed?);
    }
    match rustix::fs::statat(&directory, to, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(rustix::fs::renameat(&directory, from, &directory, to)?),
        Ok(_) => Err(Errno::EXIST.into()),
        Err(error) => Err(error.into()),
    }
}

/// Opens a regular file to be read; nothing else is opened, and no link is followed.
pub(crate) fn plain(path: &Path) -> io::Result<File> {
    plain_at(CWD, path)
}

/// The same in an open directory.
pub(crate) fn plain_at(directory: impl AsFd, path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let other = || io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
    let file = match rustix::fs::openat(directory, path, flags, Mode::empty()) {
        // A link; a socket, or a device without a driver.
        Err(Errno::LOOP | Errno::NXIO) => return Err(other()),
        file => File::from(file?),
    };
    if file.metadata()?.is_file() { Ok(file) } else { Err(other()) }
}

/// The owner of what lies at a path, if root asks: for him it acts there.
pub(crate) fn owner_of(path: &Path) -> Option<Owner> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let meta = std::fs::symlink_metadata(path).ok()?;
    Some(Owner { uid: meta.uid(), gid: meta.gid() })
}

fn refusal(path: &Path, why: &str) -> String {
    format!(
        "root does not write to {} for another user, because {why}: nothing was changed\nHINT: Give that directory to this \
         user, or name one with --pgdata, --tablespace OLD=NEW, --wal-dir or --extra-dir that no other user's link leads to.",
        path.display()
    )
}

impl Walked {
    /// Why root must not fill, or make, what the path leads to.
    fn may_be_filled(&self, named: bool, user: Owner) -> Result<(), String> {
        let meta = self.at.metadata().map_err(|error| error.to_string())?;
        let plain = named && !self.diverted;
        let by_himself = match self.missing.is_empty() {
            true => meta.uid() == user.uid,
            false => may_make(&meta, user),
        };
        if plain || by_himself {
            return Ok(());
        }
        let way = if self.diverted { ", and a link that is not root's leads there" } else { "" };
        Err(match self.missing.is_empty() {
            true => format!("it belongs to uid {}, not to uid {}{way}", meta.uid(), user.uid),
            false => format!("it does not exist, and uid {} could not create it{way}", user.uid),
        })
    }
}

/// Whether a user can make something in a directory. Groups that he has beside his own are not looked at.
fn may_make(directory: &Metadata, user: Owner) -> bool {
    let mode = directory.mode();
    let bits = |shift: u32| mode >> shift & 0o3 == 0o3;
    match (directory.uid() == user.uid, directory.gid() == user.gid) {
        (true, _) => bits(6),
        (false, true) => bits(3),
        (false, false) => bits(0),
    }
}

/// Follows an absolute path as far as it exists, one component after the other.
fn walk(path: &Path) -> io::Result<Walked> {
    let root = || Ok::<_, Errno>(File::from(rustix::fs::open("/", ANYTHING, Mode::empty())?));
    let (mut at, mut diverted, mut links) = (root()?, false, 0);
    let mut pending = Vec::new();
    push(&mut pending, path);
    while let Some(name) = pending.pop() {
        let next = match rustix::fs::openat(&at, &name, ANYTHING, Mode::empty()) {
            Err(Errno::NOENT) => {
                pending.push(name);
                pending.reverse();
                if pending.iter().any(|name| name == "..") {
                    return Err(Errno::NOENT.into());
                }
                return Ok(Walked { at, diverted, missing: pending });
            }
            next => File::from(next?),
        };
        let meta = next.metadata()?;
        if !meta.is_symlink() {
            at = next;
            continue;
        }
        links += 1;
        if links > LINKS {
            return Err(Errno::LOOP.into());
        }
        // Who owns a directory can put another one's link there.
        diverted |= meta.uid() != 0 || at.metadata()?.uid() != 0;
        let target = OsString::from_vec(rustix::fs::readlinkat(&next, "", Vec::new())?.into_bytes());
        if Path::new(&target).is_absolute() {
            at = root()?;
        }
        push(&mut pending, Path::new(&target));
    }
    Ok(Walked { at, diverted, missing: Vec::new() })
}

/// Puts the components of a path on a stack, the first one on top.
fn push(pending: &mut Vec<OsString>, path: &Path) {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    pending.extend(names.collect::<Vec<_>>().into_iter().rev());
}

/// Removes an empty directory; none there is no error.
pub(crate) fn vacate(path: &Path, trusted: bool, user: Option<Owner>) -> io::Result<()> {
    let (parent, name) = parent(path, trusted, user)?;
    match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn root_fills_only_what_the_user_could() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let root = dir.path().canonicalize().unwrap();
        let user = Owner { uid: 4711, gid: 4711 };
        for name in ["roots", "users"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        chown(root.join("users"), Some(4711), Some(4711)).unwrap();
        symlink(root.join("roots"), root.join("admin")).unwrap();
        symlink(root.join("roots"), root.join("users/link")).unwrap();
        symlink(root.join("users"), root.join("to_users")).unwrap();
        let allowed = |path: &str, named| check(&root.join(path), named, Some(user)).is_ok();
        for (path, by_link, by_name) in [
            ("roots", false, true),
            ("roots/new", false, true),
            ("admin/new", false, true),
            ("users", true, true),
            ("users/new/deep", true, true),
            ("to_users", true, true),
            ("users/link", false, false),
            ("users/link/new", false, false),
        ] {
            assert_eq!((allowed(path, false), allowed(path, true)), (by_link, by_name), "{path}");
            assert!(check(&root.join(path), false, None).is_ok());
        }
        assert!(is_plain(&root.join("admin")) && !is_plain(&root.join("users/link")));
        // What a killed run left.
        fs::create_dir(root.join("users/.walpoint-tmp-new")).unwrap();
        make(&root.join("users/new/deep"), false, Some(user), |_| false).unwrap();
        assert!(!root.join("users/.walpoint-tmp-new").exists());
        assert_eq!(fs::metadata(root.join("users/new/deep")).unwrap().uid(), 4711);
        make(&root.join("users/link/new"), true, Some(user), |_| false).unwrap_err();
        make(&root.join("roots"), false, Some(user), |_| true).unwrap();
        assert!(!root.join("roots/new").exists());
    }

    #[test]
    fn names_change_only_where_the_user_could_change_them() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let user = Some(Owner { uid: 4711, gid: 4711 });
        fs::create_dir_all(root.join("users/a")).unwrap();
        fs::create_dir_all(root.join("roots/a")).unwrap();
        chown(root.join("users"), Some(4711), Some(4711)).unwrap();
        symlink(root.join("roots"), root.join("users/link")).unwrap();
        let at = |name: &str| root.join(name);
        rename(&at("users/a"), &at("users/b"), false, user).unwrap();
        rename(&at("roots/a"), &at("roots/b"), false, user).unwrap_err();
        rename(&at("roots/a"), &at("roots/b"), true, user).unwrap();
        rename(&at("users/link/b"), &at("users/link/a"), true, user).unwrap_err();
        rename(&at("users/b"), &at("roots/c"), true, user).unwrap_err();
        vacate(&at("roots/b"), false, user).unwrap_err();
        vacate(&at("roots/b"), true, user).unwrap();
        vacate(&at("roots/b"), true, user).unwrap();
    }

    #[test]
    fn a_name_that_was_taken_meanwhile_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let at = File::open(dir.path()).unwrap();
        for name in ["new", "empty"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let rename = |to: &str| rename_new(&at, OsStr::new("new"), OsStr::new(to));
        assert_eq!(rename("empty").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(dir.path().join("new").exists() && dir.path().join("empty").exists());
        rename("free").unwrap();
        assert!(dir.path().join("free").exists() && !dir.path().join("new").exists());
    }

    #[test]
    fn only_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mkfifoat(CWD, &fifo, Mode::RWXU).unwrap();
        symlink("/etc/passwd", dir.path().join("link")).unwrap();
        durable::create(&dir.path().join("file"), b"x").unwrap();
        assert!(plain(&fifo).is_err() && plain(&dir.path().join("link")).is_err());
        plain(&dir.path().join("file")).unwrap();
    }
}
