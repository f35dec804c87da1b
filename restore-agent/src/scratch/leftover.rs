//! What a run that was killed left: its scratch directory, and perhaps its server.
//!
//! Only what is provably such a directory is removed: it carries a mark of its own ([`super::directory`]), both belong to this
//! process's user, no person asked to keep it, and nothing holds the lock on the mark. The server that it may have left holds the lock
//! on its log: it is stopped first, and while that lock is held nothing is removed. Where locks do not work nothing is.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use walpoint_base::user;

use super::directory::{self, LOG, MARK, Mark, PREFIX};
use crate::restore::identity::Identity;
use crate::restore::workdir;

/// Bytes of a mark that are read.
const LONGEST: u64 = 64 << 10;

/// Where the system shows its processes.
const PROC: &str = "/proc";

/// How long a server that is stopped may take.
const STOPPING: Duration = Duration::from_secs(30);

/// Removes what killed runs left in a place. What cannot be removed is logged and stays.
pub(super) fn remove_all(place: &Path) {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
        remove_one(&entry.path());
    }
}

/// The same of one directory.
pub(super) fn remove_one(directory: &Path) {
    let Some((mark, _lock)) = abandoned(directory) else { return };
    let shown = directory.display();
    if let Err(why) = stop_server(directory) {
        tracing::warn!("what an interrupted run left in \"{shown}\" was not removed: {why}");
        return;
    }
    match directory::remove(directory, &mark) {
        Ok(()) => tracing::info!("removed what an interrupted run left in \"{shown}\""),
        Err(error) => {
            tracing::warn!("what an interrupted run left in \"{shown}\" could not be removed: {error}");
        }
    }
}

/// The mark of a directory that a killed run left, with its lock; `None` if it is not provably one.
fn abandoned(directory: &Path) -> Option<(Mark, File)> {
    let meta = fs::symlink_metadata(directory).ok().filter(fs::Metadata::is_dir)?;
    let mut options = OpenOptions::new();
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).ok()?;
    let file = options.read(true).custom_flags(flags).open(directory.join(MARK)).ok()?;
    let of_file = file.metadata().ok().filter(fs::Metadata::is_file)?;
    if [meta.uid(), of_file.uid()] != [user::effective(); 2] {
        return None;
    }
    // A run that is alive holds it, and so does one that removes this directory at the same time.
    file.try_lock().ok()?;
    let mut text = Vec::new();
    (&file).take(LONGEST).read_to_end(&mut text).ok()?;
    let mark: Mark = serde_json::from_slice(&text).ok()?;
    (mark.is_of(&meta) && !mark.kept).then_some((mark, file))
}

/// Ends the server that works there, if one does.
fn stop_server(directory: &Path) -> Result<(), String> {
    let log = match File::open(directory.join(LOG)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        log => log.map_err(|e| e.to_string())?,
    };
    let data = directory.canonicalize().map_err(|e| e.to_string())?.join("data");
    let until = Instant::now() + STOPPING;
    loop {
        match log.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(e)) => return Err(e.to_string()),
            Err(TryLockError::WouldBlock) if Instant::now() < until => {}
            Err(TryLockError::WouldBlock) => {
                let pids: Vec<String> =
                    working_in(&data, Path::new(PROC)).iter().map(u32::to_string).collect();
                return Err(match pids.is_empty() {
                    true => "its server runs where it cannot be seen from here".to_owned(),
                    false => format!("its server does not end (process {})", pids.join(", ")),
                });
            }
        }
        for pid in working_in(&data, Path::new(PROC)) {
            quit(pid);
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}

/// Asks a process of the server to end at once, as `pg_ctl stop -m immediate` does.
fn quit(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let sent = pid.map_or(Ok(()), |pid| kill_process(pid, Signal::QUIT));
    if let Err(error) = sent {
        tracing::debug!("a process of an interrupted run's server was not signaled: {error}");
    }
}

/// The processes of a PostgreSQL server that work in a data directory, whatever they call it: a mount gives it another name, and in
/// another container another directory may have its name.
fn working_in(data: &Path, proc: &Path) -> Vec<u32> {
    let Some(here) = Identity::of(data) else { return Vec::new() };
    let processes = fs::read_dir(proc).into_iter().flatten().flatten();
    let found = processes.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let process = entry.path();
        let works_here = || workdir::look(&process, Identity::of).flatten() == Some(here);
        (is_a_server(&process) && works_here()).then_some(pid)
    });
    found.collect()
}

fn is_a_server(process: &Path) -> bool {
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    let program = fs::read_link(process.join("exe")).unwrap_or_default();
    name.contains("postgres")
        || program.file_name().is_some_and(|name| name.to_string_lossy().contains("postgres"))
}

#[cfg(test)]
mod tests {
    use walpoint_base::durable;

    use super::super::directory::ScratchDirectory;
    use super::*;

    fn place() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn what_a_run_that_lives_holds_or_a_person_keeps_stays() {
        let place = place();
        let cluster = "main".parse().unwrap();
        let living = ScratchDirectory::fresh(place.path(), &cluster, false).unwrap();
        let kept = ScratchDirectory::fresh(place.path(), &cluster, true).unwrap();
        let (living_path, kept_path) = (living.path().to_owned(), kept.path().to_owned());
        drop(kept);
        remove_all(place.path());
        assert!(living_path.exists() && kept_path.exists());
        fs::create_dir_all(living.data().join("base/1")).unwrap();
        drop(living);
        remove_all(place.path());
        assert!(!living_path.exists() && kept_path.exists());
    }

    #[test]
    fn a_directory_without_a_mark_of_its_own_stays() {
        let place = place();
        let cluster = "main".parse().unwrap();
        let original = ScratchDirectory::fresh(place.path(), &cluster, false).unwrap();
        let copy = place.path().join(format!("{PREFIX}copy"));
        fs::create_dir_all(copy.join("data")).unwrap();
        fs::copy(original.path().join(MARK), copy.join(MARK)).unwrap();
        let plain = place.path().join(format!("{PREFIX}plain"));
        fs::create_dir(&plain).unwrap();
        durable::create(&plain.join("precious"), b"x").unwrap();
        let linked = place.path().join(format!("{PREFIX}link"));
        std::os::unix::fs::symlink(original.path(), &linked).unwrap();
        drop(original);
        remove_one(&linked);
        assert!(linked.join(MARK).exists(), "a link is not followed");
        remove_all(place.path());
        assert!(copy.join(MARK).exists() && plain.join("precious").exists());
    }

    #[test]
    fn a_server_is_found_whatever_it_calls_its_directory() {
        use std::os::unix::fs::symlink;
        let place = place();
        let path = |name: &str| place.path().join(name);
        fs::create_dir_all(path("data")).unwrap();
        fs::create_dir_all(path("other")).unwrap();
        symlink(path("data"), path("alias")).unwrap();
        for (pid, cwd, name) in [
            ("7", "alias", "postgres"),
            ("8", "other", "postgres"),
            ("9", "alias", "bash"),
            ("10", "gone", "postgres"),
        ] {
            let process = place.path().join("proc").join(pid);
            fs::create_dir_all(&process).unwrap();
            symlink(path(cwd), process.join("cwd")).unwrap();
            durable::create(&process.join("comm"), name.as_bytes()).unwrap();
        }
        assert_eq!(working_in(&path("data"), &path("proc")), [7]);
        assert!(working_in(&path("gone"), &path("proc")).is_empty());
    }

    #[test]
    fn nothing_is_removed_where_others_can_rename_it() {
        use std::os::unix::fs::PermissionsExt;
        let place = place();
        let cluster = "main".parse().unwrap();
        let left = ScratchDirectory::fresh(place.path(), &cluster, false).unwrap();
        let path = left.path().to_owned();
        drop(left);
        let mode = |mode| fs::set_permissions(place.path(), fs::Permissions::from_mode(mode)).unwrap();
        mode(0o777);
        for given in [None, Some(path.clone())] {
            let error = directory::made(given, place.path(), &cluster, false).unwrap_err().to_string();
            assert!(error.contains("other users can rename") && path.join(MARK).exists(), "{error}");
        }
        mode(0o1777);
        let made = directory::made(None, place.path(), &cluster, false).unwrap();
        assert!(made.path().exists() && !path.exists());
    }

    #[test]
    fn a_given_directory_is_emptied_and_stays() {
        let place = place();
        let cluster = "main".parse().unwrap();
        let given = place.path().join("given");
        fs::create_dir(&given).unwrap();
        let directory = ScratchDirectory::given(&given, &cluster, false).unwrap();
        fs::create_dir_all(directory.data()).unwrap();
        drop(directory);
        assert!(
            ScratchDirectory::given(&given, &cluster, false).unwrap_err().to_string().contains("not empty")
        );
        remove_one(&given);
        ScratchDirectory::given(&given, &cluster, false).unwrap().remove().unwrap();
        assert_eq!(fs::read_dir(&given).unwrap().count(), 0);
        durable::create(&given.join("precious"), b"x").unwrap();
        assert!(ScratchDirectory::given(&given, &cluster, false).is_err());
    }
}
