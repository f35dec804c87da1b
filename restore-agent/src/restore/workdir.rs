//! Where other processes work, and what lies there, without waiting for a filesystem that does not answer.
//!
//! A process may work on a filesystem that hangs: another cluster's storage, a network mount whose server is gone. Whatever follows its
//! `/proc/<pid>/cwd` hangs there too, so that is done on a thread, which is left behind if it does not come back in time. The thread ends
//! with the program.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

/// How long a filesystem may take to answer.
const LIMIT: Duration = Duration::from_secs(2);

/// Where nothing came back: the directory's name, and the mounts in which it is called so.
static SILENT: Mutex<BTreeSet<(PathBuf, PathBuf)>> = Mutex::new(BTreeSet::new());

/// Looks at the directory in which a process works; `None` if that does not answer. `process`: its directory in `/proc`.
pub(crate) fn look<T: Send + 'static>(
    process: &Path,
    look: impl FnOnce(&Path) -> T + Send + 'static,
) -> Option<T> {
    within(LIMIT, process, look)
}

fn within<T: Send + 'static>(
    limit: Duration,
    process: &Path,
    look: impl FnOnce(&Path) -> T + Send + 'static,
) -> Option<T> {
    let cwd = process.join("cwd");
    // Neither link is followed. All processes of a server work in one directory: it is waited for once.
    let place = fs::read_link(&cwd).ok().zip(fs::read_link(process.join("ns/mnt")).ok());
    let silent = || SILENT.lock().unwrap_or_else(PoisonError::into_inner);
    if place.as_ref().is_some_and(|place| silent().contains(place)) {
        return None;
    }
    let (found, answer) = mpsc::channel();
    std::thread::spawn(move || found.send(look(&cwd)).ok());
    let answer = answer.recv_timeout(limit).ok();
    if answer.is_none() {
        silent().extend(place);
    }
    answer
}

/// Whether the directory in which a process works is known to lie on another filesystem than this one does. No filesystem is asked.
pub(super) fn is_elsewhere(process: &Path, directory: &Path, proc: &Path) -> bool {
    let device = |path: &Path, process: &Path| {
        let mounts = fs::read_to_string(process.join("mountinfo")).ok()?;
        device_of(path, &mounts).map(str::to_owned)
    };
    let theirs = fs::read_link(process.join("cwd")).ok().and_then(|cwd| device(&cwd, process));
    let ours = fs::canonicalize(directory).ok().and_then(|directory| device(&directory, &proc.join("self")));
    matches!((theirs, ours), (Some(theirs), Some(ours)) if theirs != ours)
}

/// The device of the filesystem on which a path lies, by a `mountinfo`: the last one of the longest mount points.
fn device_of<'a>(path: &Path, mountinfo: &'a str) -> Option<&'a str> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let device = fields.nth(2)?;
        Some((device, unescaped(fields.nth(1)?)))
    });
    let around = mounts.filter(|(_, point)| path.starts_with(point));
    around.max_by_key(|(_, point)| point.components().count()).map(|(device, _)| device)
}

/// A mount point as `mountinfo` writes it, with spaces and the like as `\\040`.
fn unescaped(point: &str) -> PathBuf {
    let mut parts = point.split('\\');
    let mut text = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                text.push(byte);
                text.extend_from_slice(part.get(3..).unwrap_or_default().as_bytes());
            }
            None => text.extend_from_slice(part.as_bytes()),
        }
    }
    PathBuf::from(OsString::from_vec(text))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use walpoint_base::durable;

    use super::*;

    const MOUNTS: &str = "1 0 8:1 / / rw - ext4 a rw\n2 1 0:40 / /mnt/dead\\040one rw - nfs b rw\n3 1 8:2 / /mnt rw - ext4 c rw\n";

    /// What a hung filesystem does.
    fn never(_: &Path) {
        std::thread::park();
    }

    #[test]
    fn a_directory_that_does_not_answer_is_waited_for_once() {
        let dir = tempfile::tempdir().unwrap();
        for pid in ["7", "8"] {
            fs::create_dir_all(dir.path().join(pid).join("ns")).unwrap();
            symlink(dir.path().join("dead"), dir.path().join(pid).join("cwd")).unwrap();
            symlink("mnt:[1]", dir.path().join(pid).join("ns/mnt")).unwrap();
        }
        assert_eq!(within(Duration::from_millis(50), &dir.path().join("7"), never), None);
        // It is not even asked again.
        assert_eq!(look(&dir.path().join("8"), |_| 5), None);
        assert_eq!(look(&dir.path().join("9"), |cwd| cwd.ends_with("9/cwd")), Some(true));
    }

    #[test]
    fn the_filesystem_of_a_path_is_known_without_asking_it() {
        let device = |path: &str| device_of(Path::new(path), MOUNTS);
        assert_eq!(device("/mnt/dead one/data"), Some("0:40"));
        assert_eq!(device("/mnt/dead/data"), Some("8:2"));
        assert_eq!(device("/srv"), Some("8:1"));
        assert_eq!(device_of(Path::new("/srv"), ""), None);
    }

    #[test]
    fn only_what_is_known_lies_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for pid in ["self", "7", "8", "9"] {
            fs::create_dir_all(path(pid)).unwrap();
        }
        for (pid, cwd) in [("7", "/mnt/dead one/data"), ("8", "/srv"), ("9", "/mnt/dead one")] {
            symlink(cwd, path(pid).join("cwd")).unwrap();
        }
        for pid in ["self", "7", "8"] {
            durable::create(&path(pid).join("mountinfo"), MOUNTS.as_bytes()).unwrap();
        }
        let is_elsewhere = |pid: &str| is_elsewhere(&path(pid), Path::new("/"), dir.path());
        assert!(is_elsewhere("7"));
        assert!(!is_elsewhere("8") && !is_elsewhere("9") && !is_elsewhere("10"));
    }
}
