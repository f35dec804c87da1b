//! The tasks of one cluster: answering `archive-push`, and looking ahead.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use walpoint_base::ClusterName;
use walpoint_repo::store::StoreSettings;
use walpoint_runtime::args::Selection;
use walpoint_runtime::config::duration;

use super::health::{Board, Health};
use super::task::keep_running;
use crate::wal::archiver::Archiver;
use crate::wal::socket::Place;
use crate::wal::upload::Uploader;
use crate::wal::{backfill, catch_up, index, once, ready, serve};

/// How often to look whether another daemon is gone.
const PLACE_INTERVAL: Duration = Duration::from_secs(1);

/// How the name of the task ends that answers `archive-push`.
pub(super) const PUSH_SOCKET: &str = "push socket";

/// Everything that the tasks of a cluster need.
pub(super) struct ClusterTasks {
    cluster: ClusterName,
    archiver: Arc<Archiver>,
    socket: PathBuf,
    owner: u32,
    look_ahead: usize,
    transfers: usize,
    drain: Duration,
}

impl ClusterTasks {
    /// Prepares the tasks; neither PostgreSQL nor a repository has to be reachable.
    pub(super) fn new(
        selection: &Selection<StoreSettings>,
        pgdata: &Path,
        drain: Duration,
    ) -> anyhow::Result<Self> {
        let settings = &selection.settings;
        let owner =
            std::fs::metadata(pgdata).with_context(|| format!("{} cannot be read", pgdata.display()))?.uid();
        let archiver = Archiver::new(Uploader::new(selection, pgdata), duration(settings.push_timeout));
        Ok(Self {
            cluster: selection.cluster.clone(),
            archiver: Arc::new(archiver),
            socket: settings.push_socket(&selection.cluster),
            owner,
            look_ahead: settings.look_ahead,
            transfers: settings.transfers,
            drain,
        })
    }

    /// Runs until `stop`, then finishes the pushes under way within the drain.
    pub(super) async fn run(self, board: Board, stop: CancellationToken) {
        let push = Arc::new(board.add(format!("{}: {PUSH_SOCKET}", self.cluster)));
        let answering = keep_running(&push, &stop, || {
            let waiting = Answering {
                socket: self.socket.clone(),
                archiver: Arc::clone(&self.archiver),
                owner: self.owner,
                drain: self.drain,
                board: board.clone(),
            };
            waiting.run(Arc::clone(&push), stop.clone())
        });
        let looking = async {
            if self.look_ahead == 0 {
                return;
            }
            let health = Arc::new(board.add(format!("{}: look-ahead", self.cluster)));
            keep_running(&health, &stop, || {
                let health = Arc::clone(&health);
                let working = move |waiting| {
                    tracing::trace!(task = health.name(), waiting, "scanned");
                    health.working();
                };
                ready::look_ahead(Arc::clone(&self.archiver), self.look_ahead, stop.clone(), working)
            })
            .await;
        };
        let names = self.archiver.uploader().targets().iter().map(|target| target.name().to_owned());
        let indexing = join_all(names.enumerate().map(|(n, name)| {
            let health = Arc::new(board.add(format!("{}: index of repository {name}", self.cluster)));
            let (archiver, stop) = (Arc::clone(&self.archiver), stop.clone());
            async move {
                keep_running(&health, &stop, || {
                    let health = Arc::clone(&health);
                    index::keep(Arc::clone(&archiver), n, stop.clone(), move || health.working())
                })
                .await;
            }
        }));
        let beside = self.archiver.uploader().targets().iter().enumerate();
        let beside = beside.filter(|(_, target)| !target.acknowledges);
        let beside = beside.map(|(n, target)| (n, target.name().to_owned())).collect::<Vec<_>>();
        let catching_up = join_all(beside.into_iter().map(|(n, name)| {
            let health = Arc::new(board.add(format!("{}: catching up repository {name}", self.cluster)));
            let (archiver, stop) = (Arc::clone(&self.archiver), stop.clone());
            async move {
                keep_running(&health, &stop, || {
                    let health = Arc::clone(&health);
                    catch_up::keep(Arc::clone(&archiver), n, stop.clone(), move || health.working())
                })
                .await;
            }
        }));
        let backfilling = async {
            let health = Arc::new(board.add(format!("{}: looking for promotions", self.cluster)));
            keep_running(&health, &stop, || {
                let health = Arc::clone(&health);
                backfill::keep(Arc::clone(&self.archiver), stop.clone(), move || health.working())
            })
            .await;
        };
        let staying_small = self.archiver.stay_small(stop.clone());
        tokio::join!(answering, looking, indexing, catching_up, backfilling, staying_small);
        self.archiver.abandon();
    }

    /// Archives everything that is ready.
    pub(super) async fn archive_what_is_ready(&self) -> anyhow::Result<()> {
        once::archive_what_is_ready(&self.archiver, self.transfers).await
    }
}

/// What answering `archive-push` needs.
struct Answering {
    socket: PathBuf,
    archiver: Arc<Archiver>,
    owner: u32,
    drain: Duration,
    board: Board,
}

impl Answering {
    /// Takes the socket, as soon as no other daemon has it, and answers.
    async fn run(self, health: Arc<Health>, stop: CancellationToken) -> anyhow::Result<()> {
        let place = loop {
            if let Some(place) = Place::take(&self.socket, self.owner)? {
                break place;
            }
            health.waiting(&format!(
                "another daemon answers on {}; this one takes over when it ends",
                self.socket.display()
            ));
            tokio::select! {
                () = tokio::time::sleep(PLACE_INTERVAL) => {}
                () = stop.cancelled() => return Ok(()),
            }
        };
        let socket = place.listen()?;
        tracing::info!(socket = %self.socket.display(), "answering archive-push");
        health.working();
        let board = self.board;
        serve::serve(socket, self.archiver, self.owner, stop, self.drain, move || board.problems()).await
    }
}
