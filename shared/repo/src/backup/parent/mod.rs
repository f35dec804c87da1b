//! What a new backup builds on: its parent, which is finished, and unfinished backups that it resumes.
//!
//! | module | owns |
//! |---|---|
//! | `choice` | which backups these are |
//! | `table` | the parent's file table, on disk |
//! | `block_ranges` | what unfinished backups stored, on disk |
//! | `file` | what both have of a file, block by block |
//! | `lookup` | files of the parent by their content |
//! | `frames` | reading leaves in few requests |
//! | `ledger` | which packs may be used |
//! | `compaction` | which packs of the parent are emptied |
//!
//! What always holds: everything here is opened after the intent was created, which names it all. What is announced, not
//! found with its size, or damaged, counts as absent: it is stored again, and a note says so. The packs of unfinished backups are
//! read for that. Blocks are compared by hash at
//! the same path and number, so it does not matter from which timeline, server or major version a parent comes.

mod block_ranges;
mod choice;
mod compaction;
mod file;
mod frames;
mod ledger;
mod lookup;
mod table;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use futures_util::{StreamExt, TryStreamExt, stream};
use walpoint_base::{BackupId, Lsn, SegmentNo, SegmentSize};
use walpoint_storage::error::{Remark, Remedy, RepoError, Result};
use walpoint_storage::object::{ContentHash, ObjectKind};

use self::block_ranges::{BlockRanges, BlockRangesBuilder, CachedChunk};
pub use self::choice::ReusableBackups;
use self::compaction::Changes;
use self::file::Leaves;
pub(super) use self::file::{KnownBlock, KnownFile, KnownLeaf};
use self::frames::Frames;
pub(super) use self::ledger::Ledger;
use self::table::CachedIndexBlock;
pub(super) use self::table::ParentTable;
use super::announcements::{AnnouncedSet, DamagedAnnouncement};
use super::catalog::Backups;
use super::ending::Intent;
use super::entry::FileContent;
use super::geometry::BlockSize;
use super::hash::FileBeginning;
use super::live::{Live, count, count_blocks};
use super::location::{BackupRef, FrameRef, PackNo, pack_no};
use super::pack::FrameKind;
use super::pack_table::PackUse;
use super::path::TablePath;
use super::read::BackupReader;
use super::wire::Malformed;
use crate::whole::whole;

/// Listings at the same time.
const LISTINGS: usize = 8;
/// Packs that are read at the same time, each of them whole.
const READS: usize = 2;
/// Notes that are kept.
const MAX_NOTES: usize = 20;

/// What a new backup builds on.
#[derive(Debug)]
pub(super) struct Parents {
    /// Every backup that blocks may be in; the first is the one that is written.
    pub(super) backups: Vec<BackupId>,
    /// Their packs.
    pub(super) ledger: Ledger,
    /// The finished one.
    parent: Option<(BackupId, ParentTable)>,
    /// Bytes of the packs that it uses.
    held: Option<u64>,
    ranges: Option<BlockRanges>,
    frames: Frames,
    block_size: BlockSize,
    notes: Mutex<Vec<Remark>>,
}

/// What one thread looked at last.
#[derive(Default, Debug)]
pub(super) struct Cached {
    index_block: CachedIndexBlock,
    chunk: CachedChunk,
}

/// A file of the parent with the content of another file, which may point to its blocks.
#[derive(Debug)]
pub(super) struct SameContent {
    /// The content.
    pub(super) file: FileContent,
    /// How much of which pack it uses.
    pub(super) live: Live,
    /// How many of its blocks are stored.
    pub(super) stored: u64,
}

/// The finished backup that was chosen.
struct Parent {
    id: BackupId,
    table: ParentTable,
    packs: Vec<PackUse>,
    /// Where it is consistent.
    stop: Lsn,
    segment_size: Option<SegmentSize>,
}

/// Collects what is found out on the way to [`Parents`].
struct Opening<'a> {
    backups: &'a Backups,
    announced: AnnouncedSet,
    block_size: BlockSize,
    known: Vec<BackupId>,
    packs: Vec<PackUse>,
    /// Packs of unfinished backups: no verification ever reads them.
    unread: BTreeSet<(BackupRef, PackNo)>,
    notes: Vec<Remark>,
}

impl Parents {
    /// Opens what the intent names, which has been created.
    pub(super) async fn open(
        backups: &Backups,
        intent: &Intent,
        block_size: BlockSize,
        scratch: &Path,
    ) -> Result<Self> {
        let mut opening = Opening {
            backups,
            announced: AnnouncedSet::default(),
            block_size,
            known: vec![intent.id],
            packs: Vec::new(),
            unread: BTreeSet::new(),
            notes: Vec::new(),
        };
        let (mut parent, mut ranges) = (None, None);
        if !intent.parents.is_empty() || !intent.resumed.is_empty() {
            let announced = backups.announcements().await?;
            opening.announced = AnnouncedSet::of(&announced);
            // Without a note for each backup that is not built on then.
            let known = announced.damaged.is_empty();
            opening.notes.extend(announced.damaged.iter().map(DamagedAnnouncement::remark));
            if known {
                parent = opening.parent(&intent.parents, scratch).await?;
            }
            let mut builder = BlockRangesBuilder::new(scratch);
            for (id, age) in intent.resumed.iter().rev().zip(0u16..) {
                opening.resume(*id, age, &mut builder).await?;
            }
            ranges = builder.finish(block_size)?;
        }
        let emptied = parent.as_ref().map(|parent| parent.emptied(intent.id.start(), block_size));
        let ledger = opening.ledger(&emptied.unwrap_or_default()).await?;
        let held = parent.as_ref().map(|parent| parent.packs.iter().map(|pack| u64::from(pack.size)).sum());
        let Opening { known, notes, .. } = opening;
        Ok(Self {
            backups: known,
            ledger,
            parent: parent.map(|parent| (parent.id, parent.table)),
            held,
            ranges,
            frames: Frames::new(backups),
            block_size,
            notes: Mutex::new(notes),
        })
    }

    /// The finished backup whose blocks are used.
    pub(super) fn parent(&self) -> Option<BackupId> {
        self.parent.as_ref().map(|(id, _)| *id)
    }

    /// Bytes of the packs that it uses; `None` if there is none.
    pub(super) fn held(&self) -> Option<u64> {
        self.held
    }

    /// Its file table.
    pub(super) fn table(&self) -> Option<&ParentTable> {
        self.parent.as_ref().map(|(_, table)| table)
    }

    /// What could not be used since the last call, and why.
    pub(super) fn take_notes(&self) -> Vec<Remark> {
        std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, what: String) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let what = Remark::from(what);
        if notes.len() < MAX_NOTES && !notes.contains(&what) {
            notes.push(what);
        }
    }

    /// What is known of a file; `None` if nothing can be.
    pub(super) fn file(&self, path: &TablePath, cached: &mut Cached) -> Result<Option<KnownFile>> {
        let parent = match self.table() {
            Some(table) => table.find(path, &self.backups, &mut cached.index_block)?,
            None if self.ranges.is_none() => return Ok(None),
            None => None,
        };
        Ok(Some(KnownFile::new(path.clone(), parent)))
    }

    /// Whether the parent has no file at that path, but one of that length somewhere.
    pub(super) fn may_be_elsewhere(
        &self,
        path: &TablePath,
        length: u64,
        cached: &mut Cached,
    ) -> Result<bool> {
        let Some(table) = self.table() else { return Ok(false) };
        Ok(table.has_length(length)? && table.find(path, &self.backups, &mut cached.index_block)?.is_none())
    }

    /// Whether the parent may have a file of that length that begins so.
    pub(super) fn may_begin_elsewhere(&self, length: u64, beginning: FileBeginning) -> Result<bool> {
        self.table().map_or(Ok(false), |table| table.has_beginning(length, beginning))
    }

    /// A file of the parent with that length and hash, all of which may be used.
    pub(super) fn same_content(
        &self,
        length: u64,
        hash: &ContentHash,
        cached: &mut Cached,
    ) -> Result<Option<SameContent>> {
        let Some(table) = self.table() else { return Ok(None) };
        let Some(file) = table.find_content(length, hash, &self.backups, &mut cached.index_block)? else {
            return Ok(None);
        };
        let (mut of_lists, mut of_frames, mut stored) = (Live::default(), Live::default(), 0u64);
        let list = |list: &super::BlockList| {
            count_blocks(&mut of_lists, list);
            stored += u64::try_from(list.hashes().len()).unwrap_or(0);
            list.runs().all(|(run, _)| match run.place {
                super::BlockLocation::Zero => true,
                super::BlockLocation::At(at) => self.ledger.may_use(at.frame),
            })
        };
        let frame = |at: FrameRef| {
            count(&mut of_frames, at, 1);
            self.ledger.may_use(at)
        };
        let inline = matches!(file.blocks, super::Blocks::Inline(_));
        let usable = Leaves::new(file.clone()).every(self, list, frame)?;
        // Who adds an entry counts what it lists itself.
        let mut live = if inline { Live::default() } else { of_lists };
        for (pack, units) in of_frames {
            *live.entry(pack).or_default() += units;
        }
        Ok(usable.then_some(SameContent { file, live, stored }))
    }

    /// The plain content of a table frame; `None` if it may not or cannot be used.
    fn frame(&self, kind: FrameKind, at: FrameRef) -> Result<Option<Vec<u8>>> {
        let id = self.backups.get(usize::from(at.backup.0)).copied();
        let Some((id, size)) = id.zip(self.ledger.size_of(at)) else { return Ok(None) };
        match self.frames.read(kind, at, id, size) {
            Ok(plain) => Ok(Some(plain)),
            Err(error) if error.is_transient() => Err(error),
            Err(error) => {
                self.note(format!("{error}\nDETAIL: What depends on it is stored again."));
                Ok(None)
            }
        }
    }

    /// What could be read, or a note.
    fn sound<T>(&self, read: Result<T, Malformed>) -> Option<T> {
        read.map_err(|error| {
            self.note(format!(
                "a list of the parent is damaged: {error}\nDETAIL: What it lists is stored again."
            ))
        })
        .ok()
    }
}

impl Parent {
    /// The packs that a backup should empty whose recovery starts at `start`.
    fn emptied(&self, start: Lsn, block_size: BlockSize) -> BTreeSet<(BackupRef, PackNo)> {
        // A backup ends with a switch to another segment, and the next one may begin with one: neither is a change.
        let wal = self.segment_size.map_or(0, |size| {
            let switched = SegmentNo::before(self.stop, size).next().end(size);
            start.since(switched)
        });
        compaction::emptied(&self.packs, Changes { wal, block: block_size.bytes() })
    }
}

impl Opening<'_> {
    /// The place of a backup among those that are known.
    fn number(&mut self, id: BackupId) -> Result<BackupRef> {
        let at = self.known.iter().position(|known| *known == id).unwrap_or_else(|| {
            self.known.push(id);
            self.known.len() - 1
        });
        let at = u16::try_from(at).ok().filter(|at| *at < u16::MAX);
        at.map(BackupRef).ok_or_else(|| RepoError::Internal("it builds on too many backups".to_owned()))
    }

    /// The first of these that can be used, with its packs.
    async fn parent(&mut self, candidates: &[BackupId], scratch: &Path) -> Result<Option<Parent>> {
        for &id in candidates {
            if self.announced.has_backup(id) {
                self.notes
                    .push(format!("backup {id} is about to be deleted, so nothing builds on it").into());
                continue;
            }
            match self.open_parent(id, scratch).await {
                Ok(Some(parent)) => return Ok(Some(parent)),
                Ok(None) => {
                    let what = format!("backup {id} has blocks of another size, so nothing builds on it");
                    self.notes.push(what.into());
                }
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => self.notes.push(format!("nothing builds on backup {id}: {error}").into()),
            }
        }
        Ok(None)
    }

    async fn open_parent(&mut self, id: BackupId, scratch: &Path) -> Result<Option<Parent>> {
        let reader: BackupReader = self.backups.open(id).await?;
        if reader.block_size() != self.block_size {
            return Ok(None);
        }
        let manifest = reader.manifest();
        let map: Vec<BackupRef> =
            manifest.backups.iter().map(|id| self.number(*id)).collect::<Result<_>>()?;
        let table = ParentTable::copy(&reader, &self.known, &map, scratch).await?;
        let packs: Vec<PackUse> = manifest.packs.packs().iter().filter_map(|p| renumbered(p, &map)).collect();
        self.packs.extend_from_slice(&packs);
        let facts = &manifest.summary.facts;
        let segment_size = SegmentSize::new(facts.wal_segment_size);
        Ok(Some(Parent { id, table, packs, stop: facts.stop_lsn, segment_size }))
    }

    /// Takes over what an unfinished backup said it stored.
    async fn resume(&mut self, id: BackupId, age: u16, ranges: &mut BlockRangesBuilder) -> Result<()> {
        if self.announced.has_backup(id) {
            return Ok(());
        }
        for n in 0.. {
            let progress = match self.backups.progress(id, n, self.block_size).await {
                Ok(Some(progress)) => progress,
                Ok(None) => return Ok(()),
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => {
                    self.notes.push(format!("what backup {id} had stored is stored again: {error}").into());
                    return Ok(());
                }
            };
            let map: Vec<BackupRef> =
                progress.backups.iter().map(|id| self.number(*id)).collect::<Result<_>>()?;
            let packs: Vec<PackUse> =
                progress.packs.packs().iter().filter_map(|pack| renumbered(pack, &map)).collect();
            self.unread.extend(packs.iter().map(|pack| (pack.backup, pack.pack)));
            self.packs.extend(packs);
            for mut range in progress.ranges {
                range.blocks.renumber(|backup| map.get(usize::from(backup.0)).copied());
                ranges.add(&range, age)?;
            }
        }
        Ok(())
    }

    /// Those of the packs that are not what was written.
    async fn damaged(&self, packs: BTreeSet<(BackupRef, PackNo)>) -> Result<BTreeSet<(BackupRef, PackNo)>> {
        let read = packs.into_iter().filter_map(|(backup, pack)| {
            let id = *self.known.get(usize::from(backup.0))?;
            let (key, store) = (self.backups.paths().pack(id, pack.0), self.backups.store());
            let sealer = self.backups.sealer().clone();
            Some(async move {
                let read = match store.get(&key).await {
                    Ok(bytes) => whole(sealer, ObjectKind::Pack, key, bytes).await,
                    Err(error) => Err(error),
                };
                match read {
                    Ok(_) => Ok(None),
                    Err(error) if error.is_transient() => Err(error),
                    Err(_) => Ok(Some((backup, pack))),
                }
            })
        });
        let read: Vec<_> = read.collect();
        stream::iter(read)
            .buffer_unordered(READS)
            .try_filter_map(|one| async move { Ok(one) })
            .try_collect()
            .await
    }

    /// Looks which of the packs are there. One listing for each backup; packs of unfinished ones are read.
    async fn ledger(&mut self, emptied: &BTreeSet<(BackupRef, PackNo)>) -> Result<Ledger> {
        let mut wanted: Vec<BackupRef> = self.packs.iter().map(|pack| pack.backup).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let (known, backups) = (&self.known, self.backups);
        let list = |backup: BackupRef| {
            let id = known.get(usize::from(backup.0)).copied();
            async move {
                let Some(id) = id else { return Ok(Vec::new()) };
                let entries = backups.store().list(&backups.paths().data(id), None);
                let named = entries.map_ok(|entry| Some(((backup, pack_no(&entry.key)?), entry.size)));
                let named: Vec<_> = named.try_collect().await?;
                Ok::<_, RepoError>(named.into_iter().flatten().collect::<Vec<_>>())
            }
        };
        let found: Vec<Vec<((BackupRef, PackNo), u64)>> =
            stream::iter(wanted).map(list).buffered(LISTINGS).try_collect().await?;
        let mut found: Vec<_> = found.into_iter().flatten().collect();
        found.sort_unstable();
        let there = |pack: &PackUse| {
            let at = found.binary_search(&((pack.backup, pack.pack), u64::from(pack.size)));
            let id = self.known.get(usize::from(pack.backup.0));
            at.is_ok() && id.is_some_and(|id| !self.announced.has_pack(*id, pack.pack))
        };
        let unread = self.packs.iter().filter(|pack| there(pack)).map(|pack| (pack.backup, pack.pack));
        let damaged = self.damaged(unread.filter(|name| self.unread.contains(name)).collect()).await?;
        let there = |pack: &PackUse| there(pack) && !damaged.contains(&(pack.backup, pack.pack));
        let missing = self.packs.iter().filter(|pack| !there(pack)).count();
        let ledger = Ledger::new(self.packs.iter().copied(), emptied, there);
        if missing > 0 {
            let what = format!(
                "{missing} packs of earlier backups are missing, damaged or about to be deleted: what was in them is stored again"
            );
            self.notes.push(Remark { what, remedy: Some(Remedy::VerifyBackups) });
        }
        Ok(ledger)
    }
}

/// The same pack in another table of backups.
fn renumbered(pack: &PackUse, map: &[BackupRef]) -> Option<PackUse> {
    let backup = *map.get(usize::from(pack.backup.0))?;
    Some(PackUse { backup, ..*pack })
}

fn scratch_error(source: std::io::Error) -> RepoError {
    RepoError::Io { what: "a scratch file of the backup".to_owned(), source }
}
