//! The OS user that PostgreSQL and the programs under test run as.
//!
//! PostgreSQL refuses to run as root. When the tests run as root (which the faults that mount and trace need), servers
//! and agents run as the system user that `setup.sh` made; otherwise as whoever runs the tests.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// The name `setup.sh` gives to the user.
pub const NAME: &str = "walpoint-test";

/// A user's and its group's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
}

/// Do the tests run as root?
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Who servers and agents run as.
pub fn ids() -> Ids {
    static IDS: OnceLock<Ids> = OnceLock::new();
    *IDS.get_or_init(|| {
        if !is_root() {
            let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            return Ids { uid, gid };
        }
        let passwd = std::fs::read_to_string("/etc/passwd").expect("read /etc/passwd");
        let line = passwd.lines().find(|line| line.split(':').next() == Some(NAME));
        let line = line.unwrap_or_else(|| panic!("no OS user {NAME}: run tests/setup/setup.sh as root"));
        let number = |n: usize| line.split(':').nth(n).and_then(|f| f.parse().ok()).expect("a passwd line");
        Ids { uid: number(2), gid: number(3) }
    })
}

/// The name of that user, as `psql` or `chown` would want it.
pub fn name() -> String {
    let uid = ids().uid;
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = passwd.lines().find(|line| line.split(':').nth(2) == Some(uid.to_string().as_str()));
    line.and_then(|line| line.split(':').next()).map_or_else(|| uid.to_string(), str::to_owned)
}

/// Makes `command` run as that user. Supplementary groups are dropped by the standard library.
pub fn become_user(command: &mut Command) -> &mut Command {
    if is_root() {
        let ids = ids();
        command.uid(ids.uid).gid(ids.gid);
        command.env("USER", NAME).env("LOGNAME", NAME).env("HOME", "/nonexistent");
    }
    command
}

/// Gives a file or directory to that user.
pub fn give(path: &Path) {
    if is_root() {
        let ids = ids();
        std::os::unix::fs::lchown(path, Some(ids.uid), Some(ids.gid))
            .unwrap_or_else(|e| panic!("chown {}: {e}", path.display()));
    }
}

/// Gives a whole tree to that user. Symbolic links are given themselves, not followed.
pub fn give_tree(path: &Path) {
    give(path);
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path).expect("read directory").flatten() {
            give_tree(&entry.path());
        }
    }
}
