//! What a verification reports: what `archive-agent verify --json` prints. Stable: members are added, never renamed or removed.

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};
use walpoint_base::{BackupId, ClusterName, Diagnostic};
use walpoint_storage::error::Remedy;

use super::{Depth, VerifyOptions};
use crate::Repository;

/// Findings that are told; more of the same run are only counted.
const MOST: usize = 1000;

/// What a run found in one repository.
#[derive(Clone, PartialEq, Debug, Serialize, JsonSchema)]
pub struct Verified {
    /// The cluster.
    pub cluster: ClusterName,
    /// The repository's name in the configuration.
    pub repository: String,
    /// How much it read.
    pub depth: ReportedDepth,
    /// When it began.
    pub start_time: Timestamp,
    /// The number of finished backups.
    pub backup_count: u64,
    /// The number of packs that they use.
    pub pack_count: u64,
    /// The number of segments that are needed.
    pub segment_count: u64,
    /// The number of objects that it read as a whole.
    pub read_object_count: u64,
    /// The size of the files and WAL that it verified, before compression.
    pub verified_bytes: u64,
    /// The number of pages that were damaged when they were backed up, as the backup recorded, and still are.
    pub known_damaged_page_count: u64,
    /// The number of findings.
    pub finding_count: u64,
    /// The first of them. The program prints them with what to do in words.
    #[serde(skip)]
    pub findings: Vec<VerifyFinding>,
    /// Notes for the operator, one sentence each.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    pub notes: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

/// How much a verification read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "VerifyDepth")]
pub enum ReportedDepth {
    /// Nothing: it looked at what is there and how long it is.
    Light,
    /// Every byte.
    Everything,
    /// A share of all objects.
    Sample,
    /// As many objects as its time allowed.
    Budget,
}

impl fmt::Display for ReportedDepth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Light => "light",
            Self::Everything => "everything",
            Self::Sample => "sample",
            Self::Budget => "budget",
        })
    }
}

/// The kind of a finding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// An object is missing.
    Missing,
    /// An object is longer or shorter than what was stored.
    Size,
    /// An object is damaged.
    Damaged,
    /// A page of a relation has a wrong checksum.
    Page,
    /// Recovery cannot replay the records of a segment.
    Records,
    /// A segment does not continue the one before it.
    Chain,
    /// Segments are missing between stored ones.
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

/// A finding.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct VerifyFinding {
    /// Its kind.
    pub kind: FindingKind,
    /// The object that it is about.
    pub object: String,
    /// What is wrong with the object.
    #[serde(rename = "message", serialize_with = "message")]
    #[schemars(with = "String")]
    pub what: String,
    /// Backups that cannot be restored completely because of it.
    pub backups: Vec<String>,
    /// Moments that cannot be recovered because of it, in words.
    #[serde(skip_serializing_if = "Option::is_none", rename = "unrecoverable")]
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
    /// Put back what is stored of the cluster, or begin anew.
    PutBackOrInit,
    /// A lease: it ends by itself, unless a backup is to begin at once.
    WaitOrForce,
    /// A hold that cannot be read.
    Hold(Remedy),
    /// An announcement that cannot be read.
    Announcement(Remedy),
    /// This key slot cannot be read.
    KeySlot(u32),
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
            cluster: cluster.clone(),
            repository: repository.name().to_owned(),
            depth: match options.depth {
                Depth::Light => ReportedDepth::Light,
                Depth::Full => ReportedDepth::Everything,
                Depth::Sample(_) => ReportedDepth::Sample,
                Depth::Budget(_) => ReportedDepth::Budget,
            },
            start_time: Timestamp::now(),
            backup_count: 0,
            pack_count: 0,
            segment_count: 0,
            read_object_count: 0,
            verified_bytes: 0,
            known_damaged_page_count: 0,
            finding_count: 0,
            findings: Vec::new(),
            notes: Vec::new(),
            seconds: 0.0,
        }
    }

    pub(super) fn finding(&mut self, mut finding: VerifyFinding) {
        finding.what = without_hints(&finding.what);
        self.finding_count += 1;
        if self.findings.len() < MOST {
            self.findings.push(finding);
        }
    }
}

/// What an error says. What it advises where it usually happens is not what helps here.
fn without_hints(error: &str) -> String {
    let error = Diagnostic::new(error);
    error.details().iter().fold(Diagnostic::new(error.message()), Diagnostic::detail).to_string()
}

/// Details have a member of their own in what is printed.
fn message<S: Serializer>(what: &str, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(Diagnostic::new(what).message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_stay_and_advice_goes() {
        assert_eq!(
            without_hints("cut\nDETAIL: It has 3 bytes.\nHINT: Look."),
            "cut\nDETAIL: It has 3 bytes."
        );
        assert_eq!(without_hints("cut\nHINT: Look."), "cut");
    }
}
