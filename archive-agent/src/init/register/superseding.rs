//! A repository that was lost and made anew takes its place among those that acknowledge a lineage's WAL, one that was added to the
//! configuration joins them, and a record of them that is damaged is written again.
//!
//! The first only where a person says which one is lost, by its id, and all of it only on the server whose WAL is acknowledged: recovery waits
//! no longer for the word of what was replaced. A name shows nothing, as each host has names of its own. A crash leaves the record before,
//! or the new one.

use walpoint_base::{ClusterName, TimelineId};
use walpoint_repo::lineage::AckMember;
use walpoint_repo::{Acknowledging, Lineage, Repository};
use walpoint_storage::object::RepositoryId;

use crate::check::report::CheckReport;
use crate::check::repository::RECORD;
use crate::wal::claim;

/// How a repository that was lost and made anew takes its place among those that acknowledge.
pub(super) struct Superseding<'a> {
    /// The repositories that are not lost.
    pub(super) there: &'a [RepositoryId],
    /// Those that a person says are lost.
    pub(super) lost: &'a [RepositoryId],
    /// Whether the data directory is known to archive here and its server writes.
    pub(super) archives: bool,
    /// Those of the configuration that acknowledge.
    pub(super) now: &'a [AckMember],
    /// Those of the configuration that have acknowledged alone, or may: their own records name them.
    pub(super) alone: &'a [AckMember],
    /// What other repositories with the same lineage have on record, but for what is damaged.
    pub(super) others: &'a [(RepositoryId, Acknowledging)],
    /// All repositories of the configuration with the same lineage.
    pub(super) here: &'a [AckMember],
}

/// What came of it.
pub(super) struct Superseded {
    /// The repositories that acknowledge the WAL of the lineage by now.
    pub(super) members: Vec<AckMember>,
    /// Those that acknowledged once and were replaced.
    pub(super) replaced: Vec<RepositoryId>,
    /// Whether that can be read, so that there were no others.
    pub(super) is_whole: bool,
    /// Of the members, those that are not here.
    pub(super) elsewhere: Vec<AckMember>,
    /// Why what a person said was lost acknowledges still.
    pub(super) refused: Option<String>,
}

impl Superseding<'_> {
    /// Lets them take their places in a lineage.
    pub(super) async fn done(
        &self,
        report: &mut CheckReport,
        repository: &Repository,
        lineage: &Lineage,
    ) -> anyhow::Result<Superseded> {
        let (mut known, damage) = repository.acknowledging_before_damage(lineage).await?;
        let mut refused = None;
        let mut again = None;
        if damage.is_some() {
            known = known.again(self.others, self.here);
            if self.archives {
                known.without(self.lost, self.there);
            }
            again = Some(known.clone());
        }
        let superseded = known.superseded_by(self.now, self.there, self.lost);
        let is_wanted = superseded.is_some() || damage.is_some() && !self.lost.is_empty();
        if is_wanted && !self.archives {
            refused = Some(
                "this data directory has no record of archiving there, so nothing shows that its WAL \
                 is what was acknowledged\nHINT: Run this on the server in production, once it has \
                 archived a segment on its timeline \
                 (select pg_switch_wal() after a transaction). If archive_command fails until then, run \"archive-agent run --once\", \
                 which stores the segment although it cannot acknowledge it."
                    .to_owned(),
            );
        }
        let joining = [self.now, self.alone].concat();
        let extended = superseded.as_ref().unwrap_or(&known).extended_by(&joining, self.there);
        let next = extended.clone().or_else(|| superseded.clone()).or(again).filter(|_| self.archives);
        let wrote = next.is_some();
        if let Some(new) = next {
            repository.supersede_acknowledging(lineage, &new).await?;
            if damage.is_some() {
                is_recorded_again(report, repository, lineage, &new.members);
            }
            if let Some(superseded) = &superseded {
                takes_the_place(report, repository, lineage, &names_of_new(superseded, &known));
            }
            if let Some(extended) = &extended {
                let before = superseded.as_ref().unwrap_or(&known);
                joins(report, repository, lineage, &names_of_new(extended, before));
            }
            known = new;
        }
        let is_whole = damage.is_none() || wrote;
        if let Some(damage) = damage.filter(|_| !wrote) {
            let damage = walpoint_words::error(&damage);
            report.warning(format!("repository {}: ack", repository.name()), damage, "");
        }
        let still = known.members.iter().find(|member| self.lost.contains(&member.repository));
        if let (None, Some(member)) = (&refused, still) {
            refused = Some(match self.there.contains(&member.repository) {
                true => format!("{} is not lost: it is configured here and answers", member.repository),
                false => format!(
                    "no repository of ack takes the place of {}\nHINT: Configure the new one.",
                    member.repository
                ),
            });
        }
        let elsewhere = known.elsewhere(self.there).cloned().collect();
        Ok(Superseded { members: known.members, replaced: known.replaced, is_whole, elsewhere, refused })
    }
}

/// Those that `before` does not have.
fn names_of_new(new: &Acknowledging, before: &Acknowledging) -> String {
    let is_new = |member: &&AckMember| !before.members.contains(member);
    let names: Vec<&str> = new.members.iter().filter(is_new).map(|member| member.name.as_str()).collect();
    names.join(", ")
}

fn is_recorded_again(
    report: &mut CheckReport,
    repository: &Repository,
    lineage: &Lineage,
    members: &[AckMember],
) {
    let names: Vec<String> =
        members.iter().map(|member| format!("{} ({})", member.name, member.repository)).collect();
    report.warning(
        format!("repository {}: ack", repository.name()),
        format!(
            "the record of which repositories acknowledge WAL of lineage {} was damaged, and names these again: {}\nDETAIL: At the end \
             of the archive, recovery waits for the answer of each of them, and of no other.",
            lineage.id,
            names.join(", ")
        ),
        "If another repository acknowledged WAL of this cluster and is not lost, add it to the configuration, and run \
         \"archive-agent init\" again.",
    );
}

fn takes_the_place(report: &mut CheckReport, repository: &Repository, lineage: &Lineage, names: &str) {
    report.warning(
        format!("repository {}: ack", repository.name()),
        format!(
            "{names} takes the place of the repository that is lost and had to acknowledge WAL of lineage {}",
            lineage.id
        ),
        "Take a backup: what only the old one held is gone.",
    );
}

fn joins(report: &mut CheckReport, repository: &Repository, lineage: &Lineage, names: &str) {
    report.warning(
        format!("repository {}: ack", repository.name()),
        format!(
            "from now on, lineage {} records that WAL must be acknowledged by {names}, too\nDETAIL: At the end of the archive, \
             recovery waits for its answer.",
            lineage.id
        ),
        "",
    );
}

/// Tells of repositories that have to acknowledge a lineage's WAL and are not the configured ones.
pub(super) fn others_acknowledge(
    report: &mut CheckReport,
    repository: &Repository,
    lineage: &Lineage,
    (superseded, configured): (&Superseded, &[AckMember]),
) {
    let members = ids(&superseded.members);
    let names_all = ids(configured).iter().all(|id| members.contains(id));
    if members == ids(configured) || names_all && superseded.elsewhere.is_empty() {
        return;
    }
    let what = format!("repository {}: lineage", repository.name());
    let found = format!("{} was begun when other repositories had to acknowledge WAL", lineage.id);
    if superseded.elsewhere.is_empty() {
        let found = format!(
            "{found}\nDETAIL: Readers without this configuration believe an absence proven by fewer repositories."
        );
        report.warning(what, found, RECORD);
        return;
    }
    let others: Vec<String> = superseded
        .elsewhere
        .iter()
        .map(|member| format!("{} ({})", member.repository, member.name))
        .collect();
    report.warning(
        what,
        format!("{found}: {}\nDETAIL: Recovery waits for the answer of each of them.", others.join(", ")),
        "Only if such a repository is lost for good and another one was created in its place, run \"archive-agent init \
         --lost-repo ID\" on the server in production.",
    );
}

/// Why nothing takes the place of repositories that a person says are lost and that never had to acknowledge.
pub(super) fn never_acknowledged(unknown: &[RepositoryId], cluster: &ClusterName) -> Option<String> {
    let ids: Vec<String> = unknown.iter().map(RepositoryId::to_string).collect();
    (!ids.is_empty()).then(|| {
        format!(
            "no repository with the ID {} ever had to acknowledge WAL of cluster {cluster}\nHINT: \"archive-agent check\" shows the \
             ID of one that has to and is not configured.",
            ids.join(", ")
        )
    })
}

/// The IDs of repositories, in their order.
pub(super) fn ids(ack: &[AckMember]) -> Vec<String> {
    let mut ids: Vec<String> = ack.iter().map(|member| member.repository.to_string()).collect();
    ids.sort();
    ids
}

/// Whether a data directory notes that it stored a segment of its timeline in one of these lineages.
pub(super) async fn archives(
    wal: &std::path::Path,
    lineages: impl Iterator<Item = (&Repository, &Lineage)>,
    timeline: Option<TimelineId>,
) -> anyhow::Result<bool> {
    let Some(timeline) = timeline else { return Ok(false) };
    for (repository, lineage) in lineages {
        let (directory, archive) = (wal.to_owned(), repository.wal(lineage));
        let noted = tokio::task::spawn_blocking(move || claim::read(&directory, &archive, timeline)).await?;
        // What cannot be read shows nothing.
        if matches!(noted, Ok(Some(_))) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::fixtures::Bed;

    #[tokio::test]
    async fn a_damaged_record_is_written_again_only_on_the_server_that_archives() {
        let (bed, lost) = (Bed::new().await, RepositoryId([7; 16]));
        let (repository, lineage) = (bed.archive.repository(), bed.archive.lineage());
        let here = [AckMember { name: repository.name().to_owned(), repository: repository.id() }];
        let known = repository.acknowledging(lineage).await.unwrap();
        let both = [here[0].clone(), AckMember { name: "far".to_owned(), repository: lost }];
        let next = known.extended_by(&both, &[]).unwrap();
        repository.supersede_acknowledging(lineage, &next).await.unwrap();
        bed.damage_record(0);
        let there = [repository.id()];
        let done = async |archives, lost: &[RepositoryId]| {
            let superseding = Superseding {
                there: &there,
                lost,
                archives,
                now: &here,
                alone: &[],
                others: &[],
                here: &here,
            };
            superseding.done(&mut CheckReport::default(), repository, lineage).await.unwrap()
        };
        let elsewhere = done(false, &[lost]).await;
        assert!(elsewhere.refused.is_some_and(|why| why.contains("no record of archiving")));
        assert!(done(false, &[]).await.refused.is_none(), "nothing was asked for");
        assert!(repository.acknowledging(lineage).await.is_err(), "nothing was written");

        let again = done(true, &[lost]).await;
        assert!(again.refused.is_none() && again.is_whole);
        let recorded = repository.acknowledging(lineage).await.unwrap();
        assert_eq!((&recorded.members[..], &recorded.replaced[..]), (&here[..], &[lost][..]));
    }
}
