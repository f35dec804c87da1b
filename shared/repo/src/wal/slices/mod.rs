//! Slices: what is stored of a segment that its server is still writing, range by range, as the WAL stream brings it.
//!
//! | module | owns |
//! |---|---|
//! | [`header`] | what a slice says about itself |
//! | [`assembly`] | a segment's beginning, put together from slices |
//! | [`assembled`] | that beginning, read as a copy of the segment |
//!
//! What always holds: a slice never changes, and names by hash what comes before it in its segment. So slices of several sessions, of
//! two daemons or of two servers, are told apart by what they continue, and none is put behind bytes that it was not made for. Slices
//! are a further incomplete copy of their segment (`partials`), and mean nothing once the whole segment is stored.

pub mod assembled;
pub mod assembly;
pub mod header;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use walpoint_base::{Lsn, SegmentName};
use walpoint_storage::error::{RepoError, Result, found};
use walpoint_storage::layout::{Key, WalEntry};
use walpoint_storage::object::{ObjectError, ObjectKind, ObjectReader, ObjectWriter};
use walpoint_storage::store::{Creation, ListedObject};

pub use self::assembled::AssembledSegment;
pub use self::assembly::{Added, SliceAssembly};
pub use self::header::{SLICE_HEADER, SliceFacts, SliceHeader};
use super::WalArchive;
use super::partials::CopySurvey;
use super::prefix::{PrefixComparison, SegmentCopy};
use super::seal::failed;
use crate::cpu;

/// Bytes of a slice at most, so that a burst of WAL goes up in parallel.
pub const MAX_SLICE: usize = 8 << 20;

/// Slices that are fetched at the same time.
const AT_ONCE: usize = 8;

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
        self.store().create_once(&sealed.await??).await
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
        let assemble = move |archive: Self| async move { archive.assemble(segment).await }.boxed();
        let assembled = self.ask_all(assemble).await?.given.into_iter().flatten();
        let begun = assembled.filter(|assembled| !assembled.content().is_empty());
        Ok(begun.map(|assembled| assembled.end()).max())
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

    /// The beginning of a segment, put together from its slices up to the first position that none continues; `None` if it has none
    /// from its first byte on: a slice that nothing continues up to was never acknowledged. Where one contradicts those before it, or is
    /// damaged, and others do not hold the same, that is the fault of what was assembled, which is sound by itself. One that is gone since
    /// it was listed was deleted.
    pub async fn assemble(&self, segment: SegmentName) -> Result<Option<AssembledSegment>> {
        let size = self.lineage().segment_size;
        let Some(number) = segment.number(size) else { return Ok(None) };
        let (start, names) = (number.start(size), self.slices(segment).await?);
        if names.first().is_none_or(|name| name.start != start) {
            return Ok(None);
        }
        let mut assembly = SliceAssembly::new(start, self.sealer().content_hasher());
        let (mut contradiction, mut damaged): (_, Vec<(SliceName, RepoError)>) = (None, Vec::new());
        let read = |name: SliceName| async move { (name, self.slice(segment, name).await) };
        let mut slices = stream::iter(names.clone()).map(read).buffered(AT_ONCE);
        while let Some((name, slice)) = slices.next().await {
            let (header, content) = match slice {
                Ok(Some(slice)) => slice,
                Ok(None) => continue,
                Err(error @ RepoError::Corrupt { .. }) => {
                    damaged.push((name, error));
                    continue;
                }
                Err(error) => return Err(error),
            };
            match assembly.add(&header, &content) {
                Added::Continued | Added::Known => {}
                Added::Gap => break,
                Added::Contradicts => {
                    let what = "it contradicts the slices before it, so two servers wrote this segment";
                    contradiction = Some(RepoError::corrupt(&self.slice_key(segment, name), what));
                    break;
                }
            }
        }
        let end = assembly.end();
        let content = Bytes::from(assembly.into_content());
        let mut damaged = damaged.into_iter().filter(|(name, _)| name.start <= end && name.end > end);
        let fault = match (contradiction, damaged.next()) {
            (Some(contradiction), _) => (Some(contradiction), Vec::new()),
            (None, Some((_, damage))) => (Some(damage), continuing(&names, end)),
            (None, None) => (None, Vec::new()),
        };
        Ok(Some(AssembledSegment::new(content, (end, size), fault)))
    }

    /// Deletes slices of a segment, which the whole one is proven to hold.
    pub fn delete_slices(&self, segment: SegmentName, names: &[SliceName]) -> BoxFuture<'static, Result<()>> {
        let keys: Vec<Key> = names.iter().map(|name| self.slice_key(segment, *name)).collect();
        let store = self.store().clone();
        let deletions = stream::iter(keys).map(move |key| {
            let store = store.clone();
            async move { store.delete(&key).await }
        });
        deletions.buffer_unordered(AT_ONCE).try_collect::<()>().boxed()
    }

    /// Hashes the beginning of a segment, as slices name what comes before them, and the whole segment as its header does.
    pub fn content_hasher(&self) -> blake3::Hasher {
        self.sealer().content_hasher()
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

#[cfg(test)]
mod tests;
