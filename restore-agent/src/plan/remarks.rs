//! What this program adds to the notes of a plan: what it means that a repository was not asked.

use walpoint_base::diagnostic::shown;
use walpoint_base::{BackupId, LineageId, TargetTimeline};
use walpoint_plan::restore::{RestorePlan, Signal};
use walpoint_repo::backup::Backups;
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

/// What it means that what was found damaged cannot be read, and why it cannot.
pub(super) fn unread_announcement(why: &str) -> String {
    format!(
        "This plan may need objects that were found damaged: what was found cannot be read: {why}\nHINT: Run \"archive-agent \
         verify\", which reads everything and records anew what is damaged."
    )
}

/// What it means for a plan to the end of the newest backup on a timeline that packs of a newer one are stored, and nothing else of it.
pub(super) async fn lost_newer(planned: &Planned, timeline: TargetTimeline) -> Option<String> {
    let own = planned.plan.backup.id;
    let may_be_on_it = |id: BackupId| match timeline {
        TargetTimeline::Latest | TargetTimeline::Current => true,
        TargetTimeline::Id(timeline) => id.timeline() <= timeline,
    };
    let is_newer =
        |id: BackupId| id.started() > own.started() && id.start() > own.start() && may_be_on_it(id);
    let lost = match Backups::of(&planned.repository, &planned.cluster).only_packs(is_newer).await {
        Ok(lost) => lost,
        Err(error) => {
            tracing::debug!("could not determine whether a newer backup is lost: {error}");
            Vec::new()
        }
    };
    lost.into_iter().max().map(|id| of_lost(id, own))
}

/// What it means that of a newer backup than `own` nothing but packs is stored.
fn of_lost(newer: BackupId, own: BackupId) -> String {
    format!(
        "Backup {newer} is newer, and nothing of it is stored but its packs: if it was not deleted, it is lost, and the end of backup \
         {own} is not that of the newest one.\nHINT: \"archive-agent verify\" shows more."
    )
}

/// How a repository comes not to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unread {
    /// `--repo` names others.
    OtherNames,
    /// `--repo` gives the URL of another one.
    OtherUrl,
    /// The configuration does not have it.
    NotConfigured,
    /// Of several, `--repo` leaves some out, and the configuration does not have the rest.
    Either,
}

/// What it means that repositories acknowledge WAL of the lineage and are not read: they are not configured, or `--repo` leaves them out.
/// `by_url`: it gives a URL.
pub(super) async fn retired(
    selection: &Selection<StoreSettings>,
    planned: &Planned,
    by_url: bool,
) -> Option<String> {
    let lineage = &planned.lineage;
    let mut missing = left_out(selection);
    // Who acknowledges now is asked only where those that did at first are not all there.
    if !unread(selection, &lineage.ack, planned.repository.id()).is_empty() {
        let members = match planned.repository.acknowledging(lineage).await {
            Ok(known) => unread(selection, &known.members, planned.repository.id()),
            Err(error) => {
                tracing::debug!("could not determine which repositories acknowledge: {error}");
                Vec::new()
            }
        };
        for name in members {
            if !missing.contains(&name) {
                missing.push(name);
            }
        }
    }
    let is_configured = |name: &String| selection.settings.repositories.contains(name);
    let why = match (by_url, missing.iter().all(is_configured), missing.iter().any(is_configured)) {
        (true, ..) => Unread::OtherUrl,
        (false, true, _) => Unread::OtherNames,
        (false, false, true) => Unread::Either,
        (false, false, false) => Unread::NotConfigured,
    };
    let is_standby = planned.plan.signal == Signal::Standby;
    (!missing.is_empty()).then(|| of_unread(lineage.id, &missing, why, is_standby))
}

/// What it means that these repositories are not read.
fn of_unread(lineage: LineageId, names: &[String], why: Unread, is_standby: bool) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("\"{}\"", shown(name))).collect();
    let (lacks, first) = match why {
        Unread::OtherNames => ("--repo leaves out", "Name it with --repo, too."),
        Unread::OtherUrl => ("is not read, because --repo gives a URL", "Use a configuration that has it."),
        Unread::NotConfigured => ("this configuration does not have", "Add it to the configuration."),
        Unread::Either => ("is not read", "Name it with --repo, too, or add it to the configuration."),
    };
    // A standby asks again.
    let at_the_end = match is_standby {
        true => "",
        false => {
            ". At the end of the archive, recovery stops (exit status 255) instead of ending; at a \
             target, a promotion or pg_wal_replay_resume() waits for it"
        }
    };
    format!(
        "WAL of lineage {lineage} is acknowledged by {} too, which {lacks}: what only that has is not in this plan{at_the_end}.\n\
         HINT: {first} If it is gone for good, name it in lost_repositories.",
        names.join(" and ")
    )
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

#[cfg(test)]
mod tests {
    use walpoint_runtime::config::ClusterSettings;

    use super::*;

    /// What is selected of `near` and `far`, the configuration's two.
    fn selection(read: &[&str], ack: Option<&[&str]>, lost: &[&str]) -> Selection<StoreSettings> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
        let mut settings = ClusterSettings::with_repositories(owned(&["near", "far"]));
        settings.ack = ack.map(owned);
        settings.lost_repositories = owned(lost);
        let repositories =
            owned(read).into_iter().map(|name| (name, StoreSettings::at("file:///r"))).collect();
        let cluster = "main".parse().unwrap();
        Selection { cluster, settings, repositories, chosen: read.len() < 2, config: None }
    }

    #[test]
    fn what_acknowledges_and_is_left_out_is_named_unless_it_is_lost() {
        let (far, near, none): (&[&str], &[&str], &[&str]) = (&["far"], &["near"], &[]);
        for (read, ack, lost, expected) in [
            (&["near", "far"][..], None, none, none),
            (near, None, none, far),
            (near, Some(far), none, far),
            (near, Some(near), none, none),
            (near, None, far, none),
        ] {
            assert_eq!(left_out(&selection(read, ack, lost)), expected, "{read:?} {ack:?} {lost:?}");
        }
    }

    #[test]
    fn what_the_lineage_names_and_nothing_reads_is_named() {
        let member = |name: &str, id| AckMember { name: name.to_owned(), repository: RepositoryId([id; 16]) };
        let members = [member("first", 1), member("far", 2), member("old", 3)];
        // The first one is called otherwise here.
        let near = selection(&["near"], None, &[]);
        assert_eq!(unread(&near, &members, RepositoryId([1; 16])), ["far", "old"]);
        let lost = selection(&["near"], None, &["old"]);
        assert_eq!(unread(&lost, &members, RepositoryId([1; 16])), ["far"]);
    }

    #[test]
    fn the_remark_says_what_can_be_done_and_what_this_plan_meets() {
        let (lineage, names) = ("7-1".parse().unwrap(), ["far".to_owned()]);
        for (why, advice) in [
            (Unread::OtherNames, "HINT: Name it with --repo, too. If"),
            (Unread::OtherUrl, "HINT: Use a configuration that has it. If"),
            (Unread::NotConfigured, "HINT: Add it to the configuration. If"),
            (Unread::Either, "HINT: Name it with --repo, too, or add it to the configuration. If"),
        ] {
            for is_standby in [false, true] {
                let text = of_unread(lineage, &names, why, is_standby);
                assert!(text.contains("acknowledged by \"far\" too") && text.contains(advice), "{text}");
                assert_eq!(text.contains("255") && text.contains("promotion"), !is_standby, "{text}");
            }
        }
    }
}
