//! The texts around a base backup: `backup_label`, `tablespace_map` and the backup history file in the archive.
//!
//! Sources: `src/backend/access/transam/xlogbackup.c` and `xlogrecovery.c` (`xlog.c` before 15). Label and map go back
//! into a restored data directory byte for byte; they are parsed only to be understood, and the map also to move
//! tablespaces.

use std::borrow::Cow;
use std::fmt;

use walpoint_base::{Lsn, PgMajor, SegmentName, TimelineId};

/// The name of the label in a data directory.
pub const BACKUP_LABEL_FILE: &str = "backup_label";
/// The name of the map in a data directory.
pub const TABLESPACE_MAP_FILE: &str = "tablespace_map";

/// What a `backup_label` says: where recovery from this backup must start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupLabel {
    /// Where replay starts.
    pub start: Lsn,
    /// The segment of that position.
    pub start_segment: SegmentName,
    /// The record of the checkpoint that began the backup.
    pub checkpoint: Lsn,
    /// `streamed`, or by the SQL functions.
    pub method: String,
    /// Whether it was taken from a standby.
    pub from_standby: bool,
    /// The server's time, as it wrote it.
    pub start_time: String,
    /// The label that was given.
    pub label: String,
    /// The timeline; every server from 11 on states it.
    pub timeline: TimelineId,
    /// An incremental backup (from 17): start position and timeline of the backup it builds on. Recovery needs it combined.
    pub incremental_from: Option<(Lsn, TimelineId)>,
}

/// What a `.backup` file in the archive says: a label, and where the backup ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupHistory {
    /// The beginning.
    pub label: BackupLabel,
    /// The first position from which the restored cluster is consistent.
    pub stop: Lsn,
    /// The segment of that position.
    pub stop_segment: SegmentName,
    /// The server's time, as it wrote it.
    pub stop_time: String,
    /// The timeline at the end.
    pub stop_timeline: TimelineId,
}

/// Why a label, history file or tablespace map cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// A line that must be there is not.
    #[error("the {file} has no line \"{line}\": it is damaged or not from PostgreSQL 13 to 19")]
    Missing {
        /// Which of the three.
        file: &'static str,
        /// The beginning of the line.
        line: &'static str,
    },
    /// A line that cannot be understood.
    #[error("the {file} has a line that cannot be understood: {line:?}")]
    Line {
        /// Which of the three.
        file: &'static str,
        /// Its first 200 characters.
        line: String,
    },
}

/// The lines `KEY: value` of a file.
struct Lines<'a> {
    file: &'static str,
    text: Cow<'a, str>,
}

impl<'a> Lines<'a> {
    /// The label that was given may be in any encoding of a database; everything else is ASCII.
    fn new(file: &'static str, content: &'a [u8]) -> Self {
        Self { file, text: String::from_utf8_lossy(content) }
    }

    fn find(&self, key: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
    }

    fn value(&self, key: &'static str) -> Result<&str, LabelError> {
        self.find(key).ok_or(LabelError::Missing { file: self.file, line: key })
    }

    fn bad(&self, line: &str) -> LabelError {
        LabelError::Line { file: self.file, line: line.chars().take(200).collect() }
    }

    fn parsed<T: std::str::FromStr>(&self, key: &'static str) -> Result<T, LabelError> {
        let value = self.value(key)?;
        value.trim().parse().map_err(|_| self.bad(value))
    }

    /// `0/2000028 (file 000000010000000000000002)`.
    fn location(&self, key: &'static str) -> Result<(Lsn, SegmentName), LabelError> {
        let value = self.value(key)?;
        let parse = || {
            let (lsn, file) = value.trim().split_once(" (file ")?;
            Some((lsn.parse().ok()?, file.strip_suffix(')')?.parse().ok()?))
        };
        parse().ok_or_else(|| self.bad(value))
    }

    fn label(&self) -> Result<BackupLabel, LabelError> {
        let (start, start_segment) = self.location("START WAL LOCATION")?;
        let incremental_from = match self.find("INCREMENTAL FROM LSN") {
            Some(_) => Some((self.parsed("INCREMENTAL FROM LSN")?, self.parsed("INCREMENTAL FROM TLI")?)),
            None => None,
        };
        Ok(BackupLabel {
            start,
            start_segment,
            checkpoint: self.parsed("CHECKPOINT LOCATION")?,
            method: self.value("BACKUP METHOD")?.to_owned(),
            from_standby: self.value("BACKUP FROM")? == "standby",
            start_time: self.value("START TIME")?.to_owned(),
            label: self.value("LABEL")?.to_owned(),
            timeline: self.parsed("START TIMELINE")?,
            incremental_from,
        })
    }
}

impl BackupLabel {
    /// Reads the text that `pg_backup_stop` returned, or the file.
    pub fn parse(content: &[u8]) -> Result<Self, LabelError> {
        Lines::new(BACKUP_LABEL_FILE, content).label()
    }
}

impl BackupHistory {
    /// Reads a `.backup` file.
    pub fn parse(content: &[u8]) -> Result<Self, LabelError> {
        let lines = Lines::new("backup history file", content);
        let (stop, stop_segment) = lines.location("STOP WAL LOCATION")?;
        Ok(Self {
            label: lines.label()?,
            stop,
            stop_segment,
            stop_time: lines.value("STOP TIME")?.to_owned(),
            stop_timeline: lines.parsed("STOP TIMELINE")?,
        })
    }
}

/// One tablespace outside the data directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MappedTablespace {
    /// Its OID, the name of the link in `pg_tblspc`.
    pub oid: u32,
    /// Where it lies, as raw bytes: a path need not be text.
    pub path: Vec<u8>,
}

impl fmt::Display for MappedTablespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.oid, String::from_utf8_lossy(&self.path))
    }
}

/// What a `tablespace_map` says: the links that recovery makes in `pg_tblspc`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TablespaceMap {
    /// In the order of the file.
    pub tablespaces: Vec<MappedTablespace>,
}

impl TablespaceMap {
    /// Reads the text that `pg_backup_stop` returned, or the file. From 14 a backslash stands before line breaks and
    /// backslashes of a path, in 13 only before line breaks.
    pub fn parse(content: &[u8], major: PgMajor) -> Result<Self, LabelError> {
        let mut tablespaces = Vec::new();
        let mut line = Vec::new();
        let mut rest = content.iter().copied().peekable();
        while let Some(byte) = rest.next() {
            match byte {
                b'\n' | b'\r' => {
                    finish(&mut line, &mut tablespaces)?;
                }
                b'\\' if rest.peek().is_some_and(|next| escapes(*next, major)) => line.extend(rest.next()),
                _ => line.push(byte),
            }
        }
        finish(&mut line, &mut tablespaces)?;
        Ok(Self { tablespaces })
    }

    /// The file, as PostgreSQL of that version reads it.
    pub fn to_bytes(&self, major: PgMajor) -> Vec<u8> {
        let mut file = Vec::new();
        for tablespace in &self.tablespaces {
            file.extend(tablespace.oid.to_string().bytes());
            file.push(b' ');
            for byte in &tablespace.path {
                if matches!(byte, b'\n' | b'\r') || (*byte == b'\\' && major.get() >= 14) {
                    file.push(b'\\');
                }
                file.push(*byte);
            }
            file.push(b'\n');
        }
        file
    }
}

/// Whether a backslash before this byte is dropped.
fn escapes(next: u8, major: PgMajor) -> bool {
    major.get() >= 14 || matches!(next, b'\n' | b'\r')
}

fn finish(line: &mut Vec<u8>, tablespaces: &mut Vec<MappedTablespace>) -> Result<(), LabelError> {
    let line = std::mem::take(line);
    if line.is_empty() {
        return Ok(());
    }
    let parse = || {
        let space = line.iter().position(|b| *b == b' ')?;
        let oid = std::str::from_utf8(line.get(..space)?).ok()?;
        let digits = oid.bytes().all(|b| b.is_ascii_digit());
        let path = line.get(space + 1..).filter(|path| !path.is_empty())?;
        Some(MappedTablespace { oid: digits.then(|| oid.parse().ok()).flatten()?, path: path.to_vec() })
    };
    let text = || String::from_utf8_lossy(&line).chars().take(200).collect();
    tablespaces.push(parse().ok_or_else(|| LabelError::Line { file: TABLESPACE_MAP_FILE, line: text() })?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LABEL: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        CHECKPOINT LOCATION: 0/2000060\n\
        BACKUP METHOD: streamed\n\
        BACKUP FROM: primary\n\
        START TIME: 2026-11-21 10:00:00 UTC\n\
        LABEL: nightly: full\n\
        START TIMELINE: 1\n";

    #[test]
    fn labels_of_every_version_are_read() {
        let label = BackupLabel::parse(LABEL.as_bytes()).unwrap();
        assert_eq!((label.start, label.checkpoint), (Lsn(0x200_0028), Lsn(0x200_0060)));
        assert_eq!(label.start_segment.to_string(), "000000010000000000000002");
        assert_eq!((label.label.as_str(), label.from_standby), ("nightly: full", false));
        assert_eq!(label.incremental_from, None);
        let older = LABEL.replace("primary", "master");
        assert!(!BackupLabel::parse(older.as_bytes()).unwrap().from_standby);
        let newer = format!("{LABEL}INCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\n");
        let from = BackupLabel::parse(newer.as_bytes()).unwrap().incremental_from;
        assert_eq!(from, Some((Lsn(0x100_0028), TimelineId::FIRST)));
    }

    #[test]
    fn a_history_file_also_says_where_the_backup_ended() {
        let text =
            LABEL.replacen('\n', "\nSTOP WAL LOCATION: 0/3000138 (file 000000010000000000000003)\n", 1)
                + "STOP TIME: 2026-11-21 10:05:00 UTC\nSTOP TIMELINE: 1\n";
        let history = BackupHistory::parse(text.as_bytes()).unwrap();
        assert_eq!((history.stop, history.label.start), (Lsn(0x300_0138), Lsn(0x200_0028)));
        let error = BackupHistory::parse(LABEL.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("no line \"STOP WAL LOCATION\""), "{error}");
    }

    #[test]
    fn damaged_labels_are_errors() {
        for (from, to) in
            [("0/2000028", "x"), ("(file 0", "(file x"), ("TIMELINE: 1", "TIMELINE: 0"), ("LABEL: ", "")]
        {
            assert!(BackupLabel::parse(LABEL.replace(from, to).as_bytes()).is_err(), "{from}");
        }
    }

    #[test]
    fn paths_with_line_breaks_and_backslashes_survive() {
        let old = PgMajor::new(13).unwrap();
        let new = PgMajor::new(17).unwrap();
        let map = TablespaceMap::parse(b"16385 /srv/a b\n16386 /srv/c\\\nd\n", new).unwrap();
        assert_eq!(map.tablespaces[0], MappedTablespace { oid: 16385, path: b"/srv/a b".to_vec() });
        assert_eq!(map.tablespaces[1].path, b"/srv/c\nd");
        assert_eq!(TablespaceMap::parse(b"1 /x\\y\n", old).unwrap().tablespaces[0].path, b"/x\\y");
        assert_eq!(TablespaceMap::parse(b"1 /x\\\\y\n", new).unwrap().tablespaces[0].path, b"/x\\y");
        assert_eq!(TablespaceMap::parse(b"", new), Ok(TablespaceMap::default()));
        for bad in [&b"x /srv\n"[..], b"1\n", b"1 \n", b"+1 /srv\n", b" /srv\n"] {
            assert!(TablespaceMap::parse(bad, new).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _results = (BackupLabel::parse(&bytes), BackupHistory::parse(&bytes));
            let _map = TablespaceMap::parse(&bytes, PgMajor::new(13).unwrap());
        }

        #[test]
        fn maps_survive_writing(
            entries in proptest::collection::vec((any::<u32>(), "/[a-z\\\\\n\r ]{0,12}[a-z]"), 0..5),
            major in 13u32..=18,
        ) {
            let major = PgMajor::new(major).unwrap();
            // 13 cannot tell a backslash before a line break from an escape.
            prop_assume!(major.get() > 13 || entries.iter().all(|(_, path)| !path.contains("\\\n") && !path.contains("\\\r")));
            let tablespaces = entries.into_iter().map(|(oid, path)| MappedTablespace { oid, path: path.into_bytes() });
            let map = TablespaceMap { tablespaces: tablespaces.collect() };
            prop_assert_eq!(TablespaceMap::parse(&map.to_bytes(major), major), Ok(map));
        }
    }
}
