//! A repository that was lost and made anew takes its place among those that acknowledge a lineage's WAL.

use walpoint_repo::lineage::AckMember;
use walpoint_repo::{Lineage, Repository};
use walpoint_storage::object::RepositoryId;

use crate::check::report::Report;

/// How a repository that was lost and made anew takes its place among those that acknowledge.
pub(super) struct Superseding<'a> {
    pub(super) report: &'a mut Report,
    /// The repositories that are not lost.
    pub(super) there: &'a [&'a Repository],
    /// Whether the server here is the one whose WAL is acknowledged. A standby's host has names of its own for the repositories.
    pub(super) writes: bool,
    /// Those of the configuration that acknowledge.
    pub(super) now: &'a [AckMember],
}

impl Superseding<'_> {
    /// The repositories that acknowledge the WAL of a lineage after that.
    pub(super) async fn done(
        self,
        repository: &Repository,
        lineage: &Lineage,
    ) -> anyhow::Result<Vec<AckMember>> {
        let known = repository.acknowledging(lineage).await?;
        let there: Vec<RepositoryId> = self.there.iter().map(|repository| repository.id()).collect();
        let new = known.superseded_by(self.now, &there).filter(|_| self.writes);
        let Some(new) = new else { return Ok(known.members) };
        repository.supersede_acknowledging(lineage, &new).await?;
        let made_anew =
            self.now.iter().filter(|member| !known.members.contains(member) && new.members.contains(member));
        let names: Vec<&str> = made_anew.map(|member| member.name.as_str()).collect();
        self.report.warning(
            format!("repository {}: ack", repository.name()),
            format!(
                "{} is another repository than the one that had to acknowledge WAL of lineage {}, and takes its place",
                names.join(", "),
                lineage.id
            ),
            "take a backup: what only the old one held is gone",
        );
        Ok(new.members)
    }
}
