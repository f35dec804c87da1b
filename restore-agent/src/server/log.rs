//! What a server logged last.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Bytes at the end of the log that are looked at.
const TAIL: u64 = 64 << 10;

/// The most lines of the log that an error quotes.
const LINES: usize = 4;

/// The last errors in a log, oldest first. That a session came too early or too late is none.
pub(crate) fn last_errors(log: &Path) -> Vec<String> {
    let text = tail(log).unwrap_or_default();
    let is_error = |line: &&str| {
        !is_refusal(line) && ["FATAL:", "PANIC:", "ERROR:"].iter().any(|level| line.contains(level))
    };
    let mut found: Vec<String> = text.lines().filter(is_error).map(str::to_owned).collect();
    found.drain(..found.len().saturating_sub(LINES));
    found
}

/// The last lines of a log, oldest first, without refused sessions.
pub(crate) fn last_lines(log: &Path, most: usize) -> Vec<String> {
    let text = tail(log).unwrap_or_default();
    let mut found: Vec<String> = text.lines().filter(|line| !is_refusal(line)).map(str::to_owned).collect();
    found.drain(..found.len().saturating_sub(most));
    found
}

/// Whether a line only says that a session came too early or too late.
fn is_refusal(line: &str) -> bool {
    line.contains("FATAL:  the database system is ")
}

fn tail(log: &Path) -> std::io::Result<String> {
    // Its directory is another user's: what lies there under that name may be no file.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(log, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(std::io::Error::other("it is no file"));
    }
    let length = metadata.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
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
        let lines = last_lines(&log, 3);
        assert!(lines.len() == 3 && lines[1].ends_with("line") && lines[2].ends_with("no 8"), "{lines:?}");
    }
}
