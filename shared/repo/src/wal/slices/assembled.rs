//! The beginning of a segment that is put together from slices while it is read, piece by piece, like a file of the segment's length:
//! behind its end there are zeros. No more of it is in memory than a few slices, whatever the size of the segment.
//!
//! Slices may be replaced while they are read: their writer puts many into one, and deletes them then. What is gone since it was listed is
//! looked for in another listing, and the end of what was listed counts only if another listing continues it no further, and holds all that is
//! gone. What was handed out before has to be in that listing as well, by hash: otherwise another server's bytes could be put behind it.

use std::collections::VecDeque;
use std::fmt;
use std::io::Write;

use bytes::Bytes;
use futures_util::future::join_all;
use walpoint_base::{Lsn, SegmentName};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::Key;

use super::super::{FRAME, WalArchive};
use super::{Added, MAX_SLICE, SliceAssembly, SliceHeader, SliceName};
use crate::cpu;

/// Slices that are fetched at the same time, as long as they hold no more than the longest one may hold.
const AT_ONCE: usize = 8;

/// Listings in which slices are looked for that are gone. One that takes the place of many brings a reader farther.
const LISTINGS: u32 = 16;

/// Looks for more behind the end: a server that writes faster than its slices are read does not keep a reader for ever.
const LOOKS: u32 = 8;

/// Why what was listed cannot be read: its writer has put something else in its place since. Another listing finds that.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Superseded(pub &'static str);

impl Superseded {
    /// The failure to read something for that reason.
    pub(crate) fn error(archive: &WalArchive, what: String, why: &'static str) -> RepoError {
        let store = archive.repository().store().name().to_owned();
        RepoError::Unavailable { what, store, source: Box::new(Self(why)) }
    }

    /// Whether something failed for that reason.
    pub fn is_why(error: &RepoError) -> bool {
        matches!(error, RepoError::Unavailable { source, .. } if source.is::<Self>())
    }
}

type Fetched = (SliceName, Result<Option<(SliceHeader, Vec<u8>)>>);

/// A segment's beginning as its slices have it.
pub struct AssembledSegment {
    archive: WalArchive,
    segment: SegmentName,
    start: Lsn,
    size: u64,
    /// In their order: slices that were listed, of these the ones that were not fetched yet, and those that were.
    listed: Vec<SliceName>,
    names: VecDeque<SliceName>,
    fetched: VecDeque<Fetched>,
    /// Slices that begin behind the end of the others.
    behind: Vec<SliceName>,
    assembly: SliceAssembly,
    /// Slices that were taken, that are damaged, and why one contradicts those that were taken.
    taken: Vec<SliceName>,
    damaged: Vec<(SliceName, RepoError)>,
    contradiction: Option<RepoError>,
    /// Slices that were gone when they were to be read.
    gone: Vec<SliceName>,
    listings: u32,
    looks: u32,
    /// Bytes that are settled and were not handed out yet.
    ready: Bytes,
    /// Of the bytes that were handed out, and how many that are.
    handed: Box<blake3::Hasher>,
    length: u64,
    /// How many of them the present listing has to give once more, and what it gave of them.
    again: u64,
    repeated: Box<blake3::Hasher>,
    /// Whether all slices were read.
    is_read: bool,
    /// Zeros behind the content that were not handed out yet.
    zeros: u64,
}

/// What the slices of a segment hold of it.
#[derive(Debug)]
pub struct SlicedBeginning {
    /// The position behind the last byte that was asked for and is there.
    pub end: Lsn,
    /// The slices that were read, in their order: each is sound, and agrees with the others.
    pub taken: Vec<SliceName>,
    /// What contradicts them, or is damaged and may continue them. Not known before their end was read.
    pub fault: Option<RepoError>,
    /// The damaged slice that may continue them, and what by their names continues that; none where they are contradicted.
    pub hidden: Vec<SliceName>,
}

impl SlicedBeginning {
    /// Whether another server's slices contradict it.
    pub fn is_contradicted(&self) -> bool {
        self.fault.is_some() && self.hidden.is_empty()
    }
}

impl fmt::Debug for AssembledSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AssembledSegment({}, {} bytes handed out)", self.segment, self.length)
    }
}

impl AssembledSegment {
    /// Of a segment that starts there, from slices that were listed.
    pub(super) fn new(
        archive: &WalArchive,
        segment: SegmentName,
        start: Lsn,
        listed: Vec<SliceName>,
    ) -> Self {
        let (hasher, size) = (Box::new(archive.content_hasher()), archive.lineage().segment_size.bytes());
        Self {
            archive: archive.clone(),
            names: listed.iter().copied().collect(),
            listed,
            fetched: VecDeque::new(),
            behind: Vec::new(),
            assembly: SliceAssembly::new(start, hasher.clone()),
            taken: Vec::new(),
            damaged: Vec::new(),
            contradiction: None,
            gone: Vec::new(),
            listings: 1,
            looks: 0,
            ready: Bytes::new(),
            handed: hasher.clone(),
            length: 0,
            again: 0,
            repeated: hasher,
            is_read: false,
            zeros: size,
            segment,
            start,
            size,
        }
    }

    pub(in crate::wal) fn is_done(&self) -> bool {
        self.is_read && self.ready.is_empty() && self.zeros == 0
    }

    /// The next piece; `None` when all was handed out.
    pub(in crate::wal) async fn next_piece(&mut self) -> Result<Option<Bytes>> {
        if let Some(piece) = self.next_content().await? {
            return Ok(Some(piece));
        }
        let zeros = usize::try_from(self.zeros).unwrap_or(FRAME).min(FRAME);
        self.zeros -= zeros as u64;
        Ok((zeros > 0).then(|| Bytes::from(vec![0; zeros])))
    }

    /// Writes out what there is before a position, or up to the end if that comes before.
    pub(in crate::wal) async fn write_until<W: Write + Send + 'static>(
        mut self,
        limit: Lsn,
        mut writer: W,
    ) -> Result<(W, SlicedBeginning)> {
        let (key, mut end) = (self.archive.paths().sliced(self.segment), self.start);
        while end < limit
            && let Some(piece) = self.next_content().await?
        {
            let left = usize::try_from(limit.since(end)).unwrap_or(usize::MAX);
            let piece = piece.slice(..left.min(piece.len()));
            end = end + piece.len() as u64;
            writer = write_piece(&key, piece, writer).await?;
        }
        let (fault, hidden) = if self.is_read { self.fault() } else { (None, Vec::new()) };
        self.taken.sort_unstable();
        Ok((writer, SlicedBeginning { end, taken: self.taken, fault, hidden }))
    }

    /// Why there may be more, and in which slices.
    fn fault(&mut self) -> (Option<RepoError>, Vec<SliceName>) {
        let end = self.assembly.end();
        let hides = |(name, _): &(SliceName, RepoError)| name.start <= end && name.end > end;
        let damage = std::mem::take(&mut self.damaged).into_iter().find(hides);
        match (self.contradiction.take(), damage) {
            (None, Some((_, damage))) => (Some(damage), continuing(&self.listed, end)),
            (contradiction, _) => (contradiction, Vec::new()),
        }
    }

    /// The next bytes of the content; `None` behind its end.
    async fn next_content(&mut self) -> Result<Option<Bytes>> {
        while self.ready.is_empty() && !self.is_read {
            let settled = self.read_slice().await?;
            self.ready = self.new_bytes(settled)?;
        }
        if self.ready.is_empty() {
            return Ok(None);
        }
        let piece = self.ready.split_to(FRAME.min(self.ready.len()));
        self.handed.update(&piece);
        self.length += piece.len() as u64;
        self.zeros = self.size.saturating_sub(self.length);
        Ok(Some(piece))
    }

    /// Reads one more slice; the bytes that this settles.
    async fn read_slice(&mut self) -> Result<Bytes> {
        if self.fetched.is_empty() {
            self.fetch().await;
        }
        let Some((name, slice)) = self.fetched.pop_front() else { return self.look_again().await };
        let (header, content) = match slice {
            Ok(Some(slice)) => slice,
            Ok(None) => {
                self.gone.push(name);
                return self.list_again().await.map(|()| Bytes::new());
            }
            Err(error @ RepoError::Corrupt { .. }) => {
                self.damaged.push((name, error));
                return Ok(Bytes::new());
            }
            Err(error) => return Err(error),
        };
        let (added, settled) = self.assembly.add(&header, &content);
        match added {
            Added::Continued | Added::Known => self.taken.push(name),
            Added::TooEarly => return self.start_over().await.map(|()| Bytes::new()),
            Added::Gap => {
                self.behind = vec![name];
                self.behind.extend(self.fetched.drain(..).map(|(name, _)| name));
                self.behind.extend(self.names.drain(..));
            }
            Added::Contradicts => {
                let what = "it contradicts the slices before it, so two servers wrote this segment";
                let key = self.archive.slice_key(self.segment, name);
                self.contradiction = Some(RepoError::corrupt(&key, what));
                self.fetched.clear();
                self.names.clear();
            }
        }
        Ok(settled)
    }

    /// Looks whether slices are there by now that continue those of the listing. A listing is no snapshot: it may lack the slice that
    /// was put in the place of others, and these as well.
    async fn look_again(&mut self) -> Result<Bytes> {
        self.looks += 1;
        if self.contradiction.is_some() || self.looks > LOOKS {
            return Ok(self.end());
        }
        let end = self.assembly.end();
        let mut new = self.archive.slices(self.segment).await?;
        new.retain(|name| name.end > end && self.listed.binary_search(name).is_err());
        if new.iter().all(|name| name.start > end) {
            return Ok(self.end());
        }
        self.listed.extend(new.iter().copied());
        self.listed.sort_unstable();
        new.append(&mut self.behind);
        new.sort_unstable();
        self.names = new.into();
        Ok(Bytes::new())
    }

    /// No slice counts any more.
    fn end(&mut self) -> Bytes {
        self.is_read = true;
        self.assembly.finish()
    }

    /// Fetches the next slices, no more bytes of them than one may have.
    async fn fetch(&mut self) {
        let (mut next, mut bytes) = (Vec::new(), 0);
        while next.len() < AT_ONCE
            && let Some(name) = self.names.front().copied()
            && (next.is_empty() || bytes + name.length() <= MAX_SLICE as u64)
        {
            self.names.pop_front();
            bytes += name.length();
            next.push(name);
        }
        let (archive, segment) = (&self.archive, self.segment);
        let read = |name| async move { (name, archive.slice(segment, name).await) };
        self.fetched = join_all(next.into_iter().map(read)).await.into();
    }

    /// Reads on with another listing, in what ends behind what is known.
    async fn list_again(&mut self) -> Result<()> {
        self.listings += 1;
        if self.listings > LISTINGS {
            return Err(self.replaced("its slices are replaced faster than they are read"));
        }
        self.listed = self.archive.slices(self.segment).await?;
        let end = self.assembly.end();
        self.names = self.listed.iter().filter(|name| name.end > end).copied().collect();
        (self.fetched, self.behind, self.damaged) = (VecDeque::new(), Vec::new(), Vec::new());
        Ok(())
    }

    /// Begins from the segment's start on.
    async fn start_over(&mut self) -> Result<()> {
        self.list_again().await?;
        self.names = self.listed.iter().copied().collect();
        let hasher = Box::new(self.archive.content_hasher());
        self.assembly = SliceAssembly::new(self.start, hasher.clone());
        self.taken = Vec::new();
        (self.again, self.repeated) = (self.length, hasher);
        Ok(())
    }

    /// What of settled bytes was not handed out before the present listing.
    fn new_bytes(&mut self, mut settled: Bytes) -> Result<Bytes> {
        let gone = "slices that were listed are gone, and others do not hold the same";
        let known = usize::try_from(self.again).unwrap_or(usize::MAX).min(settled.len());
        let repeats = self.again > 0;
        self.repeated.update(&settled.split_to(known));
        self.again -= known as u64;
        let lacks = self.is_read && self.again > 0;
        let differs = repeats && self.again == 0 && self.repeated.finalize() != self.handed.finalize();
        if lacks || differs || self.is_read && self.is_cut() {
            return Err(self.replaced(gone));
        }
        Ok(settled)
    }

    /// Whether a slice is gone that continued these, and no other one does: the whole segment may be stored by now.
    fn is_cut(&self) -> bool {
        let end = self.assembly.end();
        let continues = |name: &SliceName| name.start <= end && name.end > end;
        let is_faulty = self.contradiction.is_some() || self.damaged.iter().any(|(name, _)| continues(name));
        !is_faulty && self.gone.iter().any(continues)
    }

    /// Another attempt may find the whole segment, or slices that stay.
    fn replaced(&self, why: &'static str) -> RepoError {
        Superseded::error(&self.archive, self.archive.paths().sliced(self.segment).to_string(), why)
    }
}

/// The slices, of those of a segment in their order, that continue a position by their names.
fn continuing(names: &[SliceName], from: Lsn) -> Vec<SliceName> {
    let mut end = from;
    let continues = |name: &&SliceName| {
        let is_next = name.start <= end && name.end > from;
        end = if is_next { end.max(name.end) } else { end };
        is_next
    };
    names.iter().filter(continues).copied().collect()
}

/// Writes a piece of a file out.
pub(in crate::wal) async fn write_piece<W: Write + Send + 'static>(
    key: &Key,
    piece: Bytes,
    mut writer: W,
) -> Result<W> {
    let what = format!("{key} cannot be written out");
    let written = cpu::run(move || writer.write_all(&piece).map(|()| writer)).await?;
    written.map_err(|source| RepoError::Io { what, source })
}
