//! When a prefetcher ends: no client asks any more, or no server is left that could.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use walpoint_base::{Recovery, WalDirectory};

/// Why a prefetcher ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WatchEnd {
    /// No client asked for anything for long enough.
    Idle,
    /// PostgreSQL, which was running, is gone.
    ServerGone,
    /// The server left recovery.
    Recovered,
    /// The data directory is gone, or another one lies in its place.
    DirectoryGone,
}

impl WatchEnd {
    /// Whether no recovery needs to know the target any more.
    pub(crate) fn recovery_is_over(self) -> bool {
        self == Self::Recovered
    }
}

/// Watches the data directory of a prefetcher.
#[derive(Debug)]
pub(crate) struct Watchdog {
    place: WalDirectory,
    idle_limit: Duration,
    /// The postmaster once it was seen alive. In a sidecar it never is: it lives in another pid namespace.
    postmaster: Option<u32>,
    /// Whether the server was seen in recovery.
    recovering: bool,
}

impl Watchdog {
    /// Begins to watch.
    pub(crate) fn new(place: WalDirectory, idle_limit: Duration) -> Self {
        // Recovery may be over before the first check.
        let (postmaster, recovering) = (postmaster(&place.pgdata), place.recovery != Recovery::None);
        Self { place, idle_limit, postmaster, recovering }
    }

    /// Why the prefetcher should end, if it should. `idle`: for how long no client has asked.
    pub(crate) fn check(&mut self, idle: Duration) -> Option<WatchEnd> {
        let inode = fs::metadata(&self.place.wal).map(|meta| meta.ino());
        if inode.ok() != Some(self.place.inode) {
            return Some(WatchEnd::DirectoryGone);
        }
        // Before recovery: pg_rewind removes the signal file of a server that is gone.
        match (self.postmaster, postmaster(&self.place.pgdata)) {
            (Some(_), None) => return Some(WatchEnd::ServerGone),
            (_, found) => self.postmaster = found,
        }
        let recovering = Recovery::of(&self.place.pgdata) != Recovery::None;
        if self.recovering && !recovering {
            return Some(WatchEnd::Recovered);
        }
        self.recovering = recovering;
        (idle >= self.idle_limit).then_some(WatchEnd::Idle)
    }

    /// Whether the server was seen and does not run now.
    pub(crate) fn is_server_gone(&self) -> bool {
        self.postmaster.is_some() && postmaster(&self.place.pgdata).is_none()
    }
}

/// The process id of the running postmaster of a data directory.
fn postmaster(pgdata: &Path) -> Option<u32> {
    let text = fs::read_to_string(pgdata.join("postmaster.pid")).ok()?;
    // Negative for a single-user backend.
    let pid: u32 = text.lines().next()?.trim().trim_start_matches('-').parse().ok()?;
    PathBuf::from(format!("/proc/{pid}")).exists().then_some(pid)
}

#[cfg(test)]
mod tests {
    use walpoint_base::durable;

    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn place(dir: &Path) -> WalDirectory {
        fs::create_dir_all(dir.join("pg_wal")).unwrap();
        fs::create_dir_all(dir.join("global")).unwrap();
        durable::create(&dir.join("global/pg_control"), &[0; 8]).unwrap();
        WalDirectory::of(dir).unwrap()
    }

    #[test]
    fn it_ends_when_nobody_asks() {
        let dir = tempfile::tempdir().unwrap();
        let mut life = Watchdog::new(place(dir.path()), Duration::from_secs(60));
        assert_eq!(life.check(Duration::from_secs(59)), None);
        assert_eq!(life.check(Duration::from_secs(60)), Some(WatchEnd::Idle));
    }

    #[test]
    fn it_ends_with_recovery() {
        let dir = tempfile::tempdir().unwrap();
        let mut life = Watchdog::new(place(dir.path()), Duration::from_secs(60));
        durable::create(&dir.path().join("standby.signal"), b"").unwrap();
        assert_eq!(life.check(NOW), None);
        durable::remove(&dir.path().join("standby.signal")).unwrap();
        assert_eq!(life.check(NOW), Some(WatchEnd::Recovered));
    }

    #[test]
    fn it_ends_with_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let mut life = Watchdog::new(place(dir.path()), Duration::from_secs(60));
        let pid = dir.path().join("postmaster.pid");
        assert_eq!(life.check(NOW), None, "no server was seen");
        durable::replace(&pid, format!("{}\n/data\n", std::process::id()).as_bytes(), 0o600).unwrap();
        assert_eq!(life.check(NOW), None);
        // A pid that no process can have: killed, and the file left behind.
        assert!(!life.is_server_gone());
        durable::replace(&pid, b"4194305\n/data\n", 0o600).unwrap();
        assert_eq!(life.check(NOW), Some(WatchEnd::ServerGone));
        assert!(life.is_server_gone());
    }

    #[test]
    fn a_signal_file_that_is_removed_after_the_server_ended_ends_no_recovery() {
        let dir = tempfile::tempdir().unwrap();
        let (signal, pid) = (dir.path().join("standby.signal"), dir.path().join("postmaster.pid"));
        let place = place(dir.path());
        durable::create(&signal, b"").unwrap();
        durable::replace(&pid, format!("{}\n/data\n", std::process::id()).as_bytes(), 0o600).unwrap();
        let mut life = Watchdog::new(place, Duration::from_secs(60));
        assert_eq!(life.check(NOW), None);
        durable::remove(&pid).unwrap();
        durable::remove(&signal).unwrap();
        assert_eq!(life.check(NOW), Some(WatchEnd::ServerGone), "pg_rewind is at work");
    }

    #[test]
    fn it_ends_with_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let mut life = Watchdog::new(place(dir.path()), Duration::from_secs(60));
        durable::rename(&dir.path().join("pg_wal"), &dir.path().join("old")).unwrap();
        assert_eq!(life.check(NOW), Some(WatchEnd::DirectoryGone));
        fs::create_dir(dir.path().join("pg_wal")).unwrap();
        assert_eq!(life.check(NOW), Some(WatchEnd::DirectoryGone));
    }
}
