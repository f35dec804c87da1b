//! What this program adds to the notes of a plan: what it means that a repository was not asked.

use walpoint_plan::restore::RestorePlan;
use walpoint_repo::lineage::AckMember;
use walpoint_runtime::args::Selection;
use walpoint_storage::object::RepositoryId;
use walpoint_storage::store::StoreSettings;

use super::Planned;

/// What it means that a repository was skipped.
pub(super) fn without(name: &str, plan: &RestorePlan) -> String {
    let skipped = format!("Repository \"{name}\" was skipped: what only it has is not in this plan.");
    if plan.youngest.is_none() {
        return skipped;
    }
    format!(
        "{skipped}\nDETAIL: If it has a younger timeline than {}, that is the latest one. Where recovery meets it, PostgreSQL \
         stops (exit status 255), and you have to restore again.",
        plan.timeline
    )
}

/// What it means that repositories acknowledge WAL of the lineage and are not read: they are not configured, or `--repo` leaves them out.
pub(super) async fn retired(selection: &Selection<StoreSettings>, planned: &Planned) -> Option<String> {
    let lineage = &planned.lineage;
    let mut missing = left_out(selection);
    // Who acknowledges now is asked only where those that did at first are not all there.
    if !unread(selection, &lineage.ack, planned.repository.id()).is_empty() {
        let members = match planned.repository.acknowledging(lineage).await {
            Ok(known) => unread(selection, &known.members, planned.repository.id()),
            Err(error) => {
                tracing::debug!("who acknowledges is not known: {error}");
                Vec::new()
            }
        };
        for name in members {
            if !missing.contains(&name) {
                missing.push(name);
            }
        }
    }
    let missing: Vec<String> = missing.iter().map(|name| format!("\"{name}\"")).collect();
    let (lacks, do_first) = match selection.chosen {
        true => ("--repo leaves out", "Name it with --repo, too. "),
        false => ("this configuration does not have", ""),
    };
    (!missing.is_empty()).then(|| {
        format!(
            "WAL of lineage {} is acknowledged by {} too, which {lacks}: what only that has is not in this plan, and at the \
             end of the archive recovery stops (exit status 255) instead of ending.\nHINT: {do_first}If it is gone for good, \
             name it in lost_repositories.",
            lineage.id,
            missing.join(" and ")
        )
    })
}

/// Those that acknowledge by the configuration and are left out by `--repo`: recovery does not end without their word.
fn left_out(selection: &Selection<StoreSettings>) -> Vec<String> {
    let Selection { settings, .. } = selection;
    let mut names = selection.left_out();
    names.retain(|name| settings.ack_set().contains(name) && !settings.lost_repositories.contains(name));
    names
}

/// Those of a lineage's repositories that are not read, by the names that they were registered with. `own`: the one that the plan reads
/// from, whatever it is called here.
fn unread(selection: &Selection<StoreSettings>, members: &[AckMember], own: RepositoryId) -> Vec<String> {
    let is_read = |name: &String| selection.repositories.iter().any(|(read, _)| read == name);
    let without = &selection.settings.lost_repositories;
    let others = members.iter().filter(|member| member.repository != own).map(|member| &member.name);
    others.filter(|name| !is_read(name) && !without.contains(name)).cloned().collect()
}
