//! A daemon that hung a moment ago, remembered in `pg_wal`: PostgreSQL starts this program once for each file, and not each of them is to
//! wait as long as the first one did.
//!
//! The mark holds device and inode of the daemon's socket and the time, in seconds since 1970. A daemon that was restarted has another
//! socket. A mark that is old, cut off or of another socket means nothing.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use walpoint_base::owned;

/// Its name in `pg_wal`.
pub(crate) const FILE: &str = "walpoint-hung";

/// Seconds for which it counts.
const REMEMBERED: u64 = 60;

/// A mark is shorter.
const LONGEST: u64 = 100;

/// The mark of a socket, set or not.
#[derive(Debug)]
pub(crate) struct HungMark {
    path: PathBuf,
    socket: (u64, u64),
}

impl HungMark {
    /// In that directory of WAL. `None` if it is none: a file that lies elsewhere was pushed by hand.
    pub(crate) fn of(socket: &Metadata, directory: &Path) -> Option<Self> {
        let is_wal = directory.join("archive_status").is_dir();
        is_wal.then(|| Self { path: directory.join(FILE), socket: (socket.dev(), socket.ino()) })
    }

    /// Whether the daemon hung within the last minute. A mark that cannot be read says nothing.
    pub(crate) fn is_set(&self) -> bool {
        let mut text = String::new();
        let read = File::open(&self.path).and_then(|file| file.take(LONGEST).read_to_string(&mut text));
        let Some(line) = text.strip_suffix('\n').filter(|_| read.is_ok()) else { return false };
        let mut fields = line.split(' ').map(|field| field.parse::<u64>().ok());
        let mut field = || fields.next().flatten();
        let socket = (field(), field());
        let age = field().and_then(|at| now().checked_sub(at));
        socket == (Some(self.socket.0), Some(self.socket.1)) && age.is_some_and(|age| age < REMEMBERED)
    }

    /// The daemon hangs.
    pub(crate) fn set(&self) -> io::Result<()> {
        let (device, inode) = self.socket;
        let open = || owned::open(&self.path, OpenOptions::new().write(true).truncate(true));
        // One that another user left goes: the directory is PostgreSQL's.
        let denied = |error: io::Error| match error.kind() {
            ErrorKind::PermissionDenied => std::fs::remove_file(&self.path).and_then(|()| open()),
            _ => Err(error),
        };
        let mut file = open().or_else(denied)?;
        file.write_all(format!("{device} {inode} {}\n", now()).as_bytes())
    }

    /// The daemon answers. A mark that stays expires by itself, and until then costs each file one question more.
    pub(crate) fn clear(&self) {
        std::fs::remove_file(&self.path).ok();
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_counts_for_a_minute_and_for_its_socket() {
        let dir = std::env::temp_dir().join(format!("archive-push-hung-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("archive_status")).unwrap();
        let socket = std::fs::metadata(&dir).unwrap();
        let mark = HungMark::of(&socket, &dir).unwrap();
        assert!(!mark.is_set());
        mark.set().unwrap();
        assert!(mark.is_set() && HungMark::of(&socket, &dir).unwrap().is_set());
        let other = std::fs::metadata(dir.join("archive_status")).unwrap();
        assert!(!HungMark::of(&other, &dir).unwrap().is_set(), "a daemon that was started again");
        assert!(HungMark::of(&socket, &dir.join("archive_status")).is_none(), "no directory of WAL");
        let of = |at: u64| format!("{} {} {at}\n", socket.dev(), socket.ino());
        let whole = of(now());
        for (text, set) in [
            (of(now() - REMEMBERED), false),
            (of(now() + 100), false),
            (whole.clone(), true),
            (whole.trim_end().to_owned(), false),
            (whole.replace(' ', "x"), false),
            (String::new(), false),
        ] {
            File::create(mark.path.clone()).unwrap().write_all(text.as_bytes()).unwrap();
            assert_eq!(mark.is_set(), set, "{text:?}");
        }
        mark.set().unwrap();
        mark.clear();
        assert!(!mark.is_set());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
