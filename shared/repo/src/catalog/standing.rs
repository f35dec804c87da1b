//! What a backup of a lineage is to a planner: complete, another lineage's, or of no use; and what was found damaged of it.

use std::collections::{BTreeMap, BTreeSet};

use walpoint_base::{BackupId, PgTimestamp};
use walpoint_plan::restore::{Answer, BackupFacts, BackupState, Consistency, Question, Unusable};
use walpoint_storage::error::{RepoError, Result, error_chain};

use super::lineage::LineageCatalog;
use crate::backup::{
    AnnouncementReason, Announcements, BackupSummary, ListedBackup, ListedState, ManifestState,
    NumberedAnnouncement, backups_to_delete,
};
use crate::wal::WalArchive;

impl LineageCatalog {
    /// What a backup's standing means to a planner.
    pub(super) async fn backup(&mut self, standing: Result<ManifestState>) -> Result<BackupState> {
        let why = match standing {
            Ok(ManifestState::Finished(summary)) => {
                let mut state = state(&summary, &self.archive);
                if let BackupState::Complete(facts) = &mut state {
                    self.note_damage(&summary, facts).await;
                }
                return Ok(state);
            }
            Ok(ManifestState::Unfinished) => Unusable::Deleted,
            Ok(ManifestState::Aborted(_)) => Unusable::Aborted,
            Err(error @ RepoError::Corrupt { .. }) => {
                self.problems.push(error.to_string());
                Unusable::DamagedManifest
            }
            Err(error) => return Err(error),
        };
        Ok(BackupState::Unusable(why))
    }

    /// What is announced, if it was read.
    pub fn announcements(&self) -> Option<&[NumberedAnnouncement]> {
        self.announced.as_ref()?.as_deref()
    }

    /// Why what is announced is not known in full: what was found damaged may count as sound.
    pub fn unread_announcements(&self) -> &[String] {
        &self.unread_announcements
    }

    /// Remembers what is announced, but for WAL that was stored anew since. That it cannot be read is remembered, too: it is no
    /// condition of a restore.
    pub(super) async fn take_announcements(&mut self, read: Result<Announcements>) {
        let announced = match read {
            Ok(announced) => {
                for damaged in announced.damaged {
                    self.unread_announcements.push(format!("{} is damaged: {}", damaged.key, damaged.what));
                    self.add_problem(damaged.error().to_string());
                }
                Some(announced.read)
            }
            Err(error) => {
                self.unread_announcements.push(error_chain(&error));
                self.add_problem(error.to_string());
                None
            }
        };
        self.announced = Some(announced);
        self.leave_out_what_is_being_deleted();
        self.leave_out_what_was_stored_anew().await;
    }

    /// A backup that is being deleted looks as if it had lost its manifest, or were unfinished.
    fn leave_out_what_is_being_deleted(&mut self) {
        for id in backups_to_delete(self.announcements().unwrap_or_default()) {
            let without_manifest = matches!(
                self.facts.backup(id),
                Ok(BackupState::Unusable(Unusable::LostManifest | Unusable::Unfinished))
            );
            if !without_manifest {
                continue;
            }
            let deleted = BackupState::Unusable(Unusable::Deleted);
            self.facts.answer(Question::Backup(id), Answer::Backup(deleted));
        }
    }

    /// Looks at the backups whose manifests were announced as damaged.
    pub(super) async fn look_at_damaged_manifests(&mut self) -> Result<()> {
        self.know_announcements().await;
        let announced = self.announcements().unwrap_or_default().iter().map(|one| &one.announcement);
        let damaged = announced.filter(|one| one.reason == AnnouncementReason::Damaged);
        let here = |id: &&BackupId| self.facts.backups.contains(id);
        let damaged: BTreeSet<BackupId> =
            damaged.flat_map(|one| one.backups.iter().filter(here).copied()).collect();
        for id in damaged {
            self.ask(None, |facts| facts.backup(id).map(drop)).await?;
        }
        Ok(())
    }

    /// Reads what is announced, unless that was done.
    pub(crate) async fn know_announcements(&mut self) {
        if !self.are_announcements_known() {
            let announced = self.backups.announcements().await;
            self.take_announcements(announced).await;
        }
    }

    pub(super) fn are_announcements_known(&self) -> bool {
        self.announced.is_some()
    }

    /// Takes note of what was found damaged of a backup. What cannot be found out is no condition of a restore, so it counts as
    /// nothing.
    async fn note_damage(&mut self, summary: &BackupSummary, facts: &mut BackupFacts) {
        self.know_announcements().await;
        let announced = self.announcements().unwrap_or_default();
        if facts.lineage == summary.facts.lineage {
            let (start, end, end_timeline) = (facts.start(), facts.end, facts.end_timeline);
            facts.damaged_segments =
                self.announced(Consistency { start, end, end_timeline }, announced).segments;
        }
        let uses = BTreeMap::from([(summary.id, summary.parents.clone())]);
        match self.backups.found_damaged(&uses, announced).await {
            Ok(found) => {
                let found = found.get(&summary.id).copied().unwrap_or_default();
                (facts.damaged_packs, facts.damaged_manifest) = (found.packs, found.manifest);
            }
            Err(error) => self.add_problem(error.to_string()),
        }
    }
}

/// Why a backup cannot be restored, if a listing shows that.
pub(super) fn unusable(listed: &ListedBackup) -> Option<Unusable> {
    match listed.state {
        ListedState::Unfinished if listed.lost_its_manifest() => Some(Unusable::LostManifest),
        ListedState::Unfinished => Some(Unusable::Unfinished),
        ListedState::Aborted(_) => Some(Unusable::Aborted),
        ListedState::Finished(_) => None,
    }
}

/// What a manifest's summary means for planning in a lineage.
///
/// A backup of the lineage that this one was split off from is as good as an own one if it was consistent before the fork.
fn state(summary: &BackupSummary, archive: &WalArchive) -> BackupState {
    let (facts, lineage) = (&summary.facts, archive.lineage().id);
    if facts.lineage != lineage && !archive.shares(facts.lineage, facts.stop_timeline, facts.stop_lsn) {
        return BackupState::OtherLineage(facts.lineage);
    }
    if (facts.start_timeline, facts.start_lsn) != (summary.id.timeline(), summary.id.start()) {
        return BackupState::Unusable(Unusable::Misnamed);
    }
    BackupState::Complete(Box::new(BackupFacts {
        id: summary.id,
        lineage,
        end: facts.stop_lsn,
        end_timeline: facts.stop_timeline,
        started: PgTimestamp::from_time(facts.started),
        ended: PgTimestamp::from_time(facts.ended),
        latest_commit: facts.latest_commit.map(PgTimestamp::from_time),
        label: facts.label.clone(),
        bytes: summary.totals.bytes,
        block_bytes: summary.totals.blocks.saturating_mul(u64::from(facts.block_size)),
        damaged_pages: summary.totals.bad_pages,
        damaged_packs: 0,
        damaged_manifest: false,
        damaged_segments: 0,
    }))
}
