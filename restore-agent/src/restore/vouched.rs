//! What shows that the archive's last segment is from the server whose `pg_wal` lies in a directory. What follows that segment there is
//! replayed behind it only then: that its records fit ([`super::unarchived`] compares the edges) shows nothing, because equal loads write
//! records of equal lengths.
//!
//! | what | where |
//! |---|---|
//! | a file with the segment's content | under its name, or under that of a later segment, where it waits to be used again |
//! | the record of what was stored from there ([`archived`]) | names the segment by its hash, or a later one of its timeline in that lineage |
//!
//! A timeline that begins behind the segment of another one is shown by itself: what lies before it every copy has, and copies that are
//! promoted at one position write the same history. So the archive's history is the directory's own where PostgreSQL put it up to be
//! archived (`archive_status`) and the contents are the same, or where the record names a segment of that timeline. A drill's copy
//! archives nothing, and has neither. Two servers that both archive, and of which the archive has the history alone, cannot be told apart.
//!
//! All of it is noted as lines of such a record. A repair keeps the files that no archive has, and with them what these lines say.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use walpoint_base::{SegmentName, SegmentNo, TimelineHistory, TimelineId, WalFileName, archived};
use walpoint_repo::wal::{WalArchive, WalCopies};
use walpoint_storage::RepoError;

use super::stored::{hash, header, holds_the_records, sound};
use super::unarchived::inspect;
use super::{apart, reach};
use crate::plan::Planned;

/// Bytes of a record that are read; it has a few lines.
const LONGEST: u64 = 1 << 20;

/// What shows it of the segments before `files`, which are in no archive.
pub(super) async fn look(
    copies: &WalCopies,
    wal: &Path,
    files: &[WalFileName],
    planned: &Planned,
) -> anyhow::Result<Vec<String>> {
    let size = planned.lineage.segment_size;
    let segments = files.iter().filter_map(|name| match name {
        WalFileName::Segment(name) => Some((*name, name.number(size)?)),
        _ => None,
    });
    let segments: Vec<(SegmentName, SegmentNo)> = segments.collect();
    if segments.is_empty() {
        return Ok(Vec::new());
    }
    let (directory, system_id) = (wal.to_owned(), planned.lineage.system_id());
    let read = tokio::task::spawn_blocking(move || {
        Ok::<_, io::Error>((record(&directory)?, apart::waiting_for_use(&directory, system_id, size)?))
    });
    let (mut lines, waiting) =
        read.await?.with_context(|| format!("could not read \"{}\"", wal.display()))?;
    for (name, number) in segments {
        let Some(number) = number.0.checked_sub(1).map(SegmentNo) else { continue };
        let end = number.end(size);
        let history = history(copies, name.timeline).await?;
        let begins_here = history.begin_of(name.timeline) == Some(end);
        let before = number.name(name.timeline, size);
        let of_its_own = std::iter::once(wal.join(before.to_string()));
        let recycled = waiting.iter().filter(|(held, _)| *held == before).map(|(_, path)| path.clone());
        let held: Vec<PathBuf> = of_its_own.chain(recycled).collect();
        for (at, archive) in copies.archives().iter().enumerate() {
            let shown = match begins_here {
                true => line_of_timeline(archive, name, wal).await,
                false => line(archive, before, &held).await,
            };
            match shown {
                Ok(line) => lines.extend(line.filter(|line| !lines.contains(line))),
                Err(error) if at > 0 && error.downcast_ref::<RepoError>().is_some() => {
                    tracing::debug!("repository \"{}\": {error}", archive.repository().name());
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(lines)
}

/// Whether lines show that a segment, the last one that recovery has from the archive, is the directory's own, or, if a timeline begins
/// behind it on which recovery goes on, that this is.
pub(super) async fn covers(
    lines: &[String],
    copies: &WalCopies,
    last: SegmentName,
    timeline: TimelineId,
) -> anyhow::Result<bool> {
    let claims: Vec<_> = lines.iter().filter_map(|line| archived::parse(line)).collect();
    for (at, archive) in copies.archives().iter().enumerate() {
        let place = archive.place();
        let later = |of: &str, segment: SegmentName| {
            of == place && segment.timeline == timeline && (timeline != last.timeline || segment > last)
        };
        if claims.iter().any(|(of, segment, _)| later(of, *segment)) {
            return Ok(true);
        }
        if timeline != last.timeline {
            continue;
        }
        let stored = match header(archive, last).await {
            Err(error) if at > 0 && error.downcast_ref::<RepoError>().is_some() => None,
            header => header?.map(|header| header.hash.to_string()),
        };
        // The hash says all: in which lineage or repository it was stored so does not matter.
        if claims.iter().any(|(_, segment, hash)| *segment == last && stored.as_deref() == Some(*hash)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What a directory remembers of what was stored from it. A record that is none says nothing. Blocks.
fn record(wal: &Path) -> io::Result<Vec<String>> {
    let mut bytes = Vec::new();
    match reach::plain(&wal.join(archived::FILE)) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => {}
        file => drop(file?.take(LONGEST).read_to_end(&mut bytes)?),
    }
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().filter(|line| archived::parse(line).is_some()).map(str::to_owned).collect())
}

/// A timeline's history; of one that is damaged or not there it is not known where it begins.
async fn history(copies: &WalCopies, timeline: TimelineId) -> anyhow::Result<TimelineHistory> {
    match copies.history(timeline).await {
        Err(RepoError::Corrupt { .. }) => Ok(TimelineHistory::root(timeline)),
        history => Ok(history?.unwrap_or_else(|| TimelineHistory::root(timeline))),
    }
}

/// The line that says that a directory has a segment as an archive has it. `held`: files that may be it.
async fn line(archive: &WalArchive, name: SegmentName, held: &[PathBuf]) -> anyhow::Result<Option<String>> {
    let Some(header) = header(archive, name).await? else { return Ok(None) };
    let mut shown = false;
    for path in held.iter().filter(|path| fs::symlink_metadata(path).is_ok_and(|found| found.is_file())) {
        shown = shown
            || hash(archive, path, u64::MAX).await? == header.hash
            || !header.damaged && holds_all_records(archive, name, path).await?;
    }
    Ok(shown.then(|| archived::line(&archive.place(), name, &header.hash.to_string())))
}

/// Whether a file is a whole segment whose records an archive has, whatever bytes that mean nothing are. Where it ends early, another
/// server may have gone on from there.
async fn holds_all_records(archive: &WalArchive, name: SegmentName, path: &Path) -> anyhow::Result<bool> {
    let inspected = path.to_owned();
    match tokio::task::spawn_blocking(move || inspect(name, &inspected, None)).await?? {
        Ok((facts, None)) if facts.whole => holds_the_records(archive, path, &facts).await,
        _ => Ok(false),
    }
}

/// The line that says that the timeline that begins with a segment is a directory's own. It names that segment, and the history's hash.
async fn line_of_timeline(
    archive: &WalArchive,
    first: SegmentName,
    wal: &Path,
) -> anyhow::Result<Option<String>> {
    let name = WalFileName::History(first.timeline);
    let path = wal.join(name.to_string());
    let is_there = fs::symlink_metadata(&path).is_ok_and(|found| found.is_file());
    if !is_there || !was_put_up(wal, name) {
        return Ok(None);
    }
    let Some(stored) = sound(archive, archive.get(name).await)? else { return Ok(None) };
    let own = hash(archive, &path, u64::MAX).await?;
    let is_own = archive.repository().sealer().content_hash(&stored.content) == own;
    Ok(is_own.then(|| archived::line(&archive.place(), first, &own.to_string())))
}

/// Whether PostgreSQL put a file up to be archived, whether that was done or not.
fn was_put_up(wal: &Path, name: WalFileName) -> bool {
    let status = wal.join("archive_status");
    [".ready", ".done"]
        .iter()
        .any(|suffix| fs::symlink_metadata(status.join(format!("{name}{suffix}"))).is_ok())
}

#[cfg(test)]
mod tests {
    use walpoint_base::durable;

    use super::*;

    #[test]
    fn a_copy_that_archives_nothing_put_up_no_history() {
        let dir = tempfile::tempdir().unwrap();
        let name = WalFileName::History(TimelineId::new(2).unwrap());
        let status = dir.path().join("archive_status");
        fs::create_dir(&status).unwrap();
        assert!(!was_put_up(dir.path(), name));
        for suffix in ["ready", "done"] {
            let path = status.join(format!("00000002.history.{suffix}"));
            durable::replace(&path, b"", 0o600).unwrap();
            assert!(was_put_up(dir.path(), name), "{suffix}");
            fs::remove_file(&path).unwrap();
        }
        durable::replace(&status.join("00000003.history.done"), b"", 0o600).unwrap();
        assert!(!was_put_up(dir.path(), name));
    }

    #[test]
    fn a_record_is_read_line_by_line_and_one_that_is_none_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(record(dir.path()).unwrap(), Vec::<String>::new());
        let name = "000000010000000000000005".parse().unwrap();
        let line = archived::line("a 1", name, &"07".repeat(32));
        let path = dir.path().join(archived::FILE);
        durable::create(&path, format!("no line\n{line}\n\u{1}\n").as_bytes()).unwrap();
        assert_eq!(record(dir.path()).unwrap(), [line]);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(record(dir.path()).unwrap(), Vec::<String>::new());
    }
}
