//! The look-ahead: uploads what PostgreSQL is about to ask for, found in `archive_status`.
//!
//! A scan of the directory is the truth; file system events only make the next scan come sooner, so a lost event or a
//! network file system costs seconds, not WAL. A failed upload is forgotten here and told when PostgreSQL asks for the file.
//! A server that does not ask gets nothing uploaded ([`asking`](super::asking)). If `archive_command` is replaced by something that always
//! succeeds, nothing is left waiting; then a file that waited and was archived without a question shows it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use walpoint_base::WalFileName;

use super::archiver::Archiver;
use super::disk::{self, DiskError};
use super::order::FirstInOrder;
use super::upload::Upload;

/// Scans are this far apart when nothing hints at an earlier one.
const SCAN_INTERVAL: Duration = Duration::from_secs(10);

/// Names taken from one scan beyond the window, so that a long backlog is not scanned for every file. PostgreSQL takes as
/// many.
const NAMES_PER_SCAN: usize = 64;

/// What a scan found.
#[derive(Debug)]
pub(crate) struct ReadyScan {
    /// The first names, in PostgreSQL's order.
    pub(crate) first: VecDeque<WalFileName>,
    /// How many there are in all.
    pub(crate) count: usize,
}

/// Reads which files wait for being archived, of those `after` a name if one is given: the first `limit` and the count.
pub(crate) fn scan(status: &Path, limit: usize, after: Option<WalFileName>) -> io::Result<ReadyScan> {
    let mut first = FirstInOrder::new(limit, after);
    for entry in std::fs::read_dir(status)? {
        let file = entry?.file_name();
        let name =
            file.to_str().and_then(|text| text.strip_suffix(".ready")).and_then(|name| name.parse().ok());
        if let Some(name) = name {
            first.add(name);
        }
    }
    let count = first.count();
    Ok(ReadyScan { first: first.into_names().collect(), count })
}

/// Where PostgreSQL says what waits for being archived.
pub(crate) fn status_directory<U: Upload>(archiver: &Archiver<U>) -> PathBuf {
    archiver.wal_directory().join("archive_status")
}

/// Uploads ahead of PostgreSQL, never more than `window` files ahead. `working` is called after every
/// successful scan with the number of files that wait.
pub(crate) async fn look_ahead<U: Upload>(
    archiver: Arc<Archiver<U>>,
    window: usize,
    working: impl Fn(usize),
) -> anyhow::Result<()> {
    let status = status_directory(&archiver);
    let hint = Arc::new(Notify::new());
    // Held: dropping it ends the events.
    let _watcher = watch(&status, &hint).await;
    let (mut asked, mut waited) = (false, Waited::default());
    loop {
        let begun = Instant::now();
        let directory = status.clone();
        let found = disk::run(&status, move || scan(&directory, window + NAMES_PER_SCAN, None)).await?;
        let ReadyScan { mut first, count } =
            found.map_err(|error| anyhow::anyhow!("{} cannot be read: {error}", status.display()))?;
        working(count);
        archiver.asking().see(count > 0);
        if let Some(file) = bypassed(&archiver, &status, waited.see(&first, begun)).await? {
            asked = false;
            tracing::warn!(
                %file,
                "the daemon stops archiving ahead of PostgreSQL, which marked a file as archived without requesting it\nHINT: \
                 Check archive_command: it does not call archive-push, or archive-push does not reach the daemon."
            );
        }
        let asks = archiver.asking().asks().await?;
        if asks {
            asked = true;
        } else if count > 0 && std::mem::take(&mut asked) && !archiver.asking().is_by_hand() {
            tracing::warn!(
                waiting = count,
                "the daemon stops archiving ahead of PostgreSQL, which no longer requests archiving: it \
                 was restarted, or archive_command was switched off"
            );
        }
        // A large directory takes long to read: keep scanning below a tenth of the time.
        let earliest = Instant::now() + (begun.elapsed() * 10).max(Duration::from_millis(50));
        let latest = begun + SCAN_INTERVAL;
        let more = count > first.len();
        loop {
            if asks {
                advance(&archiver, &status, &mut first, window).await?;
                if more && first.len() < window {
                    break;
                }
            }
            tokio::select! {
                () = archiver.acknowledged.notified() => {}
                () = archiver.asking().look_ahead.notified() => break,
                () = hint.notified() => break,
                () = sleep_until(latest) => break,
            }
        }
        sleep_until(earliest).await;
    }
}

/// The files that waited when it was looked last, and since when.
#[derive(Debug, Default)]
struct Waited(HashMap<WalFileName, Instant>);

impl Waited {
    /// Those that wait no more, and since when they waited. `waiting`: those that do, as was looked at that moment or later.
    fn see(&mut self, waiting: &VecDeque<WalFileName>, now: Instant) -> Vec<(WalFileName, Instant)> {
        let mut before = std::mem::take(&mut self.0);
        self.0 = waiting.iter().map(|name| (*name, before.remove(name).unwrap_or(now))).collect();
        before.into_iter().collect()
    }
}

/// The first of the files that waited which PostgreSQL marked as archived without a question, if that is new.
async fn bypassed<U: Upload>(
    archiver: &Archiver<U>,
    status: &Path,
    waited: Vec<(WalFileName, Instant)>,
) -> Result<Option<WalFileName>, DiskError> {
    if waited.is_empty() {
        return Ok(None);
    }
    let directory = status.to_owned();
    // One without a mark was removed.
    let is_done = move |name: WalFileName| directory.join(format!("{name}.done")).exists();
    let look = move || waited.into_iter().filter(|(name, _)| is_done(*name)).collect::<Vec<_>>();
    let done = disk::look(status, look).await?;
    Ok(done.into_iter().find(|(_, since)| archiver.asking().bypass(*since)).map(|(name, _)| name))
}

/// Starts the uploads of the window and drops from its front what PostgreSQL has been told is stored.
async fn advance<U: Upload>(
    archiver: &Arc<Archiver<U>>,
    status: &Path,
    waiting: &mut VecDeque<WalFileName>,
    window: usize,
) -> Result<(), DiskError> {
    let (directory, mut left) = (status.to_owned(), std::mem::take(waiting));
    let look = move || {
        while let Some(first) = left.front()
            && !directory.join(format!("{first}.ready")).exists()
        {
            left.pop_front();
        }
        left
    };
    *waiting = disk::look(status, look).await?;
    waiting.iter().take(window).for_each(|&name| archiver.start_ahead(name));
    Ok(())
}

/// Events of the directory as hints. Without them the scans alone find everything, later.
async fn watch(status: &Path, hint: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let (directory, hint) = (status.to_owned(), Arc::clone(hint));
    let begin = move || {
        // Only new names count. Events of reading would make each scan call for the next one.
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| event.kind.is_create() || event.need_rescan()) {
                hint.notify_one();
            }
        });
        watcher.and_then(|mut watcher| {
            watcher.watch(&directory, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        })
    };
    let watched = disk::look(status, begin).await.map_err(anyhow::Error::from);
    watched
        .and_then(|watched| watched.map_err(anyhow::Error::from))
        .inspect_err(|error| {
            tracing::info!("{} is only scanned: {}", status.display(), walpoint_words::format_chain(error))
        })
        .ok()
}
