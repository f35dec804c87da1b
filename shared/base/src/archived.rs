//! What a data directory remembers of its archives: the newest segment of each timeline that was stored from it, by its hash.
//!
//! It lies in `pg_wal`, which a base backup leaves out: so a copy of the server does not have it, and a server that did not
//! archive for a while still can show that what is stored is its own. The daemon writes it, or, where that may only read the
//! directory, the command that PostgreSQL runs.
//!
//! A line for each repository, lineage and timeline: `<repository> <lineage> <segment> <hash>`. It is synced before an
//! acknowledgement: after a crash of the machine the newest segment that was stored may be gone from `pg_wal`, and nothing else
//! shows whose it is. A line is replaced in its place, so that a write that is torn leaves the others.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::durable;
use crate::segment::SegmentName;
use crate::timeline::TimelineId;

/// Its name in `pg_wal`.
pub const FILE: &str = "walpoint-archived";

/// Lines that are kept, the newest.
const LINES: usize = 32;

/// The line that says that a segment was stored; `place` names repository and lineage, `hash` is that of its content there.
pub fn line(place: &str, segment: SegmentName, hash: &str) -> String {
    format!("{place} {segment} {hash}")
}

/// The newest segment of a timeline that was stored in a place from that directory, and its hash, if it is known.
pub fn read(wal: &Path, place: &str, timeline: TimelineId) -> Option<(SegmentName, String)> {
    let mut text = String::new();
    let mut file = File::open(wal.join(FILE)).ok()?;
    file.lock_shared().ok()?;
    file.read_to_string(&mut text).ok()?;
    of(&text, place, timeline).map(|(segment, hash)| (segment, hash.to_owned()))
}

/// Remembers durably that segments were stored, each where it is the newest one of its timeline there.
pub fn note(wal: &Path, lines: &[String]) -> io::Result<()> {
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(wal.join(FILE))?;
    file.lock()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let changed =
        lines.iter().fold(None, |changed, line| with(changed.as_deref().unwrap_or(&text), line).or(changed));
    if let Some(changed) = changed {
        file.write_all_at(changed.as_bytes(), 0)?;
        file.set_len(changed.len() as u64)?;
    }
    // Others may write meanwhile. A later segment, if that is there, may not be durable yet.
    file.unlock()?;
    file.sync_data()?;
    if text.is_empty() { durable::sync_directory(wal) } else { Ok(()) }
}

/// Place, segment and hash.
fn parse(line: &str) -> Option<(&str, SegmentName, &str)> {
    let (rest, hash) = line.rsplit_once(' ')?;
    let (place, segment) = rest.rsplit_once(' ')?;
    let whole = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    Some((place, segment.parse().ok()?, hash)).filter(|_| whole)
}

fn of<'a>(text: &'a str, place: &str, timeline: TimelineId) -> Option<(SegmentName, &'a str)> {
    let claims = text.lines().filter_map(parse);
    let mut own = claims.filter(|(of, segment, _)| *of == place && segment.timeline == timeline);
    own.next().map(|(_, segment, hash)| (segment, hash))
}

/// The text with a line in it; `None` if it is none, or a later segment of that timeline is there.
fn with(text: &str, line: &str) -> Option<String> {
    let (place, segment, _) = parse(line)?;
    if of(text, place, segment.timeline).is_some_and(|(before, _)| before >= segment) {
        return None;
    }
    let own = |line: &str| {
        parse(line).is_some_and(|(of, other, _)| of == place && other.timeline == segment.timeline)
    };
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    match lines.iter_mut().find(|line| own(line)) {
        Some(before) => *before = line,
        None => lines.push(line),
    }
    let kept = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default();
    Some(kept.iter().map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(place: &str, name: &str, hash: u8) -> String {
        line(place, name.parse().unwrap(), &format!("{hash:02x}").repeat(32))
    }

    #[test]
    fn the_newest_segment_of_each_timeline_and_place_is_kept() {
        let (five, six) = ("000000010000000000000005", "000000010000000000000006");
        let timeline = TimelineId::FIRST;
        let dir = tempfile::tempdir().unwrap();
        note(dir.path(), &[claim("a 1", six, 6), claim("a 2", five, 5)]).unwrap();
        note(dir.path(), &[claim("a 1", five, 5), "no line at all".to_owned()]).unwrap();
        note(dir.path(), &[claim("a 1", "000000020000000000000007", 7)]).unwrap();
        let newest = |place: &str| read(dir.path(), place, timeline).map(|(segment, _)| segment.to_string());
        assert_eq!(newest("a 1").as_deref(), Some(six), "not an earlier one");
        assert_eq!(newest("a 2").as_deref(), Some(five));
        assert_eq!(newest("a 3"), None);

        note(dir.path(), &[claim("a 1", "000000010000000000000007", 8)]).unwrap();
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
        let (segment, hash) = of(&text, "a 1", timeline).unwrap();
        assert_eq!(
            (segment.to_string().as_str(), hash),
            ("000000010000000000000007", "08".repeat(32).as_str())
        );
        let cut = &text[..text.len() - 3];
        assert_eq!(of(cut, "a 1", TimelineId::new(2).unwrap()), None, "the line was cut off");
        assert!(of(cut, "a 1", timeline).is_some());
    }
}
