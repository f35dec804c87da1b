//! A regular file on its way into a backup: cut into blocks, listed in leaves, the leaves in nodes.
//!
//! A leaf that is listed just as the parent lists it is the parent's. A short file has its list in the file table, and has
//! neither leaves nor nodes. A file that is dropped before its end leaves nothing in the backup.

use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::object::ContentHash;

use super::{OPEN, PackStream, Waiting};
use crate::backup::blocks::encode_leaf;
use crate::backup::entry::{
    Attributes, Blocks, EntryContent, FileContent, FileEntry, LeafRun, MAX_LEAF_RUNS, NodeRef,
};
use crate::backup::findings::{MAX_FINDINGS, PageFault, PageFinding};
use crate::backup::geometry::{BlockSize, INLINE_BLOCKS, MAX_FILE};
use crate::backup::hash::{FileHasher, Hashing};
use crate::backup::index_block::encode_node;
use crate::backup::live::{Live, count, count_blocks};
use crate::backup::pack::FrameKind;
use crate::backup::parent::{KnownFile, KnownLeaf};
use crate::backup::path::TablePath;
use crate::backup::wire::Malformed;
use crate::backup::write::Shared;
use crate::backup::write::table::Counted;

/// What a file turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileSummary {
    /// Its length in bytes.
    pub length: u64,
    /// The hash of its content.
    pub hash: ContentHash,
}

impl PackStream {
    /// Begins a regular file. It is in the backup once [`FileWriter::finish`] succeeded; dropped before, as when the file
    /// vanished, it leaves nothing.
    pub fn file(&mut self, path: TablePath) -> FileWriter<'_> {
        self.list.clear();
        let Shared { hashing, block_size, .. } = &*self.shared;
        FileWriter {
            leaf: hashing.hasher(),
            file: FileHasher::new(hashing, *block_size),
            partial: Vec::new(),
            filled: 0,
            length: 0,
            counted: Counted::default(),
            known: Known::Unasked,
            known_leaf: None,
            runs: Vec::new(),
            nodes: Vec::new(),
            live: Live::default(),
            bad_pages: 0,
            findings: Vec::new(),
            path,
            stream: self,
        }
    }
}

/// A regular file on its way into the backup. Bytes are given in order; hashes and stored bytes come from the same buffer.
#[derive(Debug)]
pub struct FileWriter<'a> {
    stream: &'a mut PackStream,
    path: TablePath,
    length: u64,
    /// The beginning of a block of which the rest has not come.
    partial: Vec<u8>,
    /// Hash and length of the leaf that is being written.
    leaf: blake3::Hasher,
    filled: u64,
    file: FileHasher,
    counted: Counted,
    /// What earlier backups have of the file, and of its open leaf.
    known: Known,
    known_leaf: Option<KnownLeaf>,
    runs: Vec<LeafRun>,
    nodes: Vec<NodeRef>,
    live: Live,
    bad_pages: u32,
    findings: Vec<PageFinding>,
}

/// What earlier backups have of a file.
#[derive(Debug)]
enum Known {
    /// Not looked at: there was no block.
    Unasked,
    /// Nothing.
    Nothing,
    Something(KnownFile),
}

impl FileWriter<'_> {
    fn block_size(&self) -> BlockSize {
        self.stream.shared.block_size
    }

    /// Takes the next bytes, any number of them. Multiples of the block size, best 128 KiB or more, are not copied twice.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        let leaf_bytes = self.block_size().leaf_bytes();
        while !bytes.is_empty() {
            if self.filled == leaf_bytes {
                self.end_leaf()?;
            }
            let room = usize::try_from(leaf_bytes - self.filled).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(room);
            self.leaf.update(now);
            let n = u64::try_from(now.len()).unwrap_or(u64::MAX);
            self.filled += n;
            self.length = self.length.saturating_add(n);
            if self.length > MAX_FILE {
                return Err(refused(&self.path, "it is longer than 256 TiB"));
            }
            self.cut(now)?;
            bytes = later;
        }
        Ok(())
    }

    /// Cuts bytes that lie within one leaf into blocks.
    fn cut(&mut self, mut bytes: &[u8]) -> Result<()> {
        let size = self.block_size().as_usize();
        while !bytes.is_empty() {
            if self.partial.is_empty() && bytes.len() >= size {
                let (block, rest) = bytes.split_at(size);
                self.block(block)?;
                bytes = rest;
                continue;
            }
            let (now, rest) = bytes.split_at((size - self.partial.len()).min(bytes.len()));
            self.partial.extend_from_slice(now);
            bytes = rest;
            if self.partial.len() == size {
                self.end_partial()?;
            }
        }
        Ok(())
    }

    fn end_partial(&mut self) -> Result<()> {
        if !self.partial.is_empty() {
            let mut partial = std::mem::take(&mut self.partial);
            self.block(&partial)?;
            partial.clear();
            self.partial = partial;
        }
        Ok(())
    }

    fn block(&mut self, block: &[u8]) -> Result<()> {
        let PackStream { shared, cached, .. } = &mut *self.stream;
        if matches!(self.known, Known::Unasked) {
            let known = shared.parents.file(&self.path, cached)?;
            self.known = known.map_or(Known::Nothing, Known::Something);
        }
        let mut known = [None, None];
        if let Known::Something(file) = &mut self.known {
            let leaf = match &mut self.known_leaf {
                Some(leaf) => leaf,
                none => {
                    // The bytes of the block are counted already.
                    let n = self.length.saturating_sub(1) / shared.block_size.leaf_bytes();
                    none.insert(file.leaf(n, &shared.parents, cached)?)
                }
            };
            known = leaf.next();
        }
        self.stream.block(block, known, &mut self.counted)
    }

    /// Takes a hole: `len` zero bytes. At no cost where it covers whole leaves (2,048 blocks).
    pub fn zeros(&mut self, mut len: u64) -> Result<()> {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        let leaf_bytes = self.block_size().leaf_bytes();
        while len > 0 {
            if self.filled == leaf_bytes {
                self.end_leaf()?;
            }
            if self.filled > 0 || len < leaf_bytes {
                let piece = len.min(leaf_bytes - self.filled).min(1 << 16);
                let n = usize::try_from(piece).unwrap_or(ZEROS.len());
                self.write(ZEROS.get(..n).unwrap_or(&ZEROS))?;
                len -= piece;
                continue;
            }
            let leaves = len / leaf_bytes;
            self.length = self.length.saturating_add(leaves * leaf_bytes);
            if self.length > MAX_FILE {
                return Err(refused(&self.path, "it is longer than 256 TiB"));
            }
            self.file.zero_leaves(leaves);
            self.push_run(LeafRun::Zero(u32::try_from(leaves).unwrap_or(u32::MAX)))?;
            len -= leaves * leaf_bytes;
        }
        Ok(())
    }

    /// Notes that a page of this file is bad. Its bytes are written like any other.
    pub fn bad_page(&mut self, block: u64, fault: PageFault) {
        self.bad_pages = self.bad_pages.saturating_add(1);
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(PageFinding { path: self.path.clone(), block, fault });
        }
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The leaf is complete: stores its list.
    fn end_leaf(&mut self) -> Result<()> {
        self.end_partial()?;
        let hash = Hashing::finish(&self.leaf);
        let bytes = std::mem::take(&mut self.filled);
        self.leaf.reset();
        self.file.leaf(hash);
        let known = self.known_leaf.take();
        if self.stream.list.is_zero() {
            self.stream.list.clear();
            return self.push_run(LeafRun::Zero(1));
        }
        let same = known.and_then(|known| known.same(&self.stream.list, hash));
        let same = same.filter(|at| self.stream.shared.parents.ledger.may_use(*at));
        if same.is_none() && self.stream.list.uses(OPEN) {
            self.stream.close_frame()?;
        }
        count_blocks(&mut self.live, &self.stream.list);
        let at = match same {
            Some(at) => at,
            None => {
                let PackStream { shared, list, .. } = &*self.stream;
                let leaf = self.length.saturating_sub(1) / shared.block_size.leaf_bytes();
                shared.with_table(|table| {
                    table.note(&self.path, leaf, bytes, list);
                    Ok(())
                })?;
                let plain = encode_leaf(list, &shared.parents.backups).map_err(|e| internal(&e))?;
                self.stream.table_frame(FrameKind::Leaf, &plain)?
            }
        };
        self.stream.list.clear();
        count(&mut self.live, at, 1);
        self.push_run(LeafRun::Stored { at, hash })
    }

    fn push_run(&mut self, run: LeafRun) -> Result<()> {
        if let (Some(LeafRun::Zero(before)), LeafRun::Zero(more)) = (self.runs.last_mut(), run)
            && let Some(sum) = before.checked_add(more)
        {
            *before = sum;
            return Ok(());
        }
        if self.runs.len() == MAX_LEAF_RUNS {
            self.end_node()?;
        }
        self.runs.push(run);
        Ok(())
    }

    fn end_node(&mut self) -> Result<()> {
        let leaves: u64 = self.runs.iter().map(|run| run.leaves()).sum();
        let leaves = u32::try_from(leaves).map_err(|_| refused(&self.path, "it has too many leaves"))?;
        let plain = encode_node(&self.runs, &self.stream.shared.parents.backups).map_err(|e| internal(&e))?;
        let at = self.stream.table_frame(FrameKind::Node, &plain)?;
        count(&mut self.live, at, 1);
        self.nodes.push(NodeRef { at, leaves });
        self.runs.clear();
        Ok(())
    }

    /// The file is complete: adds it to the backup.
    pub fn finish(mut self, attributes: Attributes) -> Result<FileSummary> {
        self.end_partial()?;
        let inline = self.runs.is_empty()
            && self.nodes.is_empty()
            && u64::from(self.stream.list.len()) <= INLINE_BLOCKS;
        let blocks = if inline {
            if self.filled > 0 {
                self.file.leaf(Hashing::finish(&self.leaf));
            }
            Blocks::Inline(std::mem::take(&mut self.stream.list))
        } else {
            if self.filled > 0 {
                self.end_leaf()?;
            }
            if self.nodes.is_empty() {
                Blocks::Leaves(std::mem::take(&mut self.runs))
            } else {
                self.end_node()?;
                Blocks::Nodes(std::mem::take(&mut self.nodes))
            }
        };
        let Self { stream, path, length, file, counted, live, bad_pages, findings, .. } = self;
        let hash = file.finish(length);
        let waits = matches!(&blocks, Blocks::Inline(list) if list.uses(OPEN));
        let content = EntryContent::File(FileContent { length, hash, bad_pages, blocks });
        let entry = FileEntry { path, attributes, content };
        if waits {
            stream.waiting.push(Waiting { entry, findings, counted });
        } else {
            stream.shared.with_table(|table| {
                table.count_blocks(counted);
                table.add(&entry, &live, findings)
            })?;
        }
        Ok(FileSummary { length, hash })
    }
}

fn refused(path: &TablePath, what: &str) -> RepoError {
    RepoError::Internal(format!("{path} cannot be backed up: {what}"))
}

fn internal(error: &Malformed) -> RepoError {
    RepoError::Internal(format!("a list of blocks cannot be written: {error}"))
}
