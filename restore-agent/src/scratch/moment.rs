//! The moment that an instance has reached, as documents and messages have it.

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{BackupId, ClusterName, LineageId, Lsn, PgMajor, TimelineId};

use crate::plan::Planned;
use crate::server::Instance;

/// The moment that an instance is at, and from what it was restored.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Moment {
    /// The cluster.
    pub(crate) cluster: ClusterName,
    /// The lineage.
    pub(crate) lineage: LineageId,
    /// The repository that was read.
    pub(crate) repository: String,
    /// The backup that was restored.
    pub(crate) backup: BackupId,
    /// The target, in words.
    pub(crate) target: String,
    /// The timeline that recovery followed.
    pub(crate) timeline: TimelineId,
    /// PostgreSQL's major version.
    pub(crate) postgresql_major: PgMajor,
    /// The end of the last record that was replayed.
    pub(crate) replayed_lsn: Lsn,
    /// The time of the last transaction that was replayed. Absent if none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_commit_time: Option<Timestamp>,
}

impl Moment {
    /// The one that an instance is at.
    pub(crate) fn of(planned: &Planned, instance: &Instance) -> Self {
        Self {
            cluster: planned.cluster.clone(),
            lineage: planned.lineage.id,
            repository: planned.files_from.name().to_owned(),
            backup: planned.plan.backup.id,
            target: planned.plan.target.to_string(),
            timeline: planned.plan.timeline,
            postgresql_major: instance.major(),
            replayed_lsn: instance.position.lsn,
            last_commit_time: instance.position.last_commit,
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cluster {} at {} on timeline {}", self.cluster, self.replayed_lsn, self.timeline)?;
        match self.last_commit_time {
            Some(time) => write!(f, ", last transaction at {time}"),
            None => write!(f, ", with the transactions of backup {}", self.backup),
        }
    }
}
