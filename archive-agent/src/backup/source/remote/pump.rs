//! Between the socket and the threads: hands on what the server sends, and ends the copying when there is no use in it.

use std::pin::pin;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::sync::mpsc::{self, Sender};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use walpoint_pg::base_backup::{BaseBackup, Part};
use walpoint_repo::backup::BackupWriter;

use super::dispatch::{Dealer, Hand, WAITING};
use super::store::store;
use super::unpack::{Announced, Delivered, unpack};
use crate::backup::replica::streams::{Failures, Lanes};
use crate::backup::run::INTERRUPTED;
use crate::backup::source::local::copy::{NOTE_PROGRESS, note_progress};
use crate::backup::source::local::reader::Shared;

/// Messages of the server that wait to be unpacked; each has some tens of kilobytes.
const QUEUE: usize = 32;

/// How long threads may take to notice that there is no use in going on.
const ENDING: Duration = Duration::from_secs(5);

/// Stores everything that the server sends, by so many threads; what came besides the files. `damaged` counts bad pages.
pub(super) async fn receive(
    stream: BaseBackup,
    announced: Announced,
    shared: &Arc<Shared>,
    writers: &[BackupWriter],
    failures: &Arc<Failures>,
    stores: usize,
    damaged: &Arc<AtomicU64>,
) -> anyhow::Result<Delivered> {
    let delivered = Arc::new(Mutex::new(None));
    let mut threads = JoinSet::new();
    let mut hands = Vec::new();
    for _ in 0..stores.max(1) {
        let (jobs, work) = sync_channel(WAITING);
        let load = Arc::new(AtomicU64::new(0));
        hands.push(Hand { jobs, load: Arc::clone(&load) });
        let (shared, lanes, damaged) =
            (Arc::clone(shared), Lanes::new(writers, failures), Arc::clone(damaged));
        threads.spawn_blocking(move || store(&shared, lanes, &work, &load, &damaged));
    }
    let (sender, parts) = mpsc::channel(QUEUE);
    let (dealer, slot) = (Dealer::new(hands, Arc::clone(shared)), Arc::clone(&delivered));
    threads.spawn_blocking(move || {
        let unpacked = unpack(parts, &announced, dealer)?;
        *slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = unpacked;
        Ok(())
    });
    let result = watch(&mut threads, stream, sender, writers, failures, shared).await;
    if result.is_err() {
        // A thread that waits for a store ends when the store's patience does; nothing it does counts any more.
        tokio::time::timeout(ENDING, async { while threads.join_next().await.is_some() {} }).await.ok();
    }
    result?;
    let delivered = delivered.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    delivered.ok_or_else(|| anyhow!("the threads that store the backup ended too early"))
}

/// Waits for all threads, and for anything that makes their work useless.
async fn watch(
    threads: &mut JoinSet<anyhow::Result<()>>,
    stream: BaseBackup,
    sender: Sender<Part>,
    writers: &[BackupWriter],
    failures: &Failures,
    shared: &Shared,
) -> anyhow::Result<()> {
    let mut note = interval_at(Instant::now() + NOTE_PROGRESS, NOTE_PROGRESS);
    note.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pumping = pin!(pump(stream, sender));
    let mut pumped = false;
    loop {
        tokio::select! {
            result = &mut pumping, if !pumped => {
                result?;
                pumped = true;
            }
            ended = threads.join_next() => match ended {
                None => return Ok(()),
                Some(ended) => ended.context("a thread of the backup panicked")??,
            },
            _ = note.tick() => note_progress(writers, failures, false).await,
            () = shared.stop.cancelled() => bail!(INTERRUPTED),
        }
    }
}

/// Hands on what the server sends, to the end.
async fn pump(mut stream: BaseBackup, parts: Sender<Part>) -> anyhow::Result<()> {
    while let Some(part) = stream.next().await? {
        if parts.send(part).await.is_err() {
            // The thread that takes them has ended, and says why.
            return Ok(());
        }
    }
    Ok(())
}
