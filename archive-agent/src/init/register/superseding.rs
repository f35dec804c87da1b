//! A repository that was lost and made anew takes its place among those that acknowledge a lineage's WAL.
//!
//! Only where a person says which one is lost, by its id, and only on the server whose WAL is acknowledged: recovery waits no longer
//! for the word of what was replaced. A name shows nothing, as each host has names of its own.

use walpoint_base::TimelineId;
use walpoint_repo::lineage::AckMember;
use walpoint_repo::{Lineage, Repository};
use walpoint_storage::object::RepositoryId;

use crate::check::report::CheckReport;
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
}

/// What came of it.
pub(super) struct Superseded {
    /// The repositories that acknowledge the WAL of the lineage by now.
    pub(super) members: Vec<AckMember>,
    /// Of these, those that are not here.
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
        let next = known.superseded_by(self.now, self.there, self.lost);
        let replaces = next.is_some() && self.archives;
        match next {
            Some(new) if self.archives => {
                repository.supersede_acknowledging(lineage, &new).await?;
                let is_new = |member: &&AckMember| !known.members.contains(member);
                let names: Vec<&str> =
                    new.members.iter().filter(is_new).map(|member| member.name.as_str()).collect();
                report.warning(
                    format!("repository {}: ack", repository.name()),
                    format!(
                        "{} takes the place of the repository that is lost and had to acknowledge WAL of lineage {}",
                        names.join(", "),
                        lineage.id
                    ),
                    "Take a backup: what only the old one held is gone.",
                );
                known = new;
            }
            Some(_) => {
                refused = Some(
                    "this data directory has no record of archiving there, so nothing shows that its WAL \
                     is what was acknowledged\nHINT: Run this on the server in production, once it has \
                     archived a segment on its timeline \
                     (select pg_switch_wal() after a transaction)."
                        .to_owned(),
                );
            }
            None => {}
        }
        if let Some(damage) = damage.filter(|_| !replaces) {
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
        Ok(Superseded { members: known.members, elsewhere, refused })
    }
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
        if tokio::task::spawn_blocking(move || claim::read(&directory, &archive, timeline)).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}
