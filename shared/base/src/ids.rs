//! Names and numbers that identify clusters, lineages and backups.

use std::fmt;
use std::str::FromStr;

use crate::{Lsn, ParseError, TimelineId};

/// The system identifier that `initdb` gave a cluster; in pg_control and in every segment's first page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SystemId({})", self.0)
    }
}

impl FromStr for SystemId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let id = digits.then(|| text.parse().ok()).flatten();
        id.map(Self).ok_or_else(|| ParseError::new("a system identifier", text))
    }
}

/// A major version of PostgreSQL that Walpoint knows: 13 to 19.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgMajor(u8);

impl PgMajor {
    /// Every known version, oldest first.
    pub const ALL: [PgMajor; 7] =
        [PgMajor(13), PgMajor(14), PgMajor(15), PgMajor(16), PgMajor(17), PgMajor(18), PgMajor(19)];

    /// `None` for a version that is not known.
    pub fn new(major: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|m| u32::from(m.0) == major)
    }

    /// The number.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl fmt::Display for PgMajor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for PgMajor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgreSQL {}", self.0)
    }
}

/// The name of a cluster in a repository: `[a-z0-9][a-z0-9._-]{0,62}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(String);

impl ClusterName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for ClusterName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(lower);
        if first && text.len() <= 63 && bytes.all(|b| lower(b) || matches!(b, b'.' | b'_' | b'-')) {
            return Ok(Self(text.to_owned()));
        }
        Err(ParseError::new(
            "a cluster name (1 to 63 of a-z, 0-9, '.', '_', '-', starting with a letter or digit)",
            text,
        ))
    }
}

/// The name of a replication slot: `[a-z0-9_]{1,63}` (`ReplicationSlotValidateName`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotName(String);

impl SlotName {
    /// `walpoint`.
    pub fn walpoint() -> Self {
        Self("walpoint".to_owned())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for SlotName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if (1..=63).contains(&text.len()) && text.bytes().all(allowed) {
            return Ok(Self(text.to_owned()));
        }
        Err(ParseError::new("a replication slot's name (1 to 63 of a-z, 0-9, '_')", text))
    }
}

/// One life of a cluster in the repository: `<system-id>-<n>`. A copy that goes its own way gets the next `n`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineageId {
    /// The cluster's system identifier.
    pub system_id: SystemId,
    /// Counted from 1 for each system identifier.
    pub n: u32,
}

impl fmt::Display for LineageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.system_id, self.n)
    }
}

impl fmt::Debug for LineageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for LineageId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = || ParseError::new("a lineage (<system identifier>-<number>)", text);
        let (system_id, n) = text.split_once('-').ok_or_else(error)?;
        let n: u32 = n.parse().ok().filter(|&n| n > 0).ok_or_else(error)?;
        let lineage = Self { system_id: system_id.parse().map_err(|_| error())?, n };
        (lineage.to_string() == text).then_some(lineage).ok_or_else(error)
    }
}

/// The id of a base backup, `20261121T101500Z-00000001-0000000002000028-9f3a0c11`: when it started (UTC, seconds),
/// on which timeline, at which LSN, and a random part. Ids of one cluster sort by their start time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId {
    /// Start time as `YYYYMMDDhhmmss` in decimal, UTC.
    started: u64,
    /// The timeline at the start.
    timeline: TimelineId,
    /// Where recovery from it begins (the redo position).
    start: Lsn,
    /// Tells apart what else is the same.
    random: u32,
}

impl BackupId {
    /// The timeline on which it was started.
    pub fn timeline(self) -> TimelineId {
        self.timeline
    }

    /// The redo position from which recovery starts.
    pub fn start(self) -> Lsn {
        self.start
    }

    /// Bytes of an id in a binary table.
    pub const ENCODED: usize = 24;

    /// For binary tables: start time (the 14 decimal digits as a number), LSN, timeline, random part; little-endian.
    pub fn to_bytes(self) -> [u8; Self::ENCODED] {
        let mut bytes = [0; Self::ENCODED];
        bytes[..8].copy_from_slice(&self.started.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.start.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.timeline.0.to_le_bytes());
        bytes[20..].copy_from_slice(&self.random.to_le_bytes());
        bytes
    }

    /// `None` for bytes that no id has.
    pub fn from_bytes(bytes: &[u8; Self::ENCODED]) -> Option<Self> {
        let (started, rest) = bytes.split_first_chunk::<8>()?;
        let (start, rest) = rest.split_first_chunk::<8>()?;
        let (timeline, random) = rest.split_first_chunk::<4>()?;
        let started = u64::from_le_bytes(*started);
        let timeline = TimelineId::new(u32::from_le_bytes(*timeline))?;
        let random = u32::from_le_bytes(*random.first_chunk()?);
        let id = Self { started, timeline, start: Lsn(u64::from_le_bytes(*start)), random };
        (started < 100_000_000_000_000).then_some(id)
    }
}

#[cfg(feature = "time")]
impl BackupId {
    /// An id for a backup that started at `time`, to the second.
    pub fn new(time: jiff::Timestamp, timeline: TimelineId, start: Lsn, random: u32) -> Self {
        let started = time.strftime("%Y%m%d%H%M%S").to_string().parse().unwrap_or_default();
        Self { started, timeline, start, random }
    }

    /// When it started, to the second.
    pub fn started(self) -> Option<jiff::Timestamp> {
        let text = format!("{:014}", self.started);
        let civil = jiff::civil::DateTime::strptime("%Y%m%d%H%M%S", text).ok()?;
        civil.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|z| z.timestamp())
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (date, time) = (self.started / 1_000_000, self.started % 1_000_000);
        write!(f, "{date:08}T{time:06}Z-{:08X}-{:016X}-{:08x}", self.timeline.0, self.start.0, self.random)
    }
}

impl fmt::Debug for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BackupId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parse = || {
            let mut parts = text.split('-');
            let (date, time) = parts.next()?.strip_suffix('Z')?.split_once('T')?;
            let timeline = TimelineId::new(u32::from_str_radix(parts.next()?, 16).ok()?)?;
            let start = Lsn(u64::from_str_radix(parts.next()?, 16).ok()?);
            let random = u32::from_str_radix(parts.next()?, 16).ok()?;
            let started = format!("{date}{time}").parse().ok()?;
            let id = Self { started, timeline, start, random };
            (id.to_string() == text).then_some(id)
        };
        parse().ok_or_else(|| {
            ParseError::new("a backup id (such as 20261121T101500Z-00000001-0000000002000028-9f3a0c11)", text)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cluster_names() {
        for good in ["a", "main", "9", "eu-1.prod_2", &"x".repeat(63)] {
            assert_eq!(good.parse::<ClusterName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", ".a", "..", "A", "a/b", "a b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn slot_names() {
        for good in ["a", "walpoint_main", "9", &"x".repeat(63)] {
            assert_eq!(good.parse::<SlotName>().unwrap().as_str(), good);
        }
        for bad in ["", "A", "a-b", "a b", "a\"", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<SlotName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn lineages() {
        assert_eq!("7400000000000000001-2".parse::<LineageId>().unwrap().n, 2);
        for bad in ["", "1", "1-", "-1", "1-0", "1-01", "01-1", "1-+1", "99999999999999999999-1", "1-1-1"] {
            assert!(bad.parse::<LineageId>().is_err(), "{bad:?}");
        }
    }

    #[cfg(feature = "time")]
    #[test]
    fn backup_ids_sort_by_time_and_survive_text() {
        let id = |time: &str| {
            BackupId::new(time.parse().unwrap(), TimelineId::new(0x1A).unwrap(), Lsn(0x2000028), 0x9f3a0c11)
        };
        let (early, late) = (id("2026-11-21T10:15:00Z"), id("2026-11-21T10:15:01.9Z"));
        assert_eq!(early.to_string(), "20261121T101500Z-0000001A-0000000002000028-9f3a0c11");
        assert!(early < late && early.to_string() < late.to_string());
        assert_eq!(early.started(), Some("2026-11-21T10:15:00Z".parse().unwrap()));
        assert_eq!(early.to_string().parse(), Ok(early));
    }

    proptest! {
        #[test]
        fn backup_ids_survive_bytes(bytes: [u8; 24], started in 0u64..100_000_000_000_000) {
            let mut bytes = bytes;
            if bytes[8] & 1 == 0 {
                bytes[..8].copy_from_slice(&started.to_le_bytes());
            }
            if let Some(id) = BackupId::from_bytes(&bytes) {
                prop_assert_eq!(id.to_bytes(), bytes);
                prop_assert_eq!(id.to_string().parse(), Ok(id));
            }
        }

        #[test]
        fn any_text_is_an_id_or_an_error(text in "[0-9TZA-Fa-f-]{0,60}") {
            if let Ok(id) = text.parse::<BackupId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
