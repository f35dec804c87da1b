//! Whether a `pg_wal` is another server's than the archive's, one that went its own way: a copy that was started beside its original, a
//! second standby that was promoted.
//!
//! What such a server wrote behind the archive's end may have records of the lengths of the original's, as those of an idle server have,
//! and then nothing at the edge shows whose they are ([`super::unarchived`] compares the edges). So whatever it still has of what the
//! archive holds counts, until something differs:
//!
//! | what | where |
//! |---|---|
//! | a segment that lies whole on the plan's path | under its name, also if another lineage of the cluster has it |
//! | the same | under the name of a later segment, where it waits to be used again |
//! | the history of a timeline on the path | under its name |
//!
//! A segment that is damaged counts up to its last valid record, one that the archive has damaged not at all. Bytes that mean nothing do
//! not count ([`same_records`](walpoint_pg::wal::same_records)): a disk may have changed one. Of the parent's segment in
//! which a timeline begins several servers have different ones. Where nothing is left to compare, what shows
//! that the archive's last segment is the directory's own decides ([`super::vouched`]).

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::Context;
use walpoint_base::{
    SegmentName, SegmentNo, SegmentSize, SystemId, TimelineHistory, TimelineId, WalFileName,
};
use walpoint_pg::wal::{LONG_HEADER, LongHeader};
use walpoint_repo::wal::{WalArchive, WalCopies};
use walpoint_storage::RepoError;

use super::reach;
use super::stored::{hash, header, holds_the_records, length_of_records, sound};
use super::unarchived::inspect;
use crate::plan::Planned;

/// So many segments that wait to be used again are compared at the most, the newest first.
const READ: usize = 3;

/// What shows that a directory of WAL is another server's, in words; `None` if nothing does. `other`: the names under which the plan's
/// lineage has another content, wherever else that is.
pub(super) async fn shown(
    copies: &WalCopies,
    wal: &Path,
    other: &BTreeSet<WalFileName>,
    planned: &Planned,
) -> anyhow::Result<Option<String>> {
    let size = planned.lineage.segment_size;
    let history = history(copies, planned.plan.timeline).await?;
    let shown = wal.display();
    for name in other.iter().copied().filter(|name| is_on_path(*name, &history, size)) {
        let differs = match name {
            WalFileName::Segment(segment) => {
                differs(copies, segment, &wal.join(segment.to_string())).await? == Some(true)
            }
            _ => true,
        };
        if differs {
            return Ok(Some(format!(
                "\"{name}\" in {shown} has other content in the archive, so what follows it there is another server's"
            )));
        }
    }
    let (directory, system_id) = (wal.to_owned(), planned.lineage.system_id());
    let listed = tokio::task::spawn_blocking(move || waiting_for_use(&directory, system_id, size)).await?;
    let mut waiting = listed.with_context(|| format!("could not read \"{shown}\""))?;
    waiting.retain(|(name, _)| is_on_path(WalFileName::Segment(*name), &history, size));
    waiting.sort_unstable_by_key(|(name, _)| std::cmp::Reverse(name.number(size)));
    for (name, path) in waiting.into_iter().take(READ) {
        match differs(copies, name, &path).await? {
            Some(true) => {
                return Ok(Some(format!(
                    "what \"{}\" still holds of \"{name}\" has other content in the archive, so what follows it in {shown} is \
                     another server's",
                    path.display()
                )));
            }
            // What lies before it is the same server's.
            Some(false) => break,
            None => {}
        }
    }
    Ok(None)
}

/// The history of the plan's timeline. Of one that the archive has damaged only its own segments count.
async fn history(copies: &WalCopies, timeline: TimelineId) -> anyhow::Result<TimelineHistory> {
    let root = TimelineHistory::root(timeline);
    if timeline == TimelineId::FIRST {
        return Ok(root);
    }
    match copies.history(timeline).await {
        Err(RepoError::Corrupt { .. }) => Ok(root),
        history => Ok(history?.unwrap_or(root)),
    }
}

/// Whether each server that is on the path has a file with the same content.
fn is_on_path(name: WalFileName, history: &TimelineHistory, size: SegmentSize) -> bool {
    match name {
        WalFileName::Segment(name) => name.number(size).is_some_and(|number| {
            history.served_until(name.timeline, number, size) == Some(number.end(size))
        }),
        WalFileName::History(timeline) => history.contains(timeline),
        // Of an incomplete segment there may be several copies.
        WalFileName::Partial(_) | WalFileName::Backup(..) => false,
    }
}

/// Whether a file holds another segment than the archive has under a name; `None` if that cannot be told.
async fn differs(copies: &WalCopies, name: SegmentName, path: &Path) -> anyhow::Result<Option<bool>> {
    let mut differs = None;
    for (at, archive) in copies.archives().iter().enumerate() {
        match differs_from(archive, name, path).await {
            Ok(Some(false)) => return Ok(Some(false)),
            Ok(found) => differs = differs.or(found),
            Err(error) if at > 0 && error.downcast_ref::<RepoError>().is_some() => {
                tracing::debug!("repository \"{}\": {error}", archive.repository().name());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(differs)
}

async fn differs_from(archive: &WalArchive, name: SegmentName, path: &Path) -> anyhow::Result<Option<bool>> {
    let Some(header) = header(archive, name).await?.filter(|header| !header.damaged) else { return Ok(None) };
    if hash(archive, path, u64::MAX).await? == header.hash {
        return Ok(Some(false));
    }
    let inspected = path.to_owned();
    let facts = tokio::task::spawn_blocking(move || inspect(name, &inspected, None)).await??;
    let Ok((facts, damage)) = facts else { return Ok(None) };
    let is_compared_whole = damage.is_none() && facts.whole && !facts.switched;
    let length = length_of_records(&facts);
    if length == 0 {
        return Ok(None);
    }
    if !is_compared_whole {
        let stored = sound(archive, archive.hash_of_beginning(WalFileName::Segment(name), length).await)?;
        let Some(stored) = stored else { return Ok(None) };
        if stored == hash(archive, path, length).await? {
            return Ok(Some(false));
        }
    } else if header.chain != facts.chain {
        return Ok(Some(true));
    }
    // A byte that a disk changed where nothing checks it is no other server's.
    Ok(Some(!holds_the_records(archive, path, &facts).await?))
}

/// The segments that files of a directory hold which have got the name of a later one, and wait to be used again under that. Blocks.
pub(super) fn waiting_for_use(
    wal: &Path,
    system_id: SystemId,
    size: SegmentSize,
) -> io::Result<Vec<(SegmentName, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(wal)? {
        let entry = entry?;
        let name = entry.file_name().to_str().and_then(|name| name.parse::<SegmentName>().ok());
        let Some(name) = name.filter(|_| entry.file_type().is_ok_and(|kind| kind.is_file())) else {
            continue;
        };
        let mut page = Vec::new();
        reach::plain(&entry.path())?.take(LONG_HEADER as u64).read_to_end(&mut page)?;
        let Some(header) = LongHeader::parse(&page).filter(|header| header.system_id == system_id) else {
            continue;
        };
        let (number, timeline) = (SegmentNo::of(header.page.address, size), header.page.timeline);
        if let Some(timeline) = TimelineId::new(timeline)
            && number.start(size) == header.page.address
            && name.number(size).is_some_and(|own| number < own)
        {
            found.push((number.name(timeline, size), entry.path()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use walpoint_base::durable;

    use super::*;

    #[test]
    fn what_each_server_on_the_path_has_is_on_it() {
        let text = b"1\t0/5000100\tx\n2\t0/8000000\ty\n";
        let history = TimelineHistory::parse(TimelineId::new(3).unwrap(), text).unwrap();
        for (name, expected) in [
            ("000000010000000000000004", true),
            ("000000010000000000000005", false),
            ("000000010000000000000006", false),
            ("000000020000000000000005", true),
            ("000000020000000000000007", true),
            ("000000020000000000000008", false),
            ("000000030000000000000008", true),
            ("000000040000000000000008", false),
            ("000000030000000000000009.partial", false),
            ("00000002.history", true),
            ("00000003.history", true),
            ("00000004.history", false),
        ] {
            let is = is_on_path(name.parse().unwrap(), &history, SegmentSize::DEFAULT);
            assert_eq!(is, expected, "{name}");
        }
    }

    #[test]
    fn a_file_under_the_name_of_a_later_segment_holds_an_earlier_one() {
        let dir = tempfile::tempdir().unwrap();
        let size = SegmentSize::new(1 << 20).unwrap();
        let segment = |address: u64, system_id: u64| {
            let mut page = vec![0; 8192];
            page[4..8].copy_from_slice(&2u32.to_le_bytes());
            page[8..16].copy_from_slice(&address.to_le_bytes());
            page[24..32].copy_from_slice(&system_id.to_le_bytes());
            page
        };
        for (name, content) in [
            ("000000020000000000000005", segment(0x50_0000, 7)),
            ("000000020000000000000006", segment(0x30_0000, 7)),
            ("000000020000000000000007", segment(0x30_0000, 8)),
            ("000000020000000000000008", segment(0x30_2000, 7)),
            ("000000020000000000000009", vec![0; 8192]),
            ("00000002.history", Vec::new()),
        ] {
            durable::create(&dir.path().join(name), &content).unwrap();
        }
        let found = waiting_for_use(dir.path(), SystemId(7), size).unwrap();
        let held = "000000020000000000000003".parse().unwrap();
        assert_eq!(found, [(held, dir.path().join("000000020000000000000006"))]);
    }
}
