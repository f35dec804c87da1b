//! What a data directory remembers of its archives: of each repository, lineage and timeline the newest segment that was stored from it, by
//! its hash.
//!
//! It lies in `pg_wal`, which a base backup leaves out: so a copy of the server does not have it, and a server that did not
//! archive for a while still can show that what is stored is its own. `pg_rewind` puts the source's in the place of the target's. What it
//! says holds there, too: the segments that it names were complete on the source before the files were copied, and the target is consistent
//! only behind what the source had written after that, so they are in the target's own history. The daemon writes it, or, where that may
//! only read the directory, the command that PostgreSQL runs.
//!
//! A line for each: `<repository> <lineage> <uid of the lineage> <segment> <hash>`, in the order in which they were added. A line that changes
//! keeps its place and its length. Where one is added to 32 others, the first of them goes. What is no line, whatever its bytes are,
//! says nothing and goes with the next note; a file that cannot be read, or is none, is replaced by that.
//!
//! Where `pg_wal` is full, only archiving empties it, so a note must take no room: the file has 8 KiB from the start ([`prepare`]),
//! with empty lines in place of those to come, and each note writes all of them in place. A filesystem that never writes in place (Btrfs,
//! ZFS) needs room all the same.
//!
//! A note is synced before an acknowledgement: after a crash of the machine the newest segment that was stored may be gone from `pg_wal`, and
//! nothing else shows whose it is. A crash in the middle of a note leaves each sector of the file as it was or as it was to be. So it may
//! tear the line that changes; its segment is not acknowledged yet, and in `pg_wal` as it is stored. Where a line goes, those behind it move,
//! and some of them may be torn or lost: then nothing is known of these.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use crate::durable;
use crate::owned;
use crate::segment::SegmentName;
use crate::timeline::TimelineId;

/// Its name in `pg_wal`.
pub const FILE: &str = "walpoint-archived";

/// What it is called from then on, if something that is no file is in its place.
const ASIDE: &str = "walpoint-archived.damaged";

/// Lines that are kept, those that were added last.
const LINES: usize = 32;

/// Bytes that it has from the start: as many as all its lines take.
const ROOM: u64 = 8192;

/// How often it is opened again because another one took its place meanwhile.
const OPENED: usize = 5;

/// How often its lock is tried, and the pause before each further try: this program holds it for one write. Whatever else holds it, or is
/// suspended with it, must not keep PostgreSQL waiting.
const LOCK_TRIES: usize = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// The line that says that a segment was stored; `place` names repository and lineage, `hash` is that of its content there.
pub fn line(place: &str, segment: SegmentName, hash: &str) -> String {
    format!("{place} {segment} {hash}")
}

/// The newest segment of a timeline that was stored in a place from that directory, and its hash, if it is known. An error if the file is
/// there and cannot be read.
pub fn read(wal: &Path, place: &str, timeline: TimelineId) -> io::Result<Option<(SegmentName, String)>> {
    let mut file = match File::open(wal.join(FILE)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    lock(&file, &wal.join(FILE), File::try_lock_shared)?;
    Ok(of(&text(&mut file)?, place, timeline).map(|(segment, hash)| (segment, hash.to_owned())))
}

/// Creates the file with room for its lines, durably, unless it has that.
pub fn prepare(wal: &Path) -> io::Result<()> {
    let file = open_locked(wal)?;
    let made = make_room(&file);
    file.unlock()?;
    if made? {
        file.sync_data()?;
        durable::sync_directory(wal)?;
    }
    Ok(())
}

/// Whether an error says that there is no room: archiving makes some.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// Remembers durably that segments were stored, each where it is the newest one of its timeline there. A file that another process keeps
/// locked stays as it is: what that one writes is not to be lost.
pub fn note(wal: &Path, lines: &[String]) -> io::Result<()> {
    match note_in_place(wal, lines) {
        // No space in this one is none for another.
        Err(error) if is_full(&error) || error.kind() == ErrorKind::WouldBlock => Err(error),
        Err(error) => replace(wal, lines).map_err(|_| error),
        Ok(()) => Ok(()),
    }
}

fn note_in_place(wal: &Path, lines: &[String]) -> io::Result<()> {
    let mut file = open_locked(wal)?;
    let before = text(&mut file)?;
    if let Some(mut changed) = with_all(&before, lines) {
        // What was longer is overwritten, and nothing is given back that the next note may need.
        pad(&mut changed, file.metadata()?.len());
        file.write_all_at(changed.as_bytes(), 0)?;
        // One of an earlier version has none; then this one is as good.
        make_room(&file).ok();
    }
    // Others may write meanwhile. A later segment, if that is there, may not be durable yet.
    file.unlock()?;
    file.sync_data()?;
    // Its name may not be durable before its first line is.
    if before.lines().any(|line| parse(line).is_some()) { Ok(()) } else { durable::sync_directory(wal) }
}

/// Whether a file had no room for its lines. It has then.
fn make_room(file: &File) -> io::Result<bool> {
    let length = file.metadata()?.len();
    let mut room = String::new();
    pad(&mut room, ROOM.saturating_sub(length));
    file.write_all_at(room.as_bytes(), length)?;
    Ok(!room.is_empty())
}

/// Adds empty lines up to a length.
fn pad(text: &mut String, length: u64) {
    let missing = usize::try_from(length).unwrap_or(usize::MAX).saturating_sub(text.len());
    text.push_str(&"\n".repeat(missing));
}

/// Opens the file and takes its lock, with its name leading to it still.
fn open_locked(wal: &Path) -> io::Result<File> {
    let path = wal.join(FILE);
    for _ in 0..OPENED {
        let file = owned::open(&path, OpenOptions::new().read(true).write(true).truncate(false))?;
        lock(&file, &path, File::try_lock)?;
        let (own, named) = (file.metadata()?, path.symlink_metadata()?);
        if (own.dev(), own.ino()) == (named.dev(), named.ino()) || named.is_symlink() {
            return Ok(file);
        }
    }
    Err(io::Error::other(format!("{} is replaced again and again", path.display())))
}

/// Takes a lock of the file within about a second. An error of the kind `WouldBlock` names the file, and who holds the lock if that shows.
fn lock(file: &File, path: &Path, take: impl Fn(&File) -> Result<(), TryLockError>) -> io::Result<()> {
    for attempt in 0..LOCK_TRIES {
        if attempt > 0 {
            std::thread::sleep(LOCK_PAUSE);
        }
        match take(file) {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let by = match file.metadata().ok().and_then(|meta| holder(&locks, meta.dev(), meta.ino())) {
        Some(process) => format!("process {process}"),
        None => "another process".to_owned(),
    };
    Err(io::Error::new(ErrorKind::WouldBlock, format!("{} is locked by {by}", path.display())))
}

/// The process that holds a lock of a file, by the content of `/proc/locks`; none that lives where this process cannot see it, or that
/// only waits.
fn holder(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let major = ((device >> 8) & 0xFFF) | ((device >> 32) & 0xFFFF_F000);
    let minor = (device & 0xFF) | ((device >> 12) & 0xFFFF_FF00);
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip_while(|field| *field != "FLOCK");
        let (process, of) = (fields.nth(3)?, fields.next()?);
        process.parse().ok().filter(|process| of == file && *process > 0)
    })
}

/// Puts a new file in the place of one that cannot be read or written, with what can be read of it.
fn replace(wal: &Path, lines: &[String]) -> io::Result<()> {
    let path = wal.join(FILE);
    let before = File::open(&path).and_then(|mut file| text(&mut file)).unwrap_or_default();
    if path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        durable::rename(&path, &wal.join(ASIDE))?;
    }
    let mut changed = with_all(&before, lines).unwrap_or(before);
    pad(&mut changed, ROOM);
    durable::replace_for_owner(&path, changed.as_bytes(), 0o600)
}

/// What a file says; bytes that are no text belong to no line that counts.
fn text(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The text with these lines in it; `None` if it says all that already.
fn with_all(text: &str, lines: &[String]) -> Option<String> {
    lines.iter().fold(None, |changed, line| with(changed.as_deref().unwrap_or(text), line).or(changed))
}

/// Place, segment and hash of a line; `None` if it is none.
pub fn parse(line: &str) -> Option<(&str, SegmentName, &str)> {
    let (rest, hash) = line.rsplit_once(' ')?;
    let (place, segment) = rest.rsplit_once(' ')?;
    let whole = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    let plain = place.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    Some((place, segment.parse().ok()?, hash)).filter(|_| whole && plain)
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
    let mut lines: Vec<&str> = text.lines().filter(|line| parse(line).is_some()).collect();
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
        let newest = |place: &str| {
            let found = read(dir.path(), place, timeline).unwrap();
            found.map(|(segment, _)| segment.to_string())
        };
        assert_eq!(newest("a 1").as_deref(), Some(six), "not an earlier one");
        assert_eq!(newest("a 2").as_deref(), Some(five));
        assert_eq!(newest("a 3"), None);

        note(dir.path(), &[claim("a 1", "000000010000000000000007", 8)]).unwrap();
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        let text = text.trim_end();
        assert_eq!(text.lines().count(), 3, "{text}");
        let (segment, hash) = of(text, "a 1", timeline).unwrap();
        assert_eq!(
            (segment.to_string().as_str(), hash),
            ("000000010000000000000007", "08".repeat(32).as_str())
        );
        let cut = &text[..text.len() - 3];
        assert_eq!(of(cut, "a 1", TimelineId::new(2).unwrap()), None, "the line was cut off");
        assert!(of(cut, "a 1", timeline).is_some());
    }

    #[test]
    fn bytes_that_are_no_text_cost_their_line_and_go_with_the_next_note() {
        let dir = tempfile::tempdir().unwrap();
        let (path, five) = (dir.path().join(FILE), "000000010000000000000005");
        note(dir.path(), &[claim("a 1", five, 5), claim("a 2", five, 6)]).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20] = 0xFF;
        durable::replace(&path, &bytes, 0o600).unwrap();
        let known = |place| read(dir.path(), place, TimelineId::FIRST).unwrap().is_some();
        assert!(!known("a 1") && known("a 2"));
        note(dir.path(), &[claim("a 1", "000000010000000000000006", 7)]).unwrap();
        assert!(known("a 1") && known("a 2"));
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.trim_end().lines().count(), 2, "{text}");
    }

    /// Where the disk is full, only what takes no room can be noted.
    #[test]
    fn notes_take_no_room() {
        let place =
            "0b9cf1b4-37a4-4b0c-8f6e-24be3b9a1d11 7712527589780668231-1 6f1d3a52-9f0b-4f0e-bb0e-2f3c9c0f6a77";
        for of_an_earlier_version in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(FILE);
            if of_an_earlier_version {
                durable::replace(
                    &path,
                    format!("{}\n", claim("a 1", "000000010000000000000005", 5)).as_bytes(),
                    0o600,
                )
                .unwrap();
            }
            prepare(dir.path()).unwrap();
            let room = || {
                let found = std::fs::metadata(&path).unwrap();
                (found.ino(), found.len())
            };
            let before = room();
            assert_eq!(before.1, ROOM);
            assert_eq!(read(dir.path(), "a 1", TimelineId::FIRST).unwrap().is_some(), of_an_earlier_version);
            for timeline in 1..2 * LINES {
                note(dir.path(), &[claim(place, &format!("{timeline:08X}0000000000000005"), 7)]).unwrap();
                assert_eq!(room(), before, "{timeline}");
            }
            let newest = TimelineId::new(u32::try_from(2 * LINES).unwrap() - 1).unwrap();
            assert!(read(dir.path(), place, newest).unwrap().is_some());
            prepare(dir.path()).unwrap();
            assert_eq!(room(), before);
        }
    }

    #[test]
    fn a_lock_that_another_process_keeps_is_an_error_that_names_the_file_and_no_wait() {
        let dir = tempfile::tempdir().unwrap();
        let (path, five) = (dir.path().join(FILE), "000000010000000000000005");
        note(dir.path(), &[claim("a 1", five, 5)]).unwrap();
        let inode = std::fs::metadata(&path).unwrap().ino();
        let held = File::open(&path).unwrap();
        held.lock().unwrap();
        let locked = |result: io::Result<()>| {
            let error = result.unwrap_err();
            let text = error.to_string();
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "{text}");
            assert!(text.starts_with(&format!("{} is locked by ", path.display())), "{text}");
        };
        locked(note(dir.path(), &[claim("a 1", "000000010000000000000006", 6)]));
        locked(read(dir.path(), "a 1", TimelineId::FIRST).map(drop));
        locked(prepare(dir.path()));
        drop(held);
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode, "it is not replaced");
        let (segment, _) = read(dir.path(), "a 1", TimelineId::FIRST).unwrap().unwrap();
        assert_eq!(segment.to_string(), five);
        note(dir.path(), &[claim("a 1", "000000010000000000000006", 6)]).unwrap();
    }

    #[test]
    fn who_holds_a_lock_shows_in_the_kernels_list() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 08:01:42 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 4711 08:01:42 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 9 08:01:42 0 EOF\n\
                     3: FLOCK  ADVISORY  READ -1 08:01:43 0 EOF\n\
                     no line at all\n";
        let device = 0x801;
        assert_eq!(holder(locks, device, 42), Some(4711));
        assert_eq!(holder(locks, device, 43), None, "it is in another namespace");
        assert_eq!(holder(locks, 0x802, 42), None);
        assert_eq!(holder("", device, 42), None);
    }

    #[test]
    fn what_is_no_file_is_an_error_to_read_and_put_aside_by_a_note() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert!(matches!(read(dir.path(), "a 1", TimelineId::FIRST), Ok(None)));
        std::fs::create_dir(&path).unwrap();
        assert!(read(dir.path(), "a 1", TimelineId::FIRST).is_err());
        note(dir.path(), &[claim("a 1", "000000010000000000000005", 5)]).unwrap();
        assert!(
            read(dir.path(), "a 1", TimelineId::FIRST).unwrap().is_some() && dir.path().join(ASIDE).is_dir()
        );
    }
}
