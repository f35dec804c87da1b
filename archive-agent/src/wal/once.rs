//! Archiving everything that is ready, without a daemon and without PostgreSQL asking.
//!
//! Nothing is written to `archive_status`: PostgreSQL asks later all the same, and is told at once that it is stored.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;

use super::archiver::Archiver;
use super::disk;
use super::index;
use super::ready::{scan, status_directory};

/// Names held at a time, whatever the backlog.
const BATCH: usize = 1024;

/// Uploads every file that waits, in PostgreSQL's order, `transfers` at a time. An error names the first file that failed
/// and how many did.
pub(crate) async fn archive_what_is_ready(archiver: &Arc<Archiver>, transfers: usize) -> anyhow::Result<()> {
    let status = status_directory(archiver);
    let (mut stored, mut failed, mut first_problem) = (0_usize, 0_usize, None);
    let mut after = None;
    loop {
        let directory = status.clone();
        let found = disk::run(&status, move || scan(&directory, BATCH, after)).await?;
        let found = found.map_err(|error| anyhow::anyhow!("{} cannot be read: {error}", status.display()))?;
        let Some(&last) = found.first.back() else { break };
        let mut results = stream::iter(found.first)
            .map(|name| async move { (name, archiver.finished(name).await) })
            .buffered(transfers);
        while let Some((name, result)) = results.next().await {
            match result {
                Ok(_) => stored += 1,
                Err(problem) => {
                    tracing::warn!(file = %name, "not archived: {problem}");
                    failed += 1;
                    first_problem.get_or_insert(format!("{name}: {problem}"));
                }
            }
        }
        after = Some(last);
    }
    if stored > 0 {
        index::catch_up_once(archiver).await;
    }
    tracing::info!(stored, failed, "archived what was ready");
    match first_problem {
        None => Ok(()),
        Some(problem) => {
            anyhow::bail!("{failed} of {} files were not archived: {problem}", stored + failed)
        }
    }
}
