//! Units: what is to be read of a part of one pack for one window, and how it is spread over files.
//!
//! A unit reaches over at most [`SPAN`] frames, so that little memory is enough to have several on their way, and every
//! store is asked for megabytes at a time.

use std::ops::Range;
use std::sync::Arc;

use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::object::Codec;

use super::super::frame::{DataFrame, MAX_FRAME};
use super::super::geometry::BlockSize;
use super::super::location::{BackupRef, BlockRef, FrameRef, PackNo};
use super::super::manifest::Manifest;
use super::super::pack::FrameKind;
use super::BackupReader;
use super::packs::{OpenPack, PackRanges, joined};
use super::window::{Listed, ReadWindow};

/// Frames from the first to the last of a unit: at most 8 MiB, mostly a third of that after compression.
const SPAN: u16 = 64;

/// Packs of a window whose directories are read ahead: half of what is held.
const OPENED_AHEAD: usize = 16;

/// Bytes of a data frame with header and check.
const LONGEST_FRAME: u64 = 132 << 10;

/// Consecutive blocks of a frame that are consecutive in a file. Small, as there is one for each block of a file that
/// many backups wrote.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameExtent {
    /// The first one.
    pub(super) at: BlockRef,
    /// How many.
    pub(super) blocks: u8,
    /// Which of the window's lists describes them.
    pub(super) list: u32,
    /// Which block of the list is the first one.
    pub(super) first: u16,
    /// Which of the list's hashes is the first one's.
    pub(super) hash: u16,
}

/// What to read of a part of one pack for one window.
#[derive(Debug)]
pub struct PackUnit {
    /// Its first frame.
    pack: FrameRef,
    /// The most bytes of the pack that are read.
    size: u64,
    bytes: u64,
    /// In the order of frames.
    extents: Vec<FrameExtent>,
    lists: Arc<Vec<Listed>>,
    block_size: BlockSize,
}

/// Blocks of one file, read and checked.
#[derive(Clone, Copy, Debug)]
pub struct FilePiece<'a> {
    /// Which part of the window.
    pub part: usize,
    /// Where in its file, in bytes.
    pub offset: u64,
    /// What belongs there: up to 128 KiB.
    pub bytes: &'a [u8],
}

/// The bytes of a unit as they came from the store.
#[derive(Debug)]
pub struct FetchedUnit {
    pack: Arc<OpenPack>,
    ranges: PackRanges,
}

/// Sorts extents into units.
pub(super) fn group(
    mut extents: Vec<FrameExtent>,
    lists: &Arc<Vec<Listed>>,
    manifest: &Manifest,
    block_size: BlockSize,
) -> Vec<PackUnit> {
    extents.sort_unstable_by_key(|extent| (extent.at, extent.list));
    let mut units: Vec<PackUnit> = Vec::new();
    for extent in extents {
        let frame = extent.at.frame;
        let same = |unit: &&mut PackUnit| {
            (unit.pack.backup, unit.pack.pack) == (frame.backup, frame.pack)
                && frame.frame.saturating_sub(unit.pack.frame) < SPAN
        };
        let bytes = u64::from(extent.blocks) * block_size.bytes();
        match units.last_mut().filter(same) {
            Some(unit) => {
                unit.bytes += bytes;
                unit.extents.push(extent);
            }
            None => {
                let (lists, extents) = (Arc::clone(lists), vec![extent]);
                units.push(PackUnit { pack: frame, size: 0, bytes, extents, lists, block_size });
            }
        }
    }
    for unit in &mut units {
        let last = unit.extents.last().map_or(0, |extent| extent.at.frame.frame);
        let frames = u64::from(last.saturating_sub(unit.pack.frame)) + 1;
        let size = manifest.packs.get(unit.pack).map_or(0, |pack| u64::from(pack.size));
        unit.size = size.min(frames * LONGEST_FRAME);
    }
    units
}

impl PackUnit {
    /// The most bytes that fetching it holds: to limit how many units are in flight.
    pub fn fetch_bytes(&self) -> u64 {
        self.size
    }

    /// The most bytes of files that it delivers: for progress.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The backup, as an index into the manifest's list, and the number of the pack.
    pub fn pack(&self) -> (BackupRef, PackNo) {
        (self.pack.backup, self.pack.pack)
    }
}

/// A unit whose pack's directory was read.
#[derive(Debug)]
pub struct OpenUnit {
    pack: Arc<OpenPack>,
    ranges: Vec<Range<u64>>,
}

impl OpenUnit {
    /// The bytes that fetching it holds: at most [`PackUnit::fetch_bytes`], mostly a third of that.
    pub fn bytes(&self) -> u64 {
        joined(self.ranges.iter().cloned()).iter().map(|range| range.end - range.start).sum()
    }
}

impl BackupReader {
    /// Reads the directory of a unit's pack, and finds what has to be read of it.
    pub async fn open_unit(&self, unit: &PackUnit) -> Result<OpenUnit> {
        let pack = self.packs.open(unit.pack).await?;
        let mut ranges = Vec::new();
        for same_frame in unit.extents.chunk_by(|a, b| a.at.frame == b.at.frame) {
            let Some(first) = same_frame.first() else { continue };
            let frame = pack.frame(first.at.frame.frame, FrameKind::Data)?;
            ranges.push(pack.directory.range(frame));
        }
        Ok(OpenUnit { pack, ranges })
    }

    /// Gets what a unit needs: its frames, those that lie close together with one request.
    pub async fn fetch_opened(&self, unit: OpenUnit) -> Result<FetchedUnit> {
        let OpenUnit { pack, ranges } = unit;
        let ranges = self.packs.fetch(&pack, &ranges).await?;
        Ok(FetchedUnit { pack, ranges })
    }

    /// Both: [`Self::open_unit`] and [`Self::fetch_opened`].
    pub async fn fetch(&self, unit: &PackUnit) -> Result<FetchedUnit> {
        self.fetch_opened(self.open_unit(unit).await?).await
    }

    /// Whether the backup is in a directory of this machine: requests are answered at once then.
    pub fn is_local(&self) -> bool {
        self.packs.is_local()
    }

    /// Reads the directories of the packs that a window needs, where they are few, so that its units need not wait for them.
    /// What cannot be read is left to the fetch.
    pub async fn open_packs(&self, window: &ReadWindow) {
        let mut packs: Vec<FrameRef> = window.packs();
        packs.truncate(OPENED_AHEAD);
        let open = packs.into_iter().map(|at| async move { drop(self.packs.open(at).await) });
        futures_util::future::join_all(open).await;
    }

    /// Opens each frame of a unit once, checks every block by its hash and length, and hands the blocks to `place` in the
    /// order in which they lie in the pack. Computes: run it where blocking is allowed. An error of `place` ends it.
    pub fn scatter<E: From<RepoError>>(
        &self,
        unit: &PackUnit,
        fetched: &FetchedUnit,
        mut place: impl FnMut(FilePiece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (pack, mut codec) = (&fetched.pack, Codec::for_opening());
        let mut plain = Vec::with_capacity(MAX_FRAME);
        for same_frame in unit.extents.chunk_by(|a, b| a.at.frame == b.at.frame) {
            let Some(first) = same_frame.first() else { continue };
            let index = first.at.frame.frame;
            let corrupt = |what: String| RepoError::corrupt(&pack.key, what);
            let range = pack.directory.range(pack.frame(index, FrameKind::Data)?);
            let bytes = fetched.ranges.get(&range);
            let bytes = bytes.ok_or_else(|| corrupt(format!("it ends before frame {index}")))?;
            plain.clear();
            pack.open(index, bytes, &mut codec, &mut plain)?;
            let frame = DataFrame::parse(&plain, unit.block_size).map_err(|e| corrupt(e.to_string()))?;
            for extent in same_frame {
                let piece = self.check(unit, extent, &frame).map_err(|what| {
                    let id = self.manifest.summary.id;
                    corrupt(format!(
                        "in frame {index}, {what}; the manifest of {id} and the pack do not agree"
                    ))
                })?;
                place(piece)?;
            }
        }
        Ok(())
    }

    /// The bytes of an extent, if each of its blocks is the one that is meant.
    fn check<'f>(
        &self,
        unit: &PackUnit,
        extent: &FrameExtent,
        frame: &DataFrame<'f>,
    ) -> Result<FilePiece<'f>, String> {
        let list = usize::try_from(extent.list).ok().and_then(|at| unit.lists.get(at));
        let list = list.ok_or_else(|| "an extent is of no list".to_owned())?;
        let (blocks, hash) = (usize::from(extent.blocks), usize::from(extent.hash));
        let hashes = list.blocks.hashes().get(hash..hash + blocks).unwrap_or_default();
        let first = list.first + u64::from(extent.first);
        for ((hash, number), index) in hashes.iter().zip(first..).zip(extent.at.index..) {
            let block = frame.block(index).ok_or_else(|| format!("there is no block {index}"))?;
            if block.len() != unit.block_size.block_len(list.length, number) {
                return Err(format!("block {index} has another length"));
            }
            if self.hashing.block(block) != *hash {
                return Err(format!("block {index} has another content"));
            }
        }
        // As many as were checked, whatever the extent says.
        let bytes = frame.blocks(extent.at.index, hashes.len());
        let bytes = bytes.ok_or_else(|| "there are too few blocks".to_owned())?;
        Ok(FilePiece { part: list.part, offset: first * unit.block_size.bytes(), bytes })
    }
}
