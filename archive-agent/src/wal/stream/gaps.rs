//! WAL that the stream does without: segments that an operator skipped or accepted although damaged, and what was dropped before the slot
//! was made anew.

use walpoint_base::dropped::{self, DropReason};
use walpoint_base::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineHistory, WalFileName};

use super::open::Start;
use crate::wal::archiver::Archiver;
use crate::wal::{disk, dropped as gap};

/// Whether an operator went on without a segment (`push --skip`), or with a damaged one (`push --accept-damaged`). Not while the record of
/// that cannot be read.
pub(super) async fn is_given_up(archiver: &Archiver, name: SegmentName) -> bool {
    given_up(archiver).await.is_ok_and(|names| names.contains(&name))
}

async fn given_up(archiver: &Archiver) -> anyhow::Result<Vec<SegmentName>> {
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

/// Where the stream begins that was to begin at `start`: behind segments that were given up. The server would send what it has of one,
/// damaged, which never continues the slices.
pub(super) async fn behind_given_up(
    archiver: &Archiver,
    history: &TimelineHistory,
    size: SegmentSize,
    start: Start,
) -> anyhow::Result<Start> {
    Ok(behind(&given_up(archiver).await?, history, size, start))
}

fn behind(given_up: &[SegmentName], history: &TimelineHistory, size: SegmentSize, mut start: Start) -> Start {
    while given_up.contains(&start.number.name(start.timeline, size)) {
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
/// first report would confirm them.
pub(super) async fn unconfirmed(
    archiver: &Archiver,
    history: &TimelineHistory,
    size: SegmentSize,
    from: Lsn,
) -> anyhow::Result<Option<String>> {
    let lately = archiver.queue().dropped_lately();
    let mut record = gap::on_record(archiver.uploader(), &lately).await?;
    record.retain(|dropped| dropped.reason == DropReason::QueueMax);
    let names: Vec<SegmentName> = record.iter().filter_map(|dropped| whole(dropped.name)).collect();
    let is_before = |name: &&SegmentName| {
        let start = name.number(size).map(|number| number.start(size));
        let on_path = history.contains(name.timeline)
            && history.end_of(name.timeline).is_none_or(|left| start < Some(left));
        on_path && start < Some(from)
    };
    for name in names.iter().filter(is_before).rev() {
        if !gap::is_archived_after_all(archiver.uploader(), WalFileName::Segment(*name)).await {
            return Ok(Some(format!(
                "{name} was dropped, and commits in it may be waiting for the stream, which would confirm them\nDETAIL: With synchronous \
                 = true, what is confirmed can be restored.\nHINT: Take a new backup (archive-agent backup): streaming begins behind \
                 it. To let commits finish at once, take Walpoint out of synchronous_standby_names."
            )));
        }
        note_archived(archiver, *name).await;
    }
    Ok(None)
}

/// Adds to the record that a segment is stored after all: where that fails, it is looked for again.
async fn note_archived(archiver: &Archiver, name: SegmentName) {
    let (directory, wal) = (archiver.wal_directory(), archiver.wal_directory());
    let noted =
        disk::look(&directory, move || dropped::record_archived(&wal, WalFileName::Segment(name))).await;
    if !matches!(noted, Ok(Ok(()))) {
        tracing::debug!(file = %name, "it is stored, which cannot be recorded: {noted:?}");
    }
}

#[cfg(test)]
mod tests {
    use walpoint_base::TimelineId;

    use super::*;

    #[test]
    fn the_stream_begins_behind_segments_that_were_given_up() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let tli = |id| TimelineId::new(id).unwrap();
        // Timeline 2 left timeline 1 in the middle of segment 6.
        let history = TimelineHistory::parse(tli(2), b"1\t0/680000\tx\n").unwrap();
        let name = |timeline, number| SegmentNo(number).name(tli(timeline), size);
        let from = |given_up: &[SegmentName], timeline, number| {
            let start = behind(
                given_up,
                &history,
                size,
                Start { timeline: tli(timeline), number: SegmentNo(number) },
            );
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
}
