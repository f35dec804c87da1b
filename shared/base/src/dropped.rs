//! The record of WAL that recovery cannot pass: a file in `pg_wal`, written by the command that PostgreSQL runs (`queue_max`) or by an
//! operator's command (`push --skip`, `push --accept-damaged`), because the daemon may see the data directory only to read it. A base
//! backup leaves it out with all of `pg_wal`: what a restored cluster cannot pass shows in the repository.
//!
//! A line for each file: its name, when it was dropped in seconds since 1970, and `skip` if an operator decided so; `damaged` if it
//! was archived although it is damaged. `archived` ends what the lines of that file before it say: it was dropped, and was acknowledged
//! as a sound one after all. It does not end `damaged`: what is stored keeps a sound copy from being stored in its place. Lines are
//! only added; those that a newer backup makes up for mean nothing any more. A crash leaves a line or none, or the beginning
//! of one, which is skipped, as is one that this version does not know.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
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

/// What a line ends with if the file was archived after all, sound.
const ARCHIVED: &str = "archived";

/// Bytes at the end of the record in which a file that is archived is looked for: more than a thousand lines. One that was dropped longer
/// ago stays on record until a backup makes up for it.
const RECENT: u64 = 64 << 10;

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

/// What a line says of a file.
struct Line {
    name: WalFileName,
    at: i64,
    /// `None`: it was archived after all.
    reason: Option<DropReason>,
}

/// Adds a file to the record in that directory. After an error it must not go.
pub fn record(directory: &Path, name: WalFileName, reason: DropReason) -> io::Result<Recorded> {
    match append(directory, name, Some(reason)) {
        Ok(()) => Ok(Recorded::Yes),
        Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            Ok(Recorded::DiskFull)
        }
        Err(error) => Err(owned::advise(&directory.join(FILE), error)),
    }
}

/// Adds that a file was archived after all. After an error it counts as dropped still.
pub fn record_archived(directory: &Path, name: WalFileName) -> io::Result<()> {
    append(directory, name, None)
}

fn append(directory: &Path, name: WalFileName, reason: Option<DropReason>) -> io::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut file = owned::open(&directory.join(FILE), OpenOptions::new().append(true))?;
    // On a line of its own, also after one that was cut off; at once, so that those of two processes do not mix.
    let line = match reason {
        Some(DropReason::QueueMax) => format!("\n{name} {now}\n"),
        Some(DropReason::Skipped) => format!("\n{name} {now} {SKIP}\n"),
        Some(DropReason::Damaged) => format!("\n{name} {now} {DAMAGED}\n"),
        None => format!("\n{name} {now} {ARCHIVED}\n"),
    };
    file.write_all(line.as_bytes())?;
    file.sync_all()?;
    File::open(directory)?.sync_all()
}

/// What recovery cannot pass by the record of that directory, oldest first; nothing if there is none. A file that is there several times
/// is given once, with the time of its first line since it was archived last; damaged or else skipped, if one of its lines says so.
pub fn read(directory: &Path) -> io::Result<Vec<Dropped>> {
    let text = text(directory)?;
    let mut known: HashMap<WalFileName, (usize, Dropped)> = HashMap::new();
    for (n, Line { name, at, reason }) in text.lines().filter_map(parse).enumerate() {
        match (reason, known.get_mut(&name)) {
            (Some(reason), Some((_, before))) => before.reason = before.reason.max(reason),
            (Some(reason), None) => {
                known.insert(name, (n, Dropped { name, at, reason }));
            }
            (None, Some((_, Dropped { reason: DropReason::Damaged, .. })) | None) => {}
            (None, Some(_)) => {
                known.remove(&name);
            }
        }
    }
    let mut all: Vec<(usize, Dropped)> = known.into_values().collect();
    all.sort_unstable_by_key(|(n, _)| *n);
    Ok(all.into_iter().map(|(_, dropped)| dropped).collect())
}

/// Whether the newest that the record of that directory says of a file is that it was dropped or skipped, as far as it says so in its
/// last 64 KiB.
pub fn is_dropped(directory: &Path, name: WalFileName) -> io::Result<bool> {
    let mut file = match File::open(directory.join(FILE)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(RECENT)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let newest = text.lines().rev().filter_map(parse).find(|line| line.name == name);
    Ok(matches!(newest.and_then(|line| line.reason), Some(DropReason::QueueMax | DropReason::Skipped)))
}

/// Whether an operator's latest decision about a file is to go on without it, and it was not archived since. That it was archived damaged
/// before does not matter: recovery cannot pass it either way, and what is stored keeps a sound copy from being stored in its place.
pub fn is_skipped(directory: &Path, name: WalFileName) -> io::Result<bool> {
    let text = text(directory)?;
    let mut decisions = text.lines().rev().filter_map(parse);
    let latest = decisions.find(|line| line.name == name && line.reason != Some(DropReason::QueueMax));
    Ok(latest.is_some_and(|line| line.reason == Some(DropReason::Skipped)))
}

/// The newest line of the record in that directory, with its own time and reason; `None` also if it says that a file was archived.
pub fn newest(directory: &Path) -> io::Result<Option<Dropped>> {
    let newest = text(directory)?.lines().rev().find_map(parse);
    Ok(newest.and_then(|Line { name, at, reason }| Some(Dropped { name, at, reason: reason? })))
}

/// The content of the record; nothing if there is none.
fn text(directory: &Path) -> io::Result<String> {
    match std::fs::read(directory.join(FILE)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        content => Ok(String::from_utf8_lossy(&content?).into_owned()),
    }
}

fn parse(line: &str) -> Option<Line> {
    let mut fields = line.split(' ');
    let (name, at) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let reason = match fields.next() {
        None => Some(DropReason::QueueMax),
        Some(SKIP) => Some(DropReason::Skipped),
        Some(DAMAGED) => Some(DropReason::Damaged),
        Some(ARCHIVED) => None,
        Some(_) => return None,
    };
    Some(Line { name, at, reason })
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
    fn a_file_that_was_archived_after_all_counts_no_more_until_it_is_dropped_again() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["000000010000000000000005", "000000010000000000000006", "00000002.history"]
            .map(|name| name.parse::<WalFileName>().unwrap());
        let drop = |name, reason| {
            assert_eq!(record(dir.path(), name, reason).unwrap(), Recorded::Yes);
        };
        let archive = |name| record_archived(dir.path(), name).unwrap();
        let left = || read(dir.path()).unwrap().iter().map(|dropped| dropped.name).collect::<Vec<_>>();
        let dropped = || names.map(|name| is_dropped(dir.path(), name).unwrap());
        assert_eq!((left(), dropped()), (vec![], [false; 3]), "there is no record");
        drop(names[0], DropReason::QueueMax);
        drop(names[1], DropReason::Skipped);
        drop(names[2], DropReason::QueueMax);
        assert_eq!((left(), dropped()), (names.to_vec(), [true; 3]));
        archive(names[0]);
        archive(names[1]);
        assert_eq!((left(), dropped()), (names[2..].to_vec(), [false, false, true]));
        assert!(!is_skipped(dir.path(), names[1]).unwrap(), "it is stored, and waits if that is in doubt");
        assert_eq!(newest(dir.path()).unwrap(), None, "something was stored since");
        drop(names[0], DropReason::QueueMax);
        assert_eq!(left(), [names[2], names[0]]);
        assert!(is_dropped(dir.path(), names[0]).unwrap());
    }

    #[test]
    fn what_was_archived_damaged_stays_on_record_whatever_is_archived_later() {
        let name = "000000010000000000000005".parse().unwrap();
        let (full, damaged) = (Some(DropReason::QueueMax), Some(DropReason::Damaged));
        for lines in [vec![damaged, None], vec![full, damaged, None], vec![full, None, damaged]] {
            let dir = tempfile::tempdir().unwrap();
            lines.iter().for_each(|reason| append(dir.path(), name, *reason).unwrap());
            let read = read(dir.path()).unwrap();
            assert_eq!(
                read.iter().map(|one| one.reason).collect::<Vec<_>>(),
                [DropReason::Damaged],
                "{lines:?}"
            );
            assert!(!is_dropped(dir.path(), name).unwrap(), "{lines:?}");
        }
    }

    #[test]
    fn a_file_that_is_archived_is_looked_for_at_the_end_of_a_long_record_only() {
        let dir = tempfile::tempdir().unwrap();
        let name = |n: u64| format!("0000000100000000{n:08X}").parse::<WalFileName>().unwrap();
        let all: String = (0..30_000).map(|n| format!("\n{} 1790000000\n", name(n))).collect();
        crate::durable::replace(&dir.path().join(FILE), all.as_bytes(), 0o600).unwrap();
        let dropped = |n| is_dropped(dir.path(), name(n)).unwrap();
        assert!(dropped(29_999) && dropped(29_000) && !dropped(0) && !dropped(30_000));
        assert_eq!(read(dir.path()).unwrap().len(), 30_000);
    }

    #[test]
    fn a_full_disk_is_told_from_what_forbids_the_record() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join(FILE)).unwrap();
        let name = "000000010000000000000005".parse().unwrap();
        assert_eq!(record(dir.path(), name, DropReason::QueueMax).unwrap(), Recorded::DiskFull);
    }
}
