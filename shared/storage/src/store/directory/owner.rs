//! To whom a repository in a directory belongs, and giving that user what another one creates in it.
//!
//! A repository is one user's, mostly PostgreSQL's. What root creates is given to that user before it has its name: else one command
//! of root's would keep the agents out of their own repository. Any other user creates nothing.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use walpoint_base::user;

use crate::layout;

/// Root's number: its rights end nowhere.
const ROOT: u32 = 0;

/// The user and the group that a repository belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    uid: u32,
    gid: u32,
    /// Whether that user made a repository there, or only owns the directory.
    made: bool,
}

impl Owner {
    /// Who made the repository, or else who owns its directory: that may be root's, as mounted volumes are, and writable for a group.
    pub fn of(directory: &Path) -> io::Result<Self> {
        // Not through a link, which says nothing about who made it.
        let made = fs::symlink_metadata(directory.join(layout::descriptor().as_str()));
        let made = made.ok().filter(|meta| meta.is_file() && meta.uid() != ROOT);
        let is_made = made.is_some();
        let meta = made.map_or_else(|| fs::metadata(directory), Ok)?;
        Ok(Self { uid: meta.uid(), gid: meta.gid(), made: is_made })
    }

    /// Whether this process is root's and the repository another user's.
    pub(super) fn is_others(self) -> bool {
        self.uid != ROOT && user::effective() == ROOT
    }

    /// Gives the user what this process has just created. In a directory without a repository anybody may make one.
    pub(super) fn give(self, file: &File) -> io::Result<()> {
        let meta = file.metadata()?;
        // Filesystems that map users have done it.
        if meta.uid() == self.uid || self.uid == ROOT {
            return Ok(());
        }
        let denied = |why: &str| {
            let owner = user::shown(self.uid);
            Err(io::Error::new(
                ErrorKind::PermissionDenied,
                format!(
                    "the repository belongs to {owner}, who could not use what {} creates in it{why}",
                    user::shown(meta.uid())
                ),
            ))
        };
        match user::effective() {
            ROOT => {}
            _ if self.made => return denied(""),
            _ => return Ok(()),
        }
        fchown(file, Some(self.uid), Some(self.gid)).or_else(|error| denied(&format!(" ({error})")))
    }

    /// Gives the user a directory that was there, if root created it and was killed before it gave it away. One on another
    /// filesystem is an administrator's.
    pub(super) fn give_left(self, directory: &File, device: u64) -> io::Result<()> {
        let meta = directory.metadata()?;
        let left = meta.uid() == ROOT && meta.dev() == device && self.is_others();
        if left { self.give(directory) } else { Ok(()) }
    }

    /// What a person who was denied access does, for the repository in that directory.
    pub fn advice(self, directory: &Path) -> String {
        let repair = self.repair(directory);
        let owner = user::shown(self.uid);
        match self.uid == user::effective() {
            true => {
                format!("If another user created a part of the repository, give it back as root: {repair}")
            }
            false => format!(
                "Run this command as {owner}, to whom the repository belongs. If another user created a part of it, give it back \
                 as root: {repair}"
            ),
        }
    }

    /// The command that gives the user all of the repository in that directory.
    pub(super) fn repair(self, directory: &Path) -> String {
        user::give_all(directory, self.uid, self.gid)
    }
}

/// A directory of the repository in `root`, reached through no link: whoever owns the repository can put one in the place of any
/// directory at any moment, and would be given what it leads to.
pub(super) fn within(root: &Path, path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let below = path.strip_prefix(root).map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
    let mut directory = File::open(root)?;
    for name in below {
        directory = rustix::fs::openat(&directory, name, flags, Mode::empty())?.into();
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::store::directory::Local;

    const OTHER_USER: u32 = 65_533;

    fn owner(path: &Path) -> (u32, u32) {
        let meta = fs::symlink_metadata(path).unwrap();
        (meta.uid(), meta.gid())
    }

    /// Only root can try it: others see that their own stays theirs.
    #[tokio::test]
    async fn what_root_creates_is_the_repositorys_owners() {
        let dir = tempfile::tempdir().unwrap();
        let descriptor = dir.path().join("walpoint.json");
        File::create_new(&descriptor).unwrap();
        let root = user::effective() == ROOT;
        let expected = match root {
            true => (OTHER_USER, OTHER_USER),
            false => owner(&descriptor),
        };
        if root {
            std::os::unix::fs::chown(&descriptor, Some(OTHER_USER), Some(OTHER_USER)).unwrap();
        }
        // As a root that was killed leaves it.
        fs::create_dir(dir.path().join("clusters")).unwrap();
        let local = Local::open(dir.path()).await.unwrap();
        local.create("clusters/main/holds/000000000001", &[Bytes::from_static(b"x")]).await.unwrap();
        for name in ["clusters", "clusters/main", "clusters/main/holds", "clusters/main/holds/000000000001"] {
            assert_eq!(owner(&dir.path().join(name)), expected, "{name}");
        }
        // What the owner has linked is not given away.
        let aside = dir.path().join("aside");
        fs::create_dir(&aside).unwrap();
        std::os::unix::fs::symlink(&aside, dir.path().join("keys")).unwrap();
        let before = owner(&aside);
        let local = Local::open(dir.path()).await.unwrap();
        local.create("keys/1", &[Bytes::from_static(b"x")]).await.unwrap();
        assert_eq!((owner(&aside), owner(&aside.join("1"))), (before, expected));
        let advice = Owner::of(dir.path()).unwrap().advice(dir.path());
        assert!(
            advice.contains(&format!(" {}", dir.path().display())) && advice.contains("chown -R "),
            "{advice}"
        );
    }

    #[test]
    fn another_user_than_root_creates_nothing_for_the_owner() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create_new(dir.path().join("f")).unwrap();
        let (uid, gid) = owner(&dir.path().join("f"));
        let others = |made| Owner { uid: uid + 1, gid, made };
        Owner { uid, gid, made: true }.give(&file).unwrap();
        if uid == ROOT {
            return others(true).give(&file).unwrap();
        }
        others(false).give(&file).unwrap();
        let error = others(true).give(&file).unwrap_err();
        assert!(
            error.kind() == ErrorKind::PermissionDenied && error.to_string().contains("belongs to"),
            "{error}"
        );
    }
}
