//! The finished backups that a server can be recovered from: those of its lineage, or of the one that was split off behind
//! them, which start on the path to its timeline. A backup of another lineage or of a branch that was left says nothing about
//! which WAL of this server is needed, however new it is.

use std::collections::BTreeMap;

use walpoint_base::{BackupId, TimelineHistory};
use walpoint_repo::backup::{BackupSummary, Backups, ListedState, ManifestState};
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;

use super::check::history_in;
use super::disk;
use super::upload::Uploader;

/// The path to the timeline that the server is on, by its own history of it or else by what is stored; `None` while the
/// server has no timeline.
pub(super) async fn path(
    uploader: &Uploader,
    archive: &WalArchive,
) -> anyhow::Result<Option<TimelineHistory>> {
    let Some(timeline) = uploader.newest_timeline().await? else { return Ok(None) };
    let wal = uploader.wal_directory();
    let directory = wal.clone();
    let own = disk::run(&directory, move || history_in(&wal, timeline)).await?;
    if let Some((history, _)) = own {
        return Ok(Some(history));
    }
    let stored = archive.history(timeline).await?;
    Ok(Some(stored.unwrap_or_else(|| TimelineHistory::root(timeline))))
}

/// The oldest backup on the path: what lies before its start may have been expired.
pub(super) async fn oldest_backup(
    archive: &WalArchive,
    path: &TimelineHistory,
) -> Result<Option<BackupId>, RepoError> {
    first(archive, path, &started_on(archive, path).await?, false).await
}

/// The newest backup on the path of which nothing is known to be damaged.
pub(super) async fn newest_backup(
    archive: &WalArchive,
    path: &TimelineHistory,
) -> Result<Option<BackupId>, RepoError> {
    let mut listed = started_on(archive, path).await?;
    listed.reverse();
    first(archive, path, &listed, true).await
}

fn backups(archive: &WalArchive) -> Backups {
    Backups::of(archive.repository(), &archive.lineage().cluster)
}

/// The finished backups of any lineage that start on the path by their names, by position.
async fn started_on(archive: &WalArchive, path: &TimelineHistory) -> Result<Vec<BackupId>, RepoError> {
    let listed = backups(archive).list().await?;
    let finished = listed.iter().filter(|backup| matches!(backup.state, ListedState::Finished(_)));
    let ids = finished.map(|backup| backup.id);
    let mut on_path: Vec<BackupId> = ids.filter(|id| path.timeline_at(id.start()) == id.timeline()).collect();
    on_path.sort_by_key(|id| (id.start(), *id));
    Ok(on_path)
}

/// The first of these that is a backup of the archive's lineage and is consistent on the path, and, if it has to be `sound`, is not
/// known to be damaged. A small request for each.
async fn first(
    archive: &WalArchive,
    path: &TimelineHistory,
    ids: &[BackupId],
    sound: bool,
) -> Result<Option<BackupId>, RepoError> {
    let backups = backups(archive);
    let known = if sound && !ids.is_empty() { backups.announcements().await?.read } else { Vec::new() };
    for id in ids {
        match backups.standing(*id).await {
            Ok(ManifestState::Finished(summary)) if serves(archive, path, &summary) => {
                let uses = BTreeMap::from([(*id, summary.parents.clone())]);
                if !sound || backups.found_damaged(&uses, &known).await?.is_empty() {
                    return Ok(Some(*id));
                }
            }
            // One that cannot be read serves nothing.
            Ok(_) | Err(RepoError::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn serves(archive: &WalArchive, path: &TimelineHistory, summary: &BackupSummary) -> bool {
    let facts = &summary.facts;
    let of_lineage = facts.lineage == archive.lineage().id
        || archive.shares(facts.lineage, facts.stop_timeline, facts.stop_lsn);
    of_lineage && path.timeline_at(facts.stop_lsn - 1) == facts.stop_timeline
}
