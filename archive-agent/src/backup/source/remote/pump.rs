//! Between the socket and the threads: hands on what the server sends, and ends the copying when there is no use in it.

use std::pin::pin;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, anyhow, bail};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use walpoint_pg::base_backup::{BaseBackup, StreamPart};
use walpoint_repo::backup::BackupWriter;

use super::dispatch::{Dispatcher, WAITING, Worker};
use super::store::Jobs;
use super::unpack::{Announced, Delivered, unpack};
use crate::backup::replica::Replicas;
use crate::backup::request::INTERRUPTED;
use crate::backup::source::shared::Shared;
use crate::backup::source::{ENDING, NOTE_PROGRESS};

/// Messages of the server that wait to be unpacked; each has some tens of kilobytes.
const QUEUE: usize = 32;

/// The threads that store what a server sends.
pub(super) struct StoreThreads<'a> {
    /// What they share.
    pub(super) shared: &'a Arc<Shared>,
    /// Where the files go.
    pub(super) replicas: &'a Replicas<BackupWriter>,
    /// How many of them store.
    pub(super) workers: usize,
}

impl StoreThreads<'_> {
    /// Stores everything that the server sends; what came besides the files.
    pub(super) async fn receive(
        &self,
        stream: BaseBackup,
        announced: Announced,
    ) -> anyhow::Result<Delivered> {
        let delivered = Arc::new(Mutex::new(None));
        let (sender, parts) = mpsc::channel(QUEUE);
        let mut threads = self.begin(parts, announced, &delivered);
        let result = self.watch(&mut threads, stream, sender).await;
        if result.is_err() {
            tokio::time::timeout(ENDING, async { while threads.join_next().await.is_some() {} }).await.ok();
        }
        result?;
        let delivered = delivered.lock().unwrap_or_else(PoisonError::into_inner).take();
        delivered.ok_or_else(|| anyhow!("the threads that store the backup ended too early"))
    }

    /// Begins to unpack and to store; `delivered` gets what came besides the files.
    fn begin(
        &self,
        parts: Receiver<StreamPart>,
        announced: Announced,
        delivered: &Arc<Mutex<Option<Delivered>>>,
    ) -> JoinSet<anyhow::Result<()>> {
        let mut threads = JoinSet::new();
        let mut workers = Vec::new();
        for _ in 0..self.workers.max(1) {
            let (jobs, queue) = sync_channel(WAITING);
            let load = Arc::new(AtomicU64::new(0));
            workers.push(Worker { jobs, load: Arc::clone(&load) });
            let jobs = Jobs { queue, load, shared: Arc::clone(self.shared) };
            let streams = self.replicas.streams();
            threads.spawn_blocking(move || jobs.store(streams));
        }
        let (dispatcher, slot) = (Dispatcher::new(workers, Arc::clone(self.shared)), Arc::clone(delivered));
        threads.spawn_blocking(move || {
            let unpacked = unpack(parts, &announced, dispatcher)?;
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = unpacked;
            Ok(())
        });
        threads
    }

    /// Waits for all threads, and for anything that makes their work useless.
    async fn watch(
        &self,
        threads: &mut JoinSet<anyhow::Result<()>>,
        stream: BaseBackup,
        sender: Sender<StreamPart>,
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
                _ = note.tick() => self.replicas.note_progress(false).await,
                () = self.shared.stop.cancelled() => bail!(INTERRUPTED),
            }
        }
    }
}

/// Hands on what the server sends, to the end.
async fn pump(mut stream: BaseBackup, parts: Sender<StreamPart>) -> anyhow::Result<()> {
    while let Some(part) = stream.next().await? {
        if parts.send(part).await.is_err() {
            // The thread that takes them has ended, and says why.
            return Ok(());
        }
    }
    Ok(())
}
