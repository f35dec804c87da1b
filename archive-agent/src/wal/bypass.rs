//! Whether the WAL that this server finishes reaches the archive, or PostgreSQL does something else with it: it runs another
//! command (`archive_command = '/bin/true'`), or archives nothing (`archive_mode = off`). Nothing waits then, and nothing fails.
//!
//! The newest finished segments in `pg_wal` tell. PostgreSQL marks each with `.ready` the moment it is finished, and with `.done`
//! when its archiver says so. What it did before it was started last, under other settings maybe, proves nothing; nor does what
//! another archiver stored before this one was put in its place.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use walpoint_base::{SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId, dropped};
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;

use super::identity::on_path;
use super::upload::Uploader;
use super::{disk, postmaster};

/// How long after a segment was finished its marks may be looked at: by then PostgreSQL has made them.
const SETTLED: Duration = Duration::from_secs(10);

/// A segment that is finished and does not reach the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Bypass {
    /// PostgreSQL marked it as archived, and no repository that has to acknowledge holds it.
    Elsewhere(SegmentName),
    /// PostgreSQL did not mark it as one to archive.
    NotAtAll(SegmentName),
}

impl Bypass {
    /// What is wrong.
    pub(crate) fn found(&self) -> String {
        match self {
            Self::Elsewhere(segment) => format!(
                "PostgreSQL marked segment {segment} as archived, but no repository has it: its archive_command or \
                 archive_library does not call archive-push"
            ),
            Self::NotAtAll(segment) => format!(
                "PostgreSQL finished segment {segment} and does not archive it: its archive_mode is off"
            ),
        }
    }

    /// What to do about it.
    pub(crate) fn advice(&self) -> &'static str {
        match self {
            Self::Elsewhere(_) => {
                "Set archive_command as \"archive-agent init\" prints it and reload PostgreSQL, then take a new backup: \
                 nothing after that segment can be recovered until then."
            }
            Self::NotAtAll(_) => {
                "Run \"alter system set archive_mode = on\" and restart PostgreSQL, then take a new backup: nothing after that \
                 segment can be recovered until then."
            }
        }
    }
}

impl fmt::Display for Bypass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nHINT: {}", self.found(), self.advice())
    }
}

impl std::error::Error for Bypass {}

/// What the marks of a timeline's newest finished segments say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Marks {
    /// The newest one marked as archived, if that was since the server was started: and when, in seconds since 1970.
    done: Option<(SegmentName, i64)>,
    /// The newest one of all, if it was finished since the server was started and has no mark.
    unmarked: Option<SegmentName>,
}

/// What a process knows of that.
#[derive(Debug)]
pub(crate) struct Watch {
    /// What PostgreSQL marked after this moment, in seconds since 1970, it marked while this process archived for it.
    since: i64,
    /// The newest segment that was found where it belongs, which is not asked about again.
    arrived: Mutex<Option<SegmentName>>,
}

impl Watch {
    /// Of a process that archives from now on.
    pub(crate) fn from_now() -> Self {
        Self { since: jiff::Timestamp::now().as_second(), arrived: Mutex::default() }
    }

    /// Of one that only looks.
    pub(crate) fn once() -> Self {
        Self { since: i64::MAX, arrived: Mutex::default() }
    }

    /// Looks at a server that writes WAL. `None` also where it cannot be determined.
    pub(crate) async fn look(&self, uploader: &Uploader) -> anyhow::Result<Option<Bypass>> {
        let Some(timeline) = uploader.written_timeline().await? else { return Ok(None) };
        let cluster = uploader.identity().await?;
        let marks = marks(uploader.pgdata(), timeline, cluster.segment_size).await?;
        if let Some(segment) = marks.unmarked {
            return Ok(Some(Bypass::NotAtAll(segment)));
        }
        let Some((done, at)) = marks.done.filter(|(done, _)| self.arrived() != Some(*done)) else {
            return Ok(None);
        };
        let mut counts = at > self.since;
        for target in uploader.targets().iter().filter(|target| target.acknowledges) {
            // What cannot be read may be there, and what is damaged was stored.
            let Ok(archive) = target.archive(&cluster).await else { return Ok(None) };
            match has(&archive, done).await {
                Ok(false) => {}
                Ok(true) => {
                    *self.arrived.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
                    return Ok(None);
                }
                Err(_) => return Ok(None),
            }
            counts = counts || archive.anything_after(timeline, SegmentNo(0)).await?.is_some();
        }
        Ok(counts.then_some(Bypass::Elsewhere(done)))
    }

    fn arrived(&self) -> Option<SegmentName> {
        *self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The newest segment that a server which writes WAL marked as archived, if it did so since it was started and not just now.
pub(super) async fn newest_archived(uploader: &Uploader) -> anyhow::Result<Option<SegmentName>> {
    let Some(timeline) = uploader.written_timeline().await? else { return Ok(None) };
    let size = uploader.identity().await?.segment_size;
    Ok(marks(uploader.pgdata(), timeline, size).await?.done.map(|(segment, _)| segment))
}

/// Whether a repository has a segment, whole or not, in any of the cluster's lineages: another one may have begun since.
async fn has(archive: &WalArchive, segment: SegmentName) -> Result<bool, RepoError> {
    let here = async |archive: &WalArchive| {
        Ok::<_, RepoError>(
            archive.header(segment).await?.is_some() || !archive.ended(segment).await?.is_empty(),
        )
    };
    if here(archive).await? {
        return Ok(true);
    }
    let (repository, own) = (archive.repository(), archive.lineage());
    let others = repository.lineages(&own.cluster).await?;
    for lineage in others.read.iter().filter(|other| other.id != own.id) {
        if here(&repository.wal(lineage)).await? {
            return Ok(true);
        }
    }
    // What a lineage has whose facts are damaged is not known.
    Ok(!others.damaged.is_empty())
}

async fn marks(pgdata: &Path, timeline: TimelineId, size: SegmentSize) -> anyhow::Result<Marks> {
    let wal = pgdata.join("pg_wal");
    let mut begun = on_path(&wal, TimelineHistory::root(timeline), size).await?;
    begun.retain(|name| name.timeline == timeline);
    begun.sort_unstable();
    // The last one is being written.
    begun.pop();
    let pgdata = pgdata.to_owned();
    Ok(disk::run(&wal, move || read_marks(&pgdata, &begun)).await?)
}

/// Reads the marks of finished segments, in their order. Blocks.
fn read_marks(pgdata: &Path, finished: &[SegmentName]) -> Marks {
    let Some(server) = postmaster::started(pgdata) else { return Marks::default() };
    let started = i64::try_from(server.start).unwrap_or(i64::MAX);
    let settled = jiff::Timestamp::now().as_second() - i64::try_from(SETTLED.as_secs()).unwrap_or(0);
    let since = |time: i64| time > started && time < settled;
    let wal = pgdata.join("pg_wal");
    let mark = |name: SegmentName, mark: &str| wal.join(format!("archive_status/{name}.{mark}"));
    let dropped = dropped::read(&wal).unwrap_or_default();
    let is_dropped = |name: SegmentName| dropped.iter().any(|dropped| dropped.name.segment() == Some(name));
    let mut marks = Marks::default();
    if let Some(newest) = finished.last().copied()
        && modified(&wal.join(newest.to_string())).is_some_and(since)
        && !mark(newest, "ready").exists()
        && !mark(newest, "done").exists()
        // It may have been removed with its mark.
        && wal.join(newest.to_string()).exists()
    {
        marks.unmarked = Some(newest);
    }
    let done = finished.iter().rev().copied().find(|name| mark(*name, "done").exists());
    // Renaming the mark leaves the time of its content as it was.
    let marked = |name: SegmentName| std::fs::metadata(mark(name, "done")).ok().map(|found| found.ctime());
    marks.done = done
        .filter(|name| !is_dropped(*name))
        .and_then(|name| marked(name).filter(|at| since(*at)).map(|at| (name, at)));
    marks
}

/// When a file's content was changed last, in seconds since 1970.
fn modified(file: &Path) -> Option<i64> {
    std::fs::metadata(file).ok().map(|found| found.mtime())
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{Bed, size};
    use super::*;

    /// Files as a running server of a bed has them: segments, and marks.
    fn server(bed: &Bed, marks: &[&str], age: i64) {
        let now = jiff::Timestamp::now().as_second();
        let text = format!("1\n/data\n{}\n5432\n\n\n  1  2\nready\n", now - age);
        write(&bed.pgdata().join("postmaster.pid"), text.as_bytes());
        marks.iter().for_each(|mark| write(&bed.pgdata().join("pg_wal/archive_status").join(mark), b""));
    }

    fn write(path: &Path, content: &[u8]) {
        walpoint_base::durable::replace(path, content, 0o600).unwrap();
    }

    /// Lets everything in `pg_wal` have happened a minute ago.
    fn settle(bed: &Bed, name: &str) {
        let time = std::time::SystemTime::now() - Duration::from_secs(60);
        let file = std::fs::File::options().write(true).open(bed.pgdata().join("pg_wal").join(name)).unwrap();
        file.set_modified(time).unwrap();
    }

    const FIRST: &str = "000000010000000000000005";
    const SECOND: &str = "000000010000000000000006";

    #[tokio::test]
    async fn a_finished_segment_without_a_mark_is_not_archived() {
        let bed = Bed::new().await;
        bed.write(FIRST, 1);
        settle(&bed, FIRST);
        let first = FIRST.parse().unwrap();
        let unmarked = |finished: &[SegmentName]| read_marks(&bed.pgdata(), finished).unmarked;
        assert_eq!(unmarked(&[first]), None, "no server runs");
        server(&bed, &[], 3600);
        assert_eq!(unmarked(&[first]), Some(first));
        server(&bed, &[], 30);
        assert_eq!(
            unmarked(&[first]),
            None,
            "the server has been restarted since, with other settings maybe"
        );
        for mark in ["ready", "done"] {
            let bed = Bed::new().await;
            bed.write(FIRST, 1);
            settle(&bed, FIRST);
            server(&bed, &[&format!("{FIRST}.{mark}")], 3600);
            assert_eq!(read_marks(&bed.pgdata(), &[first]).unmarked, None, "{mark}");
        }
    }

    #[tokio::test]
    async fn the_last_segment_that_was_begun_is_not_finished() {
        let bed = Bed::new().await;
        server(&bed, &[], 3600);
        for name in [FIRST, SECOND] {
            bed.write(name, 1);
            settle(&bed, name);
        }
        let marks = marks(&bed.pgdata(), TimelineId::FIRST, size()).await.unwrap();
        assert_eq!(marks, Marks { done: None, unmarked: FIRST.parse().ok() });
    }
}
