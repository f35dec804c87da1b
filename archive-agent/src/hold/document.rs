//! What `hold` prints, as data and for a person.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;
use walpoint_repo::holds::{HeldOn, Hold};

/// What `hold --json` prints; `docs/json.md` describes it.
#[derive(Debug, Serialize)]
pub(super) struct HoldsDocument {
    cluster: String,
    repositories: Vec<Holding>,
}

/// The holds of one repository.
#[derive(Debug, Serialize)]
struct Holding {
    repository: String,
    holds: Vec<HoldDocument>,
}

/// What has become of a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum HoldState {
    InForce,
    /// Its time is over.
    Ended,
    /// Somebody removed it.
    Removed,
}

/// A hold. Its JSON is stable.
#[derive(Debug, Serialize)]
pub(crate) struct HoldDocument {
    /// Its number in its repository.
    number: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    /// Why.
    reason: String,
    /// Who placed it.
    who: String,
    /// When.
    placed: Timestamp,
    /// When it ends; absent: when somebody removes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
    state: HoldState,
    #[serde(skip_serializing_if = "Option::is_none")]
    removed_by: Option<String>,
    /// When it was removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<Timestamp>,
}

impl HoldDocument {
    /// A hold as it is now.
    pub(crate) fn of(hold: &Hold, now: Timestamp) -> Self {
        let placed = &hold.placed;
        let (backup, label) = match &placed.on {
            HeldOn::Backup(id) => (Some(id.to_string()), None),
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
            who: placed.who.clone(),
            placed: placed.at,
            until: placed.until,
            state,
            removed_by: hold.removed.as_ref().map(|(who, _)| who.clone()),
            removed: hold.removed.as_ref().map(|(_, at)| *at),
        }
    }

    /// For a person, in one line.
    pub(crate) fn line(&self) -> String {
        let on = match (&self.backup, &self.label) {
            (Some(id), _) => format!("backup {id}"),
            (None, label) => format!("label \"{}\"", label.as_deref().unwrap_or_default()),
        };
        let until = self.until.map_or("until it is removed".to_owned(), |until| format!("until {until}"));
        let state = match (self.state, &self.removed_by, self.removed) {
            (HoldState::Removed, Some(who), Some(at)) => format!("; removed by {who} at {at}"),
            (HoldState::Ended, ..) => "; it has run out".to_owned(),
            _ => String::new(),
        };
        format!("{:>4}  {on}, {until}, by {}: {}{state}", self.number, self.who, self.reason)
    }
}

impl HoldsDocument {
    /// Of no repository yet.
    pub(super) fn new(cluster: &str) -> Self {
        Self { cluster: cluster.to_owned(), repositories: Vec::new() }
    }

    /// Adds a repository's.
    pub(super) fn add(&mut self, repository: &str, holds: Vec<HoldDocument>) {
        self.repositories.push(Holding { repository: repository.to_owned(), holds });
    }

    /// For a person.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for Holding { repository, holds } in &self.repositories {
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
