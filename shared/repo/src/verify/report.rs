//! What a verification tells: what `archive-agent verify --json` prints. Stable: members are added, never renamed or
//! removed.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;
use walpoint_base::{BackupId, ClusterName};
use walpoint_storage::error::Remedy;

use super::{Depth, VerifyOptions};
use crate::Repository;

/// Findings that are told; more of the same run are only counted.
const MOST: usize = 1000;

/// What a run found in one repository.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Verified {
    /// The cluster.
    pub cluster: String,
    /// What the configuration calls the repository.
    pub repository: String,
    /// `light`, `full`, `sample` or `budget`.
    pub depth: &'static str,
    /// When it began.
    pub taken: Timestamp,
    /// Finished backups that were looked at.
    pub backups: u64,
    /// Packs that they use.
    pub packs: u64,
    /// Segments that are needed.
    pub segments: u64,
    /// Objects that were read as a whole.
    pub read_objects: u64,
    /// Bytes of files and WAL that were verified, before compression.
    pub verified_bytes: u64,
    /// Pages whose checksum was found wrong when the backup was made, and still is.
    pub known_bad_pages: u64,
    /// How many findings there are.
    pub found: u64,
    /// The first of them. The program prints them with what to do in words.
    #[serde(skip)]
    pub findings: Vec<VerifyFinding>,
    /// What somebody should know, one sentence each.
    pub notes: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

/// What kind a finding is of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FindingKind {
    /// An object is not there.
    Missing,
    /// An object is longer or shorter than what was stored.
    Size,
    /// An object cannot be read.
    Damaged,
    /// A page of a relation has a wrong checksum.
    Page,
    /// The records of a segment are not such that recovery can replay them.
    Records,
    /// A segment does not continue the one before it.
    Chain,
    /// Segments are missing between others.
    Gap,
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "missing",
            Self::Size => "size",
            Self::Damaged => "damaged",
            Self::Page => "page",
            Self::Records => "records",
            Self::Chain => "chain",
            Self::Gap => "gap",
        })
    }
}

/// Something that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct VerifyFinding {
    /// What kind it is of.
    pub kind: FindingKind,
    /// The object it is about.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// Backups that cannot be restored whole because of it.
    pub backups: Vec<String>,
    /// Moments that cannot be recovered because of it, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moments: Option<String>,
    /// What to do.
    #[serde(skip)]
    pub remedy: Cure,
}

/// What to do about a finding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cure {
    /// That, which needs no command.
    Plain(String),
    /// If PostgreSQL or another repository still has it, remove what is damaged and archive it again.
    Resupply,
    /// The same; a new backup begins a window behind the place, which is said so.
    ResupplyOrBackup(&'static str),
    /// Two servers archived under one timeline: each has to get a lineage of its own.
    SplitBrain,
    /// Put the manifest of this backup back, or delete the backup.
    PutBackOrExpire(BackupId),
    /// A lease: it ends by itself, unless a backup is to begin at once.
    WaitOrForce,
    /// A hold that cannot be read.
    Hold(Remedy),
    /// An announcement that cannot be read.
    Announcement(Remedy),
    /// What says which repositories acknowledge cannot be read.
    Acknowledging(Remedy),
}

impl From<&str> for Cure {
    fn from(text: &str) -> Self {
        Self::Plain(text.to_owned())
    }
}

impl Verified {
    pub(super) fn new(repository: &Repository, cluster: &ClusterName, options: &VerifyOptions) -> Self {
        Self {
            cluster: cluster.to_string(),
            repository: repository.name().to_owned(),
            depth: match options.depth {
                Depth::Light => "light",
                Depth::Full => "everything",
                Depth::Sample(_) => "sample",
                Depth::Budget(_) => "budget",
            },
            taken: Timestamp::now(),
            backups: 0,
            packs: 0,
            segments: 0,
            read_objects: 0,
            verified_bytes: 0,
            known_bad_pages: 0,
            found: 0,
            findings: Vec::new(),
            notes: Vec::new(),
            seconds: 0.0,
        }
    }

    pub(super) fn finding(&mut self, finding: VerifyFinding) {
        self.found += 1;
        if self.findings.len() < MOST {
            self.findings.push(finding);
        }
    }
}
