//! Histories of abandoned timelines, which a standby that starts passes over.
//!
//! A standby that goes to the latest timeline asks for the histories of the next numbers until one is missing, and takes the last one
//! that is there for its goal (`findNewestTimeLine` in timeline.c). Of an abandoned timeline it would follow the WAL, or not start
//! at all once it is past the fork ("requested timeline is not a child of this server's history"). So at the start, and only there, that
//! history is "missing", unless a younger timeline counts: that one is asked for behind it, and only its own history is gone by.
//!
//! A running server asks the same question when it is promoted, and takes the first missing number for its own timeline: it always gets
//! the history. One that follows refuses a timeline that was forked before the position it has replayed, and goes on
//! (`rescanLatestTimeLine`). It keeps the file in `pg_wal`, though, where the next start would find it. So that copy goes with the answer.
//!
//! A start is known by `postmaster.pid`: it says "starting" until the server is consistent, and is written last before the
//! startup process begins. That process writes `pg_control` before it replays anything, and after its first questions.

use std::path::Path;
use std::time::Duration;

use walpoint_base::{Recovery, TimelineHistory, TimelineId, WalDirectory, WalFileName, durable};
use walpoint_pg::control::{CONTROL_FILE, ControlFile};
use walpoint_repo::wal::WalArchive;

use crate::settings;
use crate::wal::archive::ClusterArchive;
use crate::wal::histories::HistoryCache;

/// A standby waits for its answer. What is not known by then is not passed over.
const LIMIT: Duration = Duration::from_millis(700);

/// Whether a standby that starts asks for a history only to find the latest timeline, and is not on that one.
pub(crate) fn is_probe(place: &WalDirectory, name: WalFileName) -> bool {
    let WalFileName::History(timeline) = name else { return false };
    place.pgdata.join("postmaster.pid").exists()
        && Recovery::of(&place.pgdata) == Recovery::Standby
        && reached(&place.pgdata).is_some_and(|reached| reached < timeline)
        && starts(&place.pgdata)
        && goes_to_the_latest(&place.pgdata)
}

/// Why a standby that starts is told that a history is missing which the archive has: its timeline was abandoned. In doubt it is
/// given.
pub(crate) async fn passed_over(
    archive: &ClusterArchive,
    place: &WalDirectory,
    name: WalFileName,
) -> Option<String> {
    let WalFileName::History(timeline) = name else { return None };
    if !is_probe(place, name) {
        return None;
    }
    let history = tokio::time::timeout(LIMIT, abandoned(archive, timeline)).await.ok()??;
    // PostgreSQL opens a copy in pg_wal when it is told that the archive has none.
    if let Err(error) = forget(place, &history) {
        tracing::warn!("\"{name}\" of an abandoned timeline stays in {}: {error}", place.wal.display());
        return None;
    }
    Some(format!(
        "\"{name}\" is not handed over: timeline {timeline} was settled as abandoned, and this standby follows the others"
    ))
}

/// The history of a timeline that is abandoned in each repository that has it, if no younger one counts in any.
async fn abandoned(archive: &ClusterArchive, timeline: TimelineId) -> Option<TimelineHistory> {
    let (opened, _) = archive.open_all().await;
    let mut history = None;
    for source in &opened {
        match of_repository(&source.wal, timeline).await {
            Ok(Some(true)) => history = archive.history_in(&source.wal, timeline).await.ok().flatten(),
            Ok(None) => {}
            Ok(Some(false)) => return None,
            Err(error) => {
                tracing::debug!("repository {} does not say what was abandoned: {error}", source.name)
            }
        }
    }
    history
}

/// Whether a timeline is abandoned in a repository, and none that counts is younger; `None` if the repository has neither.
async fn of_repository(
    wal: &WalArchive,
    timeline: TimelineId,
) -> Result<Option<bool>, walpoint_storage::RepoError> {
    let listed = wal.all_histories().await?;
    let abandoned = wal.still_abandoned(&listed.abandoned).await?;
    let counting = |id: &&TimelineId| **id >= timeline && !abandoned.contains_key(id);
    if listed.stored.iter().find(counting).is_some() {
        return Ok(Some(false));
    }
    Ok(listed.stored.contains(&timeline).then_some(true))
}

/// Removes the copies of a history that an earlier start or a look of the running server left. Fails if what is there is another one.
fn forget(place: &WalDirectory, history: &TimelineHistory) -> std::io::Result<()> {
    let timeline = history.timeline();
    HistoryCache::in_wal(&place.wal).drop_one(timeline)?;
    let own = place.wal.join(WalFileName::History(timeline).to_string());
    let content = match std::fs::read(&own) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        read => read?,
    };
    let same = TimelineHistory::parse(timeline, &content).is_ok_and(|own| own.entries() == history.entries());
    if !same {
        return Err(std::io::Error::other("it is not the archive's"));
    }
    durable::remove(&own)
}

/// The newest timeline that a data directory is on.
fn reached(pgdata: &Path) -> Option<TimelineId> {
    let control = std::fs::read(pgdata.join(CONTROL_FILE)).ok()?;
    ControlFile::parse(&control).ok()?.newest_timeline()
}

/// Whether a server has begun to start, and has replayed nothing yet.
fn starts(pgdata: &Path) -> bool {
    let pid = pgdata.join("postmaster.pid");
    let Ok(text) = std::fs::read_to_string(&pid) else { return false };
    let modified = |path: &Path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    // Line 8, `LOCK_FILE_LINE_PM_STATUS`.
    text.lines().nth(7).is_some_and(|status| status.trim() == "starting")
        && modified(&pgdata.join(CONTROL_FILE))
            .zip(modified(&pid))
            .is_some_and(|(control, begun)| control < begun)
}

/// Whether `recovery_target_timeline` is "latest", its default. What may be set elsewhere counts as something else.
fn goes_to_the_latest(pgdata: &Path) -> bool {
    let options = settings::text(&pgdata.join("postmaster.opts")).unwrap_or_default();
    if options.contains("recovery_target_timeline") || options.contains("recovery-target-timeline") {
        return false;
    }
    let wanted = |text: &str| settings::targets(text).remove("recovery_target_timeline");
    // The last one counts.
    let found = match settings::text(&pgdata.join("postgresql.auto.conf")).ok().as_deref().and_then(wanted) {
        Some(found) => Some(found),
        None => {
            let given = ["config_file=", "config-file="].iter().find_map(|name| {
                options.split_once(name).map(|(_, rest)| rest.split('"').next().unwrap_or(rest).trim())
            });
            let main = given.map_or_else(|| pgdata.join("postgresql.conf"), |given| pgdata.join(given));
            if !main.is_file() {
                return false;
            }
            wanted(&settings::configuration_of(&main, pgdata))
        }
    };
    found
        .is_none_or(|found| found.split('#').next().unwrap_or_default().trim().trim_matches('\'') == "latest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_that_has_just_begun_to_start_is_starting() {
        let dir = tempfile::tempdir().unwrap();
        let (pgdata, pause) = (dir.path(), || std::thread::sleep(Duration::from_millis(20)));
        std::fs::create_dir(pgdata.join("global")).unwrap();
        let control = || durable::replace(&pgdata.join(CONTROL_FILE), b"control", 0o600).unwrap();
        let pid = |status: &str| {
            pause();
            let text = format!("1\n/data\n1\n5432\n/tmp\n*\n1 2\n{status}\n");
            durable::replace(&pgdata.join("postmaster.pid"), text.as_bytes(), 0o600).unwrap();
        };
        control();
        assert!(!starts(pgdata), "no server");
        pid("starting");
        assert!(starts(pgdata));
        pause();
        control();
        assert!(!starts(pgdata), "it replays");
        for status in ["ready   ", "standby ", "stopping"] {
            pid(status);
            assert!(!starts(pgdata), "{status}");
        }
    }

    #[test]
    fn a_timeline_that_is_asked_for_is_not_the_latest() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            durable::replace(&dir.path().join(name), text.as_bytes(), 0o600).unwrap()
        };
        assert!(!goes_to_the_latest(dir.path()), "it is set elsewhere");
        write("postgresql.auto.conf", "recovery_target_timeline = 'latest' # restored\n");
        assert!(goes_to_the_latest(dir.path()));
        write("postgresql.auto.conf", "recovery_target_timeline = '2'\n");
        assert!(!goes_to_the_latest(dir.path()));
        write("postgresql.auto.conf", "");
        write("postgresql.conf", "recovery_target_timeline = 'current'\n");
        write("other.conf", "port = 1\n");
        assert!(!goes_to_the_latest(dir.path()));
        write("postmaster.opts", "/bin/postgres \"-D\" \"/data\" \"-c\" \"config_file=other.conf\"\n");
        assert!(goes_to_the_latest(dir.path()));
        write("postmaster.opts", "/bin/postgres \"-c\" \"recovery_target_timeline=2\"\n");
        assert!(!goes_to_the_latest(dir.path()));
    }
}
