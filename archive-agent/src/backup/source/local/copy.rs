//! The copying between start and stop: one thread walks, several read, and the session that holds the backup is watched.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, anyhow};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use walpoint_base::Lsn;
use walpoint_pg::server::BackupSession;
use walpoint_repo::backup::BackupWriter;

use super::reader::Reader;
use crate::backup::replica::{Replicas, Streams};
use crate::backup::source::pages::Newest;
use crate::backup::source::shared::Shared;
use crate::backup::source::{ENDING, HEARTBEAT, NOTE_PROGRESS};
use crate::walk::{BackupRoots, Entered, FoundFile, FoundKind};

/// Batches that wait for a reader.
const QUEUE: usize = 8;
/// A batch is handed on with so many paths, or with files of so many bytes: a reader is woken once for many small files, and
/// one with a large file does not keep others waiting.
const BATCH: usize = 64;
const BATCH_BYTES: u64 = 1 << 20;

/// Threads that ask where WAL ends, and wait for the answer of the backup's session.
pub(super) type Positions = mpsc::Receiver<oneshot::Sender<Option<Lsn>>>;

/// A way to ask where WAL ends while the copying goes on. Without an answer it is not known.
pub(super) fn positions() -> (Newest, Positions) {
    let (ask, positions) = mpsc::channel::<oneshot::Sender<Option<Lsn>>>(1);
    // The readers are threads that may block.
    let newest = Newest::new(move || {
        let (answer, answered) = oneshot::channel();
        ask.blocking_send(answer).ok()?;
        answered.blocking_recv().ok().flatten()
    });
    (newest, positions)
}

/// The threads that copy a data directory.
pub(super) struct CopyThreads<'a> {
    /// What is walked over.
    pub(super) roots: &'a BackupRoots,
    /// What they share.
    pub(super) shared: &'a Arc<Shared>,
    /// Where the files go.
    pub(super) replicas: &'a Replicas<BackupWriter>,
    /// How many of them read.
    pub(super) readers: usize,
}

impl CopyThreads<'_> {
    /// Copies everything but `pg_control`; what the walk met. Ends early, with an error, when the session is lost, when nothing
    /// can be stored any more, or when [`Shared::stop`] is cancelled.
    pub(super) async fn copy(
        &self,
        session: &mut BackupSession,
        positions: Positions,
    ) -> anyhow::Result<Entered> {
        let entered = Arc::new(Mutex::new(None));
        let mut threads = self.begin(&entered);
        let result = self.watch(&mut threads, session, positions).await;
        if result.is_err() {
            self.shared.stop.cancel();
            tokio::time::timeout(ENDING, async { while threads.join_next().await.is_some() {} }).await.ok();
        }
        result?;
        let entered = entered.lock().unwrap_or_else(PoisonError::into_inner).take();
        entered.context("the walk over the data directory did not finish")
    }

    /// Begins to walk and to read; `entered` gets what the walk met.
    fn begin(&self, entered: &Arc<Mutex<Option<Entered>>>) -> JoinSet<anyhow::Result<()>> {
        let (sender, receiver) = sync_channel(QUEUE);
        let receiver = Arc::new(Mutex::new(receiver));
        let mut threads = JoinSet::new();
        for _ in 0..self.readers.max(1) {
            let (shared, receiver) = (Arc::clone(self.shared), Arc::clone(&receiver));
            let streams = self.replicas.streams();
            threads.spawn_blocking(move || read_all(&shared, streams, &receiver));
        }
        let (roots, shared, slot) = (self.roots.clone(), Arc::clone(self.shared), Arc::clone(entered));
        threads.spawn_blocking(move || {
            let entered = walk(&roots, &shared, &sender)?;
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(entered);
            Ok(())
        });
        threads
    }

    /// Waits for all threads, and for anything that makes their work useless.
    async fn watch(
        &self,
        threads: &mut JoinSet<anyhow::Result<()>>,
        session: &mut BackupSession,
        mut positions: Positions,
    ) -> anyhow::Result<()> {
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut note = interval(NOTE_PROGRESS);
        note.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ended = threads.join_next() => match ended {
                    None => return Ok(()),
                    Some(ended) => ended.context("a thread of the backup panicked")??,
                },
                _ = heartbeat.tick() => {
                    session.check().await.context("the backup's session on the server is lost")?;
                }
                _ = note.tick() => self.replicas.note_progress(false).await,
                Some(asks) = positions.recv() => {
                    asks.send(session.position().await.ok().flatten()).ok();
                }
            }
        }
    }
}

fn walk(
    roots: &BackupRoots,
    shared: &Shared,
    sender: &SyncSender<Vec<FoundFile>>,
) -> anyhow::Result<Entered> {
    let hand_on = |batch| sender.send(batch).map_err(|_| anyhow!("all readers of the backup have ended"));
    let (mut batch, mut bytes) = (Vec::with_capacity(BATCH), 0);
    let entered = roots.walk(&mut |found| {
        if shared.stop.is_cancelled() {
            return Err(anyhow!("the backup was stopped"));
        }
        if let FoundKind::File(occupied) = found.kind {
            bytes += occupied;
        }
        batch.push(found);
        if batch.len() < BATCH && bytes < BATCH_BYTES {
            return Ok(());
        }
        bytes = 0;
        hand_on(std::mem::replace(&mut batch, Vec::with_capacity(BATCH)))
    })?;
    hand_on(batch)?;
    Ok(entered)
}

fn read_all(
    shared: &Arc<Shared>,
    streams: Streams,
    receiver: &Mutex<Receiver<Vec<FoundFile>>>,
) -> anyhow::Result<()> {
    let mut reader = Reader::new(shared, streams);
    loop {
        // Released before the files are read.
        let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(batch) => batch.iter().try_for_each(|found| reader.take(found))?,
            Err(_) => return reader.finish(),
        }
    }
}
