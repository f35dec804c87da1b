//! What a data directory remembers of its archives: the newest segment of each timeline that it stored there, by its hash.
//!
//! It lies in `pg_wal`, which a base backup leaves out: so a copy of the server does not have it, and a server that did not
//! archive for a while still can show that what is stored is its own ([`neighbors`](super::neighbors)). A line for each
//! repository, lineage and timeline. It is written in place and not synchronized: without it, only a gap is not explained.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use walpoint_base::{SegmentName, TimelineId};
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

/// Remembers a segment that was stored, if it is the newest one of its timeline. Blocks.
pub(super) fn note(wal: &Path, archive: &WalArchive, claim: Claim) -> io::Result<()> {
    let mut file = open(wal)?;
    file.lock()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let Some(changed) = with(&text, &place(archive), claim) else { return Ok(()) };
    file.write_all_at(changed.as_bytes(), 0)?;
    file.set_len(changed.len() as u64)
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
    let others =
        text.lines().filter(|line| parse(line, place).is_none_or(|other| other.segment.timeline != timeline));
    let others: Vec<&str> = others.filter(|line| !line.is_empty()).collect();
    let kept = others.get(others.len().saturating_sub(LINES - 1)..).unwrap_or_default();
    let mut changed: String = kept.iter().map(|line| format!("{line}\n")).collect();
    changed += &format!("{place} {} {}\n", claim.segment, claim.hash);
    Some(changed)
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
        assert_eq!(of(&text[..text.len() - 3], "a 1", timeline), None, "the line was cut off");
    }
}
