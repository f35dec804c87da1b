//! The daemon: one process for one or more clusters.
//!
//! | module | owns |
//! |---|---|
//! | [`cluster`] | the tasks of one cluster |
//! | [`task`] | restarting a task that fails |
//! | [`health`] | what each task says about itself |
//!
//! It keeps nothing on disk but sockets and their locks: killed at any moment it loses nothing, and the next one starts
//! from `archive_status` and the repositories.

mod cluster;
mod health;
mod task;

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use walpoint_base::{ClusterName, Diagnostic};
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::config::{DaemonSettings, duration};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::{owner, shutdown};
use walpoint_storage::store::StoreSettings;
use walpoint_words::format_chain;

use self::cluster::ClusterTasks;
use self::health::{Board, TaskState};
use crate::selection::{pgdata, selections};
use crate::wal::disk;
use crate::wal::socket::Sockets;

/// A push socket that has not said by then whether it answers is not waited for.
const READY_LIMIT: Duration = Duration::from_secs(5);

/// How long a data directory may take to say whose it is. Less than a push socket has for being ready.
const OWNER_LIMIT: Duration = Duration::from_secs(2);

/// How often the push sockets are looked at, first until the limit, then while none answers.
const LOOKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

/// What the configuration asks of the daemon.
struct Settings {
    clusters: Vec<Selection<StoreSettings>>,
    daemon: DaemonSettings,
}

impl Settings {
    /// Reads and checks everything that can be checked without a repository. One data directory that is missing or another
    /// user's, or does not answer, keeps the other clusters from nothing; if all that are there are another user's, this is the wrong
    /// user.
    async fn read(common: &CommonArgs) -> Result<Self, Failure> {
        let clusters = selections(common)?;
        let directories = clusters.iter().map(pgdata).collect::<Result<Vec<&Path>, Failure>>()?;
        let look = |pgdata| async move {
            let directory = Path::to_owned(pgdata);
            let own = move || owner::require(&directory).map_err(|error| (error, directory.exists()));
            disk::look_within(OWNER_LIMIT, pgdata, own).await
        };
        let mut usable = false;
        let mut foreign = None;
        for own in join_all(directories.into_iter().map(look)).await {
            match own {
                // One that does not answer may be this user's; its cluster's tasks tell of it.
                Ok(Ok(())) | Err(_) => usable = true,
                Ok(Err((error, true))) => foreign = foreign.or(Some(error)),
                Ok(Err((_, false))) => {}
            }
        }
        if let Some(error) = foreign.filter(|_| !usable) {
            return Err(error.into());
        }
        let config = common.read_config::<StoreSettings>()?;
        Ok(Self { clusters, daemon: config.map(|c| c.daemon).unwrap_or_default() })
    }

    /// The tasks of each cluster.
    fn tasks(&self) -> Result<Vec<ClusterTasks>, Failure> {
        let drain = duration(self.daemon.drain_timeout);
        let tasks = |selection: &_| Ok(ClusterTasks::new(selection, pgdata(selection)?, drain));
        self.clusters.iter().map(tasks).collect()
    }
}

/// What runs by one reading of the configuration.
#[derive(Default)]
struct Generation {
    board: Board,
    stop: CancellationToken,
    clusters: TaskTracker,
}

impl Generation {
    /// What runs at the beginning.
    fn of_nothing() -> Self {
        let nothing = Self::default();
        nothing.clusters.close();
        nothing
    }

    /// Starts the tasks, in place of those that run. What these have under way they finish beside it; `stop` ends both.
    fn replace(&mut self, tasks: Vec<ClusterTasks>, sockets: &Sockets, stop: &CancellationToken) {
        let next = Self { board: Board::default(), stop: stop.child_token(), clusters: TaskTracker::new() };
        self.stop.cancel();
        for cluster in tasks {
            let before = self.clusters.clone();
            let run = cluster.keep_all(next.board.clone(), sockets.clone(), next.stop.clone(), before);
            next.clusters.spawn(run);
        }
        next.clusters.close();
        *self = next;
    }
}

/// Runs until SIGTERM or SIGINT, then drains. SIGHUP reads the configuration again; a wrong one changes nothing.
pub(crate) async fn run(common: &CommonArgs) -> Result<(), Failure> {
    let stop = shutdown::on_signal()?;
    let mut reloads = shutdown::reloads()?;
    let sockets = Sockets::default();
    let mut tasks = Settings::read(common).await?.tasks()?;
    let mut current = Generation::of_nothing();
    let mut first = true;
    loop {
        // Whoever asks meanwhile waits for the next generation, and no other daemon takes the place.
        let kept = sockets.all();
        let clusters = tasks.len();
        let names: Vec<ClusterName> = tasks.iter().map(|tasks| tasks.cluster().clone()).collect();
        current.replace(tasks, &sockets, &stop);
        all_spoke(&current.board, clusters).await;
        drop(kept);
        let mut ready = false;

        tasks = loop {
            tokio::select! {
                biased;
                () = one_answers(&current.board), if !ready => {
                    ready = true;
                    tracing::info!(clusters, version = env!("WALPOINT_VERSION"), "ready");
                    if first {
                        shutdown::notify_ready();
                        tokio::spawn(shutdown::watchdog());
                    } else {
                        shutdown::notify_reloaded()
                    }
                    first = false;
                }
                () = stop.cancelled() => {
                    shutdown::notify_stopping();
                    current.clusters.wait().await;
                    tracing::info!("stopped");
                    return Ok(());
                }
                _ = reloads.recv() => {
                    tracing::info!("SIGHUP: reading the configuration again");
                    match Settings::read(common).await.and_then(|settings| settings.tasks()) {
                        Ok(tasks) => break tasks,
                        Err(failure) => {
                            tracing::error!("not reloaded, the old configuration stays in use: {failure}");
                            let why = failure.to_string();
                            names.iter().for_each(|cluster| current.board.not_reloaded(cluster, &why));
                        }
                    }
                }
            }
        };
    }
}

/// Waits until every push socket answers, or has said why not, and reports those that do not. What needs a repository may take
/// longer.
async fn all_spoke(board: &Board, clusters: usize) {
    let silent = async {
        while board.push_sockets().filter(|(_, state)| *state != TaskState::Starting).count() < clusters {
            tokio::time::sleep(LOOKS.0).await;
        }
    };
    // What still starts after the limit is reported with what failed.
    tokio::time::timeout(READY_LIMIT, silent).await.ok();
    let dumb: Vec<String> =
        board.push_sockets().filter(|(_, state)| !state.is_fit()).map(|(name, _)| name).collect();
    match dumb.len() {
        0 => {}
        all if all == clusters => {
            tracing::error!(
                "not ready: no push socket answers\nDETAIL: archive-push archives by itself meanwhile."
            );
        }
        some => tracing::error!(
            "{some} of {clusters} push sockets do not answer: {}\nDETAIL: archive-push archives by itself there.",
            dumb.join(", ")
        ),
    }
}

/// Waits until a push socket answers, or would but for another daemon.
async fn one_answers(board: &Board) {
    while !board.push_sockets().any(|(_, state)| state.is_fit()) {
        tokio::time::sleep(LOOKS.1).await;
    }
}

/// Archives everything that is ready in every cluster, then ends; an error names how many files are left.
pub(crate) async fn once(common: &CommonArgs) -> Result<(), Failure> {
    let settings = Settings::read(common).await?;
    // All at once: one that hangs keeps no other from being archived.
    let archived = join_all(settings.clusters.iter().map(|selection| async move {
        let pgdata = pgdata(selection).map_err(|failure| failure.error)?;
        let directory = pgdata.to_owned();
        disk::look(pgdata, move || owner::require(&directory)).await??;
        ClusterTasks::new(selection, pgdata, Duration::ZERO).archive_what_is_ready().await
    }));
    let archived: Vec<anyhow::Result<()>> = archived.await;
    let failed = settings
        .clusters
        .iter()
        .zip(archived)
        .filter_map(|(selection, archived)| Some((selection, archived.err()?)));
    let problems: Vec<String> = failed
        .map(|(selection, error)| format!("cluster {}: {}", selection.cluster, format_chain(&error)))
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(Diagnostic::gather("", problems).into()) }
}
