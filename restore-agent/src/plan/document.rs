//! Plans and refusals as JSON: what `restore-agent plan --json` prints. Stable: members are added, never renamed or removed.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{
    BackupId, Diagnostic, LineageId, Lsn, PgTimestamp, RecoveryTarget, SegmentName, SegmentSize, TimelineId,
};
use walpoint_plan::restore::{Moment, RestorePlan, Signal, StopRule, Unreachable};
use walpoint_repo::catalog::status::SegmentsDocument;

use super::reason::Reason;
use super::removal::RemovalDocument;
use super::stop::StopDocument;
use super::words::{self, CommandLine, hints, options};

/// What `restore-agent plan --json` prints.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub(crate) enum PlanReport {
    /// The target can be reached.
    Plan(Box<PlanDocument>),
    /// The target cannot be reached.
    Unreachable(Box<RefusalDocument>),
}

walpoint_runtime::document!(PlanReport, "restore-agent plan");

/// A plan.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Plan")]
pub(crate) struct PlanDocument {
    /// The cluster's lineage.
    pub(crate) lineage: LineageId,
    /// The requested target.
    pub(crate) target: TargetDocument,
    /// The options of `restore-agent` that request exactly the same restore again: a time as the moment that it means, lineage,
    /// timeline and backup by name.
    pub(crate) options: Vec<String>,
    /// The backup from which recovery starts.
    pub(crate) backup: BackupDocument,
    /// The timelines on the path to the target, oldest first.
    pub(crate) path: Vec<PathDocument>,
    /// The timeline that recovery follows.
    pub(crate) timeline: TimelineId,
    /// The record that ends recovery. Absent for the targets `latest` and `immediate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stop: Option<StopDocument>,
    /// All WAL before this position is needed.
    pub(crate) until_lsn: Lsn,
    /// The segments that recovery replays, in order.
    pub(crate) segments: Vec<SegmentsDocument>,
    /// A segment that `restore-fetch` builds because no repository has it. Absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) built_segment: Option<ForkDocument>,
    /// The names of the history files that recovery reads.
    pub(crate) history_files: Vec<String>,
    /// The signal file that the restore will write.
    pub(crate) signal_file: SignalFile,
    /// The recovery settings that the restore will write, without `restore_command`.
    pub(crate) settings: Vec<SettingDocument>,
    /// What the restore will take.
    pub(crate) estimate: EstimateDocument,
    /// Notes for the operator, one sentence each.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    pub(crate) notes: Vec<String>,
    /// The last transaction before the target that removed relations. Absent if none is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) removal: Option<RemovalDocument>,
    /// With `restore --dry-run`: the tablespaces outside the data directory that replay creates, in LSN order. Absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tablespaces: Vec<TablespaceDocument>,
}

/// A tablespace that replay creates, and what is at its location on this machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[schemars(rename = "CreatedTablespace")]
pub(crate) struct TablespaceDocument {
    /// The position of the record that creates it.
    pub(crate) lsn: Lsn,
    /// The tablespace's OID.
    pub(crate) oid: u32,
    /// The tablespace's location.
    pub(crate) location: String,
    /// What is at the location.
    pub(crate) state: LocationContents,
    /// What to do about it. Absent if there is nothing to do.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Option<Diagnostic>")]
    pub(crate) note: Option<String>,
}

/// What is at the location of a tablespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LocationContents {
    /// Nothing that replay would overwrite.
    Free,
    /// The directory does not exist, and replay would stop.
    Missing,
    /// A tablespace of the data directory that is repaired or replaced: the restore keeps it under another name.
    Replaced,
    /// A tablespace of another data directory: the restore refuses.
    Occupied,
}

impl fmt::Display for LocationContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Free => "free",
            Self::Missing => "missing",
            Self::Replaced => "replaced",
            Self::Occupied => "occupied",
        })
    }
}

/// A signal file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub(crate) enum SignalFile {
    /// For archive recovery.
    #[serde(rename = "recovery.signal")]
    Recovery,
    /// For a standby.
    #[serde(rename = "standby.signal")]
    Standby,
}

/// A segment that a timeline left in the middle, built for recovery on that timeline.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[schemars(rename = "BuiltSegment")]
pub(crate) struct ForkDocument {
    /// The segment.
    pub(crate) segment: SegmentName,
    /// The archived file from which it is built. A name that ends in `.partial` stands for the incomplete copy that holds most.
    pub(crate) source_file: String,
    /// Its bytes are taken up to this position; zeros follow.
    pub(crate) until_lsn: Lsn,
}

/// A refusal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Unreachable")]
pub(crate) struct RefusalDocument {
    /// The requested target.
    pub(crate) target: TargetDocument,
    /// The requested timeline: `latest`, `current` or an id.
    pub(crate) target_timeline: String,
    /// Why the target cannot be reached.
    pub(crate) reason: Reason,
    /// The reason as a sentence.
    pub(crate) message: String,
    /// Segments that the restore would need.
    pub(crate) missing_segments: Vec<SegmentsDocument>,
    /// The nearest moments that can be reached.
    pub(crate) nearest_targets: Vec<MomentDocument>,
    /// Facts about it, as full sentences; several are lines. Absent if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) detail: Option<String>,
    /// What to do, as full sentences; several are lines. Absent if nothing can be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
    /// With the reason `after-end` and a target time: the last transaction in the archive that removed relations. Absent if none is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) removal: Option<RemovalDocument>,
}

/// A target.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Target")]
pub(crate) struct TargetDocument {
    /// Its kind.
    pub(crate) kind: TargetKind,
    /// The time, LSN, transaction id or name. Absent for `latest` and `immediate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) value: Option<String>,
    /// Whether recovery includes what is exactly at the target. Absent if that means nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) inclusive: Option<bool>,
}

/// The kind of a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TargetKind {
    /// The end of the archive.
    Latest,
    /// The end of the backup.
    Immediate,
    /// A time.
    Time,
    /// A position in the WAL.
    Lsn,
    /// A transaction.
    Xid,
    /// A restore point.
    Name,
}

/// The backup from which recovery starts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Backup")]
pub(crate) struct BackupDocument {
    /// Its id.
    pub(crate) id: BackupId,
    /// Its label; empty if it has none.
    pub(crate) label: String,
    /// The timeline on which it started.
    pub(crate) timeline: TimelineId,
    /// The position from which recovery replays WAL.
    pub(crate) start_lsn: Lsn,
    /// The position at which recovery becomes consistent.
    pub(crate) stop_lsn: Lsn,
    /// When it started.
    pub(crate) start_time: PgTimestamp,
    /// When it stopped.
    pub(crate) stop_time: PgTimestamp,
    /// The number of pages that failed their checksum when it was taken.
    pub(crate) damaged_page_count: u64,
}

/// A timeline on the path to the target.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[schemars(rename = "PathStep")]
pub(crate) struct PathDocument {
    /// The timeline.
    pub(crate) timeline: TimelineId,
    /// The position at which it begins.
    pub(crate) start_lsn: Lsn,
    /// The position at which the path leaves it. Absent for the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) end_lsn: Option<Lsn>,
}

/// A recovery setting.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Setting")]
pub(crate) struct SettingDocument {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its value, without quotes.
    pub(crate) value: String,
}

/// What a restore will take, estimated.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Estimate")]
pub(crate) struct EstimateDocument {
    /// The size of the cluster's files before recovery.
    pub(crate) file_bytes: u64,
    /// The size of the blocks that are read from the repository, before compression.
    pub(crate) block_bytes: u64,
    /// The number of segments to replay.
    pub(crate) segment_count: u64,
    /// Their size.
    pub(crate) segment_bytes: u64,
    /// Their size in the repository.
    pub(crate) stored_segment_bytes: u64,
    /// The time for all of it.
    pub(crate) seconds: u64,
}

/// A moment that can be reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[schemars(rename = "NearestTarget")]
pub(crate) struct MomentDocument {
    /// Whether it lies before the requested target.
    pub(crate) earlier: bool,
    /// The timeline.
    pub(crate) timeline: TimelineId,
    /// The position.
    pub(crate) lsn: Lsn,
    /// The time there, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) time: Option<PgTimestamp>,
    /// The options of `restore-agent` that reach it.
    pub(crate) options: Vec<String>,
}

impl PlanReport {
    /// Of a plan, with what a person should know of it, and the tablespaces that replay creates.
    pub(super) fn plan(
        plan: &RestorePlan,
        notes: Vec<String>,
        tablespaces: &[TablespaceDocument],
        (size, given): (SegmentSize, &CommandLine),
    ) -> Self {
        Self::Plan(Box::new(PlanDocument {
            tablespaces: tablespaces.to_vec(),
            notes,
            removal: RemovalDocument::of_plan(plan, given),
            ..PlanDocument::of(plan, size)
        }))
    }

    /// Of a refusal.
    pub(super) fn refusal(refusal: &Unreachable, given: &CommandLine) -> Self {
        Self::Unreachable(Box::new(RefusalDocument::of(refusal, given)))
    }
}

impl PlanDocument {
    fn of(plan: &RestorePlan, size: SegmentSize) -> Self {
        let replayed = StopRule::of(&plan.target, plan.inclusive).is_some_and(|r| r.applies_the_record());
        let e = &plan.estimate;
        Self {
            lineage: plan.lineage,
            target: TargetDocument::of(&plan.target, Some(plan.inclusive)),
            options: options::of_plan(plan),
            backup: BackupDocument {
                id: plan.backup.id,
                label: plan.backup.label.clone(),
                timeline: plan.backup.timeline(),
                start_lsn: plan.backup.start(),
                stop_lsn: plan.backup.end,
                start_time: plan.backup.started,
                stop_time: plan.backup.ended,
                damaged_page_count: plan.backup.damaged_pages,
            },
            path: plan
                .path
                .iter()
                .map(|step| PathDocument {
                    timeline: step.timeline,
                    start_lsn: step.begin,
                    end_lsn: step.end,
                })
                .collect(),
            timeline: plan.timeline,
            stop: plan.stop.as_ref().map(|stop| StopDocument::of(stop, replayed)),
            until_lsn: plan.until,
            segments: plan.wal.iter().map(|range| SegmentsDocument::of(range, size)).collect(),
            built_segment: plan.fork.as_ref().map(|fork| ForkDocument {
                segment: fork.name,
                source_file: fork.source_name().to_string(),
                until_lsn: fork.cut,
            }),
            history_files: plan.histories.iter().map(|t| format!("{}.history", t.hex())).collect(),
            signal_file: plan.signal.into(),
            settings: plan
                .settings
                .iter()
                .map(|s| SettingDocument { name: s.name, value: s.value.clone() })
                .collect(),
            estimate: EstimateDocument {
                file_bytes: e.file_bytes,
                block_bytes: e.block_bytes,
                segment_count: e.wal_segments,
                segment_bytes: e.wal_bytes,
                stored_segment_bytes: e.wal_stored,
                seconds: e.duration.as_secs(),
            },
            notes: Vec::new(),
            removal: None,
            tablespaces: Vec::new(),
        }
    }
}

impl RefusalDocument {
    fn of(refusal: &Unreachable, given: &CommandLine) -> Self {
        let message = refusal
            .hints
            .iter()
            .map(|hint| hints::hint(hint, given))
            .fold(Diagnostic::new(words::refusal(refusal)), Diagnostic::hint);
        let lines = |parts: &[String]| (!parts.is_empty()).then(|| parts.join("\n"));
        Self {
            target: TargetDocument::of(&refusal.target, None),
            target_timeline: refusal.timeline.to_string(),
            reason: Reason::from(&refusal.why),
            message: message.message().to_owned(),
            missing_segments: refusal
                .missing
                .iter()
                .map(|r| SegmentsDocument::of(r, refusal.segment_size))
                .collect(),
            nearest_targets: refusal.nearest.iter().map(MomentDocument::of).collect(),
            detail: lines(message.details()),
            hint: lines(message.hints()),
            removal: RemovalDocument::of_refusal(refusal, given),
        }
    }
}

impl TargetDocument {
    fn of(target: &RecoveryTarget, inclusive: Option<bool>) -> Self {
        let (kind, value, exact) = match target {
            RecoveryTarget::Latest => (TargetKind::Latest, None, false),
            RecoveryTarget::Immediate => (TargetKind::Immediate, None, false),
            RecoveryTarget::Time(at) => (TargetKind::Time, Some(at.to_time().to_string()), true),
            RecoveryTarget::Lsn(lsn) => (TargetKind::Lsn, Some(lsn.to_string()), true),
            RecoveryTarget::Xid(xid) => (TargetKind::Xid, Some(xid.to_string()), true),
            RecoveryTarget::FullXid(full) => (TargetKind::Xid, Some(full.to_string()), true),
            RecoveryTarget::Name(name) => (TargetKind::Name, Some(name.clone()), false),
        };
        Self { kind, value, inclusive: inclusive.filter(|_| exact) }
    }
}

impl MomentDocument {
    fn of(moment: &Moment) -> Self {
        Self {
            earlier: moment.earlier,
            timeline: moment.timeline,
            lsn: moment.lsn,
            time: moment.time,
            options: options::of_moment(moment),
        }
    }
}

impl From<Signal> for SignalFile {
    fn from(signal: Signal) -> Self {
        match signal {
            Signal::Recovery => Self::Recovery,
            Signal::Standby => Self::Standby,
        }
    }
}
