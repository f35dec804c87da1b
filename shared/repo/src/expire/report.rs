//! What an expiry reports: what `archive-agent expire --json` prints. Stable: members are added, never renamed or removed.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{BackupId, ClusterName, Diagnostic, LineageId};
use walpoint_plan::retention::{Decision, RetainedLineage, RetentionReason, RetentionVerdict};
use walpoint_storage::error::{Remark, Remedy};
use walpoint_storage::layout::Key;

use super::ExpireOptions;
use super::delete::NAMED;
use super::scan::{Tallies, Tally};
use crate::Repository;
use crate::reach::Class;

/// What a run did in one repository, or would do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct Expired {
    /// The cluster.
    pub cluster: ClusterName,
    /// The repository's name in the configuration.
    pub repository: String,
    /// Whether it was a dry run, which changes nothing.
    pub dry_run: bool,
    /// Whether a retention policy is configured that can expire a backup.
    pub retention_configured: bool,
    /// When it began.
    pub start_time: Timestamp,
    /// How far the store's clock is ahead of this machine's. Absent in a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_ahead_seconds: Option<i64>,
    /// The finished backups, oldest first, and what was decided about them. With `--backup` only that one.
    pub backups: Vec<DecisionReport>,
    /// Unfinished backups that will never be finished and that were aborted, or would be in a dry run.
    pub aborted_backups: Vec<BackupId>,
    /// The objects of the cluster, by class.
    pub classes: Vec<ClassReport>,
    /// The size of the objects that were deleted, or would be now in a dry run.
    pub freed_bytes: u64,
    /// The number of objects that the store refused to delete: they are under a lock, or the account may not delete them.
    pub denied_count: u64,
    /// The first of them.
    pub denied_objects: Vec<String>,
    /// Objects whose names are not known. They are not touched.
    pub unknown_objects: Vec<String>,
    /// The number of temporary files of killed writes that were removed.
    pub temporary_file_count: u64,
    /// Notes for the operator, one sentence each.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    pub notes: Vec<String>,
    /// What a person should know, and a command helps against: the program puts it into words, among the notes.
    #[serde(skip)]
    pub remarks: Vec<Remark>,
}

/// What was decided about a backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[schemars(rename = "RetentionDecision")]
pub struct DecisionReport {
    /// Its id.
    pub id: BackupId,
    /// Its label; empty if it has none.
    pub label: String,
    /// Its lineage.
    pub lineage: LineageId,
    /// When it stopped.
    pub stop_time: Timestamp,
    /// Whether it stays.
    pub decision: BackupDecision,
    /// Why, as a sentence without its subject.
    pub reason: String,
    /// Whether it is older than `max_age`.
    pub exceeds_max_age: bool,
    /// Its known damage, in words. Absent if none is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
}

/// Whether a backup stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BackupDecision {
    /// It stays with all WAL after it.
    Keep,
    /// It stays with the WAL that makes it consistent.
    KeepStandalone,
    /// It expires.
    Expire,
}

impl From<RetentionVerdict> for BackupDecision {
    fn from(verdict: RetentionVerdict) -> Self {
        match verdict {
            RetentionVerdict::Onward => Self::Keep,
            RetentionVerdict::Alone => Self::KeepStandalone,
            RetentionVerdict::Drop => Self::Expire,
        }
    }
}

/// The objects of one class.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct ClassReport {
    /// The class.
    pub class: Class,
    /// The number of objects that stay.
    pub kept_count: u64,
    /// Their size.
    pub kept_bytes: u64,
    /// The number of objects that this run marked for deletion, or would mark in a dry run.
    pub marked_count: u64,
    /// Their size.
    pub marked_bytes: u64,
    /// The number of objects that were marked for deletion before and are in the grace period.
    pub pending_count: u64,
    /// Their size.
    pub pending_bytes: u64,
    /// The number of objects that were deleted, or would be now in a dry run.
    pub deleted_count: u64,
    /// Their size.
    pub deleted_bytes: u64,
}

impl From<&Decision> for DecisionReport {
    fn from(decision: &Decision) -> Self {
        let backup = &decision.backup;
        Self {
            id: backup.id,
            label: backup.label.clone(),
            lineage: backup.lineage,
            stop_time: backup.ended,
            decision: decision.verdict.into(),
            reason: decision.because(),
            exceeds_max_age: decision.exceeds_max_age,
            damage: (!backup.is_sound()).then(|| backup.damage.to_string()),
        }
    }
}

impl Expired {
    pub(super) fn new(repository: &Repository, cluster: &ClusterName, options: &ExpireOptions) -> Self {
        Self {
            cluster: cluster.clone(),
            repository: repository.name().to_owned(),
            dry_run: options.dry_run,
            retention_configured: options.policy.drops(),
            start_time: Timestamp::now(),
            clock_ahead_seconds: None,
            backups: Vec::new(),
            aborted_backups: Vec::new(),
            classes: Vec::new(),
            freed_bytes: 0,
            denied_count: 0,
            denied_objects: Vec::new(),
            unknown_objects: Vec::new(),
            temporary_file_count: 0,
            notes: Vec::new(),
            remarks: Vec::new(),
        }
    }

    /// Of all backups, or of one. `lives`: what was known of their lineages.
    pub(super) fn decided(
        &mut self,
        decisions: &[Decision],
        lives: &[RetainedLineage],
        only: Option<BackupId>,
    ) {
        let wanted = decisions.iter().filter(|decision| only.is_none_or(|id| decision.backup.id == id));
        self.backups = wanted.clone().map(DecisionReport::from).collect();
        let begun = wanted.flat_map(|decision| &decision.reasons).filter_map(|reason| match reason {
            RetentionReason::PathBegun(timeline) => Some(*timeline),
            _ => None,
        });
        for timeline in begun.collect::<BTreeSet<_>>() {
            let what = format!(
                "of timeline {timeline} only the history is archived, and a backup is kept for it until its WAL is archived"
            );
            self.remarks.push(Remark { what, remedy: Some(Remedy::AbandonTimeline(timeline)) });
        }
        let in_use = lives.iter().filter(|life| only.is_none() && life.superseded.is_none());
        for timeline in in_use.filter(|_| self.retention_configured).flat_map(|life| &life.beside) {
            let what = format!(
                "timeline {timeline} was written beside a newer one, or may have been: its newest backup and the WAL after that are \
                 kept"
            );
            self.remarks.push(Remark { what, remedy: Some(Remedy::AbandonTimeline(*timeline)) });
        }
    }

    /// Of a dry run what is eligible for deletion counts as deleted; of another one, what was.
    pub(super) fn counted(&mut self, tallies: &BTreeMap<Class, Tallies>) {
        let of = |(class, tallies): (&Class, &Tallies)| ClassReport {
            class: *class,
            kept_count: tallies.kept.objects,
            kept_bytes: tallies.kept.bytes,
            marked_count: tallies.announced.objects,
            marked_bytes: tallies.announced.bytes,
            pending_count: tallies.waiting.objects,
            pending_bytes: tallies.waiting.bytes,
            deleted_count: if self.dry_run { tallies.eligible.objects } else { 0 },
            deleted_bytes: if self.dry_run { tallies.eligible.bytes } else { 0 },
        };
        self.classes = tallies.iter().map(of).collect();
        self.freed_bytes = self.classes.iter().map(|class| class.deleted_bytes).sum();
    }

    /// Adds an object that the store refused to delete.
    pub(super) fn deny(&mut self, key: &Key) {
        self.denied_count = self.denied_count.saturating_add(1);
        if self.denied_objects.len() < NAMED {
            self.denied_objects.push(key.to_string());
        }
    }

    /// Adds what was deleted.
    pub(super) fn deleted(&mut self, deleted: &BTreeMap<Class, Tally>) {
        for (class, tally) in deleted {
            if let Some(report) = self.classes.iter_mut().find(|report| report.class == *class) {
                report.deleted_count += tally.objects;
                report.deleted_bytes = report.deleted_bytes.saturating_add(tally.bytes);
            }
        }
        self.freed_bytes = self.classes.iter().map(|class| class.deleted_bytes).sum();
    }
}
