//! What a server logged last.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::owner::{self, Owner};

/// Bytes at the end of the log that are looked at.
const TAIL: u64 = 64 << 10;

/// The most lines of the log that an error quotes.
const LINES: usize = 4;

/// The last errors in a log, oldest first. That a session came too early or too late is none.
pub(crate) fn last_errors(log: &Path) -> Vec<String> {
    let text = read(log, Begin::End, None).unwrap_or_default();
    let is_error = |line: &&str| {
        !is_refusal(line) && ["FATAL:", "PANIC:", "ERROR:"].iter().any(|level| line.contains(level))
    };
    let mut found: Vec<String> = text.lines().filter(is_error).map(str::to_owned).collect();
    found.drain(..found.len().saturating_sub(LINES));
    found
}

/// The last lines of a log, oldest first, without refused sessions. `owner`: whose file it has to be.
pub(crate) fn last_lines(log: &Path, most: usize, owner: Option<Owner>) -> Vec<String> {
    let text = read(log, Begin::End, owner).unwrap_or_default();
    let mut found: Vec<String> = text.lines().filter(|line| !is_refusal(line)).map(str::to_owned).collect();
    found.drain(..found.len().saturating_sub(most));
    found
}

/// The lines of a log behind a position, as far as they are few. `owner`: whose file it has to be.
pub(crate) fn lines_behind(log: &Path, position: u64, owner: Option<Owner>) -> Vec<String> {
    let text = read(log, Begin::Position(position), owner).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Whether a line only says that a session came too early or too late.
fn is_refusal(line: &str) -> bool {
    line.contains("FATAL:  the database system is ")
}

/// Which part of a log is read.
#[derive(Clone, Copy)]
enum Begin {
    Position(u64),
    End,
}

/// Reads a part of a log.
fn read(log: &Path, begin: Begin, owner: Option<Owner>) -> std::io::Result<String> {
    let mut file = owner::open(log, owner)?;
    let begin = match begin {
        Begin::Position(position) => position,
        Begin::End => file.metadata()?.len().saturating_sub(TAIL),
    };
    file.seek(SeekFrom::Start(begin))?;
    let mut text = Vec::new();
    file.take(TAIL).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_errors_of_a_log_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut text = String::new();
        for n in 0..9 {
            text += &format!(
                "2026-11-21 10:00:0{n} UTC [7] LOG:  line\n2026-11-21 10:00:0{n} UTC [7] FATAL:  no {n}\n"
            );
        }
        text += "2026-11-21 10:00:09 UTC [8] FATAL:  the database system is shutting down\n";
        walpoint_base::durable::create(&log, text.as_bytes()).unwrap();
        let found = last_errors(&log);
        assert_eq!(found.len(), LINES);
        assert!(found[0].ends_with("no 5") && found[3].ends_with("no 8"), "{found:?}");
        assert!(last_errors(&dir.path().join("none")).is_empty());
        let lines = last_lines(&log, 3, None);
        assert!(lines.len() == 3 && lines[1].ends_with("line") && lines[2].ends_with("no 8"), "{lines:?}");
        let behind = u64::try_from(text.find("2026-11-21 10:00:09").unwrap()).unwrap();
        assert_eq!(lines_behind(&log, behind, None).len(), 1);
    }

    #[test]
    fn a_file_of_another_user_is_no_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        walpoint_base::durable::create(&log, b"a line\n").unwrap();
        let (uid, gid) = (walpoint_base::user::effective(), 0);
        assert_eq!(last_lines(&log, 3, Some(Owner { uid, gid })), ["a line"]);
        assert_eq!(last_lines(&log, 3, Some(Owner { uid: uid + 1, gid })), [""; 0]);
        assert_eq!(lines_behind(&log, 0, Some(Owner { uid: uid + 1, gid })), [""; 0]);
        assert_eq!(last_lines(dir.path(), 3, None), [""; 0]);
    }
}
