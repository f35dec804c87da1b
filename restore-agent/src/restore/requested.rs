//! How recovery was asked for, as a marker keeps it.

use serde::{Deserialize, Serialize};
use walpoint_base::RecoveryTarget;

use super::RestoreArgs;
use crate::target::TargetActionArgument;

/// How recovery is asked for: the options that say where it goes, beside the target, and what the server does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RequestedRecovery {
    pub(super) timeline: String,
    pub(super) lineage: Option<String>,
    pub(super) backup: Option<String>,
    pub(super) exclusive: bool,
    pub(super) partial: bool,
    pub(super) action: String,
    pub(super) standby: bool,
    pub(super) archiving: bool,
}

impl RequestedRecovery {
    /// By these options. `target`: what they mean as the target.
    pub(super) fn of(args: &RestoreArgs, target: &RecoveryTarget) -> Self {
        let action = match args.target_action {
            Some(TargetActionArgument::Pause) => "pause",
            Some(TargetActionArgument::Promote) => "promote",
            Some(TargetActionArgument::Shutdown) => "shutdown",
            None if *target == RecoveryTarget::Latest => "promote",
            None => "pause",
        };
        Self {
            timeline: args.target.timeline().to_string(),
            lineage: args.target.lineage.map(|lineage| lineage.to_string()),
            backup: args.target.backup.map(|backup| backup.to_string()),
            exclusive: args.target.target_exclusive,
            partial: args.target.use_partial,
            action: action.to_owned(),
            standby: args.standby,
            archiving: args.resume_archiving,
        }
    }
}
