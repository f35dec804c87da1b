//! The tasks of one cluster: answering `archive-push`, and looking ahead.

use std::fmt::Display;
use std::io::ErrorKind::{TimedOut, WouldBlock};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{OptionFuture, join_all};
use tokio::sync::SetOnce;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use walpoint_base::ClusterName;
use walpoint_base::socket::ProblemKind;
use walpoint_runtime::args::Selection;
use walpoint_runtime::config::{ClusterSettings, duration};
use walpoint_runtime::owner;
use walpoint_storage::store::StoreSettings;

use super::OWNER_LIMIT;
use super::health::{Board, Health};
use super::task::keep_running;
use crate::health::{NoAnswer, PUSH_SOCKET};
use crate::wal::archiver::Archiver;
use crate::wal::disk;
use crate::wal::socket::Sockets;
use crate::wal::upload::Uploader;
use crate::wal::{backfill, beside, catch_up, index, once, problems, ready, serve, split_brain, stream};

/// How often to look whether another daemon is gone, or the data directory there.
const PLACE_INTERVAL: Duration = Duration::from_secs(1);

/// A daemon that has given no answer so often in a row, each time for as long as `health` waits, hangs, or was killed and cannot end.
/// One that has a place and is not there so often has lost the socket's name, and hangs, or it would have listened anew.
const HANGS: u32 = 3;

/// Everything that the tasks of a cluster need.
pub(super) struct ClusterTasks {
    cluster: ClusterName,
    archiver: Arc<Archiver>,
    socket: PathBuf,
    /// PostgreSQL's user, once the data directory was there.
    owner: Arc<SetOnce<u32>>,
    look_ahead: usize,
    transfers: usize,
    drain: Duration,
    /// For the WAL stream, if there is to be one.
    streams: Option<Arc<ClusterSettings>>,
}

impl ClusterTasks {
    /// Prepares the tasks; neither PostgreSQL nor its data directory nor a repository has to be reachable.
    pub(super) fn new(selection: &Selection<StoreSettings>, pgdata: &Path, drain: Duration) -> Self {
        let settings = &selection.settings;
        let archiver = {
            let queue_max = settings.queue_max.map(|max| max.as_u64());
            Archiver::new(Uploader::new(selection, pgdata), duration(settings.push_timeout), queue_max)
        };
        Self {
            cluster: selection.cluster.clone(),
            archiver: Arc::new(archiver),
            socket: settings.push_socket(&selection.cluster),
            owner: Arc::default(),
            look_ahead: settings.look_ahead,
            transfers: settings.transfers,
            drain,
            streams: { settings.stream.as_ref() }
                .filter(|stream| stream.enabled)
                .map(|_| Arc::new(settings.clone())),
        }
    }

    /// Whose tasks they are.
    pub(super) fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Runs until `stop`. A panic that none of the tasks keeps to itself is a problem of its own, and all of them are started anew.
    pub(super) async fn keep_all(
        self,
        board: Board,
        sockets: Sockets,
        stop: CancellationToken,
        before: TaskTracker,
    ) {
        let health = Arc::new(board.add(&self.cluster, "all tasks".to_owned()));
        let all = Arc::new(self);
        keep_running(&health, &stop, || {
            let (all, health) = (Arc::clone(&all), Arc::clone(&health));
            let (board, sockets, stop, before) =
                (board.clone(), sockets.clone(), stop.clone(), before.clone());
            async move {
                health.working();
                all.run(board, sockets, stop, before).await;
                Ok(())
            }
        })
        .await;
    }

    /// Runs until `stop`, then finishes the pushes under way within the drain.
    ///
    /// `before` are the tasks that these replace. Pushes are answered beside them, and everything else begins when they have
    /// ended: what they still store, or miss, has to be there when the repositories are compared, which is done once.
    async fn run(&self, board: Board, sockets: Sockets, stop: CancellationToken, before: TaskTracker) {
        self.archiver.uploader().stores_beside_later();
        let last = CancellationToken::new();
        let push = Arc::new(board.add(&self.cluster, PUSH_SOCKET.to_owned()));
        let answering = keep_running(&push, &stop, || {
            let waiting = Answering {
                socket: self.socket.clone(),
                sockets: sockets.clone(),
                archiver: Arc::clone(&self.archiver),
                owner: Arc::clone(&self.owner),
                drain: self.drain,
                board: board.clone(),
            };
            waiting.run(Arc::clone(&push), stop.clone())
        });
        let (every, window) = (self.archiver.uploader().targets(), self.look_ahead);
        let looking = OptionFuture::from((window > 0).then(|| {
            self.keep("look-ahead", &board, &stop, &before, |archiver, health| {
                let working = move |waiting| {
                    tracing::trace!(task = health.name(), waiting, "scanned");
                    health.working();
                };
                ready::look_ahead(archiver, window, working)
            })
        }));
        let indexing = join_all(every.iter().enumerate().map(|(n, target)| {
            let what = format!("index of repository {}", target.name());
            self.keep(what, &board, &stop, &before, move |archiver, health| {
                index::keep(archiver, n, move || health.working())
            })
        }));
        let beside = || every.iter().enumerate().filter(|(_, target)| !target.acknowledges);
        let storing_beside = join_all(beside().map(|(n, _)| {
            beside::store(Arc::clone(&self.archiver), n, stop.clone(), last.clone(), self.drain)
        }));
        let answering = async {
            answering.await;
            last.cancel();
        };
        let catching_up = self.catch_up(&board, &stop, &before);
        let watching = self.watch(&board, &stop, &before);
        let staying_small = self.archiver.stay_small(stop.clone());
        tokio::join!(answering, looking, indexing, storing_beside, catching_up, watching, staying_small);
        self.archiver.abandon();
        // What waits for these tasks waits for all before them.
        before.wait().await;
    }

    /// The tasks that catch up each repository, if there are several.
    async fn catch_up(&self, board: &Board, stop: &CancellationToken, before: &TaskTracker) {
        let every = self.archiver.uploader().targets();
        let several = every.iter().enumerate().filter(|_| every.len() > 1);
        join_all(several.map(|(n, target)| {
            let (what, acknowledges) =
                (format!("catching up repository {}", target.name()), target.acknowledges);
            self.keep(what, board, stop, before, move |archiver, health| async move {
                match acknowledges {
                    true => catch_up::keep_acknowledging(archiver, n, move || health.working()).await,
                    false => catch_up::keep(archiver, n, move || health.working()).await,
                }
            })
        }))
        .await;
    }

    /// The tasks that watch the server and what waits there.
    async fn watch(&self, board: &Board, stop: &CancellationToken, before: &TaskTracker) {
        let backfilling = self.keep("looking for promotions", board, stop, before, |archiver, health| {
            backfill::keep(archiver, move || health.working())
        });
        let comparing = self.keep("identity", board, stop, before, |archiver, health| {
            split_brain::keep(archiver, move || health.working())
        });
        let archiving = self.keep("archiving", board, stop, before, |archiver, health| {
            let (failing, refusing) = (Arc::clone(&health), Arc::clone(&archiver));
            // PostgreSQL is told the words alone; while a repository refuses this server's WAL, they are about that.
            let kind = move || {
                let mut required = refusing.uploader().targets().iter().filter(|target| target.acknowledges);
                match required.any(|target| !target.split_brains().is_empty()) {
                    true => ProblemKind::SplitBrain,
                    false => ProblemKind::Other,
                }
            };
            archiver.tell_refusals(move || health.working(), move |problem| failing.failing(kind(), problem))
        });
        let telling = self.keep("queue", board, stop, before, |archiver, health| {
            problems::tell(archiver, move || health.working())
        });
        let streaming = OptionFuture::from({ self.streams.clone() }.map(|settings| {
            self.keep("WAL stream", board, stop, before, move |archiver, health| {
                stream::keep(archiver, Arc::clone(&settings), Arc::new(stream_reports(&health)))
            })
        }));
        tokio::join!(backfilling, comparing, archiving, telling, streaming);
    }

    /// Keeps a task of that name running until `stop`, from when `before` has ended and the data directory is there. Whatever it waits
    /// for then, a store that does not answer included, is not worth a longer drain.
    async fn keep<F>(
        &self,
        what: impl Display,
        board: &Board,
        stop: &CancellationToken,
        before: &TaskTracker,
        start: impl Fn(Arc<Archiver>, Arc<Health>) -> F,
    ) where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let health = Arc::new(board.add(&self.cluster, what.to_string()));
        let begin = async {
            before.wait().await;
            self.owner.wait().await;
        };
        tokio::select! {
            () = begin => {}
            () = stop.cancelled() => return,
        }
        health.begins();
        keep_running(&health, stop, || {
            let (work, stop) = (start(Arc::clone(&self.archiver), Arc::clone(&health)), stop.clone());
            async move {
                tokio::select! {
                    result = work => result,
                    () = stop.cancelled() => Ok(()),
                }
            }
        })
        .await;
    }

    /// Archives everything that is ready.
    pub(super) async fn archive_what_is_ready(&self) -> anyhow::Result<()> {
        once::archive_what_is_ready(&self.archiver, self.transfers).await
    }
}

/// Where the WAL stream says how it is.
fn stream_reports(health: &Arc<Health>) -> stream::StreamReports {
    let (working, waiting, failing) = (Arc::clone(health), Arc::clone(health), Arc::clone(health));
    stream::StreamReports {
        working: Box::new(move || working.working()),
        waiting: Box::new(move |why| waiting.waiting(why)),
        failing: Box::new(move |problem| failing.failing(ProblemKind::Other, problem)),
    }
}

/// What answering `archive-push` needs.
struct Answering {
    socket: PathBuf,
    sockets: Sockets,
    archiver: Arc<Archiver>,
    owner: Arc<SetOnce<u32>>,
    drain: Duration,
    board: Board,
}

impl Answering {
    /// Takes the socket, as soon as the data directory is there and no other daemon answers on it, and answers until it is lost.
    async fn run(self, health: Arc<Health>, stop: CancellationToken) -> anyhow::Result<()> {
        let owner = tokio::select! {
            owner = self.find_owner(&health) => owner?,
            () = stop.cancelled() => return Ok(()),
        };
        let mut hangs = 0;
        let socket = loop {
            if let Some(socket) = self.sockets.own(&self.socket) {
                break socket;
            }
            // What it is asked needs no store.
            let socket = self.socket.clone();
            let answer = tokio::task::spawn_blocking(move || crate::health::ask(&socket)).await?;
            // One that answers may have replaced the daemon that has the lock.
            let absent = matches!(answer, Err(NoAnswer::Absent(_)));
            if absent && let Some(socket) = self.sockets.listen(&self.socket, owner)? {
                break socket;
            }
            hangs = match answer {
                Err(NoAnswer::Silent { error }) if !matches!(error.kind(), WouldBlock | TimedOut) => 0,
                Err(_) => hangs + 1,
                Ok(_) => 0,
            };
            if hangs == HANGS {
                break self.sockets.replace(&self.socket, owner)?;
            }
            let shown = self.socket.display();
            health.waiting(&match hangs {
                0 => format!(
                    "another daemon answers on {shown}\nDETAIL: This daemon takes over when the \
                    other one exits."
                ),
                _ => format!(
                    "another daemon has {shown} and does not answer\nDETAIL: This daemon takes over if \
                     that continues."
                ),
            });
            tokio::select! {
                () = tokio::time::sleep(PLACE_INTERVAL) => {}
                () = stop.cancelled() => return Ok(()),
            }
        };
        health.working();
        let board = self.board;
        serve::serve(socket, self.archiver, owner, stop, self.drain, move || board.problems()).await
    }

    /// PostgreSQL's user, who owns the data directory and whom this process has to run as. Waits for the directory: what it
    /// lies on may be mounted later.
    async fn find_owner(&self, health: &Health) -> anyhow::Result<u32> {
        loop {
            let pgdata = self.archiver.uploader().pgdata();
            let directory = pgdata.to_owned();
            let own = disk::look_within(OWNER_LIMIT, pgdata, move || owner::require(&directory)).await;
            let Err(error) = own.map_err(anyhow::Error::from).and_then(|own| own) else { break };
            let problem = format!(
                "{}\nDETAIL: Nothing of this cluster is archived from here until that changes.",
                walpoint_words::format_chain(&error)
            );
            health.failing(ProblemKind::Other, &problem);
            tokio::time::sleep(PLACE_INTERVAL).await;
        }
        let owner = rustix::process::geteuid().as_raw();
        // An earlier run of this task may have found it; it is the same.
        self.owner.set(owner).ok();
        Ok(owner)
    }
}
