//! What `archive-agent status --json` prints of a repository. Stable: members are added, never renamed or removed.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{
    BackupId, ClusterName, Diagnostic, LineageId, Lsn, PgMajor, PgTimestamp, SegmentName, TimelineId,
};

use crate::backup::{BackupKind, BackupStage, Method};
use crate::catalog::points::RestorePointStatus;

/// What a repository has of a cluster.
#[derive(Clone, PartialEq, Debug, Serialize, JsonSchema)]
pub struct ClusterStatus {
    /// The cluster.
    pub cluster: ClusterName,
    /// The repository's name in the configuration.
    pub repository: String,
    /// The repository's URL.
    pub url: String,
    /// When the repository was listed.
    pub time: Timestamp,
    /// The cluster's lineages, oldest first.
    pub lineages: Vec<LineageStatus>,
    /// Lineages whose description is damaged. Nothing else is known of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub damaged_lineages: Vec<DamagedLineageStatus>,
    /// The backups of all lineages, oldest first.
    pub backups: Vec<BackupStatus>,
}

/// Consecutive segments.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[schemars(rename = "SegmentRange")]
pub struct SegmentsDocument {
    /// The first segment.
    pub first_segment: SegmentName,
    /// The last segment.
    pub last_segment: SegmentName,
    /// The number of segments.
    pub segment_count: u64,
}

/// A lineage whose description is damaged.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct DamagedLineageStatus {
    /// The lineage.
    pub lineage: LineageId,
    /// The object that describes it.
    pub object: String,
    /// What is wrong with the object, and what to do.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Diagnostic")]
    pub error: String,
}

/// A lineage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct LineageStatus {
    /// The lineage.
    pub lineage: LineageId,
    /// The lineage that it was split off from. Absent if it was not split off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentStatus>,
    /// PostgreSQL's major version.
    pub postgresql_major: PgMajor,
    /// The size of a segment.
    pub segment_bytes: u64,
    /// Its timelines, lowest id first.
    pub timelines: Vec<TimelineStatus>,
    /// The newest 20 restore points that can be recovered to, oldest first.
    pub restore_points: Vec<RestorePointStatus>,
    /// The number of older restore points that can be recovered to.
    #[serde(skip)]
    pub older_restore_points: usize,
    /// What could not be read.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    pub errors: Vec<String>,
    /// Timelines that two servers claimed or that were abandoned, and who settled them: one sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub settlements: Vec<String>,
}

/// The lineage that another one was split off from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct ParentStatus {
    /// The lineage.
    pub lineage: LineageId,
    /// The timeline of the fork. Absent if no common WAL is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeline: Option<TimelineId>,
    /// The position of the fork: all WAL before it is common to both lineages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lsn: Option<Lsn>,
    /// Whether the lineage that was split off has a finished backup of its own. Until it has, it depends on one of its parent's.
    pub has_own_backup: bool,
}

/// A timeline.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct TimelineStatus {
    /// The timeline.
    pub timeline: TimelineId,
    /// The timeline that it left. Absent for one without a parent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<ForkStatus>,
    /// Its first segment in the repository. Absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_segment: Option<SegmentName>,
    /// Its last segment in the repository. Absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_segment: Option<SegmentName>,
    /// The number of its segments that can be replayed.
    pub segment_count: u64,
    /// The size of its segments in the repository.
    pub stored_bytes: u64,
    /// What can be recovered, oldest first.
    pub windows: Vec<WindowStatus>,
    /// Segments that are missing between stored ones, or that cannot be replayed.
    pub gaps: Vec<SegmentsDocument>,
    /// Segments that do not continue the one before them, so that recovery cannot pass.
    pub breaks: Vec<BreakStatus>,
    /// Segments that are stored and cannot be replayed. They are in `gaps` too.
    pub damaged_segments: Vec<SegmentName>,
}

/// A segment that does not continue the one before it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct BreakStatus {
    /// The segment.
    pub segment: SegmentName,
    /// What does not fit, as a sentence without its subject.
    pub reason: String,
    /// Whether two servers wrote the WAL of the timeline.
    pub split_brain: bool,
    /// Whether a backup was taken since from which recovery begins after the break.
    pub has_later_backup: bool,
}

/// Where a timeline left its parent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct ForkStatus {
    /// The parent.
    pub timeline: TimelineId,
    /// The position at which it left the parent.
    pub lsn: Lsn,
    /// The reason in PostgreSQL's history file.
    pub reason: String,
}

/// A range in which every moment can be recovered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct WindowStatus {
    /// The position at which it begins.
    pub from_lsn: Lsn,
    /// The time at which it begins, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_time: Option<PgTimestamp>,
    /// The position at which it ends.
    pub until_lsn: Lsn,
    /// The time of the latest transaction in it, if known. A target time must lie before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_time: Option<PgTimestamp>,
    /// Whether it continues a window of the parent timeline and begins at the fork.
    pub continues_parent: bool,
    /// The oldest backup in it.
    pub oldest_backup: BackupId,
    /// The number of backups in it.
    pub backup_count: usize,
}

/// A backup, as far as a listing shows it.
#[derive(Clone, PartialEq, Debug, Serialize, JsonSchema)]
pub struct BackupStatus {
    /// Its id.
    pub id: BackupId,
    /// The timeline on which it started.
    pub timeline: TimelineId,
    /// The position from which recovery replays WAL.
    pub start_lsn: Lsn,
    /// When it started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    /// Whether it was finished. Only finished backups have further members, and of those that no summary object covers yet perhaps
    /// only the newest.
    pub state: BackupStage,
    /// The number of pages that failed their checksum when it was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damaged_page_count: Option<u64>,
    /// Why its manifest cannot be read: it is damaged or lost. Absent if it can, as far as is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest_damage: Option<String>,
    /// What its summary says.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub details: Option<BackupDetails>,
}

/// What the summary of a finished backup says.
#[derive(Clone, PartialEq, Debug, Serialize, JsonSchema)]
pub struct BackupDetails {
    /// Its label; empty if it has none.
    pub label: String,
    /// The lineage whose WAL it needs.
    pub lineage: LineageId,
    /// Whether it uses blocks that other backups stored. Every backup is complete either way.
    pub kind: BackupKind,
    /// How the cluster was read.
    pub method: Method,
    /// Whether it was taken from a standby.
    pub from_standby: bool,
    /// When it stopped.
    pub stop_time: Timestamp,
    /// How long it took.
    pub seconds: f64,
    /// The size of the cluster's files.
    pub file_bytes: u64,
    /// The size of the blocks that it stored itself, before compression.
    pub new_bytes: u64,
    /// The size of the packs that it added to the repository.
    pub stored_bytes: u64,
    /// The number of pages that are not all zero.
    pub page_count: u64,
    /// Whether the cluster had data checksums.
    pub data_checksums: bool,
    /// As `damaged_page_count`.
    #[serde(skip)]
    pub damaged_pages: u64,
    /// The number of packs that it uses and that `verify` or `expire` found damaged or missing.
    pub damaged_pack_count: u64,
    /// The number of segments without which it does not become consistent that are missing or that `verify` found damaged.
    pub damaged_segment_count: u64,
    /// All its known damage, in words. Absent if none is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
}
