//! That those which acknowledge are on record before they acknowledge alone: a reader of any repository goes by what that has on record,
//! and recovery ends where all of those say that there is no more.
//!
//! What always holds: of the repositories that one of them has on record, at least one holds everything that was acknowledged. So where
//! `ack` names others than before, these join the record, first in the repositories that have acknowledged so far and then in their own:
//! where one names a repository, that one's record names it, too. Where they would acknowledge alone, nothing is acknowledged while a
//! repository on record cannot be reached, or while all records of those are damaged: the damaged documents may name more. Otherwise what
//! a record named before its damage counts. Repositories that were registered apart, so that each names itself only, join each other's records
//! before that is judged. A crash leaves a record that is longer in some repositories. A server that follows another one
//! acknowledges nothing that recovery of that one waits for, and is not asked.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use futures_util::future::join_all;
use tokio::time::Instant;
use walpoint_base::WalFileName;
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::lineage::AckMember;
use walpoint_repo::wal::WalArchive;
use walpoint_repo::{Acknowledging, is_among, names_all, oldest_first};
use walpoint_storage::RepoError;
use walpoint_storage::object::RepositoryId;

use super::{REST, TIME_LIMIT, UploadError, Uploader, upload_error};
use crate::wal::control::recovers;
use crate::wal::disk;
use crate::wal::target::WalTarget;

/// Whether those that acknowledge are on record.
#[derive(Debug)]
pub(super) struct Recorded {
    /// At which epoch they were.
    epoch: AtomicU64,
    /// At which epoch a repository was away that need not record them at once, and when to try again.
    left: Mutex<Option<(u64, Instant)>>,
}

impl Default for Recorded {
    fn default() -> Self {
        Self { epoch: AtomicU64::new(u64::MAX), left: Mutex::default() }
    }
}

impl Recorded {
    /// Whether there is nothing to do now.
    fn is_enough(&self, epoch: u64) -> bool {
        let left = *self.left.lock().unwrap_or_else(PoisonError::into_inner);
        self.epoch.load(Ordering::Acquire) == epoch
            || left.is_some_and(|(left, again)| left == epoch && Instant::now() < again)
    }

    /// Notes whether all of them record it by now.
    fn note(&self, epoch: u64, all: bool) {
        if all {
            self.epoch.store(epoch, Ordering::Release);
        } else {
            *self.left.lock().unwrap_or_else(PoisonError::into_inner) = Some((epoch, Instant::now() + REST));
        }
    }
}

/// What a repository has on record, before any damage.
struct Record<'a> {
    archive: &'a WalArchive,
    known: Acknowledging,
    damage: Option<RepoError>,
}

impl<'a> Record<'a> {
    async fn of(archive: &'a WalArchive) -> Result<Self, RepoError> {
        let (known, damage) = archive.repository().acknowledging_before_damage(archive.lineage()).await?;
        Ok(Self { archive, known, damage })
    }

    fn id(&self) -> RepositoryId {
        self.archive.repository().id()
    }

    /// Whether its repository may acknowledge without being recorded by another one.
    fn names_itself(&self) -> bool {
        is_among(&self.known.members, self.id())
    }
}

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
        if self.recorded.is_enough(epoch) {
            return Ok(());
        }
        let mut own = Vec::new();
        for target in required {
            own.push(target.archive(cluster).await.map_err(|error| upload_error(target, &error))?);
        }
        let now: Vec<AckMember> = own.iter().map(member).collect();
        let mut all = own.iter().all(|archive| names_all(&archive.lineage().ack, &now));
        if !all {
            if self.follows_another().await? {
                return Ok(());
            }
            all = self.record(cluster, &own, &now).await?;
        }
        self.recorded.note(epoch, all);
        Ok(())
    }

    async fn follows_another(&self) -> Result<bool, UploadError> {
        let (control, pgdata) = (self.control().await?, self.pgdata.clone());
        Ok(disk::run(&self.pgdata, move || recovers(&pgdata, &control)).await?)
    }

    /// Lets those that acknowledge `now` join the records, unless they did. Whether all of these name them then: one that is away records
    /// it later if they do not acknowledge alone.
    async fn record(
        &self,
        cluster: &WalIdentity,
        own: &[WalArchive],
        now: &[AckMember],
    ) -> Result<bool, UploadError> {
        if all_name(&records_of(own).await?, now) {
            return Ok(true);
        }
        let open = self.outside(cluster).await;
        record_each_other(&own.iter().chain(&open).collect::<Vec<_>>()).await;
        let mut records = records_of(own).await?;
        if all_name(&records, now) {
            return Ok(true);
        }
        let away = add_named(&mut records, &open).await;
        let alone = !records.iter().all(|record| names_any(&record.known.members, now));
        if let Some(away) = away {
            return if alone { Err(refused(own, &away, now)) } else { Ok(false) };
        }
        let named: Vec<AckMember> = records.iter().flat_map(|record| record.known.members.clone()).collect();
        if let Some(damage) = unknown(&records, &named).filter(|_| alone) {
            return Err(refused_as_unknown(damage, now));
        }
        oldest_first(&mut records, &named, Record::id);
        let there: Vec<RepositoryId> =
            own.iter().chain(&open).map(|archive| archive.repository().id()).collect();
        // What is damaged names nothing until a person lets it be written again: while all are, nothing is recorded.
        let mut all = records.iter().any(|record| record.damage.is_none());
        for record in records.into_iter().filter(|record| record.damage.is_none()) {
            let archive = record.archive;
            let is_own = own.iter().any(|one| one.repository().id() == record.id());
            let Some(members) = joined_in_time(record, now, &there, is_own).await? else {
                let away = member(archive);
                return if alone { Err(refused(own, &away, now)) } else { Ok(false) };
            };
            all &= names_all(&members, now);
            if alone && !names_any(&members, now) {
                return Err(not_counted(archive, now));
            }
        }
        Ok(all)
    }

    /// The open repositories that do not have to acknowledge, with the same lineages.
    async fn outside(&self, cluster: &WalIdentity) -> Vec<WalArchive> {
        let others = self.targets.iter().filter(|target| !target.acknowledges);
        let opening = others.map(|target| tokio::time::timeout(TIME_LIMIT, target.archive(cluster)));
        join_all(opening).await.into_iter().filter_map(|opened| opened.ok()?.ok()).collect()
    }

    /// Lets those that acknowledge join the record of a repository that does not have to. Where they do not, that is reported once.
    pub(in crate::wal) async fn record_in(
        &self,
        cluster: &WalIdentity,
        (target, to): (&WalTarget, &WalArchive),
    ) {
        let recorded = self.recorded_in(cluster, to).await;
        let reported = target.unrecorded.swap(recorded.is_err(), Ordering::Relaxed);
        if let Err(error) = recorded
            && !reported
        {
            tracing::warn!(
                repository = target.name(),
                "this repository may not record all of those that acknowledge, and a recovery from it alone waits only for those that it \
                 records: {error}"
            );
        }
    }

    async fn recorded_in(&self, cluster: &WalIdentity, to: &WalArchive) -> Result<(), UploadError> {
        let mut own = Vec::new();
        for target in self.targets.iter().filter(|target| target.acknowledges) {
            let archive = target.archive(cluster).await.map_err(|error| upload_error(target, &error))?;
            if archive.lineage().is_same_life(to.lineage()) {
                own.push(archive);
            }
        }
        let now: Vec<AckMember> = own.iter().map(member).collect();
        let Some(mut known) = on_record(to).await? else { return Ok(()) };
        let may_alone = is_among(&known.members, to.repository().id());
        if names_all(&known.members, &now) && !may_alone || self.follows_another().await? {
            return Ok(());
        }
        if may_alone {
            record_each_other(&own.iter().chain([to]).collect::<Vec<_>>()).await;
            let Some(again) = on_record(to).await? else { return Ok(()) };
            known = again;
        }
        if names_all(&known.members, &now) {
            return Ok(());
        }
        joined_or_reported(to, known, &now).await
    }
}

async fn records_of(archives: &[WalArchive]) -> Result<Vec<Record<'_>>, RepoError> {
    let mut records = Vec::new();
    for archive in archives {
        records.push(Record::of(archive).await?);
    }
    Ok(records)
}

fn all_name(records: &[Record<'_>], now: &[AckMember]) -> bool {
    records.iter().all(|record| names_all(&record.known.members, now))
}

/// Lets each of these repositories that may acknowledge without the others, because its own record names it, join the records of the
/// others. They were registered apart: each may hold what the others lack, so the readers of either wait for both. A record that names one
/// which is not there stays as it is: that one would have to record them, too. So does what cannot be read or written now.
async fn record_each_other(archives: &[&WalArchive]) {
    let mut records = Vec::new();
    for archive in archives {
        if let Ok(Ok(record)) = tokio::time::timeout(TIME_LIMIT, Record::of(archive)).await {
            records.push(record);
        }
    }
    let alone = records.iter().filter(|record| record.names_itself());
    let alone: Vec<&WalArchive> = alone.map(|record| record.archive).collect();
    let there: Vec<RepositoryId> =
        records.iter().filter(|record| record.damage.is_none()).map(Record::id).collect();
    let named: Vec<AckMember> = records.iter().flat_map(|record| record.known.members.clone()).collect();
    oldest_first(&mut records, &named, Record::id);
    for Record { archive, known, damage } in records {
        let others = alone.iter().filter(|one| {
            one.repository().id() != archive.repository().id()
                && one.lineage().is_same_life(archive.lineage())
        });
        let others: Vec<AckMember> = others.map(|one| member(one)).collect();
        if damage.is_some() || names_all(&known.members, &others) {
            continue;
        }
        let joining = tokio::time::timeout(TIME_LIMIT, joined(archive, known, &others, &there)).await;
        if !matches!(joining, Ok(Ok(_))) {
            let repository = archive.repository().name();
            tracing::debug!(repository, "it does not record those that acknowledge: {joining:?}");
            return;
        }
    }
}

/// Lets those that acknowledge `now` join the record of a repository that need not acknowledge. An error if it does not count one of them.
async fn joined_or_reported(
    to: &WalArchive,
    known: Acknowledging,
    now: &[AckMember],
) -> Result<(), UploadError> {
    let there: Vec<RepositoryId> = known.members.iter().map(|member| member.repository).collect();
    let members = joined(to, known, now, &there).await?;
    match names_all(&members, now) {
        true => Ok(()),
        false => Err(not_counted(to, now)),
    }
}

/// Adds the records of all repositories that these name, and of those that they name in turn. The first one that is away.
async fn add_named<'a>(records: &mut Vec<Record<'a>>, open: &'a [WalArchive]) -> Option<AckMember> {
    loop {
        let is_read = |one: &AckMember| records.iter().any(|record| record.id() == one.repository);
        let mut named = records.iter().flat_map(|record| &record.known.members);
        let next = named.find(|one| !is_read(one))?.clone();
        let archive = open.iter().find(|archive| archive.repository().id() == next.repository);
        let record = match archive {
            Some(archive) => {
                tokio::time::timeout(TIME_LIMIT, Record::of(archive)).await.ok().and_then(Result::ok)
            }
            None => None,
        };
        match record {
            Some(record) => records.push(record),
            None => return Some(next),
        }
    }
}

/// What keeps it from being known who is on record (`named`): the records of all of those are damaged, and may have named more.
fn unknown<'a>(records: &'a [Record<'_>], named: &[AckMember]) -> Option<&'a RepoError> {
    let is_sound = |record: &Record<'_>| record.damage.is_none() && is_among(named, record.id());
    if records.iter().any(is_sound) {
        return None;
    }
    records.iter().find_map(|record| record.damage.as_ref())
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
    mut known: Acknowledging,
    now: &[AckMember],
    there: &[RepositoryId],
) -> Result<Vec<AckMember>, RepoError> {
    loop {
        let Some(next) = known.extended_by(now, there) else { return Ok(known.members) };
        match archive.repository().supersede_acknowledging(archive.lineage(), &next).await {
            Ok(()) => {
                tracing::warn!(
                    repository = archive.repository().name(),
                    lineage = %archive.lineage().id,
                    "from now on, this repository records that WAL must be acknowledged by {}, too\nDETAIL: At the end of the \
                     archive, recovery waits for its answer.",
                    names(now)
                );
                return Ok(next.members);
            }
            // Another process wrote it meanwhile, maybe with others.
            Err(RepoError::Conflict { .. }) => match on_record(archive).await? {
                Some(again) if again != known => known = again,
                _ => return Ok(known.members),
            },
            Err(error) => return Err(error),
        }
    }
}

/// The same; `None` if a repository that need not acknowledge does not answer in time, or cannot write it.
async fn joined_in_time(
    record: Record<'_>,
    now: &[AckMember],
    there: &[RepositoryId],
    is_own: bool,
) -> Result<Option<Vec<AckMember>>, RepoError> {
    let joining = joined(record.archive, record.known, now, there);
    if is_own {
        return joining.await.map(Some);
    }
    match tokio::time::timeout(TIME_LIMIT, joining).await {
        Ok(Ok(members)) => Ok(Some(members)),
        failed => {
            tracing::debug!("a repository outside ack does not record those that acknowledge: {failed:?}");
            Ok(None)
        }
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

/// What it means that a repository does not let those join that acknowledge now.
fn not_counted(archive: &WalArchive, now: &[AckMember]) -> UploadError {
    let (repository, lineage) = (archive.repository().name(), archive.lineage().id);
    UploadError::permanent(format!(
        "repository {repository} does not count {} among those that acknowledge WAL of lineage {lineage}: another one took the place of \
         that repository\nHINT: Set ack as it was.",
        names(now)
    ))
}

/// Why nothing is acknowledged while no record can be read.
fn refused_as_unknown(damage: &RepoError, now: &[AckMember]) -> UploadError {
    UploadError::permanent(format!(
        "ack names {}, and it is not known which repositories have to acknowledge besides: {}\nHINT: Or set ack as it was.",
        names(now),
        walpoint_words::error(damage)
    ))
}

fn member(archive: &WalArchive) -> AckMember {
    let repository = archive.repository();
    AckMember { name: repository.name().to_owned(), repository: repository.id() }
}

fn names(members: &[AckMember]) -> String {
    members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn names_any(members: &[AckMember], now: &[AckMember]) -> bool {
    now.iter().any(|one| is_among(members, one.repository))
}

#[cfg(test)]
mod tests;
