//! What an expiry tells: what `archive-agent expire --json` prints. Stable: members are added, never renamed or removed.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use walpoint_base::{BackupId, ClusterName};
use walpoint_plan::retention::{Decision, RetentionVerdict};
use walpoint_storage::error::Remark;
use walpoint_storage::layout::Key;

use super::ExpireOptions;
use super::delete::NAMED;
use super::scan::{Tallies, Tally};
use crate::Repository;
use crate::reach::Class;

/// What a run did in one repository, or would do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Expired {
    /// The cluster.
    pub cluster: String,
    /// What the configuration calls the repository.
    pub repository: String,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Whether a retention is configured that can drop anything.
    pub configured: bool,
    /// When it began.
    pub taken: Timestamp,
    /// How far the store's clock is ahead of this machine's; absent where it was not compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_ahead_seconds: Option<i64>,
    /// Every finished backup, oldest first, and what was decided about it.
    pub backups: Vec<DecisionReport>,
    /// Unfinished backups that nobody will finish and that were aborted, or would be.
    pub aborted: Vec<String>,
    /// What there is, by class of object.
    pub classes: Vec<ClassReport>,
    /// Bytes that were deleted, or would be now.
    pub freed_bytes: u64,
    /// How many objects the store did not let go.
    pub held_objects: u64,
    /// The first of them.
    pub held: Vec<String>,
    /// Objects whose names are not known; they are left alone.
    pub unknown: Vec<String>,
    /// Temporary files of killed writes that were removed.
    pub leftovers: u64,
    /// What somebody should know, one sentence each.
    pub notes: Vec<String>,
    /// What a person should know, and a command helps against: the program puts it into words, among the notes.
    #[serde(skip)]
    pub remarks: Vec<Remark>,
}

/// What was decided about a backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DecisionReport {
    /// Its id.
    pub id: String,
    /// Its label.
    pub label: String,
    /// The lineage it is of.
    pub lineage: String,
    /// When it ended.
    pub ended: Timestamp,
    /// What becomes of it.
    #[serde(serialize_with = "verdict")]
    pub verdict: RetentionVerdict,
    /// Why, as a sentence without its subject.
    pub because: String,
    /// Whether it is older than `max_age`.
    pub exceeds_max_age: bool,
    /// What is known to be wrong with it, as a phrase; absent for a sound one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
}

/// Objects of one class: numbers and bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ClassReport {
    /// `backup`, `pack`, `segment`, `backup-history`, `index` or `restore-point`.
    pub class: &'static str,
    /// What stays.
    pub kept_objects: u64,
    /// Its bytes.
    pub kept_bytes: u64,
    /// What this run announced: it is deleted after the grace period.
    pub marked_objects: u64,
    /// Its bytes.
    pub marked_bytes: u64,
    /// What was announced before and has to wait.
    pub waiting_objects: u64,
    /// Its bytes.
    pub waiting_bytes: u64,
    /// What was deleted, or would be now.
    pub deleted_objects: u64,
    /// Its bytes.
    pub deleted_bytes: u64,
}

/// `onward` (it stays with all WAL after it), `alone` (with the WAL that makes it consistent) or `drop`.
fn verdict<S: Serializer>(verdict: &RetentionVerdict, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match verdict {
        RetentionVerdict::Onward => "onward",
        RetentionVerdict::Alone => "alone",
        RetentionVerdict::Drop => "drop",
    })
}

impl From<&Decision> for DecisionReport {
    fn from(decision: &Decision) -> Self {
        let backup = &decision.backup;
        Self {
            id: backup.id.to_string(),
            label: backup.label.clone(),
            lineage: backup.lineage.to_string(),
            ended: backup.ended,
            verdict: decision.verdict,
            because: decision.because(),
            exceeds_max_age: decision.exceeds_max_age,
            damage: (!backup.is_sound()).then(|| backup.damage.to_string()),
        }
    }
}

impl Expired {
    pub(super) fn new(repository: &Repository, cluster: &ClusterName, options: &ExpireOptions) -> Self {
        Self {
            cluster: cluster.to_string(),
            repository: repository.name().to_owned(),
            dry_run: options.dry_run,
            configured: options.policy.drops(),
            taken: Timestamp::now(),
            clock_ahead_seconds: None,
            backups: Vec::new(),
            aborted: Vec::new(),
            classes: Vec::new(),
            freed_bytes: 0,
            held_objects: 0,
            held: Vec::new(),
            unknown: Vec::new(),
            leftovers: 0,
            notes: Vec::new(),
            remarks: Vec::new(),
        }
    }

    /// Of all backups, or of one.
    pub(super) fn decided(&mut self, decisions: &[Decision], only: Option<BackupId>) {
        let wanted = decisions.iter().filter(|decision| only.is_none_or(|id| decision.backup.id == id));
        self.backups = wanted.map(DecisionReport::from).collect();
    }

    /// Of a dry run what is eligible counts as deleted; of another one, what was.
    pub(super) fn counted(&mut self, tallies: &BTreeMap<Class, Tallies>) {
        let of = |(class, tallies): (&Class, &Tallies)| ClassReport {
            class: class.name(),
            kept_objects: tallies.kept.objects,
            kept_bytes: tallies.kept.bytes,
            marked_objects: tallies.announced.objects,
            marked_bytes: tallies.announced.bytes,
            waiting_objects: tallies.waiting.objects,
            waiting_bytes: tallies.waiting.bytes,
            deleted_objects: if self.dry_run { tallies.eligible.objects } else { 0 },
            deleted_bytes: if self.dry_run { tallies.eligible.bytes } else { 0 },
        };
        self.classes = tallies.iter().map(of).collect();
        self.freed_bytes = self.classes.iter().map(|class| class.deleted_bytes).sum();
    }

    /// Adds an object that the store did not let go.
    pub(super) fn hold_back(&mut self, key: &Key) {
        self.held_objects = self.held_objects.saturating_add(1);
        if self.held.len() < NAMED {
            self.held.push(key.to_string());
        }
    }

    /// Adds what was deleted.
    pub(super) fn deleted(&mut self, deleted: &BTreeMap<Class, Tally>) {
        for (class, tally) in deleted {
            if let Some(report) = self.classes.iter_mut().find(|report| report.class == class.name()) {
                report.deleted_objects += tally.objects;
                report.deleted_bytes = report.deleted_bytes.saturating_add(tally.bytes);
            }
        }
        self.freed_bytes = self.classes.iter().map(|class| class.deleted_bytes).sum();
    }
}
