//! Whether a repository in a directory has room for the next backup.

use std::path::Path;

use anyhow::Context;
use walpoint_repo::backup::BackupSummary;
use walpoint_runtime::human;

use super::Destination;
use crate::check::report::CheckReport;

/// Whether a local repository has room for the next backup of a cluster of that many bytes: one that stores everything if
/// there is none to build on or `full` asks for it. How well the cluster compresses, and how much changes between backups, is
/// known from the newest ones, and guessed before there are any.
pub(crate) async fn space(report: &mut CheckReport, destination: &Destination, bytes: u64, full: bool) {
    let Some(directory) = &destination.directory else { return };
    let what = format!("repository {}: space", destination.name());
    let free = match free_bytes(directory) {
        Ok(free) => free,
        Err(error) => return report.error(what, &error),
    };
    let newest = newest(destination).await;
    let totals = newest.as_ref().map(|summary| &summary.totals);
    // Stored bytes in a thousand bytes that the newest one stored itself.
    let stored = totals.filter(|totals| totals.new_bytes > 0);
    let ratio = stored.map(|totals| totals.stored.saturating_mul(1000) / totals.new_bytes);
    let whole = ratio.map_or(bytes / 4, |ratio| scaled(bytes, ratio));
    let (kind, needed, from) = match (&newest, ratio) {
        (Some(parent), Some(ratio)) if !full => {
            let grown = scaled(bytes.saturating_sub(parent.totals.bytes), ratio);
            match parent.parents.is_empty() {
                true => ("the next", grown.saturating_add(whole / 10), "a tenth of the full one before it"),
                false => ("the next", grown.saturating_add(parent.totals.stored), "as the one before it"),
            }
        }
        (_, Some(_)) => ("a full", whole, "as the last one was compressed"),
        (_, None) => ("a full", whole, "at a quarter of the cluster's size"),
    };
    let needed = needed.min(whole);
    let found = format!(
        "{} free in {}, {kind} backup takes about {} ({from})",
        human::size(free),
        directory.display(),
        human::size(needed)
    );
    match free {
        _ if free < needed => report.failed(what, found, "Make room: a full disk would stop archiving too."),
        _ if free < needed.saturating_mul(2) => report.warning(what, found, "Make room."),
        _ => report.ok(what, found),
    }
}

/// What the filesystem has left for this user.
pub(crate) fn free_bytes(directory: &Path) -> anyhow::Result<u64> {
    let stat = rustix::fs::statvfs(directory)
        .with_context(|| format!("could not determine the free space of {}", directory.display()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// What the newest finished backup says.
async fn newest(destination: &Destination) -> Option<BackupSummary> {
    let backups = destination.backups();
    let listed = backups.list().await.ok()?;
    let finished = |state| matches!(state, walpoint_repo::backup::ListedState::Finished(_));
    let newest = listed.iter().rev().find(|backup| finished(backup.state))?;
    backups.summary(newest.id).await.ok()
}

fn scaled(bytes: u64, thousandths: u64) -> u64 {
    u64::try_from(u128::from(bytes) * u128::from(thousandths) / 1000).unwrap_or(u64::MAX)
}
