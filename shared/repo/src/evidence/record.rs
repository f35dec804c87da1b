//! What a record says. Its JSON is the content of an object and is never written again, so members that a later version does not know
//! stay in it; names and meanings are in `FORMAT.md`.

use std::fmt::Display;
use std::str::FromStr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use walpoint_base::{BackupId, ClusterName, LineageId};

use super::head::RecordHash;

/// The longest content of a record.
pub const MAX_RECORD: usize = 64 << 10;

/// How many backups a record names, issues and action items it lists.
const MAX_LISTED: usize = 200;

/// How many characters of a text that a program writes are kept.
const MAX_TEXT: usize = 1000;

/// The version of the content.
pub(super) const FORMAT: u32 = 1;

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "EvidenceKind")]
pub enum Kind {
    /// A base backup was taken.
    Backup,
    /// The repository was verified.
    Verification,
    /// A cluster was restored.
    Restore,
    /// A part of a cluster was extracted from a backup.
    Extract,
    /// A restore was rehearsed.
    Drill,
    /// Expired backups and WAL were marked or deleted.
    Expiry,
    /// A hold was placed or removed.
    Hold,
    /// A key or passphrase was added, replaced or removed.
    KeyChange,
    /// The configuration was changed.
    ConfigurationChange,
    /// Data was erased on purpose.
    Erasure,
    /// Something else, also outside Walpoint, and every kind that this version does not know.
    #[serde(other)]
    Other,
}

impl Kind {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 11] = [
        Self::Backup,
        Self::Verification,
        Self::Restore,
        Self::Extract,
        Self::Drill,
        Self::Expiry,
        Self::Hold,
        Self::KeyChange,
        Self::ConfigurationChange,
        Self::Erasure,
        Self::Other,
    ];

    /// Its name in JSON and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Verification => "verification",
            Self::Restore => "restore",
            Self::Extract => "extract",
            Self::Drill => "drill",
            Self::Expiry => "expiry",
            Self::Hold => "hold",
            Self::KeyChange => "key-change",
            Self::ConfigurationChange => "configuration-change",
            Self::Erasure => "erasure",
            Self::Other => "other",
        }
    }

    /// Whether such an action, if it did not fail, proves that the backups which its record names can be read.
    pub fn proves_backups(self) -> bool {
        matches!(self, Self::Verification | Self::Restore | Self::Extract | Self::Drill)
    }
}

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "EvidenceOutcome")]
pub enum Outcome {
    /// Everything was done.
    Success,
    /// A part was done, or with problems.
    Partial,
    /// It failed.
    Failed,
}

impl Outcome {
    /// Its name in JSON and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Partial => "partial",
            Self::Failed => "failed",
        }
    }
}

/// An objective, what was measured, and whether that met it.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "EvidenceObjective")]
pub struct Objective {
    /// At most so long. Absent if no objective was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_seconds: Option<f64>,
    /// So long it was.
    pub measured_seconds: f64,
    /// Whether that met the objective. Absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
}

impl Objective {
    /// What was measured, held against the objective.
    pub fn of(target_seconds: Option<f64>, measured_seconds: f64) -> Self {
        let met = target_seconds.map(|target| measured_seconds <= target);
        Self { target_seconds, measured_seconds, met }
    }
}

/// A file that belongs to a record. The file itself is not stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "EvidenceAttachment")]
pub struct Attachment {
    /// The file's name, without its directory.
    pub name: String,
    /// The file's size.
    pub size_bytes: u64,
    /// SHA-256 of its content, in hexadecimal.
    pub sha256: String,
}

/// A record, as far as the one who writes it knows it: without its place in the chain.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Draft {
    /// When it was recorded, at the end of what was done, by the clock of the machine that recorded it.
    pub time: Timestamp,
    /// What was done.
    pub kind: Kind,
    /// How it ended.
    pub outcome: Outcome,
    /// Who did it: user and host.
    pub recorded_by: String,
    /// The program that recorded it, with its version and commit.
    pub program: String,
    /// The lineage that it was about. Absent if it was about none, or about all.
    #[serde(default, deserialize_with = "from_text_or_none", skip_serializing_if = "Option::is_none")]
    pub lineage: Option<LineageId>,
    /// The backups that it was about, at most 200. Of a verification, a drill, an extract or a restore that did not fail, these are proven to
    /// be readable; of an expiry, these were marked for deletion. Absent if there are none.
    #[serde(default, deserialize_with = "from_texts", skip_serializing_if = "Vec::is_empty")]
    pub backups: Vec<BackupId>,
    /// The recovery target, as it was given. Absent if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What was done, or rehearsed, in words. Absent if nothing was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenario: Option<String>,
    /// The configured scenario by which a drill was made. Absent of other actions, without one, and if options of the command line changed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenario_name: Option<String>,
    /// The people that took part. Absent if none were named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub participants: Vec<String>,
    /// How long it took. Absent if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// How long it took until the service was back. Absent if that was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto: Option<Objective>,
    /// How much of the newest data was lost. Absent if that was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo: Option<Objective>,
    /// What was wrong, at most 200. Absent if nothing was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub issues: Vec<String>,
    /// What has to be done about it. Absent if nothing has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub action_items: Vec<String>,
    /// Files that belong to it. Absent if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    /// What else is worth knowing. Absent if nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A record of the chain.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "EvidenceRecord")]
pub struct Record {
    /// Its number, from 1.
    pub number: u64,
    /// The hash of the record before it. Absent in the first one, and where that record could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub previous_hash: Option<RecordHash>,
    /// The cluster.
    #[serde(deserialize_with = "from_text")]
    pub cluster: ClusterName,
    /// The id of the repository.
    pub repository_id: String,
    /// What it says.
    #[serde(flatten)]
    pub said: Draft,
}

/// A record as it is stored.
#[derive(Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) format: u32,
    #[serde(flatten)]
    pub(super) record: Record,
}

fn from_text<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

fn from_text_or_none<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
}

fn from_texts<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.into_iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
}

/// As much of a text as a record has room for.
fn beginning(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

impl Draft {
    /// A record of now that says only what was done, how it ended, and by whom.
    pub fn new(kind: Kind, outcome: Outcome, recorded_by: String, program: String) -> Self {
        Self {
            time: Timestamp::now(),
            kind,
            outcome,
            recorded_by,
            program,
            lineage: None,
            backups: Vec::new(),
            target: None,
            scenario: None,
            scenario_name: None,
            participants: Vec::new(),
            seconds: None,
            rto: None,
            rpo: None,
            issues: Vec::new(),
            action_items: Vec::new(),
            attachments: Vec::new(),
            note: None,
        }
    }

    /// Names backups, the newest ones where there are more than a record can name.
    pub fn about(mut self, backups: impl IntoIterator<Item = BackupId>) -> Self {
        self.backups = backups.into_iter().collect();
        self.backups.drain(..self.backups.len().saturating_sub(MAX_LISTED));
        self
    }

    /// Names the person that did it; of a long name the beginning.
    pub fn by(self, who: &str) -> Self {
        Self { recorded_by: beginning(who), ..self }
    }

    /// Adds what else is worth knowing; of a long text the beginning.
    pub fn with_note(self, note: &str) -> Self {
        Self { note: Some(beginning(note)), ..self }
    }

    /// Says what was done, or rehearsed; of a long text the beginning.
    pub fn with_scenario(self, scenario: &str) -> Self {
        Self { scenario: Some(beginning(scenario)), ..self }
    }

    /// Lists what was wrong; of long lists and long texts the beginning.
    pub fn with_issues(mut self, issues: impl IntoIterator<Item = String>) -> Self {
        let mut room = MAX_RECORD / 4;
        let mut issues = issues.into_iter();
        for issue in issues.by_ref().take(MAX_LISTED) {
            let issue = beginning(&issue);
            // As JSON has it: a control character takes six bytes.
            let length = serde_json::to_string(&issue).map_or(usize::MAX, |json| json.len());
            let Some(left) = room.checked_sub(length) else { break };
            room = left;
            self.issues.push(issue);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_outcomes_have_their_names_in_json() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
            assert_eq!(serde_json::from_value::<Kind>(kind.name().into()).unwrap(), kind);
        }
        assert_eq!(serde_json::from_str::<Kind>("\"of-a-later-version\"").unwrap(), Kind::Other);
        for outcome in [Outcome::Success, Outcome::Partial, Outcome::Failed] {
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.name());
        }
    }

    #[test]
    fn an_objective_is_met_or_missed_and_none_is_neither() {
        assert_eq!(Objective::of(Some(60.0), 60.0).met, Some(true));
        assert_eq!(Objective::of(Some(60.0), 60.5).met, Some(false));
        assert_eq!(Objective::of(None, 60.5).met, None);
    }

    #[test]
    fn what_a_program_lists_fits_into_a_record() {
        let id: BackupId = "20261121T101500Z-00000001-0000000002000028-9f3a0c11".parse().unwrap();
        let newest: BackupId = "20261122T101500Z-00000001-0000000002000028-9f3a0c11".parse().unwrap();
        let draft = Draft::new(Kind::Verification, Outcome::Partial, "a@b".to_owned(), "p".to_owned())
            .about(std::iter::repeat_n(id, 5000).chain([newest]))
            .with_issues(std::iter::repeat_n("ü\u{1}".repeat(5000), 5000))
            .by(&"\u{1}".repeat(70_000))
            .with_scenario(&"\u{1}".repeat(70_000))
            .with_note(&"\u{1}".repeat(70_000));
        assert_eq!((draft.backups.len(), draft.backups.last()), (200, Some(&newest)));
        assert!(serde_json::to_vec(&draft).unwrap().len() < MAX_RECORD);
    }
}
