//! Reading frames out of packs: ranged requests, as few as the frames' places allow, each checked by the directory that
//! the pack itself carries.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::OnceCell;
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::Key;
use walpoint_storage::object::{Codec, OBJECT_HEADER, ObjectHeader, ObjectKeys, ObjectKind, open_frame};

use super::super::catalog::Backups;
use super::super::location::{BackupRef, FrameRef, PackNo};
use super::super::manifest::Manifest;
use super::super::pack::{FrameKind, PackDirectory, PackFrame};

/// What is read of a pack to see its directory: enough for most.
const FRONT: u64 = 64 << 10;
/// The same of a small one.
const SMALL_FRONT: u64 = 4 << 10;
/// The longest frame of a directory: what a pack of 16,384 frames can have, and room.
const MAX_FRONT: u64 = 2 << 20;
/// Directories held: each of up to 400 kB, mostly less than a tenth of it. What many backups wrote is in as many packs.
const HELD: usize = 32;
/// Frames that lie closer are read with one request: what lies between costs less than another request.
const GAP: u64 = 256 << 10;
/// The most bytes of one request.
const LONGEST_REQUEST: u64 = 4 << 20;
/// Memory that is kept for the next requests: what is held of them while they are worked on.
const KEPT: usize = 8 << 20;
/// Requests at the same time for one unit, and portions of tables.
const AT_ONCE: usize = 4;
/// Table frames that are read together.
const PORTION: usize = 64;

/// A pack of which the front was read.
#[derive(Debug)]
pub(in crate::backup) struct OpenPack {
    pub(super) key: Key,
    pub(super) keys: ObjectKeys,
    pub(in crate::backup) directory: PackDirectory,
}

impl OpenPack {
    /// Reads the front of a pack. `bytes` may be cut anywhere behind the directory; `None` if it is cut before: the
    /// number of bytes needed is given.
    fn parse(backups: &Backups, key: &Key, bytes: &[u8], size: u64) -> Result<Result<Self, u64>> {
        let corrupt = |what: &dyn std::fmt::Display| RepoError::corrupt(key, what);
        let (header, keys) = ObjectHeader::parse(backups.sealer(), key, bytes).map_err(|e| corrupt(&e))?;
        if header.kind != ObjectKind::Pack || header.object_len != size {
            return Err(corrupt(&"it is not the pack that the manifest names"));
        }
        let front = OBJECT_HEADER as u64 + u64::from(header.meta_len);
        if front > MAX_FRONT {
            return Err(corrupt(&"its directory is too long"));
        }
        if (bytes.len() as u64) < front {
            return Ok(Err(front));
        }
        let mut meta = Vec::new();
        let frame = bytes.get(OBJECT_HEADER..).unwrap_or_default();
        open_frame(&keys, 0, frame, &mut Codec::for_opening(), &mut meta).map_err(|e| corrupt(&e))?;
        let directory = PackDirectory::decode(&meta, &header).map_err(|e| corrupt(&e))?.without_hashes();
        Ok(Ok(Self { key: key.clone(), keys, directory }))
    }

    /// Reads the front of a pack that has `size` bytes.
    pub(in crate::backup) async fn read(backups: &Backups, key: &Key, size: u32) -> Result<Arc<Self>> {
        Self::read_front(backups, key, u64::from(size), FRONT).await
    }

    /// The same, of which so many bytes are read first.
    async fn read_front(backups: &Backups, key: &Key, size: u64, front: u64) -> Result<Arc<Self>> {
        let front = backups.store().get_range(key, 0..front).await?;
        if front.size != size {
            let is = front.size;
            return Err(RepoError::corrupt(key, format!("it has {is} bytes, the manifest says {size}")));
        }
        let pack = match Self::parse(backups, key, &front.bytes, size)? {
            Ok(pack) => pack,
            Err(needs) => {
                let front = backups.store().get_range(key, 0..needs).await?.bytes;
                let pack = Self::parse(backups, key, &front, size)?;
                pack.map_err(|_| RepoError::corrupt(key, "it ends within its directory"))?
            }
        };
        Ok(Arc::new(pack))
    }

    /// The directory's row for a frame that should be of that kind.
    pub(in crate::backup) fn frame(&self, index: u16, kind: FrameKind) -> Result<&PackFrame> {
        let frame = self.directory.frame(index).filter(|frame| frame.kind == kind);
        frame.ok_or_else(|| RepoError::corrupt(&self.key, format!("it has no {kind:?} frame {index}")))
    }

    /// Opens a frame that `bytes` starts with.
    pub(in crate::backup) fn open(
        &self,
        index: u16,
        bytes: &[u8],
        codec: &mut Codec,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let opened = open_frame(&self.keys, u32::from(index), bytes, codec, out);
        opened.map(drop).map_err(|e| RepoError::corrupt(&self.key, e))
    }
}

impl Backups {
    /// Reads the frames of a pack of `size` bytes that were not read before, and the one that ends it, which no directory names.
    pub(crate) async fn read_rest(&self, key: &Key, size: u32, was_read: impl Fn(u16) -> bool) -> Result<()> {
        let size = u64::from(size);
        // In proportion, so that little is read twice of a small one.
        let pack = OpenPack::read_front(self, key, size, FRONT.min((size / 256).max(SMALL_FRONT))).await?;
        let frames = pack.directory.frames();
        let corrupt = |what: &dyn std::fmt::Display| RepoError::corrupt(key, what);
        let (mut rest, mut begin) = (Vec::new(), 0);
        for (index, frame) in (1u16..).zip(frames) {
            let range = pack.directory.range(frame);
            begin = range.end;
            if !was_read(index) {
                rest.push((index, range));
            }
        }
        let end = u16::try_from(frames.len() + 1).map_err(|e| corrupt(&e))?;
        if begin >= size || frames.is_empty() {
            return Err(corrupt(&"no frame ends it"));
        }
        rest.push((end, begin..size));
        let (mut codec, mut plain) = (Codec::for_opening(), Vec::new());
        for joined in joined(rest.iter().map(|(_, range)| range.clone())) {
            let bytes = self.store().get_range(key, joined.clone()).await?.bytes;
            let ranges = PackRanges(vec![(joined.start, bytes)]);
            let inside = |range: &Range<u64>| joined.start <= range.start && range.end <= joined.end;
            for (index, range) in rest.iter().filter(|(_, range)| inside(range)) {
                let bytes =
                    ranges.get(range).ok_or_else(|| corrupt(&format!("it ends before frame {index}")))?;
                plain.clear();
                let frame = open_frame(&pack.keys, u32::from(*index), bytes, &mut codec, &mut plain);
                let frame = frame.map_err(|e| corrupt(&e))?;
                if frame.last != (*index == end) || frame.length != bytes.len() {
                    return Err(corrupt(&format!("frame {index} is not what its directory says")));
                }
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct PackRanges(Vec<(u64, Bytes)>);

impl PackRanges {
    /// The bytes of a range that was asked for.
    pub(super) fn get(&self, range: &Range<u64>) -> Option<&[u8]> {
        let after = self.0.partition_point(|(start, _)| *start <= range.start);
        let (start, bytes) = self.0.get(after.checked_sub(1)?)?;
        let begin = usize::try_from(range.start - start).ok()?;
        let end = usize::try_from(range.end - start).ok()?;
        bytes.get(begin..end)
    }
}

/// What is read to have some ranges, which are in order.
pub(super) fn joined(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last)
                if range.start <= last.end.saturating_add(GAP)
                    && range.end.saturating_sub(last.start) <= LONGEST_REQUEST =>
            {
                last.end = last.end.max(range.end);
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// Which pack, and its front once somebody has read it: others who want it meanwhile wait for that.
type Named = ((BackupRef, PackNo), Arc<OnceCell<Arc<OpenPack>>>);

/// Table frames of one pack.
struct Portion {
    pack: Arc<OpenPack>,
    /// The place of each in the order in which they are wanted, its number and where it is.
    rows: Vec<(usize, u16, Range<u64>)>,
    ranges: PackRanges,
}

/// Reads from the packs of one manifest.
#[derive(Debug)]
pub(super) struct Packs {
    backups: Backups,
    manifest: Arc<Manifest>,
    /// The most recently used ones, latest last.
    open: Mutex<Vec<Named>>,
}

impl Packs {
    pub(super) fn new(backups: &Backups, manifest: &Arc<Manifest>) -> Self {
        Self {
            backups: backups.keeping_buffers(KEPT),
            manifest: Arc::clone(manifest),
            open: Mutex::default(),
        }
    }

    /// Whether they are in a directory of this machine.
    pub(super) fn is_local(&self) -> bool {
        self.backups.store().is_local()
    }

    fn key(&self, at: FrameRef) -> Result<(Key, u32)> {
        let manifest_key = || self.backups.paths().manifest(self.manifest.summary.id);
        let id = self.manifest.backups.get(usize::from(at.backup.0));
        let pack = self.manifest.packs.get(at);
        let (Some(id), Some(pack)) = (id, pack) else {
            let what = format!(
                "it refers to pack {} of a backup, which its table of packs does not list",
                at.pack.0
            );
            return Err(RepoError::corrupt(&manifest_key(), what));
        };
        Ok((self.backups.paths().pack(*id, at.pack.0), pack.size))
    }

    /// The front of the pack that holds a frame.
    pub(super) async fn open(&self, at: FrameRef) -> Result<Arc<OpenPack>> {
        let cell = self.cell((at.backup, at.pack));
        cell.get_or_try_init(|| self.read_front(at)).await.cloned()
    }

    /// Makes it the most recently used one.
    fn cell(&self, name: (BackupRef, PackNo)) -> Arc<OnceCell<Arc<OpenPack>>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let named = match open.iter().position(|(held, _)| *held == name) {
            Some(at) => open.remove(at),
            None => (name, Arc::default()),
        };
        if open.len() >= HELD {
            open.remove(0);
        }
        let cell = Arc::clone(&named.1);
        open.push(named);
        cell
    }

    async fn read_front(&self, at: FrameRef) -> Result<Arc<OpenPack>> {
        let (key, size) = self.key(at)?;
        OpenPack::read(&self.backups, &key, size).await
    }

    /// Reads some ranges of a pack, in order; those that lie close together with one request.
    pub(super) async fn fetch(&self, pack: &OpenPack, ranges: &[Range<u64>]) -> Result<PackRanges> {
        let joined = joined(ranges.iter().cloned());
        let get = |range: Range<u64>| async move {
            let start = range.start;
            Ok::<_, RepoError>((start, self.backups.store().get_range(&pack.key, range).await?.bytes))
        };
        let fetched = futures_util::stream::iter(joined).map(get).buffered(AT_ONCE);
        Ok(PackRanges(fetched.try_collect().await?))
    }

    /// Reads table frames of one kind, and gives the plain content of each to `take` with its place in `frames`. They are
    /// read in the order in which they lie in packs, not that of `frames`.
    pub(super) async fn tables(
        &self,
        kind: FrameKind,
        frames: &[FrameRef],
        mut take: impl FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut order: Vec<usize> = (0..frames.len()).collect();
        order.sort_by_key(|&n| frames.get(n));
        let at = |n: &usize| frames.get(*n).copied();
        let same_pack =
            |a: &usize, b: &usize| at(a).map(|f| (f.backup, f.pack)) == at(b).map(|f| (f.backup, f.pack));
        let mut reads = Vec::new();
        // In portions, so that what is held does not grow with what is asked for.
        for portion in order.chunk_by(same_pack).flat_map(|together| together.chunks(PORTION)) {
            let frames: Vec<_> = portion.iter().filter_map(|n| Some((*n, at(n)?))).collect();
            reads.push(self.portion(kind, frames));
        }
        let mut reads = futures_util::stream::iter(reads).buffered(AT_ONCE);
        let mut plain = Vec::new();
        while let Some(portion) = reads.try_next().await? {
            let Some(Portion { pack, rows, ranges }) = portion else { continue };
            for (n, index, range) in rows {
                let cut = || RepoError::corrupt(&pack.key, "it is shorter than its directory says");
                let bytes = ranges.get(&range).ok_or_else(cut)?;
                plain.clear();
                pack.open(index, bytes, &mut Codec::for_opening(), &mut plain)?;
                take(n, &plain)?;
            }
        }
        Ok(())
    }

    /// Reads table frames of one pack, each with its place in the order in which they are wanted; `None` for none.
    async fn portion(&self, kind: FrameKind, frames: Vec<(usize, FrameRef)>) -> Result<Option<Portion>> {
        let Some((_, first)) = frames.first() else { return Ok(None) };
        let pack = self.open(*first).await?;
        let mut rows = Vec::with_capacity(frames.len());
        for (n, at) in frames {
            rows.push((n, at.frame, pack.directory.range(pack.frame(at.frame, kind)?)));
        }
        let ranges: Vec<_> = rows.iter().map(|(_, _, range)| range.clone()).collect();
        let ranges = self.fetch(&pack, &ranges).await?;
        Ok(Some(Portion { pack, rows, ranges }))
    }
}
