//! Whose history an archive holds: one server's. Another one that writes under the same timeline number is a split brain,
//! and nothing of it is stored.
//!
//! Equal histories prove little: two standbys promoted at one position write the same file. So contents decide: the newest
//! segments that lie both in `pg_wal` and in the repository have to be the same. What is not finished, not sound or not there
//! proves nothing.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use futures_util::TryStreamExt;
use walpoint_base::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId, WalFileName};
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::lineage::LineageFork;
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;
use walpoint_storage::layout::WalEntry;

use super::check::history_in;
use super::comparison::{Comparison, beginning, begins, has_begun, segment};
use super::disk;
use super::split_brain::SplitBrain;

/// Segments that have to be the same on both sides.
const ENOUGH: usize = 2;

/// Segments that are the same before a fork, from which on no other is looked at.
const LOOKED_FOR: usize = 12;

/// What a comparison of a server's WAL with an archive showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// Nothing lies in both.
    Nothing,
    /// The same WAL up to this position, on this timeline.
    Same(TimelineId, Lsn),
    /// Another server's.
    Other(SplitBrain),
}

/// Compares the history of a timeline, and the newest segments on its path that a directory of WAL and an archive have.
pub(crate) async fn compare(
    archive: &WalArchive,
    cluster: &WalIdentity,
    wal: &Path,
    timeline: TimelineId,
) -> Result<Evidence, RepoError> {
    let mut history = TimelineHistory::root(timeline);
    if timeline != TimelineId::FIRST {
        let name = WalFileName::History(timeline);
        let path = wal.join(name.to_string());
        let ours = disk::look(wal, move || std::fs::read(path)).await?.ok();
        // What is damaged proves nothing.
        let ours = ours.filter(|ours| TimelineHistory::flaw(ours).is_none());
        let theirs = match archive.get(name).await {
            Ok(file) => file.map(|file| file.content),
            Err(RepoError::Corrupt { .. }) => None,
            Err(error) => return Err(error),
        };
        if let (Some(ours), Some(theirs)) = (&ours, &theirs)
            && ours != theirs
            && TimelineHistory::flaw(theirs).is_none()
        {
            let what = other_history(archive, timeline, ours, theirs);
            return Ok(Evidence::Other(SplitBrain::new(archive, timeline, what)));
        }
        if let Some(parsed) = ours.or(theirs).and_then(|text| TimelineHistory::parse(timeline, &text).ok()) {
            history = parsed;
        }
    }
    let size = cluster.segment_size;
    let found = on_path(wal, history, size).await?;
    let (mut same, mut newest) = (0, Evidence::Nothing);
    for name in in_both(archive, found).await? {
        match segment(archive, cluster, wal, name).await? {
            Comparison::Unknown => {}
            Comparison::Same => {
                if let (Evidence::Nothing, Some(number)) = (&newest, name.number(size)) {
                    newest = Evidence::Same(name.timeline, number.end(size));
                }
                same += 1;
                if same == ENOUGH {
                    break;
                }
            }
            Comparison::Other(what) => {
                return Ok(Evidence::Other(SplitBrain::new(archive, name.timeline, what)));
            }
        }
    }
    Ok(newest)
}

/// Up to where the WAL of a directory and of an archive is the same on the path to a timeline: the end of the newest finished
/// segment that is, and before which none differs. Where the path leaves a timeline within a segment, what that holds before counts.
pub(crate) async fn fork(
    archive: &WalArchive,
    cluster: &WalIdentity,
    wal: &Path,
    timeline: TimelineId,
) -> Result<Option<LineageFork>, RepoError> {
    let directory = wal.to_owned();
    let own = disk::look(wal, move || history_in(&directory, timeline)).await?;
    let history = own.map_or_else(|| TimelineHistory::root(timeline), |(history, _)| history);
    let size = cluster.segment_size;
    let (directory, path) = (wal.to_owned(), history.clone());
    let found = listed(wal, move || list_path(&directory, &path, size, Leaving::Within)).await?;
    let (mut fork, mut same) = (None, 0);
    for name in in_both(archive, found).await? {
        let Some(number) = name.number(size) else { continue };
        let lsn = number.end(size).min(history.end_of(name.timeline).unwrap_or(Lsn(u64::MAX)));
        let compared = match lsn == number.end(size) {
            true => segment(archive, cluster, wal, name).await?,
            false => beginning(archive, wal, name, lsn.since(number.start(size))).await?,
        };
        match compared {
            Comparison::Unknown => {}
            Comparison::Same => {
                fork = fork.or(Some(LineageFork { timeline: name.timeline, lsn }));
                same += 1;
                if same == LOOKED_FOR {
                    break;
                }
            }
            // What is the same behind it was stored before the two servers met.
            Comparison::Other(_) => (fork, same) = (None, 0),
        }
    }
    Ok(fork)
}

/// The segments of a directory behind a fork.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BehindFork {
    /// Those that PostgreSQL does not hand over any more, or may be about to mark so. The oldest first.
    pub(crate) handed_over: Vec<SegmentName>,
    /// The first one behind the fork, if it is no longer there and later ones are.
    pub(crate) removed: Option<SegmentName>,
}

/// The segments of a directory behind a fork on the path to a timeline that PostgreSQL does not hand over any more: it marked them as
/// archived, or received them so. Or it may be about to: those that wait and are stored in one of `parents`, where they were archived so
/// far, may have been acknowledged.
pub(crate) async fn handed_over_behind(
    parents: &[WalArchive],
    wal: &Path,
    timeline: TimelineId,
    fork: LineageFork,
    size: SegmentSize,
) -> Result<BehindFork, RepoError> {
    let directory = wal.to_owned();
    let own = disk::look(wal, move || history_in(&directory, timeline)).await?;
    let history = own.map_or_else(|| TimelineHistory::root(timeline), |(history, _)| history);
    let (mut found, first) = (on_path(wal, history, size).await?, SegmentNo::of(fork.lsn, size));
    found.retain(|name| name.number(size) >= Some(first));
    let removed = found.last().is_some_and(|oldest| oldest.number(size) > Some(first));
    let status = wal.join("archive_status");
    let marks = move || {
        let marked = |name: &SegmentName, mark: &str| status.join(format!("{name}.{mark}")).exists();
        // In this order: PostgreSQL renames the one to the other.
        let (ready, rest): (Vec<SegmentName>, Vec<SegmentName>) =
            found.into_iter().partition(|name| marked(name, "ready"));
        (ready, rest.into_iter().filter(|name| marked(name, "done")).collect::<BTreeSet<_>>())
    };
    let (ready, mut handed_over) = disk::look(wal, marks).await?;
    for parent in parents {
        handed_over.extend(in_both(parent, ready.clone()).await?);
    }
    let mut handed_over: Vec<SegmentName> = handed_over.into_iter().collect();
    handed_over.sort_unstable_by_key(|name| (name.number(size), *name));
    Ok(BehindFork { handed_over, removed: removed.then(|| first.name(fork.timeline, size)) })
}

/// What shows that a history is another server's.
pub(crate) fn other_history(
    archive: &WalArchive,
    timeline: TimelineId,
    ours: &[u8],
    theirs: &[u8],
) -> String {
    let hash = |content| archive.repository().sealer().content_hash(content);
    let (name, ours, theirs) = (WalFileName::History(timeline), hash(ours), hash(theirs));
    format!("{name} is stored with different content (stored: {theirs}, offered: {ours})")
}

/// The segments of a directory that lie on a path and are not waiting to be used again, newest first; the newest one may not be
/// finished. What lies behind a fork on the timeline that was left there may be another server's. A server that does not archive
/// marks none as finished. Fails if the directory cannot be read: that it is empty would be evidence of nothing.
pub(super) async fn on_path(
    wal: &Path,
    history: TimelineHistory,
    size: SegmentSize,
) -> Result<Vec<SegmentName>, RepoError> {
    let directory = wal.to_owned();
    listed(wal, move || list_path(&directory, &history, size, Leaving::Before)).await
}

/// The newest segment of a timeline that was begun in a directory. It looks into no more files than it has to: those that wait to be
/// used again, whose names lie behind that, and that one. An error if one of them cannot be read.
pub(super) async fn newest_begun(
    wal: &Path,
    timeline: TimelineId,
    size: SegmentSize,
) -> Result<Option<SegmentNo>, RepoError> {
    let directory = wal.to_owned();
    let found = disk::run(wal, move || find_newest_begun(&directory, timeline, size, begins)).await?;
    found.map_err(|error| RepoError::Internal(format!("{} cannot be read: {error}", wal.display())))
}

fn find_newest_begun(
    wal: &Path,
    timeline: TimelineId,
    size: SegmentSize,
    mut begins: impl FnMut(&Path, SegmentNo, SegmentSize) -> io::Result<bool>,
) -> io::Result<Option<SegmentNo>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(wal)? {
        let Some(Ok(name)) = entry?.file_name().to_str().map(str::parse::<SegmentName>) else { continue };
        numbers.extend(name.number(size).filter(|_| name.timeline == timeline));
    }
    numbers.sort_unstable_by_key(|number| std::cmp::Reverse(*number));
    for number in numbers {
        let path = wal.join(number.name(timeline, size).to_string());
        let begun = begins(&path, number, size);
        if begun.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))? {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

async fn listed(
    wal: &Path,
    list: impl FnOnce() -> io::Result<Vec<SegmentName>> + Send + 'static,
) -> Result<Vec<SegmentName>, RepoError> {
    let listed = disk::run(wal, list).await?;
    listed.map_err(|error| RepoError::Internal(format!("{} cannot be read: {error}", wal.display())))
}

/// Which segments count of a timeline that the path leaves.
#[derive(Clone, Copy)]
enum Leaving {
    /// Those before the one in which it is left.
    Before,
    /// That one, too, if the path has a part of it.
    Within,
}

fn list_path(
    wal: &Path,
    history: &TimelineHistory,
    size: SegmentSize,
    leaving: Leaving,
) -> io::Result<Vec<SegmentName>> {
    let mut found: Vec<(SegmentNo, SegmentName)> = Vec::new();
    for entry in std::fs::read_dir(wal)? {
        let entry = entry?;
        let Some(Ok(name)) = entry.file_name().to_str().map(str::parse::<SegmentName>) else { continue };
        let Some(number) = name.number(size) else { continue };
        let leads = |end: Lsn| match leaving {
            Leaving::Before => number < SegmentNo::of(end, size),
            Leaving::Within => number.start(size) < end,
        };
        let leads = name.timeline == history.timeline() || history.end_of(name.timeline).is_some_and(leads);
        if leads && has_begun(&entry.path(), number, size) {
            found.push((number, name));
        }
    }
    found.sort_unstable_by(|one, other| other.cmp(one));
    Ok(found.into_iter().map(|(_, name)| name).collect())
}

/// Those of a directory's segments that are stored as well, in the same order: one listing for each timeline, no further than
/// they go.
pub(super) async fn in_both(
    archive: &WalArchive,
    names: Vec<SegmentName>,
) -> Result<Vec<SegmentName>, RepoError> {
    let (mut stored, wanted) = (BTreeSet::new(), names.iter().copied().collect::<BTreeSet<_>>());
    for run in names.chunk_by(|one, other| one.timeline == other.timeline) {
        let (Some(newest), Some(oldest)) = (run.first(), run.last()) else { continue };
        let mut listed = archive.list(oldest.timeline, Some(*oldest));
        while let Some((entry, _)) = listed.try_next().await? {
            match entry {
                WalEntry::File(WalFileName::Segment(segment)) if segment > *newest => break,
                WalEntry::File(WalFileName::Segment(segment)) if wanted.contains(&segment) => {
                    stored.insert(segment);
                }
                _ => {}
            }
        }
    }
    Ok(names.into_iter().filter(|name| stored.contains(name)).collect())
}

/// Where the history of a timeline may lie beside a file: in its own directory, then in `pg_wal`.
pub(super) fn places_of_history(file: &Path, name: WalFileName, wal: &Path) -> Vec<PathBuf> {
    let history = WalFileName::History(name.timeline());
    if name == history {
        return vec![file.to_owned()];
    }
    let beside = file.parent().map(|directory| directory.join(history.to_string()));
    beside.into_iter().chain([wal.join(history.to_string())]).collect()
}

#[cfg(test)]
mod tests {
    use walpoint_base::durable;

    use super::super::fixtures::{Bed, switch_in};
    use super::*;

    #[tokio::test]
    async fn the_newest_segment_that_was_begun_is_found_without_a_look_into_older_ones() {
        let bed = Bed::new().await;
        let (wal, size) = (bed.pgdata().join("pg_wal"), bed.archive.lineage().segment_size);
        let newest = async || newest_begun(&wal, TimelineId::FIRST, size).await.unwrap();
        assert_eq!(newest().await, None);
        for name in ["000000010000000000000002", "000000010000000000000003", "000000020000000000000009"] {
            bed.write(name, 1);
        }
        // It waits to be used again, and still has the address of what it was.
        std::fs::copy(wal.join("000000010000000000000002"), wal.join("000000010000000000000004")).unwrap();
        assert_eq!(newest().await, Some(SegmentNo(3)));
        let mut seen = Vec::new();
        let found = find_newest_begun(&wal, TimelineId::FIRST, size, |path, number, size| {
            seen.push(number.0);
            begins(path, number, size)
        });
        assert_eq!((found.unwrap(), seen), (Some(SegmentNo(3)), vec![4, 3]));
        assert!(newest_begun(&wal.join("none"), TimelineId::FIRST, size).await.is_err());
    }

    /// A server that was promoted in the middle of a segment, and got that from the archive.
    #[tokio::test]
    async fn a_fork_within_a_segment_is_found_by_what_lies_before_it() {
        let bed = Bed::new().await;
        let (wal, lineage) = (bed.pgdata().join("pg_wal"), bed.archive.lineage().clone());
        let (system_id, segment_size) = (lineage.system_id(), lineage.segment_size);
        let cluster = WalIdentity { system_id, major: lineage.major, segment_size };
        let name = "000000010000000000000003";
        bed.put("000000010000000000000002", 1).await;
        bed.put(name, 1).await;
        bed.write(name, 1);
        bed.write("000000020000000000000003", 1);
        durable::replace(&wal.join("00000002.history"), &switch_in(name, 0x800), 0o600).unwrap();
        let two = TimelineId::new(2).unwrap();
        let found = async || fork(&bed.archive, &cluster, &wal, two).await.unwrap();
        let whole = std::fs::read(wal.join(name)).unwrap();
        let change = |at: usize| {
            let mut content = whole.clone();
            content[at] ^= 1;
            durable::replace(&wal.join(name), &content, 0o600).unwrap();
        };
        let expected = Some(LineageFork { timeline: TimelineId::FIRST, lsn: Lsn(0x30_0800) });
        assert_eq!(found().await, expected);
        change(0x800);
        assert_eq!(found().await, expected, "behind the fork it may be another server's");
        change(0x7ff);
        assert_eq!(found().await, None);
    }

    #[tokio::test]
    async fn what_postgresql_does_not_hand_over_again_is_found_behind_a_fork() {
        let bed = Bed::new().await;
        let (wal, size) = (bed.pgdata().join("pg_wal"), SegmentSize::new(1 << 20).unwrap());
        // Acknowledged, and not yet marked.
        bed.put("000000010000000000000006", 1).await;
        for (name, mark) in [
            ("000000010000000000000003", "done"),
            ("000000010000000000000004", "done"),
            ("000000010000000000000005", "done"),
            ("000000010000000000000006", "ready"),
            ("000000010000000000000007", "ready"),
            ("000000010000000000000008", ""),
            ("000000020000000000000005", "done"),
        ] {
            let segment: SegmentName = name.parse().unwrap();
            let mut page = [0; 16];
            page[8..].copy_from_slice(&segment.number(size).unwrap().start(size).0.to_le_bytes());
            durable::replace(&wal.join(name), &page, 0o600).unwrap();
            if !mark.is_empty() {
                std::fs::File::create(wal.join(format!("archive_status/{name}.{mark}"))).unwrap();
            }
        }
        let parents = [bed.archive.clone()];
        let found = async |lsn| {
            let fork = LineageFork { timeline: TimelineId::FIRST, lsn: Lsn(lsn) };
            let found = handed_over_behind(&parents, &wal, TimelineId::FIRST, fork, size).await.unwrap();
            let names: Vec<String> = found.handed_over.iter().map(ToString::to_string).collect();
            (names, found.removed.map(|removed| removed.to_string()))
        };
        let four_on = ["000000010000000000000004", "000000010000000000000005", "000000010000000000000006"];
        assert_eq!(found(0x40_0000).await, (four_on.map(str::to_owned).to_vec(), None));
        // PostgreSQL removed the second segment.
        assert_eq!(found(0x20_0000).await.1.as_deref(), Some("000000010000000000000002"));
    }
}
