//! What a person asks of a restore.

use std::collections::BTreeSet;

use walpoint_base::{BackupId, LineageId, RecoveryTarget, TargetTimeline};

/// Where to recover to, and what PostgreSQL does there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestoreRequest {
    /// The moment.
    pub target: RecoveryTarget,
    /// On which timeline it lies.
    pub timeline: TargetTimeline,
    /// Whether what lies exactly at the target is part of the result (`recovery_target_inclusive`). Means nothing for
    /// restore points, `immediate` and the latest moment.
    pub inclusive: bool,
    /// Only this lineage will do.
    pub lineage: Option<LineageId>,
    /// Only this backup will do.
    pub backup: Option<BackupId>,
    /// Backups that were found damaged when they were read: none of them will do.
    pub unreadable: BTreeSet<BackupId>,
    /// What happens at the target.
    pub action: TargetAction,
    /// A standby rather than a server of its own.
    pub standby: bool,
    /// Recover to the end of a timeline also where its last segment has to be built from a `.partial` or a later timeline's
    /// first segment. Recovery to a target before the fork needs no leave for that.
    pub use_partial: bool,
    /// The restored server archives, so it has to be known which server it is: a lineage is not taken for another one that has the same at
    /// the target.
    pub archives: bool,
}

impl Default for RestoreRequest {
    /// Everything that the archive holds, then a server that takes writes.
    fn default() -> Self {
        Self {
            target: RecoveryTarget::Latest,
            timeline: TargetTimeline::Latest,
            inclusive: true,
            lineage: None,
            backup: None,
            unreadable: BTreeSet::new(),
            action: TargetAction::Promote,
            standby: false,
            use_partial: false,
            archives: false,
        }
    }
}

/// What PostgreSQL does at the target (`recovery_target_action`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetAction {
    /// Waits, readable, for somebody to look and to promote.
    Pause,
    /// Ends recovery and takes writes on a new timeline.
    Promote,
    /// Shuts down.
    Shutdown,
}

impl TargetAction {
    /// The value of `recovery_target_action`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Promote => "promote",
            Self::Shutdown => "shutdown",
        }
    }
}
