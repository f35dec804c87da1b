//! The record of WAL that recovery cannot pass: a file in `pg_wal`, written by the command that PostgreSQL runs (`queue_max`) or by an
//! operator's command (`push --skip`, `push --accept-damaged`), because the daemon may see the data directory only to read it.
//!
//! A line for each file: its name, when it was dropped in seconds since 1970, and `skip` if an operator decided so; `damaged` if it
//! was archived although it is damaged. Lines are
//! only added; those that a newer backup makes up for mean nothing any more. A crash leaves a line or none, or the beginning
//! of one, which is skipped.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::owned;
use crate::segment::WalFileName;

/// Its name in `pg_wal`.
pub const FILE: &str = "walpoint-dropped";

/// What a line ends with if an operator decided.
const SKIP: &str = "skip";

/// What a line ends with if the file was archived, damaged.
const DAMAGED: &str = "damaged";

/// A file that was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dropped {
    /// Which one.
    pub name: WalFileName,
    /// When, in seconds since 1970.
    pub at: i64,
    /// Why.
    pub reason: DropReason,
}

/// Why recovery cannot pass a file, the later ones also where an earlier one was noted before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum DropReason {
    /// More than `queue_max` waited, and it could not be stored.
    QueueMax,
    /// An operator asked for it.
    Skipped,
    /// It was not dropped but archived although it is damaged, as an operator asked for.
    Damaged,
}

/// What may be done with a file that is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recorded {
    /// It is on record, durably.
    Yes,
    /// The disk is full, and there is no room for a record until the file goes. It may go all the same.
    DiskFull,
}

/// Adds a file to the record in that directory. After an error it must not go.
pub fn record(directory: &Path, name: WalFileName, reason: DropReason) -> io::Result<Recorded> {
    match append(directory, name, reason) {
        Ok(()) => Ok(Recorded::Yes),
        Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            Ok(Recorded::DiskFull)
        }
        Err(error) => Err(owned::advise(&directory.join(FILE), error)),
    }
}

fn append(directory: &Path, name: WalFileName, reason: DropReason) -> io::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut file = owned::open(&directory.join(FILE), OpenOptions::new().append(true))?;
    // On a line of its own, also after one that was cut off; at once, so that those of two processes do not mix.
    let line = match reason {
        DropReason::QueueMax => format!("\n{name} {now}\n"),
        DropReason::Skipped => format!("\n{name} {now} {SKIP}\n"),
        DropReason::Damaged => format!("\n{name} {now} {DAMAGED}\n"),
    };
    file.write_all(line.as_bytes())?;
    file.sync_all()?;
    std::fs::File::open(directory)?.sync_all()
}

/// What stands in the record of that directory, oldest first; nothing if there is none. A file that is there several times is
/// given once, with its first time; damaged or else skipped, if one of its lines says so.
pub fn read(directory: &Path) -> io::Result<Vec<Dropped>> {
    let content = match std::fs::read(directory.join(FILE)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        content => content?,
    };
    let text = String::from_utf8_lossy(&content);
    let mut all: Vec<Dropped> = Vec::new();
    let mut known: HashMap<WalFileName, usize> = HashMap::new();
    for dropped in text.lines().filter_map(parse) {
        let at = *known.entry(dropped.name).or_insert(all.len());
        match all.get_mut(at) {
            Some(before) => before.reason = before.reason.max(dropped.reason),
            None => all.push(dropped),
        }
    }
    Ok(all)
}

/// Whether an operator's latest decision about a file is to go on without it. That it was archived damaged before does not matter:
/// recovery cannot pass it either way, and what is stored keeps a sound copy from being stored in its place.
pub fn is_skipped(directory: &Path, name: WalFileName) -> io::Result<bool> {
    let content = match std::fs::read(directory.join(FILE)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        content => content?,
    };
    let text = String::from_utf8_lossy(&content);
    let mut decisions = text.lines().rev().filter_map(parse);
    let latest = decisions.find(|line| line.name == name && line.reason != DropReason::QueueMax);
    Ok(latest.is_some_and(|line| line.reason == DropReason::Skipped))
}

/// The newest line of the record in that directory, with its own time and reason.
pub fn newest(directory: &Path) -> io::Result<Option<Dropped>> {
    match std::fs::read(directory.join(FILE)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        content => Ok(String::from_utf8_lossy(&content?).lines().rev().find_map(parse)),
    }
}

fn parse(line: &str) -> Option<Dropped> {
    let mut fields = line.split(' ');
    let (name, at) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let reason = match fields.next() {
        None => DropReason::QueueMax,
        Some(SKIP) => DropReason::Skipped,
        Some(DAMAGED) => DropReason::Damaged,
        Some(_) => return None,
    };
    Some(Dropped { name, at, reason })
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
            record(dir.path(), name.parse().unwrap(), DropReason::QueueMax).unwrap();
            let mut file = OpenOptions::new().append(true).open(dir.path().join(FILE)).unwrap();
            file.write_all(b"00000001000000").unwrap();
        }
        let read = read(dir.path()).unwrap();
        assert_eq!(read.iter().map(|dropped| dropped.name.to_string()).collect::<Vec<_>>(), names);
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
        assert!(read.iter().all(|dropped| (now - 60..=now).contains(&dropped.at)));
        assert!(
            record(&dir.path().join("nowhere"), names[0].parse().unwrap(), DropReason::QueueMax).is_err()
        );
    }

    #[test]
    fn a_file_counts_once_and_is_skipped_if_that_was_decided() {
        let dir = tempfile::tempdir().unwrap();
        let names =
            ["000000010000000000000005", "000000010000000000000006"].map(|name| name.parse().unwrap());
        let lines = [
            (0, DropReason::QueueMax),
            (1, DropReason::Skipped),
            (0, DropReason::Skipped),
            (1, DropReason::Damaged),
            (1, DropReason::QueueMax),
        ];
        lines.iter().for_each(|(n, reason)| {
            assert_eq!(record(dir.path(), names[*n], *reason).unwrap(), Recorded::Yes)
        });
        let read = read(dir.path()).unwrap();
        assert_eq!(read.iter().map(|dropped| dropped.name).collect::<Vec<_>>(), names);
        assert_eq!(
            read.iter().map(|dropped| dropped.reason).collect::<Vec<_>>(),
            [DropReason::Skipped, DropReason::Damaged]
        );
        let newest = newest(dir.path()).unwrap().unwrap();
        assert_eq!((newest.name, newest.reason), (names[1], DropReason::QueueMax));
        let skipped = |name| is_skipped(dir.path(), name).unwrap();
        assert_eq!(names.map(skipped), [true, false]);
    }

    #[test]
    fn a_file_that_was_archived_damaged_can_be_skipped_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let name = "000000010000000000000005".parse().unwrap();
        assert!(!is_skipped(dir.path(), name).unwrap());
        for (reason, skipped) in
            [(DropReason::Damaged, false), (DropReason::Skipped, true), (DropReason::QueueMax, true)]
        {
            record(dir.path(), name, reason).unwrap();
            assert_eq!(is_skipped(dir.path(), name).unwrap(), skipped, "{reason:?}");
        }
        assert_eq!(
            read(dir.path()).unwrap()[0].reason,
            DropReason::Damaged,
            "the report keeps what is stored"
        );
    }

    #[test]
    fn a_full_disk_is_told_from_what_forbids_the_record() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join(FILE)).unwrap();
        let name = "000000010000000000000005".parse().unwrap();
        assert_eq!(record(dir.path(), name, DropReason::QueueMax).unwrap(), Recorded::DiskFull);
    }
}
