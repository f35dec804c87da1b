//! WAL that the stream does without: segments that an operator skipped or accepted although damaged. And WAL that keeps it from beginning,
//! because commits in it may still wait and would be confirmed: what was dropped, and what is not stored without a record of why.

use std::sync::Arc;

use walpoint_base::dropped::{self, DropReason};
use walpoint_base::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineHistory, WalFileName};
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;

use super::open::Start;
use crate::wal::archiver::Archiver;
use crate::wal::listed::not_listed;
use crate::wal::{base, disk, dropped as gap};

/// Whether an operator decided to archive on without a segment (`push --skip`), or with a damaged one (`push --accept-damaged`). Not while
/// the record of that cannot be read.
pub(super) async fn is_decided(archiver: &Archiver, name: SegmentName) -> bool {
    decided(archiver).await.is_ok_and(|names| names.contains(&name))
}

async fn decided(archiver: &Archiver) -> anyhow::Result<Vec<SegmentName>> {
    let (directory, wal) = (archiver.wal_directory(), archiver.wal_directory());
    let record = disk::look(&directory, move || dropped::read(&wal)).await??;
    let by_hand = record.into_iter().filter(|dropped| dropped.reason != DropReason::QueueMax);
    Ok(by_hand.filter_map(|dropped| whole(dropped.name)).collect())
}

fn whole(name: WalFileName) -> Option<SegmentName> {
    match name {
        WalFileName::Segment(segment) => Some(segment),
        _ => None,
    }
}

/// Where the stream begins that was to begin at `start`: behind segments that were skipped or accepted. The server would send what it has of
/// one, damaged, which never continues the slices.
pub(super) async fn behind_decided(
    archiver: &Archiver,
    history: &TimelineHistory,
    size: SegmentSize,
    start: Start,
) -> anyhow::Result<Start> {
    Ok(behind(&decided(archiver).await?, history, size, start))
}

fn behind(decided: &[SegmentName], history: &TimelineHistory, size: SegmentSize, mut start: Start) -> Start {
    while decided.contains(&start.number.name(start.timeline, size)) {
        let left = history.end_of(start.timeline).filter(|left| *left <= start.number.end(size));
        let heir = || history.path().find(|timeline| *timeline > start.timeline);
        start = match left.zip(heir()) {
            Some((left, timeline)) => Start { timeline, number: SegmentNo::of(left, size) },
            None => Start { number: start.number.next(), ..start },
        };
    }
    start
}

/// Why a stream for synchronous commit must not begin at a position: WAL before it was dropped, commits in that may still wait, and the
/// first report would confirm them. An object of that name proves nothing: a damaged one may be why it was dropped.
pub(super) async fn unconfirmed(
    archiver: &Archiver,
    history: &TimelineHistory,
    size: SegmentSize,
    from: Lsn,
) -> anyhow::Result<Option<String>> {
    let lately = archiver.queue().dropped_lately();
    let mut record = gap::on_record(archiver.uploader(), &lately).await?;
    record.retain(|dropped| dropped.reason == DropReason::QueueMax);
    let mut names = record.into_iter().filter_map(|dropped| whole(dropped.name));
    let before = names.rfind(|name| is_before(*name, history, size, from));
    Ok(before.map(|name| held(&format!("{name} was dropped"))))
}

fn held(why: &str) -> String {
    format!(
        "{why}, and commits in it may be waiting for the stream, which would confirm them\nDETAIL: With synchronous = true, what is \
         confirmed can be restored.\nHINT: Take a new backup (archive-agent backup): streaming begins when it is complete. To let \
         commits finish at once, take Walpoint out of synchronous_standby_names."
    )
}

/// Why a stream for synchronous commit must not begin at a segment: one before it, behind the newest backup, is not stored. Another
/// `archive_command` may have let it go, and commits in it may still wait where the slot was made anew. A repository without a backup
/// restores none of them in any case, so it is not asked.
pub(super) async fn unstored(
    archiver: &Archiver,
    history: &TimelineHistory,
    size: SegmentSize,
    until: SegmentNo,
) -> anyhow::Result<Option<String>> {
    let (uploader, decided) = (archiver.uploader(), decided(archiver).await?);
    let cluster = uploader.identity().await?;
    for target in uploader.targets().iter().filter(|target| target.acknowledges) {
        let archive = target.archive(&cluster).await?;
        let Some(backup) = base::newest_backup(&archive, history).await? else { continue };
        let first = SegmentNo::of(backup.start(), size);
        if let Some(name) = first_missing(&archive, history, size, (first, until), &decided).await? {
            return Ok(Some(held(&format!("{name} is not in repository {}", target.name()))));
        }
    }
    Ok(None)
}

/// The first segment of a path, from one to before another, that an archive lacks, but for those that an operator decided to do without.
async fn first_missing(
    archive: &WalArchive,
    history: &TimelineHistory,
    size: SegmentSize,
    (first, until): (SegmentNo, SegmentNo),
    decided: &[SegmentName],
) -> Result<Option<SegmentName>, RepoError> {
    let names = (first.0..until.0).map(SegmentNo);
    let names = names.map(|number| number.name(history.timeline_at(number.end(size) - 1), size));
    let names: Vec<SegmentName> = names.filter(|name| !decided.contains(name)).collect();
    for name in not_listed(archive, &names).await? {
        // It may be inherited.
        if archive.header(name).await?.is_none() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Whether a segment on the way to a server's timeline begins before a position.
fn is_before(name: SegmentName, history: &TimelineHistory, size: SegmentSize, from: Lsn) -> bool {
    let start = name.number(size).map(|number| number.start(size));
    let on_path = history.contains(name.timeline)
        && history.end_of(name.timeline).is_none_or(|left| start < Some(left));
    on_path && start < Some(from)
}

/// Adds to the record that a segment which stands there as dropped was streamed and is stored, if the archiver finds it sound in each
/// repository. Otherwise it counts as dropped until a backup makes up for it.
pub(super) async fn note_stored(archiver: &Arc<Archiver>, name: SegmentName) {
    let (file, directory) = (WalFileName::Segment(name), archiver.wal_directory());
    let wal = directory.clone();
    let dropped = disk::look(&directory, move || dropped::is_dropped(&wal, file)).await;
    if !matches!(dropped, Ok(Ok(true))) || archiver.finished(file).await.is_err() {
        return;
    }
    let wal = directory.clone();
    let noted = disk::look(&directory, move || dropped::record_archived(&wal, file)).await;
    if !matches!(noted, Ok(Ok(()))) {
        tracing::warn!(
            %file,
            "it was dropped and is stored after all, which cannot be recorded in {}: {noted:?}\nDETAIL: It counts as dropped until the \
             next backup.",
            directory.join(dropped::FILE).display()
        );
    }
}

#[cfg(test)]
mod tests {
    use walpoint_base::TimelineId;

    use super::*;

    #[test]
    fn the_stream_begins_behind_segments_that_were_skipped_or_accepted() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let tli = |id| TimelineId::new(id).unwrap();
        // Timeline 2 left timeline 1 in the middle of segment 6.
        let history = TimelineHistory::parse(tli(2), b"1\t0/680000\tx\n").unwrap();
        let name = |timeline, number| SegmentNo(number).name(tli(timeline), size);
        let from = |decided: &[SegmentName], timeline, number| {
            let start =
                behind(decided, &history, size, Start { timeline: tli(timeline), number: SegmentNo(number) });
            (start.timeline.get(), start.number.0)
        };
        assert_eq!(from(&[], 1, 4), (1, 4));
        assert_eq!(from(&[name(1, 5)], 1, 4), (1, 4));
        assert_eq!(from(&[name(1, 4), name(1, 5)], 1, 4), (1, 6));
        assert_eq!(from(&[name(1, 4), name(2, 5)], 1, 4), (1, 5));
        // The next timeline's own file of that segment is another one.
        assert_eq!(from(&[name(1, 5), name(1, 6)], 1, 5), (2, 6));
        assert_eq!(from(&[name(1, 6), name(2, 6), name(2, 7)], 1, 6), (2, 8));
        // Left at the end of a segment.
        let at_end = TimelineHistory::parse(tli(2), b"1\t0/700000\tx\n").unwrap();
        let start = behind(&[name(1, 6)], &at_end, size, Start { timeline: tli(1), number: SegmentNo(6) });
        assert_eq!((start.timeline, start.number), (tli(2), SegmentNo(7)));
    }

    #[test]
    fn what_was_dropped_on_the_way_to_a_position_is_before_it() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let tli = |id| TimelineId::new(id).unwrap();
        let history = TimelineHistory::parse(tli(2), b"1\t0/680000\tx\n").unwrap();
        let before = |timeline, number, from: u64| {
            is_before(SegmentNo(number).name(tli(timeline), size), &history, size, Lsn(from << 20))
        };
        assert!(before(1, 5, 8) && before(1, 6, 8) && before(2, 6, 8) && before(2, 7, 8));
        assert!(!before(2, 8, 8) && !before(2, 9, 8), "the stream sends it");
        assert!(!before(1, 7, 8) && !before(3, 5, 8), "it lies on no way there");
    }
}
