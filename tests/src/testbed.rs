//! Where the installed servers and the programs under test are. What is missing fails a test with what to do: nothing is
//! ever skipped because it is not installed.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::user;

/// The PostgreSQL major versions that Walpoint supports and the test bed installs.
pub const MAJORS: [u32; 7] = [13, 14, 15, 16, 17, 18, 19];

/// The directory that `setup.sh` fills.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let root = if let Some(root) = var("WALPOINT_TESTBED") {
            root
        } else if user::is_root() {
            PathBuf::from("/var/cache/walpoint-testbed")
        } else {
            let cache = var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|home| home.join(".cache")));
            cache.expect("HOME is set").join("walpoint-testbed")
        };
        assert!(
            root.is_dir(),
            "no test bed in {}: run tests/setup/setup.sh (make test does)",
            root.display()
        );
        root
    })
}

/// A program of a PostgreSQL version. Version 13's package has only servers' programs: its clients come from 17.
#[track_caller]
pub fn pg_program(major: u32, name: &str) -> PathBuf {
    let own = root().join(format!("pg{major}/bin/{name}"));
    if own.exists() {
        return own;
    }
    let newer = root().join(format!("pg17/bin/{name}"));
    let client = ["psql", "pg_dump", "pg_dumpall", "pg_restore", "pg_basebackup", "pg_receivewal", "pgbench"];
    assert!(
        major == 13 && client.contains(&name) && newer.exists(),
        "PostgreSQL {major} has no {name} in {}: run tests/setup/setup.sh --only pg{major}",
        root().display()
    );
    newer
}

/// Can this version's own WAL be read by a `pg_waldump` of the test bed? (13's package has none.)
pub fn has_waldump(major: u32) -> bool {
    root().join(format!("pg{major}/bin/pg_waldump")).exists()
}

/// A program of the test bed that is not PostgreSQL's: `weed`, `rclone`.
#[track_caller]
pub fn program(name: &str) -> PathBuf {
    let path = root().join(name).join(name);
    assert!(path.exists(), "{} is missing: run tests/setup/setup.sh --only {name}", path.display());
    path
}

/// A command of `python3` with the cryptographic libraries of the test bed: for what has to be read independently of our code.
#[track_caller]
pub fn python_crypto() -> Command {
    let libraries = root().join("python-crypto");
    assert!(
        libraries.join(".stamp").exists(),
        "{} is missing: run tests/setup/setup.sh --only python-crypto",
        libraries.display()
    );
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", libraries).env("PYTHONDONTWRITEBYTECODE", "1");
    python
}

/// A program under test (`archive-agent`, `archive-push`, `restore-agent`, `restore-fetch`), built beforehand beside
/// this test, and reachable by the user the servers run as. `WALPOINT_PROGRAMS` names another directory to take them from:
/// to see what an older version does.
#[track_caller]
pub fn under_test(name: &str) -> PathBuf {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    let other = || std::env::var_os("WALPOINT_PROGRAMS").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let place = PLACE.get_or_init(|| reachable(&other().unwrap_or_else(profile_dir)));
    let path = place.join(name);
    assert!(path.exists(), "{} is missing: run cargo build --workspace (make test does)", path.display());
    path
}

/// `target/debug` (or another profile's directory) of the running test.
pub fn profile_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("the path of this test");
    let deps = exe.parent().expect("a directory");
    deps.parent().filter(|_| deps.ends_with("deps")).unwrap_or(deps).to_owned()
}

/// The four programs in one directory that the servers' user can reach: the target directory itself, or, when it lies
/// below somebody's home, a copy in the test bed.
fn reachable(built: &Path) -> PathBuf {
    const PROGRAMS: [&str; 4] = ["archive-agent", "archive-push", "restore-agent", "restore-fetch"];
    let mut probe = Command::new("test");
    probe.arg("-x").arg(built.join(PROGRAMS[0]));
    if !user::is_root() || user::become_user(&mut probe).status().is_ok_and(|status| status.success()) {
        return built.to_owned();
    }
    let copies = root().join("under-test");
    let copies = copies.join(built.to_string_lossy().replace('/', "-").trim_matches('-'));
    fs::create_dir_all(&copies).expect("a directory for copies");
    let lock = fs::File::create(copies.join(".lock")).expect("the lock of the copies");
    lock.lock().expect("lock");
    for name in PROGRAMS {
        let Ok(from) = fs::metadata(built.join(name)) else { continue };
        let to = copies.join(name);
        let fresh = fs::metadata(&to).is_ok_and(|to| to.len() == from.len() && to.mtime() >= from.mtime());
        if !fresh {
            let part = copies.join(format!(".{name}.part"));
            fs::copy(built.join(name), &part).expect("copy a program under test");
            fs::set_permissions(&part, fs::Permissions::from_mode(0o755)).expect("chmod");
            fs::rename(&part, &to).expect("rename");
        }
    }
    copies
}
