//! `restore-agent prefetch`: serves one data directory until no server needs it.
//!
//! The socket listens before any repository is opened, so that `restore-fetch` never waits for a start. Killed at any
//! moment, this leaves a spool and a socket's name that the next prefetcher replaces.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use walpoint_base::socket::{self, FETCH_SOCKET};
use walpoint_base::{RECOVERY_ORIGIN, Recovery, WalDirectory, durable};
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::{config, help, owner, shutdown};
use walpoint_storage::store::StoreSettings;

use crate::wal::archive::ClusterArchive;
use crate::wal::histories::HistoryCache;
use crate::wal::note::TargetNote;
use crate::wal::prefetch::Prefetcher;
use crate::wal::serve::PrefetchServer;
use crate::wal::spool::{self, Spool};
use crate::wal::watchdog::{WatchEnd, Watchdog};

/// How often it is checked whether the prefetcher is still needed. `pg_rewind` may follow as soon as the server is gone, and fails on
/// files that come and go.
const CHECK: Duration = Duration::from_millis(100);

/// At one of so many of these checks more is looked at, and written.
const LARGE_CHECKS: u32 = 5;

/// How long requests under way may take after the end was decided.
const DRAIN: Duration = Duration::from_secs(5);

/// How long it may take to connect to a socket that may be another prefetcher's: the kernel does it unless that one hangs.
const OTHER: Duration = Duration::from_millis(100);

const EXAMPLES: &[(&str, &str)] = &[
    (
        "Prefetch for the data directory of the configuration, until it is not needed",
        "restore-agent prefetch",
    ),
    (
        "Prefetch in a sidecar, for any data directory at this path",
        "restore-agent prefetch --persistent --pgdata /var/lib/postgresql/data",
    ),
];

/// Options of `prefetch`.
#[derive(Debug, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct PrefetchArgs {
    /// Prefetch for this data directory [default: pgdata of the configuration].
    #[arg(long, value_name = "DIR")]
    pub(crate) pgdata: Option<PathBuf>,
    /// Listen for restore-fetch at this socket [default: fetch_socket of the configuration, or pg_dynshmem/walpoint-fetch in the data
    /// directory].
    #[arg(long, value_name = "SOCKET")]
    pub(crate) socket: Option<PathBuf>,
    /// Run until stopped, for any data directory at this path, as in a sidecar [default: exit when the server no longer needs it].
    #[arg(long)]
    pub(crate) persistent: bool,
}

/// Runs a prefetcher; with `--persistent` one after the other, for whatever data directory appears.
pub(crate) async fn run(common: &CommonArgs, args: &PrefetchArgs) -> Result<(), Failure> {
    common.require_config()?;
    let selection = common.select_to_read::<StoreSettings>()?;
    let pgdata = args.pgdata.clone().or_else(|| selection.settings.pgdata.clone());
    let pgdata = pgdata.ok_or_else(|| {
        Failure::usage(anyhow::anyhow!("--pgdata is missing, and the configuration of the cluster has none"))
    })?;
    let stop = shutdown::on_signal().context("signals cannot be handled")?;
    loop {
        let ended = match WalDirectory::of(&pgdata) {
            Some(place) => {
                owner::require(&pgdata)?;
                serve(selection.clone(), place, args, &stop).await?
            }
            None if args.persistent => Some(WatchEnd::DirectoryGone),
            None => {
                return Err(anyhow::anyhow!(
                    "{} is not a data directory: it has no global/pg_control, or no pg_wal",
                    pgdata.display()
                )
                .into());
            }
        };
        if !args.persistent || stop.is_cancelled() {
            return Ok(());
        }
        tracing::debug!("serving again after {ended:?}");
        tokio::select! {
            () = tokio::time::sleep(CHECK) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}

/// Whether one of the tasks of a prefetcher has ended. A panic is the only end that they have, and without one of them a prefetcher is there
/// and does nothing.
fn has_lost(tasks: &[JoinHandle<()>]) -> bool {
    let lost = tasks.iter().any(JoinHandle::is_finished);
    if lost {
        tracing::error!(
            "internal error: a task of the prefetcher ended\nDETAIL: The next request starts another prefetcher."
        );
    }
    lost
}

/// Waits for the requests that are being answered.
async fn drain(server: &PrefetchServer) {
    let drained = async {
        while server.idle().is_zero() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!("a request was not answered before the end");
    }
}

/// Serves one data directory to the end; `None` if another prefetcher does so already, or after a signal.
async fn serve(
    selection: Selection<StoreSettings>,
    place: WalDirectory,
    args: &PrefetchArgs,
    stop: &CancellationToken,
) -> Result<Option<WatchEnd>, Failure> {
    let settings = selection.settings.clone();
    let root = settings.spool.clone().unwrap_or_else(|| place.wal.join(spool::DIRECTORY));
    let spool = Spool::open(&root).with_context(|| format!("the spool {} cannot be used", root.display()))?;
    let Some(spool) = spool else {
        tracing::info!("another prefetcher owns {}", root.display());
        return Ok(None);
    };
    let socket = Socket::bind(
        &args
            .socket
            .clone()
            .or(settings.fetch_socket.clone())
            .unwrap_or_else(|| place.pgdata.join(FETCH_SOCKET)),
    )?;
    tidy_up(&place, &root);
    if place.recovery == Recovery::Standby {
        let cache = HistoryCache::in_wal(&place.wal);
        cache
            .leave_policy(settings.standby_history_outage)
            .context("standby_history_outage cannot be noted")?;
    }

    let archive = ClusterArchive::new(selection, Some(&place));
    let idle_limit =
        if args.persistent { Duration::MAX } else { config::duration(settings.prefetch_idle_timeout) };
    let mut life = Watchdog::new(place.clone(), idle_limit);
    let prefetcher = Prefetcher::new(archive, spool, place.clone(), &settings);
    let server = PrefetchServer::new(Arc::clone(&prefetcher), &settings);
    let tasks = [
        tokio::spawn(Arc::clone(&server).accept(socket.listener)),
        tokio::spawn(Arc::clone(&prefetcher).run_ahead()),
    ];
    let end = watch((&prefetcher, &server), &tasks, &mut life, args.persistent, stop).await;
    tracing::debug!("the prefetcher ends: {end:?}");
    socket.name.remove();
    // A server that was started meanwhile found no socket, and pg_rewind does not run beside it.
    if life.is_server_gone() {
        tasks.iter().for_each(JoinHandle::abort);
        prefetcher.leave().with_context(|| format!("the spool {} is not emptied", root.display()))?;
        return Ok(end);
    }
    drain(&server).await;
    tasks.iter().for_each(JoinHandle::abort);
    prefetcher.archive().origin().write_served();
    let over = end.is_some_and(WatchEnd::recovery_is_over);
    if over && Recovery::of(&place.pgdata) != Recovery::Standby {
        HistoryCache::in_wal(&place.wal)
            .remove()
            .context("the histories of the standby cannot be removed")?;
    }
    // PostgreSQL removes the signal file before it asks for the history of the timeline that it leaves. Where that one is lost, the
    // note answers.
    let left = TargetNote::read(&place.wal.join(spool::DIRECTORY));
    let asks_again = left.is_some_and(|note| note.without.contains(&note.timeline));
    if over {
        durable::remove(&place.wal.join(RECOVERY_ORIGIN))
            .context("what the recovery began with cannot be forgotten")?;
    }
    if over && !asks_again {
        forget_note(&place.wal, &root).context("the recovery target cannot be forgotten")?;
    }
    prefetcher
        .close(over && !asks_again)
        .with_context(|| format!("the spool {} is not cleaned up", root.display()))?;
    Ok(end)
}

/// Waits until the prefetcher is not needed any more: why that is, or `None` after a signal or without one of its tasks.
async fn watch(
    (prefetcher, server): (&Prefetcher, &PrefetchServer),
    tasks: &[JoinHandle<()>],
    life: &mut Watchdog,
    persistent: bool,
    stop: &CancellationToken,
) -> Option<WatchEnd> {
    let mut checks = 0_u32;
    loop {
        tokio::select! {
            () = tokio::time::sleep(CHECK) => {}
            () = stop.cancelled() => return None,
        }
        if has_lost(tasks) {
            return None;
        }
        match life.check(server.idle()) {
            // A sidecar serves whatever comes next in this place.
            Some(WatchEnd::Recovered | WatchEnd::ServerGone) if persistent => {}
            Some(end) => return Some(end),
            None => {}
        }
        checks = checks.wrapping_add(1);
        if checks.is_multiple_of(LARGE_CHECKS) {
            prefetcher.archive().origin().write_served();
            if !(prefetcher.spool().is_ours() && prefetcher.archive().origin().is_current()) {
                return Some(WatchEnd::DirectoryGone);
            }
        }
    }
}

/// Removes the note of a recovery that is over from `pg_wal`, where a restore leaves it; a spool that lies there is removed with it.
fn forget_note(wal: &Path, spool: &Path) -> io::Result<()> {
    let left = wal.join(spool::DIRECTORY);
    if left == spool || !left.is_dir() {
        return Ok(());
    }
    TargetNote::remove(&left)?;
    match fs::remove_dir(&left) {
        // The histories of a standby stay.
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(error),
        _ => Ok(()),
    }
}

/// Removes in the background what killed processes left: there may be thousands of files.
fn tidy_up(place: &WalDirectory, root: &Path) {
    let (wal, root) = (place.wal.clone(), root.to_owned());
    tokio::task::spawn_blocking(move || {
        let tidied = Spool::delete_discarded(&root).and_then(|()| durable::remove_abandoned(&wal));
        if let Err(error) = tidied {
            tracing::warn!("what a killed prefetcher left is not removed: {error}");
        }
    });
}

/// A socket that listens, and its name.
struct Socket {
    listener: UnixListener,
    name: Name,
}

impl Socket {
    /// Listens at `path`. The name that a killed prefetcher left is replaced, one at which another process answers is not.
    fn bind(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        match socket::connect(path, OTHER) {
            Ok(_) => anyhow::bail!(
                "another prefetcher answers at {shown}\nHINT: Each data directory needs its own socket."
            ),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => anyhow::bail!(
                "another prefetcher listens at {shown} and hangs: {error}\nHINT: End that process, or name another socket \
                 (fetch_socket)."
            ),
            Err(_) => {}
        }
        durable::remove(path).with_context(|| format!("the old socket {shown} cannot be removed"))?;
        let listener = UnixListener::bind(path).with_context(|| {
            let long = if path.as_os_str().len() > 100 {
                "\nHINT: A socket's path holds 107 bytes: choose a shorter one (fetch_socket)."
            } else {
                ""
            };
            format!("cannot listen at {shown}{long}")
        })?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .with_context(|| format!("the mode of {shown} cannot be set"))?;
        let inode = fs::metadata(path).with_context(|| format!("{shown} is gone"))?.ino();
        Ok(Self { listener, name: Name { path: path.to_owned(), inode } })
    }
}

/// The name of a socket.
struct Name {
    path: PathBuf,
    inode: u64,
}

impl Name {
    /// Removes the name, if it still leads to this process.
    fn remove(&self) {
        if fs::metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!("the socket {} is not removed: {error}", self.path.display());
        }
    }
}
