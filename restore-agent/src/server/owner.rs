//! Users of this machine: who owns files and runs a server.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::Context;
use rustix::fs::{Mode, OFlags};

/// The numbers of a user and a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    /// User id.
    pub(crate) uid: u32,
    /// Group id.
    pub(crate) gid: u32,
}

impl Owner {
    /// Gives him a file or directory that is synced already, durably. Links are not followed.
    pub(crate) fn give(self, path: &Path) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        std::os::unix::fs::fchown(&file, Some(self.uid), Some(self.gid))?;
        file.sync_all()
    }
}

/// Opens a file that a server wrote, in directories that are its user's: root reads it for itself. So what lies there under that name has to
/// be a file of that user, and a link or a pipe is none. `owner`: that user, if not this process's.
pub(crate) fn open(path: &Path, owner: Option<Owner>) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() || owner.is_some_and(|owner| owner.uid != metadata.uid()) {
        return Err(io::Error::other("it is no file of the server's user"));
    }
    Ok(file)
}

/// The first `most` bytes of such a file.
pub(crate) fn read(path: &Path, owner: Option<Owner>, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path, owner)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The name of a user on this machine.
pub(crate) fn name_of_user(uid: u32) -> Option<String> {
    let answer = getent("passwd", &uid.to_string()).ok().filter(|answer| answer.status.success())?;
    let line = String::from_utf8(answer.stdout).ok()?;
    line.split(':').next().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// The numbers of the groups that a user is in, beside the user's own one.
pub(crate) fn groups_of_user(name: &str) -> Vec<u32> {
    let answer = getent("initgroups", name).ok().filter(|answer| answer.status.success());
    answer.map_or_else(Vec::new, |answer| groups_in(&String::from_utf8_lossy(&answer.stdout)))
}

/// The groups in an answer: the name, and a number for each.
fn groups_in(answer: &str) -> Vec<u32> {
    answer.split_ascii_whitespace().skip(1).filter_map(|group| group.parse().ok()).collect()
}

/// Asks whatever directory services the machine uses, which the files in /etc would not show.
pub(crate) fn getent(database: &str, key: &str) -> anyhow::Result<Output> {
    Command::new("getent")
        .args([database, "--", key])
        .stderr(Stdio::null())
        .output()
        .context("getent, which finds the users of this machine, cannot be run")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_servers_user_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        walpoint_base::durable::create(&path("file"), b"0123456789").unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, path("fifo"), Mode::RWXU).unwrap();
        std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
        let (uid, gid) = (walpoint_base::user::effective(), 0);
        for owner in [None, Some(Owner { uid, gid })] {
            assert_eq!(read(&path("file"), owner, 4).unwrap(), b"0123");
            for name in ["fifo", "link", "none", "."] {
                assert!(read(&path(name), owner, 4).is_err(), "{name}");
            }
        }
        read(&path("file"), Some(Owner { uid: uid + 1, gid }), 4).unwrap_err();
    }

    #[test]
    fn the_groups_of_a_user_are_read() {
        assert_eq!(groups_in("postgres              106 115 \n"), [106, 115]);
        assert_eq!(groups_in("postgres             \n"), [0; 0]);
    }
}
