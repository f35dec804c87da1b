//! Slices: what is stored of a segment that its server is still writing, range by range, as the WAL stream brings it.
//!
//! | module | owns |
//! |---|---|
//! | [`header`] | what a slice says about itself |
//! | [`assembly`] | a segment's beginning, put together from slices; no IO |
//! | [`assembled`] | that beginning, put together while it is read as a copy of the segment |
//!
//! What always holds: a slice never changes, and names by hash what comes before it in its segment. So slices of several sessions, of
//! two daemons or of two servers, are told apart by what they continue, and none is put behind bytes that it was not made for. Slices
//! are a further incomplete copy of their segment (`partials`), and mean nothing once the whole segment is stored. Their writer stores one
//! slice with the bytes of many, and deletes these only when that one was read back: at any moment what is stored holds all bytes.

pub mod assembled;
pub mod assembly;
pub mod header;

use std::io::Write;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryStreamExt};
use walpoint_base::{Lsn, SegmentName};
use walpoint_storage::error::{RepoError, Result, found};
use walpoint_storage::layout::{Key, WalEntry};
use walpoint_storage::object::{ContentHash, ObjectError, ObjectKind, ObjectReader, ObjectWriter};
use walpoint_storage::store::{Creation, ListedObject};

pub use self::assembled::{AssembledSegment, SlicedBeginning, Superseded};
pub use self::assembly::{Added, SliceAssembly};
pub use self::header::{SLICE_HEADER, SliceFacts, SliceHeader};
use super::WalArchive;
use super::partials::CopySurvey;
use super::prefix::{PrefixComparison, SegmentCopy};
use super::seal::failed;
use crate::cpu;

/// Bytes of a slice at most, so that a burst of WAL goes up in parallel.
pub const MAX_SLICE: usize = 8 << 20;

/// The name of a slice within its segment. In order of where they start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SliceName {
    /// The position of its first byte.
    pub start: Lsn,
    /// The position behind its last byte.
    pub end: Lsn,
    /// Random for each run of a stream, so that two that store the same range do not meet.
    pub session: u32,
}

impl SliceName {
    /// Bytes that it holds.
    pub fn length(&self) -> u64 {
        self.end.since(self.start)
    }

    /// Whether slices of its own session, which sent each byte once, hold all of its bytes. In the order of where they start.
    pub(super) fn is_held_by(&self, slices: &[Self]) -> bool {
        let own = slices.iter().filter(|slice| slice.session == self.session);
        own.fold(self.start, |to, slice| if slice.start <= to { to.max(slice.end) } else { to }) >= self.end
    }
}

impl WalArchive {
    fn slice_key(&self, segment: SegmentName, name: SliceName) -> Key {
        self.paths().slice(segment, name.start, name.end, name.session)
    }

    /// Stores a slice; it is durable then. One of the same name with the same content is [`Creation::Same`].
    pub async fn put_slice(&self, facts: &SliceFacts, session: u32, content: Bytes) -> Result<Creation> {
        let lineage = self.lineage();
        let end = facts.start + content.len() as u64;
        let name = SliceName { start: facts.start, end, session };
        let key = self.slice_key(facts.segment, name);
        let header = SliceHeader::new(lineage.id, lineage.segment_size, lineage.major, *facts, end);
        let header = header.filter(|_| (1..=MAX_SLICE).contains(&content.len()));
        let Some(header) = header else {
            let what = format!("{} bytes from {} on are no part of that segment", content.len(), facts.start);
            return Err(RepoError::Refused { key, what });
        };
        let sealer = self.sealer().clone();
        let sealed = cpu::run(move || {
            let sealed = ObjectWriter::new(&sealer, ObjectKind::Slice, &key).and_then(|mut writer| {
                writer.meta(&header.encode())?;
                writer.frames(&content, super::FRAME)?;
                writer.finish()
            });
            sealed.map_err(|error| failed(&key, error))
        });
        self.create_sound(&sealed.await??).await
    }

    /// The slices of a segment, by where they start.
    pub async fn slices(&self, segment: SegmentName) -> Result<Vec<SliceName>> {
        let entries = self.store().list_all(&self.paths().slices(segment)).await?;
        let name = |entry: &ListedObject| match self.paths().parse(&entry.key)? {
            WalEntry::Slice(_, start, end, session) => Some(SliceName { start, end, session }),
            _ => None,
        };
        let mut names: Vec<_> = entries.iter().filter_map(name).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Whether there are slices of a segment. One page of a listing.
    pub(crate) async fn has_slices(&self, segment: SegmentName) -> Result<bool> {
        let paths = self.paths().clone();
        let slice = move |entry: &ListedObject| matches!(paths.parse(&entry.key), Some(WalEntry::Slice(..)));
        let mut entries = self.store().list(&self.paths().slices(segment), None);
        while let Some(entry) = entries.try_next().await? {
            if slice(&entry) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether there are slices of a segment, here or beside, that are not known to be another server's than the incomplete copy of it that
    /// is read: that is what was streamed, or a longer copy that continues it. Other copies are read where there are any.
    pub async fn is_streamed(&self, segment: SegmentName) -> Result<bool> {
        let list = move |archive: Self| async move { archive.incomplete_copies(segment).await }.boxed();
        let copies = self.ask_all(list).await?.given.concat();
        let count = copies.iter().filter(|copy| **copy == SegmentCopy::Sliced).count();
        if count == 0 || count == copies.len() {
            return Ok(count > 0);
        }
        let CopySurvey { read, sliced, .. } = self.read_and_damaged(segment).await?;
        // Where none can be read, a planner learns why.
        let Some(read) = read else { return Ok(true) };
        for slices in sliced {
            if slices.compare(&read, u64::MAX).await? != PrefixComparison::Different {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether there are incomplete copies of a segment that are not slices, here or beside. Where there are none, its server was still
    /// writing it.
    pub(crate) async fn has_other_than_slices(&self, segment: SegmentName) -> Result<bool> {
        let list = move |archive: Self| async move { archive.incomplete_copies(segment).await }.boxed();
        let copies = self.ask_all(list).await?.given.concat();
        Ok(copies.iter().any(|copy| *copy != SegmentCopy::Sliced))
    }

    /// Up to where a segment's slices, here or beside, are sound and continue each other from its first byte on; `None` if they are not
    /// sound from there. Whether a record ends there is not looked at.
    pub(crate) async fn streamed_until(&self, segment: SegmentName) -> Result<Option<Lsn>> {
        let all = Lsn(u64::MAX);
        let read =
            move |archive: Self| async move { archive.write_slices(segment, all, std::io::sink).await };
        let ask = move |archive: Self| read(archive).boxed();
        let beginnings = self.ask_all(ask).await?.given.into_iter().flatten();
        let begun = beginnings.filter(|(_, beginning)| !beginning.taken.is_empty());
        Ok(begun.map(|(_, beginning)| beginning.end).max())
    }

    /// A slice, checked; `None` if it is gone.
    pub async fn slice(
        &self,
        segment: SegmentName,
        name: SliceName,
    ) -> Result<Option<(SliceHeader, Vec<u8>)>> {
        let key = self.slice_key(segment, name);
        let Some(bytes) = found(self.store().get(&key).await)? else { return Ok(None) };
        let (sealer, lineage) = (self.sealer().clone(), self.lineage().clone());
        let opened = cpu::run(move || {
            let corrupt = |error: ObjectError| RepoError::corrupt(&key, error);
            let reader = ObjectReader::open(&sealer, &[ObjectKind::Slice], &key, bytes).map_err(corrupt)?;
            let header = SliceHeader::parse(reader.meta())
                .filter(|header| {
                    let facts = &header.facts;
                    let ours = header.lineage == lineage.id && header.size == lineage.segment_size;
                    ours && facts.segment == segment && facts.start == name.start && header.end == name.end
                })
                .ok_or_else(|| RepoError::corrupt(&key, "its header does not describe it"))?;
            let mut content = Vec::new();
            reader.read_all(MAX_SLICE, &mut content).map_err(corrupt)?;
            if header.end.since(header.facts.start) != content.len() as u64 {
                return Err(RepoError::corrupt(&key, "its content is not as long as its header says"));
            }
            Ok((header, content))
        });
        opened.await?.map(Some)
    }

    /// The beginning of a segment, put together from its slices while it is read, up to the first position that none continues; `None` if
    /// it has none from its first byte on: a slice that nothing continues up to was never acknowledged. Where one contradicts those before
    /// it, or is damaged, and others do not hold the same, it ends there, and what comes before that is sound.
    pub(super) async fn assemble(&self, segment: SegmentName) -> Result<Option<AssembledSegment>> {
        let size = self.lineage().segment_size;
        let Some(number) = segment.number(size) else { return Ok(None) };
        let (start, mut names) = (number.start(size), self.slices(segment).await?);
        let begins = |names: &[SliceName]| names.first().is_some_and(|first| first.start == start);
        if !names.is_empty() && !begins(&names) {
            // A listing is no snapshot: the first ones may have been replaced.
            names = self.slices(segment).await?;
        }
        Ok(begins(&names).then(|| AssembledSegment::new(self, segment, start, names)))
    }

    /// What the slices of a segment hold before a position, written out piece by piece; `None` if it has none from its first byte on, also
    /// if they were deleted meanwhile because it is whole.
    pub(super) async fn write_slices<W: Write + Send + 'static>(
        &self,
        segment: SegmentName,
        limit: Lsn,
        writer: impl FnOnce() -> W + Send,
    ) -> Result<Option<(W, SlicedBeginning)>> {
        let Some(assembled) = self.assemble(segment).await? else { return Ok(None) };
        match assembled.write_until(limit, writer()).boxed().await {
            Err(RepoError::Unavailable { .. }) if self.needs_no_slices(segment).await? => Ok(None),
            written => written.map(Some),
        }
    }

    /// Whether a segment is stored as a whole by now, so that its slices are being deleted, or none is left.
    async fn needs_no_slices(&self, segment: SegmentName) -> Result<bool> {
        let whole = self.store().head(&self.paths().segment(segment)).await?;
        Ok(whole.is_some() || self.slices(segment).await?.is_empty())
    }

    /// What the slices of a segment hold before a position, with its content hash, read piece by piece; `None` if it has none from its
    /// first byte on, also if they were deleted meanwhile because it is whole.
    pub async fn sliced_beginning(
        &self,
        segment: SegmentName,
        limit: Lsn,
    ) -> Result<Option<(SlicedBeginning, ContentHash)>> {
        let written = self.write_slices(segment, limit, || self.content_hasher()).await?;
        Ok(written.map(|(hasher, beginning)| (beginning, ContentHash(*hasher.finalize().as_bytes()))))
    }

    /// Deletes slices that another one, `merged`, is to take the place of, if that is there as it was sent: behind what has that hash, with
    /// that content. Whether it is; nothing was deleted otherwise.
    pub async fn replace_slices(
        &self,
        segment: SegmentName,
        merged: SliceName,
        (before, content): (&ContentHash, &Bytes),
        replaced: &[SliceName],
    ) -> Result<bool> {
        let within =
            |name: &&SliceName| merged.start <= name.start && name.end <= merged.end && **name != merged;
        let replaced: Vec<SliceName> = replaced.iter().filter(within).copied().collect();
        let stored = self.slice(segment, merged).await?;
        let is_there = stored.is_some_and(|(header, stored)| {
            header.facts.before == *before && stored.as_slice() == content.as_ref()
        });
        if is_there {
            self.delete_slices(segment, &replaced).await?;
        }
        Ok(is_there)
    }

    /// Deletes slices of a segment, which the whole one, or another slice, is proven to hold.
    pub fn delete_slices(&self, segment: SegmentName, names: &[SliceName]) -> BoxFuture<'static, Result<()>> {
        let keys: Vec<Key> = names.iter().map(|name| self.slice_key(segment, *name)).collect();
        let store = self.store().clone();
        async move { store.delete_all(&keys).await.into_iter().collect() }.boxed()
    }

    /// Hashes the beginning of a segment, as slices name what comes before them, and the whole segment as its header does.
    pub fn content_hasher(&self) -> blake3::Hasher {
        self.sealer().content_hasher()
    }
}

#[cfg(test)]
mod tests;
