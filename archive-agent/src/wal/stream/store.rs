//! Slices and whole segments of a stream in every repository that has to acknowledge. Each is tried until it is stored: a store that is
//! away for a day costs the stream nothing but time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, try_join};
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::Mutex;
use tokio::time::Instant;
use walpoint_base::facts::HistoryHash;
use walpoint_base::{Lsn, SegmentName, WalFileName};
use walpoint_repo::wal::slices::{SliceFacts, SliceName};
use walpoint_repo::wal::{WalArchive, WalHeader};
use walpoint_runtime::backoff::Backoff;
use walpoint_storage::RepoError;
use walpoint_storage::object::ContentHash;

use super::segment::{Slice, StoredBefore, SwitchedBefore};
use super::{EVER, StreamReports, gaps};
use crate::wal::archiver::Archiver;
use crate::wal::upload::{PutSlice, StoredWhole, UploadError};

/// The waits before another try grow from the first to the second.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Before a slice is stored, it is looked for what others have stored of its segment, if that was not done for so long: another server may
/// have begun to.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// What is being stored, in the order in which it counts: up to where all is durable then.
pub(super) type Storing = FuturesOrdered<BoxFuture<'static, anyhow::Result<Lsn>>>;

/// Slices that are being put in the place of others, and whether more of that makes sense. Nothing waits for them but the deletion of the
/// slices of their segment.
pub(super) type Merges = FuturesOrdered<BoxFuture<'static, bool>>;

/// Where a session stores.
pub(super) struct SliceStore {
    pub(super) archiver: Arc<Archiver>,
    pub(super) reports: Arc<StreamReports>,
    /// Random, in the names of its slices.
    pub(super) session: u32,
    /// Of the lineages and repositories that it began with.
    epoch: u64,
    history: HistoryHash,
    /// What was seen of the segment that is open.
    seen: Mutex<Seen>,
    /// Slices of that segment that this session began to store, but for those that were replaced since.
    own: Mutex<BTreeSet<SliceName>>,
}

/// What the archives were seen to hold of a segment.
pub(super) struct Seen {
    segment: SegmentName,
    archives: Vec<WalArchive>,
    /// The sessions that have slices of it.
    sessions: BTreeSet<u32>,
    looked: Instant,
}

impl Seen {
    /// Looks at what is there of a segment that was admitted there.
    pub(super) async fn of(archives: Vec<WalArchive>, segment: SegmentName) -> Result<Self, UploadError> {
        let mut sessions = BTreeSet::new();
        for archive in &archives {
            sessions.extend(archive.slices(segment).await?.iter().map(|slice| slice.session));
        }
        Ok(Self { segment, archives, sessions, looked: Instant::now() })
    }

    /// Whether any archive has the whole segment, or slices of a session that was not seen.
    async fn is_begun(&self, own: u32) -> Result<bool, UploadError> {
        for archive in &self.archives {
            let slices = archive.slices(self.segment).await?;
            let unseen =
                slices.iter().any(|slice| slice.session != own && !self.sessions.contains(&slice.session));
            if unseen || archive.header(self.segment).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Others have stored of a segment: a session that begins with it compares that.
#[derive(Debug, thiserror::Error)]
#[error("others have stored of segment {segment}")]
pub(super) struct BegunBefore {
    pub(super) segment: SegmentName,
}

impl SliceStore {
    /// For a timeline whose history has that hash; `seen`: of the first segment.
    pub(super) fn new(
        archiver: &Arc<Archiver>,
        reports: &Arc<StreamReports>,
        history: HistoryHash,
        (seen, epoch): (Seen, u64),
    ) -> Self {
        let (archiver, reports) = (Arc::clone(archiver), Arc::clone(reports));
        let (session, own) = (rand::random(), Mutex::default());
        Self { archiver, reports, session, epoch, history, seen: Mutex::new(seen), own }
    }

    /// Stores a slice; its end. Where a damaged object has its name no attempt of this session stores it: the session ends, and the next
    /// one, whose slices have other names, stores the segment from its start on.
    pub(super) async fn slice(self: Arc<Self>, slice: Slice) -> anyhow::Result<Lsn> {
        let (facts, mut backoff) = (self.facts(&slice), Backoff::new(WAITS.0, WAITS.1, EVER));
        loop {
            match self.try_slice(&facts, &slice).await {
                Ok(PutSlice::Stored) => break,
                Ok(PutSlice::Begun) => return Err(BegunBefore { segment: slice.segment }.into()),
                Ok(PutSlice::InTheWay(what)) => anyhow::bail!(
                    "WAL from {} on cannot be stored: {what}\nDETAIL: The stream starts over, and stores segment {} from its start \
                     on under other names.\nHINT: Check the storage for failures.",
                    slice.start,
                    slice.segment
                ),
                Err(UploadError { text, .. }) => {
                    (self.reports.failing)(&format!("WAL from {} on cannot be stored: {text}", slice.start));
                }
            }
            self.is_current()?;
            backoff.wait().await;
        }
        self.is_current()?;
        Ok(slice.end())
    }

    fn facts(&self, slice: &Slice) -> SliceFacts {
        SliceFacts {
            segment: slice.segment,
            start: slice.start,
            before: ContentHash([0; 32]),
            history: self.history,
            received: jiff::Timestamp::now(),
        }
    }

    /// Stores a slice in place of those of this session that it holds, and deletes these when it was read back from each repository.
    /// Whether another attempt with the next ones makes sense: these do as well.
    pub(super) async fn merge(self: Arc<Self>, slice: Slice) -> bool {
        match self.try_merge(&slice).await {
            Ok(()) => true,
            Err(UploadError { text, permanent }) => {
                tracing::debug!(file = %slice.segment, "slices of this segment stay as they are: {text}");
                !permanent
            }
        }
    }

    async fn try_merge(&self, slice: &Slice) -> Result<(), UploadError> {
        match self.try_slice(&self.facts(slice), slice).await? {
            PutSlice::Stored => {}
            PutSlice::InTheWay(what) => return Err(UploadError::permanent(what)),
            PutSlice::Begun => return Err(UploadError::permanent("others have stored of it".to_owned())),
        }
        self.is_current().map_err(UploadError::permanent)?;
        let merged = self.name_of(slice);
        let is_replaced =
            |name: &&SliceName| merged.start <= name.start && name.end <= merged.end && **name != merged;
        let replaced: Vec<SliceName> = self.own.lock().await.iter().filter(is_replaced).copied().collect();
        let sent = (slice.before.as_slice(), &slice.content);
        self.archiver.uploader().replace_slices((slice.segment, merged), sent, &replaced).await?;
        let mut own = self.own.lock().await;
        for name in &replaced {
            own.remove(name);
        }
        drop(own);
        Ok(())
    }

    fn name_of(&self, slice: &Slice) -> SliceName {
        SliceName { start: slice.start, end: slice.end(), session: self.session }
    }

    async fn try_slice(&self, facts: &SliceFacts, slice: &Slice) -> Result<PutSlice, UploadError> {
        let uploader = self.archiver.uploader();
        let mut seen = self.seen.lock().await;
        if seen.segment != slice.segment {
            let archives = uploader.admit_slices(slice.segment).await?;
            let none =
                Seen { segment: slice.segment, archives, sessions: BTreeSet::new(), looked: Instant::now() };
            if none.is_begun(self.session).await? {
                return Ok(PutSlice::Begun);
            }
            *seen = none;
            self.own.lock().await.clear();
        } else if seen.looked.elapsed() > LOOK_AGAIN {
            if seen.is_begun(self.session).await? {
                return Ok(PutSlice::Begun);
            }
            seen.looked = Instant::now();
        }
        drop(seen);
        // Noted first: of an attempt that fails, it is not known what it stored.
        self.own.lock().await.insert(self.name_of(slice));
        uploader.put_slice(*facts, &slice.before, self.session, &slice.content).await
    }

    /// Stores a segment that was received to its end, after the slices of it that are under way, and deletes these and those of earlier
    /// sessions that it is known to hold; its end. Where an operator decided to go on without it, or with a damaged one, they stay. `hashes`:
    /// of what was received, for each repository.
    pub(super) async fn whole(
        self: Arc<Self>,
        (name, end): (SegmentName, Lsn),
        hashes: Vec<ContentHash>,
        (slices, merges): (Storing, Merges),
        earlier: Vec<Vec<SliceName>>,
    ) -> anyhow::Result<Lsn> {
        // What a merge stores after the others were deleted would stay.
        let merged = merges.for_each(|_| std::future::ready(())).map(Ok);
        let (stored, ()) = try_join(self.store_whole(name, &hashes, slices), merged).await?;
        let uploader = self.archiver.uploader();
        if stored == StoredWhole::Sound
            && let Err(error) = uploader.delete_slices(name, self.session, &earlier).await
        {
            tracing::warn!(file = %name, "the slices of this segment are left in place: {error}");
        }
        Ok(end)
    }

    /// What is stored of it as a whole, at last; [`StoredWhole::No`] where an operator decided to go on without it. Unless it is sound, nothing
    /// else may hold what its slices do.
    async fn store_whole(
        &self,
        name: SegmentName,
        hashes: &[ContentHash],
        mut slices: Storing,
    ) -> anyhow::Result<StoredWhole> {
        while let Some(stored) = slices.next().await {
            stored?;
        }
        let mut backoff = Backoff::new(WAITS.0, WAITS.1, EVER);
        let stored = loop {
            let tried = self.try_whole(name, hashes).await;
            match tried {
                Ok(stored) if stored != StoredWhole::No => break stored,
                _ if gaps::is_decided(&self.archiver, name).await => {
                    tracing::warn!(file = %name, "the WAL stream continues without this segment: its slices are left in place");
                    break StoredWhole::No;
                }
                Ok(_) => {
                    let text = "it was streamed to its end, and is not stored as a whole";
                    (self.reports.failing)(&format!("{name}: {text}"));
                }
                Err(text) => (self.reports.failing)(&format!("{name}: {text}")),
            }
            self.is_current()?;
            backoff.wait().await;
        };
        self.is_current()?;
        if stored == StoredWhole::Sound {
            gaps::note_stored(&self.archiver, name).await;
        }
        Ok(stored)
    }

    /// The archiver may have stored it already, or another process the same.
    async fn try_whole(&self, name: SegmentName, hashes: &[ContentHash]) -> Result<StoredWhole, String> {
        let uploader = self.archiver.uploader();
        let stored = uploader.holds(name, hashes).await.map_err(|error| error.text)?;
        if stored != StoredWhole::No {
            return Ok(stored);
        }
        self.archiver.finished(WalFileName::Segment(name)).await?;
        uploader.holds(name, hashes).await.map_err(|error| error.text)
    }

    /// Fails if what was stored before may not count any more: the data directory archives into another lineage, or a repository is another
    /// one.
    fn is_current(&self) -> anyhow::Result<()> {
        if self.archiver.uploader().epoch() == self.epoch {
            return Ok(());
        }
        anyhow::bail!(
            "another lineage began, or another repository took the place of one: the stream starts over"
        )
    }
}

/// What is stored of a segment in each archive: the whole one, or what earlier sessions stored, and the slices that hold it.
pub(super) struct Earlier {
    pub(super) before: StoredBefore,
    pub(super) slices: Vec<Vec<SliceName>>,
}

impl Earlier {
    /// `None` if there is nothing that a session can continue. What one of the archives lacks is stored in all, and what is damaged from its
    /// start on. An error if slices contradict each other. Read piece by piece: a segment may be 1 GiB.
    pub(super) async fn of(archives: &[WalArchive], name: SegmentName) -> Result<Option<Self>, UploadError> {
        let mut headers = Vec::new();
        for archive in archives {
            headers.push(archive.header(name).await?);
        }
        let size = archives.first().map(|archive| archive.lineage().segment_size);
        let end = size.and_then(|size| Some(name.number(size)?.end(size)));
        if let Some(end) = end.filter(|_| headers.iter().any(Option::is_some)) {
            let mut slices = Vec::new();
            for archive in archives {
                slices.push(archive.slices_held_by_whole(name).await?);
            }
            let switched = switched_before(archives, name, &headers).await?;
            let hashes = headers.iter().map(|header| header.as_ref().map(|header| header.hash)).collect();
            return Ok(Some(Self { before: StoredBefore { end, hashes, switched }, slices }));
        }
        let mut stored = Vec::new();
        for archive in archives {
            let Some(one) = archive.sliced_beginning(name, Lsn(u64::MAX)).await? else { return Ok(None) };
            if let Some(fault) = one.0.fault.as_ref().filter(|_| one.0.is_contradicted()) {
                return Err(UploadError::permanent(format!(
                    "split brain: slices of segment {name} contradict each other, so nothing more of it is stored: {fault}\nDETAIL: \
                     Two servers stored them. The last part of a slice's name is the session that stored it.\nHINT: If one of the \
                     servers is a copy, give it a lineage of its own (archive-agent init --new-lineage). Then move the slices of its \
                     sessions below {name}.slices in each repository to another place."
                )));
            }
            if let Some(fault) = &one.0.fault {
                tracing::error!(file = %name, "slices of this segment cannot be continued, and it is stored from its start on: {fault}");
                return Ok(None);
            }
            stored.push((archive, one));
        }
        let Some(end) = stored.iter().map(|(_, (beginning, _))| beginning.end).min() else { return Ok(None) };
        let (mut hashes, mut slices) = (Vec::new(), Vec::new());
        for (archive, mut one) in stored {
            if one.0.end > end {
                // They may not go so far any more.
                let Some(shorter) = archive.sliced_beginning(name, end).await? else { return Ok(None) };
                one = shorter;
            }
            let (beginning, hash) = one;
            if beginning.end != end {
                return Ok(None);
            }
            hashes.push(Some(hash));
            slices.push(beginning.taken.into_iter().filter(|slice| slice.end <= end).collect());
        }
        Ok(Some(Self { before: StoredBefore { end, hashes, switched: None }, slices }))
    }
}

/// What whole segments hold up to the switch that ends them, if one does.
async fn switched_before(
    archives: &[WalArchive],
    name: SegmentName,
    headers: &[Option<WalHeader>],
) -> Result<Option<SwitchedBefore>, RepoError> {
    let is_switched = |header: &&WalHeader| header.whole && header.switched && !header.damaged;
    let end = headers.iter().flatten().find(is_switched).map(|header| header.end);
    let size = archives.first().map(|archive| archive.lineage().segment_size);
    let start = size.and_then(|size| Some(name.number(size)?.start(size)));
    let Some((start, end)) = start.zip(end) else { return Ok(None) };
    let (length, mut records) = (end.since(start), Vec::new());
    for (archive, header) in archives.iter().zip(headers) {
        let ends_there = header.as_ref().filter(is_switched).is_some_and(|header| header.end == end);
        let hash = match ends_there {
            true => archive.beginning(WalFileName::Segment(name), length).await,
            false => Ok(None),
        };
        records.push(match hash {
            // Then only what is the same to the last byte is the same.
            Err(RepoError::Corrupt { .. }) => None,
            hash => hash?,
        });
    }
    Ok(Some(SwitchedBefore { length, records }))
}
