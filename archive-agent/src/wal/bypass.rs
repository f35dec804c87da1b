//! Whether the WAL that this server finishes reaches the archive, or PostgreSQL does something else with it: it runs another
//! command (`archive_command = '/bin/true'`), or archives nothing (`archive_mode = off`). Nothing waits then, and nothing fails.
//!
//! The newest finished segments in `pg_wal` tell. PostgreSQL marks each with `.ready` the moment it is finished, and with `.done`
//! when its archiver says so. What it did before it was started last, under other settings maybe, proves nothing; nor does what
//! another archiver stored before this one was put in its place, or what `expire` may have deleted since.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use walpoint_base::{SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId, WalFileName, dropped};
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::catalog::{newer_than, stored_histories};
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
                "PostgreSQL finished segment {segment} and does not archive it: its archive_mode may be off"
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
                "If archive_mode is off, run \"alter system set archive_mode = on\" and restart PostgreSQL. Then take a new \
                 backup: nothing after that segment can be recovered until then."
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

/// What the marks of a timeline's newest finished segments say. What happened just now does not count yet.
#[derive(Debug, Default, PartialEq, Eq)]
struct Marks {
    /// The newest one that was marked as archived since the server was started, and was not dropped: and when, in seconds since 1970.
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
        self.is_missing(uploader, &cluster, done, at).await
    }

    /// Whether no repository has a segment that was marked as archived at that time, if that is known to be this server's archiver's
    /// doing.
    async fn is_missing(
        &self,
        uploader: &Uploader,
        cluster: &WalIdentity,
        done: SegmentName,
        at: i64,
    ) -> anyhow::Result<Option<Bypass>> {
        let mut counts = at > self.since;
        for target in uploader.targets().iter().filter(|target| target.acknowledges) {
            // What cannot be read may be there, and what is damaged was stored.
            let Ok(archive) = target.archive(cluster).await else { return Ok(None) };
            match has(&archive, done).await {
                Ok(false) if may_have_expired(&archive, done.timeline, at).await.unwrap_or(true) => {
                    return Ok(None);
                }
                Ok(false) => {}
                Ok(true) => {
                    *self.arrived.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
                    return Ok(None);
                }
                Err(_) => return Ok(None),
            }
            counts = counts || has_wal_before(&archive, &uploader.wal_directory(), done.timeline).await?;
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

/// Whether a repository has WAL of a timeline, or of one that it branched off from: what this server writes then belongs there, too.
/// After a promotion nothing of the new timeline may ever have arrived.
async fn has_wal_before(archive: &WalArchive, wal: &Path, timeline: TimelineId) -> anyhow::Result<bool> {
    let file = wal.join(WalFileName::History(timeline).to_string());
    let content = disk::look(wal, move || std::fs::read(file).ok()).await?;
    let history = content.and_then(|content| TimelineHistory::parse(timeline, &content).ok());
    for timeline in history.unwrap_or_else(|| TimelineHistory::root(timeline)).path().rev() {
        if archive.anything_after(timeline, SegmentNo(0)).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether `expire` may have deleted all WAL of a timeline by now, of which a segment was marked at that time, in seconds since 1970:
/// another server went on from it since then, or it was settled as abandoned. What is marked behind another server's promotion belongs to
/// a timeline that is written beside, and the WAL of that one and of the newest one stays.
async fn may_have_expired(archive: &WalArchive, timeline: TimelineId, at: i64) -> Result<bool, RepoError> {
    let listed = archive.all_histories().await?;
    let abandoned = archive.still_abandoned(&listed.abandoned).await?;
    if abandoned.contains_key(&timeline) {
        return Ok(true);
    }
    let stored = stored_histories(archive).await?;
    let mut superseded = newer_than(timeline, &stored).filter(|(id, _)| !abandoned.contains_key(id));
    Ok(superseded.any(|(_, stored)| stored.as_second() >= at))
}

async fn marks(pgdata: &Path, timeline: TimelineId, size: SegmentSize) -> anyhow::Result<Marks> {
    let wal = pgdata.join("pg_wal");
    let mut begun = on_path(&wal, TimelineHistory::root(timeline), size).await?;
    begun.retain(|name| name.timeline == timeline);
    begun.sort_unstable();
    let pgdata = pgdata.to_owned();
    let read = disk::run(&wal, move || read_marks(&pgdata, &begun, SystemTime::now())).await?;
    read.with_context(|| {
        format!("the record of dropped WAL, {}, cannot be read", wal.join(dropped::FILE).display())
    })
}

/// Reads the marks of segments that were begun, in their order. An error if it is not known which ones were dropped: those are marked as
/// archived, too. Blocks.
fn read_marks(pgdata: &Path, begun: &[SegmentName], now: SystemTime) -> io::Result<Marks> {
    let (Some(started), Some(settled)) = (started(pgdata), now.checked_sub(SETTLED)) else {
        return Ok(Marks::default());
    };
    let wal = pgdata.join("pg_wal");
    let mark = |name: SegmentName, mark: &str| wal.join(format!("archive_status/{name}.{mark}"));
    let dropped = dropped::read(&wal)?;
    let is_dropped = |name: SegmentName| dropped.iter().any(|dropped| dropped.name.segment() == Some(name));
    let finished = finished(&wal, begun);
    let done = finished.iter().rev().filter(|(name, _)| !is_dropped(*name)).find_map(|(name, _)| {
        let marked = marked(&mark(*name, "done"))?;
        (marked >= started && marked < settled).then_some((*name, marked))
    });
    let unmarked = finished.iter().rev().find(|(_, at)| *at < settled).filter(|(name, at)| {
        *at >= started
            && !mark(*name, "ready").exists()
            && !mark(*name, "done").exists()
            // It may have been removed with its mark.
            && wal.join(name.to_string()).exists()
    });
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Ok(Marks {
        done: done.map(|(name, at)| (name, i64::try_from(seconds(at)).unwrap_or(i64::MAX))),
        unmarked: unmarked.map(|(name, _)| *name),
    })
}

/// The segments before the one that is being written, and when each was written last, in their order.
///
/// The server is at the one that was written last of all. Behind that may lie others, under the same timeline of another server: recovery
/// fetched them before.
fn finished(wal: &Path, begun: &[SegmentName]) -> Vec<(SegmentName, SystemTime)> {
    let written = |name: &SegmentName| Some((*name, modified(&wal.join(name.to_string()))?));
    let mut finished: Vec<_> = begun.iter().filter_map(written).collect();
    let current = finished.iter().max_by_key(|(name, at)| (*at, *name)).map(|(name, _)| *name);
    finished.retain(|(name, _)| Some(*name) < current);
    finished
}

/// From when on all that happens is the running server's doing. It says in which second it was started, and wrote `postmaster.pid` since
/// then, which may have been in that second, too.
fn started(pgdata: &Path) -> Option<SystemTime> {
    let second = postmaster::started(pgdata)?.start;
    let over = UNIX_EPOCH.checked_add(Duration::from_secs(second.saturating_add(1)))?;
    Some(modified(&pgdata.join("postmaster.pid")).map_or(over, |written| written.min(over)))
}

/// When a file's content was changed last.
fn modified(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file).and_then(|found| found.modified()).ok()
}

/// When a mark got its name. Renaming it leaves the time of its content as it was.
fn marked(file: &Path) -> Option<SystemTime> {
    let found = std::fs::metadata(file).ok()?;
    let (seconds, nanos) = (u64::try_from(found.ctime()).ok()?, u32::try_from(found.ctime_nsec()).ok()?);
    UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use walpoint_base::WalFileName;
    use walpoint_storage::layout::AbandonedUntil;

    use super::super::fixtures::{Bed, size, switch_in, two};
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

    /// Lets a file of the data directory have been written then.
    fn written_at(bed: &Bed, file: &str, time: SystemTime) {
        let file = std::fs::File::options().write(true).open(bed.pgdata().join(file)).unwrap();
        file.set_modified(time).unwrap();
    }

    /// Segments that were begun, each so many seconds ago.
    fn segments(bed: &Bed, begun: &[(&str, u64)]) -> Vec<SegmentName> {
        for (name, ago) in begun {
            bed.write(name, 1);
            written_at(bed, &format!("pg_wal/{name}"), SystemTime::now() - Duration::from_secs(*ago));
        }
        begun.iter().map(|(name, _)| name.parse().unwrap()).collect()
    }

    fn marks_of(bed: &Bed, begun: &[SegmentName]) -> Marks {
        read_marks(&bed.pgdata(), begun, SystemTime::now()).unwrap()
    }

    /// A standby was promoted with another command, and nothing of its timeline ever arrived.
    #[tokio::test]
    async fn a_timeline_belongs_where_the_wal_before_its_fork_is() {
        let (main, _, uploader, cluster) = two().await;
        let archive = uploader.targets()[0].archive(&cluster).await.unwrap();
        let wal = uploader.wal_directory();
        let (two, three) = (TimelineId::new(2).unwrap(), TimelineId::new(3).unwrap());
        write(&wal.join("00000002.history"), b"1\t0/6000100\tno recovery target specified\n");
        assert!(
            !has_wal_before(&archive, &wal, two).await.unwrap(),
            "another archiver's, before this one had anything"
        );
        main.put(FIRST, 1).await;
        assert!(has_wal_before(&archive, &wal, two).await.unwrap());
        assert!(has_wal_before(&archive, &wal, TimelineId::FIRST).await.unwrap());
        assert!(
            !has_wal_before(&archive, &wal, three).await.unwrap(),
            "no history shows where it comes from"
        );
    }

    const FIRST: &str = "000000010000000000000005";
    const SECOND: &str = "000000010000000000000006";
    const THIRD: &str = "000000010000000000000007";

    /// K6
    #[tokio::test]
    async fn what_expire_may_have_deleted_is_no_sign_of_another_archiver() {
        let (main, _far, uploader, cluster) = two().await;
        main.put(FIRST, 1).await;
        let done: SegmentName = SECOND.parse().unwrap();
        let now = jiff::Timestamp::now().as_second();
        let at = async |at| Watch::once().is_missing(&uploader, &cluster, done, at).await.unwrap();
        let missing = async || at(now - 60).await;
        assert_eq!(missing().await, Some(Bypass::Elsewhere(done)));
        // A copy was promoted: all that is left of timeline 1 may have expired.
        let second = TimelineId::new(2).unwrap();
        let history = switch_in(FIRST, 0);
        main.archive.put_file(WalFileName::History(second), history).await.unwrap();
        assert_eq!(missing().await, None);
        let behind = at(now + 60).await;
        assert_eq!(behind, Some(Bypass::Elsewhere(done)), "timeline 1 is written beside the copy's");
        let until = SegmentName { timeline: second, ..done };
        let fork = Some((
            TimelineId::FIRST,
            FIRST.parse::<SegmentName>().unwrap().number(size()).unwrap().start(size()),
        ));
        main.archive.abandon_timeline(AbandonedUntil { until, fork }, "a test", "dba").await.unwrap();
        assert_eq!(missing().await, Some(Bypass::Elsewhere(done)), "timeline 1 is the newest again");
    }

    #[tokio::test]
    async fn a_finished_segment_without_a_mark_is_not_archived() {
        let bed = Bed::new().await;
        let begun = segments(&bed, &[(FIRST, 60), (SECOND, 50)]);
        let unmarked = || marks_of(&bed, &begun).unmarked;
        assert_eq!(unmarked(), None, "no server runs");
        server(&bed, &[], 3600);
        assert_eq!(unmarked(), Some(begun[0]));
        server(&bed, &[], 30);
        assert_eq!(unmarked(), None, "the server has been restarted since, with other settings maybe");
        for mark in ["ready", "done"] {
            let bed = Bed::new().await;
            let begun = segments(&bed, &[(FIRST, 60), (SECOND, 50)]);
            server(&bed, &[&format!("{FIRST}.{mark}")], 3600);
            assert_eq!(marks_of(&bed, &begun).unmarked, None, "{mark}");
        }
    }

    #[tokio::test]
    async fn the_last_segment_that_was_begun_is_not_finished() {
        let bed = Bed::new().await;
        server(&bed, &[], 3600);
        segments(&bed, &[(FIRST, 60), (SECOND, 50)]);
        let marks = marks(&bed.pgdata(), TimelineId::FIRST, size()).await.unwrap();
        assert_eq!(marks, Marks { done: None, unmarked: FIRST.parse().ok() });
    }

    #[tokio::test]
    async fn what_was_finished_just_now_hides_nothing_before_it() {
        let bed = Bed::new().await;
        server(&bed, &[], 3600);
        let begun = segments(&bed, &[(FIRST, 60), (SECOND, 1), (THIRD, 0)]);
        assert_eq!(marks_of(&bed, &begun).unmarked, Some(begun[0]));

        // The time of a mark cannot be set: the moments are looked at from later on.
        let pause = || std::thread::sleep(Duration::from_millis(50));
        server(&bed, &[&format!("{FIRST}.done")], 3600);
        pause();
        let between = SystemTime::now() + SETTLED;
        pause();
        server(&bed, &[&format!("{SECOND}.done")], 3600);
        let done = |now| read_marks(&bed.pgdata(), &begun, now).unwrap().done.map(|(name, _)| name);
        assert_eq!(done(between - Duration::from_secs(1)), None);
        assert_eq!(done(between), Some(begun[0]));
        let later = between + Duration::from_secs(60);
        assert_eq!(done(later), Some(begun[1]));
        let wal = bed.pgdata().join("pg_wal");
        dropped::record(&wal, SECOND.parse().unwrap(), dropped::DropReason::QueueMax).unwrap();
        assert_eq!(done(later), Some(begun[0]), "what was dropped is on record elsewhere");
        dropped::record_archived(&wal, SECOND.parse().unwrap()).unwrap();
        assert_eq!(done(later), Some(begun[1]), "it was archived after all");
        std::fs::remove_file(wal.join(dropped::FILE)).unwrap();
        std::fs::create_dir(wal.join(dropped::FILE)).unwrap();
        let error = marks(&bed.pgdata(), TimelineId::FIRST, size()).await.unwrap_err();
        assert!(error.to_string().contains("walpoint-dropped, cannot be read"), "{error}");
    }

    #[tokio::test]
    async fn what_lies_behind_the_segment_that_is_being_written_does_not_finish_it() {
        let bed = Bed::new().await;
        server(&bed, &[], 3600);
        let behind = segments(&bed, &[(FIRST, 60), (SECOND, 70), (THIRD, 65)]);
        assert_eq!(marks_of(&bed, &behind).unmarked, None);
        let begun = segments(&bed, &[(FIRST, 60), (SECOND, 50), (THIRD, 65)]);
        assert_eq!(marks_of(&bed, &begun).unmarked, Some(begun[0]), "the next one was begun");
    }

    #[tokio::test]
    async fn what_was_finished_in_the_second_of_the_start_counts_after_it() {
        let bed = Bed::new().await;
        server(&bed, &[], 60);
        let begun = segments(&bed, &[(FIRST, 0), (SECOND, 0)]);
        let second = postmaster::started(&bed.pgdata()).unwrap().start;
        let at = |millis| UNIX_EPOCH + Duration::from_secs(second) + Duration::from_millis(millis);
        written_at(&bed, "postmaster.pid", at(300));
        for (finished, counts) in [(200, false), (400, true)] {
            written_at(&bed, &format!("pg_wal/{FIRST}"), at(finished));
            written_at(&bed, &format!("pg_wal/{SECOND}"), at(500));
            let expected = counts.then(|| begun[0]);
            assert_eq!(marks_of(&bed, &begun).unmarked, expected, "{finished}");
        }
    }
}
