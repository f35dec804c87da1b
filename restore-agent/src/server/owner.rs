//! Users of this machine: who owns files and runs a server.

use std::io;
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
        let file = std::fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
        std::os::unix::fs::fchown(&file, Some(self.uid), Some(self.gid))?;
        file.sync_all()
    }
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
    fn the_groups_of_a_user_are_read() {
        assert_eq!(groups_in("postgres              106 115 \n"), [106, 115]);
        assert_eq!(groups_in("postgres             \n"), [0; 0]);
    }
}
