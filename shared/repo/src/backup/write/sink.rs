//! Where sealed frames go: into open packs, and from there into the store, with a bound on the bytes held in memory.
//!
//! Blocks and tables have a pack each, so that the lists of many files lie together and are read with few requests. A
//! full pack is uploaded by a task of its own; who would exceed the bound waits for one to end. A pack that a crash cuts
//! off was never named by a manifest.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use walpoint_base::BackupId;
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::ClusterPaths;
use walpoint_storage::object::codec::PooledCodec;
use walpoint_storage::object::{Codec, SealedObject, Sealer, pack};
use walpoint_storage::store::Store;

use super::super::catalog::Backups;
use super::super::location::{BackupRef, FrameRef, PackNo};
use super::super::pack::{FinishedPack, FrameKind, PACK_BYTES, PackBuilder};

/// Table packs are smaller: they fill slowly, and all the while they are in memory.
const TABLE_PACK_BYTES: u64 = 8 << 20;

/// What can be chosen about writing packs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackLimits {
    /// A pack of this many bytes is closed; at most and by default [`PACK_BYTES`].
    pub pack: u64,
    /// Bytes of open packs and of those on their way, together. At least two packs make filling and uploading overlap.
    pub in_flight: u64,
}

/// Packs that what a backup builds on would make if all were as large as this backup's. Packs are left whole, the emptiest
/// first: with few of them none is much emptier than the others.
const NEIGHBOURS: u64 = 32;
/// Smaller ones are not worth their requests.
const SMALL_PACK: u64 = 4 << 20;

impl PackLimits {
    /// Bytes of the next pack of a backup that builds on packs of `held` bytes in all and stored so many itself: smaller packs
    /// if both are little.
    fn next_pack(self, held: Option<u64>, stored: u64) -> u64 {
        held.map_or(self.pack, |held| (held.max(stored) / NEIGHBOURS).max(SMALL_PACK).min(self.pack))
    }
}

impl Default for PackLimits {
    fn default() -> Self {
        Self { pack: PACK_BYTES, in_flight: 72 << 20 }
    }
}

/// What became of one pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct WrittenPack {
    pub(super) size: u32,
    pub(super) units: u32,
}

#[derive(Clone, Copy, Debug)]
struct Pack {
    /// Whether it holds blocks, and not tables.
    data: bool,
    state: PackState,
}

/// What is stored by now.
#[derive(Debug)]
pub(super) struct StoredPacks {
    /// By number: those that are stored.
    pub(super) packs: Vec<(PackNo, WrittenPack)>,
    /// Every pack of blocks below this number is.
    pub(super) data_below: PackNo,
}

/// How far a pack is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum PackState {
    Open,
    Uploading(WrittenPack),
    Stored(WrittenPack),
}

#[derive(Debug)]
pub(super) struct PackSink {
    backups: Backups,
    store: Store,
    sealer: Sealer,
    paths: ClusterPaths,
    id: BackupId,
    limits: PackLimits,
    /// Bytes of the packs that the backup builds on; `None` if it builds on none.
    held: Option<u64>,
    runtime: tokio::runtime::Handle,
    state: Mutex<State>,
    /// Told of every upload that ended: threads wait on the first, tasks on the second.
    room: Condvar,
    ended: Notify,
}

#[derive(Default, Debug)]
struct State {
    data: Option<PackBuilder>,
    tables: Option<PackBuilder>,
    /// Every pack that was begun, by number.
    packs: Vec<Pack>,
    uploads: usize,
    uploading: u64,
    /// Bytes of all packs that were full.
    filled: u64,
    failure: Option<Failure>,
}

/// Why an upload failed: the error itself until somebody took it, then what it said.
#[derive(Debug)]
enum Failure {
    Untold(RepoError),
    Told(String),
}

impl PackSink {
    pub(super) fn new(backups: &Backups, id: BackupId, limits: PackLimits, held: Option<u64>) -> Self {
        Self {
            store: backups.store().clone(),
            sealer: backups.sealer().clone(),
            paths: backups.paths().clone(),
            backups: backups.clone(),
            id,
            limits,
            held,
            runtime: tokio::runtime::Handle::current(),
            state: Mutex::default(),
            room: Condvar::new(),
            ended: Notify::new(),
        }
    }

    /// Nothing that panics runs under the lock; if something did, the numbers in it are still whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What compresses frames for [`Self::append`].
    pub(super) fn codec(&self) -> PooledCodec {
        self.sealer.codec()
    }

    /// Adds a frame and says where it is. Compresses on this thread; waits while too many bytes are in flight. To be
    /// called where blocking is allowed.
    pub(super) fn append(
        self: &Arc<Self>,
        kind: FrameKind,
        plain: &[u8],
        hashes: &[u64],
        codec: &mut Codec,
    ) -> Result<FrameRef> {
        let packed = pack(plain, codec);
        let more = plain.len() + 64;
        let mut state = self.lock();
        loop {
            state.check()?;
            let held = state.uploading + open_len(&state.data) + open_len(&state.tables);
            let held = held + u64::try_from(more).unwrap_or(u64::MAX);
            if state.uploads == 0 || held <= self.limits.in_flight {
                break;
            }
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let next = self.limits.next_pack(self.held, state.filled);
        let State { data, tables, packs, .. } = &mut *state;
        let (open, limit) = match kind {
            FrameKind::Data => (data, next),
            _ => (tables, next.min(TABLE_PACK_BYTES)),
        };
        let full = open.take_if(|builder| builder.is_full_for(more));
        let builder = match open {
            Some(builder) => builder,
            none => {
                let no = u32::try_from(packs.len()).map_err(|_| internal("a backup has too many packs"))?;
                packs.push(Pack { data: kind == FrameKind::Data, state: PackState::Open });
                let key = self.paths.pack(self.id, no);
                none.insert(PackBuilder::new(&self.sealer, &key, PackNo(no), limit).map_err(internal)?)
            }
        };
        let (pack, frame) = builder.push(kind, packed, hashes).map_err(internal)?;
        if let Some(full) = full {
            self.upload(&mut state, full)?;
        }
        Ok(FrameRef { backup: BackupRef::OWN, pack, frame })
    }

    fn upload(self: &Arc<Self>, state: &mut State, full: PackBuilder) -> Result<()> {
        let FinishedPack { no, object, units } = full.finish().map_err(internal)?;
        let size = u32::try_from(object.len()).map_err(|_| internal("a pack is too long"))?;
        let pack = WrittenPack { size, units };
        state.set(no, PackState::Uploading(pack));
        state.uploads += 1;
        state.uploading += object.len();
        state.filled += object.len();
        let upload = Upload { sink: Arc::clone(self), no, pack, outcome: None };
        self.runtime.spawn(upload.run(object));
        Ok(())
    }

    /// Closes both packs and waits until everything appended so far is stored, while others may append more. The packs
    /// that hold it, by number from 0 on.
    pub(super) async fn flush(self: &Arc<Self>) -> Result<Vec<WrittenPack>> {
        let sink = Arc::clone(self);
        // Not one of the bounded workers: streams may be holding all of those.
        let close = tokio::task::spawn_blocking(move || {
            let mut state = sink.lock();
            for open in [state.data.take(), state.tables.take()].into_iter().flatten() {
                sink.upload(&mut state, open)?;
            }
            Ok::<_, RepoError>(state.packs.len())
        });
        let count = close.await.map_err(internal)??;
        loop {
            let ended = self.ended.notified();
            {
                let mut state = self.lock();
                state.check()?;
                let stored = state.packs.iter().take(count).map(|pack| match &pack.state {
                    PackState::Stored(pack) => Some(*pack),
                    _ => None,
                });
                if let Some(packs) = stored.collect() {
                    return Ok(packs);
                }
            }
            ended.await;
        }
    }

    /// What is stored by now, whatever is open or on its way.
    pub(super) fn stored_packs(&self) -> StoredPacks {
        let state = self.lock();
        let numbered = || state.packs.iter().zip(0u32..);
        let packs = numbered().filter_map(|(pack, no)| match pack.state {
            PackState::Stored(written) => Some((PackNo(no), written)),
            _ => None,
        });
        let unsure = numbered().find(|(p, _)| p.data && !matches!(p.state, PackState::Stored(_)));
        let all = u32::try_from(state.packs.len()).unwrap_or(u32::MAX);
        StoredPacks { packs: packs.collect(), data_below: PackNo(unsure.map_or(all, |(_, no)| no)) }
    }

    /// How many packs of blocks are stored.
    pub(super) fn stored_data_packs(&self) -> usize {
        let stored = |pack: &&Pack| pack.data && matches!(pack.state, PackState::Stored(_));
        self.lock().packs.iter().filter(stored).count()
    }

    /// Waits until nothing is on its way, whether it succeeded or not.
    pub(super) async fn settle(&self) {
        loop {
            let ended = self.ended.notified();
            if self.lock().uploads == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Bytes that are stored or on their way.
    pub(super) fn stored(&self) -> u64 {
        let size = |pack: &Pack| match &pack.state {
            PackState::Open => 0,
            PackState::Uploading(pack) | PackState::Stored(pack) => u64::from(pack.size),
        };
        self.lock().packs.iter().map(size).sum()
    }
}

impl State {
    fn set(&mut self, no: PackNo, to: PackState) {
        if let Some(pack) = usize::try_from(no.0).ok().and_then(|n| self.packs.get_mut(n)) {
            pack.state = to;
        }
    }

    fn check(&mut self) -> Result<()> {
        match self.failure.take() {
            None => Ok(()),
            Some(Failure::Untold(error)) => {
                self.failure = Some(Failure::Told(error.to_string()));
                Err(error)
            }
            Some(Failure::Told(text)) => {
                let error =
                    RepoError::Internal(format!("a pack could not be stored, so the backup ends: {text}"));
                self.failure = Some(Failure::Told(text));
                Err(error)
            }
        }
    }
}

fn open_len(open: &Option<PackBuilder>) -> u64 {
    open.as_ref().map_or(0, PackBuilder::len)
}

fn internal(error: impl std::fmt::Display) -> RepoError {
    RepoError::Internal(error.to_string())
}

/// One pack on its way. Whatever ends it, the waiting are told.
struct Upload {
    sink: Arc<PackSink>,
    no: PackNo,
    pack: WrittenPack,
    outcome: Option<Result<()>>,
}

impl Upload {
    async fn run(mut self, object: SealedObject) {
        let stored = self.sink.store.create_once(&object).await;
        drop(object);
        self.outcome = Some(match stored {
            Err(error) => Err(self.sink.backups.why_failed(self.sink.id, error).await),
            Ok(_) => Ok(()),
        });
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let mut state = self.sink.lock();
        state.uploads -= 1;
        state.uploading -= u64::from(self.pack.size);
        let cut_off = || Err(RepoError::Internal("an upload was cut off: the program is ending".to_owned()));
        match self.outcome.take().unwrap_or_else(cut_off) {
            Ok(()) => state.set(self.no, PackState::Stored(self.pack)),
            Err(error) if state.failure.is_none() => state.failure = Some(Failure::Untold(error)),
            Err(_) => {}
        }
        drop(state);
        self.sink.room.notify_all();
        self.sink.ended.notify_waiters();
    }
}
