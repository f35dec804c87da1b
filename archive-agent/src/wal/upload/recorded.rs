//! That those which acknowledge are on record before they acknowledge alone: a reader of any repository goes by what that has on record,
//! and recovery ends where all of those say that there is no more.
//!
//! What always holds: of the repositories that one of them has on record, at least one holds everything that was acknowledged. So where
//! `ack` names others than before, these join the record, first in the repositories that have acknowledged so far and then in their own:
//! where one names a repository, that one's record names it, too. Where they would acknowledge alone and a repository on record cannot be
//! reached, nothing is acknowledged. A crash leaves a record that is longer in some repositories. A server that follows another one
//! acknowledges nothing that recovery of that one waits for, and is not asked.

use std::sync::atomic::Ordering;

use futures_util::future::join_all;
use walpoint_base::WalFileName;
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::Acknowledging;
use walpoint_repo::lineage::AckMember;
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;
use walpoint_storage::object::RepositoryId;

use super::{TIME_LIMIT, UploadError, Uploader, upload_error};
use crate::wal::control::recovers;
use crate::wal::disk;
use crate::wal::target::WalTarget;

impl Uploader {
    /// Makes sure that a file was stored in the lineage that its data directory is bound to now. One that was begun meanwhile does not
    /// have it, and PostgreSQL hands it over only once.
    pub(super) async fn is_bound_as_before(
        &self,
        cluster: &WalIdentity,
        name: WalFileName,
        required: &[&WalTarget],
        epoch: u64,
    ) -> Result<(), UploadError> {
        self.is_recorded(cluster, required).await?;
        self.look_at_lineages(cluster, name, required).await?;
        if self.epoch() == epoch {
            return Ok(());
        }
        let text = "another lineage began, or another repository took the place of one, during the upload"
            .to_owned();
        Err(UploadError { text, permanent: false })
    }

    /// Makes sure that those which acknowledge are on record, once for each lineage. Where the lineage was begun with all of them, that
    /// takes no request.
    pub(super) async fn is_recorded(
        &self,
        cluster: &WalIdentity,
        required: &[&WalTarget],
    ) -> Result<(), UploadError> {
        let epoch = self.epoch();
        if self.recorded.load(Ordering::Acquire) == epoch {
            return Ok(());
        }
        let mut own = Vec::new();
        for target in required {
            own.push(target.archive(cluster).await.map_err(|error| upload_error(target, &error))?);
        }
        let now: Vec<AckMember> = own.iter().map(member).collect();
        if !own.iter().all(|archive| names_all(&archive.lineage().ack, &now)) {
            if self.follows_another().await? {
                return Ok(());
            }
            self.record(cluster, &own, &now).await?;
        }
        self.recorded.store(epoch, Ordering::Release);
        Ok(())
    }

    async fn follows_another(&self) -> Result<bool, UploadError> {
        let (control, pgdata) = (self.control().await?, self.pgdata.clone());
        Ok(disk::run(&self.pgdata, move || recovers(&pgdata, &control)).await?)
    }

    /// Lets those that acknowledge `now` join the records, unless they did.
    async fn record(
        &self,
        cluster: &WalIdentity,
        own: &[WalArchive],
        now: &[AckMember],
    ) -> Result<(), UploadError> {
        let mut known = Vec::new();
        for archive in own {
            known.extend(on_record(archive).await?);
        }
        if known.iter().all(|known| names_all(&known.members, now)) {
            return Ok(());
        }
        let alone = !known.iter().all(|known| names_any(&known.members, now));
        let open = self.outside(cluster).await;
        let before = known.iter().flat_map(|known| &known.members);
        let mut before: Vec<&AckMember> = before.filter(|one| !is_among(now, one.repository)).collect();
        before.dedup_by_key(|one| one.repository);
        let is_open = |id: RepositoryId| open.iter().any(|archive| archive.repository().id() == id);
        if let Some(away) = before.iter().find(|one| !is_open(one.repository)) {
            return if alone { Err(refused(own, away, now)) } else { Ok(()) };
        }
        let there: Vec<RepositoryId> = before.iter().map(|one| one.repository).collect();
        let of_before = open.iter().filter(|archive| there.contains(&archive.repository().id()));
        for archive in of_before.chain(own) {
            let Some(known) = on_record(archive).await? else { continue };
            let members = joined(archive, known, now, &there).await?;
            if alone && !names_any(&members, now) {
                let (repository, lineage) = (archive.repository().name(), archive.lineage().id);
                return Err(UploadError::permanent(format!(
                    "repository {repository} does not count {} among those that acknowledge WAL of lineage {lineage}: another one \
                     took the place of that repository\nHINT: Set ack as it was.",
                    names(now)
                )));
            }
        }
        Ok(())
    }

    /// The open repositories that do not have to acknowledge, with the same lineages.
    async fn outside(&self, cluster: &WalIdentity) -> Vec<WalArchive> {
        let others = self.targets.iter().filter(|target| !target.acknowledges);
        let opening = others.map(|target| tokio::time::timeout(TIME_LIMIT, target.archive(cluster)));
        join_all(opening).await.into_iter().filter_map(|opened| opened.ok()?.ok()).collect()
    }

    /// Lets those that acknowledge join the record of a repository that does not have to.
    pub(in crate::wal) async fn record_in(
        &self,
        cluster: &WalIdentity,
        to: &WalArchive,
    ) -> Result<(), UploadError> {
        let mut now = Vec::new();
        for target in self.targets.iter().filter(|target| target.acknowledges) {
            let archive = target.archive(cluster).await.map_err(|error| upload_error(target, &error))?;
            if archive.lineage().is_same_life(to.lineage()) {
                now.push(member(&archive));
            }
        }
        if names_all(&to.lineage().ack, &now) || self.follows_another().await? {
            return Ok(());
        }
        let Some(known) = on_record(to).await? else { return Ok(()) };
        let there: Vec<RepositoryId> = known.members.iter().map(|member| member.repository).collect();
        joined(to, known, &now, &there).await?;
        Ok(())
    }
}

/// Those that a repository has on record; `None` if that is damaged: then readers wait.
async fn on_record(archive: &WalArchive) -> Result<Option<Acknowledging>, RepoError> {
    match archive.repository().acknowledging(archive.lineage()).await {
        Ok(known) => Ok(Some(known)),
        Err(RepoError::Corrupt { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes the record of a repository with those that acknowledge `now`, if it lacks one; who is on it then.
async fn joined(
    archive: &WalArchive,
    known: Acknowledging,
    now: &[AckMember],
    there: &[RepositoryId],
) -> Result<Vec<AckMember>, RepoError> {
    let Some(next) = known.extended_by(now, there) else { return Ok(known.members) };
    match archive.repository().supersede_acknowledging(archive.lineage(), &next).await {
        Ok(()) => {
            tracing::warn!(
                repository = archive.repository().name(),
                lineage = %archive.lineage().id,
                "from now on, this repository records that WAL must be acknowledged by {}, too\nDETAIL: At the end of the archive, \
                 recovery waits for its answer.",
                names(now)
            );
            Ok(next.members)
        }
        // Another process does the same.
        Err(RepoError::Conflict { .. }) => {
            Ok(on_record(archive).await?.map_or(known.members, |known| known.members))
        }
        Err(error) => Err(error),
    }
}

/// Why nothing is acknowledged while a repository on record is away.
fn refused(own: &[WalArchive], away: &AckMember, now: &[AckMember]) -> UploadError {
    let lineage = own.first().map_or_else(String::new, |archive| archive.lineage().id.to_string());
    UploadError::permanent(format!(
        "ack names {}, but repository {} ({}), which has to acknowledge WAL of lineage {lineage}, does not record that and cannot be \
         reached\nDETAIL: A recovery from that repository would end before what is acknowledged without it. Nothing is acknowledged \
         until it records that.\nHINT: Make it reachable, and keep it among the repositories of the cluster: the daemon and \
         \"archive-agent init\" then record the change. Or set ack as it was. If it is lost for good, run \"archive-agent init \
         --lost-repo {}\".",
        names(now),
        away.name,
        away.repository,
        away.repository
    ))
}

fn member(archive: &WalArchive) -> AckMember {
    let repository = archive.repository();
    AckMember { name: repository.name().to_owned(), repository: repository.id() }
}

fn names(members: &[AckMember]) -> String {
    members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn is_among(members: &[AckMember], id: RepositoryId) -> bool {
    members.iter().any(|member| member.repository == id)
}

fn names_all(members: &[AckMember], now: &[AckMember]) -> bool {
    now.iter().all(|one| is_among(members, one.repository))
}

fn names_any(members: &[AckMember], now: &[AckMember]) -> bool {
    now.iter().any(|one| is_among(members, one.repository))
}

#[cfg(test)]
mod tests {
    use super::super::super::fixtures::{Bed, two, uploader};
    use super::*;

    async fn recorded(bed: &Bed) -> Vec<RepositoryId> {
        let known = on_record(&bed.archive).await.unwrap().unwrap();
        known.members.iter().map(|member| member.repository).collect()
    }

    #[tokio::test]
    async fn a_repository_acknowledges_alone_only_when_those_before_it_have_it_on_record() {
        let (main, far, before, cluster) = two().await;
        let id = |bed: &Bed| bed.archive.repository().id();
        let now = |bed: &Bed| vec![member(&bed.archive)];
        // As it was so far.
        before.record(&cluster, std::slice::from_ref(&main.archive), &now(&main)).await.unwrap();
        for bed in [&main, &far] {
            let known = on_record(&bed.archive).await.unwrap().unwrap();
            joined(&bed.archive, known, &now(&main), &[]).await.unwrap();
            assert_eq!(recorded(bed).await, [id(&main)]);
        }

        let own = std::slice::from_ref(&far.archive);
        let without = uploader(&[&far], &["far"]);
        let refused = without.record(&cluster, own, &now(&far)).await.unwrap_err();
        assert!(refused.text.contains("--lost-repo") && refused.text.contains("main"), "{}", refused.text);
        assert_eq!([recorded(&main).await, recorded(&far).await], [[id(&main)], [id(&main)]]);

        uploader(&[&main, &far], &["far"]).record(&cluster, own, &now(&far)).await.unwrap();
        let both = [id(&main), id(&far)];
        assert_eq!([recorded(&main).await, recorded(&far).await], [both, both]);
        without.record(&cluster, own, &now(&far)).await.unwrap();
        assert_eq!(recorded(&far).await, both, "once is enough");
    }

    #[tokio::test]
    async fn a_repository_that_joins_others_is_not_recorded_where_one_of_them_is_away() {
        let (main, far, _, cluster) = two().await;
        let members = [member(&main.archive), member(&far.archive)];
        let known = on_record(&far.archive).await.unwrap().unwrap();
        joined(&far.archive, known, &members, &[]).await.unwrap();
        let third = Bed::named("third").await;
        let own = [far.archive.clone(), third.archive.clone()];
        let known = on_record(&third.archive).await.unwrap().unwrap();
        joined(&third.archive, known, &members, &[]).await.unwrap();
        let now = [member(&far.archive), member(&third.archive)];
        let without = uploader(&[&far, &third], &["far", "third"]);
        without.record(&cluster, &own, &now).await.unwrap();
        assert_eq!(recorded(&far).await.len(), 2, "recovery asks one that has everything");
    }
}
