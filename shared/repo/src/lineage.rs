//! Lineages: the lives of a cluster in a repository, each with the facts that never change about it.
//!
//! `clusters/<name>/lineages/<lineage>` is a document, created once by `init`. A crash in the middle leaves it or not. Its
//! random id tells it from a lineage of the same name that is made after this one was deleted.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use walpoint_base::{ClusterName, LineageId, ParseError, PgMajor, SegmentSize, SystemId};

use crate::error::{RepoError, Result};
use crate::layout::{ClusterPaths, Key, WalPaths};
use crate::object::RepositoryId;
use crate::object::sealer::parse_hex;

/// A lineage's facts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lineage {
    /// Whose it is.
    pub cluster: ClusterName,
    /// Its name.
    pub id: LineageId,
    /// Tells it from every other lineage, also from one of that name.
    pub uid: LineageUid,
    /// The version that writes it. A `pg_upgrade` begins another lineage, as the system identifier changes.
    pub major: PgMajor,
    /// Bytes of a WAL segment.
    pub segment_size: SegmentSize,
    /// Bytes of a WAL page (`XLOG_BLCKSZ`).
    pub wal_block_size: u32,
    /// Bytes of a page of relations (`BLCKSZ`).
    pub block_size: u32,
    /// Pages of a file of a relation (`RELSEG_SIZE`).
    pub relation_segment_blocks: u32,
    /// When it was created.
    pub created: jiff::Timestamp,
    /// Every repository that must have a segment before it is acknowledged. Absence is proven only when all of them say
    /// so, also to a reader whose configuration names fewer.
    pub ack: Vec<AckMember>,
}

/// A random name that tells lineages apart: 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineageUid(pub [u8; 16]);

impl LineageUid {
    /// A new one.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for LineageUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for LineageUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for LineageUid {
    type Err = ParseError;

    fn from_str(text: &str) -> std::result::Result<Self, ParseError> {
        let error = || ParseError::new("the random id of a lineage (32 hexadecimal digits)", text);
        parse_hex(text).map(Self).ok_or_else(error)
    }
}

/// A repository that must have what is acknowledged.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AckMember {
    /// What the configuration that created the lineage calls it.
    pub name: String,
    /// Which one it is, whatever it is called.
    #[serde(with = "as_text")]
    pub repository: RepositoryId,
}

impl Lineage {
    /// Where its facts are.
    pub fn key(&self) -> Key {
        self.cluster_paths().lineage(self.id)
    }

    /// The keys of its cluster.
    pub fn cluster_paths(&self) -> ClusterPaths {
        ClusterPaths::new(&self.cluster)
    }

    /// The keys of its WAL.
    pub fn wal_paths(&self) -> WalPaths {
        self.cluster_paths().wal(self.id)
    }

    /// The cluster's system identifier.
    pub fn system_id(&self) -> SystemId {
        self.id.system_id
    }
}

/// The document, as format version 1 has it.
#[derive(Serialize, Deserialize)]
pub(crate) struct LineageDocument {
    format: u16,
    #[serde(with = "as_text")]
    cluster: Cluster,
    #[serde(with = "as_text")]
    lineage: LineageId,
    #[serde(with = "as_text")]
    id: LineageUid,
    postgresql: u32,
    wal_segment_size: u64,
    wal_block_size: u32,
    block_size: u32,
    relation_segment_blocks: u32,
    created: jiff::Timestamp,
    ack: Vec<AckMember>,
}

type Cluster = ClusterName;

impl From<&Lineage> for LineageDocument {
    fn from(lineage: &Lineage) -> Self {
        Self {
            format: crate::object::FORMAT_VERSION,
            cluster: lineage.cluster.clone(),
            lineage: lineage.id,
            id: lineage.uid,
            postgresql: u32::from(lineage.major.get()),
            wal_segment_size: lineage.segment_size.bytes(),
            wal_block_size: lineage.wal_block_size,
            block_size: lineage.block_size,
            relation_segment_blocks: lineage.relation_segment_blocks,
            created: lineage.created,
            ack: lineage.ack.clone(),
        }
    }
}

impl LineageDocument {
    /// Checks that the facts are possible, and that they are those of the object they were found in.
    pub(crate) fn into_lineage(self, key: &Key) -> Result<Lineage> {
        let corrupt = |what: &str| RepoError::corrupt(key, what);
        if self.format != crate::object::FORMAT_VERSION {
            return Err(corrupt("it is of a newer format version: use a newer Walpoint"));
        }
        let block = |bytes: u32| bytes.is_power_of_two() && (1024..=65536).contains(&bytes);
        if !block(self.block_size) || !block(self.wal_block_size) || self.relation_segment_blocks == 0 {
            return Err(corrupt("no cluster has such block sizes"));
        }
        let lineage = Lineage {
            cluster: self.cluster,
            id: self.lineage,
            uid: self.id,
            major: PgMajor::new(self.postgresql).ok_or_else(|| {
                corrupt(
                    "it is of a version of PostgreSQL that this program does not know: use a newer Walpoint",
                )
            })?,
            segment_size: SegmentSize::new(self.wal_segment_size)
                .ok_or_else(|| corrupt("no cluster has such a segment size"))?,
            wal_block_size: self.wal_block_size,
            block_size: self.block_size,
            relation_segment_blocks: self.relation_segment_blocks,
            created: self.created,
            ack: self.ack,
        };
        if lineage.key() != *key {
            return Err(corrupt("it is another lineage's"));
        }
        Ok(lineage)
    }
}

/// Values that a document holds as the text they print.
pub(crate) mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(crate) fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: FromStr<Err: Display>,
    {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}
