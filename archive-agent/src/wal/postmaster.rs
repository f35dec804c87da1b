//! What `postmaster.pid` says: which start of the server this is, and whether it is shutting down. It waits for its archiver
//! then, and a person waits for PostgreSQL.
//!
//! Source: lines 1, 3 and 8 of `postmaster.pid` (`LOCK_FILE_LINE_PID`, `LOCK_FILE_LINE_START_TIME`,
//! `LOCK_FILE_LINE_PM_STATUS` in `src/include/utils/pidfile.h`).

use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use tokio::time::Instant;

use super::disk;

/// How long a push may take while the server is stopping. What is left then stays in `pg_wal` until the next start.
///
/// PostgreSQL asks three times for a file that fails, and begins once more when it has stopped everything else: six times this is less
/// than the minute that `pg_ctl stop` waits.
const WHILE_STOPPING: Duration = Duration::from_secs(6);

/// How often a push that waits looks whether the server has begun to stop.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServerStart {
    /// Of its postmaster; in a container of its own it is the same each time.
    pub(crate) pid: u32,
    /// When it was started, in seconds since 1970.
    pub(crate) start: u64,
}

/// The start of the server that runs on a data directory, as the file there says; `None` if it says nothing.
pub(crate) fn started(pgdata: &Path) -> Option<ServerStart> {
    let text = std::fs::read_to_string(pgdata.join("postmaster.pid")).ok()?;
    let mut lines = text.lines();
    let pid = lines.next()?.trim().parse().ok()?;
    let start = lines.nth(1)?.trim().parse().ok()?;
    Some(ServerStart { pid, start })
}

/// Whether the server of a data directory says that it is stopping. Anything unreadable counts as no.
pub(crate) fn is_stopping(pgdata: &Path) -> bool {
    let text = std::fs::read_to_string(pgdata.join("postmaster.pid")).unwrap_or_default();
    text.lines().nth(7).is_some_and(|status| status.trim() == "stopping")
}

/// How long a push of a file of that many bytes may take: at 1 MiB/s it still succeeds.
pub(super) async fn time_limit(push_timeout: Duration, size: u64, pgdata: &Path) -> Duration {
    at_most(push_timeout + Duration::from_secs(size >> 20), pgdata).await
}

/// What a push comes to in time, by a moment that comes sooner if the server begins to stop meanwhile. The error is when its time was over.
pub(super) async fn within<T>(
    mut over: Instant,
    pgdata: &Path,
    push: impl Future<Output = T>,
) -> Result<T, Instant> {
    let mut push = pin!(push);
    loop {
        let look = over.min(Instant::now() + LOOK);
        if let Ok(result) = tokio::time::timeout_at(look, &mut push).await {
            return Ok(result);
        }
        let left = over.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(over);
        }
        let allowed = at_most(left, pgdata).await;
        if allowed < left {
            over = Instant::now() + allowed;
        }
    }
}

/// The limit, or less while the server is stopping: its shutdown waits.
async fn at_most(limit: Duration, pgdata: &Path) -> Duration {
    let directory = pgdata.to_owned();
    let stopping = disk::look(pgdata, move || is_stopping(&directory)).await;
    if stopping.unwrap_or(false) { limit.min(WHILE_STOPPING) } else { limit }
}

#[cfg(test)]
mod tests {
    use walpoint_base::durable;

    use super::*;

    #[test]
    fn only_the_status_line_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_stopping(dir.path()) && started(dir.path()).is_none());
        for (status, expected) in [("stopping", true), ("ready   ", false), ("", false)] {
            let text = format!("1\n/data\n1700000000\n5432\nstopping\n\n  1  2\n{status}\n");
            durable::replace(&dir.path().join("postmaster.pid"), text.as_bytes(), 0o600).unwrap();
            assert_eq!(is_stopping(dir.path()), expected, "{status:?}");
            assert_eq!(started(dir.path()), Some(ServerStart { pid: 1, start: 1_700_000_000 }));
        }
    }
}
