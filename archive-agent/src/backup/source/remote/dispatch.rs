//! Which thread stores which file: the one that has least to do, and a file as a whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;

use walpoint_pg::base_backup::{Event, ReportedPage, Status};
use walpoint_repo::backup::{Attributes, TablePath};

use super::store::Job;
use crate::backup::source::shared::Shared;

/// Bytes that are handed over at once: whole blocks, and enough of them that a frame is filled from one piece.
pub(super) const PIECE: usize = 256 << 10;

/// Pieces that wait for a thread.
pub(super) const WAITING: usize = 3;

/// A thread, seen from here.
#[derive(Debug)]
pub(super) struct Worker {
    /// Its work.
    pub(super) jobs: SyncSender<Job>,
    /// Bytes of it that wait.
    pub(super) load: Arc<AtomicU64>,
}

/// The threads have ended: one of them says why.
#[derive(Debug, thiserror::Error)]
#[error("the threads that store the backup have ended")]
pub(super) struct Gone;

/// Hands what was unpacked to the threads.
#[derive(Debug)]
pub(super) struct Dispatcher {
    workers: Vec<Worker>,
    shared: Arc<Shared>,
    /// Which thread has the open file.
    current: usize,
    open: Option<Vec<u8>>,
    piece: Vec<u8>,
}

impl Dispatcher {
    /// To these threads, of which there is at least one.
    pub(super) fn new(workers: Vec<Worker>, shared: Arc<Shared>) -> Self {
        Self { workers, shared, current: 0, open: None, piece: Vec::new() }
    }

    /// Takes what was unpacked.
    pub(super) fn take(&mut self, event: Event<'_>) -> anyhow::Result<()> {
        match event {
            Event::Directory { path, status } => {
                let attributes = self.attributes(status);
                self.pick();
                self.send(Job::Directory(TablePath::data(path)?, attributes))
            }
            Event::LinkedDirectory { path, target, status } => {
                let attributes = self.attributes(status);
                self.pick();
                self.send(Job::LinkedDirectory(TablePath::data(path)?, attributes, target.to_vec()))
            }
            Event::Link { path, target, status } => {
                let attributes = self.attributes(status);
                self.pick();
                self.send(Job::Link(TablePath::data(path)?, attributes, target.to_vec()))
            }
            Event::File { path, status, .. } => {
                let attributes = self.attributes(status);
                self.pick();
                self.open = Some(path.to_vec());
                self.send(Job::File(TablePath::data(path)?, attributes))
            }
            Event::Data(bytes) => self.data(bytes),
            Event::FileEnd => {
                self.hand_over()?;
                self.open = None;
                self.send(Job::FileEnd)
            }
        }
    }

    /// The server complains about a page of the open file.
    pub(super) fn reported(&mut self, page: ReportedPage) -> anyhow::Result<()> {
        match &self.open {
            Some(open) if *open == page.path => self.send(Job::Reported(page)),
            _ => Ok(()),
        }
    }

    fn data(&mut self, mut bytes: &[u8]) -> anyhow::Result<()> {
        let length = u64::try_from(bytes.len()).unwrap_or(0);
        self.shared.progress.add(length);
        self.shared.counts.read.fetch_add(length, Ordering::Relaxed);
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at((PIECE - self.piece.len()).min(bytes.len()));
            self.piece.extend_from_slice(now);
            bytes = rest;
            if self.piece.len() == PIECE {
                self.hand_over()?;
            }
        }
        Ok(())
    }

    fn hand_over(&mut self) -> anyhow::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::take(&mut self.piece);
        if let Some(worker) = self.workers.get(self.current) {
            worker.load.fetch_add(u64::try_from(piece.len()).unwrap_or(0), Ordering::Relaxed);
        }
        self.send(Job::Data(piece))
    }

    /// Chooses the thread that has least to do.
    fn pick(&mut self) {
        let loads = self.workers.iter().map(|worker| worker.load.load(Ordering::Relaxed)).enumerate();
        self.current = loads.min_by_key(|(_, load)| *load).map_or(0, |(at, _)| at);
    }

    fn send(&self, job: Job) -> anyhow::Result<()> {
        let worker = self.workers.get(self.current).ok_or(Gone)?;
        worker.jobs.send(job).map_err(|_| Gone.into())
    }

    fn attributes(&self, status: Status) -> Attributes {
        let attributes = attributes(status);
        let mut owners = self.shared.owners.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        owners.note(&attributes);
        attributes
    }
}

/// Owner, mode and time as a backup has them.
fn attributes(status: Status) -> Attributes {
    let Status { mode, uid, gid, mtime } = status;
    let mtime = i64::try_from(mtime).ok().and_then(|seconds| seconds.checked_mul(1_000_000_000)).unwrap_or(0);
    Attributes { mode, uid, gid, mtime }
}
