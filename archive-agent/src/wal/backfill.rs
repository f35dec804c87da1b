//! After a promotion: the WAL of the timelines before, which the dead primary never archived, out of the promoted server's
//! `pg_wal`.
//!
//! A standby marks what it receives as archived, because its primary archives it (`XLogArchiveForceDone` in
//! src/backend/access/transam/xlogarchive.c), and a promotion does not change that. If the primary died before it did,
//! recovery could not pass the gap. Segments before the fork are the same on both servers; the one of the fork itself is
//! handed over by PostgreSQL as `.partial`. A crash leaves nothing: the next daemon looks again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::TryStreamExt;
use walpoint_base::{SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId, WalFileName};
use walpoint_pg::wal::Identity;
use walpoint_repo::RepoError;
use walpoint_repo::layout::WalEntry;

use super::archiver::Archiver;
use super::base::oldest_backup;
use super::check::history_in;
use super::upload::Trouble;

/// How often to look whether the server was promoted: the first checkpoint after that may remove what it no longer needs.
const INTERVAL: Duration = Duration::from_millis(500);

/// Looks for a promotion; `working` is called whenever all is well. A failure ends it: it is started again.
pub(crate) async fn keep(archiver: Arc<Archiver>, working: impl Fn()) -> anyhow::Result<()> {
    // In the lineages and repositories of then: others may miss what these had.
    let mut seen = (TimelineId::FIRST, archiver.uploader().epoch());
    loop {
        // A standby leaves it to its primary, and a server that does not ask for archiving gets nothing archived.
        if archiver.asking().asks()
            && let Some(timeline) = archiver.uploader().written_timeline().await.map_err(told)?
            && (timeline, archiver.uploader().epoch()) != seen
        {
            // Opening a repository may bind the directory to another lineage.
            let epoch = archiver.uploader().epoch();
            fill(&archiver, timeline).await?;
            seen = (timeline, epoch);
        }
        working();
        tokio::time::timeout(INTERVAL, archiver.asking().backfill.notified()).await.ok();
    }
}

fn told(Trouble { text, .. }: Trouble) -> anyhow::Error {
    anyhow::anyhow!(text)
}

/// Archives what lies in `pg_wal` of the timelines before this one and is missing in a repository that has to acknowledge.
/// An error means that it is worth another try.
async fn fill(archiver: &Arc<Archiver>, timeline: TimelineId) -> anyhow::Result<()> {
    let uploader = archiver.uploader();
    let cluster = uploader.identity().await.map_err(told)?;
    let directory = archiver.wal_directory();
    let Some((history, _)) = history_in(&directory, timeline) else {
        tracing::warn!(
            %timeline,
            "{} has no history of this timeline: what the server before the promotion did not archive is not looked for",
            directory.display()
        );
        return Ok(());
    };
    let size = cluster.segment_size;
    store_histories(archiver, &cluster, &history, &directory).await?;
    let path = history.clone();
    let found = tokio::task::spawn_blocking(move || before_the_fork(&directory, &path, size));
    let (directory, found) = found.await?;
    let found = found.with_context(|| format!("{} cannot be read", directory.display()))?;

    if found.is_empty() {
        return Ok(());
    }
    let mut missing = BTreeSet::new();
    for target in uploader.targets().iter().filter(|target| target.acknowledges) {
        let archive = target.archive(&cluster).await?;
        // What is older may have been expired.
        let backup =
            oldest_backup(&archive, &history).await?.map(|backup| SegmentNo::of(backup.start(), size));
        let needed = |name: &&SegmentName| name.number(size) >= backup;
        let found: Vec<SegmentName> = found.iter().filter(needed).copied().collect();
        for of_timeline in found.chunk_by(|a, b| a.timeline == b.timeline) {
            let Some(first) = of_timeline.first() else { continue };
            let mut here = BTreeSet::new();
            let mut listed = archive.list(first.timeline, Some(*first));
            while let Some((entry, _)) = listed.try_next().await? {
                if let WalEntry::File(WalFileName::Segment(name)) = entry {
                    here.insert(name);
                }
            }
            missing.extend(of_timeline.iter().filter(|name| !here.contains(name)));
        }
    }
    let mut again = None;
    for name in missing {
        match archiver.finished(WalFileName::Segment(name)).await {
            Ok(_) => {
                tracing::info!(file = %name, "archived: the server before the promotion had not done so")
            }
            Err(problem) if directory.join(name.to_string()).exists() => {
                again.get_or_insert(anyhow::anyhow!(
                    "{name}, which the server before the promotion had not archived, cannot be archived: {problem}"
                ));
            }
            // PostgreSQL removed it meanwhile; another gap is worth no less.
            Err(_) => tracing::error!(
                file = %name,
                "the server before the promotion had not archived it, and now it is gone: recovery does not pass it. HINT: make a \
                 new backup"
            ),
        }
    }
    again.map_or(Ok(()), Err)
}

/// Archives the histories on the path that are missing: the servers between the first one and this one may have archived
/// nothing, and PostgreSQL hands only its own over.
async fn store_histories(
    archiver: &Archiver,
    cluster: &Identity,
    history: &TimelineHistory,
    directory: &Path,
) -> anyhow::Result<()> {
    let uploader = archiver.uploader();
    for timeline in history.path().filter(|timeline| *timeline != TimelineId::FIRST) {
        let name = WalFileName::History(timeline);
        let path = directory.join(name.to_string());
        if !path.exists() {
            continue;
        }
        for target in uploader.targets().iter().filter(|target| target.acknowledges) {
            match target.archive(cluster).await?.get(name).await {
                Ok(None) => {}
                // One that is damaged is told of where it is needed.
                Ok(Some(_)) | Err(RepoError::Corrupt { .. }) => continue,
                Err(error) => return Err(error.into()),
            }
            uploader.upload_to(target, name, path.clone(), false).await.map_err(told)?;
            tracing::info!(file = %name, repository = target.name(), "archived: the server before the promotion had not done so");
        }
    }
    Ok(())
}

/// The segments of earlier timelines that end before the next one begins, by name, but for those that PostgreSQL itself is
/// about to hand over. Later names are of files that wait to be used again.
fn before_the_fork(
    directory: &Path,
    history: &TimelineHistory,
    size: SegmentSize,
) -> (PathBuf, std::io::Result<Vec<SegmentName>>) {
    let read = || {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let Some(Ok(WalFileName::Segment(name))) = entry?.file_name().to_str().map(str::parse) else {
                continue;
            };
            let fork = history.end_of(name.timeline).map(|switch| SegmentNo::of(switch, size));
            let waits = directory.join(format!("archive_status/{name}.ready")).exists();
            if !waits && name.number(size).is_some_and(|number| fork.is_some_and(|fork| number < fork)) {
                found.push(name);
            }
        }
        found.sort_unstable();
        Ok(found)
    };
    (directory.to_owned(), read())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_segments_before_the_fork_count() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("archive_status")).unwrap();
        let files = [
            "000000010000000000000003",
            "000000010000000000000004",
            "000000010000000000000005",
            // Of the fork, and a file that waits to be used again.
            "000000010000000000000006",
            "000000010000000000000009",
            "000000020000000000000006",
            "00000002.history",
            "000000010000000000000006.partial",
            "archive_status/000000010000000000000004.ready",
            "archive_status/000000010000000000000005.done",
        ];
        for file in files {
            std::fs::File::create(directory.path().join(file)).unwrap();
        }
        let size = SegmentSize::new(16 << 20).unwrap();
        let history =
            TimelineHistory::parse(TimelineId::new(2).unwrap(), b"1\t0/6000100\tno recovery target\n")
                .unwrap();
        let (_, found) = before_the_fork(directory.path(), &history, size);
        let found: Vec<String> = found.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["000000010000000000000003", "000000010000000000000005"]);
    }
}
