//! `global/pg_control`: who a cluster is, how it was built, and where its recovery starts.
//!
//! Source: `src/include/catalog/pg_control.h`. 13 to 18 differ little: 17 put a field into padding of the checkpoint, 18
//! one byte before the nonce. 19 has a longer checkpoint, the pages of an SLRU's file, and two states of the checksums: the
//! one that `initdb` chose and the present one. `Layout` says where that moved the fields. The file is 8,192 bytes, of
//! which the first 300 or so mean something and are covered by a CRC-32C; a running server rewrites it in place, so a copy
//! may be torn: read it again when the CRC is wrong.

use walpoint_base::{Lsn, PgMajor, SegmentSize, SystemId, TimelineId};

use crate::bytes;

/// Where the file lies in a data directory.
pub const CONTROL_FILE: &str = "global/pg_control";

/// What the server was doing when it wrote the file: `DBState`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClusterState {
    /// Being started.
    Startup,
    /// Shut down cleanly.
    ShutDown,
    /// Shut down cleanly while in recovery.
    ShutDownInRecovery,
    /// Shutting down.
    ShuttingDown,
    /// In crash recovery.
    InCrashRecovery,
    /// In archive recovery, or a standby.
    InArchiveRecovery,
    /// Running, or crashed while it was.
    InProduction,
}

impl ClusterState {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Startup,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::InCrashRecovery,
            5 => Self::InArchiveRecovery,
            6 => Self::InProduction,
            _ => return None,
        })
    }

    /// Whether the server ended by itself: nothing has to be recovered before it can start.
    pub fn is_clean(self) -> bool {
        matches!(self, Self::ShutDown | Self::ShutDownInRecovery)
    }
}

/// How much the server writes to WAL.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum WalLevel {
    /// Not enough for an archive.
    Minimal,
    /// Enough for an archive and for standbys.
    Replica,
    /// Also for logical decoding.
    Logical,
}

impl WalLevel {
    fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Minimal),
            1 => Some(Self::Replica),
            2 => Some(Self::Logical),
            _ => None,
        }
    }
}

/// The contents of `pg_control`, with a right CRC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControlFile {
    /// The cluster.
    pub system_id: SystemId,
    /// The version of the server that wrote the file.
    pub major: PgMajor,
    /// `pg_control_version`.
    pub control_version: u32,
    /// `catalog_version_no`.
    pub catalog_version: u32,
    /// What the server was doing.
    pub state: ClusterState,
    /// When the file was written, in seconds since 1970-01-01 UTC.
    pub time: i64,
    /// The last checkpoint.
    pub checkpoint: CheckpointCopy,
    /// In recovery: the position that must be replayed before the cluster is consistent; 0/0 otherwise.
    pub min_recovery_point: Lsn,
    /// The timeline of that position, if there is one.
    pub min_recovery_point_timeline: Option<TimelineId>,
    /// Where the base backup started that is being recovered; 0/0 otherwise.
    pub backup_start_point: Lsn,
    /// Where a base backup from a standby ends; 0/0 otherwise.
    pub backup_end_point: Lsn,
    /// Whether recovery must see the end of the base backup.
    pub backup_end_required: bool,
    /// Settings that a hot standby must not go below.
    pub settings: ControlSettings,
    /// Bytes of a data block.
    pub block_size: u32,
    /// Blocks of one file of a relation.
    pub relation_segment_blocks: u32,
    /// Bytes of a WAL page.
    pub wal_block_size: u32,
    /// Bytes of a WAL segment.
    pub wal_segment_size: SegmentSize,
    /// The present state of the data checksums (`ChecksumStateType`): 0 without any, 1 with; from 2 on they are being
    /// switched on or off.
    pub data_checksum_version: u32,
}

/// The copy of the last checkpoint's record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckpointCopy {
    /// Where its record starts.
    pub lsn: Lsn,
    /// Where recovery from it starts.
    pub redo: Lsn,
    /// Its timeline; `None` if the record names none that there can be.
    pub timeline: Option<TimelineId>,
    /// The timeline before, different only in the first checkpoint after a promotion.
    pub previous_timeline: Option<TimelineId>,
    /// The next transaction: epoch in the upper 32 bits, xid in the lower.
    pub next_xid: u64,
    /// The oldest xid that is still of use.
    pub oldest_xid: u32,
    /// When it was made, in seconds since 1970-01-01 UTC.
    pub time: i64,
}

/// The settings that `pg_control` keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControlSettings {
    /// `wal_level`.
    pub wal_level: WalLevel,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
    /// `max_connections`.
    pub max_connections: i32,
    /// `max_worker_processes`.
    pub max_worker_processes: i32,
    /// `max_wal_senders`.
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: i32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: i32,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
}

/// Why a `pg_control` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Cut short.
    #[error("pg_control has {len} bytes, too few: the copy was cut short\nHINT: Read it again.")]
    Short {
        /// Bytes in the file.
        len: usize,
    },
    /// A version that is not known.
    #[error(
        "pg_control has version {control} with catalog version {catalog}, which no release of PostgreSQL 13 to 19 \
         writes\nHINT: Check that this data directory is not of another version, nor of a machine with \
         another byte order."
    )]
    UnknownVersion {
        /// `pg_control_version`.
        control: u32,
        /// `catalog_version_no`.
        catalog: u32,
    },
    /// Torn or damaged.
    #[error(
        "pg_control has the CRC {stored:#010X}, its content gives {computed:#010X}: the server was writing it (read it \
         again) or it is damaged"
    )]
    Crc {
        /// In the file.
        stored: u32,
        /// Of the content.
        computed: u32,
    },
    /// A field that no server writes so, under a right CRC.
    #[error("pg_control has an impossible {field}, {value}")]
    Field {
        /// Which.
        field: &'static str,
        /// What it holds.
        value: u32,
    },
}

/// `PG_CONTROL_VERSION`, `CATALOG_VERSION_NO` and the major version. The catalog's number never changes after the release of
/// a major version; that of 19 is the first release candidate's.
const CATALOG_VERSIONS: [(u32, u32, u32); 7] = [
    (1300, 202_007_201, 13),
    (1300, 202_107_181, 14),
    (1300, 202_209_061, 15),
    (1300, 202_307_071, 16),
    (1700, 202_406_281, 17),
    (1800, 202_506_291, 18),
    (1905, 202_610_061, 19),
];

/// The version that writes such a file. `None` if no known one does.
fn known_version(control: u32, catalog: u32) -> Option<PgMajor> {
    let mut of_control = CATALOG_VERSIONS.iter().filter(|(known, ..)| *known == control);
    let exact = of_control.clone().find(|(_, known, _)| *known == catalog);
    // The layout of the file is the control version's. Where only one major version has that, it may have later catalogs.
    let later = match (of_control.next(), of_control.next()) {
        (Some(only), None) if catalog > only.1 => Some(only),
        _ => None,
    };
    exact.or(later).and_then(|(_, _, major)| PgMajor::new(*major))
}

/// Where the fields lie that are not at the same place in all versions. What lies between keeps its distance.
#[derive(Clone, Copy)]
struct Layout {
    /// `checkPointCopy.nextXid`.
    next_xid: usize,
    /// `checkPointCopy.oldestXid`.
    oldest_xid: usize,
    /// `checkPointCopy.time`.
    checkpoint_time: usize,
    /// `minRecoveryPoint`, and all up to `relseg_size`.
    recovery: usize,
    /// `xlog_blcksz`, then `xlog_seg_size`.
    wal_sizes: usize,
    /// `data_checksum_version`.
    checksums: usize,
    /// `crc`, aligned to 4.
    crc: usize,
}

impl Layout {
    fn of(major: PgMajor) -> Self {
        let before_19 = Self {
            next_xid: 64,
            oldest_xid: 84,
            checkpoint_time: 104,
            recovery: 136,
            wal_sizes: 224,
            checksums: 252,
            crc: 288,
        };
        match major.get() {
            ..18 => before_19,
            18 => Self { crc: 292, ..before_19 },
            _ => Self {
                next_xid: 72,
                oldest_xid: 96,
                checkpoint_time: 112,
                recovery: 144,
                wal_sizes: 236,
                checksums: 268,
                crc: 308,
            },
        }
    }
}

impl ControlFile {
    /// Reads the file's content; what follows the CRC is not looked at.
    pub fn parse(file: &[u8]) -> Result<Self, ControlError> {
        let short = || ControlError::Short { len: file.len() };
        let word = |at| bytes::u32(file, at).ok_or_else(short);
        let lsn = |at| bytes::u64(file, at).map(Lsn).ok_or_else(short);
        let integer = |at| bytes::i32(file, at).ok_or_else(short);
        let time = |at| bytes::i64(file, at).ok_or_else(short);
        let flag = |at| file.get(at).map(|b| *b != 0).ok_or_else(short);

        let (control_version, catalog_version) = (word(8)?, word(12)?);
        let major = known_version(control_version, catalog_version)
            .ok_or(ControlError::UnknownVersion { control: control_version, catalog: catalog_version })?;
        let layout = Layout::of(major);
        let (stored, covered) = (word(layout.crc)?, file.get(..layout.crc).ok_or_else(short)?);
        let computed = crc32c::crc32c(covered);
        if stored != computed {
            return Err(ControlError::Crc { stored, computed });
        }

        let field = |field, value| ControlError::Field { field, value };
        let power_of_two = |name, value: u32| {
            if value.is_power_of_two() { Ok(value) } else { Err(field(name, value)) }
        };
        let (wal_level, segment_size) = (layout.recovery + 36, layout.wal_sizes + 4);
        Ok(Self {
            system_id: SystemId(bytes::u64(file, 0).ok_or_else(short)?),
            major,
            control_version,
            catalog_version,
            state: ClusterState::from_number(word(16)?).ok_or(field("state", word(16)?))?,
            time: time(24)?,
            checkpoint: CheckpointCopy {
                lsn: lsn(32)?,
                redo: lsn(40)?,
                timeline: TimelineId::new(word(48)?),
                previous_timeline: TimelineId::new(word(52)?),
                next_xid: bytes::u64(file, layout.next_xid).ok_or_else(short)?,
                oldest_xid: word(layout.oldest_xid)?,
                time: time(layout.checkpoint_time)?,
            },
            min_recovery_point: lsn(layout.recovery)?,
            min_recovery_point_timeline: TimelineId::new(word(layout.recovery + 8)?),
            backup_start_point: lsn(layout.recovery + 16)?,
            backup_end_point: lsn(layout.recovery + 24)?,
            backup_end_required: flag(layout.recovery + 32)?,
            settings: ControlSettings {
                wal_level: WalLevel::from_number(word(wal_level)?)
                    .ok_or(field("wal_level", word(wal_level)?))?,
                wal_log_hints: flag(layout.recovery + 40)?,
                max_connections: integer(layout.recovery + 44)?,
                max_worker_processes: integer(layout.recovery + 48)?,
                max_wal_senders: integer(layout.recovery + 52)?,
                max_prepared_transactions: integer(layout.recovery + 56)?,
                max_locks_per_transaction: integer(layout.recovery + 60)?,
                track_commit_timestamp: flag(layout.recovery + 64)?,
            },
            block_size: power_of_two("block size", word(layout.recovery + 80)?)?,
            relation_segment_blocks: word(layout.recovery + 84)?,
            wal_block_size: power_of_two("WAL block size", word(layout.wal_sizes)?)?,
            wal_segment_size: SegmentSize::new(u64::from(word(segment_size)?))
                .ok_or(field("WAL segment size", word(segment_size)?))?,
            data_checksum_version: word(layout.checksums)?,
        })
    }

    /// The newest timeline that the server is known to have reached.
    ///
    /// From a promotion to the checkpoint after it, only the minimum recovery point names the new one
    /// (`CreateEndOfRecoveryRecord` in src/backend/access/transam/xlog.c).
    pub fn newest_timeline(&self) -> Option<TimelineId> {
        self.checkpoint.timeline.max(self.min_recovery_point_timeline)
    }

    /// Whether every block that is written carries a checksum that has to be right. That is not so while checksums are
    /// being switched on or off.
    pub fn has_checksums(&self) -> bool {
        self.data_checksum_version == 1
    }

    /// What to note about a version that is taken for a known one; `None` for one that is known exactly.
    pub fn version_note(&self) -> Option<String> {
        let known = |(control, catalog, _): &(u32, u32, u32)| {
            *control == self.control_version && *catalog == self.catalog_version
        };
        (!CATALOG_VERSIONS.iter().any(known)).then(|| {
            format!(
                "catalog version {} is later than what Walpoint knows of PostgreSQL {}\nDETAIL: pg_control has the known \
                 version {}, so it is read as that of {}.",
                self.catalog_version, self.major, self.control_version, self.major
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file as a server writes it, as far as the fields that are read. Offsets are those of the C structure.
    fn sample(version: (u32, u32, u32)) -> Vec<u8> {
        let mut file = vec![0; 8192];
        let of_19 = |at_19, before| if version.2 >= 19 { at_19 } else { before };
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &7_000_000_000_000_000_001u64.to_le_bytes());
        put(8, &version.0.to_le_bytes());
        put(12, &version.1.to_le_bytes());
        put(16, &6u32.to_le_bytes());
        put(32, &0x0100_0060u64.to_le_bytes());
        put(40, &0x0100_0028u64.to_le_bytes());
        put(48, &3u32.to_le_bytes());
        put(of_19(72, 64), &(5u64 << 32 | 777).to_le_bytes());
        put(of_19(180, 172), &1u32.to_le_bytes());
        put(of_19(188, 180), &100i32.to_le_bytes());
        put(of_19(224, 216), &8192u32.to_le_bytes());
        put(of_19(228, 220), &131_072u32.to_le_bytes());
        put(of_19(236, 224), &8192u32.to_le_bytes());
        put(of_19(240, 228), &(16u32 << 20).to_le_bytes());
        put(of_19(268, 252), &1u32.to_le_bytes());
        seal(&mut file, version.2);
        file
    }

    fn seal(file: &mut [u8], major: u32) {
        let at = match major {
            ..18 => 288,
            18 => 292,
            _ => 308,
        };
        let crc = crc32c::crc32c(&file[..at]);
        file[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    }

    #[test]
    fn every_version_is_read() {
        for version in CATALOG_VERSIONS {
            let control = ControlFile::parse(&sample(version)).unwrap();
            assert_eq!(u32::from(control.major.get()), version.2);
            assert_eq!(control.checkpoint.redo, Lsn(0x0100_0028));
            assert_eq!(control.checkpoint.next_xid, 5 << 32 | 777);
            assert_eq!((control.state, control.state.is_clean()), (ClusterState::InProduction, false));
            assert_eq!(control.settings.max_connections, 100);
            assert!(control.has_checksums());
            assert_eq!(control.version_note(), None);
        }
    }

    #[test]
    fn a_later_catalog_is_taken_with_a_note_where_the_layout_is_known() {
        for (control, catalog, major) in [(1905, 202_611_011, 19), (1800, 202_512_311, 18)] {
            let file = ControlFile::parse(&sample((control, catalog, major))).unwrap();
            assert_eq!((u32::from(file.major.get()), file.catalog_version), (major, catalog));
            assert!(file.version_note().unwrap().contains(&catalog.to_string()));
        }
        // Earlier ones are of development; under 1300 only the catalog says which version it is.
        for (control, catalog, major) in
            [(1905, 202_609_011, 19), (1300, 202_401_011, 16), (1904, 202_610_061, 19)]
        {
            let error = ControlFile::parse(&sample((control, catalog, major))).unwrap_err();
            assert_eq!(error, ControlError::UnknownVersion { control, catalog });
        }
    }

    #[test]
    fn checksums_count_only_while_they_are_on() {
        for (state, on) in [(0, false), (1, true), (2, false), (3, false), (4, false)] {
            let mut file = sample(CATALOG_VERSIONS[6]);
            // The state before it is the one at initdb.
            file[264] = 1;
            file[268] = state;
            seal(&mut file, 19);
            assert_eq!(ControlFile::parse(&file).unwrap().has_checksums(), on, "{state}");
        }
    }

    #[test]
    fn torn_and_foreign_files_are_refused() {
        let good = sample(CATALOG_VERSIONS[5]);
        let mut torn = good.clone();
        torn[100] ^= 1;
        assert!(matches!(ControlFile::parse(&torn), Err(ControlError::Crc { .. })));
        assert_eq!(ControlFile::parse(&good[..200]), Err(ControlError::Short { len: 200 }));
        let other = sample((1300, 202_506_291, 13));
        assert!(matches!(ControlFile::parse(&other), Err(ControlError::UnknownVersion { .. })));
        for (at, field) in [(16, "state"), (172, "wal_level"), (216, "block size"), (228, "WAL segment size")]
        {
            let mut odd = good.clone();
            odd[at] = 99;
            seal(&mut odd, 18);
            assert!(ControlFile::parse(&odd).unwrap_err().to_string().contains(field));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_control_file_or_an_error(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
            version in 0usize..7,
        ) {
            let version = CATALOG_VERSIONS[version];
            if bytes.len() >= 312 {
                bytes[8..12].copy_from_slice(&version.0.to_le_bytes());
                bytes[12..16].copy_from_slice(&version.1.to_le_bytes());
                seal(&mut bytes, version.2);
            }
            let _result = ControlFile::parse(&bytes);
        }
    }
}
