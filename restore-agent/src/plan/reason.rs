//! Why a target cannot be reached, as a word that programs can tell apart.

use schemars::JsonSchema;
use serde::Serialize;
use walpoint_plan::restore::Why;

/// Why a target cannot be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "UnreachableReason")]
pub(crate) enum Reason {
    /// The repository has no cluster of that name.
    NoCluster,
    /// The cluster has no lineage of that id.
    UnknownLineage,
    /// Several lineages have the target, with different content, or the restored server would archive into one of them.
    AmbiguousLineage,
    /// The newest lineage has WAL and no usable backup.
    NewestWithoutBackup,
    /// The description of a lineage is damaged, and it may be the requested one.
    DamagedLineage,
    /// The cluster has no usable backup.
    NoBackup,
    /// No usable backup lies on the path to the timeline.
    NoBackupOnPath,
    /// The target lies before the end of the first usable backup.
    BeforeFirstBackup,
    /// The backup holds a transaction whose commit time lies after the target: the server's clock was set back.
    ClockSetBack,
    /// The repository has WAL or backups of the cluster, and the metadata of its lineages is missing.
    LostLineages,
    /// There is no backup of that id.
    UnknownBackup,
    /// The requested backup cannot be used.
    UnusableBackup,
    /// The newest backup, whose end was requested, cannot be read.
    NewestUnreadable,
    /// The requested backup stops after the target.
    BackupTooLate,
    /// The requested backup does not lie on the path to the timeline.
    BackupNotOnPath,
    /// There is no timeline of that id.
    UnknownTimeline,
    /// WAL between the backup and the target is missing.
    MissingWal,
    /// A segment between the backup and the target does not continue the one before it.
    BrokenChain,
    /// The server ran with `wal_level = minimal` between the backup and the target.
    MinimalWal,
    /// The archive ends before the target.
    AfterEnd,
    /// The end of the timeline, up to the fork of a younger one, is in no whole segment of its own.
    EndsInFork,
    /// The repository has only incomplete copies of the last segment of the timeline, and they contradict each other.
    ConflictingCopies,
    /// The repository has only an incomplete copy of the last segment of the timeline.
    EndsIncomplete,
    /// A younger timeline exists whose origin is not known.
    DoubtfulTimeline,
    /// The history file of the timeline is missing.
    NoHistory,
    /// The archive has no end of the transaction.
    XidNotFound,
    /// The archive has the end of a transaction of that id and of another epoch.
    XidOfOtherEpoch,
    /// The archive has no restore point of that name.
    RestorePointNotFound,
    /// The archive has several restore points of that name.
    AmbiguousRestorePoint,
}

impl From<&Why> for Reason {
    fn from(why: &Why) -> Self {
        match why {
            Why::NoCluster(_) => Self::NoCluster,
            Why::LostLineages { .. } => Self::LostLineages,
            Why::UnknownLineage(_) => Self::UnknownLineage,
            Why::SeveralLineages(_) | Why::SharedByLineages(_) => Self::AmbiguousLineage,
            Why::NewestWithoutBackup { .. } => Self::NewestWithoutBackup,
            Why::DamagedLineage { .. } => Self::DamagedLineage,
            Why::NoBackup => Self::NoBackup,
            Why::NoBackupOnPath { .. } => Self::NoBackupOnPath,
            Why::BeforeFirstBackup { .. } => Self::BeforeFirstBackup,
            Why::ClockSetBack { .. } => Self::ClockSetBack,
            Why::UnknownBackup(_) => Self::UnknownBackup,
            Why::UnusableBackup(..) => Self::UnusableBackup,
            Why::NewestUnreadable { .. } => Self::NewestUnreadable,
            Why::BackupTooLate(_) => Self::BackupTooLate,
            Why::BackupNotOnPath(..) => Self::BackupNotOnPath,
            Why::UnknownTimeline(_) => Self::UnknownTimeline,
            Why::MissingWal { .. } => Self::MissingWal,
            Why::BrokenChain { .. } => Self::BrokenChain,
            Why::MinimalWal { .. } => Self::MinimalWal,
            Why::AfterEnd { .. } => Self::AfterEnd,
            Why::EndsInFork { .. } => Self::EndsInFork,
            Why::ContradictingCopies { .. } => Self::ConflictingCopies,
            Why::EndsIncomplete { .. } => Self::EndsIncomplete,
            Why::DoubtfulTimeline { .. } => Self::DoubtfulTimeline,
            Why::NoHistory(_) => Self::NoHistory,
            Why::XidNotFound => Self::XidNotFound,
            Why::XidOfOtherEpoch(_) => Self::XidOfOtherEpoch,
            Why::NameNotFound | Why::NameNotUtf8(_) => Self::RestorePointNotFound,
            Why::SeveralPoints(_) => Self::AmbiguousRestorePoint,
        }
    }
}
