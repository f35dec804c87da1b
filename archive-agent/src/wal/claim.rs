//! What a data directory remembers of its archives: the newest segment of each timeline that it stored there, by its hash.
//!
//! It lies in `pg_wal`, which a base backup leaves out: so a copy of the server does not have it, and a server that did not
//! archive for a while still can show that what is stored is its own ([`neighbors`](super::neighbors)). A line for each
//! repository, lineage and timeline. It is synced before an acknowledgement: after a crash of the machine the newest segment that
//! was stored may be gone from `pg_wal`, and nothing else shows whose it is. A line is replaced in its place, so that a write that
//! is torn leaves the others.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use walpoint_base::{SegmentName, TimelineId, durable};
use walpoint_repo::object::ContentHash;
use walpoint_repo::wal::WalArchive;

/// Its name in `pg_wal`.
pub(crate) const FILE: &str = "walpoint-archived";

/// Lines that are kept, the newest.
const LINES: usize = 32;

/// A segment that was stored from this directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    /// Which one.
    pub(super) segment: SegmentName,
    /// Of its content, as that repository has it.
    pub(super) hash: ContentHash,
}

/// The newest segment of a timeline that was stored in an archive from this directory, if it is known. Blocks.
pub(super) fn read(wal: &Path, archive: &WalArchive, timeline: TimelineId) -> Option<Claim> {
    let mut text = String::new();
    let mut file = File::open(wal.join(FILE)).ok()?;
    file.lock_shared().ok()?;
    file.read_to_string(&mut text).ok()?;
    of(&text, &place(archive), timeline)
}

/// Remembers durably that a segment was stored, if it is the newest one of its timeline. Blocks.
pub(super) fn note(wal: &Path, archive: &WalArchive, claim: Claim) -> io::Result<()> {
    let mut file = open(wal)?;
    file.lock()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    if let Some(changed) = with(&text, &place(archive), claim) {
        file.write_all_at(changed.as_bytes(), 0)?;
        file.set_len(changed.len() as u64)?;
    }
    // Others may write meanwhile. A later segment, if that is there, may not be durable yet.
    file.unlock()?;
    file.sync_data()?;
    if text.is_empty() { durable::sync_directory(wal) } else { Ok(()) }
}

/// Whether it can be remembered there at all: the daemon may see the directory only to read it. Blocks.
pub(super) fn can_be_noted(wal: &Path) -> bool {
    open(wal).is_ok()
}

fn open(wal: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(wal.join(FILE))
}

fn place(archive: &WalArchive) -> String {
    format!("{} {}", archive.repository().id(), archive.lineage().id)
}

fn parse(line: &str, place: &str) -> Option<Claim> {
    let (segment, hash) = line.strip_prefix(place)?.strip_prefix(' ')?.split_once(' ')?;
    Some(Claim { segment: segment.parse().ok()?, hash: hash.parse().ok()? })
}

fn of(text: &str, place: &str, timeline: TimelineId) -> Option<Claim> {
    let mut claims = text.lines().filter_map(|line| parse(line, place));
    claims.rfind(|claim| claim.segment.timeline == timeline)
}

/// The text with a claim in it; `None` if a later one of that timeline is.
fn with(text: &str, place: &str, claim: Claim) -> Option<String> {
    let timeline = claim.segment.timeline;
    if of(text, place, timeline).is_some_and(|before| before.segment >= claim.segment) {
        return None;
    }
    let own = |line: &str| parse(line, place).is_some_and(|other| other.segment.timeline == timeline);
    let line = format!("{place} {} {}", claim.segment, claim.hash);
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    match lines.iter_mut().find(|line| own(line)) {
        Some(before) => *before = &line,
        None => lines.push(&line),
    }
    let kept = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default();
    Some(kept.iter().map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_segment_of_each_timeline_and_place_is_kept() {
        let claim =
            |name: &str, hash| Claim { segment: name.parse().unwrap(), hash: ContentHash([hash; 32]) };
        let (five, six) = (claim("000000010000000000000005", 5), claim("000000010000000000000006", 6));
        let timeline = TimelineId::FIRST;
        let text = with("", "a 1", six).unwrap();
        assert_eq!(with(&text, "a 1", five), None, "an earlier one");
        let text = with(&text, "a 2", five).unwrap();
        let text = with(&text, "a 1", claim("000000020000000000000007", 7)).unwrap();
        assert_eq!(of(&text, "a 1", timeline), Some(six));
        assert_eq!(of(&text, "a 2", timeline), Some(five));
        assert_eq!(of(&text, "a 3", timeline), None);
        let seven = claim("000000010000000000000007", 8);
        let text = with(&text, "a 1", seven).unwrap();
        assert_eq!((of(&text, "a 1", timeline), text.lines().count()), (Some(seven), 3));
        let cut = &text[..text.len() - 3];
        assert_eq!(of(cut, "a 1", TimelineId::new(2).unwrap()), None, "the line was cut off");
        assert_eq!(of(cut, "a 1", timeline), Some(seven));
    }
}
