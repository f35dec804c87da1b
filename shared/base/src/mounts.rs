//! On which mount a path lies, by this process's list of mounts (`proc_pid_mountinfo(5)`).
//!
//! Nothing is asked of the filesystem itself, which may hang. The kernel gives the number of a mount to no other one while a call
//! into it has not returned, even if it was unmounted lazily: a new number proves that another mount has taken its place.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

/// Where paths led when they were opened last, without links.
static REAL: LazyLock<Mutex<HashMap<PathBuf, PathBuf>>> = LazyLock::new(Mutex::default);

/// Remembers where a path leads: its links cannot be read any more once a filesystem on the way hangs.
pub fn leads_to(path: &Path, real: PathBuf) {
    REAL.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), real);
}

/// The number of the mount on which a path lies; `None` where the list cannot be read.
pub fn of(path: &Path) -> Option<u64> {
    let real = REAL.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
    // In bytes: a mount point may have any name.
    let mounts = fs::read("/proc/self/mountinfo").ok()?;
    number_in(&mounts, real.as_deref().unwrap_or(path))
}

/// The last one of the longest mount points around the path: it covers those before it.
fn number_in(mountinfo: &[u8], path: &Path) -> Option<u64> {
    let mounts = mountinfo.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let number = std::str::from_utf8(fields.next()?).ok()?.parse::<u64>().ok()?;
        Some((number, unescaped(fields.nth(3)?)))
    });
    let around = mounts.filter(|(_, point)| path.starts_with(point));
    around.max_by_key(|(_, point)| point.components().count()).map(|(number, _)| number)
}

/// A mount point as the list has it, with blanks and the like as `\040`.
fn unescaped(point: &[u8]) -> PathBuf {
    let mut parts = point.split(|byte| *byte == b'\\');
    let mut bytes = parts.next().unwrap_or_default().to_vec();
    for part in parts {
        let digits = part.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend_from_slice(part.get(3..).unwrap_or_default());
            }
            None => bytes.extend_from_slice(part),
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &[u8] = b"21 1 8:1 / / rw - ext4 a rw\n\
        30 21 0:40 / /mnt/the\\040store rw shared:1 - nfs4 b:/x rw\n\
        31 21 8:2 / /mnt rw - ext4 c rw\n\
        32 30 0:41 / /mnt/the\\040store rw - nfs4 b:/y rw\n";

    #[test]
    fn the_newest_of_the_longest_mount_points_counts() {
        for (path, number) in [
            ("/var/store", 21),
            ("/mnt", 31),
            ("/mnt/the", 31),
            ("/mnt/the store", 32),
            ("/mnt/the store/backups", 32),
        ] {
            assert_eq!(number_in(MOUNTS, Path::new(path)), Some(number), "{path}");
        }
        assert_eq!(number_in(b"", Path::new("/mnt")), None);
        assert_eq!(number_in(b"noise\n1\n", Path::new("/mnt")), None);
        assert!(of(Path::new("/")).is_some());
    }

    #[test]
    fn a_link_is_followed_to_where_it_led() {
        leads_to(Path::new("/a link"), "/proc".into());
        assert_eq!(of(Path::new("/a link")), of(Path::new("/proc")));
    }
}
