//! What this program adds to the notes of a plan: what it means that a repository was not asked.

use walpoint_plan::restore::RestorePlan;
use walpoint_repo::lineage::AckMember;
use walpoint_runtime::args::Selection;
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

/// What it means that repositories acknowledge WAL of the lineage and are not configured.
pub(super) async fn retired(selection: &Selection<StoreSettings>, planned: &Planned) -> Option<String> {
    let lineage = &planned.lineage;
    let missing = |members: &[AckMember]| -> Vec<String> {
        let configured = |name: &String| selection.repositories.iter().any(|(known, _)| known == name);
        let without = &selection.settings.lost_repositories;
        let others = members.iter().filter(|member| member.repository != planned.repository.id());
        let names = others.map(|member| &member.name);
        names
            .filter(|name| !configured(name) && !without.contains(name))
            .map(|name| format!("\"{name}\""))
            .collect()
    };
    // Who acknowledges now is asked only where those that did at first are not all there.
    if missing(&lineage.ack).is_empty() {
        return None;
    }
    let acknowledging = planned.repository.acknowledging(lineage).await;
    let acknowledging =
        acknowledging.inspect_err(|error| tracing::debug!("who acknowledges is not known: {error}")).ok()?;
    let missing = missing(&acknowledging.members);
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
