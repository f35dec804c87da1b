//! What `hold` prints, as data and for a person.

use std::fmt::Write as _;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::diagnostic::shown;
use walpoint_base::{BackupId, ClusterName, Diagnostic};
use walpoint_repo::holds::{HeldOn, Hold};
use walpoint_runtime::human;

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
    /// Of `hold list`: why it could not be read. Absent if it could.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Option<Diagnostic>")]
    error: Option<String>,
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
        format!("{:>4}  {}", self.number, self.description())
    }

    /// The same without its number.
    pub(super) fn description(&self) -> String {
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
        format!("{on}, {until}, by {who}: {reason}{state}")
    }
}

impl HoldsDocument {
    /// Of no repository yet.
    pub(super) fn new(cluster: &ClusterName) -> Self {
        Self { cluster: cluster.clone(), repositories: Vec::new() }
    }

    /// Adds a repository's.
    pub(super) fn add(&mut self, repository: &str, holds: Vec<HoldDocument>) {
        self.repositories.push(RepositoryHolds { repository: repository.to_owned(), holds, error: None });
    }

    /// Adds a repository that could not be read.
    pub(super) fn add_unread(&mut self, repository: &str, error: String) {
        let repository = repository.to_owned();
        self.repositories.push(RepositoryHolds { repository, holds: Vec::new(), error: Some(error) });
    }

    /// Whether any repository could be read.
    pub(super) fn has_read(&self) -> bool {
        self.repositories.iter().any(|repository| repository.error.is_none())
    }

    /// For a person.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for RepositoryHolds { repository, holds, error } in &self.repositories {
            // Writing to a String cannot fail.
            writeln!(text, "Holds of cluster {} in {repository}", self.cluster).ok();
            if let Some(error) = error {
                writeln!(text, "{}", human::hanging("  could not be read: ", error)).ok();
                continue;
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_that_does_not_answer_hides_no_other() {
        let mut document = HoldsDocument::new(&"main".parse().unwrap());
        document.add_unread("far", "no answer\nHINT: Wait.".to_owned());
        assert!(!document.has_read());
        document.add("near", Vec::new());
        assert!(document.has_read());
        let text = document.text();
        assert!(text.contains("in far\n  could not be read: no answer\n"), "{text}");
        assert!(text.ends_with("in near\n  none\n"), "{text}");
    }

    #[test]
    fn what_others_wrote_is_one_line_and_controls_no_terminal() {
        let hold = HoldDocument {
            number: 1,
            backup: None,
            label: Some("a\u{1b}[2J".to_owned()),
            reason: "r\nHINT: Run it.".to_owned(),
            start_time: Timestamp::UNIX_EPOCH,
            placed_by: "w\r".to_owned(),
            end_time: None,
            state: HoldState::Removed,
            removal_time: Some(Timestamp::UNIX_EPOCH),
            removed_by: Some("x\u{9b}".to_owned()),
        };
        assert!(!hold.line().contains(char::is_control), "{:?}", hold.line());
    }
}
