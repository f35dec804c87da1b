//! Slices and whole segments of a stream in every repository that has to acknowledge. Each is tried until it is stored: a store that is
//! away for a day costs the stream nothing but time.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use tokio::sync::Mutex;
use walpoint_base::facts::HistoryHash;
use walpoint_base::{Lsn, SegmentName, WalFileName};
use walpoint_repo::wal::WalArchive;
use walpoint_repo::wal::slices::{SliceFacts, SliceName};
use walpoint_runtime::backoff::Backoff;
use walpoint_storage::object::ContentHash;

use super::segment::Slice;
use super::{EVER, StreamReports};
use crate::wal::archiver::Archiver;
use crate::wal::upload::UploadError;

/// The waits before another try grow from the first to the second.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What is being stored, in the order in which it counts: up to where all is durable then.
pub(super) type Storing = FuturesOrdered<BoxFuture<'static, anyhow::Result<Lsn>>>;

/// Where a session stores.
pub(super) struct SliceStore {
    pub(super) archiver: Arc<Archiver>,
    pub(super) reports: Arc<StreamReports>,
    /// Random, in the names of its slices.
    pub(super) session: u32,
    /// Of the lineages and repositories that it began with.
    epoch: u64,
    history: HistoryHash,
    /// The segment whose place was looked at last.
    admitted: Mutex<SegmentName>,
}

impl SliceStore {
    /// For a timeline whose history has that hash, and whose segment of that name is admitted.
    pub(super) fn new(
        archiver: &Arc<Archiver>,
        reports: &Arc<StreamReports>,
        history: HistoryHash,
        (admitted, epoch): (SegmentName, u64),
    ) -> Self {
        let (archiver, reports) = (Arc::clone(archiver), Arc::clone(reports));
        Self { archiver, reports, session: rand::random(), epoch, history, admitted: Mutex::new(admitted) }
    }

    /// Stores a slice; its end.
    pub(super) async fn slice(self: Arc<Self>, slice: Slice) -> anyhow::Result<Lsn> {
        let facts = SliceFacts {
            segment: slice.segment,
            start: slice.start,
            before: ContentHash([0; 32]),
            history: self.history,
            received: jiff::Timestamp::now(),
        };
        let mut backoff = Backoff::new(WAITS.0, WAITS.1, EVER);
        loop {
            match self.try_slice(&facts, &slice).await {
                Ok(()) => break,
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

    async fn try_slice(&self, facts: &SliceFacts, slice: &Slice) -> Result<(), UploadError> {
        let uploader = self.archiver.uploader();
        let mut admitted = self.admitted.lock().await;
        if *admitted != slice.segment {
            uploader.admit_slices(slice.segment).await?;
            *admitted = slice.segment;
        }
        drop(admitted);
        uploader.put_slice(*facts, &slice.before, self.session, &slice.content).await
    }

    /// Stores a segment that was received to its end, after the slices of it that are under way, and deletes these and those of earlier
    /// sessions that it is known to hold; its end. `hashes`: of what was received, for each repository.
    pub(super) async fn whole(
        self: Arc<Self>,
        (name, end): (SegmentName, Lsn),
        hashes: Vec<ContentHash>,
        mut slices: Storing,
        earlier: Vec<Vec<SliceName>>,
    ) -> anyhow::Result<Lsn> {
        while let Some(stored) = slices.next().await {
            stored?;
        }
        let mut backoff = Backoff::new(WAITS.0, WAITS.1, EVER);
        loop {
            match self.try_whole(name, &hashes).await {
                Ok(()) => break,
                Err(text) => (self.reports.failing)(&format!("{name}: {text}")),
            }
            self.is_current()?;
            backoff.wait().await;
        }
        self.is_current()?;
        let uploader = self.archiver.uploader();
        if let Err(error) = uploader.delete_slices(name, self.session, &earlier).await {
            tracing::warn!(file = %name, "the slices of this segment are left in place: {error}");
        }
        Ok(end)
    }

    /// The archiver may have stored it already, or another process the same.
    async fn try_whole(&self, name: SegmentName, hashes: &[ContentHash]) -> Result<(), String> {
        let uploader = self.archiver.uploader();
        if uploader.holds(name, hashes).await.map_err(|error| error.text)? {
            return Ok(());
        }
        self.archiver.finished(WalFileName::Segment(name)).await?;
        match uploader.holds(name, hashes).await.map_err(|error| error.text)? {
            true => Ok(()),
            false => Err("it was streamed to its end, and is not stored as a whole".to_owned()),
        }
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

/// What earlier sessions stored of a segment in an archive: up to where, the hash of that, and which slices.
pub(super) struct Earlier {
    pub(super) content: bytes::Bytes,
    pub(super) start: Lsn,
    pub(super) slices: Vec<SliceName>,
}

impl Earlier {
    /// `None` if there is nothing that a session can continue. What is damaged, or contradicts itself, is stored anew.
    pub(super) async fn of(archive: &WalArchive, name: SegmentName) -> Result<Option<Self>, UploadError> {
        let Some(assembled) = archive.assemble(name).await? else { return Ok(None) };
        if let Some(fault) = assembled.fault() {
            tracing::error!(file = %name, "slices of this segment cannot be continued, and it is stored from its start on: {fault}");
            return Ok(None);
        }
        let (content, end) = (assembled.content().clone(), assembled.end());
        let start = Lsn(end.0.saturating_sub(content.len() as u64));
        let slices = archive.slices(name).await?.into_iter().filter(|slice| slice.end <= end).collect();
        Ok(Some(Self { content, start, slices }))
    }

    pub(super) fn end(&self) -> Lsn {
        self.start + self.content.len() as u64
    }

    /// The hash of what is stored before a position.
    pub(super) fn hash_before(&self, end: Lsn, mut hasher: blake3::Hasher) -> ContentHash {
        let length = usize::try_from(end.since(self.start)).unwrap_or(usize::MAX);
        hasher.update(self.content.get(..length).unwrap_or(&self.content));
        ContentHash(*hasher.finalize().as_bytes())
    }
}
