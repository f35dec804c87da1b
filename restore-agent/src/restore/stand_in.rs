//! What stands in for a backup that turns out to be damaged: the same backup in another repository, or else another backup
//! from which recovery ends at the same place.
//!
//! A backup that several repositories were given in one run has one id, and the same files, in each of them. The WAL is
//! read as planned either way.

use std::collections::BTreeSet;

use walpoint_base::BackupId;
use walpoint_plan::restore::{Note, RestorePlan, RestoreRequest};
use walpoint_repo::Repository;
use walpoint_repo::backup::{Backups, ListedState};
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::exit::Failure;
use walpoint_storage::store::StoreSettings;

use super::failure;
use crate::plan::{self, NoPlan, Planned};

/// What this run found damaged.
#[derive(Debug, Default)]
pub(super) struct StandIns {
    /// Backups that cannot be read, and the name of the repository of each.
    damaged: Vec<(String, BackupId)>,
    /// What is said of each.
    notes: Vec<String>,
}

impl StandIns {
    /// The plan of the next attempt, after one failed; the failure itself if that was not the backup's fault, or if nothing
    /// stands in for it. What was chosen, and why, is logged and among the plan's notes.
    pub(super) async fn instead(
        &mut self,
        common: &CommonArgs,
        request: &RestoreRequest,
        planned: &Planned,
        failure: Failure,
    ) -> Result<Planned, Failure> {
        let Some(what) = failure::of_backup(&failure.error) else { return Err(failure) };
        let id = planned.plan.backup.id;
        let name = planned.files_from.name().to_owned();
        let found = format!("backup {id} is damaged in repository \"{name}\" ({what})");
        self.damaged.push((name, id));
        let (mut planned, chosen) = if let Some(files_from) = self.same_elsewhere(common, planned).await {
            let chosen = format!("repository \"{}\" holds the same backup, which is used", files_from.name());
            (Planned { files_from, damage: None, ..planned.clone() }, chosen)
        } else if let Some(other) = self.other_backup(common, request, planned).await {
            let chosen = format!(
                "recovery ends at the same place from backup {} of repository \"{}\", which is used",
                other.plan.backup.id,
                other.files_from.name()
            );
            (other, chosen)
        } else {
            return Err(failure);
        };
        let note = format!("{found}; {chosen}\nHINT: \"archive-agent verify\" shows what else is affected.");
        tracing::warn!("{note}");
        planned.remarks.retain(|remark| !self.notes.contains(remark));
        self.notes.push(note);
        planned.remarks.extend(self.notes.iter().cloned());
        Ok(planned)
    }

    /// Another repository that has the backup.
    async fn same_elsewhere(&self, common: &CommonArgs, planned: &Planned) -> Option<Repository> {
        let selection: Selection<StoreSettings> = common.select_to_read().ok()?;
        for (name, settings) in &selection.repositories {
            if self.damaged.contains(&(name.clone(), planned.plan.backup.id)) {
                continue;
            }
            match same_in(name, settings, planned).await {
                Ok(Some(repository)) => return Some(repository),
                Ok(None) => {}
                Err(error) => tracing::warn!(
                    "could not determine whether repository \"{name}\" also holds backup {}: {}",
                    planned.plan.backup.id,
                    walpoint_words::format_chain(&error)
                ),
            }
        }
        None
    }

    /// A plan that begins with another backup and ends at the same place.
    async fn other_backup(
        &self,
        common: &CommonArgs,
        request: &RestoreRequest,
        planned: &Planned,
    ) -> Option<Planned> {
        let unreadable: BTreeSet<BackupId> = self.damaged.iter().map(|(_, id)| *id).collect();
        // Another lineage's backup leads to another server's rows.
        let request = RestoreRequest { unreadable, lineage: Some(planned.plan.lineage), ..request.clone() };
        match plan::make(common, &request).await {
            Ok(mut other) if ends_alike(&other.plan, &planned.plan) => {
                // The lineage was not chosen by a person here either.
                let also =
                    planned.plan.notes.iter().filter(|note| matches!(note, Note::AlsoInLineages { .. }));
                other.plan.notes.extend(also.cloned());
                Some(other)
            }
            Ok(other) => {
                tracing::warn!(
                    "backup {} cannot replace it: recovery from there would end at {} on timeline {}, not \
                     at {} on timeline {}",
                    other.plan.backup.id,
                    other.plan.until,
                    other.plan.timeline,
                    planned.plan.until,
                    planned.plan.timeline
                );
                None
            }
            Err(NoPlan::Unreachable(unreachable)) => {
                tracing::warn!("no other backup can replace it: {}", plan::refusal(&unreachable));
                None
            }
            Err(NoPlan::Failed(failure)) => {
                tracing::warn!(
                    "could not determine whether another backup can replace it: {}",
                    walpoint_words::format_chain(&failure.error)
                );
                None
            }
        }
    }
}

/// Opens a repository if it has the plan's backup of the plan's server.
async fn same_in(
    name: &str,
    settings: &StoreSettings,
    planned: &Planned,
) -> anyhow::Result<Option<Repository>> {
    let repository = Repository::open(name, settings).await?;
    let lineage = repository.read_lineage(&planned.cluster, planned.lineage.id).await?;
    if !lineage.is_some_and(|lineage| planned.lineage.is_same_life(&lineage)) {
        return Ok(None);
    }
    let wanted = &planned.plan.backup;
    let backups = Backups::of(&repository, &planned.cluster);
    if !backups
        .list()
        .await?
        .iter()
        .any(|listed| listed.id == wanted.id && matches!(listed.state, ListedState::Finished(_)))
    {
        return Ok(None);
    }
    let reader = backups.open(wanted.id).await?;
    let facts = &reader.manifest().summary.facts;
    let same = (facts.stop_lsn, facts.stop_timeline, &facts.label)
        == (wanted.end, wanted.end_timeline, &wanted.label);
    Ok(same.then_some(repository))
}

/// Whether recovery ends at the same place, or further on where it goes to whatever there is.
fn ends_alike(one: &RestorePlan, other: &RestorePlan) -> bool {
    let record = |plan: &RestorePlan| plan.stop.as_ref().map(|stop| stop.record);
    let further = one.until >= other.until && record(one).is_none() && record(other).is_none();
    one.timeline == other.timeline && (further || record(one).is_some() && record(one) == record(other))
}
