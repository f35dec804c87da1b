//! One file of `pg_wal` into every repository of its cluster: read, checked, sealed, stored.
//!
//! Bytes in flight are limited ([`memory`]): a segment waits for its share of memory before it is read, in the
//! order in which it was asked for, which is PostgreSQL's. Small files wait for nothing.

mod admission;
mod beside;
mod contract;
mod damaged;
mod error;
mod recorded;
mod remember;
mod share;
mod slices;
mod source;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::sync::{Notify, Semaphore};
use walpoint_base::chain::ChainFacts;
use walpoint_base::socket::FileIdentity;
use walpoint_base::{SegmentName, TimelineId, WalFileName};
use walpoint_pg::control::ControlFile;
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::wal::{SealedSegment, Stored, WalArchive, WalContent};
use walpoint_runtime::args::Selection;
use walpoint_runtime::human;
use walpoint_storage::object::Level;
use walpoint_storage::store::StoreSettings;

pub(super) use self::beside::{REST, TIME_LIMIT};
use super::check::{self, CheckError};
use super::claim::SegmentClaim;
use super::control::{read_control, writes, written};
use super::disk;
use super::memory::{self, Purpose, SizeEstimate, WalMemory};
use super::prepare::{PrepareError, Prepared, Rules};
use super::presence;
use super::read::ReadError;
use super::target::{TargetError, WalTarget};
use admission::{Admitted, CandidateRepository, Neighborhood, newcomer};
pub(crate) use contract::Upload;
use damaged::{Sound, is_readable};
pub(crate) use error::UploadError;
use error::together;
pub(super) use error::upload_error;
use remember::{remember, remember_sound};
use share::Share;
pub(super) use slices::{PutSlice, StoredWhole};
pub(super) use source::UploadSource;

/// A write that takes longer is worth a word.
const SLOW: Duration = Duration::from_secs(5);

/// What became of a file in the repositories that it went to.
struct Kept {
    identity: FileIdentity,
    /// Whether it was stored, or may be stored elsewhere, as it is here. Not if it is damaged here and may be sound anywhere.
    as_it_is: bool,
}

/// Stores the WAL of one cluster.
#[derive(Debug)]
pub(crate) struct Uploader {
    pgdata: PathBuf,
    targets: Vec<WalTarget>,
    /// Segments at the same time.
    transfers: Semaphore,
    /// What they take of the memory.
    habit: SizeEstimate,
    /// Whether what does not have to be acknowledged is left to tasks of their own.
    later: AtomicBool,
    /// Files that are being uploaded.
    under_way: Mutex<Vec<WalFileName>>,
    /// Whether those that acknowledge are on record.
    recorded: recorded::Recorded,
    /// Notified when something is refused as another server's, or stored and not noted.
    pub(crate) refused: Notify,
}

impl Uploader {
    /// For the cluster and the repositories of a selection. Nothing is opened yet.
    pub(crate) fn new(selection: &Selection<StoreSettings>, pgdata: &Path) -> Self {
        let settings = &selection.settings;
        let level = Level::nearest(settings.compression_level);
        let target = |(name, store): &(String, StoreSettings)| {
            WalTarget::new(
                name,
                (&selection.cluster, pgdata),
                store.clone(),
                level,
                settings.ack_set().contains(name),
            )
        };
        Self {
            pgdata: pgdata.to_owned(),
            targets: selection.repositories.iter().map(target).collect(),
            transfers: Semaphore::new(settings.transfers),
            habit: SizeEstimate::default(),
            later: AtomicBool::new(false),
            under_way: Mutex::default(),
            recorded: recorded::Recorded::default(),
            refused: Notify::new(),
        }
    }

    /// Changes whenever what was stored before may not count any more ([`WalTarget::lineages_left`]).
    pub(crate) fn epoch(&self) -> u64 {
        self.targets.iter().map(WalTarget::lineages_left).sum()
    }

    /// Makes sure that the repositories that have to acknowledge are those that were opened, and then looks whether a file of that name
    /// would go into the same lineages as before: if not, the epoch changes. The last step before an acknowledgement from memory.
    pub(crate) async fn are_still_there(&self, name: WalFileName) -> Result<(), UploadError> {
        let required: Vec<&WalTarget> = self.targets.iter().filter(|target| target.acknowledges).collect();
        presence::look(&required).await?;
        self.look_at_lineages(&self.identity().await?, name, &required).await
    }

    /// Looks which lineages the files of a server go into: if they are others than before, the epoch changes.
    async fn look_at_lineages(
        &self,
        cluster: &WalIdentity,
        name: WalFileName,
        targets: &[&WalTarget],
    ) -> Result<(), UploadError> {
        for target in targets {
            let now = target.archive_at(cluster, name.timeline()).await;
            now.map_err(|error| upload_error(target, &error))?;
        }
        Ok(())
    }

    /// What an upload waits for that is not done, as far as it shows: repositories and directories that do not answer, and memory.
    pub(crate) fn waits_for(&self) -> String {
        let slow = self.targets.iter().filter(|target| target.acknowledges).filter_map(|target| {
            let span = target.writes.oldest().filter(|span| *span >= SLOW)?;
            Some(format!("repository {} has not answered a write for {}", target.name(), human::span(span)))
        });
        let pgdata = self.pgdata.display();
        let hangs = disk::oldest(&self.pgdata)
            .filter(|span| *span >= SLOW)
            .map(|span| format!("a call into {pgdata} has not returned for {}", human::span(span)));
        let slow: Vec<String> = slow.chain(hangs).chain(memory::waits_for(&self.pgdata)).collect();
        if slow.is_empty() { "the store is slow".to_owned() } else { slow.join("; ") }
    }

    /// An error if a write to a repository hangs.
    pub(crate) fn answers(&self, target: &WalTarget) -> Result<(), UploadError> {
        target.answers().map_err(|error| upload_error(target, &error))
    }

    /// PostgreSQL's data directory.
    pub(crate) fn pgdata(&self) -> &Path {
        &self.pgdata
    }

    /// Where PostgreSQL keeps its WAL.
    pub(crate) fn wal_directory(&self) -> PathBuf {
        self.pgdata.join("pg_wal")
    }

    /// The repositories.
    pub(crate) fn targets(&self) -> &[WalTarget] {
        &self.targets
    }

    /// Whose WAL it is, as the data directory says.
    pub(crate) async fn identity(&self) -> Result<WalIdentity, UploadError> {
        Ok(check::identity(&self.control().await?))
    }

    /// The timeline of its last checkpoint, as the data directory says.
    pub(crate) async fn timeline(&self) -> Result<Option<TimelineId>, UploadError> {
        Ok(self.control().await?.checkpoint.timeline)
    }

    /// The newest timeline that it is known to have reached, as the data directory says.
    pub(crate) async fn newest_timeline(&self) -> Result<Option<TimelineId>, UploadError> {
        let control = self.control().await?;
        Ok(control.newest_timeline())
    }

    /// The timeline that the server writes on: `None` of a standby, or while it recovers.
    pub(crate) async fn written_timeline(&self) -> Result<Option<TimelineId>, UploadError> {
        Ok(written(&self.control().await?))
    }

    /// What `pg_wal` has to remember of a segment that was stored, and the daemon may not write there.
    pub(super) fn to_remember(&self, name: WalFileName) -> Vec<String> {
        let WalFileName::Segment(name) = name else { return Vec::new() };
        self.targets.iter().filter_map(|target| target.to_remember(name)).collect()
    }

    /// Whether the server writes a timeline, or did last: nothing of it is stored that it has not written.
    pub(crate) async fn writes(&self, timeline: TimelineId) -> Result<bool, UploadError> {
        let (control, pgdata) = (self.control().await?, self.pgdata.clone());
        Ok(disk::run(&self.pgdata, move || writes(&pgdata, &control, timeline)).await?)
    }

    async fn control(&self) -> Result<ControlFile, UploadError> {
        let pgdata = self.pgdata.clone();
        disk::run(&self.pgdata, move || read_control(&pgdata)).await?
    }

    /// The identity of a file in `pg_wal` as it is, whether or not it has the length of such a file.
    pub(crate) async fn look(&self, name: WalFileName) -> Result<FileIdentity, UploadError> {
        let (pgdata, path) = (self.pgdata.clone(), self.wal_directory().join(name.to_string()));
        let looked = disk::run(&self.pgdata, move || {
            read_control(&pgdata)?;
            let file = std::fs::File::open(&path);
            match file.and_then(|file| FileIdentity::of(&file, matches!(name, WalFileName::Segment(_)))) {
                Ok(identity) => Ok(identity),
                Err(source) if source.kind() == ErrorKind::NotFound => Err(UploadError::permanent(format!(
                    "the daemon finds no {}\nHINT: pgdata in its configuration must be this server's data directory. Restart the \
                     daemon when it was changed.",
                    path.display()
                ))),
                Err(source) => Err(CheckError::from(ReadError::Io { path, source }).into()),
            }
        });
        looked.await?
    }

    /// Makes a file of `pg_wal` durable; one attempt.
    pub(crate) async fn upload(&self, name: WalFileName) -> Result<FileIdentity, UploadError> {
        let path = self.wal_directory().join(name.to_string());
        self.upload_from(name, path, false).await
    }

    /// Makes a file that lies anywhere durable; one attempt. `accept_damaged` stores a segment that fails its checks.
    ///
    /// It is stored in the repositories that have to acknowledge, all at once. The others get it then, or later, and their failure
    /// is only logged.
    pub(crate) async fn upload_from(
        &self,
        name: WalFileName,
        path: PathBuf,
        accept_damaged: bool,
    ) -> Result<FileIdentity, UploadError> {
        let _under_way = self.begins(name);
        let epoch = self.epoch();
        let file = UploadSource { by_hand: accept_damaged, ..self.source(name, path, accept_damaged).await? };
        let (required, others): (Vec<&WalTarget>, Vec<&WalTarget>) =
            self.targets.iter().partition(|t| t.acknowledges);
        let stored =
            presence::during(&required, self.store(&file, (&required, &others), None).boxed()).await?;
        let cluster = file.cluster;
        match stored.as_it_is {
            true => self.beside(file, stored.identity, others).await,
            // Nothing damaged goes anywhere else: they get it from those that have it.
            false => self.miss(file, stored.identity, others),
        }
        // Last: a command has waited for the others, and a lineage may have begun meanwhile.
        self.is_bound_as_before(&cluster, name, &required, epoch).await?;
        Ok(stored.identity)
    }

    /// Makes a file that lies anywhere durable in one repository, for which no acknowledgement waits; one attempt.
    pub(crate) async fn upload_to(
        &self,
        target: &WalTarget,
        name: WalFileName,
        path: PathBuf,
        accept_damaged: bool,
    ) -> Result<FileIdentity, UploadError> {
        let file = self.source(name, path, accept_damaged).await?;
        let share = self.share_beside(&file).await;
        let stored =
            presence::during(&[target], self.store(&file, (&[target], &[]), Some(share)).boxed()).await?;
        Ok(stored.identity)
    }

    /// Whether a repository that has to acknowledge holds this segment as one that was accepted although it is damaged.
    pub(crate) async fn holds_damaged(&self, name: WalFileName) -> Result<bool, UploadError> {
        let WalFileName::Segment(segment) = name else { return Ok(false) };
        let cluster = self.identity().await?;
        for target in self.targets.iter().filter(|target| target.acknowledges) {
            let archive = target.archive(&cluster).await.map_err(|error| upload_error(target, &error))?;
            let header =
                archive.header(segment).await.map_err(|error| upload_error(target, &error.into()))?;
            if header.is_some_and(|header| header.damaged) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Stores a file in these repositories, as many at once as memory allows, unless one of them holds another server's WAL where
    /// it would go, or one of the witnesses does. The identity is that of what was read. `share` is that of the first of them, if
    /// there is one already.
    async fn store(
        &self,
        file: &UploadSource,
        (targets, witnesses): (&[&WalTarget], &[&WalTarget]),
        mut share: Option<Share<'_>>,
    ) -> Result<Kept, UploadError> {
        if matches!(file.name, WalFileName::History(_)) {
            self.hear(file, None, witnesses).await?;
        }
        let (unit, at_once) = self.share_of(file, targets.len()).await;
        let purpose = share.as_ref().map_or(Purpose::Acknowledging, |share| share.memory.purpose());
        let (mut stored, mut as_it_is) = (file.expected, true);
        let mut errors: Vec<UploadError> = Vec::new();
        let (mut rest, mut judged) = (self.admit(file, targets).await?, false);
        while !rest.is_empty() {
            let mut group: Vec<CandidateRepository<'_>> = rest.drain(..at_once.min(rest.len())).collect();
            let open: Vec<WalArchive> = group.iter().filter_map(|one| Some(one.archive()?.clone())).collect();
            let (opened, all_open) = (open.len(), open.len() == group.len());
            let share = match share.take() {
                Some(share) => share,
                None => self.share(file, unit, opened.max(1)).await?,
            };
            // With no repository open it is still worth knowing what is wrong with the file.
            let prepared = match self.prepare(file, open.clone(), share.memory, file.rules).await {
                Err(PrepareError::Check(error))
                    if error.is_damage() && all_open && accepted(file.name, &group).await? =>
                {
                    let most = unit.saturating_mul(opened);
                    let memory = WalMemory::wait_again(self.directories(file), purpose, most).await;
                    self.prepare(file, open, memory, Rules { accept_damaged: true, ..file.rules }).await?
                }
                Err(PrepareError::Check(error)) if error.is_damage() && all_open && stored.is_none() => {
                    let identity = self.sound_instead(file, error, group.iter().chain(&rest)).await?;
                    return Ok(Kept { identity, as_it_is: false });
                }
                prepared => prepared?,
            };
            // Before anything damaged is stored anywhere.
            if stored.is_none() && prepared.1.sealed.iter().any(SealedSegment::is_damaged) {
                let sound = self.sound(file, group.iter().chain(&rest)).await?;
                as_it_is = matches!(sound, Sound::Nowhere);
                if let Some(identity) = self.is_sound(file, sound).await? {
                    remember_sound(file, group.iter().chain(&rest)).await?;
                    return Ok(Kept { identity, as_it_is: false });
                }
            }
            let (identity, Prepared { sealed, content, chain }, mut memory) = prepared;
            if stored.is_some_and(|before| before != identity) {
                return Err(CheckError::from(ReadError::Changed { path: file.path.clone() }).into());
            }
            stored = Some(identity);
            let held = sealed.iter().map(SealedSegment::held);
            if let Some(most) = held.clone().max() {
                self.habit.took(most);
                memory.keep(held.sum());
            }
            let mut sealed = sealed.into_iter();
            let open = group.iter_mut().filter(|one| one.admitted.is_ok());
            open.for_each(|one| one.sealed = sealed.next());
            if opened > 0 && !std::mem::replace(&mut judged, true) {
                self.judge(file, chain, group.iter_mut().chain(&mut rest).collect()).await?;
                self.hear(file, chain, witnesses).await?;
            }
            errors.extend(self.store_in(file, group, (&content, memory), chain).await);
        }
        match (stored, together(errors)) {
            (_, Some(error)) => Err(error),
            (Some(identity), None) => Ok(Kept { identity, as_it_is }),
            (None, None) => Err(UploadError::permanent("no repository has to acknowledge")),
        }
    }

    /// Stores a file that is prepared in some repositories; what went wrong. Each write takes its part of the memory along.
    async fn store_in(
        &self,
        file: &UploadSource,
        group: Vec<CandidateRepository<'_>>,
        (content, mut memory): (&WalContent, WalMemory),
        chain: Option<ChainFacts>,
    ) -> Vec<UploadError> {
        let targets: Vec<&WalTarget> = group.iter().map(|one| one.target).collect();
        let even = memory.held() / group.iter().filter(|one| one.admitted.is_ok()).count().max(1);
        let mut lend = |one: &CandidateRepository<'_>| {
            one.admitted.is_ok().then(|| {
                let held = one.sealed.as_ref().and_then(|sealed| usize::try_from(sealed.held()).ok());
                one.target.writes.begin(memory.split(held.unwrap_or(even)))
            })
        };
        let group: Vec<_> = group.into_iter().map(|one| (lend(&one), one)).collect();
        drop(memory);
        let attempts = group.into_iter().map(|(loan, one)| async move {
            let CandidateRepository { target, admitted, sealed } = one;
            let admitted = admitted?;
            // What hangs keeps it, whatever becomes of this attempt.
            let content = &match &loan {
                Some(loan) => content.clone().kept_with(loan.keeper()),
                None => content.clone(),
            };
            // Asked for when the upload began. What is stored where another repository will be is in its way.
            target.is_still(admitted.archive.repository()).await?;
            match (file.name, sealed) {
                (WalFileName::Segment(name), Some(sealed)) => {
                    store_segment(file, target, &admitted, name, (sealed, content), (chain, &self.targets))
                        .await
                }
                (name, _) => {
                    let stored = target.store_other(&admitted.archive, name, content).await?;
                    // Of several incomplete copies the archive has read the one of this content.
                    if stored == Stored::Same && !matches!(name, WalFileName::Partial(_)) {
                        is_readable(target, &admitted.archive, name).await?;
                    }
                    Ok(stored)
                }
            }
        });
        let mut errors = Vec::new();
        for (target, result) in targets.into_iter().zip(join_all(attempts).await) {
            if let Err(TargetError::SplitBrain(split)) = &result {
                self.refuse(file, target, split);
            }
            if let (Err(error), false) = (&result, target.acknowledges) {
                target.blocked.add(file.name, error);
            }
            match result {
                Ok(stored) => {
                    log(file.name, target, &stored);
                    if target.unnoted().is_some() {
                        self.refused.notify_one();
                    }
                }
                Err(error) => errors.push(upload_error(target, &error)),
            }
        }
        errors
    }
}

/// Whether each of these repositories holds a segment of that name that was stored although damaged. Then it is not judged again:
/// equal content is stored already, other content is a conflict.
async fn accepted(name: WalFileName, group: &[CandidateRepository<'_>]) -> Result<bool, UploadError> {
    let WalFileName::Segment(name) = name else { return Ok(false) };
    for one in group {
        let Some(archive) = one.archive() else { return Ok(false) };
        let header = archive.header(name).await.map_err(|error| upload_error(one.target, &error.into()))?;
        if !header.is_some_and(|header| header.damaged) {
            return Ok(false);
        }
    }
    Ok(!group.is_empty())
}

/// Stores a segment that belongs there, and says that it is stored only if nothing of another server came in between.
async fn store_segment(
    file: &UploadSource,
    target: &WalTarget,
    admitted: &Admitted<'_>,
    name: SegmentName,
    (sealed, content): (SealedSegment, &WalContent),
    around: Neighborhood<'_>,
) -> Result<Stored, TargetError> {
    let (archive, damaged) = (&admitted.archive, sealed.is_damaged());
    let stored_here = target.known(archive.lineage().id, |known| known.has_stored(name));
    let (stored, hash) = target.store_segment(archive, name, sealed, content).await?;
    if stored == Stored::New && damaged {
        tracing::warn!(file = %name, repository = target.name(), "stored although damaged");
    }
    if stored == Stored::Same && !stored_here {
        is_readable(target, archive, WalFileName::Segment(name)).await?;
    }
    if matches!(stored, Stored::New | Stored::Same) {
        if let Some(newcomer) = newcomer(file, target, admitted, around) {
            newcomer.confirm().await?;
        }
        // What was copied here does not show whose the rest is.
        let anew = stored == Stored::New && file.in_wal;
        remember(file, target, archive, SegmentClaim { segment: name, hash }, anew).await;
    }
    Ok(stored)
}

fn log(name: WalFileName, target: &WalTarget, stored: &Stored) {
    match stored {
        Stored::New => tracing::info!(file = %name, repository = target.name(), "stored"),
        Stored::Same => tracing::debug!(file = %name, repository = target.name(), "already stored"),
        Stored::Ended(end) => tracing::warn!(
            file = %name,
            repository = target.name(),
            "\"{name}\" is not complete: its records end at {end}\nDETAIL: It is stored as that. Recovery up to there needs \
             restore --use-partial, and the whole segment is accepted when it comes."
        ),
    }
}
