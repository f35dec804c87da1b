//! Asking every repository for a plan, all at the same time.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use walpoint_base::{BackupId, ClusterName, RecoveryTarget};
use walpoint_plan::restore::{RestorePlan, RestoreRequest, SegmentDecoder};
use walpoint_repo::Repository;
use walpoint_repo::backup::{AnnouncedPacks, AnnouncementReason, Backups, NumberedAnnouncement};
use walpoint_repo::catalog::Catalog;
use walpoint_repo::planning::{self, creating_segments};
use walpoint_repo::wal::slices::Superseded;
use walpoint_runtime::args::Selection;
use walpoint_storage::RepoError;
use walpoint_storage::store::StoreSettings;

use super::{Planned, remarks};
use crate::choice::Refused;
use crate::decoder::WalDecoder;

/// How long a plan that one repository gave waits for the answers of the others. A store that hangs answers after minutes.
pub(super) const TIME_LIMIT: Duration = Duration::from_secs(20);

/// Plans that are made at most while what they count on is replaced.
pub(crate) const ATTEMPTS: u32 = 5;

/// What one repository says.
pub(super) type RepositoryAnswer = Result<(Catalog, Result<Planned, Box<Refused>>), RepoError>;

/// The repositories' answers, in the order of the configuration; nothing from those that hang while another one has a plan.
pub(super) async fn ask_all(
    selection: &Selection<StoreSettings>,
    request: &RestoreRequest,
    decoder: &Arc<dyn SegmentDecoder>,
) -> Vec<Option<RepositoryAnswer>> {
    let asked = selection.repositories.iter().enumerate().map(|(at, (name, settings))| async move {
        (at, make_from(name, settings, &selection.cluster, request, decoder).await)
    });
    let mut asked: FuturesUnordered<_> = asked.collect();
    let mut answers: Vec<Option<RepositoryAnswer>> = selection.repositories.iter().map(|_| None).collect();
    let mut deadline: Option<tokio::time::Instant> = None;
    loop {
        let next = match deadline {
            None => asked.next().await,
            Some(deadline) => tokio::time::timeout_at(deadline, asked.next()).await.unwrap_or(None),
        };
        let Some((at, answer)) = next else { return answers };
        if matches!(answer, Ok((_, Ok(_)))) {
            deadline.get_or_insert_with(|| tokio::time::Instant::now() + TIME_LIMIT);
        }
        if let Some(place) = answers.get_mut(at) {
            *place = Some(answer);
        }
    }
}

/// Plans from one repository. While its server streams, what was listed of the newest segment is replaced now and then before it is read:
/// that is planned again.
async fn make_from(
    name: &str,
    settings: &StoreSettings,
    cluster: &ClusterName,
    request: &RestoreRequest,
    decoder: &Arc<dyn SegmentDecoder>,
) -> RepositoryAnswer {
    again_while_superseded(async || make_once(name, settings, cluster, request, decoder).await).await
}

/// The answer to a question about what a repository holds. It is asked again, a few times, while what it reads is replaced.
async fn again_while_superseded<T>(question: impl AsyncFn() -> Result<T, RepoError>) -> Result<T, RepoError> {
    for _ in 1..ATTEMPTS {
        match question().await {
            Err(error) if Superseded::is_why(&error) => tracing::debug!("planning again: {error}"),
            answer => return answer,
        }
    }
    question().await
}

async fn make_once(
    name: &str,
    settings: &StoreSettings,
    cluster: &ClusterName,
    request: &RestoreRequest,
    decoder: &Arc<dyn SegmentDecoder>,
) -> RepositoryAnswer {
    let mut catalog = Catalog::open(name, settings, cluster).await?;
    let repository = catalog.repository().clone();
    let plan = match planning::prove_from(&mut catalog, request, decoder, Timestamp::now()).await? {
        Ok(plan) => plan,
        Err(refusal) => return Ok((catalog, Err(Box::new(Refused { repository, refusal: *refusal })))),
    };
    let mut planned = planned(&mut catalog, plan).await?;
    if request.target == RecoveryTarget::Immediate && request.backup.is_none() {
        planned.remarks.extend(remarks::lost_newer(&planned, request.timeline).await);
    }
    Ok((catalog, Ok(planned)))
}

/// A plan that was made from a catalog, and what is known about it.
pub(crate) async fn planned(catalog: &mut Catalog, plan: RestorePlan) -> Result<Planned, RepoError> {
    let (repository, cluster) = (catalog.repository().clone(), catalog.cluster().clone());
    let known = catalog.lineages_mut().iter_mut().find(|known| known.id() == plan.lineage);
    let known = known.ok_or_else(|| RepoError::Internal(format!("lineage {} is not known", plan.lineage)))?;
    let damage = match known_damage(&repository, &cluster, known.announcements(), plan.backup.id).await {
        Ok(damage) => damage,
        Err(error @ (RepoError::Corrupt { .. } | RepoError::NotFound { .. })) => Some(error.to_string()),
        // What verify found is no condition of a restore.
        Err(error) => {
            tracing::debug!("what verify found cannot be read: {error}");
            None
        }
    };
    // The restore meets what cannot be read, and says so.
    let creating = creating_segments(known, &plan).await.ok();
    let decoder: Arc<dyn SegmentDecoder> = Arc::new(WalDecoder);
    let last_record = planning::last_record(known, &plan, &decoder).await.unwrap_or_else(|error| {
        tracing::debug!("where the last record starts is not known: {error}");
        None
    });
    let lineage = known.lineage().clone();
    let files_from = repository.clone();
    Ok(Planned {
        repository,
        files_from,
        cluster,
        lineage,
        plan,
        remarks: known.unread_announcements().iter().map(|why| remarks::unread_announcement(why)).collect(),
        damage,
        together: false,
        doubtful_end: None,
        creating,
        last_record,
    })
}

/// What `verify` or a backup found damaged of what the backup needs, and what to do. `announced`: what is announced, if that
/// was read for the plan.
async fn known_damage(
    repository: &Repository,
    cluster: &ClusterName,
    announced: Option<&[NumberedAnnouncement]>,
    backup: BackupId,
) -> Result<Option<String>, RepoError> {
    let backups = Backups::of(repository, cluster);
    let mut announced = match announced {
        Some(announced) => announced.to_vec(),
        None => backups.announcements().await?.read,
    };
    announced.retain(|one| one.announcement.reason == AnnouncementReason::Damaged);
    if announced.is_empty() {
        return Ok(None);
    }
    let reader = backups.open(backup).await?;
    let manifest = reader.manifest();
    let needs = |packs: &AnnouncedPacks| {
        manifest.packs.packs().iter().any(|pack| {
            let owner = manifest.backups.get(usize::from(pack.backup.0));
            owner.is_some_and(|owner| packs.names(*owner, pack.pack))
        })
    };
    let found = announced.iter().find(|one| one.announcement.packs.iter().any(needs));
    Ok(found.map(|found| {
        format!(
            "on {:.0} a pack was found damaged that backup {backup} needs, so restoring it may fail\nHINT: \"archive-agent \
             verify\" shows more. --backup takes another one (\"restore-agent list\" shows them).",
            found.announcement.written
        )
    }))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn what_is_replaced_while_it_is_planned_with_is_planned_with_again() {
        let error = |source: walpoint_storage::error::Source| RepoError::Unavailable {
            what: "a slice".to_owned(),
            store: "a store".to_owned(),
            source,
        };
        let asked = Cell::new(0);
        let replaced = async |times: u32| {
            asked.set(0);
            let question = async || {
                asked.set(asked.get() + 1);
                if asked.get() <= times { Err(error(Box::new(Superseded("gone")))) } else { Ok(7) }
            };
            again_while_superseded(question).await
        };
        assert!(matches!(replaced(ATTEMPTS - 1).await, Ok(7)));
        assert_eq!(asked.get(), ATTEMPTS);
        let failure = replaced(ATTEMPTS).await.unwrap_err();
        assert!(Superseded::is_why(&failure) && asked.get() == ATTEMPTS, "{failure}");

        asked.set(0);
        let away = async || {
            asked.set(asked.get() + 1);
            Err::<(), _>(error("no answer".into()))
        };
        assert!(!Superseded::is_why(&again_while_superseded(away).await.unwrap_err()));
        assert_eq!(asked.get(), 1, "an outage has its own time to last");
    }
}
