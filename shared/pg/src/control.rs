//! `global/pg_control`: who a cluster is, how it was built, and where its recovery starts.
//!
//! Source: `src/include/catalog/pg_control.h`. One layout serves 13 to 18: 17 put a field into padding of the checkpoint,
//! 18 one byte before the nonce. The file is 8,192 bytes, of which the first 300 or so mean something and are covered
//! by a CRC-32C; a running server rewrites it in place, so a copy may be torn: read it again when the CRC is wrong.

use walpoint_base::{Lsn, PgMajor, SegmentSize, SystemId};

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
    /// The timeline of that position, 0 if there is none.
    pub min_recovery_point_timeline: u32,
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
    /// 0 without data checksums; else the version of their algorithm.
    pub data_checksum_version: u32,
}

/// The copy of the last checkpoint's record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckpointCopy {
    /// Where its record starts.
    pub lsn: Lsn,
    /// Where recovery from it starts.
    pub redo: Lsn,
    /// Its timeline, unchecked.
    pub timeline: u32,
    /// The timeline before, different only in the first checkpoint after a promotion.
    pub previous_timeline: u32,
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
    #[error("pg_control has {len} bytes, too few: the copy was cut short; read it again")]
    Short {
        /// Bytes in the file.
        len: usize,
    },
    /// A version that is not known.
    #[error(
        "pg_control has version {control} with catalog version {catalog}, which no release of PostgreSQL 13 to 18 \
         writes; is this a data directory of another version, or of a machine with another byte order?"
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

/// `CATALOG_VERSION_NO` of each release. It never changes within one.
const CATALOG_VERSIONS: [(u32, u32, u32); 6] = [
    (1300, 202_007_201, 13),
    (1300, 202_107_181, 14),
    (1300, 202_209_061, 15),
    (1300, 202_307_071, 16),
    (1700, 202_406_281, 17),
    (1800, 202_506_291, 18),
];

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
        let major = CATALOG_VERSIONS
            .iter()
            .find(|(control, catalog, _)| *control == control_version && *catalog == catalog_version)
            .and_then(|(_, _, major)| PgMajor::new(*major))
            .ok_or(ControlError::UnknownVersion { control: control_version, catalog: catalog_version })?;
        // 18 has one byte more before the nonce of 32 bytes, and the CRC is aligned to 4.
        let crc_at = if major.get() >= 18 { 292 } else { 288 };
        let (stored, covered) = (word(crc_at)?, file.get(..crc_at).ok_or_else(short)?);
        let computed = crc32c::crc32c(covered);
        if stored != computed {
            return Err(ControlError::Crc { stored, computed });
        }

        let field = |field, value| ControlError::Field { field, value };
        let power_of_two = |name, value: u32| {
            if value.is_power_of_two() { Ok(value) } else { Err(field(name, value)) }
        };
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
                timeline: word(48)?,
                previous_timeline: word(52)?,
                next_xid: bytes::u64(file, 64).ok_or_else(short)?,
                oldest_xid: word(84)?,
                time: time(104)?,
            },
            min_recovery_point: lsn(136)?,
            min_recovery_point_timeline: word(144)?,
            backup_start_point: lsn(152)?,
            backup_end_point: lsn(160)?,
            backup_end_required: flag(168)?,
            settings: ControlSettings {
                wal_level: WalLevel::from_number(word(172)?).ok_or(field("wal_level", word(172)?))?,
                wal_log_hints: flag(176)?,
                max_connections: integer(180)?,
                max_worker_processes: integer(184)?,
                max_wal_senders: integer(188)?,
                max_prepared_transactions: integer(192)?,
                max_locks_per_transaction: integer(196)?,
                track_commit_timestamp: flag(200)?,
            },
            block_size: power_of_two("block size", word(216)?)?,
            relation_segment_blocks: word(220)?,
            wal_block_size: power_of_two("WAL block size", word(224)?)?,
            wal_segment_size: SegmentSize::new(u64::from(word(228)?))
                .ok_or(field("WAL segment size", word(228)?))?,
            data_checksum_version: word(252)?,
        })
    }

    /// Whether blocks carry checksums.
    pub fn has_checksums(&self) -> bool {
        self.data_checksum_version != 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file as a server writes it, as far as the fields that are read.
    fn sample(version: (u32, u32, u32)) -> Vec<u8> {
        let mut file = vec![0; 8192];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &7_000_000_000_000_000_001u64.to_le_bytes());
        put(8, &version.0.to_le_bytes());
        put(12, &version.1.to_le_bytes());
        put(16, &6u32.to_le_bytes());
        put(32, &0x0100_0060u64.to_le_bytes());
        put(40, &0x0100_0028u64.to_le_bytes());
        put(48, &3u32.to_le_bytes());
        put(64, &(5u64 << 32 | 777).to_le_bytes());
        put(172, &1u32.to_le_bytes());
        put(180, &100i32.to_le_bytes());
        put(216, &8192u32.to_le_bytes());
        put(220, &131_072u32.to_le_bytes());
        put(224, &8192u32.to_le_bytes());
        put(228, &(16u32 << 20).to_le_bytes());
        put(252, &1u32.to_le_bytes());
        seal(&mut file, version.2);
        file
    }

    fn seal(file: &mut [u8], major: u32) {
        let at = if major >= 18 { 292 } else { 288 };
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
            version in 0usize..6,
        ) {
            let version = CATALOG_VERSIONS[version];
            if bytes.len() >= 296 {
                bytes[8..12].copy_from_slice(&version.0.to_le_bytes());
                bytes[12..16].copy_from_slice(&version.1.to_le_bytes());
                seal(&mut bytes, version.2);
            }
            let _result = ControlFile::parse(&bytes);
        }
    }
}
