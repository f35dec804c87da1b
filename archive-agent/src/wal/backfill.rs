//! After a promotion: the WAL of the timelines before, which the dead primary never archived, out of the promoted server's
//! `pg_wal`.
//!
//! A standby marks what it receives as archived, because its primary archives it (`XLogArchiveForceDone` in
//! src/backend/access/transam/xlogarchive.c), and a promotion does not change that. If the primary died before it did,
//! recovery could not pass the gap. Segments before the fork are the same on both servers; the one of the fork itself is
//! handed over by PostgreSQL as `.partial`. Only what continues the archive is stored: a copy that wrote on an earlier timeline
//! by itself has segments of its own under the names of production's. A crash leaves nothing: the next daemon looks again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use walpoint_base::{SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId, WalFileName};
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::wal::WalArchive;
use walpoint_runtime::human;
use walpoint_storage::RepoError;

use super::ancestry::{Ancestry, Tie};
use super::archiver::Archiver;
use super::base::oldest_backup;
use super::check::history_in;
use super::comparison::{self, Comparison};
use super::contradiction;
use super::disk;
use super::identity;
use super::listed::not_listed;
use super::neighbors;
use super::split_brain::SplitBrain;
use super::target::WalTarget;

/// How often to look whether the server was promoted: the first checkpoint after that may remove what it no longer needs.
const INTERVAL: Duration = Duration::from_millis(500);

/// Looks for a promotion; `working` is called whenever all is well. A failure ends it: it is started again.
pub(crate) async fn keep(archiver: Arc<Archiver>, working: impl Fn()) -> anyhow::Result<()> {
    // In the lineages and repositories of then: others may miss what these had.
    let mut seen = (TimelineId::FIRST, archiver.uploader().epoch());
    loop {
        // A standby leaves it to its primary, and a server that does not ask for archiving gets nothing archived.
        if archiver.asking().asks().await?
            && let Some(timeline) = archiver.uploader().written_timeline().await?
            && (timeline, archiver.uploader().epoch()) != seen
        {
            // Opening a repository may bind the directory to another lineage.
            let epoch = archiver.uploader().epoch();
            fill(&archiver, timeline).await?;
            seen = (timeline, epoch);
            // What neither server archived shows now.
            archiver.queue().dropped.notify_one();
        }
        working();
        tokio::time::timeout(INTERVAL, archiver.asking().backfill.notified()).await.ok();
    }
}

/// Archives what lies in `pg_wal` of the timelines before this one and is missing in a repository that has to acknowledge.
/// An error means that it is worth another try.
async fn fill(archiver: &Arc<Archiver>, timeline: TimelineId) -> anyhow::Result<()> {
    let uploader = archiver.uploader();
    let cluster = uploader.identity().await?;
    let directory = archiver.wal_directory();
    let wal = directory.clone();
    let Some((mut history, _)) = disk::look(&directory, move || history_in(&wal, timeline)).await? else {
        tracing::warn!(
            %timeline,
            "{} has no history of this timeline: what the server before the promotion did not archive is not looked for",
            directory.display()
        );
        return Ok(());
    };
    let size = cluster.segment_size;
    for target in uploader.targets().iter().filter(|target| target.acknowledges) {
        history = contradiction::settled_part(&target.archive(&cluster).await?, history).await?;
    }
    store_histories(archiver, &cluster, &history, &directory).await?;
    let path = history.clone();
    let wal = directory.clone();
    let (directory, found) = disk::run(&wal, move || before_the_fork(&directory, &path, size)).await?;
    let found = found.with_context(|| format!("{} cannot be read", directory.display()))?;
    if found.is_empty() {
        return Ok(());
    }
    let mut lacking = Vec::new();
    for target in uploader.targets().iter().filter(|target| target.acknowledges) {
        let archive = target.archive(&cluster).await?;
        let missing = missing_in(&archive, &history, &found, size).await?;
        lacking.push(Lacking { target, archive, missing, shared: None });
    }
    let lead = Lead { archiver, cluster: &cluster, wal: &directory, history: &history };
    lead.fill(lacking).await
}

/// The segments of a directory that an archive does not have, and that its backups may need: what is older may have expired.
async fn missing_in(
    archive: &WalArchive,
    history: &TimelineHistory,
    found: &[SegmentName],
    size: SegmentSize,
) -> Result<BTreeSet<SegmentName>, RepoError> {
    let backup = oldest_backup(archive, history).await?.map(|backup| SegmentNo::of(backup.start(), size));
    let needed = |name: &&SegmentName| name.number(size) >= backup;
    let found: Vec<SegmentName> = found.iter().filter(needed).copied().collect();
    Ok(not_listed(archive, &found).await?.into_iter().collect())
}

/// A repository that lacks WAL of earlier timelines.
struct Lacking<'a> {
    target: &'a WalTarget,
    archive: WalArchive,
    missing: BTreeSet<SegmentName>,
    /// The newest segment that the directory and the archive share, once it was looked for.
    shared: Option<Option<SegmentNo>>,
}

/// What the server before a promotion did not archive, in the directory of the promoted one.
struct Lead<'a> {
    archiver: &'a Arc<Archiver>,
    cluster: &'a WalIdentity,
    wal: &'a Path,
    /// Of the timeline that the server writes.
    history: &'a TimelineHistory,
}

impl Lead<'_> {
    /// Archives what continues the repositories' WAL. Recovery could not use the rest: it does not pass the gap before that, and a
    /// server that wrote it by itself has used the names of the archive's own server.
    async fn fill(&self, mut lacking: Vec<Lacking<'_>>) -> anyhow::Result<()> {
        let missing: BTreeSet<SegmentName> =
            lacking.iter().flat_map(|one| one.missing.iter().copied()).collect();
        let (mut again, mut left, mut stored) = (None, Vec::new(), None);
        for name in missing {
            let before = neighbors::before(name, Some(self.history), self.cluster.segment_size);
            let continues = if before.is_some() && before == stored {
                true
            } else if before.is_some() && before.as_ref() == left.last() {
                self.is_shared(&mut lacking, name).await?
            } else {
                self.is_shared(&mut lacking, name).await? || self.continues(&lacking, name).await?
            };
            if !continues {
                left.push(name);
                continue;
            }
            match self.archive(name).await {
                Ok(true) => stored = Some(name),
                Ok(false) => {}
                Err(problem) => drop(again.get_or_insert(problem)),
            }
        }
        if let (Some(first), Some(last)) = (left.first(), left.last()) {
            tracing::warn!(
                file = %first,
                "{} from {first} to {last} in pg_wal, of the timelines before the promotion, not archived: they do not \
                 continue what the repositories hold, so recovery could not get to them\nDETAIL: The WAL before the gap stays \
                 as it is.\nHINT: Take a new backup now (archive-agent backup).",
                count(left.len())
            );
        }
        again.map_or(Ok(()), Err)
    }

    /// Whether a repository holds a segment of the directory that lies behind one.
    async fn is_shared(&self, lacking: &mut [Lacking<'_>], name: SegmentName) -> Result<bool, RepoError> {
        let number = name.number(self.cluster.segment_size);
        for one in lacking {
            if self.shared(one).await?.is_some_and(|shared| number < Some(shared)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a segment continues what a repository holds as this directory's, or all of them hold nothing before it.
    async fn continues(&self, lacking: &[Lacking<'_>], name: SegmentName) -> Result<bool, RepoError> {
        let mut first = true;
        for one in lacking {
            let ancestry = Ancestry {
                target: one.target,
                archive: &one.archive,
                around: self.archiver.uploader().targets(),
                cluster: self.cluster,
                wal: self.wal,
                history: self.history,
            };
            match ancestry.tie(name).await? {
                Tie::Shown => return Ok(true),
                // Lengths of records may be equal in two servers. So it takes PostgreSQL's mark, too.
                Tie::Fits => match ancestry.was_received(name).await? {
                    true => return Ok(true),
                    false => first = false,
                },
                Tie::First => {}
                Tie::Gap { .. } | Tie::Other(_) => first = false,
            }
        }
        Ok(first)
    }

    /// The newest segment of the directory before the fork that an archive holds with the same content: a server that has it has what
    /// lies before it.
    async fn shared(&self, one: &mut Lacking<'_>) -> Result<Option<SegmentNo>, RepoError> {
        if let Some(shared) = one.shared {
            return Ok(shared);
        }
        let size = self.cluster.segment_size;
        let found = identity::on_path(self.wal, self.history.clone(), size).await?;
        let own = self.history.timeline();
        let found = found.into_iter().filter(|name| name.timeline != own).collect();
        let mut shared = None;
        for name in identity::in_both(&one.archive, found).await? {
            if comparison::segment(&one.archive, self.cluster, self.wal, name).await? == Comparison::Same {
                shared = name.number(size);
                break;
            }
        }
        one.shared = Some(shared);
        Ok(shared)
    }

    /// Archives a segment; whether it is stored. An error means that it is worth another try.
    async fn archive(&self, name: SegmentName) -> anyhow::Result<bool> {
        match self.archiver.finished(WalFileName::Segment(name)).await {
            Ok(_) => {
                tracing::info!(file = %name, "archived: the server before the promotion had not done so");
                Ok(true)
            }
            Err(problem) => {
                let path = self.wal.join(name.to_string());
                if disk::look(self.wal, move || path.exists()).await? {
                    anyhow::bail!(
                        "{name}, which the server before the promotion had not archived, cannot be archived: {problem}"
                    );
                }
                // PostgreSQL removed it meanwhile; another gap is worth no less.
                tracing::error!(
                    file = %name,
                    "the server before the promotion had not archived it, and now it is gone: recovery does not pass \
                     it\nHINT: Take a new backup."
                );
                Ok(false)
            }
        }
    }
}

fn count(segments: usize) -> String {
    human::count(u64::try_from(segments).unwrap_or(u64::MAX), "segment")
}

/// Archives the histories on the path that are missing: the servers between the first one and this one may have archived
/// nothing, and PostgreSQL hands only its own over.
async fn store_histories(
    archiver: &Archiver,
    cluster: &WalIdentity,
    history: &TimelineHistory,
    directory: &Path,
) -> anyhow::Result<()> {
    let uploader = archiver.uploader();
    for timeline in history.path().filter(|timeline| *timeline != TimelineId::FIRST) {
        let name = WalFileName::History(timeline);
        let path = directory.join(name.to_string());
        let looked = path.clone();
        if !disk::look(directory, move || looked.exists()).await? {
            continue;
        }
        for target in uploader.targets().iter().filter(|target| target.acknowledges) {
            let archive = target.archive(cluster).await?;
            match archive.get(name).await {
                Ok(None) => {}
                Ok(Some(stored)) => {
                    let ours = path.clone();
                    // PostgreSQL may have removed it meanwhile.
                    let ours = disk::look(directory, move || std::fs::read(ours)).await?.unwrap_or_default();
                    if contradiction::differ(&ours, &stored.content) {
                        // What lies here before this server's timeline is not what was archived under those names.
                        let what = identity::other_history(&archive, timeline, &ours, &stored.content);
                        archive.put_refused_history(timeline, ours).await?;
                        let split = SplitBrain::new(&archive, timeline, what);
                        target.refuse(&split, None);
                        uploader.refused.notify_one();
                        anyhow::bail!("{split}");
                    }
                    continue;
                }
                // One that is damaged is told of where it is needed.
                Err(RepoError::Corrupt { .. }) => continue,
                Err(error) => return Err(error.into()),
            }
            uploader.upload_to(target, name, path.clone(), false).await?;
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
