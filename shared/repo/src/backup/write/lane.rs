//! A lane: one thread's way into a backup. It cuts files into blocks, hashes them, fills frames, and lists them.
//!
//! A block that an earlier backup has at the same path and number is not stored: the list says where that has it. A leaf
//! that is listed just as the parent lists it is the parent's.
//!
//! Blocks of small files of one lane share frames. Where a block is, is known when its frame is full; until then it is
//! listed at [`OPEN`], and files that have such blocks wait. A file too long to be listed inline does not wait: at the
//! end of each of its leaves the open frame is closed.

use std::sync::{Arc, Mutex, PoisonError};

use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::object::ContentHash;
use walpoint_storage::object::codec::PooledCodec;

use super::super::blocks::{BlockList, Place, encode_leaf};
use super::super::entry::{Attributes, Blocks, Content, Entry, FileContent, LeafRun, MAX_LEAF_RUNS, NodeRef};
use super::super::findings::{Finding, MAX_FINDINGS, PageFault};
use super::super::frame::FrameBuilder;
use super::super::geometry::{BlockSize, INLINE_BLOCKS, MAX_FILE};
use super::super::hash::{ContentHasher, FileHasher, Hashing};
use super::super::live::{Live, count, count_blocks};
use super::super::location::{BackupRef, BlockRef, FrameRef, PackNo};
use super::super::pack::FrameKind;
use super::super::page::encode_node;
use super::super::parent::{Cached, KnownBlock, KnownFile, KnownLeaf};
use super::super::path::TablePath;
use super::super::wire::Malformed;
use super::Shared;
use super::sink::PackSink;
use super::table::{Counted, Table};

/// Where blocks of the open frame are until it has a place. No frame has index 0.
const OPEN: FrameRef = FrameRef { backup: BackupRef::OWN, pack: PackNo(u32::MAX), frame: 0 };

/// One thread's way into a backup. Everything on it computes and may wait for uploads: use it where blocking is allowed,
/// never on a thread that drives async tasks.
#[derive(Debug)]
pub struct Lane {
    shared: Arc<Shared>,
    codec: PooledCodec,
    frame: FrameBuilder,
    /// Files that are complete but for the place of the open frame.
    waiting: Vec<Waiting>,
    /// The blocks of the file that is being written, since its last leaf. Here and not in [`FileWriter`] so that
    /// closing a frame reaches it.
    list: BlockList,
    /// What was looked at last of earlier backups.
    cached: Cached,
}

#[derive(Debug)]
struct Waiting {
    entry: Entry,
    findings: Vec<Finding>,
    counted: Counted,
}

/// What a file turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileSummary {
    /// Its length in bytes.
    pub length: u64,
    /// The hash of its content.
    pub hash: ContentHash,
}

impl Lane {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let codec = shared.sink.codec();
        Self {
            shared,
            codec,
            frame: FrameBuilder::new(),
            waiting: Vec::new(),
            list: BlockList::default(),
            cached: Cached::default(),
        }
    }

    /// Adds a directory, the root of the data directory (an empty path) included. The parent of everything has to be
    /// added, in any order and by any lane.
    pub fn directory(&mut self, path: TablePath, attributes: Attributes) -> Result<()> {
        self.add(&Entry { path, attributes, content: Content::Directory })
    }

    /// Adds a directory that the cluster reaches through a symbolic link: a tablespace, or `pg_wal` elsewhere.
    pub fn linked_directory(&mut self, path: TablePath, attributes: Attributes, target: &[u8]) -> Result<()> {
        self.add(&Entry { path, attributes, content: Content::LinkedDirectory { target: target.to_vec() } })
    }

    /// Adds any other symbolic link.
    pub fn link(&mut self, path: TablePath, attributes: Attributes, target: &[u8]) -> Result<()> {
        self.add(&Entry { path, attributes, content: Content::Link { target: target.to_vec() } })
    }

    fn add(&mut self, entry: &Entry) -> Result<()> {
        self.shared.with_table(|table| table.add(entry, &Live::default(), Vec::new()))
    }

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
            lane: self,
        }
    }

    /// Stores what is left of the open frame. To be called when the thread has no more files.
    pub fn finish(mut self) -> Result<()> {
        self.list.clear();
        self.close_frame()
    }

    /// Whether the file is new at its path and may be one that the parent has elsewhere: then its hash is worth finding out
    /// ([`Self::hasher`]) before it is written.
    pub fn may_be_elsewhere(&mut self, path: &TablePath, length: u64) -> Result<bool> {
        self.shared.parents.may_be_elsewhere(path, length, &mut self.cached)
    }

    /// Whether the parent may still have the file, of which the hasher took a beginning; `None` while that cannot be told.
    pub fn may_still_be_elsewhere(&self, length: u64, hasher: &ContentHasher) -> Result<Option<bool>> {
        let beginning = hasher.beginning(length);
        beginning.map(|beginning| self.shared.parents.may_begin_elsewhere(length, beginning)).transpose()
    }

    /// Hashes a file for [`Self::same_file`].
    pub fn hasher(&self) -> ContentHasher {
        ContentHasher::new(&self.shared.hashing, self.shared.block_size)
    }

    /// Adds a file whose content the parent has, wherever: nothing of it is stored. `false` if the parent has none like it.
    pub fn same_file(
        &mut self,
        path: &TablePath,
        (length, hash): (u64, ContentHash),
        attributes: Attributes,
    ) -> Result<bool> {
        let found = self.shared.parents.same_content(length, &hash, &mut self.cached)?;
        let Some((file, live, stored)) = found else { return Ok(false) };
        let bytes = stored.saturating_mul(self.shared.block_size.bytes()).min(length);
        let counted = Counted { stored, new_bytes: 0, reused_bytes: bytes };
        let entry = Entry { path: path.clone(), attributes, content: Content::File(file) };
        self.shared.with_table(|table| {
            table.count_blocks(counted);
            table.add(&entry, &live, Vec::new())
        })?;
        Ok(true)
    }

    /// Takes one block of the file that is being written, of which earlier backups know that much.
    fn block(&mut self, block: &[u8], known: [Option<KnownBlock>; 2], counted: &mut Counted) -> Result<()> {
        if is_zero(block) {
            self.list.push(Place::Zero, 0);
            return Ok(());
        }
        let hash = self.shared.hashing.block(block);
        let length = u64::try_from(block.len()).unwrap_or(0);
        counted.stored += 1;
        let ledger = &self.shared.parents.ledger;
        let mut same = known.into_iter().flatten().filter(|k| k.hash == hash && k.length == block.len());
        if let Some(known) = same.find(|known| ledger.may_use(known.at.frame)) {
            self.list.push(Place::At(known.at), hash);
            counted.reused_bytes += length;
            return Ok(());
        }
        if !self.frame.fits(block.len()) {
            self.close_frame()?;
        }
        let index = self.frame.push(block, hash);
        self.list.push(Place::At(BlockRef { frame: OPEN, index }), hash);
        counted.new_bytes += length;
        Ok(())
    }

    /// Stores the open frame; what waited for its place is complete.
    fn close_frame(&mut self) -> Result<()> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let (plain, hashes) = self.frame.seal();
        let at = self.shared.sink.append(FrameKind::Data, plain, hashes, &mut self.codec)?;
        self.frame.clear();
        self.list.relocate(OPEN, at);
        for Waiting { mut entry, findings, counted } in self.waiting.drain(..) {
            if let Content::File(FileContent { blocks: Blocks::Inline(list), .. }) = &mut entry.content {
                list.relocate(OPEN, at);
            }
            self.shared.with_table(|table| {
                table.count_blocks(counted);
                if let Content::File(FileContent { length, blocks: Blocks::Inline(list), .. }) =
                    &entry.content
                {
                    table.note(&entry.path, 0, *length, list);
                }
                table.add(&entry, &Live::default(), findings)
            })?;
        }
        Ok(())
    }

    /// Stores a table frame.
    fn table_frame(&mut self, kind: FrameKind, plain: &[u8]) -> Result<FrameRef> {
        self.shared.sink.append(kind, plain, &[], &mut self.codec)
    }
}

/// A regular file on its way into the backup. Bytes are given in order; hashes and stored bytes come from the same buffer.
#[derive(Debug)]
pub struct FileWriter<'a> {
    lane: &'a mut Lane,
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
    findings: Vec<Finding>,
}

/// What earlier backups have of a file.
#[derive(Debug)]
enum Known {
    /// Nobody looked: there was no block.
    Unasked,
    /// Nothing.
    Nothing,
    Something(KnownFile),
}

impl FileWriter<'_> {
    fn block_size(&self) -> BlockSize {
        self.lane.shared.block_size
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
        let Lane { shared, cached, .. } = &mut *self.lane;
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
        self.lane.block(block, known, &mut self.counted)
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
            self.findings.push(Finding { path: self.path.clone(), block, fault });
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
        if self.lane.list.is_zero() {
            self.lane.list.clear();
            return self.push_run(LeafRun::Zero(1));
        }
        let same = known.and_then(|known| known.same(&self.lane.list, hash));
        let same = same.filter(|at| self.lane.shared.parents.ledger.may_use(*at));
        if same.is_none() && self.lane.list.uses(OPEN) {
            self.lane.close_frame()?;
        }
        count_blocks(&mut self.live, &self.lane.list);
        let at = match same {
            Some(at) => at,
            None => {
                let Lane { shared, list, .. } = &*self.lane;
                let leaf = self.length.saturating_sub(1) / shared.block_size.leaf_bytes();
                shared.with_table(|table| {
                    table.note(&self.path, leaf, bytes, list);
                    Ok(())
                })?;
                let plain = encode_leaf(list, &shared.parents.backups).map_err(|e| internal(&e))?;
                self.lane.table_frame(FrameKind::Leaf, &plain)?
            }
        };
        self.lane.list.clear();
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
        let plain = encode_node(&self.runs, &self.lane.shared.parents.backups).map_err(|e| internal(&e))?;
        let at = self.lane.table_frame(FrameKind::Node, &plain)?;
        count(&mut self.live, at, 1);
        self.nodes.push(NodeRef { at, leaves });
        self.runs.clear();
        Ok(())
    }

    /// The file is complete: adds it to the backup.
    pub fn finish(mut self, attributes: Attributes) -> Result<FileSummary> {
        self.end_partial()?;
        let inline =
            self.runs.is_empty() && self.nodes.is_empty() && u64::from(self.lane.list.len()) <= INLINE_BLOCKS;
        let blocks = if inline {
            if self.filled > 0 {
                self.file.leaf(Hashing::finish(&self.leaf));
            }
            Blocks::Inline(std::mem::take(&mut self.lane.list))
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
        let Self { lane, path, length, file, counted, live, bad_pages, findings, .. } = self;
        let hash = file.finish(length);
        let waits = matches!(&blocks, Blocks::Inline(list) if list.uses(OPEN));
        let content = Content::File(FileContent { length, hash, bad_pages, blocks });
        let entry = Entry { path, attributes, content };
        if waits {
            lane.waiting.push(Waiting { entry, findings, counted });
        } else {
            lane.shared.with_table(|table| {
                table.count_blocks(counted);
                table.add(&entry, &live, findings)
            })?;
        }
        Ok(FileSummary { length, hash })
    }
}

/// Whether all bytes are zero.
fn is_zero(bytes: &[u8]) -> bool {
    // In pieces, so that most pages are decided by their first bytes and the rest is a vectorised comparison.
    bytes.chunks(1024).all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
}

fn refused(path: &TablePath, what: &str) -> RepoError {
    RepoError::Internal(format!("{path} cannot be backed up: {what}"))
}

fn internal(error: &Malformed) -> RepoError {
    RepoError::Internal(format!("a list of blocks cannot be written: {error}"))
}

impl Shared {
    fn with_table<T>(&self, work: impl FnOnce(&mut Table) -> Result<T>) -> Result<T> {
        let table: &Mutex<Option<Table>> = &self.table;
        let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = || RepoError::Internal("a lane is used after its backup was finished".to_owned());
        work(table.as_mut().ok_or_else(ended)?)
    }

    /// Where frames go.
    pub(super) fn sink(&self) -> &Arc<PackSink> {
        &self.sink
    }
}
