//! What `hold` prints, as data and for a person.

use std::fmt::Write as _;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::diagnostic::shown;
use walpoint_base::{BackupId, ClusterName};
use walpoint_repo::holds::{HeldOn, Hold};

/// What `archive-agent hold add`, `hold list` and `hold remove` print with `--json`.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct HoldsDocument {
    /// The cluster.
    cluster: ClusterName,
    /// The holds of each repository.
    repositories: Vec<RepositoryHolds>,
}

walpoint_runtime::document!(HoldsDocument, "archive-agent hold");

/// The holds of one repository.
#[derive(Debug, Serialize, JsonSchema)]
struct RepositoryHolds {
    /// The repository's name in the configuration.
    repository: String,
    /// The holds, oldest first. Of `hold add` and `hold remove`: the hold that was placed or removed.
    holds: Vec<HoldDocument>,
}

/// A hold.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Hold")]
pub(crate) struct HoldDocument {
    /// Its number in the repository.
    number: u64,
    /// The backup that it holds. Absent if it holds a label.
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<BackupId>,
    /// The label whose backups it holds. Absent if it holds one backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    /// Why it was placed.
    reason: String,
    /// When it was placed.
    start_time: Timestamp,
    /// Who placed it.
    placed_by: String,
    /// When it ends. Absent if it ends when it is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<Timestamp>,
    /// Whether it is in force.
    state: HoldState,
    /// When it was removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    removal_time: Option<Timestamp>,
    /// Who removed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    removed_by: Option<String>,
}

/// Whether a hold is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum HoldState {
    /// It prevents the deletion of what it holds.
    InForce,
    /// Its end time has passed.
    Ended,
    /// It was removed.
    Removed,
}

impl HoldDocument {
    /// A hold as it is now.
    pub(crate) fn of(hold: &Hold, now: Timestamp) -> Self {
        let placed = &hold.placed;
        let (backup, label) = match &placed.on {
            HeldOn::Backup(id) => (Some(*id), None),
            HeldOn::Label(label) => (None, Some(label.clone())),
        };
        let state = match &hold.removed {
            Some(_) => HoldState::Removed,
            None if hold.is_in_force(now) => HoldState::InForce,
            None => HoldState::Ended,
        };
        Self {
            number: hold.number,
            backup,
            label,
            reason: placed.reason.clone(),
            start_time: placed.at,
            placed_by: placed.who.clone(),
            end_time: placed.until,
            state,
            removal_time: hold.removed.as_ref().map(|(_, at)| *at),
            removed_by: hold.removed.as_ref().map(|(who, _)| who.clone()),
        }
    }

    /// For a person, in one line.
    pub(crate) fn line(&self) -> String {
        let on = match (&self.backup, &self.label) {
            (Some(id), _) => format!("backup {id}"),
            (None, label) => format!("label \"{}\"", shown(label.as_deref().unwrap_or_default())),
        };
        let until = self.end_time.map_or("until it is removed".to_owned(), |until| format!("until {until}"));
        let state = match (self.state, &self.removed_by, self.removal_time) {
            (HoldState::Removed, Some(who), Some(at)) => format!("; removed by {} at {at}", shown(who)),
            (HoldState::Ended, ..) => "; it has run out".to_owned(),
            _ => String::new(),
        };
        let (who, reason) = (shown(&self.placed_by), shown(&self.reason));
        format!("{:>4}  {on}, {until}, by {who}: {reason}{state}", self.number)
    }
}

impl HoldsDocument {
    /// Of no repository yet.
    pub(super) fn new(cluster: &ClusterName) -> Self {
        Self { cluster: cluster.clone(), repositories: Vec::new() }
    }

    /// Adds a repository's.
    pub(super) fn add(&mut self, repository: &str, holds: Vec<HoldDocument>) {
        self.repositories.push(RepositoryHolds { repository: repository.to_owned(), holds });
    }

    /// For a person.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for RepositoryHolds { repository, holds } in &self.repositories {
            // Writing to a String cannot fail.
            writeln!(text, "Holds of cluster {} in {repository}", self.cluster).ok();
            if holds.is_empty() {
                text.push_str("  none\n");
            }
            for hold in holds {
                writeln!(text, "{}", hold.line()).ok();
            }
        }
        text
    }
}
