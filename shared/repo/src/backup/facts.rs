//! What a backup says about itself: the part of a manifest that fits on a screen. JSON, in the manifest's meta frame,
//! so that one small ranged request reads it.

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use walpoint_base::{BackupId, LineageId, Lsn, PgMajor, SegmentName, SegmentNo, SegmentSize, TimelineId};

use super::geometry::BlockSize;
use super::json::{HexBytes, major, text, texts, timeline};
use super::wire::Malformed;

/// No meta frame of a manifest, intent or tombstone is longer than this many plain bytes.
pub(super) const MAX_SUMMARY: usize = 1 << 20;

/// How the cluster was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// From the files of the data directory, between `pg_backup_start` and `pg_backup_stop`.
    Local,
    /// Sent by the server (`BASE_BACKUP`).
    Remote,
}

/// Whether a backup uses blocks that other backups stored. Every backup is complete either way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BackupKind {
    /// It stored all its blocks itself.
    Full,
    /// It uses blocks that other backups stored.
    Incremental,
}

impl fmt::Display for BackupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Incremental => "incremental",
        })
    }
}

/// A tablespace as it was.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackupTablespace {
    /// Its oid; its files are in the table below `pg_tblspc/<oid>`.
    pub oid: u32,
    /// Its directory on the server, in hexadecimal in JSON.
    pub path: HexBytes,
}

/// The name of a user or group, for restores on another machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OwnerName {
    /// Its number.
    pub id: u32,
    /// Its name on the machine that was backed up.
    pub name: String,
}

/// What the backup's caller knows and says before the manifest is written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackupDescription {
    /// A person's label for it; may be empty.
    pub label: String,
    /// The version of Walpoint that made it.
    pub agent: String,
    /// The machine it was made on.
    pub host: String,
    /// When it began.
    pub started: Timestamp,
    /// When the last file was read and the backup stopped.
    pub ended: Timestamp,
    /// How the cluster was read.
    pub method: Method,
    /// Whether it was read from a standby.
    pub from_standby: bool,

    /// Which life of which cluster; holds the system identifier.
    #[serde(with = "text")]
    pub lineage: LineageId,
    /// PostgreSQL's major version.
    #[serde(with = "major")]
    pub major: PgMajor,
    /// Bytes of a block (`BLCKSZ`); every file is cut by it.
    pub block_size: u32,
    /// Blocks in a full segment file of a relation (`RELSEG_SIZE`).
    pub relation_segment_blocks: u32,
    /// Bytes of a WAL segment.
    pub wal_segment_size: u64,
    /// Whether the cluster has data checksums.
    pub data_checksums: bool,

    /// The timeline on which it started.
    #[serde(with = "timeline")]
    pub start_timeline: TimelineId,
    /// Where recovery from it begins: the redo position in the backup label.
    #[serde(with = "text")]
    pub start_lsn: Lsn,
    /// The timeline on which it stopped; differs only where a standby was promoted or followed a promotion.
    #[serde(with = "timeline")]
    pub stop_timeline: TimelineId,
    /// Where it is consistent: recovery has to reach this.
    #[serde(with = "text")]
    pub stop_lsn: Lsn,
    /// The latest time at which a transaction ended in WAL before the segment in which it starts, by the commit and abort records
    /// that were known when it was published: WAL before a backup is deleted when nothing needs it, and the backup holds what
    /// was committed in it. `None`: none is known.
    #[serde(default)]
    pub latest_commit: Option<Timestamp>,
    /// `backup_label`, byte for byte. In hexadecimal in JSON, as are all bytes that need not be text.
    pub backup_label: HexBytes,
    /// `tablespace_map`, byte for byte; empty: there is none.
    pub tablespace_map: HexBytes,

    /// The data directory on the server.
    pub pgdata: HexBytes,
    /// The tablespaces.
    pub tablespaces: Vec<BackupTablespace>,
    /// What else was backed up, absolute paths; `Root::Extra(n)` in the file table is entry `n`.
    pub extra_paths: Vec<HexBytes>,
    /// Names of the users that own files.
    pub users: Vec<OwnerName>,
    /// Names of the groups that own files.
    pub groups: Vec<OwnerName>,
}

impl BackupDescription {
    /// The block size, if it is one.
    pub fn blocks(&self) -> Result<BlockSize, Malformed> {
        let size = BlockSize::new(self.block_size);
        size.ok_or_else(|| Malformed(format!("{} is not a block size of PostgreSQL", self.block_size)))
    }

    /// The first and the last WAL segment without which it cannot be restored. The last is the one that holds the byte
    /// before the stop position. On the way the timeline may change: segments before its start are on the older one.
    pub fn wal(&self) -> Result<(SegmentName, SegmentName), Malformed> {
        let size = SegmentSize::new(self.wal_segment_size);
        let size = size
            .ok_or_else(|| Malformed(format!("{} is not a size of WAL segments", self.wal_segment_size)))?;
        let first = SegmentNo::of(self.start_lsn, size).name(self.start_timeline, size);
        let last = SegmentNo::before(self.stop_lsn, size).name(self.stop_timeline, size);
        Ok((first, last))
    }

    /// What has to hold of every backup, whoever wrote it.
    pub(super) fn check(&self) -> Result<(), Malformed> {
        self.blocks()?;
        self.wal()?;
        if !self.start_lsn.is_valid() || self.stop_lsn < self.start_lsn {
            let (start, stop) = (self.start_lsn, self.stop_lsn);
            return Err(Malformed(format!("it starts at {start} and stops at {stop}")));
        }
        if self.relation_segment_blocks == 0 {
            return Err(Malformed::new("a relation's segment has no blocks"));
        }
        Ok(())
    }
}

/// What the writer counted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Totals {
    /// Regular files.
    pub files: u64,
    /// Directories and links.
    pub others: u64,
    /// Bytes of all files, holes included: what a restore may occupy.
    pub bytes: u64,
    /// Blocks of all files that are not all zero.
    pub blocks: u64,
    /// Bytes of the packs that this backup wrote.
    pub stored: u64,
    /// Bytes of blocks that this backup stored, before compression.
    #[serde(default)]
    pub new_bytes: u64,
    /// Bytes of blocks that are where an earlier backup stored them.
    #[serde(default)]
    pub reused_bytes: u64,
    /// Pages that failed their checksum.
    pub bad_pages: u64,
}

/// A backup at a glance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackupSummary {
    /// Which backup.
    #[serde(with = "text")]
    pub id: BackupId,
    /// What its caller said.
    #[serde(flatten)]
    pub facts: BackupDescription,
    /// What was counted.
    pub totals: Totals,
    /// Backups whose blocks it uses, apart from its own.
    #[serde(with = "texts")]
    pub parents: Vec<BackupId>,
}

impl BackupSummary {
    /// Whether it uses blocks of other backups.
    pub fn kind(&self) -> BackupKind {
        if self.parents.is_empty() { BackupKind::Full } else { BackupKind::Incremental }
    }

    pub(super) fn to_json(&self) -> Result<Vec<u8>, Malformed> {
        to_json(self)
    }

    pub(super) fn from_json(json: &[u8]) -> Result<Self, Malformed> {
        let summary: Self = from_json(json)?;
        summary.facts.check()?;
        Ok(summary)
    }
}

pub(super) fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>, Malformed> {
    let json = serde_json::to_vec(value).map_err(|e| Malformed(format!("it cannot be written: {e}")))?;
    match json.len() {
        0..=MAX_SUMMARY => Ok(json),
        n => Err(Malformed(format!("{n} bytes are too many, labels and lists of names must be shorter"))),
    }
}

pub(super) fn from_json<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Malformed> {
    serde_json::from_slice(json).map_err(|e| Malformed(format!("its description cannot be read: {e}")))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn facts(block_size: u32) -> BackupDescription {
        BackupDescription {
            label: "before the upgrade".to_owned(),
            agent: "0.1.0".to_owned(),
            host: "db1".to_owned(),
            started: "2026-11-21T10:15:00Z".parse().unwrap(),
            ended: "2026-11-21T10:25:00.5Z".parse().unwrap(),
            method: Method::Local,
            from_standby: false,
            lineage: "7400000000000000001-1".parse().unwrap(),
            major: PgMajor::new(15).unwrap(),
            block_size,
            relation_segment_blocks: 131_072,
            wal_segment_size: 16 << 20,
            data_checksums: true,
            start_timeline: TimelineId::FIRST,
            start_lsn: Lsn(0x200_0028),
            stop_timeline: TimelineId::FIRST,
            stop_lsn: Lsn(0x400_0000),
            latest_commit: Some("2026-11-21T10:14:59.123456Z".parse().unwrap()),
            backup_label: HexBytes(b"START WAL LOCATION: \xFF".to_vec()),
            tablespace_map: HexBytes::default(),
            pgdata: HexBytes(b"/srv/pg".to_vec()),
            tablespaces: vec![BackupTablespace { oid: 16385, path: HexBytes(b"/mnt/\xC3".to_vec()) }],
            extra_paths: vec![HexBytes(b"/etc/postgresql".to_vec())],
            users: vec![OwnerName { id: 26, name: "postgres".to_owned() }],
            groups: vec![],
        }
    }

    #[test]
    fn a_summary_survives_json() {
        let id = "20261121T101500Z-00000001-0000000002000028-9f3a0c11".parse().unwrap();
        let summary = BackupSummary { id, facts: facts(8192), totals: Totals::default(), parents: vec![id] };
        let json = summary.to_json().unwrap();
        assert_eq!(BackupSummary::from_json(&json).unwrap(), summary);
        let text = String::from_utf8(json).unwrap();
        assert!(text.contains("\"start_lsn\":\"0/2000028\"") && text.contains("\"major\":15"), "{text}");
        for (old, new) in [
            ("\"block_size\":8192", "\"block_size\":0"),
            ("\"major\":15", "\"major\":7"),
            ("\"stop_lsn\":\"0/4000000\"", "\"stop_lsn\":\"0/1\""),
            ("\"start_timeline\":1", "\"start_timeline\":0"),
            ("\"wal_segment_size\":16777216", "\"wal_segment_size\":5"),
        ] {
            let lie = text.replace(old, new);
            assert_ne!(lie, text);
            assert!(BackupSummary::from_json(lie.as_bytes()).is_err(), "{new}");
        }
        let without = text.replace("\"latest_commit\":\"2026-11-21T10:14:59.123456Z\",", "");
        assert_ne!(without, text);
        assert_eq!(BackupSummary::from_json(without.as_bytes()).unwrap().facts.latest_commit, None);
    }

    #[test]
    fn the_wal_a_backup_needs_ends_with_the_last_byte_before_its_stop() {
        let (first, last) = facts(8192).wal().unwrap();
        assert_eq!(first.to_string(), "000000010000000000000002");
        assert_eq!(last.to_string(), "000000010000000000000003", "0/4000000 is the start of the next one");
    }
}
