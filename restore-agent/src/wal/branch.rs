//! How much of a parent's segment recovery may replay.
//!
//! PostgreSQL looks for a segment under the newest timeline of its path first. Answered "not there", it takes the file of an
//! older timeline, and replays it to its end, also behind the position at which the path leaves that timeline
//! (`XLogFileReadAnyTLI`). On a standby that answer may only mean "ask again". So an older timeline's file is handed over up to the
//! switch point, with zeros behind it, and not at all where the path has left that timeline before it.
//!
//! Which path recovery follows is known from what PostgreSQL asks for: in one pass it asks for the younger timelines' files of the
//! same number first ([`Pass`](super::pass::Pass)). A standby may have had that answer from elsewhere, so there the newest history
//! that it was given or received and the setting `recovery_target_timeline` count too. They never do in archive recovery, which would
//! end at the cut.
//!
//! A history that came by streaming lies in `pg_wal` only, as does every one that PostgreSQL took from the archive to go by it. Those
//! are read to cut, and for nothing else: they prove nothing of the archive.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use walpoint_base::{
    Diagnostic, Lsn, SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId, WalDirectory,
    WalFileName,
};
use walpoint_pg::control::{CONTROL_FILE, ControlFile};
use walpoint_pg::wal::{PageHeader, RecordHeader};

use crate::settings;
use crate::wal::archive::{ClusterArchive, FetchResult, Landed};
use crate::wal::histories::HistoryCache;

/// The history of a path is mostly known, and a standby waits for its answer.
const HISTORY: Duration = Duration::from_millis(300);

/// As long a recovery waits for it that would stop without it.
const HISTORY_OF_RECOVERY: Duration = Duration::from_secs(10);

/// A segment that PostgreSQL asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AskedSegment {
    pub(crate) name: SegmentName,
    /// The youngest timeline that it did not get this segment of in the same pass.
    pub(crate) pass: Option<TimelineId>,
    /// Whether a standby asks.
    pub(crate) standby: bool,
}

/// The outcome for a segment that has landed: what belongs to the path that recovery follows. `cut` cuts the file.
pub(crate) async fn on_the_path(
    archive: &ClusterArchive,
    place: &WalDirectory,
    asked: AskedSegment,
    landed: Landed,
    cut: impl FnOnce(Lsn) -> io::Result<()>,
) -> FetchResult {
    match portion_of_path(archive, place, asked).await {
        Ok(portion) => apply(asked.name, portion, landed, cut),
        Err(why) => FetchResult::Uncertain(format!(
            "how much of \"{}\" belongs to the path that recovery follows is not known: {why}",
            asked.name
        )),
    }
}

/// How much of a segment belongs to the path that recovery follows; the error says why that cannot be found out.
async fn portion_of_path(
    archive: &ClusterArchive,
    place: &WalDirectory,
    AskedSegment { name, pass, standby }: AskedSegment,
) -> Result<Portion, String> {
    let Some(size) = archive.segment_size() else { return Ok(Portion::Whole) };
    if let Some(youngest) = pass {
        // PostgreSQL has read it before it asked for that timeline's segments, and kept what it read.
        let asked = match own_history(&place.wal, youngest) {
            Some(own) => Some(own),
            None => {
                let limit = if standby { HISTORY } else { HISTORY_OF_RECOVERY };
                let history = tokio::time::timeout(limit, archive.history(youngest)).await;
                let in_time = history
                    .map_err(|_| format!("no repository gave the history of timeline {youngest} in time"))?;
                in_time.map_err(|error| walpoint_words::format_chain(&error))?
            }
        };
        if let Some(history) = asked {
            return Ok(portion(&history, name, size));
        }
    }
    let followed = standby.then(|| followed_by_standby(place, name.timeline)).flatten();
    Ok(followed.map_or(Portion::Whole, |history| portion(&history, name, size)))
}

/// How much of a timeline's segment belongs to the path that recovery follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Portion {
    /// As much as there is.
    Whole,
    /// What lies before this position inside the segment.
    Until(Lsn),
    /// Nothing: the path leaves the timeline before it.
    Nothing,
}

/// How much of segment `name` belongs to the path of `history`. A timeline that is not on the path is none of its business.
fn portion(history: &TimelineHistory, name: SegmentName, size: SegmentSize) -> Portion {
    let Some(number) = name.number(size) else { return Portion::Whole };
    if history.timeline() == name.timeline || !history.contains(name.timeline) {
        return Portion::Whole;
    }
    match history.served_until(name.timeline, number, size) {
        Some(until) if until == number.end(size) => Portion::Whole,
        Some(until) => Portion::Until(until),
        None => Portion::Nothing,
    }
}

/// What a standby follows, by the histories that it was given or received and by its settings: `None` if that is not known, or if it
/// has replayed behind the position at which that path leaves `timeline`, and cannot follow it.
fn followed_by_standby(place: &WalDirectory, timeline: TimelineId) -> Option<TimelineHistory> {
    let configuration = settings::configuration(&place.pgdata);
    let wanted =
        settings::value(&configuration, "recovery_target_timeline").filter(|wanted| !wanted.is_empty());
    let control = std::fs::read(place.pgdata.join(CONTROL_FILE)).ok()?;
    let control = ControlFile::parse(&control).ok()?;
    let history = followed(place, wanted, control.newest_timeline()?)?;
    let left = history.end_of(timeline)?;
    let sizes = (control.wal_segment_size, u64::from(control.wal_block_size));
    let passed = control.min_recovery_point > left && control.min_recovery_point_timeline == Some(timeline);
    (!passed && !goes_on(&place.wal, timeline, left, sizes)).then_some(history)
}

/// The history of the timeline that a standby follows that has reached timeline `reached`, by its setting `recovery_target_timeline`.
fn followed(place: &WalDirectory, setting: Option<&str>, reached: TimelineId) -> Option<TimelineHistory> {
    let cache = HistoryCache::in_wal(&place.wal);
    let history = |timeline: TimelineId| {
        let given = cache.get(place.recovery, timeline);
        let given = given.and_then(|content| TimelineHistory::parse(timeline, &content).ok());
        given.or_else(|| own_history(&place.wal, timeline))
    };
    match setting {
        None | Some("latest") => {}
        Some("current") => return history(reached),
        Some(number) => return history(TimelineId::new(number.parse().ok()?)?),
    }
    // As PostgreSQL looks for it: one id after the other until one has no history (`findNewestTimeLine`). Those that it was given, it
    // has looked for so.
    let given = cache.newest(place.recovery).map(|given| given.timeline());
    let mut newest = given.map_or(reached, |given| given.max(reached));
    while let Some(next) = newest.next().filter(|next| history(*next).is_some()) {
        newest = next;
    }
    // One that leaves the path before what was reached is another server's.
    let ids = (reached.get()..=newest.get()).rev().filter_map(TimelineId::new);
    ids.filter_map(history).find(|history| history.contains(reached))
}

/// A history in `pg_wal`, which PostgreSQL received or took to go by it. To cut by it, and for nothing else.
fn own_history(wal: &Path, timeline: TimelineId) -> Option<TimelineHistory> {
    let content = std::fs::read(wal.join(WalFileName::History(timeline).to_string())).ok()?;
    TimelineHistory::parse(timeline, &content).ok()
}

/// Whether a directory of WAL has records of a timeline behind the position at which another one left it: the server was given
/// them or received them, and replays them. `pg_control` tells of it only after the next restartpoint. Sizes in bytes: of a segment, and of a page of WAL. Blocks.
pub(crate) fn goes_on(
    wal: &Path,
    timeline: TimelineId,
    left: Lsn,
    (size, page_size): (SegmentSize, u64),
) -> bool {
    let number = SegmentNo::of(left, size);
    let Some(into_page) = left.0.checked_rem(page_size) else { return false };
    let page = Lsn(left.0 - into_page);
    let read = || -> io::Result<Vec<u8>> {
        let file = File::open(wal.join(number.name(timeline, size).to_string()))?;
        let mut content = vec![0; usize::try_from(page_size).unwrap_or_default()];
        file.read_exact_at(&mut content, page.since(number.start(size)))?;
        Ok(content)
    };
    let Ok(content) = read() else { return false };
    let Some(header) = PageHeader::parse(&content).filter(|header| header.address == page) else {
        return false;
    };
    let at = usize::try_from(left.since(page)).unwrap_or_default().max(header.length());
    let Some(record) = content.get(at..).and_then(|rest| rest.first_chunk()).map(RecordHeader::parse) else {
        return false;
    };
    // What a file was used for before lies behind its end: its records follow those of a much earlier segment.
    let before = SegmentNo(number.0.saturating_sub(1)).start(size);
    record.total > 0 && (before..left).contains(&record.previous)
}

/// Replaces what lies behind `until` in a segment's file by zeros.
pub(crate) fn cut(path: &Path, until: Lsn, size: SegmentSize) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(until.0 % size.bytes())?;
    file.set_len(size.bytes())
}

/// The outcome for a segment that has landed, of which recovery may have `portion`. `cut` cuts the file.
fn apply(
    name: SegmentName,
    portion: Portion,
    mut landed: Landed,
    cut: impl FnOnce(Lsn) -> io::Result<()>,
) -> FetchResult {
    match portion {
        Portion::Whole => FetchResult::Landed(landed),
        Portion::Nothing => FetchResult::Absent(format!(
            "\"{name}\" is not part of the path that recovery follows, which leaves timeline {} before it",
            name.timeline
        )),
        Portion::Until(until) => {
            if let Err(error) = cut(until) {
                return FetchResult::Uncertain(format!("\"{name}\" cannot be cut at {until}: {error}"));
            }
            landed.creates.retain(|created| created.record < until);
            let cut = format!(
                "\"{name}\" ends at {until}, where the path that recovery follows leaves its timeline"
            );
            let notes = [std::mem::take(&mut landed.note), cut];
            landed.note = Diagnostic::gather("", notes.iter().filter(|note| !note.is_empty())).into();
            FetchResult::Landed(landed)
        }
    }
}

#[cfg(test)]
mod tests {
    use walpoint_base::durable;

    use super::*;

    fn name(text: &str) -> SegmentName {
        text.parse().unwrap()
    }

    #[test]
    fn a_parent_gives_what_lies_before_the_switch_point() {
        let text = b"1\t0/5000100\tx\n2\t0/7000000\ty\n";
        let history = TimelineHistory::parse(TimelineId::new(3).unwrap(), text).unwrap();
        for (segment, expected) in [
            ("000000010000000000000004", Portion::Whole),
            ("000000010000000000000005", Portion::Until(Lsn(0x500_0100))),
            ("000000010000000000000006", Portion::Nothing),
            ("000000020000000000000006", Portion::Whole),
            ("000000020000000000000007", Portion::Nothing),
            ("000000030000000000000007", Portion::Whole),
            ("000000040000000000000007", Portion::Whole),
        ] {
            assert_eq!(portion(&history, name(segment), SegmentSize::DEFAULT), expected, "{segment}");
        }
    }

    #[test]
    fn a_history_that_came_by_streaming_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let wal = dir.path().join("pg_wal");
        for directory in [dir.path().join("global"), wal.clone()] {
            std::fs::create_dir(directory).unwrap();
        }
        durable::create(&dir.path().join(CONTROL_FILE), &7u64.to_ne_bytes()).unwrap();
        durable::create(&dir.path().join("standby.signal"), b"").unwrap();
        let place = WalDirectory::of(dir.path()).unwrap();
        let timeline = |id: u32| TimelineId::new(id).unwrap();
        let received = |id: u32, content: &[u8]| {
            durable::create(&wal.join(WalFileName::History(timeline(id)).to_string()), content).unwrap();
        };
        let followed = |setting, reached| {
            followed(&place, setting, timeline(reached)).map(|history| history.timeline().get())
        };
        assert_eq!(followed(None, 1), None);
        received(2, b"1\t0/5000100\tx\n");
        assert_eq!(followed(None, 1), Some(2));
        assert_eq!(followed(Some("latest"), 2), Some(2), "its end is not known, but where it begins");
        assert_eq!((followed(Some("current"), 1), followed(Some("2"), 1)), (None, Some(2)));
        received(3, b"1\t0/4000100\tx\n");
        assert_eq!(followed(None, 1), Some(3));
        assert_eq!(followed(None, 2), Some(2), "timeline 3 is not forked from it");
        received(5, b"1\t0/5000100\tx\n2\t0/6000100\tx\n");
        assert_eq!(followed(None, 2), Some(2), "PostgreSQL looks no further than timeline 4");
        received(4, b"damaged");
        assert_eq!(followed(None, 2), Some(2));
    }

    #[test]
    fn records_behind_the_fork_show_that_the_server_went_on() {
        let dir = tempfile::tempdir().unwrap();
        let sizes = (SegmentSize::new(1 << 20).unwrap(), 8192);
        let left = Lsn(0x50_4100);
        let mut segment = vec![0; 1 << 20];
        let header = |address: u64| [&[0; 8][..], &address.to_le_bytes(), &[0; 8]].concat();
        let record =
            |previous: u64| [&64u32.to_le_bytes()[..], &[0; 4], &previous.to_le_bytes(), &[0; 8]].concat();
        let path = dir.path().join("000000010000000000000005");
        let mut try_with = |address: u64, previous: u64| {
            segment[0x4000..0x4018].copy_from_slice(&header(address));
            segment[0x4100..0x4118].copy_from_slice(&record(previous));
            durable::replace(&path, &segment, 0o600).unwrap();
            goes_on(dir.path(), TimelineId::FIRST, left, sizes)
        };
        assert!(try_with(0x50_4000, 0x50_40c0));
        assert!(try_with(0x50_4000, 0x4F_FFF0), "the first record of the segment");
        assert!(!try_with(0x30_4000, 0x30_40c0), "a file that is used again");
        assert!(!try_with(0x50_4000, 0x30_40c0), "of which only a part was written again");
        assert!(!goes_on(dir.path(), TimelineId::FIRST, Lsn(0x60_0100), sizes), "no such file");
        cut(&path, left, sizes.0).unwrap();
        assert!(!goes_on(dir.path(), TimelineId::FIRST, left, sizes), "what it was given ends there");
    }

    #[test]
    fn zeros_take_the_place_of_what_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("segment");
        durable::create(&path, &7u8.to_ne_bytes().repeat(1 << 20)).unwrap();
        cut(&path, Lsn(0x50_0100), SegmentSize::new(1 << 20).unwrap()).unwrap();
        let found = std::fs::read(&path).unwrap();
        assert_eq!(found.len(), 1 << 20);
        assert!(found[..0x100].iter().all(|b| *b == 7) && found[0x100..].iter().all(|b| *b == 0));
    }
}
