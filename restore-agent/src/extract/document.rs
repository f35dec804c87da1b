//! What was extracted or listed, as a document.

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{BackupId, ClusterName, Diagnostic, LineageId, Lsn, PgMajor, TimelineId};

use super::contents::{Database, Table};
use crate::plan::{PlanReport, Planned};
use crate::scratch::Instance;

/// What `restore-agent extract --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum ExtractDocument<'a> {
    /// What was extracted.
    Extracted(&'a ExtractReport),
    /// With `--list`, what could be.
    Listed(&'a ListReport),
    /// If the target cannot be reached, why.
    #[expect(dead_code, reason = "the function that prints it for plan prints it here too")]
    Plan(PlanReport),
}

walpoint_runtime::document!(ExtractDocument<'_>, "restore-agent extract");

/// What was extracted.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Extract")]
pub(super) struct ExtractReport {
    /// The outcome.
    pub(super) result: Extracted,
    /// Where it is from.
    #[serde(flatten)]
    pub(super) moment: Moment,
    /// The database.
    pub(super) database: String,
    /// The file or the directory.
    pub(super) output: String,
    /// Its size.
    pub(super) output_bytes: u64,
    /// How long it took to write the files of the scratch instance.
    pub(super) restore_seconds: f64,
    /// How long it took from the start of its server to the target.
    pub(super) recovery_seconds: f64,
    /// How long everything took.
    pub(super) seconds: f64,
    /// Notes for the operator, one sentence each.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    pub(super) notes: Vec<String>,
}

/// What a moment holds.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ExtractList")]
pub(super) struct ListReport {
    /// The outcome.
    pub(super) result: Listed,
    /// The moment.
    #[serde(flatten)]
    pub(super) moment: Moment,
    /// The databases.
    pub(super) databases: Vec<Database>,
    /// The database whose schemas and tables are listed. Absent if none was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) database: Option<String>,
    /// Its schemas. Absent if no database was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) schemas: Option<Vec<String>>,
    /// Its tables. Absent if no database was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tables: Option<Vec<Table>>,
    /// Notes for the operator, one sentence each.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    pub(super) notes: Vec<String>,
}

/// The outcome of an extraction.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Extracted {
    /// The output is complete.
    Extracted,
}

/// The outcome of a list.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Listed {
    /// The list is complete.
    Listed,
}

/// The moment that was reached.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct Moment {
    /// The cluster.
    pub(super) cluster: ClusterName,
    /// The lineage.
    pub(super) lineage: LineageId,
    /// The repository that was read.
    pub(super) repository: String,
    /// The backup that was restored.
    pub(super) backup: BackupId,
    /// The target, in words.
    pub(super) target: String,
    /// The timeline that recovery followed.
    pub(super) timeline: TimelineId,
    /// PostgreSQL's major version.
    pub(super) postgresql_major: PgMajor,
    /// The end of the last record that was replayed.
    pub(super) replayed_lsn: Lsn,
    /// The time of the last transaction that was replayed. Absent if none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_commit_time: Option<Timestamp>,
}

impl Moment {
    /// The one that an instance is at.
    pub(super) fn of(planned: &Planned, instance: &Instance) -> Self {
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
