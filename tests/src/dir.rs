//! Temporary directories of tests: short paths (a Unix socket's path holds 107 bytes), owned by the user that the
//! servers run as, removed when dropped, and by a later test when this one was killed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Once, OnceLock};

use crate::user;

/// A directory that lives as long as the value. `WALPOINT_KEEP=1` keeps it and prints its path.
#[derive(Debug)]
pub struct TestDir {
    path: PathBuf,
}

impl TestDir {
    /// Makes an empty directory below `$WALPOINT_TMP`; else in memory where there is plenty (clusters start and stop
    /// three times as fast there), else below `/tmp`.
    #[allow(clippy::new_without_default)]
    pub fn new() -> TestDir {
        static BASE: OnceLock<PathBuf> = OnceLock::new();
        TestDir::below(BASE.get_or_init(base))
    }

    /// Makes an empty directory on a disk: for gigabytes, and for what a filesystem in memory cannot do (O_DIRECT).
    pub fn on_disk() -> TestDir {
        TestDir::below(Path::new("/var/tmp"))
    }

    fn below(base: &Path) -> TestDir {
        static SWEEP: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(|| [base, Path::new("/tmp"), Path::new("/var/tmp")].into_iter().for_each(sweep));
        loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = base.join(format!("wp{}.{n}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => {
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
                    user::give(&path);
                    return TestDir { path };
                }
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => panic!("create {}: {e}", path.display()),
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of something in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a directory in it (mode 0700, as PostgreSQL wants it), owned by the servers' user.
    pub fn mkdir(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(&path).unwrap_or_else(|e| panic!("create {}: {e}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("chmod");
        user::give(&path);
        path
    }

    /// Writes a file in it, owned by the servers' user.
    pub fn write(&self, name: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path.join(name);
        fs::write(&path, contents).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        user::give(&path);
        path
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        if std::env::var_os("WALPOINT_KEEP").is_some() {
            eprintln!("kept: {}", self.path.display());
        } else {
            // A server that is just ending may still remove or add a file.
            for _ in 0..20 {
                match fs::remove_dir_all(&self.path) {
                    Ok(()) => return,
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
                    Err(_) => std::thread::sleep(std::time::Duration::from_millis(50)),
                }
            }
        }
    }
}

fn base() -> PathBuf {
    if let Some(base) = std::env::var_os("WALPOINT_TMP") {
        return base.into();
    }
    let memory = Path::new("/dev/shm");
    // As a container's default of 64 MiB would not do.
    let free = rustix::fs::statvfs(memory).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
    let base = if free >= 6 << 30 { memory } else { Path::new("/tmp") };
    base.to_owned()
}

/// Removes what test processes that no longer live left behind. A PostgreSQL whose data directory goes ends by itself.
fn sweep(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let Some((pid, number)) = name.strip_prefix("wp").and_then(|rest| rest.split_once('.')) else {
            continue;
        };
        let numbers = [pid, number].iter().all(|s| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()));
        if numbers && !Path::new("/proc").join(pid).exists() && std::env::var_os("WALPOINT_KEEP").is_none() {
            // Another test may be sweeping too, and what somebody kept on purpose may not be ours to remove.
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}
