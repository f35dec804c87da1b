//! Lineages: the lives of a cluster in a repository, each with the facts that never change about it.
//!
//! `clusters/<name>/lineages/<lineage>` is a document, created once by `init`. A crash in the middle leaves it or not. Its
//! random id tells it from a lineage of the same name that is made after this one was deleted.
//!
//! A data directory that archives into a lineage of its own, beside that of the server it was copied from, says so in a file
//! ([`BINDING`]). The file travels with the data: a copy of the directory, a backup, a standby have it too.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use walpoint_base::{ClusterName, LineageId, Lsn, ParseError, PgMajor, SegmentSize, SystemId, TimelineId};
use walpoint_plan::restore::InLineage;
use walpoint_storage::document::{as_text, as_text_or_none};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::ids::{RepositoryId, parse_hex};
use walpoint_storage::layout::{ClusterPaths, Key, WalPaths};

/// What to do about the facts of a lineage.
pub const LOST_LINEAGE: &str = "Put the object back, from an earlier version in the store or from a copy \
    of the store: without it, nothing of this lineage can be found, and nothing is deleted. Until then, \
restore from another repository.";

/// The lineages of a cluster in a repository, as far as their facts can be read.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Lineages {
    /// Those that can be read, oldest first.
    pub read: Vec<Lineage>,
    /// Those that are there and cannot be read, by id.
    pub damaged: Vec<DamagedLineage>,
}

impl Lineages {
    /// All of them; an error if one cannot be read.
    pub fn whole(self) -> Result<Vec<Lineage>> {
        match self.damaged.first() {
            Some(damaged) => Err(damaged.error()),
            None => Ok(self.read),
        }
    }

    /// The ids of all, those that cannot be read included.
    pub fn ids(&self) -> impl Iterator<Item = LineageId> + '_ {
        self.read.iter().map(|lineage| lineage.id).chain(self.damaged.iter().map(|damaged| damaged.id))
    }

    /// Only those with a system identifier.
    pub fn of(mut self, system_id: SystemId) -> Self {
        self.read.retain(|lineage| lineage.system_id() == system_id);
        self.damaged.retain(|damaged| damaged.id.system_id == system_id);
        self
    }
}

/// A lineage whose facts are stored and cannot be read. What is stored of it is left alone until they are put back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DamagedLineage {
    /// Which one.
    pub id: LineageId,
    /// The object.
    pub key: Key,
    /// What is wrong with it.
    pub what: String,
    /// When the object was stored, by the store's clock: when the lineage was created, or later if the object was copied there.
    pub stored: jiff::Timestamp,
}

impl DamagedLineage {
    /// Takes the damage to the facts of a lineage out of an error: others can be read all the same.
    pub(crate) fn aside<T>(
        id: LineageId,
        stored: jiff::Timestamp,
        read: Result<T>,
    ) -> Result<std::result::Result<T, Self>> {
        match read {
            Ok(read) => Ok(Ok(read)),
            Err(RepoError::Corrupt { key, what, .. }) => Ok(Err(Self { id, key, what, stored })),
            Err(error) => Err(error),
        }
    }

    /// The same as an error.
    pub fn error(&self) -> RepoError {
        RepoError::corrupt(&self.key, format!("{}\nHINT: {LOST_LINEAGE}", self.what))
    }

    /// What to do.
    pub fn remedy(&self) -> &'static str {
        LOST_LINEAGE
    }

    /// Whether a restore to the latest moment may mean this one instead of `chosen`: one of the same server or of a copy of it
    /// always, as each of them has a latest moment; another one unless it was there before `chosen`.
    pub fn may_be_meant_beside(&self, chosen: &Lineage) -> bool {
        self.id.system_id == chosen.system_id() || self.stored >= chosen.created
    }
}

impl fmt::Display for DamagedLineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the metadata of lineage {} is damaged: {}", self.id, self.error())
    }
}

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
    /// Where it comes from, if it was split off from another lineage. Only a data directory that is bound to it archives into it.
    pub parent: Option<ParentLineage>,
}

/// The lineage that another one was split off from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ParentLineage {
    /// Which one.
    #[serde(with = "as_text")]
    pub lineage: LineageId,
    /// The timeline of the last WAL that both have, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork: Option<LineageFork>,
    /// From here on its WAL was written when it had this lineage already, so it is no other server's; `None` if that is not
    /// known.
    #[serde(default, with = "as_text_or_none", skip_serializing_if = "Option::is_none")]
    pub began: Option<Lsn>,
    /// The same in each repository in which it was made at once: a number alone may be another server's there.
    #[serde(default, with = "as_text_or_none", skip_serializing_if = "Option::is_none")]
    pub life: Option<LineageUid>,
}

/// Up to where the WAL of two lineages is the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LineageFork {
    /// On this timeline.
    #[serde(with = "as_text")]
    pub timeline: TimelineId,
    /// The first position that is not known to be the same.
    #[serde(with = "as_text")]
    pub lsn: Lsn,
}

/// The file in a data directory that binds it to a lineage of each repository: a line for each, the repository's id, the cluster and
/// the lineage. A copy that is archived under another cluster's name has the lines of its original, and they are not its own.
pub const BINDING: &str = "walpoint.lineage";

/// The lineage of a cluster that a binding names for a repository; `None` if it names none.
pub fn bound_lineage(
    binding: &str,
    cluster: &ClusterName,
    repository: RepositoryId,
) -> std::result::Result<Option<LineageId>, ParseError> {
    Ok(bound_lineages(binding, cluster)?.get(&repository).copied())
}

/// The lineages of a cluster that a binding names, by repository.
pub fn bound_lineages(
    binding: &str,
    cluster: &ClusterName,
) -> std::result::Result<BTreeMap<RepositoryId, LineageId>, ParseError> {
    let mut bound = BTreeMap::new();
    for line in binding.lines().filter(|line| !line.trim().is_empty()) {
        let (repository, of, lineage) = bound_line(line)?;
        if of == *cluster {
            bound.insert(repository, lineage);
        }
    }
    Ok(bound)
}

fn bound_line(line: &str) -> std::result::Result<(RepositoryId, ClusterName, LineageId), ParseError> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [id, cluster, lineage] = words[..] else {
        return Err(ParseError::new("a repository's id, a cluster and a lineage", line));
    };
    Ok((id.parse()?, cluster.parse()?, lineage.parse()?))
}

/// A binding with these lineages of a cluster in place of those that it names for the same repositories, or for `all`; what it says of
/// other clusters stays.
pub fn rebound(
    binding: &str,
    cluster: &ClusterName,
    lineages: &[(RepositoryId, LineageId)],
    all: bool,
) -> std::result::Result<String, ParseError> {
    let mut text = String::new();
    for line in binding.lines().filter(|line| !line.trim().is_empty()) {
        let (repository, of, _) = bound_line(line)?;
        if of != *cluster || !(all || lineages.iter().any(|(id, _)| *id == repository)) {
            text.push_str(line);
            text.push('\n');
        }
    }
    Ok(text + &self::binding(cluster, lineages.iter().copied()))
}

/// The lineage of its server that a binding names for repositories that it does not mention: a server has the same number in all.
/// Where it names several, the greatest: numbers of other servers are lower, as each new one is greater than all before.
pub fn bound_elsewhere(
    bound: &BTreeMap<RepositoryId, LineageId>,
    system_id: SystemId,
) -> Option<(RepositoryId, LineageId)> {
    let own = bound.iter().filter(|(_, lineage)| lineage.system_id == system_id);
    own.max_by_key(|(_, lineage)| lineage.n).map(|(repository, lineage)| (*repository, *lineage))
}

/// A binding to these lineages of a cluster.
pub fn binding(
    cluster: &ClusterName,
    lineages: impl IntoIterator<Item = (RepositoryId, LineageId)>,
) -> String {
    let line =
        |(repository, lineage): (RepositoryId, LineageId)| format!("{repository} {cluster} {lineage}\n");
    lineages.into_iter().map(line).collect()
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
    /// Whether a lineage of another repository, of the same cluster, is this one there.
    pub fn is_same_life(&self, other: &Self) -> bool {
        self.id == other.id
            && match (&self.parent, &other.parent) {
                (None, None) => true,
                (Some(one), Some(other)) => one.life.is_some() && one.life == other.life,
                _ => false,
            }
    }

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

impl From<&Lineage> for InLineage {
    fn from(lineage: &Lineage) -> Self {
        Self { id: lineage.id, created: lineage.created }
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<ParentLineage>,
}

type Cluster = ClusterName;

impl From<&Lineage> for LineageDocument {
    fn from(lineage: &Lineage) -> Self {
        Self {
            format: walpoint_storage::object::FORMAT_VERSION,
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
            parent: lineage.parent,
        }
    }
}

impl LineageDocument {
    /// Checks that the facts are possible, and that they are those of the object they were found in.
    pub(crate) fn into_lineage(self, key: &Key) -> Result<Lineage> {
        let corrupt = |what: &str| RepoError::corrupt(key, what);
        if self.format != walpoint_storage::object::FORMAT_VERSION {
            return Err(corrupt("it is of a newer format version\nHINT: Use a newer Walpoint."));
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
                    "it is of a version of PostgreSQL that this program does not know\nHINT: Use a newer Walpoint.",
                )
            })?,
            segment_size: SegmentSize::new(self.wal_segment_size)
                .ok_or_else(|| corrupt("no cluster has such a segment size"))?,
            wal_block_size: self.wal_block_size,
            block_size: self.block_size,
            relation_segment_blocks: self.relation_segment_blocks,
            created: self.created,
            ack: self.ack,
            parent: self.parent,
        };
        if lineage.key() != *key {
            return Err(corrupt("it is another lineage's"));
        }
        Ok(lineage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_names_a_lineage_for_each_repository_and_cluster() {
        let (one, two) = (RepositoryId([1; 16]), RepositoryId([2; 16]));
        let (main, copy): (ClusterName, ClusterName) = ("main".parse().unwrap(), "copy".parse().unwrap());
        let lineage = |n| LineageId { system_id: SystemId(7), n };
        let text = binding(&main, [(one, lineage(2)), (two, lineage(3))]);
        assert_eq!(bound_lineage(&text, &main, one), Ok(Some(lineage(2))));
        assert_eq!(bound_lineage(&text, &main, two), Ok(Some(lineage(3))));
        assert_eq!(bound_lineage(&text, &main, RepositoryId([3; 16])), Ok(None));
        assert_eq!(bound_lineage("", &main, one), Ok(None));
        let bound = bound_lineages(&text, &main).unwrap();
        assert_eq!(bound_elsewhere(&bound, SystemId(7)), Some((two, lineage(3))));
        assert_eq!(bound_elsewhere(&bound, SystemId(8)), None);
        assert_eq!(bound_lineages(&text, &copy), Ok(BTreeMap::new()), "a copy with a name of its own");
        let both = rebound(&text, &copy, &[(one, lineage(1))], false).unwrap();
        assert_eq!(bound_lineages(&both, &main), Ok(bound));
        assert_eq!(bound_lineage(&both, &copy, one), Ok(Some(lineage(1))));
        let again = rebound(&both, &main, &[(two, lineage(4))], false).unwrap();
        assert_eq!(bound_lineage(&again, &main, one), Ok(Some(lineage(2))));
        assert_eq!(bound_lineage(&again, &main, two), Ok(Some(lineage(4))));
        let alone = rebound(&both, &main, &[(two, lineage(4))], true).unwrap();
        assert_eq!(bound_lineage(&alone, &main, one), Ok(None));
        assert_eq!(bound_lineage(&alone, &copy, one), Ok(Some(lineage(1))));
        for bad in ["x", "x main 7-1", &format!("{one}"), &format!("{one} 7-1"), &format!("{one} main 7")] {
            assert!(bound_lineage(bad, &main, one).is_err(), "{bad:?}");
            assert!(rebound(bad, &main, &[], false).is_err(), "{bad:?}");
        }
    }
}
