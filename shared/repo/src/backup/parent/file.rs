//! What other backups have of one file, block by block beside the reading of it.
//!
//! Of each block at most two are known: the parent's, and what an unfinished backup stored. Lists are read leaf by leaf.

use walpoint_storage::error::Result;
use walpoint_storage::object::ContentHash;

use super::super::blocks::{BlockCursor, BlockList, decode_leaf};
use super::super::entry::{Blocks, FileContent, LeafRun, NodeRef};
use super::super::geometry::{BlockSize, LEAF_BLOCKS};
use super::super::index_block::decode_node;
use super::super::location::{BlockRef, FrameRef};
use super::super::pack::FrameKind;
use super::super::path::TablePath;
use super::{Cached, Parents};

/// What other backups have of one file. Its leaves are asked for in ascending order.
#[derive(Debug)]
pub(in crate::backup) struct KnownFile {
    path: TablePath,
    parent: Option<Leaves>,
}

/// The leaves of a file in a finished backup.
#[derive(Debug)]
pub(super) struct Leaves {
    length: u64,
    inline: Option<BlockList>,
    /// Those that were not read, last one first.
    nodes: Vec<NodeRef>,
    /// Those that were not handed out, last one first.
    runs: Vec<LeafRun>,
    /// The number of the next leaf.
    next: u64,
}

/// What other backups have of one leaf of a file.
#[derive(Default, Debug)]
pub(in crate::backup) struct KnownLeaf {
    parent: Option<Blocked>,
    unfinished: Option<Blocked>,
    /// Where the parent's list is, and the hash of what it describes.
    stored: Option<(FrameRef, ContentHash)>,
}

/// Blocks in order, and how long each is.
#[derive(Debug)]
struct Blocked {
    cursor: BlockCursor,
    size: BlockSize,
    bytes: u64,
    next: u64,
}

/// A block of another backup.
#[derive(Clone, Copy, Debug)]
pub(in crate::backup) struct KnownBlock {
    /// Where it is.
    pub(in crate::backup) at: BlockRef,
    pub(in crate::backup) hash: u64,
    /// How long it is.
    pub(in crate::backup) length: usize,
}

impl Leaves {
    pub(super) fn new(file: FileContent) -> Self {
        let FileContent { length, blocks, .. } = file;
        let (mut inline, mut runs, mut nodes) = (None, Vec::new(), Vec::new());
        match blocks {
            Blocks::Inline(list) => inline = Some(list),
            Blocks::Leaves(all) => runs = all,
            Blocks::Nodes(all) => nodes = all,
        }
        runs.reverse();
        nodes.reverse();
        Self { length, inline, nodes, runs, next: 0 }
    }

    /// The run that leaf `n` is in: `None` behind the last one. `count` is given every node that is read.
    fn run(&mut self, n: u64, parents: &Parents, mut count: impl FnMut(FrameRef)) -> Result<Option<LeafRun>> {
        loop {
            while let Some(run) = self.runs.last() {
                let end = self.next.saturating_add(run.leaves());
                if n < end {
                    return Ok(Some(*run));
                }
                self.next = end;
                self.runs.pop();
            }
            let Some(node) = self.nodes.pop() else { return Ok(None) };
            let Some(plain) = parents.frame(FrameKind::Node, node.at)? else { return Ok(None) };
            self.runs = parents.sound(decode_node(&plain, &parents.backups, node.leaves)).unwrap_or_default();
            self.runs.reverse();
            count(node.at);
        }
    }

    /// Whether all of the file is in packs that may be used. Gives every list to `list`, every table frame to `frame`.
    pub(super) fn every(
        mut self,
        parents: &Parents,
        mut list: impl FnMut(&BlockList) -> bool,
        mut frame: impl FnMut(FrameRef) -> bool,
    ) -> Result<bool> {
        if let Some(inline) = &self.inline {
            return Ok(list(inline));
        }
        let (mut n, mut all) = (0, true);
        let leaves = parents.block_size.leaves(self.length);
        while n < leaves && all {
            let run = self.run(n, parents, |node| all &= frame(node))?;
            let Some(run) = run else { return Ok(false) };
            if let LeafRun::Stored { at, .. } = run {
                let Some(blocks) = parents.leaf(at, self.length, n)? else { return Ok(false) };
                all &= frame(at) && list(&blocks);
                n += 1;
            } else {
                n = self.next.saturating_add(run.leaves());
            }
        }
        Ok(all)
    }
}

impl Parents {
    /// The list of a leaf of a file of that length; `None` if it cannot be had.
    fn leaf(&self, at: FrameRef, length: u64, n: u64) -> Result<Option<BlockList>> {
        let blocks = self.block_size.blocks(self.block_size.leaf_len(length, n));
        let blocks = u32::try_from(blocks).unwrap_or(LEAF_BLOCKS);
        let Some(plain) = self.frame(FrameKind::Leaf, at)? else { return Ok(None) };
        Ok(self.sound(decode_leaf(&plain, &self.backups, blocks)))
    }
}

impl KnownFile {
    pub(super) fn new(path: TablePath, parent: Option<FileContent>) -> Self {
        Self { path, parent: parent.map(Leaves::new) }
    }

    /// What is known of leaf `n`. To be asked in ascending order; leaves may be left out.
    pub(in crate::backup) fn leaf(
        &mut self,
        n: u64,
        parents: &Parents,
        cached: &mut Cached,
    ) -> Result<KnownLeaf> {
        let mut known = KnownLeaf::default();
        let size = parents.block_size;
        let blocked = |list, bytes| Blocked { cursor: BlockCursor::new(list), size, bytes, next: 0 };
        if let Some(file) = &mut self.parent {
            let bytes = size.leaf_len(file.length, n);
            if n == 0 && file.inline.is_some() {
                known.parent = file.inline.take().map(|list| blocked(list, bytes));
            } else if let Some(LeafRun::Stored { at, hash }) = file.run(n, parents, |_| ())? {
                known.parent = parents.leaf(at, file.length, n)?.map(|list| blocked(list, bytes));
                known.stored = Some((at, hash));
            }
        }
        if let (Some(ranges), Ok(leaf)) = (&parents.ranges, u32::try_from(n)) {
            let found = ranges.find(&self.path, leaf, &mut cached.chunk)?;
            known.unfinished = found.map(|range| {
                let bytes = range.length();
                blocked(range.blocks, bytes)
            });
        }
        Ok(known)
    }
}

impl Iterator for Blocked {
    type Item = Option<KnownBlock>;

    fn next(&mut self) -> Option<Self::Item> {
        let known = self.cursor.next()?;
        let length = self.size.block_len(self.bytes, self.next);
        self.next += 1;
        Some(known.map(|(at, hash)| KnownBlock { at, hash, length }))
    }
}

impl KnownLeaf {
    /// What is known of the leaf's next block: the parent's first.
    pub(in crate::backup) fn next(&mut self) -> [Option<KnownBlock>; 2] {
        let next = |blocked: &mut Option<Blocked>| blocked.as_mut().and_then(Iterator::next).flatten();
        [next(&mut self.parent), next(&mut self.unfinished)]
    }

    /// Where the parent has this very list of these very bytes.
    pub(in crate::backup) fn same(&self, list: &BlockList, hash: ContentHash) -> Option<FrameRef> {
        let parent = self.parent.as_ref()?;
        self.stored.filter(|(_, is)| *is == hash && parent.cursor.list() == list).map(|(at, _)| at)
    }
}
