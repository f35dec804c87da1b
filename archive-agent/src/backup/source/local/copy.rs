//! The copying between start and stop: one thread walks, several read, and the session that holds the backup is watched.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use walpoint_base::Lsn;
use walpoint_pg::server::BackupSession;
use walpoint_repo::backup::BackupWriter;

use super::reader::{Reader, Shared};
use crate::backup::replica::streams::{Failures, Lanes};
use crate::backup::source::pages::Newest;
use crate::walk::{Entered, Found, Ground, Kind};

/// Batches that wait for a reader.
const QUEUE: usize = 8;
/// A batch is handed on with so many paths, or with files of so many bytes: a reader is woken once for many small files, and
/// one with a large file does not keep others waiting.
const BATCH: usize = 64;
const BATCH_BYTES: u64 = 1 << 20;
/// How often the backup's session is asked whether it still lives.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(30);
/// How often is looked whether so much was stored that it is worth a note, so that the next backup need not store it again
/// if this one dies.
pub(crate) const NOTE_PROGRESS: Duration = Duration::from_millis(100);

/// Threads that ask where WAL ends, and wait for the answer of the backup's session.
pub(crate) type Positions = mpsc::Receiver<oneshot::Sender<Option<Lsn>>>;

/// A way to ask where WAL ends while the copying goes on. Without an answer it is not known.
pub(crate) fn positions() -> (Newest, Positions) {
    let (ask, positions) = mpsc::channel::<oneshot::Sender<Option<Lsn>>>(1);
    // The readers are threads that may block.
    let newest = Newest::new(move || {
        let (answer, answered) = oneshot::channel();
        ask.blocking_send(answer).ok()?;
        answered.blocking_recv().ok().flatten()
    });
    (newest, positions)
}

/// Copies everything but `pg_control`; what the walk met. Ends early, with an error, when the session is lost, when nothing can be stored any
/// more, or when [`Shared::stop`] is cancelled.
pub(crate) async fn copy(
    ground: &Ground,
    shared: &Arc<Shared>,
    writers: &[BackupWriter],
    failures: &Arc<Failures>,
    readers: usize,
    session: (&mut BackupSession, Positions),
) -> anyhow::Result<Entered> {
    let entered = Arc::new(Mutex::new(None));
    let (sender, receiver) = sync_channel(QUEUE);
    let receiver = Arc::new(Mutex::new(receiver));
    let mut threads = JoinSet::new();
    for _ in 0..readers.max(1) {
        let (shared, receiver) = (Arc::clone(shared), Arc::clone(&receiver));
        let lanes = Lanes::new(writers, failures);
        threads.spawn_blocking(move || read_all(&shared, lanes, &receiver));
    }
    drop(receiver);
    let (walker, walked, slot) = (ground.clone(), Arc::clone(shared), Arc::clone(&entered));
    threads.spawn_blocking(move || {
        let entered = walk(&walker, &walked, &sender)?;
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(entered);
        Ok(())
    });
    let result = watch(&mut threads, writers, failures, session).await;
    if result.is_err() {
        // A thread that waits for a store ends when the store's patience does; nothing it does counts any more.
        shared.stop.cancel();
        tokio::time::timeout(Duration::from_secs(5), async { while threads.join_next().await.is_some() {} })
            .await
            .ok();
    }
    result?;
    let entered = entered.lock().unwrap_or_else(PoisonError::into_inner).take();
    entered.context("the walk over the data directory did not end")
}

/// Waits for all threads, and for anything that makes their work useless.
async fn watch(
    threads: &mut JoinSet<anyhow::Result<()>>,
    writers: &[BackupWriter],
    failures: &Failures,
    (session, mut positions): (&mut BackupSession, Positions),
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
            _ = heartbeat.tick() => session.check().await.context("the backup's session on the server is lost")?,
            _ = note.tick() => note_progress(writers, failures, false).await,
            Some(asks) = positions.recv() => {
                asks.send(session.position().await.ok().flatten()).ok();
            }
        }
    }
}

/// Notes what is stored by now, where that is due; with `last` everything, as the backup ends early. Nothing depends on it
/// but how much the next backup stores again.
pub(crate) async fn note_progress(writers: &[BackupWriter], failures: &Failures, last: bool) {
    for (copy, writer) in writers.iter().enumerate() {
        if failures.has(copy) || !(last || writer.progress_is_due()) {
            continue;
        }
        let noted = if last { writer.progress().await } else { writer.note_progress().await };
        if let Err(error) = noted {
            tracing::warn!(
                "what the backup stored so far was not noted: {}",
                walpoint_storage::error::error_chain(&error)
            );
        }
    }
}

fn walk(ground: &Ground, shared: &Shared, sender: &SyncSender<Vec<Found>>) -> anyhow::Result<Entered> {
    let hand_on = |batch| sender.send(batch).map_err(|_| anyhow!("all readers of the backup have ended"));
    let (mut batch, mut bytes) = (Vec::with_capacity(BATCH), 0);
    let entered = ground.walk(&mut |found| {
        if shared.stop.is_cancelled() {
            return Err(anyhow!("the backup was stopped"));
        }
        if let Kind::File(occupied) = found.kind {
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
    lanes: Lanes,
    receiver: &Mutex<Receiver<Vec<Found>>>,
) -> anyhow::Result<()> {
    let mut reader = Reader::new(shared, lanes);
    loop {
        // Released before the files are read.
        let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(batch) => batch.iter().try_for_each(|found| reader.take(found))?,
            Err(_) => return reader.finish(),
        }
    }
}
