//! Plans and refusals as JSON: what `restore-agent plan --json` prints. Stable: members are added, never renamed or
//! removed. Times are RFC 3339 in UTC, positions and names as PostgreSQL writes them, sizes in bytes.

use std::fmt;

use serde::Serialize;
use walpoint_base::{RecoveryTarget, SegmentSize};
use walpoint_plan::restore::{Moment, RestorePlan, Stop, StopRule, Unreachable, Why};
use walpoint_repo::catalog::status::{SegmentsDocument, time};

use super::words::{self, hints, options};

/// What planning ended with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub(crate) enum PlanReport {
    /// The target can be reached.
    Plan(Box<PlanDocument>),
    /// It cannot.
    Unreachable(Box<RefusalDocument>),
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct PlanDocument {
    /// Which lineage of the cluster.
    pub(crate) lineage: String,
    /// What was asked for.
    pub(crate) target: TargetDocument,
    /// The options of `restore-agent` that ask for exactly this again.
    pub(crate) options: Vec<String>,
    /// The backup to start from.
    pub(crate) backup: BackupDocument,
    /// The timelines on the way, oldest first.
    pub(crate) path: Vec<PathDocument>,
    /// The timeline that recovery follows.
    pub(crate) timeline: u32,
    /// The record that stops recovery; absent for the latest moment and `immediate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stop: Option<StopDocument>,
    /// All WAL before this is needed.
    pub(crate) until_lsn: String,
    /// The segments, in order.
    pub(crate) wal: Vec<SegmentsDocument>,
    /// The segment that has to be built, because the archive has it under no name that recovery asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fork: Option<ForkDocument>,
    /// Names of the history files that are needed.
    pub(crate) histories: Vec<String>,
    /// The signal file: `recovery.signal` or `standby.signal`.
    pub(crate) signal_file: &'static str,
    /// The recovery settings but `restore_command`, in the order in which they have to be written.
    pub(crate) settings: Vec<SettingDocument>,
    /// What it will cost, about.
    pub(crate) estimate: EstimateDocument,
    /// What a person should know.
    pub(crate) notes: Vec<String>,
    /// Of `restore --dry-run`: the tablespaces outside the data directory that replay creates, in LSN order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tablespaces: Vec<TablespaceDocument>,
}

/// What lies where replay creates a tablespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LocationContents {
    /// Nothing that matters.
    Free,
    /// There is no such directory.
    Missing,
    /// A tablespace of the data directory itself, which is kept under another name.
    Own,
    /// Another cluster's: the restore refuses.
    Foreign,
}

impl fmt::Display for LocationContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Free => "free",
            Self::Missing => "missing",
            Self::Own => "own",
            Self::Foreign => "foreign",
        })
    }
}

/// A tablespace that replay creates, and what lies at its location on this machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct TablespaceDocument {
    /// Where the record starts.
    pub(crate) lsn: String,
    /// The tablespace's OID.
    pub(crate) oid: u32,
    pub(crate) location: String,
    pub(crate) state: LocationContents,
    /// What to do about it, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<String>,
}

/// A segment that a timeline left in the middle, built for recovery on that timeline.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct ForkDocument {
    /// The name by which recovery asks for it.
    pub(crate) segment: String,
    /// The file of the archive that it is built from.
    pub(crate) from: String,
    /// Its bytes are taken up to here; behind are zeros.
    pub(crate) until_lsn: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct RefusalDocument {
    /// What was asked for.
    pub(crate) target: TargetDocument,
    /// On which timeline: `latest`, `current` or a number.
    pub(crate) timeline: String,
    /// Why not, as a word: `missing-wal`, `after-end`, …
    pub(crate) reason: &'static str,
    /// Why not, as a sentence.
    pub(crate) message: String,
    /// Segments that would have to be there.
    pub(crate) missing: Vec<SegmentsDocument>,
    /// The nearest moments that can be reached.
    pub(crate) nearest: Vec<MomentDocument>,
    /// What to do or to look at.
    pub(crate) hints: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct TargetDocument {
    /// `latest`, `immediate`, `time`, `lsn`, `xid` or `name`.
    pub(crate) kind: &'static str,
    /// Which one; absent for the first two kinds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) value: Option<String>,
    /// Whether what lies exactly there is part of the result; absent where that means nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) inclusive: Option<bool>,
}

/// A base backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct BackupDocument {
    pub(crate) id: String,
    /// The label given to it.
    pub(crate) label: String,
    /// The timeline it started on.
    pub(crate) timeline: u32,
    /// Where recovery from it begins.
    pub(crate) start_lsn: String,
    /// From where on it is consistent.
    pub(crate) end_lsn: String,
    /// When it started.
    pub(crate) started: String,
    /// When it ended.
    pub(crate) ended: String,
    /// Pages that failed their checksum when it was taken.
    pub(crate) damaged_pages: u64,
}

/// A timeline on the way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct PathDocument {
    pub(crate) timeline: u32,
    /// Where it begins.
    pub(crate) begin_lsn: String,
    /// Where the path leaves it; absent for the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) end_lsn: Option<String>,
}

/// The record that stops recovery.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct StopDocument {
    /// The timeline it belongs to.
    pub(crate) timeline: u32,
    /// Where it starts.
    pub(crate) lsn: String,
    /// Where it ends.
    pub(crate) end_lsn: String,
    /// Whether it is itself replayed.
    pub(crate) replayed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) time: Option<String>,
    /// The transaction that it ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) xid: Option<u32>,
    /// The same with its epoch, as `pg_current_xact_id()` printed it, where a transaction was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) full_xid: Option<u64>,
    /// Relations that a paused recovery lets nobody read there, the first hundred.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) locks: Vec<LockDocument>,
    /// Prepared transactions that are known to be open there, the first hundred: they outlive recovery with their locks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) prepared: Vec<PreparedDocument>,
}

/// A transaction that was prepared and has not ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct PreparedDocument {
    /// The transaction.
    pub(crate) xid: u32,
    /// What `COMMIT PREPARED` calls it.
    pub(crate) gid: String,
}

/// A relation that a transaction keeps locked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct LockDocument {
    /// The transaction, or one within it.
    pub(crate) xid: u32,
    /// The OID of the database; 0 for what all databases share.
    pub(crate) database: u32,
    /// The OID of the relation.
    pub(crate) relation: u32,
    /// Where it was locked, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) since_lsn: Option<String>,
}

/// A recovery setting.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct SettingDocument {
    /// The parameter.
    pub(crate) name: &'static str,
    /// Its value, not quoted.
    pub(crate) value: String,
}

/// What a restore will cost, about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct EstimateDocument {
    /// Bytes of the cluster's files before recovery.
    pub(crate) file_bytes: u64,
    /// Bytes of their blocks that are read, before compression.
    pub(crate) block_bytes: u64,
    /// Segments to replay.
    pub(crate) wal_segments: u64,
    pub(crate) wal_bytes: u64,
    /// Bytes that they take in the repository.
    pub(crate) wal_stored_bytes: u64,
    pub(crate) seconds: u64,
}

/// A moment that can be reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct MomentDocument {
    /// Whether it lies before what was asked for.
    pub(crate) earlier: bool,
    pub(crate) timeline: u32,
    /// The position.
    pub(crate) lsn: String,
    /// The time there, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) time: Option<String>,
    /// The options of `restore-agent` that reach it.
    pub(crate) options: Vec<String>,
}

impl PlanReport {
    /// Of a plan, with what a person should know of it, and the tablespaces that replay creates.
    pub(super) fn plan(
        plan: &RestorePlan,
        notes: Vec<String>,
        tablespaces: &[TablespaceDocument],
        size: SegmentSize,
    ) -> Self {
        Self::Plan(Box::new(PlanDocument {
            tablespaces: tablespaces.to_vec(),
            notes,
            ..PlanDocument::of(plan, size)
        }))
    }

    pub(super) fn refusal(refusal: &Unreachable) -> Self {
        Self::Unreachable(Box::new(RefusalDocument::of(refusal)))
    }
}

impl PlanDocument {
    fn of(plan: &RestorePlan, size: SegmentSize) -> Self {
        let replayed = StopRule::of(&plan.target, plan.inclusive).is_some_and(|r| r.applies_the_record());
        let e = &plan.estimate;
        Self {
            lineage: plan.lineage.to_string(),
            target: TargetDocument::of(&plan.target, Some(plan.inclusive)),
            options: options::of_plan(plan),
            backup: BackupDocument {
                id: plan.backup.id.to_string(),
                label: plan.backup.label.clone(),
                timeline: plan.backup.timeline().get(),
                start_lsn: plan.backup.start().to_string(),
                end_lsn: plan.backup.end.to_string(),
                started: time(plan.backup.started),
                ended: time(plan.backup.ended),
                damaged_pages: plan.backup.damaged_pages,
            },
            path: plan
                .path
                .iter()
                .map(|step| PathDocument {
                    timeline: step.timeline.get(),
                    begin_lsn: step.begin.to_string(),
                    end_lsn: step.end.map(|lsn| lsn.to_string()),
                })
                .collect(),
            timeline: plan.timeline.get(),
            stop: plan.stop.as_ref().map(|stop| StopDocument::of(stop, replayed)),
            until_lsn: plan.until.to_string(),
            wal: plan.wal.iter().map(|range| SegmentsDocument::of(range, size)).collect(),
            fork: plan.fork.as_ref().map(|fork| ForkDocument {
                segment: fork.name.to_string(),
                from: fork.source_name().to_string(),
                until_lsn: fork.cut.to_string(),
            }),
            histories: plan.histories.iter().map(|t| format!("{}.history", t.hex())).collect(),
            signal_file: plan.signal.file_name(),
            settings: plan
                .settings
                .iter()
                .map(|s| SettingDocument { name: s.name, value: s.value.clone() })
                .collect(),
            estimate: EstimateDocument {
                file_bytes: e.file_bytes,
                block_bytes: e.block_bytes,
                wal_segments: e.wal_segments,
                wal_bytes: e.wal_bytes,
                wal_stored_bytes: e.wal_stored,
                seconds: e.duration.as_secs(),
            },
            notes: Vec::new(),
            tablespaces: Vec::new(),
        }
    }
}

impl RefusalDocument {
    fn of(refusal: &Unreachable) -> Self {
        Self {
            target: TargetDocument::of(&refusal.target, None),
            timeline: refusal.timeline.to_string(),
            reason: word(&refusal.why),
            message: words::refusal(refusal),
            missing: refusal.missing.iter().map(|r| SegmentsDocument::of(r, refusal.segment_size)).collect(),
            nearest: refusal.nearest.iter().map(MomentDocument::of).collect(),
            hints: refusal.hints.iter().map(hints::hint).collect(),
        }
    }
}

impl TargetDocument {
    fn of(target: &RecoveryTarget, inclusive: Option<bool>) -> Self {
        let (kind, value, exact) = match target {
            RecoveryTarget::Latest => ("latest", None, false),
            RecoveryTarget::Immediate => ("immediate", None, false),
            RecoveryTarget::Time(at) => ("time", Some(time(*at)), true),
            RecoveryTarget::Lsn(lsn) => ("lsn", Some(lsn.to_string()), true),
            RecoveryTarget::Xid(xid) => ("xid", Some(xid.to_string()), true),
            RecoveryTarget::FullXid(full) => ("xid", Some(full.to_string()), true),
            RecoveryTarget::Name(name) => ("name", Some(name.clone()), false),
        };
        Self { kind, value, inclusive: inclusive.filter(|_| exact) }
    }
}

impl StopDocument {
    fn of(stop: &Stop, replayed: bool) -> Self {
        Self {
            timeline: stop.timeline.get(),
            lsn: stop.record.to_string(),
            end_lsn: stop.end.to_string(),
            replayed,
            time: stop.time.map(time),
            xid: stop.xid,
            full_xid: stop.full_xid.map(|full| full.0),
            prepared: stop
                .prepared
                .iter()
                .take(LOCKS)
                .map(|prepared| PreparedDocument { xid: prepared.xid, gid: prepared.gid.clone() })
                .collect(),
            locks: stop
                .locks
                .iter()
                .take(LOCKS)
                .map(|lock| LockDocument {
                    xid: lock.xid,
                    database: lock.database,
                    relation: lock.relation,
                    since_lsn: lock.since.map(|lsn| lsn.to_string()),
                })
                .collect(),
        }
    }
}

impl MomentDocument {
    fn of(moment: &Moment) -> Self {
        Self {
            earlier: moment.earlier,
            timeline: moment.timeline.get(),
            lsn: moment.lsn.to_string(),
            time: moment.time.map(time),
            options: options::of_moment(moment),
        }
    }
}

/// Locks and prepared transactions that are listed: a transaction may drop any number of relations.
const LOCKS: usize = 100;

/// A reason as a word that programs can tell apart.
fn word(why: &Why) -> &'static str {
    match why {
        Why::NoCluster(_) => "no-cluster",
        Why::BrokenChain { .. } => "broken-chain",
        Why::UnknownLineage(_) => "unknown-lineage",
        Why::SeveralLineages(_) => "several-lineages",
        Why::NewestWithoutBackup { .. } => "newest-without-backup",
        Why::DamagedLineage { .. } => "damaged-lineage",
        Why::NoBackup => "no-backup",
        Why::NoBackupOnPath { .. } => "no-backup-on-path",
        Why::BeforeFirstBackup { .. } => "before-first-backup",
        Why::ClockSetBack { .. } => "clock-set-back",
        Why::UnknownBackup(_) => "unknown-backup",
        Why::UnusableBackup(..) => "unusable-backup",
        Why::BackupTooLate(_) => "backup-too-late",
        Why::BackupNotOnPath(..) => "backup-not-on-path",
        Why::UnknownTimeline(_) => "unknown-timeline",
        Why::MissingWal { .. } => "missing-wal",
        Why::MinimalWal { .. } => "minimal-wal",
        Why::AfterEnd { .. } => "after-end",
        Why::EndsInFork { .. } => "ends-in-fork",
        Why::ContradictingCopies { .. } => "contradicting-copies",
        Why::EndsIncomplete { .. } => "ends-incomplete",
        Why::DoubtfulTimeline { .. } => "doubtful-timeline",
        Why::NoHistory(_) => "no-history",
        Why::XidNotFound => "xid-not-found",
        Why::XidOfOtherEpoch(_) => "xid-of-other-epoch",
        Why::NameNotFound => "name-not-found",
        Why::SeveralPoints(_) => "several-points",
    }
}
