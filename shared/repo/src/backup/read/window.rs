//! Windows: consecutive ranges of the file table whose blocks are read together, pack by pack.
//!
//! Blocks of a file can be in any pack, and a pack's blocks in any file. Within a window every pack is read once; the
//! window bounds what has to be remembered meanwhile, whatever the size of the cluster.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use walpoint_storage::error::{RepoError, Result};

use super::super::blocks::{BlockList, BlockLocation, decode_leaf};
use super::super::entry::{Blocks, EntryContent, FileContent, FileEntry, LeafRun, NodeRef};
use super::super::geometry::LEAF_BLOCKS;
use super::super::index_block::decode_node;
use super::super::location::{BlockRef, FrameRef};
use super::super::manifest::Manifest;
use super::super::pack::FrameKind;
use super::super::wire::Malformed;
use super::unit::{FrameExtent, PackUnit, group};
use super::{BackupReader, Entries};

/// How much of a backup is one window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WindowLimits {
    /// Blocks that are not in whole leaves of zeros: about 12 bytes of memory each, up to 60 where they are scattered. Packs
    /// that the blocks of several windows are in are read for each of them.
    pub blocks: u32,
    /// Entries: about 300 bytes of memory each.
    pub entries: usize,
}

impl Default for WindowLimits {
    fn default() -> Self {
        Self { blocks: 1 << 19, entries: 1 << 13 }
    }
}

/// A range of a file that is all zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZeroRun {
    /// Which part of the window.
    pub part: usize,
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// A file or a part of one, a directory, or a link, within a window.
#[derive(Clone, Debug)]
pub struct WindowPart {
    /// The entry.
    pub entry: Arc<FileEntry>,
    /// Whether the window holds its beginning: the time to create it.
    pub begins: bool,
    /// Whether the window holds its end: after the window all its content is there.
    pub ends: bool,
    /// The bytes of the file that the window holds; empty for all else.
    pub range: Range<u64>,
}

/// Some entries and where their blocks are.
#[derive(Debug)]
pub struct ReadWindow {
    parts: Vec<WindowPart>,
    lists: Arc<Vec<Listed>>,
    manifest: Arc<Manifest>,
    block_size: super::super::geometry::BlockSize,
}

/// The blocks of a part, or of a leaf of one.
#[derive(Debug)]
pub(super) struct Listed {
    /// Which part of the window.
    pub(super) part: usize,
    /// The length of its file.
    pub(super) length: u64,
    /// The first block's number in its file.
    pub(super) first: u64,
    pub(super) blocks: BlockList,
}

impl ReadWindow {
    /// A window of one file whose blocks are listed in its entry; `None` of everything else.
    pub(super) fn of_short_file(reader: &BackupReader, mut entry: FileEntry) -> Option<(Self, u64)> {
        let EntryContent::File(FileContent { length, blocks: Blocks::Inline(list), .. }) = &mut entry.content
        else {
            return None;
        };
        let (length, blocks) = (*length, std::mem::take(list));
        let lists = match blocks.len() {
            0 => Vec::new(),
            _ => vec![Listed { part: 0, length, first: 0, blocks }],
        };
        let parts = vec![WindowPart { entry: Arc::new(entry), begins: true, ends: true, range: 0..length }];
        let (manifest, block_size) = (Arc::clone(&reader.manifest), reader.block_size);
        Some((Self { parts, lists: Arc::new(lists), manifest, block_size }, length))
    }

    /// The entries, in the order of paths. A file that is longer than a window is a part of several of them.
    pub fn parts(&self) -> &[WindowPart] {
        &self.parts
    }

    /// A frame in each of the packs that it needs.
    pub(super) fn packs(&self) -> Vec<FrameRef> {
        let runs = self.lists.iter().flat_map(|listed| listed.blocks.runs());
        let frames = runs.filter_map(|(run, _)| match run.place {
            BlockLocation::At(at) => Some(at.frame),
            _ => None,
        });
        let mut packs = BTreeMap::new();
        for frame in frames {
            packs.entry((frame.backup, frame.pack)).or_insert(frame);
        }
        packs.into_values().collect()
    }

    /// What to read for this window, pack by pack in the order of backups and numbers.
    pub fn units(&self) -> Vec<PackUnit> {
        self.units_of(|_, _, _| true)
    }

    /// The same for those blocks only for which `wanted` says so: given are the part's number, the block's number in its
    /// file, and its hash. For a restore over files of which most is right already. What is not stored (zeros) is not
    /// asked about: see [`Self::zero_runs`].
    pub fn units_of(&self, mut wanted: impl FnMut(usize, u64, u64) -> bool) -> Vec<PackUnit> {
        self.units_where(|part, number, hash, _| wanted(part, number, hash))
    }

    /// The same, where `wanted` is also told where the block is.
    pub fn units_where(&self, mut wanted: impl FnMut(usize, u64, u64, BlockRef) -> bool) -> Vec<PackUnit> {
        let mut extents: Vec<FrameExtent> = Vec::new();
        for (listed, list) in self.lists.iter().zip(0u32..) {
            let (mut first, mut hash) = (0u16, 0u16);
            for (run, hashes) in listed.blocks.runs() {
                let BlockLocation::At(at) = run.place else {
                    first += run.blocks;
                    continue;
                };
                // The part of the run that is being taken, if the last block was wanted.
                let mut open: Option<FrameExtent> = None;
                for (block_hash, index) in hashes.iter().zip(at.index..) {
                    let at = BlockRef { index, ..at };
                    if wanted(listed.part, listed.first + u64::from(first), *block_hash, at) {
                        open.get_or_insert(FrameExtent { at, blocks: 0, list, first, hash }).blocks += 1;
                    } else {
                        extents.extend(open.take());
                    }
                    first += 1;
                    hash += 1;
                }
                extents.extend(open);
            }
        }
        group(extents, &self.lists, &self.manifest, self.block_size)
    }

    /// Ranges of this window's files that are all zero. Whole leaves of zeros are not among them: of a part's range, what
    /// neither a unit delivers nor this names is zero as well.
    pub fn zero_runs(&self) -> impl Iterator<Item = ZeroRun> + '_ {
        self.lists.iter().flat_map(move |listed| {
            let mut block = listed.first;
            listed.blocks.runs().filter_map(move |(run, _)| {
                let start = block;
                block += u64::from(run.blocks);
                let (offset, end) = (start * self.block_size.bytes(), block * self.block_size.bytes());
                let length = end.min(listed.length).saturating_sub(offset);
                (run.place == BlockLocation::Zero).then_some(ZeroRun { part: listed.part, offset, length })
            })
        })
    }
}

/// Hands out a backup's windows, one after the other.
#[derive(Debug)]
pub struct Windows {
    reader: BackupReader,
    entries: Entries,
    limits: WindowLimits,
    /// A file whose leaves are not all handed out.
    open: Option<OpenFile>,
}

#[derive(Debug)]
struct OpenFile {
    entry: Arc<FileEntry>,
    length: u64,
    /// Nodes that were not read, last one first.
    nodes: Vec<NodeRef>,
    /// Runs that were not handed out, last one first.
    runs: Vec<LeafRun>,
    /// The number of the next leaf.
    leaf: u64,
    begun: bool,
}

/// A window whose block lists are not all read yet: what comes before and after it is known, so that the lists of several can
/// be read at the same time.
#[derive(Debug)]
pub struct Outline {
    reader: BackupReader,
    parts: Vec<WindowPart>,
    lists: Vec<Listed>,
    leaves: Vec<Wanted>,
}

/// A leaf to be read for a window.
#[derive(Debug)]
struct Wanted {
    at: FrameRef,
    part: usize,
    length: u64,
    first: u64,
    blocks: u32,
}

impl Windows {
    pub(super) fn new(reader: &BackupReader, limits: WindowLimits) -> Self {
        Self { entries: reader.entries(), reader: reader.clone(), limits, open: None }
    }

    /// The next window; `None` after the last one.
    pub async fn next(&mut self) -> Result<Option<ReadWindow>> {
        match self.outline().await? {
            Some(outline) => outline.read().await.map(Some),
            None => Ok(None),
        }
    }

    /// The next window without its block lists, which [`Outline::read`] adds; `None` after the last one.
    pub async fn outline(&mut self) -> Result<Option<Outline>> {
        let (mut leaves, mut lists): (Vec<Wanted>, Vec<Listed>) = Default::default();
        let mut parts = Vec::new();
        let mut blocks = 0u32;
        while blocks < self.limits.blocks && parts.len() < self.limits.entries.max(1) {
            let Some(mut file) = self.open.take() else {
                let Some(entry) = self.entries.next().await? else { break };
                blocks = blocks.saturating_add(self.begin(entry, &mut parts, &mut lists));
                continue;
            };
            let part = parts.len();
            let begins = !file.begun;
            let start = file.leaf;
            file.begun = true;
            while blocks < self.limits.blocks
                && let Some(run) = self.next_run(&mut file).await?
            {
                blocks = blocks.saturating_add(self.take_run(&mut file, run, part, &mut leaves));
            }
            let ends = file.runs.is_empty() && file.nodes.is_empty();
            let offset =
                |leaf: u64| leaf.saturating_mul(self.reader.block_size.leaf_bytes()).min(file.length);
            let range = offset(start)..offset(file.leaf);
            parts.push(WindowPart { entry: Arc::clone(&file.entry), begins, ends, range });
            self.open = (!ends).then_some(file);
        }
        Ok((!parts.is_empty()).then(|| Outline { reader: self.reader.clone(), parts, lists, leaves }))
    }

    /// Takes an entry that fits at once; keeps one that has leaves. The number of blocks taken.
    fn begin(&mut self, mut entry: FileEntry, parts: &mut Vec<WindowPart>, lists: &mut Vec<Listed>) -> u32 {
        let (mut nodes, mut runs) = (Vec::new(), Vec::new());
        let mut inline = None;
        // The lists are moved out, so that what is handed out is small.
        let length = match &mut entry.content {
            EntryContent::File(FileContent { length, blocks, .. }) => {
                match std::mem::replace(blocks, Blocks::Inline(BlockList::default())) {
                    Blocks::Inline(list) => inline = Some(list),
                    Blocks::Leaves(leaves) => runs = leaves,
                    Blocks::Nodes(all) => nodes = all,
                }
                *length
            }
            _ => 0,
        };
        nodes.reverse();
        runs.reverse();
        let entry = Arc::new(entry);
        if !(nodes.is_empty() && runs.is_empty()) {
            self.open = Some(OpenFile { entry, length, nodes, runs, leaf: 0, begun: false });
            return 0;
        }
        let part = parts.len();
        parts.push(WindowPart { entry, begins: true, ends: true, range: 0..length });
        let blocks = inline.unwrap_or_default();
        let count = blocks.len();
        if count > 0 {
            lists.push(Listed { part, length, first: 0, blocks });
        }
        count
    }

    async fn next_run(&self, file: &mut OpenFile) -> Result<Option<LeafRun>> {
        while file.runs.is_empty() {
            let Some(node) = file.nodes.pop() else { return Ok(None) };
            let backups = &self.reader.manifest.backups;
            let take = |_: usize, plain: &[u8]| {
                let runs = decode_node(plain, backups, node.leaves);
                file.runs = runs.map_err(|e| self.reader.corrupt(&e))?;
                file.runs.reverse();
                Ok(())
            };
            self.reader.packs.tables(FrameKind::Node, &[node.at], take).await?;
        }
        Ok(file.runs.pop())
    }

    /// The number of blocks taken.
    fn take_run(&self, file: &mut OpenFile, run: LeafRun, part: usize, leaves: &mut Vec<Wanted>) -> u32 {
        let size = self.reader.block_size;
        let leaf = file.leaf;
        file.leaf += run.leaves();
        let LeafRun::Stored { at, .. } = run else { return 0 };
        let blocks = size.blocks(size.leaf_len(file.length, leaf));
        let blocks = u32::try_from(blocks).unwrap_or(LEAF_BLOCKS).min(LEAF_BLOCKS);
        let first = leaf * u64::from(LEAF_BLOCKS);
        leaves.push(Wanted { at, part, length: file.length, first, blocks });
        blocks
    }
}

impl Outline {
    /// Reads the block lists.
    pub async fn read(self) -> Result<ReadWindow> {
        let Self { reader, parts, mut lists, leaves } = self;
        let places: Vec<FrameRef> = leaves.iter().map(|leaf| leaf.at).collect();
        let backups = &reader.manifest.backups;
        let take = |n: usize, plain: &[u8]| {
            let leaf = leaves.get(n);
            let leaf = leaf.ok_or_else(|| RepoError::Internal("a leaf too many was read".to_owned()))?;
            let blocks =
                decode_leaf(plain, backups, leaf.blocks).map_err(|e: Malformed| reader.corrupt(&e))?;
            lists.push(Listed { part: leaf.part, length: leaf.length, first: leaf.first, blocks });
            Ok(())
        };
        reader.packs.tables(FrameKind::Leaf, &places, take).await?;
        let (manifest, block_size) = (Arc::clone(&reader.manifest), reader.block_size);
        Ok(ReadWindow { parts, lists: Arc::new(lists), manifest, block_size })
    }
}
