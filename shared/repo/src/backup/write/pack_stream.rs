//! A pack stream: one thread's way into a backup. It hashes blocks, fills frames with those that are new, and adds what is complete to
//! the file table; how a file is cut into blocks and listed is `file`'s.
//!
//! A block that an earlier backup has at the same path and number is not stored: the list says where that has it.
//!
//! Blocks of small files of one stream share frames. Where a block is, is known when its frame is full; until then it is
//! listed at [`OPEN`], and files that have such blocks wait. A file too long to be listed inline does not wait: at the
//! end of each of its leaves the open frame is closed.

mod file;

use std::sync::{Arc, Mutex, PoisonError};

use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::object::ContentHash;
use walpoint_storage::object::codec::PooledCodec;

pub use self::file::{FileSummary, FileWriter};
use super::super::blocks::{BlockList, BlockLocation};
use super::super::entry::{Attributes, Blocks, EntryContent, FileContent, FileEntry};
use super::super::findings::PageFinding;
use super::super::frame::FrameBuilder;
use super::super::hash::ContentHasher;
use super::super::live::Live;
use super::super::location::{BackupRef, BlockRef, FrameRef, PackNo};
use super::super::pack::FrameKind;
use super::super::parent::{Cached, KnownBlock, SameContent};
use super::super::path::TablePath;
use super::Shared;
use super::sink::PackSink;
use super::table::{Counted, TableWriter};

/// Where blocks of the open frame are until it has a place. No frame has index 0.
const OPEN: FrameRef = FrameRef { backup: BackupRef::OWN, pack: PackNo(u32::MAX), frame: 0 };

/// One thread's way into a backup. Everything on it computes and may wait for uploads: use it where blocking is allowed,
/// never on a thread that drives async tasks.
#[derive(Debug)]
pub struct PackStream {
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
    entry: FileEntry,
    findings: Vec<PageFinding>,
    counted: Counted,
}

impl PackStream {
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
    /// added, in any order and by any stream.
    pub fn directory(&mut self, path: TablePath, attributes: Attributes) -> Result<()> {
        self.add(&FileEntry { path, attributes, content: EntryContent::Directory })
    }

    /// Adds a directory that the cluster reaches through a symbolic link: a tablespace, or `pg_wal` elsewhere.
    pub fn linked_directory(&mut self, path: TablePath, attributes: Attributes, target: &[u8]) -> Result<()> {
        self.add(&FileEntry {
            path,
            attributes,
            content: EntryContent::LinkedDirectory { target: target.to_vec() },
        })
    }

    /// Adds any other symbolic link.
    pub fn link(&mut self, path: TablePath, attributes: Attributes, target: &[u8]) -> Result<()> {
        self.add(&FileEntry { path, attributes, content: EntryContent::Link { target: target.to_vec() } })
    }

    fn add(&mut self, entry: &FileEntry) -> Result<()> {
        self.shared.with_table(|table| table.add(entry, &Live::default(), Vec::new()))
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
        let Some(SameContent { file, live, stored }) = found else { return Ok(false) };
        let bytes = stored.saturating_mul(self.shared.block_size.bytes()).min(length);
        let counted = Counted { stored, new_bytes: 0, reused_bytes: bytes };
        let entry = FileEntry { path: path.clone(), attributes, content: EntryContent::File(file) };
        self.shared.with_table(|table| {
            table.count_blocks(counted);
            table.add(&entry, &live, Vec::new())
        })?;
        Ok(true)
    }

    /// Takes one block of the file that is being written, of which earlier backups know that much.
    fn block(&mut self, block: &[u8], known: [Option<KnownBlock>; 2], counted: &mut Counted) -> Result<()> {
        if is_zero(block) {
            self.list.push(BlockLocation::Zero, 0);
            return Ok(());
        }
        let hash = self.shared.hashing.block(block);
        let length = u64::try_from(block.len()).unwrap_or(0);
        counted.stored += 1;
        let ledger = &self.shared.parents.ledger;
        let mut same = known.into_iter().flatten().filter(|k| k.hash == hash && k.length == block.len());
        if let Some(known) = same.find(|known| ledger.may_use(known.at.frame)) {
            self.list.push(BlockLocation::At(known.at), hash);
            counted.reused_bytes += length;
            return Ok(());
        }
        if !self.frame.fits(block.len()) {
            self.close_frame()?;
        }
        let index = self.frame.push(block, hash);
        self.list.push(BlockLocation::At(BlockRef { frame: OPEN, index }), hash);
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
            if let EntryContent::File(FileContent { blocks: Blocks::Inline(list), .. }) = &mut entry.content {
                list.relocate(OPEN, at);
            }
            self.shared.with_table(|table| {
                table.count_blocks(counted);
                if let EntryContent::File(FileContent { length, blocks: Blocks::Inline(list), .. }) =
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

/// Whether all bytes are zero.
fn is_zero(bytes: &[u8]) -> bool {
    // In pieces, so that most pages are decided by their first bytes and the rest is a vectorised comparison.
    bytes.chunks(1024).all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
}

impl Shared {
    fn with_table<T>(&self, work: impl FnOnce(&mut TableWriter) -> Result<T>) -> Result<T> {
        let table: &Mutex<Option<TableWriter>> = &self.table;
        let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = || RepoError::Internal("a stream is used after its backup was finished".to_owned());
        work(table.as_mut().ok_or_else(ended)?)
    }

    /// Where frames go.
    pub(super) fn sink(&self) -> &Arc<PackSink> {
        &self.sink
    }
}
