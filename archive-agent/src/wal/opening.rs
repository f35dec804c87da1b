//! The place of a cluster's WAL in a repository: the repository is opened when it is needed first, and the lineage is looked
//! up whenever what it was chosen by may have changed.
//!
//! One opening at a time. A lineage is answered only while what it was chosen by still holds: the data directory's binding,
//! or, of a directory that is bound nowhere here, the WAL that lies in it. What was known of a repository or a lineage that was
//! made anew is forgotten before anything is stored there.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Instant;

use futures_util::FutureExt;
use walpoint_base::{LineageId, TimelineId};
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::lineage::{BINDING, bound_elsewhere};
use walpoint_repo::wal::WalArchive;
use walpoint_repo::{Lineage, Repository};
use walpoint_storage::RepoError;

use super::control::ServerMoment;
use super::lineage::Choice;
use super::presence::LineageChange;
use super::target::{TargetError, WalTarget};
use super::{disk, lineage};
use crate::binding;

#[derive(Debug, Clone)]
pub(super) struct OpenedTarget {
    pub(super) repository: Repository,
    pub(super) archive: Option<(WalIdentity, By, WalArchive)>,
}

/// What a lineage was chosen by.
#[derive(Debug, Clone, Copy)]
pub(super) enum By {
    /// The data directory is bound to it.
    Binding(LineageId),
    /// The directory is not bound here: what lay in it at that moment, and the lineage that it is bound to in another repository.
    Wal(ServerMoment, Option<LineageId>),
}

impl By {
    /// Whether what was chosen by `before` would be chosen again.
    fn is_as(&self, before: &Self) -> bool {
        match (self, before) {
            (Self::Binding(now), Self::Binding(before)) => now == before,
            (Self::Wal(now, elsewhere), Self::Wal(before, was)) => now.is_as(before) && elsewhere == was,
            _ => false,
        }
    }
}

impl WalTarget {
    /// The place of this cluster's WAL; opens the repository if it is not open.
    pub(crate) async fn archive(&self, cluster: &WalIdentity) -> Result<WalArchive, TargetError> {
        self.archive_at(cluster, TimelineId::FIRST).await
    }

    /// [`Self::archive`] for a file of a timeline, which the server has therefore reached.
    pub(crate) async fn archive_at(
        &self,
        cluster: &WalIdentity,
        timeline: TimelineId,
    ) -> Result<WalArchive, TargetError> {
        // Opening a repository takes a large future, and almost everything asks for the archive.
        self.or_start_over(self.find_archive(cluster, timeline).boxed()).await
    }

    /// The lineage of an unbound data directory. A server that writes is bound to it where others could be meant.
    async fn chosen(
        &self,
        repository: &Repository,
        cluster: &WalIdentity,
        moment: &ServerMoment,
        elsewhere: Option<LineageId>,
    ) -> Result<Option<Lineage>, TargetError> {
        let directory = (self.pgdata.as_path(), elsewhere);
        let before = self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let chosen =
            lineage::choose(repository, &self.cluster, cluster, directory, (moment, true), before.as_ref())
                .await?;
        let Some(Choice { lineage, found }) = chosen else { return Ok(None) };
        let found_out = found.is_some();
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = found;
        if found_out && moment.written.is_some() {
            let (pgdata, cluster) = (self.pgdata.clone(), self.cluster.clone());
            let (id, own) = (repository.id(), lineage.id);
            let added = disk::look(&self.pgdata, move || binding::add(&pgdata, &cluster, id, own)).await;
            match added.map_err(std::io::Error::other).and_then(|added| added) {
                Ok(()) => tracing::warn!(
                    repository = self.name,
                    lineage = %lineage.id,
                    "the WAL of {} is in this lineage and in no other: the data directory is bound to it from now on",
                    self.pgdata.display()
                ),
                // It is found out again when it has to be.
                Err(error) => tracing::warn!(
                    repository = self.name,
                    lineage = %lineage.id,
                    "the WAL of {} is in this lineage and in no other, and {BINDING} cannot be written there: {error}",
                    self.pgdata.display()
                ),
            }
        }
        Ok(Some(lineage))
    }

    /// Looks which lineage the WAL of an unbound standby shows, where there are several, and remembers it: after its promotion a
    /// checkpoint may have removed that WAL before anything is archived.
    pub(crate) async fn look_while_it_follows(&self, cluster: &WalIdentity) -> Result<(), TargetError> {
        let Some(repository) = self.opened.lock().await.as_ref().map(|open| open.repository.clone()) else {
            return Ok(());
        };
        let all = binding::read_all(&self.pgdata, &self.cluster).await;
        let all = all.map_err(|source| TargetError::Local { path: self.pgdata.join(BINDING), source })?;
        if all.contains_key(&repository.id()) {
            return Ok(());
        }
        let pgdata = self.pgdata.clone();
        let moment = disk::run(&self.pgdata, move || ServerMoment::of(&pgdata, TimelineId::FIRST)).await;
        let moment = moment.map_err(RepoError::from)?.map_err(|error| TargetError::Server(error.text))?;
        if moment.written.is_some() {
            return Ok(());
        }
        let elsewhere = bound_elsewhere(&all, cluster.system_id).map(|(_, id)| id);
        match self.chosen(&repository, cluster, &moment, elsewhere).await {
            Ok(Some(lineage)) => {
                self.leave_for(&repository, &lineage).await;
                Ok(())
            }
            // It is said when something is to be archived.
            Ok(None)
            | Err(
                TargetError::UnknownLineage { .. }
                | TargetError::OthersLineage { .. }
                | TargetError::DamagedLineage(_)
                | TargetError::SplitBrain(_),
            ) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Forgets the lineage of an unbound directory if its WAL shows another one by now: its primary continues in that one, and nothing
    /// else of the standby changes.
    async fn leave_for(&self, repository: &Repository, lineage: &Lineage) {
        let mut opened = self.opened.lock().await;
        let Some(open) = opened.as_mut().filter(|open| open.repository.id() == repository.id()) else {
            return;
        };
        let left = matches!(&open.archive, Some((_, By::Wal(..), archive)) if !archive.lineage().is_same_life(lineage));
        if left {
            open.archive = None;
        }
    }

    /// Opens the repository with what the configuration's files hold now.
    pub(super) async fn open_now(&self) -> Result<Repository, RepoError> {
        let begun = Instant::now();
        let repository = Repository::open(&self.name, &self.settings).await?;
        // An upload is tried again by its caller, which can then say what went wrong so far.
        let limits = repository.store().limits().once();
        let repository = repository.with_limits(limits).compressing_at(self.level);
        tracing::info!(repository = self.name, url = repository.store().name(), "opened");
        if self.presence.opened(&repository, begun) {
            tracing::error!(repository = self.name, "it is another repository than before");
            self.forget_stored();
        }
        Ok(repository)
    }

    async fn find_archive(
        &self,
        cluster: &WalIdentity,
        at_least: TimelineId,
    ) -> Result<WalArchive, TargetError> {
        // Held while opening: one opening at a time is enough.
        let mut opened = self.opened.lock().await;
        let open = match &mut *opened {
            Some(open) => open,
            closed => closed.insert(OpenedTarget { repository: self.open_now().await?, archive: None }),
        };
        let all = binding::read_all(&self.pgdata, &self.cluster).await;
        let all = all.map_err(|source| TargetError::Local { path: self.pgdata.join(BINDING), source })?;
        let bound = all.get(&open.repository.id()).filter(|bound| bound.system_id == cluster.system_id);
        let elsewhere = bound_elsewhere(&all, cluster.system_id).map(|(_, id)| id);
        let by = match bound {
            Some(bound) => By::Binding(*bound),
            None => {
                let pgdata = self.pgdata.clone();
                let moment = disk::run(&self.pgdata, move || ServerMoment::of(&pgdata, at_least))
                    .await
                    .map_err(RepoError::from)?;
                By::Wal(moment.map_err(|error| TargetError::Server(error.text))?, elsewhere)
            }
        };
        if let Some((identity, before, archive)) = &open.archive
            && identity == cluster
            && by.is_as(before)
        {
            return Ok(archive.clone());
        }
        let lineage = match &by {
            By::Binding(bound) => open.repository.read_lineage(&self.cluster, *bound).await?,
            By::Wal(moment, elsewhere) => self.chosen(&open.repository, cluster, moment, *elsewhere).await?,
        };
        let lineage = lineage.ok_or_else(|| TargetError::Unregistered {
            repository: self.name.clone(),
            cluster: self.cluster.clone(),
            identity: *cluster,
        })?;
        let differs = |what: &str, theirs: String, ours: String| TargetError::Different {
            repository: self.name.clone(),
            what: format!("cluster {} was registered with {what} {theirs} and has {ours}", self.cluster),
        };
        if lineage.major != cluster.major {
            return Err(differs("major version", lineage.major.to_string(), cluster.major.to_string()));
        }
        if lineage.segment_size != cluster.segment_size {
            let (theirs, ours) =
                (format!("{:?}", lineage.segment_size), format!("{:?}", cluster.segment_size));
            return Err(differs("segments of", theirs, ours));
        }
        match self.presence.archives_into(&lineage) {
            LineageChange::None => {}
            LineageChange::Other => {
                tracing::info!(repository = self.name, lineage = %lineage.id, "archiving into another lineage from now on");
                self.lineages_left.fetch_add(1, Ordering::AcqRel);
                // What it has of that one is compared first, from the beginning on.
                self.beside.forget();
                self.unfinished.forget();
                self.blocked.forget();
            }
            LineageChange::Anew => {
                tracing::error!(repository = self.name, lineage = %lineage.id, "the lineage was deleted, and registered again");
                self.forget_stored();
            }
        }
        let archive = open.repository.wal(&lineage);
        open.archive = Some((*cluster, by, archive.clone()));
        Ok(archive)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::two;
    use super::super::unfinished::Tried;
    use super::*;

    #[tokio::test]
    async fn what_could_not_be_copied_into_a_lineage_is_forgotten_with_it() {
        let (main, far, uploader, cluster) = two().await;
        let target = &uploader.targets()[1];
        target.archive(&cluster).await.unwrap();
        let (timeline, problem) = (TimelineId::FIRST, "it is damaged".to_owned());
        let file = "000000010000000000000005".to_owned();
        target.unfinished.set_tried("main", Some(Tried { timeline, file, failures: 16, problem }));
        target.archive(&cluster).await.unwrap();
        assert!(target.unfinished.tried("main").is_some(), "it is the same lineage");
        let next = far.next_lineage().await;
        binding::add(&main.pgdata(), &next.cluster, far.archive.repository().id(), next.id).unwrap();
        assert_eq!(target.archive(&cluster).await.unwrap().lineage().id, next.id);
        assert!(target.unfinished.tried("main").is_none());
    }
}
