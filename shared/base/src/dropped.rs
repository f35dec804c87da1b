//! The record of WAL that was given up (`queue_max`): a file in `pg_wal`, written by the command that PostgreSQL runs, because
//! the daemon may see the data directory only to read it.
//!
//! A line for each file: its name, and when it was given up in seconds since 1970. Lines are only added; those that a newer
//! backup makes up for mean nothing any more. A crash leaves a line or none, or the beginning of one, which is passed over.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::segment::WalFileName;

/// Its name in `pg_wal`.
pub const FILE: &str = "walpoint-dropped";

/// A file that was given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dropped {
    /// Which one.
    pub name: WalFileName,
    /// When, in seconds since 1970.
    pub at: i64,
}

/// What may be done with a file that is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recorded {
    /// It is on record, durably.
    Yes,
    /// The disk is full, and there is no room for a record until the file goes. It may go all the same.
    DiskFull,
}

/// Adds a file to the record in that directory. After an error it must not go.
pub fn record(directory: &Path, name: WalFileName) -> io::Result<Recorded> {
    match append(directory, name) {
        Ok(()) => Ok(Recorded::Yes),
        Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            Ok(Recorded::DiskFull)
        }
        Err(error) => Err(error),
    }
}

fn append(directory: &Path, name: WalFileName) -> io::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut file = OpenOptions::new().append(true).create(true).open(directory.join(FILE))?;
    // On a line of its own, also after one that was cut off; at once, so that those of two processes do not mix.
    file.write_all(format!("\n{name} {now}\n").as_bytes())?;
    file.sync_all()?;
    std::fs::File::open(directory)?.sync_all()
}

/// What stands in the record of that directory, oldest first; nothing if there is none.
pub fn read(directory: &Path) -> io::Result<Vec<Dropped>> {
    let content = match std::fs::read(directory.join(FILE)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        content => content?,
    };
    let text = String::from_utf8_lossy(&content);
    let line = |line: &str| {
        let (name, at) = line.split_once(' ')?;
        Some(Dropped { name: name.parse().ok()?, at: at.parse().ok()? })
    };
    Ok(text.lines().filter_map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_grows_and_survives_a_line_that_was_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), []);
        let names = ["000000010000000000000005", "00000002.history", "000000020000000000000006"];
        for name in names {
            record(dir.path(), name.parse().unwrap()).unwrap();
            let mut file = OpenOptions::new().append(true).open(dir.path().join(FILE)).unwrap();
            file.write_all(b"00000001000000").unwrap();
        }
        let read = read(dir.path()).unwrap();
        assert_eq!(read.iter().map(|dropped| dropped.name.to_string()).collect::<Vec<_>>(), names);
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
        assert!(read.iter().all(|dropped| (now - 60..=now).contains(&dropped.at)));
        assert!(record(&dir.path().join("nowhere"), names[0].parse().unwrap()).is_err());
    }

    #[test]
    fn a_full_disk_is_told_from_what_forbids_the_record() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join(FILE)).unwrap();
        let name = "000000010000000000000005".parse().unwrap();
        assert_eq!(record(dir.path(), name).unwrap(), Recorded::DiskFull);
    }
}
