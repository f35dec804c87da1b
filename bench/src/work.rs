//! The working directory of a run: data sets (kept on request), repositories, restored clusters, programs.
//!
//! `$WALPOINT_BENCH_DIR`, else `bench` in the target directory where the servers' user can reach it, else
//! `/var/tmp/walpoint-bench`. A lock keeps a second run out; what a killed run left is cleared by the next.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use walpoint_tests::{testbed, user};

/// Data set, repositories and restored clusters need about this much.
pub const NEEDED: u64 = 12 << 30;

/// The working directory, locked.
#[derive(Debug)]
pub struct WorkDirectory {
    root: PathBuf,
    _lock: File,
}

/// The programs that are copied, so that a build during the run changes nothing.
const PROGRAMS: [&str; 4] = ["archive-agent", "archive-push", "restore-agent", "restore-fetch"];

impl WorkDirectory {
    /// Takes the directory; an error if another run has it or the disk is too full. `program` is `walpoint-bench`; programs
    /// that are found in `released` are taken from there.
    pub fn take(program: &Path, released: Option<&Path>) -> Result<WorkDirectory, String> {
        let work = WorkDirectory::at(root(), program)?;
        if let Some(released) = released {
            work.copy_released(released)?;
        }
        let root = work.root();
        let stat = rustix::fs::statvfs(root).map_err(|e| format!("{}: {e}", root.display()))?;
        let free = stat.f_bavail * stat.f_frsize;
        if free < NEEDED {
            return Err(format!(
                "{} MiB are free in {}, {} MiB are needed: set WALPOINT_BENCH_DIR",
                free >> 20,
                root.display(),
                NEEDED >> 20
            ));
        }
        Ok(work)
    }

    /// Takes that directory.
    pub fn at(root: PathBuf, program: &Path) -> Result<WorkDirectory, String> {
        fs::create_dir_all(&root).map_err(|e| format!("create {}: {e}", root.display()))?;
        let lock = File::create(root.join("lock")).map_err(|e| format!("{}: {e}", root.display()))?;
        lock.try_lock().map_err(|_| format!("another run uses {}", root.display()))?;
        let work = WorkDirectory { root, _lock: lock };
        for name in ["stores", "run", "bin"] {
            work.remove(name);
        }
        work.copy_programs(program);
        Ok(work)
    }

    fn copy_programs(&self, program: &Path) {
        let bin = self.dir("bin");
        for name in PROGRAMS {
            let to = bin.join(name);
            fs::copy(testbed::under_test(name), &to).unwrap_or_else(|e| panic!("copy {name}: {e}"));
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        fs::copy(program, self.program()).expect("copy walpoint-bench");
    }

    fn copy_released(&self, released: &Path) -> Result<(), String> {
        let there = PROGRAMS.iter().filter(|name| released.join(name).is_file());
        let copied = there.map(|name| fs::copy(released.join(name), self.root.join("bin").join(name)));
        match copied.collect::<Result<Vec<_>, _>>() {
            Ok(copied) if !copied.is_empty() => Ok(()),
            Ok(_) => Err(format!("{}: none of our programs is in it", released.display())),
            Err(error) => Err(format!("{}: {error}", released.display())),
        }
    }

    /// The copy of `walpoint-bench`, which drivers and sinks are processes of.
    pub fn program(&self) -> PathBuf {
        self.root.join("bin/walpoint-bench")
    }

    /// Its path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes a directory in it, owned by the servers' user.
    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.root.join(name);
        fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("create {}: {e}", dir.display()));
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("chmod");
        user::give(&dir);
        dir
    }

    /// Removes something in it.
    pub fn remove(&self, name: &str) {
        match fs::remove_dir_all(self.root.join(name)) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => panic!("remove {name} in {}: {e}", self.root.display()),
        }
    }

    /// Ends a run: the data sets stay on request.
    pub fn finish(self, keep: bool) {
        for name in ["stores", "run", "bin"] {
            self.remove(name);
        }
        if !keep {
            self.remove("data");
        }
    }
}

fn root() -> PathBuf {
    if let Some(root) = std::env::var_os("WALPOINT_BENCH_DIR").filter(|root| !root.is_empty()) {
        return root.into();
    }
    let profile = testbed::profile_dir();
    let target = profile.parent().unwrap_or(&profile);
    let mut probe = Command::new("test");
    probe.arg("-x").arg(target);
    if user::become_user(&mut probe).status().is_ok_and(|status| status.success()) {
        target.join("bench")
    } else {
        PathBuf::from("/var/tmp/walpoint-bench")
    }
}
